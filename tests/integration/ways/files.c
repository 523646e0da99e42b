/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads one file of sysfs by each function of libc that can name it, and checks that
 * all agree; that errno is left alone and set as it would be; and that other paths
 * are not touched.
 *
 *     ways-files PATH TEXT    PATH holds TEXT and a newline; its directory isn't empty
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

int __open_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);

static const char *expected;

#define CHECK(condition)                                              \
    do {                                                              \
        if (!(condition)) {                                           \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);   \
            exit(1);                                                  \
        }                                                             \
    } while (0)

static int holds(int fd)
{
    char text[256] = {0};
    ssize_t length = read(fd, text, sizeof(text) - 1);

    close(fd);
    return length > 0 && text[length - 1] == '\n' && strncmp(text, expected, (size_t)length - 1) == 0;
}

static int holds_file(FILE *file)
{
    char text[256];
    int same = file && fgets(text, sizeof(text), file) && strncmp(text, expected, strlen(expected)) == 0;

    if (file)
        fclose(file);
    return same;
}

int main(int argc, char **argv)
{
    const char *path = argv[1];
    char directory[PATH_MAX], resolved[PATH_MAX], link[8];
    struct stat status;
    struct statx extended;
    struct dirent **list;

    CHECK(argc == 3);
    expected = argv[2];
    snprintf(directory, sizeof(directory), "%s", path);
    *strrchr(directory, '/') = 0;

    errno = E2BIG;
    CHECK(holds(open(path, O_RDONLY)) && errno == E2BIG);
    CHECK(holds(open64(path, O_RDONLY | O_CLOEXEC)) && errno == E2BIG);
    CHECK(holds(openat(AT_FDCWD, path, O_RDONLY)));
    CHECK(holds(openat64(AT_FDCWD, path, O_RDONLY)));
#ifdef __GLIBC__
    CHECK(holds(__open_2(path, O_RDONLY)));
    CHECK(holds(__openat_2(AT_FDCWD, path, O_RDONLY)));
#endif
    CHECK(holds_file(fopen(path, "r")) && errno == E2BIG);
    CHECK(holds_file(fopen64(path, "re")));
    CHECK(stat(path, &status) == 0 && S_ISREG(status.st_mode));
    CHECK(lstat(path, &status) == 0 && S_ISREG(status.st_mode));
    CHECK(stat(directory, &status) == 0 && S_ISDIR(status.st_mode));
    CHECK(fstatat(AT_FDCWD, path, &status, 0) == 0);
    CHECK(statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &extended) == 0);
    CHECK(access(path, R_OK) == 0 && faccessat(AT_FDCWD, path, R_OK, 0) == 0);
    CHECK(readlink(path, link, sizeof(link)) == -1 && errno == EINVAL);
    CHECK(realpath(path, resolved) && strcmp(resolved, path) == 0);
    CHECK(getxattr(path, "user.none", link, sizeof(link)) == -1 && errno != ENOENT);
    CHECK(lgetxattr(path, "user.none", link, sizeof(link)) == -1 && errno != ENOENT);
    CHECK(listxattr(path, NULL, 0) >= 0 || errno != ENOENT);
    CHECK(llistxattr(path, NULL, 0) >= 0 || errno != ENOENT);

    /* From a directory that is open, or the one that the process is in; from the root too, as hwloc does it. */
    const char *name = strrchr(path, '/') + 1;
    int root = open("/", O_PATH | O_DIRECTORY), class = open("/sys/class", O_RDONLY | O_DIRECTORY);
    int there = open(directory, O_RDONLY | O_DIRECTORY);

    errno = E2BIG;
    CHECK(holds(openat(there, name, O_RDONLY)) && errno == E2BIG);
    CHECK(holds(openat64(there, name, O_RDONLY | O_CLOEXEC)));
    CHECK(holds(openat(root, path + 1, O_RDONLY)) && errno == E2BIG);
    CHECK(holds(openat(class, path + strlen("/sys/class/"), O_RDONLY)));
    CHECK(fstatat(root, path + 1, &status, 0) == 0 && S_ISREG(status.st_mode) && faccessat(root, path + 1, R_OK, 0) == 0);
    CHECK(openat(root, "sys/class/infiniband/none", O_RDONLY) == -1 && errno == ENOENT);
    CHECK(openat(-1, "sys/class/infiniband", O_RDONLY) == -1 && errno == EBADF);
    CHECK(chdir("/sys") == 0 && holds_file(fopen(path + strlen("/sys/"), "r")));
    CHECK(chdir(directory) == 0 && holds_file(fopen(name, "re")) && holds(open(name, O_RDONLY)));
    close(root);
    close(class);
    close(there);

#ifdef __GLIBC__
    char pattern[PATH_MAX + 2];
    glob_t matches;
    glob64_t matches64;

    snprintf(pattern, sizeof(pattern), "%s*", path);
    CHECK(glob(pattern, 0, NULL, &matches) == 0 && matches.gl_pathc == 1 && strcmp(matches.gl_pathv[0], path) == 0);
    globfree(&matches);
    CHECK(glob64("/sys/class/infiniband/sluice*/ports/*", GLOB_MARK, NULL, &matches64) == 0 && matches64.gl_pathc == 1);
    CHECK(strcmp(matches64.gl_pathv[0], "/sys/class/infiniband/sluice0/ports/1/") == 0);
    globfree64(&matches64);
    CHECK(glob("/sys/class/infiniband/none*", 0, NULL, &matches) == GLOB_NOMATCH);
    CHECK(glob("/sys/class/n[e]t", 0, NULL, &matches) == 0 && matches.gl_pathc == 1);
    globfree(&matches);
#endif

    DIR *open_directory = opendir(directory);
    int count = scandir(directory, &list, NULL, alphasort);

    CHECK(open_directory && readdir(open_directory) && count > 2);
    closedir(open_directory);

    CHECK(open("/sys/class/infiniband/none", O_RDONLY) == -1 && errno == ENOENT);
    CHECK(fopen("/sys/class/infiniband/none", "r") == NULL && errno == ENOENT);
    CHECK(stat("/sys/class/net", &status) == 0 && stat("/sys/class/infinite", &status) == -1 && errno == ENOENT);
    CHECK(holds(open("/dev/null", O_RDONLY)) == 0);
    puts("same");
    return 0;
}
