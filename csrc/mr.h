/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory regions. A key is an index (20 bits) and a variant (12 bits) that is
 * random each time, so that neither an old key nor a guessed one opens memory;
 * keys are the node's, not a session's, so that another tenant's never fits.
 */
#ifndef SLUICE_MR_H
#define SLUICE_MR_H

#include "node.h"

enum { MR_MAX = 1 << 20, MR_VARIANT_BITS = 12 };

struct mr {
    uint32_t key; /* 0: free */
    uint32_t access; /* enum ibv_access_flags */
    struct pd *pd;
    uint64_t iova; /* as WRs name it */
    uint64_t length;
    uint64_t offset; /* address = iova + offset, modulo 2^64 */
    struct list link; /* in the session */
    uint32_t next_free;
};

/* Carries out a command of the mailbox (a private copy of it); sets status and key. */
void mr_command(struct session *session, struct sluice_command *command);

void mr_free(struct sluice_engine *engine, struct mr *mr);

/*
 * The MR behind a key, where it is of this PD, covers [address, address+length)
 * and grants all of access; else NULL.
 */
static inline const struct mr *mr_find(const struct sluice_engine *engine, uint32_t key, const struct pd *pd,
                                       uint64_t address, uint64_t length, uint32_t access)
{
    const struct mr *mr = &engine->mrs[key >> MR_VARIANT_BITS];

    if (mr->key != key || key == 0 || mr->pd != pd || (mr->access & access) != access ||
        address < mr->iova || length > mr->length || address - mr->iova > mr->length - length)
        return NULL;
    return mr;
}

#endif
