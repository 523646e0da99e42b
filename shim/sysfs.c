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

const char *sysfs_where(const char *path, char buffer[PATH_MAX])
{
    int saved = errno;

    if (__builtin_expect(!redirected(path), 1))
        return path;
    const char *directory = secure_getenv("SLUICE_TENANT_DIR");
    size_t head = strlen(directory), tail = strlen(path);

    /* Too long: then the file that it names isn't there either. */
    if (head + tail >= PATH_MAX)
        return "/dev/null/too-long";
    memcpy(buffer, directory, head);
    memcpy(buffer + head, path, tail + 1);
    errno = saved;
    return buffer;
}

/* ---- port counters ----------------------------------------------------- */

enum { COUNTERS_MAX = 4096 }; /* bytes of the router's answer */

/*
 * All counters as they are now: lines of "counters/NAME VALUE", as the router sends
 * them to whoever connects (router/sluice/device/sysfs.py). Returns the length or -1.
 */
static ssize_t ask_counters(char text[COUNTERS_MAX])
{
    static const char name[] = "/counters";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *directory = secure_getenv("SLUICE_TENANT_DIR");
    size_t head = strlen(directory);
    ssize_t got = -1;

    if (head + sizeof(name) > sizeof(address.sun_path))
        return -1;
    memcpy(address.sun_path, directory, head);
    memcpy(address.sun_path + head, name, sizeof(name));
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

int sysfs_open_counter(const char *path, int flags)
{
    static const char port[] = "/ports/1/";
    char text[COUNTERS_MAX];
    const char *key, *value;
    int saved = errno, fd = -1;

    if ((flags & O_ACCMODE) != O_RDONLY || !redirected(path) || !(key = strstr(path, port)) ||
        !strstr(key, "counters/"))
        return -1;
    ssize_t got = ask_counters(text);

    if (got > 0) {
        text[got] = 0;
        size_t length = value_of(text, key + sizeof(port) - 1, &value);

        fd = length ? memfd_create("counter", flags & O_CLOEXEC ? MFD_CLOEXEC : 0) : -1;
        if (fd >= 0 && (write(fd, value, length) != (ssize_t)length || lseek(fd, 0, SEEK_SET) != 0)) {
            close(fd);
            fd = -1;
        }
    }
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
