/* SPDX-License-Identifier: Apache-2.0 */
/* Who is metered: an entity of the shaper's, and the lanes before its ceilings. */
#ifndef SLUICE_ACCOUNT_H
#define SLUICE_ACCOUNT_H

#include "node.h"

/* Below the device; the device's own account is the top. -ENOMEM. */
int account_init(struct account *account, struct device *device, uint64_t *throttled_ns);
void account_free(struct account *account);
/* At once: who waits for the old ceilings is asked again. */
void account_set_share(struct account *account, const struct sluice_share *share);

/* The lane before the ceiling that is in debt, from this account upwards; or of one in which others wait. */
struct lane *account_lane(struct account *account, uint32_t direction, const struct claim *claim);
/* Bytes that came from, or went to, the other end. more: which goes on with more. */
void account_charge(struct account *account, uint32_t direction, uint64_t bytes, bool more);

/* Returns the group's number or a negative errno. */
int tenant_group_add(struct device *device, const struct sluice_share *share);
void tenant_group_free(struct tenant_group *group);
void tenant_group_shape(struct tenant_group *group, const struct sluice_share *share);

#endif
