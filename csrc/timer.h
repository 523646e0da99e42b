/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers in a binary heap: the nearest at the root. Setting or cancelling one
 * costs log n and, as the heap only grows when an object that owns a timer is
 * made, allocates nothing on the data path.
 */
#ifndef SLUICE_TIMER_H
#define SLUICE_TIMER_H

#include <stdint.h>

struct timer {
    uint64_t when;  /* ns; meaningful while set, and to what it fires */
    uint32_t place; /* in the heap, from 1; 0: not set */
    void (*fire)(struct timer *timer);
};

struct timers {
    struct timer **heap; /* from 1 */
    uint32_t count;
    uint32_t reserved;   /* timers that exist, set or not */
    uint32_t capacity;
};

/* Makes room for one more timer. -ENOMEM. */
int timers_reserve(struct timers *timers);
/* Its owner is gone; the timer is not set. */
void timers_release(struct timers *timers);
void timers_free(struct timers *timers);

/* Sets or moves it. */
void timer_set(struct timers *timers, struct timer *timer, uint64_t when);
void timer_cancel(struct timers *timers, struct timer *timer);

/* Fires all that are due; each is no longer set when its function runs. */
void timers_run(struct timers *timers, uint64_t now);

/* UINT64_MAX: none is set. */
static inline uint64_t timers_next(const struct timers *timers)
{
    return timers->count ? timers->heap[1]->when : UINT64_MAX;
}

#endif
