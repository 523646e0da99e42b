/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Linux 6.11; not in older headers. */
struct procmap_query {
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};

#define QUERY _IOWR('f', 17, struct procmap_query)
enum { QUERY_READABLE = 1, QUERY_WRITABLE = 2, QUERY_EXECUTABLE = 4, QUERY_SHARED = 8, QUERY_OR_NEXT = 16 };

static int maps_fd = -1;
static bool can_query;

int mapping_open(void)
{
    struct mapping probe;

    maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (maps_fd < 0)
        return errno;
    can_query = true;
    can_query = mapping_find((uintptr_t)&probe, &probe);
    return 0;
}

void mapping_close(void)
{
    if (maps_fd >= 0)
        close(maps_fd);
    maps_fd = -1;
}

int mapping_renew(void)
{
    int own = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

    if (own < 0)
        return errno;
    int error = dup3(own, maps_fd, O_CLOEXEC) < 0 ? errno : 0;

    close(own);
    return error;
}

static bool query(uint64_t address, struct mapping *mapping)
{
    struct procmap_query query = {.size = sizeof(query), .query_flags = QUERY_OR_NEXT, .query_addr = address};

    if (ioctl(maps_fd, QUERY, &query))
        return false;
    *mapping = (struct mapping){
        .start = query.vma_start,
        .end = query.vma_end,
        .offset = query.vma_offset,
        .inode = query.inode,
        .dev_major = query.dev_major,
        .dev_minor = query.dev_minor,
        .readable = query.vma_flags & QUERY_READABLE,
        .writable = query.vma_flags & QUERY_WRITABLE,
        .executable = query.vma_flags & QUERY_EXECUTABLE,
        .shared = query.vma_flags & QUERY_SHARED,
    };
    return true;
}

/* Reads the text file through a small buffer: no allocation, as we may stand inside malloc's own memory. */
struct reader {
    char text[1024];
    size_t at, length;
    off_t offset;
};

static int next_char(struct reader *reader)
{
    if (reader->at == reader->length) {
        ssize_t got = pread(maps_fd, reader->text, sizeof(reader->text), reader->offset);

        if (got <= 0)
            return -1;
        reader->offset += got;
        reader->length = (size_t)got;
        reader->at = 0;
    }
    return (unsigned char)reader->text[reader->at++];
}

/* A number up to the given end character. */
static uint64_t number(struct reader *reader, int base, int end)
{
    uint64_t value = 0;

    for (int c = next_char(reader); c >= 0 && c != end; c = next_char(reader)) {
        unsigned digit = c >= 'a' ? (unsigned)c - 'a' + 10 : (unsigned)c - '0';

        value = value * (unsigned)base + digit;
    }
    return value;
}

/* start-end rwxp offset major:minor inode [path]. False: that was the last line. */
static bool next_line(struct reader *reader, struct mapping *mapping)
{
    int c = next_char(reader);

    if (c < 0)
        return false;
    reader->at--;
    mapping->start = number(reader, 16, '-');
    mapping->end = number(reader, 16, ' ');
    mapping->readable = next_char(reader) == 'r';
    mapping->writable = next_char(reader) == 'w';
    mapping->executable = next_char(reader) == 'x';
    mapping->shared = next_char(reader) == 's';
    next_char(reader);
    mapping->offset = number(reader, 16, ' ');
    mapping->dev_major = (uint32_t)number(reader, 16, ':');
    mapping->dev_minor = (uint32_t)number(reader, 16, ' ');
    mapping->inode = 0;
    for (c = next_char(reader); c >= '0' && c <= '9'; c = next_char(reader))
        mapping->inode = mapping->inode * 10 + (unsigned)(c - '0');
    while (c >= 0 && c != '\n')
        c = next_char(reader);
    return true;
}

static bool scan(uint64_t address, struct mapping *mapping)
{
    struct reader reader = {.at = 0};

    while (next_line(&reader, mapping))
        if (mapping->end > address)
            return true;
    return false;
}

bool mapping_find(uint64_t address, struct mapping *mapping)
{
    return can_query ? query(address, mapping) : scan(address, mapping);
}

void mapping_each(bool (*visit)(const struct mapping *mapping, void *context), void *context)
{
    struct reader reader = {.at = 0};
    struct mapping mapping = {.end = 0};

    while ((can_query ? query(mapping.end, &mapping) : next_line(&reader, &mapping)) && visit(&mapping, context))
        ;
}
