/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tenants hold of what a node has once: QP numbers, keys, and the router's memory for objects of other kinds. Where the
 * operator says nothing, a tenant, all its devices and processes together, gets more as long as it has less than a third of
 * what nobody has (dynamic thresholds: Choudhury, Hahne, IEEE/ACM ToN 1998). So one alone has a quarter of all at most, k that
 * agree have 1/(k+3) each, and whoever comes then finds some.
 */
#ifndef SLUICE_HOLDINGS_H
#define SLUICE_HOLDINGS_H

#include "node.h"

/* False: no more (ENOMEM); counted as a refusal. */
bool holding_take(struct tenant *tenant, enum holding what);
void holding_give(struct tenant *tenant, enum holding what);

#endif
