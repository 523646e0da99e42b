/* SPDX-License-Identifier: Apache-2.0 */
/* Doorbell moderation: who streams is left alone for a while, who waits for each message hardly ever. */
#include "moderation.h"

#include "check.h"
#include "node.h"

struct application {
    struct sluice_counters_header header;
    struct sluice_engine engine;
    struct moderation moderation;
    uint32_t sent;
};

static void start(struct application *application)
{
    *application = (struct application){.engine.now = 1000000000};
    application->engine.header = &application->header;
}

/* The worker sleeps, and after so long finds so many messages, and then none. */
static bool wake(struct application *application, uint64_t after_ns, uint32_t messages)
{
    application->header.worker_parks++;
    application->engine.now += after_ns;
    application->sent += messages;
    return moderation_naps(&application->moderation, &application->engine, application->sent);
}

static void who_streams_naps(void)
{
    struct application application;
    int naps = 0;

    start(&application);
    application.sent = UINT32_MAX - 100; /* the count wraps */
    for (int i = 0; i < 1000; i++) {
        bool asleep = application.moderation.on;

        naps += wake(&application, asleep ? MODERATION_NS : 3000, asleep ? 100 : 1);
    }
    CHECK(naps > 900);
}

static void who_waits_for_each_message_is_woken(void)
{
    struct application application;
    int naps = 0;

    start(&application);
    for (int i = 0; i < 100000; i++)
        naps += wake(&application, application.moderation.on ? MODERATION_NS : 3000, 1);
    CHECK(naps < 20);
}

/* Without a core of its own, an application posts nothing; that says nothing about it. */
static void who_had_no_core_is_tried_again_soon(void)
{
    struct application application;
    int wakes = 0;

    start(&application);
    for (int i = 0; i < 100; i++) {
        while (!wake(&application, 3000, 1))
            wakes++;
        CHECK(!wake(&application, MODERATION_NS, 0));
    }
    CHECK(wakes < 10000);
}

static void who_posts_seldom_or_much_at_once_is_woken(void)
{
    struct application application;

    start(&application);
    for (int i = 0; i < 10000; i++)
        CHECK(!wake(&application, 1000000, 1));
    for (int i = 0; i < 10000; i++)
        CHECK(!wake(&application, 3000, 64));
}

static void nobody_naps_while_a_core_is_free(void)
{
    struct application application;

    start(&application);
    while (!wake(&application, 3000, 1))
        ;
    application.engine.linger = 50000;
    CHECK(!wake(&application, MODERATION_NS, 100));
    for (int i = 0; i < 10000; i++)
        CHECK(!wake(&application, 3000, 1));
}

/* A worker that was awake anyway was woken by nobody. */
static void only_sleep_counts(void)
{
    struct application application;

    start(&application);
    for (int i = 0; i < 10000; i++) {
        application.header.worker_parks = 1;
        application.engine.now += 3000;
        CHECK(!moderation_naps(&application.moderation, &application.engine, ++application.sent));
    }
}

int main(void)
{
    RUN(who_streams_naps);
    RUN(who_waits_for_each_message_is_woken);
    RUN(who_had_no_core_is_tried_again_soon);
    RUN(who_posts_seldom_or_much_at_once_is_woken);
    RUN(nobody_naps_while_a_core_is_free);
    RUN(only_sleep_counts);
    return 0;
}
