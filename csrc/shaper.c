/* SPDX-License-Identifier: Apache-2.0 */
#include "shaper.h"

#include "clock.h"

/*
 * The default burst covers the delay with which a busy machine may wake the
 * worker, and is 0.2 % of a second.
 */
#define SHAPER_BURST_NS 2000000ull
/*
 * A chunk lasts 250 us at a low rate, so that traffic is smooth. Where that is
 * more than SHAPER_CHUNK_SMOOTH bytes these are enough, as long as they last 20 us.
 */
#define SHAPER_CHUNK_NS 250000ull
#define SHAPER_CHUNK_FAST_NS 20000ull
#define SHAPER_CHUNK_SMOOTH 65536u

static uint32_t chunk_of(uint64_t rate)
{
    unsigned __int128 per_second = rate / 8;
    uint64_t smooth = (uint64_t)(per_second * SHAPER_CHUNK_NS / NS_PER_SECOND);
    uint64_t fast = (uint64_t)(per_second * SHAPER_CHUNK_FAST_NS / NS_PER_SECOND);
    uint64_t chunk = smooth < SHAPER_CHUNK_SMOOTH ? smooth : SHAPER_CHUNK_SMOOTH;

    if (chunk < fast)
        chunk = fast;
    return chunk < SHAPER_CHUNK_MIN ? SHAPER_CHUNK_MIN : chunk > SHAPER_CHUNK_MAX ? SHAPER_CHUNK_MAX : (uint32_t)chunk;
}

void bucket_set(struct bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now)
{
    bucket->rate = rate;
    /* Debt at the old rate is forgiven: it is one chunk at most, and the new rate counts from now. */
    bucket->tat = now;
    bucket->tat_fraction = 0;
    bucket->burst_ns = 0;
    bucket->chunk = SHAPER_CHUNK_MAX;
    if (rate == 0)
        return;

    bucket->ns_per_byte = (uint64_t)(((unsigned __int128)(8 * NS_PER_SECOND) << 32) / rate);
    bucket->chunk = chunk_of(rate);
    if (burst) {
        unsigned __int128 ns = (unsigned __int128)bucket->ns_per_byte * burst >> 32;
        bucket->burst_ns = ns > UINT64_MAX / 2 ? UINT64_MAX / 2 : (uint64_t)ns;
    } else {
        uint64_t chunk_ns = (uint64_t)((unsigned __int128)bucket->ns_per_byte * bucket->chunk >> 32);
        bucket->burst_ns = chunk_ns > SHAPER_BURST_NS ? chunk_ns : SHAPER_BURST_NS;
    }
}
