/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory regions, and the table of keys that they share with memory windows
 * (mw.h). A key is an entry of the table (20 bits), a random number (4 bits) and
 * a tag (8 bits):
 *
 *   a region's tag is random, so that neither an old key nor a guessed one opens
 *   memory: of 4,096 keys of an entry one is right, and no region has the key of
 *   the one before it
 *   a window's tag is what a bind says (ibv_inc_rkey); the rest stays, as the
 *   specification has it for 24 bits of index
 *
 * Where the node has an RDMA NIC, what has a twin there has the NIC's key (nic.h): an index
 * of 24 bits and a tag of 8, found by a table of its own.
 *
 * Keys are the node's, not a session's, so that another tenant's never fits.
 */
#ifndef SLUICE_MR_H
#define SLUICE_MR_H

#include "node.h"

enum { MR_MAX = 1 << 20, MR_VARIANT_BITS = 12, MR_TAG = 0xff };

/*
 * Not of enum ibv_access_flags: may be used with an lkey (regions have it, windows
 * don't); lies in a process, not in a file (SLUICE_MEMORY_PROCESS).
 */
enum { MR_LOCAL = 1 << 30, MR_BY_PROCESS = 1 << 29 };

enum mr_kind { MR_REGION, MR_WINDOW_TYPE_1, MR_WINDOW_TYPE_2 };

struct mr {
    /* What each message reads: one cache line. */
    uint32_t key;    /* 0: free */
    uint32_t access; /* enum ibv_access_flags, MR_LOCAL, MR_BY_PROCESS */
    struct pd *pd;
    uint64_t iova; /* as WRs name it */
    uint64_t length;
    uint64_t offset; /* address = iova + offset, modulo 2^64 */
    struct memory *memory; /* in which address is */
    const struct qp *qp;   /* bound window of type 2: who may use it; else NULL */
    uint32_t next_free;
    uint8_t kind;    /* enum mr_kind */
    bool zero_based;

    struct mr *region;   /* window: what it is bound to, or NULL */
    uint32_t windows;    /* region: how many are */
    uint32_t last_key;   /* of the entry, before it was freed */
    struct ibv_mr *nic;  /* region: its twin, whose key it has; NULL: none */
    struct ibv_mw *nic_window; /* window: the same */
    struct list link;    /* in the session */
    struct list qp_link; /* window of type 2: in its QP while bound */
} __attribute__((aligned(64)));

/* How a command's answer comes. */
enum answered {
    ANSWERED,        /* it is there */
    ANSWERED_LATER,  /* by itself, later */
    ANSWERED_FENCED, /* it is there, and given by session_answer_fenced */
};

/* Carries out a command of the mailbox (a private copy of it); sets status and key. */
enum answered mr_command(struct session *session, struct sluice_command *command);

/* A free entry with a fresh key in this PD, or NULL. mr_free gives it back. */
struct mr *mr_take(struct pd *pd, enum mr_kind kind);

/* A region that was placed and granted anew is what it was before. */
void mr_put_back(struct mr *mr, const struct mr *before);
/* It is of this PD now. */
void mr_move(struct mr *mr, struct pd *pd);

/* Also with windows bound to it: only at the end of a session. */
void mr_free(struct sluice_engine *engine, struct mr *mr);

/* The entry that has this key, if any has. nic_keys: of the device that it is meant on (device.h), or NULL. */
static inline struct mr *mr_entry(const struct sluice_engine *engine, const uint32_t *nic_keys, uint32_t key)
{
    if (__builtin_expect(nic_keys != NULL, 0)) {
        struct mr *mr = &engine->mrs[nic_keys[key >> 8]];

        if (mr->key == key)
            return mr;
    }
    return &engine->mrs[key >> MR_VARIANT_BITS];
}

/* The entry that has this key, whatever its tag is, if any has. */
static inline struct mr *mr_entry_but_tag(const struct pd *pd, uint32_t key)
{
    const struct sluice_engine *engine = pd->session->engine;

    if (pd->nic_keys) {
        struct mr *mr = &engine->mrs[pd->nic_keys[key >> 8]];

        if (((mr->key ^ key) & ~(uint32_t)MR_TAG) == 0)
            return mr;
    }
    return &engine->mrs[key >> MR_VARIANT_BITS];
}

/* The region or window that has this key on the PD's device, or NULL. */
static inline struct mr *mr_at(const struct pd *pd, uint32_t key)
{
    struct mr *mr = mr_entry(pd->session->engine, pd->nic_keys, key);

    return key && mr->key == key ? mr : NULL;
}

/*
 * The MR behind a key, where it is of this PD, covers [address, address+length)
 * and grants all of access; else NULL.
 */
static inline const struct mr *mr_find(const struct sluice_engine *engine, uint32_t key, const struct pd *pd,
                                       uint64_t address, uint64_t length, uint32_t access)
{
    const struct mr *mr = mr_entry(engine, pd->nic_keys, key);

    if (mr->key != key || key == 0 || mr->pd != pd || (mr->access & access) != access ||
        address < mr->iova || length > mr->length || address - mr->iova > mr->length - length)
        return NULL;
    return mr;
}

#endif
