/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libc's functions that name a file, so that applications find the tenant's sysfs
 * (sysfs.h). A path that leads elsewhere goes to the function that would have been
 * called without us, after a comparison of a few bytes.
 */
#define _GNU_SOURCE
/* Names mean the functions of this name, not those that a header puts in their place. */
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#ifdef __GLIBC__
#include <glob.h>
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "atomic.h"
#include "sysfs.h"

#define EXPORT __attribute__((visibility("default")))

/*
 * The functions behind ours. Those that a signal handler may call are looked up when
 * the library is loaded, since dlsym may not be called there.
 */
#define NEXT(name) ((__typeof__(&name))next_function(&next.name, #name))

static struct {
    void *open, *openat, *stat, *lstat, *fstatat, *access, *faccessat, *readlink, *readlinkat, *chdir;
    void *fopen, *opendir, *scandir, *realpath, *getxattr, *lgetxattr, *listxattr, *llistxattr;
#ifdef __GLIBC__
    void *open64, *openat64, *__open_2, *__open64_2, *__openat_2, *__openat64_2;
    void *stat64, *lstat64, *fstatat64, *statx, *__xstat, *__xstat64, *__lxstat, *__lxstat64, *__fxstatat, *__fxstatat64;
    void *__readlink_chk, *__readlinkat_chk;
    void *fopen64, *scandir64, *__realpath_chk, *euidaccess, *glob, *glob64;
#endif
} next;

static void *next_function(void **slot, const char *name)
{
    void *function = load_relaxed(slot);

    if (!function) {
        function = dlsym(RTLD_NEXT, name);
#ifdef __GLIBC__
        /* Functions that only old binaries use are hidden from dlsym: under the first version of the architecture. */
        if (!function)
            function = dlvsym(RTLD_NEXT, name, "GLIBC_2.2.5");
        if (!function)
            function = dlvsym(RTLD_NEXT, name, "GLIBC_2.17");
#endif
        store_relaxed(slot, function);
    }
    return function;
}

#define LOOK_UP(name) next_function(&next.name, #name)

__attribute__((constructor)) static void look_up(void)
{
    LOOK_UP(open);
    LOOK_UP(openat);
    LOOK_UP(stat);
    LOOK_UP(lstat);
    LOOK_UP(fstatat);
    LOOK_UP(access);
    LOOK_UP(faccessat);
    LOOK_UP(readlink);
    LOOK_UP(readlinkat);
    LOOK_UP(chdir);
#ifdef __GLIBC__
    LOOK_UP(open64);
    LOOK_UP(openat64);
    LOOK_UP(stat64);
    LOOK_UP(lstat64);
    LOOK_UP(fstatat64);
    LOOK_UP(__readlink_chk);
    LOOK_UP(__readlinkat_chk);
#endif
}

/* ---- open -------------------------------------------------------------- */

#define NEEDS_MODE(flags) (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE)

#define TAKE_MODE(flags)                       \
    mode_t mode = 0;                           \
    if (NEEDS_MODE(flags)) {                   \
        va_list arguments;                     \
        va_start(arguments, flags);            \
        mode = va_arg(arguments, mode_t);      \
        va_end(arguments);                     \
    }

#define OPEN(name)                                                    \
    EXPORT int name(const char *path, int flags, ...)                 \
    {                                                                 \
        char buffer[PATH_MAX];                                        \
        TAKE_MODE(flags)                                              \
        const char *where = sysfs_where(AT_FDCWD, path, buffer);      \
        return sysfs_opened(NEXT(name)(where, flags, mode), where, flags); \
    }

#define OPENAT(name)                                                         \
    EXPORT int name(int directory, const char *path, int flags, ...)         \
    {                                                                        \
        char buffer[PATH_MAX];                                               \
        TAKE_MODE(flags)                                                     \
        const char *where = sysfs_where(directory, path, buffer);            \
        return sysfs_opened(NEXT(name)(directory, where, flags, mode), where, flags); \
    }

#define FOPEN(name)                                                          \
    EXPORT FILE *name(const char *path, const char *mode)                    \
    {                                                                        \
        char buffer[PATH_MAX];                                               \
        const char *where = sysfs_where(AT_FDCWD, path, buffer);             \
        FILE *file = NEXT(name)(where, mode);                                \
        if (file && *mode == 'r' && !strchr(mode, '+'))                      \
            sysfs_opened(fileno(file), where, strchr(mode, 'e') ? O_CLOEXEC : 0); \
        return file;                                                         \
    }

OPEN(open)
OPENAT(openat)
FOPEN(fopen)

EXPORT int chdir(const char *path)
{
    char buffer[PATH_MAX];

    return NEXT(chdir)(sysfs_where(AT_FDCWD, path, buffer));
}

