/* SPDX-License-Identifier: Apache-2.0 */
/* A tenant: who is metered and shaped. */
#ifndef SLUICE_TENANT_H
#define SLUICE_TENANT_H

#include "node.h"

/* Returns the tenant's number or a negative errno. */
int tenant_add(struct sluice_engine *engine, const struct sluice_shape *shape);
/* It has no sessions any more. */
void tenant_free(struct tenant *tenant);

/* New limits, at once: who waits for the old rate is asked again. */
void tenant_shape(struct tenant *tenant, const struct sluice_shape *shape);

#endif
