/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token bucket, kept as a point in time (the "virtual scheduling" form of the
 * generic cell rate algorithm, ITU-T I.371): tat is when the bucket will have
 * earned all that was taken from it. Work may start while tat <= now; each byte
 * moves tat by the time that it takes at the rate; an idle bucket lags behind now
 * by at most the burst. So there is nothing to refill, nothing overflows, and the
 * wait for the next byte is tat - now.
 *
 * No clock is read here: now is given, in nanoseconds, and never runs backwards.
 */
#ifndef SLUICE_SHAPER_H
#define SLUICE_SHAPER_H

#include <stdbool.h>
#include <stdint.h>

/* Bytes taken at a stretch: the least at a low rate, the most at a high one or without any. */
enum { SHAPER_CHUNK_MIN = 4096, SHAPER_CHUNK_MAX = 1 << 20 };

struct bucket {
    uint64_t rate;         /* bits per second; 0: without limit */
    uint64_t burst_ns;     /* the burst as time at this rate */
    uint64_t ns_per_byte;  /* fixed point, 32 fractional bits */
    uint64_t tat;          /* ns */
    uint32_t tat_fraction; /* of a ns, 32 bits */
    uint32_t chunk;        /* bytes at a stretch, so that a low rate stays smooth */
};

/* burst in bytes; 0: what the rate earns in SHAPER_BURST_NS, and a chunk at least. */
void bucket_set(struct bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now);

static inline bool bucket_ready(const struct bucket *bucket, uint64_t now)
{
    return bucket->rate == 0 || bucket->tat <= now;
}

/* Takes bytes; call only when bucket_ready. It may run into debt by one chunk. */
static inline void bucket_take(struct bucket *bucket, uint32_t bytes, uint64_t now)
{
    if (bucket->rate == 0)
        return;
    if (now > bucket->burst_ns && bucket->tat < now - bucket->burst_ns) {
        bucket->tat = now - bucket->burst_ns;
        bucket->tat_fraction = 0;
    }
    unsigned __int128 cost = (unsigned __int128)bucket->ns_per_byte * bytes + bucket->tat_fraction;

    bucket->tat += (uint64_t)(cost >> 32);
    bucket->tat_fraction = (uint32_t)cost;
}

#endif
