/* SPDX-License-Identifier: Apache-2.0 */
#include "bucket.h"

#include "clock.h"

/*
 * A chunk lasts 250 us at a low rate, so that traffic is smooth. Where that is
 * more than a kind's smooth size this is enough, as long as it lasts 20 us.
 */
#define BUCKET_CHUNK_NS 250000ull
#define BUCKET_CHUNK_FAST_NS 20000ull

static const struct {
    uint32_t unit; /* of what the rate counts */
    uint32_t least, smooth, most;
} kinds[] = {
    [BUCKET_BYTES] = {8, BUCKET_BYTES_LEAST, 65536, BUCKET_BYTES_MOST},
    [BUCKET_OPERATIONS] = {1, 1, 64, 256},
    [BUCKET_TIME] = {1, 1000, 50000, 50000},
};

static uint32_t chunk_of(enum bucket_kind kind, uint64_t rate)
{
    unsigned __int128 per_second = rate / kinds[kind].unit;
    uint64_t slow = (uint64_t)(per_second * BUCKET_CHUNK_NS / NS_PER_SECOND);
    uint64_t fast = (uint64_t)(per_second * BUCKET_CHUNK_FAST_NS / NS_PER_SECOND);
    uint64_t chunk = slow < kinds[kind].smooth ? slow : kinds[kind].smooth;

    if (chunk < fast)
        chunk = fast;
    if (chunk > kinds[kind].most)
        chunk = kinds[kind].most;
    return chunk < kinds[kind].least ? kinds[kind].least : (uint32_t)chunk;
}

static uint64_t ns_of(const struct bucket *bucket, uint64_t units)
{
    unsigned __int128 ns = (unsigned __int128)bucket->ns_per_unit * units >> 32;

    return ns > UINT64_MAX / 4 ? UINT64_MAX / 4 : (uint64_t)ns;
}

void bucket_set(struct bucket *bucket, enum bucket_kind kind, uint64_t rate, uint64_t burst, uint64_t now)
{
    /* Debt at the old rate is forgiven: it is one chunk at most, and the new rate counts from now. */
    *bucket = (struct bucket){.rate = rate, .tat = now, .taken = now, .chunk = kinds[kind].most};
    if (rate == 0)
        return;

    bucket->ns_per_unit = (uint64_t)(((unsigned __int128)(kinds[kind].unit * NS_PER_SECOND) << 32) / rate);
    bucket->chunk = chunk_of(kind, rate);
    if (burst == 0) {
        bucket->lag_ns = BUCKET_REST_NS;
        bucket->peaked = true;
        return;
    }
    if (burst < bucket->chunk)
        bucket->chunk = burst < kinds[kind].least ? kinds[kind].least : (uint32_t)burst;
    if (burst > bucket->chunk)
        bucket->lag_ns = ns_of(bucket, burst - bucket->chunk);
}

uint64_t bucket_burst(const struct bucket *bucket)
{
    uint64_t lag_ns = bucket->peaked ? BUCKET_LAG_NS : bucket->lag_ns;

    if (bucket->rate == 0)
        return 0;
    return bucket->chunk + (uint64_t)(((unsigned __int128)lag_ns << 32) / bucket->ns_per_unit);
}

void bucket_forget(struct bucket *bucket, uint64_t now)
{
    uint64_t lag_ns = bucket->lag_ns;

    if (bucket->peaked) {
        uint64_t until = bucket->wanted ? now : bucket->taken, lagged = until > bucket->tat ? until - bucket->tat : 0;

        lag_ns = lagged < lag_ns ? lag_ns : lagged < BUCKET_LAG_NS ? lagged : BUCKET_LAG_NS;
    }
    if (now > lag_ns && bucket->tat < now - lag_ns) {
        bucket->tat = now - lag_ns;
        bucket->tat_fraction = 0;
    }
}
