/* SPDX-License-Identifier: Apache-2.0 */
/* UD messages between QPs of this node, and what comes for them from elsewhere (datagram.c). */
#ifndef SLUICE_TRANSPORT_DATAGRAM_H
#define SLUICE_TRANSPORT_DATAGRAM_H

#include "transport.h"

/* The message at hand to a QP of this node, whatever its address says. As struct transport's send_datagram. */
enum progress datagram_to_neighbour(struct qp *qp, struct qp *to, uint32_t *status);

/* A datagram that the NIC has brought, whose Q_Key it has checked: length bytes of GRH and data. */
void datagram_from_nic(struct qp *to, uint32_t src_qp, bool immediate, uint32_t imm, uint8_t *bytes, uint32_t length);

#endif
