/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Multicast groups of UD QPs (IBTA 10.5), the node's. A group exists while an AH
 * names it or a QP is attached. Who isn't attached sees nothing of it.
 */
#ifndef SLUICE_MULTICAST_H
#define SLUICE_MULTICAST_H

#include "node.h"

enum { GROUP_BUCKETS = 1024 };

struct group {
    uint8_t gid[16];
    uint32_t users;      /* AHs and members */
    struct list members; /* struct member, by link */
    struct list bucket;
};

struct member {
    struct qp *qp;
    struct group *group;
    struct list link;  /* group->members */
    struct list of_qp; /* qp->groups */
};

/* IPv4 224.0.0.0/4, mapped, or IPv6 ff00::/8. */
bool gid_is_multicast(const uint8_t gid[16]);
/* Before any is hashed; once a process. -EIO. */
int gid_hash_seed(void);
uint32_t gid_hash(const uint8_t gid[16]);

/* The group with this GID, with one more user. NULL: no memory. */
struct group *group_get(struct sluice_engine *engine, const uint8_t gid[16]);
/* NULL: there is none. */
struct group *group_find(struct sluice_engine *engine, const uint8_t gid[16]);
void group_put(struct group *group);

/* Attaching twice is attaching once. -EINVAL: not UD, not a multicast GID; -ENOMEM: as many as may be. */
int multicast_attach(struct qp *qp, const uint8_t gid[16]);
/* -EINVAL: it isn't attached. */
int multicast_detach(struct qp *qp, const uint8_t gid[16]);
void multicast_detach_all(struct qp *qp);

#endif
