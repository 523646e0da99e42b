/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token bucket, kept as a point in time (the "virtual scheduling" form of the
 * generic cell rate algorithm, ITU-T I.371): tat is when the bucket will have
 * earned all that was taken from it. Work may start while tat <= now; each unit
 * moves tat by the time that it takes at the rate; an idle bucket lags behind now
 * by a bounded time. So there is nothing to refill, nothing overflows for 500
 * years, and the wait for the next unit is tat - now.
 *
 * Who finds the bucket ready may take a chunk, and so run into debt by one. The
 * lag is a chunk shorter than the burst for that: in every window of length T at
 * most burst + rate * T goes through, chunks and all.
 *
 * Where no burst was asked for, the lag is there for one purpose: to make good the
 * time in which a busy machine didn't run the worker, or ran it slowly, so that the
 * rate is exact over a second. It must not be a burst that others feel. So a second
 * bucket, the peak, spreads it: a unit takes 1/BUCKET_PEAK less time there than at
 * the rate. Every window that ends or begins while it is spread is off by what is
 * left of it: what was missed has to be made good in a small part of a second, the
 * lag in (BUCKET_PEAK - 1) times its length, and what there is beyond BUCKET_REST_NS
 * in (BUCKET_PEAK_FAR - 1) times that.
 *
 * Nor may it be saved up: beyond BUCKET_REST_NS the lag is for who wanted more all the
 * while. Time in which nothing was wanted adds to it up to there, as it can't be told
 * from time in which the application's own processor was slow. What was missed before
 * is still made good after it.
 *
 * No clock is read here: now is given, in nanoseconds.
 */
#ifndef SLUICE_BUCKET_H
#define SLUICE_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

/* What is counted, and how much of it goes at a stretch. */
enum bucket_kind {
    BUCKET_BYTES,      /* rate in bits per second */
    BUCKET_OPERATIONS, /* rate in operations per second */
    BUCKET_TIME        /* rate in nanoseconds per second */
};

enum { BUCKET_BYTES_LEAST = 256, BUCKET_BYTES_MOST = 1 << 20, BUCKET_PEAK = 8 /* a power of two: it divides each turn's cost */, BUCKET_PEAK_FAR = 4 };

/* What is made good in all where no burst was asked for: of who wanted more all the while, and else. */
#define BUCKET_LAG_NS 64000000ull
#define BUCKET_REST_NS 20000000ull
/* Delays up to this are made good at once. */
#define BUCKET_PEAK_LAG_NS 2000000ull

struct bucket {
    uint64_t rate;         /* per second; 0: without limit */
    uint64_t lag_ns;       /* how far it lags behind; where it is peaked: after a rest */
    uint64_t ns_per_unit;  /* fixed point, 32 fractional bits */
    uint64_t tat;          /* ns */
    uint32_t tat_fraction; /* of a ns, 32 bits */
    uint64_t peak_tat;     /* ns; the same at the peak's rate; stays 0 where there is none */
    uint64_t taken;        /* ns: when last; meaningful where it is peaked, as is the next */
    bool wanted;           /* more was, after that */
    bool peaked;
    uint32_t peak_fraction;
    uint32_t chunk;        /* units at a stretch, so that a low rate stays smooth */
};

/* burst in units, a chunk at least; 0: the default, with a peak. */
void bucket_set(struct bucket *bucket, enum bucket_kind kind, uint64_t rate, uint64_t burst, uint64_t now);

/* Bytes, operations or nanoseconds that may go after a long pause, all at once. */
uint64_t bucket_burst(const struct bucket *bucket);

static inline bool bucket_ready(const struct bucket *bucket, uint64_t now)
{
    return bucket->rate == 0 || (bucket->tat <= now && bucket->peak_tat <= now);
}

/* When it is ready; meaningful where it has a rate. */
static inline uint64_t bucket_at(const struct bucket *bucket)
{
    return bucket->tat > bucket->peak_tat ? bucket->tat : bucket->peak_tat;
}

/* Nothing is wanted any more, until it is taken from again. */
static inline void bucket_rest(struct bucket *bucket, uint64_t now)
{
    bucket->taken = now;
    bucket->wanted = false;
}

/* It lags behind by more than lag_ns: leaves what is made good. */
void bucket_forget(struct bucket *bucket, uint64_t now);

/* The same as bucket_take, for a cost in nanoseconds with 32 fractional bits. */
static inline void bucket_take_cost(struct bucket *bucket, unsigned __int128 cost, bool more, uint64_t now)
{
    unsigned __int128 spread = cost - cost / BUCKET_PEAK;

    if (__builtin_expect(now > bucket->lag_ns && bucket->tat < now - bucket->lag_ns, 0)) {
        bucket_forget(bucket, now);
        if (bucket->tat < now - bucket->lag_ns)
            spread = cost - cost / BUCKET_PEAK_FAR;
    }
    if (bucket->peaked) {
        if (now > BUCKET_PEAK_LAG_NS && bucket->peak_tat < now - BUCKET_PEAK_LAG_NS)
            bucket->peak_tat = now - BUCKET_PEAK_LAG_NS;
        spread += bucket->peak_fraction;
        bucket->peak_tat += (uint64_t)(spread >> 32);
        bucket->peak_fraction = (uint32_t)spread;
        bucket->taken = now;
        bucket->wanted = more;
    }
    cost += bucket->tat_fraction;
    bucket->tat += (uint64_t)(cost >> 32);
    bucket->tat_fraction = (uint32_t)cost;
}

/*
 * Takes units; call only when bucket_ready, for a chunk at most where the burst is to hold. more: who took them
 * wants more, from now until it takes again.
 */
static inline void bucket_take(struct bucket *bucket, uint64_t units, bool more, uint64_t now)
{
    if (bucket->rate)
        bucket_take_cost(bucket, (unsigned __int128)bucket->ns_per_unit * units, more, now);
}

#endif
