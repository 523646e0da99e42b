/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzzers of the engine share: a session as its process sees it, and an
 * honest pair of them that must go on working whatever others do.
 */
#ifndef SLUICE_FUZZ_SESSION_H
#define SLUICE_FUZZ_SESSION_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine.h"

enum { ENTRIES = 16, MEMORY = 1 << 16 };

struct fuzz_session {
    uint32_t number, context, pd, cq, qp, qp_num, qp_type, key, ah;
    int descriptors[3]; /* segment, arena, async events */
    uint8_t *memory;    /* MEMORY bytes, registered */
    struct sluice_segment *segment;
    struct sluice_create_cq_reply cq_layout;
    struct sluice_create_qp_reply qp_layout;
    struct sluice_create_srq_reply srq_layout; /* handle 0: the QP has receives of its own */
    uint32_t posted, polled;
};

extern struct sluice_engine *fuzz_engine;
extern uint32_t fuzz_tenant;

/* Opens the engine, once a process, and the honest pair. */
void fuzz_begin(void);
/* A session of one PD, CQ, region, address handle to this node, and a QP (enum ibv_qp_type) in RESET. */
void fuzz_open(struct fuzz_session *session, uint32_t qp_type, bool with_srq);
void fuzz_close(struct fuzz_session *session);
/* To RTS, connected to each other (or one to itself). */
void fuzz_join(struct fuzz_session *one, struct fuzz_session *other);

/* Rings the doorbell of a QP, or the mailbox's. */
void fuzz_ring(struct fuzz_session *session, uint32_t qp);
void fuzz_ring_command(struct fuzz_session *session);
/* Has the engine look, and waits until it has done so: its commands run between two rounds of work. */
void fuzz_settle(void);

/* The honest pair moves a message and finds it whole; else the program aborts. Also takes the engine's events. */
void fuzz_check(void);

/* Takes up to size bytes of the input; what it hasn't is 0. Returns how many there were. */
size_t fuzz_take(const uint8_t **data, size_t *left, void *to, size_t size);
uint8_t fuzz_byte(const uint8_t **data, size_t *left);

#endif
