/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that only the kernel reaches for us: another process's, through
 * /proc/PID/mem (a descriptor that stays that process's, whatever becomes of its
 * number). A page fault there may wait for whatever the tenant has made responsible
 * for it, for ever (userfaultfd, FUSE). So the worker doesn't touch it: each such
 * process has a thread, which carries out errands, one after the other. A thread that
 * hangs costs its tenant a thread of few, and whoever waits for it the patience of a
 * QP (requester.c).
 */
#ifndef SLUICE_REACH_H
#define SLUICE_REACH_H

#include "node.h"

/* Of a tenant. */
enum { REACH_THREADS = 64, REACH_KEPT = 1024 };

struct reach;

/* What a thread is asked to do; the first member of what has it (relay.h, parcel.h), which is freed by free(). */
struct errand {
    struct list link;
    /* The thread's: nothing of it is touched by the worker meanwhile. False: memory could not be had. */
    bool (*carry)(const struct reach *reach, struct errand *errand);
    /* The worker's, when it is back. */
    void (*done)(struct errand *errand, bool carried);
    bool carried;
    uint32_t *count; /* where it counts to its tenant until it is back; or NULL */
    struct reach *reach; /* whose thread has it; not freed before it is back */
    uint32_t tenant; /* whose memory it goes to: its number */
};

/* mem: /proc/PID/mem, taken over unless it fails. -ENOMEM, -EAGAIN: no more threads. */
int reach_open(struct tenant *tenant, int mem, struct reach **out);
/* Returns at once; what was under way ends as failed. */
void reach_close(struct reach *reach);

/* The errand is the thread's until done is called. */
void reach_send(struct reach *reach, struct errand *errand);

/* Whether any errand that was sent isn't back. */
bool reach_busy(const struct reach *reach);

/*
 * Counts an errand that was sent to the tenant whose thread has it, until it is back: one of which a QP may have many, or
 * one whose QP has gone. A thread that hangs may keep them for ever: there is room for REACH_KEPT.
 */
void errand_keep(struct sluice_engine *engine, struct errand *errand);
bool reach_has_room(const struct sluice_engine *engine, const struct reach *reach);
/*
 * The same for fences whose owner has gone. They count by themselves: however much others send there, an owner may wait
 * for the end of it.
 */
void errand_leave(struct sluice_engine *engine, struct errand *errand);
bool reach_may_wait(const struct sluice_engine *engine, const struct reach *reach);

/* For carry: bytes from or to the process's memory, in address order, the last 8 stored last. */
bool reach_read(const struct reach *reach, uint64_t address, uint8_t *bytes, uint32_t length);
bool reach_write(const struct reach *reach, uint64_t address, const uint8_t *bytes, uint32_t length);
/*
 * Compares with operands->compare_add and swaps, or adds it; *original gets what was there. address: a multiple of 8. No other
 * atomic of this tenant comes between; stores of its CPUs may, which is IBV_ATOMIC_HCA.
 */
bool reach_atomic(const struct reach *reach, uint64_t address, const struct sluice_atomic *operands, bool compare,
                  uint64_t *original);

/* Where threads put what is done. */
int port_open(struct sluice_engine *engine);
void port_close(struct sluice_engine *engine);
bool port_rung(const struct sluice_engine *engine);
/* Calls done of all that is back. */
void port_collect(struct sluice_engine *engine);

#endif
