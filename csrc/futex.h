/* SPDX-License-Identifier: Apache-2.0 */
/* Sleeping on a word of shared memory (futex(2)); the words are shared between processes. */
#ifndef SLUICE_FUTEX_H
#define SLUICE_FUTEX_H

#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Returns when woken, when *word isn't value, at the deadline (CLOCK_MONOTONIC ns), or for no reason. */
static inline void futex_wait(uint32_t *word, uint32_t value, uint64_t deadline)
{
    struct timespec at = {.tv_sec = (time_t)(deadline / 1000000000ull), .tv_nsec = (long)(deadline % 1000000000ull)};

    /* The bitset form takes an absolute time. */
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, deadline == UINT64_MAX ? NULL : &at, NULL,
            FUTEX_BITSET_MATCH_ANY);
}

static inline void futex_wake(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

#endif
