/* SPDX-License-Identifier: Apache-2.0 */
/* The token bucket's arithmetic, in virtual time. */
#include "shaper.h"

#include "check.h"
#include "clock.h"

#define DECADES (40ull * 365 * 86400 * NS_PER_SECOND)

/* Bytes that a sender who always wants to send gets in a stretch of time, in chunks. */
static uint64_t greedy(struct bucket *bucket, uint64_t *now, uint64_t length)
{
    uint64_t bytes = 0, end = *now + length;

    while (*now < end) {
        if (!bucket_ready(bucket, *now)) {
            *now = bucket->tat < end ? bucket->tat : end;
            continue;
        }
        bucket_take(bucket, bucket->chunk, *now);
        bytes += bucket->chunk;
    }
    return bytes;
}

static void never_above_the_rate(void)
{
    static const uint64_t rates[] = {1000000, 10000000, 500000000, 2000000000, 100000000000, 400000000000};

    for (unsigned i = 0; i < sizeof(rates) / sizeof(*rates); i++) {
        struct bucket bucket;
        uint64_t now = DECADES;

        bucket_set(&bucket, rates[i], 0, now);
        for (int second = 0; second < 5; second++) {
            uint64_t bytes = greedy(&bucket, &now, NS_PER_SECOND);
            uint64_t allowed = rates[i] / 8;

            CHECK(bytes <= allowed + allowed / 50 + 2 * bucket.chunk);
            CHECK(bytes + allowed / 50 + 2 * bucket.chunk >= allowed);
        }
    }
}

static void exact_over_a_long_time(void)
{
    struct bucket bucket;
    uint64_t now = 1;

    bucket_set(&bucket, 123456789, 0, now);
    uint64_t bytes = greedy(&bucket, &now, 1000 * NS_PER_SECOND);
    uint64_t allowed = 123456789ull / 8 * 1000;

    CHECK(bytes < allowed + allowed / 10000 && bytes + allowed / 10000 > allowed);
}

static void a_pause_earns_the_burst_and_no_more(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND;

    bucket_set(&bucket, 8000000, 100000, now); /* 1 byte per us */
    now += DECADES;
    uint64_t at_once = 0;

    while (bucket_ready(&bucket, now)) {
        bucket_take(&bucket, 1000, now);
        at_once += 1000;
    }
    CHECK(at_once >= 100000 && at_once <= 102000);
}

static void low_rates_go_in_small_chunks(void)
{
    struct bucket bucket;

    bucket_set(&bucket, 1000000, 0, 1);
    CHECK(bucket.chunk == SHAPER_CHUNK_MIN);
    bucket_set(&bucket, 10000000000, 0, 1);
    CHECK(bucket.chunk == 65536);
    bucket_set(&bucket, 100000000000, 0, 1);
    CHECK(bucket.chunk == 250000); /* 20 us */
    bucket_set(&bucket, 10000000000000, 0, 1);
    CHECK(bucket.chunk == SHAPER_CHUNK_MAX);
    bucket_set(&bucket, 0, 0, 1);
    CHECK(bucket.chunk == SHAPER_CHUNK_MAX && bucket_ready(&bucket, 0));
}

static void a_change_counts_at_once(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND;

    bucket_set(&bucket, 1000, 0, now); /* a chunk takes half a minute */
    bucket_take(&bucket, SHAPER_CHUNK_MIN, now);
    CHECK(!bucket_ready(&bucket, now + NS_PER_SECOND));
    bucket_set(&bucket, 1000000000, 0, now);
    CHECK(bucket_ready(&bucket, now));
}

int main(void)
{
    RUN(never_above_the_rate);
    RUN(exact_over_a_long_time);
    RUN(a_pause_earns_the_burst_and_no_more);
    RUN(low_rates_go_in_small_chunks);
    RUN(a_change_counts_at_once);
    return 0;
}
