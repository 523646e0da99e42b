/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that a message is made of, after its keys were checked: pieces of what
 * MRs lie in, or of the router's own memory (inline data, headers).
 */
#ifndef SLUICE_SPANS_H
#define SLUICE_SPANS_H

#include <sys/uio.h>

#include "node.h"

/* An address in what an MR lies in, or the router's own bytes. */
struct span {
    struct memory *memory; /* NULL: host */
    uint64_t address;
    uint8_t *host;
    uint32_t length;
};

struct spans {
    uint32_t count;
    uint64_t total;
    bool by_process; /* some lie where the worker can't copy: reach.h */
    struct span list[SLUICE_MAX_SGE + 1]; /* SGEs, and a header before them */
};

/* Appends a scatter/gather list of a PD's own memory. False: a key or a range doesn't fit. */
bool spans_add_sges(struct spans *spans, struct pd *pd, const struct sluice_sge *sges, uint32_t num_sge,
                    uint32_t access);

/*
 * Sets what a requester named of the responder's memory, which is qp's, with the keys
 * of pd. A length of 0 needs no key (IBTA 9.7.5.1.4).
 */
bool spans_set_remote(struct spans *spans, const struct qp *qp, struct pd *pd, uint32_t rkey, uint64_t address,
                      uint32_t length, uint32_t access);

static inline void spans_clear(struct spans *spans)
{
    spans->count = 0;
    spans->total = 0;
    spans->by_process = false;
}

static inline void spans_add_host(struct spans *spans, void *host, uint32_t length)
{
    if (length)
        spans->list[spans->count++] = (struct span){.host = host, .length = length};
    spans->total += length;
}

/* A part of a span, as a list of its own. */
void spans_set_part(struct spans *spans, const struct span *span, uint32_t offset, uint32_t length);

static inline bool span_in_process(const struct span *span)
{
    return span->memory && span->memory->kind == SLUICE_MEMORY_PROCESS;
}

/* Where the next byte lies and how many follow it there. NULL: the engine can't see it. */
uint8_t *span_at(const struct span *span, uint32_t offset, uint32_t *length);

/* A way through the bytes of a list. Whoever uses some of them adds their number to offset. */
struct spans_walk {
    const struct span *span;
    uint32_t offset; /* in it, or beyond its end */
};

static inline struct spans_walk spans_walk(const struct spans *spans, uint32_t offset)
{
    return (struct spans_walk){.span = spans->list, .offset = offset};
}

/* The span of the next byte, which there is. */
static inline const struct span *walk_span(struct spans_walk *walk)
{
    while (walk->offset >= walk->span->length)
        walk->offset -= walk->span++->length;
    return walk->span;
}

/* Where it lies and how many follow it there. NULL: the engine can't see it. */
static inline uint8_t *walk_at(struct spans_walk *walk, uint32_t *length)
{
    const struct span *span = walk_span(walk);

    return span_at(span, walk->offset, length);
}

/*
 * Appends bytes [offset, offset + length) to an array of *count iovecs, as far as it has room for. Returns how many
 * bytes that are, or UINT32_MAX where memory could not be had. Valid until the next window is mapped.
 */
uint32_t spans_gather(const struct spans *spans, uint32_t offset, uint32_t length, struct iovec *iov, uint32_t *count,
                      uint32_t room);

/* Whether the engine sees all of it already: to look at it maps no window. */
bool spans_seen(const struct spans *spans);

/*
 * Copies bytes [offset, end) of both lists, piece by piece; ends early, after a
 * piece, where the worker is called. Returns where it ended, or end + 1 where
 * memory could not be had.
 */
uint32_t spans_copy(const struct sluice_engine *engine, const struct spans *dst, const struct spans *src,
                    uint32_t offset, uint32_t end);

/* All of two lists of one length, in one go. */
uint32_t spans_copy_all(const struct sluice_engine *engine, const struct spans *dst, const struct spans *src);

/* Stores bytes at offset, in address order, the last ones last (copy.h). False: memory could not be had. */
bool spans_put(const struct spans *dst, uint32_t offset, const void *bytes, uint32_t length);

#endif
