/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that waits for a descriptor in place of another, which sleeps on a futex: where one call can't wait for both
 * (uring.h). It costs a second wake-up each time that the descriptor wakes, and nothing otherwise.
 */
#ifndef SLUICE_LOOKOUT_H
#define SLUICE_LOOKOUT_H

#include <stdbool.h>
#include <stdint.h>

struct lookout;

/* NULL: errno says why. */
struct lookout *lookout_open(uint32_t *word, int descriptor);
/* Returns when its thread has ended. */
void lookout_close(struct lookout *lookout);

/*
 * From now on, until it has happened once: when the descriptor is readable, the word becomes 0 and who sleeps on it is
 * woken. That may be one who went to sleep later; so a sleeper looks why it was woken.
 */
void lookout_begin(struct lookout *lookout);
/* Whether that has not happened yet. */
bool lookout_waits(const struct lookout *lookout);

#endif