EXPORT DIR *opendir(const char *path)
{
    char buffer[PATH_MAX];

    return NEXT(opendir)(sysfs_where(AT_FDCWD, path, buffer));
}

EXPORT int scandir(const char *path, struct dirent ***list, int (*filter)(const struct dirent *),
                   int (*compare)(const struct dirent **, const struct dirent **))
{
    char buffer[PATH_MAX];

    return NEXT(scandir)(sysfs_where(AT_FDCWD, path, buffer), list, filter, compare);
}

/* ---- what a file is ---------------------------------------------------- */

EXPORT int stat(const char *path, struct stat *out)
{
    char buffer[PATH_MAX];

    return NEXT(stat)(sysfs_where(AT_FDCWD, path, buffer), out);
}

EXPORT int lstat(const char *path, struct stat *out)
{
    char buffer[PATH_MAX];

    return NEXT(lstat)(sysfs_where(AT_FDCWD, path, buffer), out);
}

EXPORT int fstatat(int directory, const char *path, struct stat *out, int flags)
{
    char buffer[PATH_MAX];

    return NEXT(fstatat)(directory, sysfs_where(directory, path, buffer), out, flags);
}

EXPORT int access(const char *path, int mode)
{
    char buffer[PATH_MAX];

    return NEXT(access)(sysfs_where(AT_FDCWD, path, buffer), mode);
}

EXPORT int faccessat(int directory, const char *path, int mode, int flags)
{
    char buffer[PATH_MAX];

    return NEXT(faccessat)(directory, sysfs_where(directory, path, buffer), mode, flags);
}

EXPORT ssize_t readlink(const char *path, char *out, size_t size)
{
    char buffer[PATH_MAX];

    return NEXT(readlink)(sysfs_where(AT_FDCWD, path, buffer), out, size);
}

EXPORT ssize_t readlinkat(int directory, const char *path, char *out, size_t size)
{
    char buffer[PATH_MAX];

    return NEXT(readlinkat)(directory, sysfs_where(directory, path, buffer), out, size);
}

/* ls -l and cp -a ask for access lists. */
#define GETXATTR(name)                                                                   \
    EXPORT ssize_t name(const char *path, const char *attribute, void *out, size_t size) \
    {                                                                                    \
        char buffer[PATH_MAX];                                                           \
        return NEXT(name)(sysfs_where(AT_FDCWD, path, buffer), attribute, out, size);    \
    }

#define LISTXATTR(name)                                                       \
    EXPORT ssize_t name(const char *path, char *out, size_t size)             \
    {                                                                         \
        char buffer[PATH_MAX];                                                \
        return NEXT(name)(sysfs_where(AT_FDCWD, path, buffer), out, size);    \
    }

GETXATTR(getxattr)
GETXATTR(lgetxattr)
LISTXATTR(listxattr)
LISTXATTR(llistxattr)

EXPORT char *realpath(const char *path, char *out)
{
    char buffer[PATH_MAX];
    const char *there = sysfs_where(AT_FDCWD, path, buffer);
    char *resolved = NEXT(realpath)(there, out);

    return there == path ? resolved : sysfs_back(resolved);
}

#ifdef __GLIBC__

/* ---- glibc: the same with 64-bit offsets, fortified, and of before 2.33 - */

OPEN(open64)
OPENAT(openat64)
FOPEN(fopen64)

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);
int __xstat(int version, const char *path, struct stat *out);
int __xstat64(int version, const char *path, struct stat64 *out);
int __lxstat(int version, const char *path, struct stat *out);
int __lxstat64(int version, const char *path, struct stat64 *out);
int __fxstatat(int version, int directory, const char *path, struct stat *out, int flags);
int __fxstatat64(int version, int directory, const char *path, struct stat64 *out, int flags);
ssize_t __readlink_chk(const char *path, char *out, size_t size, size_t space);
ssize_t __readlinkat_chk(int directory, const char *path, char *out, size_t size, size_t space);
char *__realpath_chk(const char *path, char *out, size_t space);

#define OPEN_2(name)                                                   \
    EXPORT int name(const char *path, int flags)                       \
    {                                                                  \
        char buffer[PATH_MAX];                                         \
        const char *where = sysfs_where(AT_FDCWD, path, buffer);       \
        return sysfs_opened(NEXT(name)(where, flags), where, flags);   \
    }

#define OPENAT_2(name)                                                            \
    EXPORT int name(int directory, const char *path, int flags)                   \
    {                                                                             \
        char buffer[PATH_MAX];                                                    \
        const char *where = sysfs_where(directory, path, buffer);                 \
        return sysfs_opened(NEXT(name)(directory, where, flags), where, flags);   \
    }

