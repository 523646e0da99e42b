/* SPDX-License-Identifier: Apache-2.0 */
#include "timer.h"

#include <errno.h>
#include <stdlib.h>

int timers_reserve(struct timers *timers)
{
    if (timers->reserved + 2 > timers->capacity) {
        uint32_t capacity = timers->capacity ? timers->capacity * 2 : 64;
        struct timer **heap = realloc(timers->heap, capacity * sizeof(*heap));

        if (!heap)
            return -ENOMEM;
        timers->heap = heap;
        timers->capacity = capacity;
    }
    timers->reserved++;
    return 0;
}

void timers_release(struct timers *timers)
{
    timers->reserved--;
}

void timers_free(struct timers *timers)
{
    free(timers->heap);
}

static void put(struct timers *timers, struct timer *timer, uint32_t place)
{
    timers->heap[place] = timer;
    timer->place = place;
}

static void rise(struct timers *timers, struct timer *timer, uint32_t place)
{
    while (place > 1 && timers->heap[place / 2]->when > timer->when) {
        put(timers, timers->heap[place / 2], place);
        place /= 2;
    }
    put(timers, timer, place);
}

static void sink(struct timers *timers, struct timer *timer, uint32_t place)
{
    for (;;) {
        uint32_t child = place * 2;

        if (child > timers->count)
            break;
        if (child < timers->count && timers->heap[child + 1]->when < timers->heap[child]->when)
            child++;
        if (timers->heap[child]->when >= timer->when)
            break;
        put(timers, timers->heap[child], place);
        place = child;
    }
    put(timers, timer, place);
}

void timer_set(struct timers *timers, struct timer *timer, uint64_t when)
{
    timer_cancel(timers, timer);
    timer->when = when;
    rise(timers, timer, ++timers->count);
}

void timer_cancel(struct timers *timers, struct timer *timer)
{
    uint32_t place = timer->place;

    if (place == 0)
        return;
    struct timer *last = timers->heap[timers->count--];

    timer->place = 0;
    if (last == timer)
        return;
    if (place > 1 && timers->heap[place / 2]->when > last->when)
        rise(timers, last, place);
    else
        sink(timers, last, place);
}

void timers_run(struct timers *timers, uint64_t now)
{
    while (timers->count && timers->heap[1]->when <= now) {
        struct timer *timer = timers->heap[1];

        timer_cancel(timers, timer);
        timer->fire(timer);
    }
}
