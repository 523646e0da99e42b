/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A datagram that came and goes into memory of a process, by its thread (reach.h): it has its receive, its data are
 * copied, and nobody waits for it but those that came to the same QP later, as receives complete in order.
 */
#ifndef SLUICE_PARCEL_H
#define SLUICE_PARCEL_H

#include "qp.h"

struct spans;

/* What a receive completes with. */
struct arrival {
    uint32_t byte_len, wc_flags, imm_data;
    bool solicited;
};

/*
 * Takes over the QP's receive, whose memory is dst, and copies src, which is no longer. False: too many are on their
 * way, or memory could not be had; the receive is still the QP's.
 */
bool parcel_send(struct qp *qp, const struct spans *dst, const struct spans *src, const struct arrival *arrival);

/* The QP's receive fails with IBV_WC_LOC_PROT_ERR, after those that came before it, and the QP with it. False: there is no memory, and nothing happened. */
bool parcel_spoil(struct qp *qp);

/* Whether a datagram to this memory has to be one. */
bool parcel_needed(const struct qp *qp, const struct spans *dst);

/* Their receives are flushed, in order. */
void parcels_flush(struct qp *qp);
/* They are forgotten. */
void parcels_drop(struct qp *qp);

#endif
