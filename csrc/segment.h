/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's segment: the file whose pages hold its doorbell and its rings, and
 * who has which part of it. The engine maps all of it once; untouched parts cost
 * nothing.
 */
#ifndef SLUICE_SEGMENT_H
#define SLUICE_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

struct extent;

struct segment {
    int fd;
    uint8_t *base;
    bool ending; /* all of it goes: nothing need be given back part by part */
    struct extent *free; /* by offset, neighbours merged */
    struct extent *dirty; /* given back, with pages */
};

/* Negative errno: no memory, no descriptors, no address space. */
int segment_open(struct segment *segment);
/* Its pages are given back later, in a thread (closing.h). tenant: its number. Also what segment_open has left of a failure. */
void segment_close(struct segment *segment, uint32_t tenant);

/*
 * A page-aligned part, zeroed unless the tenant has written there meanwhile; returns its offset or a negative errno (-ENOMEM:
 * full).
 */
int64_t segment_take(struct segment *segment, uint64_t size);
/* Gives it back, and its pages to the system. False: those are many, segment_clean must come for them. */
bool segment_give(struct segment *segment, uint64_t offset, uint64_t size);
/* Gives back some pages, which takes as long as a turn. Whether there are more. */
bool segment_clean(struct segment *segment);

static inline struct sluice_segment *segment_head(const struct segment *segment)
{
    return (struct sluice_segment *)segment->base;
}

#endif
