/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char *const prefixes[] = {"/sys/class/infiniband", "/sys/class/misc/rdma_cm", "/dev/infiniband"};

enum { PREFIXES = sizeof(prefixes) / sizeof(*prefixes) };

static bool redirected(const char *path)
{
    for (int i = 0; path && i < PREFIXES; i++)
        if (strncmp(path, prefixes[i], strlen(prefixes[i])) == 0)
            return secure_getenv("SLUICE_TENANT_DIR") != NULL;
    return false;
}

/* "/proc/self/fd/N"; snprintf isn't async-signal-safe. */
static void descriptor_path(int fd, char path[32])
{
    char digits[12], *digit = digits + sizeof(digits);

    *--digit = 0;
    do
        *--digit = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    strcpy(path, "/proc/self/fd/");
    strcat(path, digit);
}

/* The absolute path that one from directory stands for, in buffer; false where it can't be told. */
static bool absolute(int directory, const char *path, char buffer[PATH_MAX])
{
    char descriptor[32];

    if (directory == AT_FDCWD)
        strcpy(descriptor, "/proc/self/cwd");
    else
        descriptor_path(directory, descriptor);
    ssize_t head = readlink(descriptor, buffer, PATH_MAX - 1);
    size_t tail = strlen(path);

    if (head <= 0 || (size_t)head + 1 + tail >= PATH_MAX)
        return false;
    if (buffer[head - 1] != '/')
        buffer[head++] = '/';
    while (path[0] == '.' && path[1] == '/')
        path += 2, tail -= 2;
    memcpy(buffer + head, path, tail + 1);
    return true;
}

/* By itself, so that other paths pay no stack for it: signal handlers have little. */
__attribute__((noinline)) static const char *relative_where(int directory, const char *path, char buffer[PATH_MAX])
{
    int saved = errno;
    char named[PATH_MAX];
    bool ours = absolute(directory, path, named) && redirected(named);

    errno = saved;
    return ours && sysfs_where(directory, named, buffer) == buffer ? buffer : path;
}

const char *sysfs_where(int directory, const char *path, char buffer[PATH_MAX])
{
    int saved = errno;

    if (path && *path != '/' && (strstr(path, "infiniband") || strstr(path, "rdma_cm")))
        return relative_where(directory, path, buffer);
    if (__builtin_expect(!redirected(path), 1))
        return path;
    const char *tenant = secure_getenv("SLUICE_TENANT_DIR");
    size_t head = strlen(tenant), tail = strlen(path);

    errno = saved;
    /* Too long: then the file that it names isn't there either. */
    if (head + tail >= PATH_MAX)
        return "/dev/null/too-long";
    memcpy(buffer, tenant, head);
    memcpy(buffer + head, path, tail + 1);
    return buffer;
}

/* ---- port counters ----------------------------------------------------- */

enum { COUNTERS_MAX = 4096 }; /* bytes of the router's answer */

/*
 * All counters of a device as they are now: lines of "counters/NAME VALUE", as the router sends
 * them to whoever connects (router/sluice/device/sysfs.py). digits: the device's number, up to what isn't one. Returns the
 * length or -1.
 */
static ssize_t ask_counters(const char *digits, char text[COUNTERS_MAX])
{
    static const char name[] = "/counters";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *directory = secure_getenv("SLUICE_TENANT_DIR");
    size_t head = strlen(directory), count = strspn(digits, "0123456789");
    ssize_t got = -1;

    if (head + sizeof(name) + count > sizeof(address.sun_path))
        return -1;
    memcpy(address.sun_path, directory, head);
    memcpy(address.sun_path + head, name, sizeof(name));
    memcpy(address.sun_path + head + sizeof(name) - 1, digits, count);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        got = recv(fd, text, COUNTERS_MAX - 1, 0);
    close(fd);
    return got;
}

/* The value in the line that begins with key, newline included; its length, or 0. */
static size_t value_of(const char *text, const char *key, const char **value)
{
    size_t length = strlen(key);

    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            *value = line + length + 1;
            return (size_t)(end + 1 - *value);
        }
    return 0;
}

/* Which counter of the tenant's the file behind fd is, as the router's lines name it, and of which device; NULL where it is none. */
static const char *counter_of(int fd, char path[PATH_MAX], const char **digits)
{
    static const char port[] = "/ports/1/", name[] = "/sluice";
    const char *tenant = secure_getenv("SLUICE_TENANT_DIR"), *key;
    struct stat here, theirs;
    char descriptor[32], *inside;

    if (!tenant)
        return NULL;
    descriptor_path(fd, descriptor);
    ssize_t length = readlink(descriptor, path, PATH_MAX - 1);

    if (length <= 0)
        return NULL;
    path[length] = 0;
    if (!(inside = strstr(path, prefixes[0])) || !(key = strstr(inside, port)) || !strstr(key, "counters/"))
        return NULL;
    *digits = inside + strlen(prefixes[0]);
    if (strncmp(*digits, name, sizeof(name) - 1) != 0)
        return NULL;
    *digits += sizeof(name) - 1;
    *inside = 0;
    if (stat(path, &here) || stat(tenant, &theirs) || here.st_dev != theirs.st_dev || here.st_ino != theirs.st_ino)
        return NULL;
    return key + sizeof(port) - 1;
}

/* The files hold "0" and a newline: what has another size costs no more than to ask for that. */
static bool may_be_counter(int fd)
{
    struct stat status;

    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 2;
}

__attribute__((noinline)) static void replace_counter(int fd, int flags)
{
    char text[COUNTERS_MAX], named[PATH_MAX];
    const char *value, *digits, *key = counter_of(fd, named, &digits);
    ssize_t got = key ? ask_counters(digits, text) : -1;

    if (got <= 0)
        return;
    text[got] = 0;
    size_t length = value_of(text, key, &value);
    int live = length ? memfd_create("counter", MFD_CLOEXEC) : -1;

    if (live < 0)
        return;
    if (write(live, value, length) == (ssize_t)length && lseek(live, 0, SEEK_SET) == 0)
        dup3(live, fd, flags & O_CLOEXEC);
    close(live);
}

int sysfs_opened(int fd, const char *path, int flags)
{
    int saved = errno;

    if (fd >= 0 && (flags & (O_ACCMODE | O_PATH | O_CREAT)) == O_RDONLY && (*path != '/' || strstr(path, prefixes[0])) &&
        may_be_counter(fd))
        replace_counter(fd, flags);
    errno = saved;
    return fd;
}

char *sysfs_back(char *resolved)
{
    for (int i = 0; resolved && i < PREFIXES; i++) {
        char *inside = strstr(resolved, prefixes[i]);

        if (inside) {
            memmove(resolved, inside, strlen(inside) + 1);
            break;
        }
    }
    return resolved;
}
