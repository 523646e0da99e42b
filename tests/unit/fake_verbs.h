/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that carry nothing: a library in libibverbs' place, whose devices "fake0" and "fake1" complete each request as soon
 * as it is posted, or when they are told to. They refuse what they are told to refuse, and count what there is. Both give the same
 * QP numbers and keys. "fake0" is one in software, by its place in sysfs.
 */
#ifndef SLUICE_TEST_FAKE_VERBS_H
#define SLUICE_TEST_FAKE_VERBS_H

#include <stdint.h>

/* What there is now of everything together. */
uint32_t fake_objects(void);
/*
 * From now on such objects are refused with this errno ("qp", "mr", "srq", "ah", "mw", "cq", "pd"), or rates ("pace"), bursts of a rate, no rate
 * ("lifting"), send queues of more than 16 requests ("depth"); 0: no longer.
 */
void fake_refuse(const char *what, int error);
/* Requests stay on their way, until this is called with 0. */
void fake_hold(int on);
/* Who registers memory waits, until this is called with 0; and how many do. */
void fake_stop_registering(int on);
uint32_t fake_registering(void);
/* A message comes for a QP: its next receive completes, or that of its SRQ. 0: there is none. */
int fake_receive(uint32_t qp_num, uint32_t bytes);
/* Receives that an SRQ or, without one, a QP holds. */
uint32_t fake_receives(uint32_t qp_num);
/* Requests that were posted so far. */
uint64_t fake_posted(void);
/* Completions that were announced by an event so far. */
uint32_t fake_announced(void);
/* QPs of such types (bits, by enum ibv_qp_type) can be paced, from here to there, kbit/s; for devices that are opened from now on. */
void fake_pacing(uint32_t types, uint32_t least, uint32_t most);
/* What a QP is paced to, kbit/s, 0: not; and with what burst. */
uint32_t fake_pace(uint32_t qp_num, uint32_t *burst);
/* An async event of a device: 0 or 1. */
void fake_event(uint32_t device, int port, int type);

#endif
