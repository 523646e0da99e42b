/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Doorbell moderation, as a NIC moderates its interrupts (ethtool -C, Linux's DIM). Where applications spin on every
 * core, a worker that sleeps is woken by each WR that is posted, runs before the application that rang, and finds the
 * one: a system call and two switches for each. A queue that is posted to on and on is therefore left without a
 * doorbell for some microseconds when it ran dry, and looked at then: what was posted meanwhile comes at once, and
 * nobody had to ring.
 *
 * Who waits for each message to arrive would only wait longer. Nobody can tell from one message which of the two it
 * is, so it is tried: after a number of wake-ups for hardly anything, and where little came of it, after twice as many.
 */
#ifndef SLUICE_MODERATION_H
#define SLUICE_MODERATION_H

#include <stdbool.h>
#include <stdint.h>

struct sluice_engine;

/* Longer than it takes to be woken and to sleep again, shorter than anybody who streams would notice. */
#define MODERATION_NS 20000ull

/* Of one queue that runs dry. All zeroes at first. */
struct moderation {
    bool on;
    uint32_t head;   /* messages sent, when it last ran dry */
    uint32_t alone;  /* wake-ups in a row, one soon after the other, each for hardly anything */
    uint32_t patience; /* after as many of them it is tried; 0: it never was */
    uint64_t parks;  /* the worker's, when the queue last ran dry */
    uint64_t since;  /* ns: when that was */
};

/*
 * The queue has run dry, with so many messages sent ever (modulo 2^32). True: leave it alone for
 * MODERATION_NS, without a doorbell. False: ask for the doorbell.
 */
bool moderation_naps(struct moderation *moderation, const struct sluice_engine *engine, uint32_t head);

#endif
