/* SPDX-License-Identifier: Apache-2.0 */
/* The token bucket's arithmetic, in virtual time. */
#include "bucket.h"

#include "check.h"
#include "clock.h"

#define DECADES (40ull * 365 * 86400 * NS_PER_SECOND)

/* Bytes that a sender who always wants to send gets in a stretch of time, in chunks. */
static uint64_t greedy(struct bucket *bucket, uint64_t *now, uint64_t length)
{
    uint64_t bytes = 0, end = *now + length;

    while (*now < end) {
        if (!bucket_ready(bucket, *now)) {
            *now = bucket_at(bucket) < end ? bucket_at(bucket) : end;
            continue;
        }
        bucket_take(bucket, bucket->chunk, true, *now);
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

        bucket_set(&bucket, BUCKET_BYTES, rates[i], 0, now);
        for (int second = 0; second < 5; second++) {
            uint64_t bytes = greedy(&bucket, &now, NS_PER_SECOND);
            uint64_t allowed = rates[i] / 8;

            CHECK(bytes <= allowed + bucket_burst(&bucket));
            CHECK(bytes + 2 * bucket.chunk >= allowed);
        }
    }
}

static void exact_over_a_long_time(void)
{
    struct bucket bucket;
    uint64_t now = 1;

    bucket_set(&bucket, BUCKET_BYTES, 123456789, 0, now);
    uint64_t bytes = greedy(&bucket, &now, 1000 * NS_PER_SECOND);
    uint64_t allowed = 123456789ull / 8 * 1000;

    CHECK(bytes < allowed + allowed / 100000 && bytes + allowed / 100000 > allowed);
}

static void a_pause_earns_the_burst_and_no_more(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND;

    bucket_set(&bucket, BUCKET_BYTES, 8000000, 100000, now); /* 1 byte per us */
    CHECK(bucket_burst(&bucket) == 100000);
    now += DECADES;
    uint64_t at_once = 0;

    while (bucket_ready(&bucket, now)) {
        bucket_take(&bucket, bucket.chunk, true, now);
        at_once += bucket.chunk;
    }
    CHECK(at_once > 100000 - bucket.chunk && at_once <= 100000);
}

/* The default: what was missed is made good, but not at once. */
static void delay_is_made_good_without_a_burst(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND, ms = NS_PER_SECOND / 1000;

    bucket_set(&bucket, BUCKET_BYTES, 1000000000, 0, now);
    uint64_t start = now, bytes = greedy(&bucket, &now, 100 * ms);

    now += 64 * ms; /* the worker didn't run */
    uint64_t soon = greedy(&bucket, &now, 10 * ms);

    CHECK(soon <= 1340000 * BUCKET_PEAK_FAR / (BUCKET_PEAK_FAR - 1) + 250000 + 2 * bucket.chunk);
    soon += greedy(&bucket, &now, (BUCKET_PEAK_FAR - 1) * 44 * ms - 10 * ms);
    /* The last of it more slowly. */
    uint64_t last = greedy(&bucket, &now, 10 * ms);

    CHECK(last <= 1250000 * BUCKET_PEAK / (BUCKET_PEAK - 1) + 250000 + 2 * bucket.chunk);
    /* All of it soon enough for a second to be exact. */
    bytes += soon + last + greedy(&bucket, &now, (BUCKET_PEAK - 1) * 20 * ms - 10 * ms);
    uint64_t allowed = (now - start) / 8;

    CHECK(bytes <= allowed + bucket.chunk && bytes + 2 * bucket.chunk >= allowed);
}

/* Bytes beyond the rate, at 1 byte per ns, of who is greedy from now on. */
static uint64_t made_good(struct bucket *bucket, uint64_t now)
{
    uint64_t length = NS_PER_SECOND;
    uint64_t bytes = greedy(bucket, &now, length);

    return bytes > length ? bytes - length : 0;
}