OPEN_2(__open_2)
OPEN_2(__open64_2)
OPENAT_2(__openat_2)
OPENAT_2(__openat64_2)

EXPORT int scandir64(const char *path, struct dirent64 ***list, int (*filter)(const struct dirent64 *),
                     int (*compare)(const struct dirent64 **, const struct dirent64 **))
{
    char buffer[PATH_MAX];

    return NEXT(scandir64)(sysfs_where(AT_FDCWD, path, buffer), list, filter, compare);
}

EXPORT int stat64(const char *path, struct stat64 *out)
{
    char buffer[PATH_MAX];

    return NEXT(stat64)(sysfs_where(AT_FDCWD, path, buffer), out);
}

EXPORT int lstat64(const char *path, struct stat64 *out)
{
    char buffer[PATH_MAX];

    return NEXT(lstat64)(sysfs_where(AT_FDCWD, path, buffer), out);
}

EXPORT int fstatat64(int directory, const char *path, struct stat64 *out, int flags)
{
    char buffer[PATH_MAX];

    return NEXT(fstatat64)(directory, sysfs_where(directory, path, buffer), out, flags);
}

EXPORT int statx(int directory, const char *path, int flags, unsigned int mask, struct statx *out)
{
    char buffer[PATH_MAX];

    return NEXT(statx)(directory, sysfs_where(directory, path, buffer), flags, mask, out);
}

EXPORT int euidaccess(const char *path, int mode)
{
    char buffer[PATH_MAX];

    return NEXT(euidaccess)(sysfs_where(AT_FDCWD, path, buffer), mode);
}

#define XSTAT(name, type)                                              \
    EXPORT int name(int version, const char *path, struct type *out)   \
    {                                                                  \
        char buffer[PATH_MAX];                                         \
        return NEXT(name)(version, sysfs_where(AT_FDCWD, path, buffer), out);          \
    }

XSTAT(__xstat, stat)
XSTAT(__xstat64, stat64)
XSTAT(__lxstat, stat)
XSTAT(__lxstat64, stat64)

#define XSTATAT(name, type)                                                                  \
    EXPORT int name(int version, int directory, const char *path, struct type *out, int flags) \
    {                                                                                        \
        char buffer[PATH_MAX];                                                               \
        return NEXT(name)(version, directory, sysfs_where(directory, path, buffer), out, flags);              \
    }

XSTATAT(__fxstatat, stat)
XSTATAT(__fxstatat64, stat64)

EXPORT ssize_t __readlink_chk(const char *path, char *out, size_t size, size_t space)
{
    char buffer[PATH_MAX];

    return NEXT(__readlink_chk)(sysfs_where(AT_FDCWD, path, buffer), out, size, space);
}

EXPORT ssize_t __readlinkat_chk(int directory, const char *path, char *out, size_t size, size_t space)
{
    char buffer[PATH_MAX];

    return NEXT(__readlinkat_chk)(directory, sysfs_where(directory, path, buffer), out, size, space);
}

EXPORT char *__realpath_chk(const char *path, char *out, size_t space)
{
    char buffer[PATH_MAX];
    const char *there = sysfs_where(AT_FDCWD, path, buffer);
    char *resolved = NEXT(__realpath_chk)(there, out, space);

    return there == path ? resolved : sysfs_back(resolved);
}

EXPORT char *canonicalize_file_name(const char *path)
{
    return realpath(path, NULL);
}

/* ---- patterns: libc's own calls of the functions above don't reach us -- */

static struct dirent *next_entry(void *directory)
{
    return readdir(directory);
}

static struct dirent64 *next_entry64(void *directory)
{
    return readdir64(directory);
}

static void *begin_directory(const char *path)
{
    return opendir(path);
}

static void end_directory(void *directory)
{
    closedir(directory);
}

#define GLOB(name, type, entry, state, link_state)                                                  \
    EXPORT int name(const char *pattern, int flags, int (*on_error)(const char *, int), type *found) \
    {                                                                                               \
        char buffer[PATH_MAX];                                                                      \
        if (!(flags & GLOB_ALTDIRFUNC) && sysfs_where(AT_FDCWD, pattern, buffer) == buffer) {       \
            flags |= GLOB_ALTDIRFUNC;                                                               \
            found->gl_opendir = begin_directory;                                                    \
            found->gl_readdir = entry;                                                              \
            found->gl_closedir = end_directory;                                                     \
            found->gl_stat = state;                                                                 \
            found->gl_lstat = link_state;                                                           \
        }                                                                                           \
        return NEXT(name)(pattern, flags, on_error, found);                                         \
    }

GLOB(glob, glob_t, next_entry, stat, lstat)
GLOB(glob64, glob64_t, next_entry64, stat64, lstat64)

#endif
