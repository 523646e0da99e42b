/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "closing.h"

#define SEGMENT_SIZE (1ull << SLUICE_SEGMENT_SHIFT)
/* Some microseconds of the kernel's, where there is a page behind each address. */
#define PUNCHED_AT_ONCE (1ull << 17)
#define SEGMENT_PAGE 4096ull /* offsets are told to the shim; a larger page size only shares pages */

struct extent {
    uint64_t offset, size;
    struct extent *next;
};

int segment_open(struct segment *segment)
{
    int error;

    segment->free = malloc(sizeof(*segment->free));
    if (!segment->free)
        return -ENOMEM;
    *segment->free = (struct extent){SLUICE_SEGMENT_RINGS, SEGMENT_SIZE - SLUICE_SEGMENT_RINGS, NULL};

    /* Sealed, or the tenant could truncate it under the engine's feet (SIGBUS). */
    segment->fd = memfd_create("sluice-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (segment->fd < 0 || ftruncate(segment->fd, (off_t)SEGMENT_SIZE) ||
        fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        goto fail;
    segment->base = mmap(NULL, SEGMENT_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, segment->fd, 0);
    if (segment->base == MAP_FAILED)
        goto fail;
    return 0;

fail:
    error = -errno;
    segment->base = NULL;
    return error;
}

struct leftover {
    struct closing closing;
    int fd;
    uint8_t *base;
};

static void give_back(int fd, uint8_t *base)
{
    if (base) {
        closing_unmap_pages(base, SEGMENT_SIZE);
        munmap(base, SEGMENT_SIZE);
    }
    if (fd >= 0)
        close(fd);
}

static void run(struct closing *closing)
{
    struct leftover *leftover = list_entry(closing, struct leftover, closing);

    give_back(leftover->fd, leftover->base);
    free(leftover);
}

static void free_all(struct extent **extents)
{
    while (*extents) {
        struct extent *next = (*extents)->next;

        free(*extents);
        *extents = next;
    }
}

void segment_close(struct segment *segment, uint32_t tenant)
{
    struct leftover *leftover = malloc(sizeof(*leftover));

    free_all(&segment->free);
    free_all(&segment->dirty);
    if (leftover) {
        *leftover = (struct leftover){.closing = {.run = run, .tenant = tenant}, .fd = segment->fd, .base = segment->base};
        closing_send(&leftover->closing);
    } else {
        give_back(segment->fd, segment->base);
    }
    segment->base = NULL;
    segment->fd = -1;
}

static uint64_t whole_pages(uint64_t size)
{
    return (size + SEGMENT_PAGE - 1) & ~(SEGMENT_PAGE - 1);
}

int64_t segment_take(struct segment *segment, uint64_t size)
{
    size = whole_pages(size);
    for (struct extent **link = &segment->free; *link; link = &(*link)->next) {
        struct extent *extent = *link;

        if (extent->size < size)
            continue;
        int64_t offset = (int64_t)extent->offset;

        extent->offset += size;
        extent->size -= size;
        if (extent->size == 0) {
            *link = extent->next;
            free(extent);
        }
        return offset;
    }
    return -ENOMEM;
}

static void add_free(struct segment *segment, uint64_t offset, uint64_t size)
{
    struct extent **link = &segment->free, *before = NULL;

    while (*link && (*link)->offset < offset) {
        before = *link;
        link = &before->next;
    }
    struct extent *after = *link;

    if (before && before->offset + before->size == offset) {
        before->size += size;
        if (after && before->offset + before->size == after->offset) {
            before->size += after->size;
            before->next = after->next;
            free(after);
        }
    } else if (after && offset + size == after->offset) {
        after->offset = offset;
        after->size += size;
    } else {
        struct extent *extent = malloc(sizeof(*extent));

        if (!extent)
            return; /* address space of a sparse file is lost, until the session ends */
        *extent = (struct extent){offset, size, after};
        *link = extent;
    }
}

static void punch(struct segment *segment, uint64_t offset, uint64_t size)
{
    (void)fallocate(segment->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
    add_free(segment, offset, size);
}

bool segment_give(struct segment *segment, uint64_t offset, uint64_t size)
{
    struct extent *extent = NULL;

    size = whole_pages(size);
    if (size > PUNCHED_AT_ONCE)
        extent = malloc(sizeof(*extent));
    if (!extent) {
        punch(segment, offset, size);
        return true;
    }
    *extent = (struct extent){offset, size, segment->dirty};
    segment->dirty = extent;
    return false;
}

bool segment_clean(struct segment *segment)
{
    struct extent *extent = segment->dirty;

    if (!extent)
        return false;
    uint64_t piece = extent->size < PUNCHED_AT_ONCE ? extent->size : PUNCHED_AT_ONCE;

    punch(segment, extent->offset, piece);
    extent->offset += piece;
    extent->size -= piece;
    if (extent->size == 0) {
        segment->dirty = extent->next;
        free(extent);
    }
    return segment->dirty;
}
