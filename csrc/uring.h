/* SPDX-License-Identifier: Apache-2.0 */
/* Sleeping on a futex and on a descriptor at once, by io_uring (Linux 6.7). */
#ifndef SLUICE_URING_H
#define SLUICE_URING_H

#include <stdbool.h>
#include <stdint.h>

struct uring;

/* For the calling thread alone. NULL: this kernel can't, or doesn't allow it. */
struct uring *uring_open(uint32_t *word, int descriptor);
void uring_close(struct uring *uring);

/*
 * Whether the descriptor has not become readable since a call of uring_sleep began to wait for it. Makes no system call
 * unless it has.
 */
bool uring_quiet(struct uring *uring);

/*
 * Returns when the word isn't value, it is woken, the descriptor is readable, at the
 * deadline (CLOCK_MONOTONIC ns; UINT64_MAX: none), or for no reason.
 */
void uring_sleep(struct uring *uring, uint32_t value, uint64_t deadline);

#endif
