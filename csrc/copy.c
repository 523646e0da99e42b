/* SPDX-License-Identifier: Apache-2.0 */
#include "copy.h"

#include <stdint.h>

#include "atomic.h"

/*
 * All stores are volatile, so that the compiler keeps their order and width; on
 * x86 the processor keeps it too. On weaker machines the bulk may become visible
 * in any order, but the fence before the last word keeps the promise that
 * matters: who sees the end sees everything.
 */
typedef uint64_t word __attribute__((may_alias));
typedef uint64_t loose_word __attribute__((may_alias, aligned(1)));
typedef uint8_t lane __attribute__((vector_size(64), may_alias));
typedef uint8_t loose_lane __attribute__((vector_size(64), may_alias, aligned(1)));

/*
 * Destination lines are asked for so many lanes ahead, to be written: they are in
 * another core's cache, or in none, and stores that wait for them in order fill the
 * store buffer. Never beyond the end: what lies there may be somebody's who uses it.
 */
enum { LANE = 64, BULK = 256, AHEAD = 8 };

static inline __attribute__((always_inline)) void store_word(uint8_t *dst, const uint8_t *src)
{
    *(volatile word *)dst = *(const loose_word *)src;
}

static inline __attribute__((always_inline)) void copy_four(uint8_t *dst, const uint8_t *src)
{
    lane a = *(const loose_lane *)src;
    lane b = *(const loose_lane *)(src + LANE);
    lane c = *(const loose_lane *)(src + 2 * LANE);
    lane d = *(const loose_lane *)(src + 3 * LANE);

    *(volatile lane *)dst = a;
    *(volatile lane *)(dst + LANE) = b;
    *(volatile lane *)(dst + 2 * LANE) = c;
    *(volatile lane *)(dst + 3 * LANE) = d;
}

/* Whole lanes, dst aligned to a lane. The three callers differ in what the compiler may use. */
static inline __attribute__((always_inline)) void copy_lanes_inline(uint8_t *dst, const uint8_t *src,
                                                                    size_t lanes)
{
    for (; lanes >= 4 + AHEAD; lanes -= 4, dst += 4 * LANE, src += 4 * LANE) {
        for (int i = AHEAD; i < AHEAD + 4; i++)
            __builtin_prefetch(dst + i * LANE, 1);
        copy_four(dst, src);
    }
    for (; lanes >= 4; lanes -= 4, dst += 4 * LANE, src += 4 * LANE)
        copy_four(dst, src);
    for (; lanes; lanes--, dst += LANE, src += LANE)
        *(volatile lane *)dst = *(const loose_lane *)src;
}

static void copy_lanes_plain(uint8_t *dst, const uint8_t *src, size_t lanes)
{
    copy_lanes_inline(dst, src, lanes);
}

static void (*copy_lanes)(uint8_t *, const uint8_t *, size_t) = copy_lanes_plain;

#ifdef __x86_64__
/* PREFETCHW does nothing on processors with AVX2 that lack it. */
__attribute__((target("avx2,prfchw"))) static void copy_lanes_avx2(uint8_t *dst, const uint8_t *src, size_t lanes)
{
    copy_lanes_inline(dst, src, lanes);
}

__attribute__((target("avx512f,avx512bw,avx512vl,prfchw"))) static void copy_lanes_avx512(uint8_t *dst, const uint8_t *src,
                                                                                          size_t lanes)
{
    copy_lanes_inline(dst, src, lanes);
}

void copy_init(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        copy_lanes = copy_lanes_avx512;
    else if (__builtin_cpu_supports("avx2"))
        copy_lanes = copy_lanes_avx2;
}
#else
void copy_init(void)
{
}
#endif

void copy_ordered(void *to, const void *from, size_t length)
{
    uint8_t *dst = to;
    const uint8_t *src = from;
    uint8_t *end = dst + length;

    while (((uintptr_t)dst & 7) && dst < end)
        *(volatile uint8_t *)dst++ = *src++;

    if (end - dst >= BULK) {
        while ((uintptr_t)dst & (LANE - 1)) {
            store_word(dst, src);
            dst += 8;
            src += 8;
        }
        /* At least one byte stays for after the fence. */
        size_t lanes = (size_t)(end - dst - 1) / LANE;

        copy_lanes(dst, src, lanes);
        dst += lanes * LANE;
        src += lanes * LANE;
    }
    while (end - dst > 8) {
        store_word(dst, src);
        dst += 8;
        src += 8;
    }
    release_fence();
    if (end - dst == 8) {
        store_word(dst, src);
        return;
    }
    while (dst < end)
        *(volatile uint8_t *)dst++ = *src++;
}
