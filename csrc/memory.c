/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "reach.h"
#include "tenant.h"

/* What may lead to a store, through the region or a window of it: memory that can't be written grants none. */
#define MAY_WRITE (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)

static struct memory *add(struct session *session, uint32_t kind)
{
    if (session->memory_count >= MEMORY_MAX || !tenant_take_files(session->tenant, 1))
        return NULL;
    struct memory *memory = calloc(1, sizeof(*memory));

    if (!memory) {
        tenant_give_files(session->tenant, 1);
        return NULL;
    }
    memory->session = session;
    memory->kind = kind;
    memory->handle = session->next_handle++;
    memory->view.fd = -1;
    memory->view.tenant = session->tenant;
    list_init(&memory->link);
    list_append(&session->memories, &memory->link);
    session->memory_count++;
    return memory;
}

void memory_free(struct memory *memory)
{
    if (memory->reach) {
        memory->session->reach = NULL;
        reach_close(memory->reach);
    }
    arena_close(&memory->view);
    list_remove(&memory->link);
    memory->session->memory_count--;
    tenant_give_files(memory->session->tenant, 1);
    free(memory);
}

/*
 * Files that live in memory only: with any other, a page that is missing could keep
 * the worker waiting for a disk, or for a file system that the tenant serves itself.
 * Only tmpfs and hugetlbfs have seals, and the kernel says so without asking the file system.
 */
static bool is_in_memory(int fd)
{
    return fcntl(fd, F_GET_SEALS) >= 0;
}

int memory_open_file(struct session *session, int fd, bool writable)
{
    struct stat status;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return -errno;
    if (flags & O_PATH)
        return -EACCES;
    if (!is_in_memory(fd))
        return -EOPNOTSUPP;
    if (fstat(fd, &status))
        return -errno;
    if (!S_ISREG(status.st_mode))
        return -EOPNOTSUPP;
    if ((flags & O_ACCMODE) == O_WRONLY || (writable && (flags & O_ACCMODE) != O_RDWR))
        return -EACCES;
    if (status.st_size <= 0 || (uint64_t)status.st_size > ARENA_SIZE)
        return -EINVAL;
    struct memory *memory = add(session, SLUICE_MEMORY_FILE);

    if (!memory)
        return -ENOMEM;
    int error = arena_of_file(&memory->view, fd, (uint64_t)status.st_size, writable);

    if (error) {
        memory_free(memory);
        return error;
    }
    memory->writable = writable;
    return (int)memory->handle;
}

int memory_open_process(struct session *session, int fd)
{
    for (struct list *link = session->memories.next; link != &session->memories; link = link->next)
        if (list_entry(link, struct memory, link)->kind == SLUICE_MEMORY_PROCESS)
            return -EBUSY; /* there is but one */
    struct memory *memory = add(session, SLUICE_MEMORY_PROCESS);

    if (!memory)
        return -ENOMEM;
    int error = reach_open(session->tenant, fd, &memory->reach);

    if (error) {
        memory_free(memory);
        return error;
    }
    session->reach = memory->reach;
    memory->writable = true;
    memory->view.count = ARENA_SIZE / WINDOW_SIZE; /* any address, seen through none */
    return (int)memory->handle;
}

struct memory *memory_find(struct session *session, uint32_t handle)
{
    if (handle == 0)
        return &session->arena;
    for (struct list *link = session->memories.next; link != &session->memories; link = link->next)
        if (list_entry(link, struct memory, link)->handle == handle)
            return list_entry(link, struct memory, link);
    return NULL;
}

int memory_close(struct session *session, uint32_t handle)
{
    struct memory *memory = handle ? memory_find(session, handle) : NULL;

    if (!memory)
        return -EINVAL;
    if (memory->users)
        return -EBUSY;
    memory_free(memory);
    return 0;
}

bool memory_holds(const struct memory *memory, uint64_t addr, uint64_t length, uint32_t access)
{
    uint64_t size = (uint64_t)memory->view.count << SLUICE_WINDOW_SHIFT;

    return length <= size && addr <= size - length && (memory->writable || !(access & MAY_WRITE));
}
