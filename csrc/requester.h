/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requester's side of a QP: taking WQEs, sending, waiting, retrying. Its
 * functions are in qp.h; this one is for who makes a QP.
 */
#ifndef SLUICE_REQUESTER_H
#define SLUICE_REQUESTER_H

#include "qp.h"

void requester_init(struct qp *qp);

#endif
