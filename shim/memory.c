/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "arena.h"
#include "atomic.h"
#include "mapping.h"
#include "session.h"

/* What the router has open for us: one for each file, one for the process. */
struct opened {
    uint32_t handle, users;
    uint32_t kind;
    uint64_t inode;
    uint32_t dev_major, dev_minor;
    bool writable;
    struct opened *next;
};

static struct opened *all;
static uint32_t processes; /* of these: whether the process is one */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;

static bool is_file_of(int fd, const struct mapping *mapping, bool writable)
{
    struct stat status;
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && (flags & O_ACCMODE) == (writable ? O_RDWR : flags & O_ACCMODE) && !(flags & O_PATH) &&
           (flags & O_ACCMODE) != O_WRONLY && fstat(fd, &status) == 0 && status.st_ino == mapping->inode &&
           major(status.st_dev) == mapping->dev_major && minor(status.st_dev) == mapping->dev_minor;
}

/* A descriptor to pass, which is ours to close, or -1. */
static int find_file(const struct mapping *mapping, bool writable)
{
    char path[80];

    snprintf(path, sizeof(path), "/proc/self/map_files/%" PRIx64 "-%" PRIx64, mapping->start, mapping->end);
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0 && is_file_of(fd, mapping, writable))
        return fd;
    if (fd >= 0)
        close(fd);
    DIR *files = opendir("/proc/self/fd");

    if (!files)
        return -1;
    fd = -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(files));) {
        int other = atoi(entry->d_name);

        if (entry->d_name[0] != '.' && is_file_of(other, mapping, writable))
            fd = fcntl(other, F_DUPFD_CLOEXEC, 3);
    }
    closedir(files);
    return fd;
}

static int ask(struct opened *opened, uint64_t start, uint64_t length, int fd)
{
    struct sluice_open_memory_request request = {.kind = opened->kind,
                                                 .has_descriptor = fd >= 0,
                                                 .writable = opened->writable,
                                                 .start = start,
                                                 .length = length};
    struct sluice_handle_reply reply;
    int error = session_call_with(SLUICE_OP_OPEN_MEMORY, &request, sizeof(request), &reply, sizeof(reply), fd);

    if (!error)
        opened->handle = reply.handle;
    return error;
}

/* One more user of what is open already, or NULL. */
static struct opened *find(const struct opened *wanted)
{
    struct opened *opened = all;

    while (opened && (opened->kind != wanted->kind || opened->inode != wanted->inode ||
                      opened->dev_major != wanted->dev_major || opened->dev_minor != wanted->dev_minor ||
                      opened->writable != wanted->writable))
        opened = opened->next;
    return opened;
}

static int open_as(const struct opened *wanted, const struct mapping *mapping, uint32_t *handle)
{
    struct opened *opened = find(wanted);
    int error = 0;

    if (!opened) {
        opened = malloc(sizeof(*opened));
        if (!opened)
            return ENOMEM;
        *opened = *wanted;
        int fd = mapping ? find_file(mapping, wanted->writable) : -1;

        error = ask(opened, mapping ? mapping->start : 0, mapping ? mapping->end - mapping->start : 0, fd);
        if (fd >= 0)
            close(fd);
        if (error) {
            free(opened);
            return error;
        }
        opened->next = all;
        all = opened;
        if (opened->kind == SLUICE_MEMORY_PROCESS)
            store_relaxed(&processes, 1);
    }
    opened->users++;
    *handle = opened->handle;
    return 0;
}

int memory_reach(uint64_t addr, uint64_t length, bool writable, uint32_t *handle, uint64_t *place)
{
    struct mapping mapping;
    struct opened file = {.kind = SLUICE_MEMORY_FILE, .writable = writable};
    struct opened process = {.kind = SLUICE_MEMORY_PROCESS, .writable = true};
    int error = EOPNOTSUPP;

    pthread_mutex_lock(&all_lock);
    if (sluice_arena_mapping(addr, &mapping) && mapping.shared && mapping.start <= addr &&
        length <= mapping.end - addr) {
        file.inode = mapping.inode;
        file.dev_major = mapping.dev_major;
        file.dev_minor = mapping.dev_minor;
        *place = addr - mapping.start + mapping.offset;
        error = open_as(&file, &mapping, handle);
    }
    if (error && error != EIO) {
        *place = addr;
        error = open_as(&process, NULL, handle);
        /* Whatever right was missing: the application can't tell it from a device that lacks the feature. */
        if (error && error != EIO && error != ENOMEM)
            error = EOPNOTSUPP;
    }
    pthread_mutex_unlock(&all_lock);
    return error;
}

void memory_release(uint32_t handle)
{
    if (handle == 0)
        return;
    pthread_mutex_lock(&all_lock);
    for (struct opened **link = &all; *link; link = &(*link)->next) {
        struct opened *opened = *link;

        if (opened->handle != handle)
            continue;
        if (--opened->users == 0) {
            session_call_handle(SLUICE_OP_CLOSE_MEMORY, handle, NULL);
            *link = opened->next;
            if (opened->kind == SLUICE_MEMORY_PROCESS)
                store_relaxed(&processes, 0);
            free(opened);
        }
        pthread_mutex_unlock(&all_lock);
        return;
    }
    pthread_mutex_unlock(&all_lock);
    /* A dma-buf: each region has its own. */
    session_call_handle(SLUICE_OP_CLOSE_MEMORY, handle, NULL);
}

void memory_settle(void)
{
    struct sluice_command command = {.op = SLUICE_COMMAND_FENCE};

    if (load_relaxed(&processes))
        session_command(&command);
}

void memory_fork_prepare(void)
{
    pthread_mutex_lock(&all_lock);
}

void memory_fork_parent(void)
{
    pthread_mutex_unlock(&all_lock);
}

void memory_fork_child(void)
{
    pthread_mutex_init(&all_lock, NULL);
    processes = 0;
    all = NULL; /* a child that registers shared memory forgets a few small blocks of its parent's */
}