static void rest_saves_up_no_more_than_a_delay(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND, ms = NS_PER_SECOND / 1000;

    /* Little by little, as by who never wants as much as it may have. */
    bucket_set(&bucket, BUCKET_BYTES, 8 * NS_PER_SECOND, 0, now);
    for (int i = 0; i < 1000; i++, now += ms)
        bucket_take(&bucket, 1, false, now);
    uint64_t saved = made_good(&bucket, now);

    CHECK(saved >= 19 * ms && saved <= 20 * ms + 2 * bucket.chunk);
    /* What was missed while more was wanted is not lost by a rest, nor does one add to it. */
    bucket_set(&bucket, BUCKET_BYTES, 8 * NS_PER_SECOND, 0, now);
    bucket_take(&bucket, 1, true, now);
    now += 50 * ms;
    bucket_take(&bucket, 1, false, now);
    now += 30 * ms;
    saved = made_good(&bucket, now);
    CHECK(saved >= 49 * ms && saved <= 50 * ms + 2 * bucket.chunk);
    /* Nor is there more to it than the burst. */
    bucket_set(&bucket, BUCKET_BYTES, 8 * NS_PER_SECOND, 0, now);
    bucket_take(&bucket, 1, true, now);
    saved = made_good(&bucket, now + DECADES);
    CHECK(saved >= 63 * ms && saved <= bucket_burst(&bucket) + bucket.chunk);
}

static void low_rates_go_in_small_chunks(void)
{
    struct bucket bucket;

    bucket_set(&bucket, BUCKET_BYTES, 1000000, 0, 1);
    CHECK(bucket.chunk == BUCKET_BYTES_LEAST);
    bucket_set(&bucket, BUCKET_BYTES, 10000000, 0, 1);
    CHECK(bucket.chunk == 312); /* 250 us */
    bucket_set(&bucket, BUCKET_BYTES, 10000000000, 0, 1);
    CHECK(bucket.chunk == 65536);
    bucket_set(&bucket, BUCKET_BYTES, 100000000000, 0, 1);
    CHECK(bucket.chunk == 250000); /* 20 us */
    bucket_set(&bucket, BUCKET_BYTES, 10000000000000, 0, 1);
    CHECK(bucket.chunk == BUCKET_BYTES_MOST);
    bucket_set(&bucket, BUCKET_BYTES, 0, 0, 1);
    CHECK(bucket.chunk == BUCKET_BYTES_MOST && bucket_ready(&bucket, 0));
    /* A burst that is less than a chunk makes the chunk smaller. */
    bucket_set(&bucket, BUCKET_BYTES, 10000000000, 4096, 1);
    CHECK(bucket.chunk == 4096 && bucket_burst(&bucket) == 4096);
}

static void operations_and_time(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND;

    bucket_set(&bucket, BUCKET_OPERATIONS, 1000, 0, now);
    CHECK(bucket.chunk == 1 && greedy(&bucket, &now, NS_PER_SECOND) <= 1001);
    bucket_set(&bucket, BUCKET_OPERATIONS, 5, 0, now);
    uint64_t few = greedy(&bucket, &now, 10 * NS_PER_SECOND);

    CHECK(few >= 50 && few <= 51);
    bucket_set(&bucket, BUCKET_TIME, NS_PER_SECOND / 4, 0, now);
    uint64_t ns = greedy(&bucket, &now, NS_PER_SECOND);

    CHECK(ns >= NS_PER_SECOND / 4 && ns <= NS_PER_SECOND / 4 + bucket_burst(&bucket));
}

static void a_change_counts_at_once(void)
{
    struct bucket bucket;
    uint64_t now = NS_PER_SECOND;

    bucket_set(&bucket, BUCKET_BYTES, 1000, 0, now); /* a chunk takes two seconds */
    bucket_take(&bucket, bucket.chunk, false, now);
    CHECK(!bucket_ready(&bucket, now + NS_PER_SECOND));
    bucket_set(&bucket, BUCKET_BYTES, 1000000000, 0, now);
    CHECK(bucket_ready(&bucket, now));
}

int main(void)
{
    RUN(never_above_the_rate);
    RUN(exact_over_a_long_time);
    RUN(a_pause_earns_the_burst_and_no_more);
    RUN(delay_is_made_good_without_a_burst);
    RUN(rest_saves_up_no_more_than_a_delay);
    RUN(low_rates_go_in_small_chunks);
    RUN(operations_and_time);
    RUN(a_change_counts_at_once);
    return 0;
}
