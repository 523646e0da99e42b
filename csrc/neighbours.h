/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tenants of its node a tenant may send datagrams to by the NIC's GID, which is the GID of all of them: an address
 * handle says nothing of whom it leads to, each message does. Tenants are meant as wholes, whatever devices they have. The control plane's gate is asked when there is one for a
 * tenant for the first time, and its answer is kept.
 */
#ifndef SLUICE_NEIGHBOURS_H
#define SLUICE_NEIGHBOURS_H

#include "node.h"

enum neighbour { NEIGHBOUR_UNKNOWN, NEIGHBOUR_ADMITTED, NEIGHBOUR_REFUSED };

/* UNKNOWN: it is being asked; who waits in from->asking goes on when there is an answer. */
enum neighbour neighbour_admission(struct tenant *from, const struct tenant *to);

/* The gate's answer, or a new one. -ENOMEM. */
int neighbour_admit(struct tenant *from, uint32_t to, bool admitted);

/* A tenant is no more: its number may be another's. */
void neighbours_forget(struct sluice_engine *engine, uint32_t number);
void neighbours_free(struct tenant *tenant);

#endif
