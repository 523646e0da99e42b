/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that carries nothing: a library in libibverbs' place, whose one device "fake0" completes each request as soon
 * as it is posted, or when it is told to. It refuses what it is told to refuse, and counts what there is.
 */
#ifndef SLUICE_TEST_FAKE_VERBS_H
#define SLUICE_TEST_FAKE_VERBS_H

#include <stdint.h>

/* What there is now of everything together. */
uint32_t fake_objects(void);
/* From now on such objects ("qp", "mr", "srq", "ah", "mw", "cq", "pd") are refused with this errno; 0: no longer. */
void fake_refuse(const char *what, int error);
/* Requests stay on their way, until this is called with 0. */
void fake_hold(int on);
/* A message comes for a QP: its next receive completes, or that of its SRQ. 0: there is none. */
int fake_receive(uint32_t qp_num, uint32_t bytes);
/* Receives that an SRQ or, without one, a QP holds. */
uint32_t fake_receives(uint32_t qp_num);
/* Requests that were posted so far. */
uint64_t fake_posted(void);
/* An async event of the device. */
void fake_event(int type);

#endif
