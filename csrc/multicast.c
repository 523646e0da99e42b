/* SPDX-License-Identifier: Apache-2.0 */
#include "multicast.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "qp.h"

bool gid_is_multicast(const uint8_t gid[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    return gid[0] == 0xff || (memcmp(gid, mapped, sizeof(mapped)) == 0 && gid[12] >> 4 == 0xe);
}

/* Tenants choose GIDs: nobody can choose many for one bucket. */
static uint64_t seeds[2];

int gid_hash_seed(void)
{
    if (seeds[0] || getrandom(seeds, sizeof(seeds), 0) == sizeof(seeds))
        return 0;
    return -EIO;
}

uint32_t gid_hash(const uint8_t gid[16])
{
    uint64_t halves[2];

    memcpy(halves, gid, sizeof(halves));
    unsigned __int128 product = (unsigned __int128)(halves[0] ^ seeds[0]) * (halves[1] ^ seeds[1]);

    return (uint32_t)(product >> 64) ^ (uint32_t)product ^ (uint32_t)(product >> 32);
}

static struct list *bucket_of(struct sluice_engine *engine, const uint8_t gid[16])
{
    return &engine->groups[gid_hash(gid) % GROUP_BUCKETS];
}

struct group *group_find(struct sluice_engine *engine, const uint8_t gid[16])
{
    struct list *bucket = bucket_of(engine, gid);

    for (struct list *link = bucket->next; link != bucket; link = link->next) {
        struct group *group = list_entry(link, struct group, bucket);

        if (memcmp(group->gid, gid, sizeof(group->gid)) == 0)
            return group;
    }
    return NULL;
}

struct group *group_get(struct sluice_engine *engine, const uint8_t gid[16])
{
    struct group *group = group_find(engine, gid);

    if (group) {
        group->users++;
        return group;
    }
    group = calloc(1, sizeof(*group));
    if (!group)
        return NULL;
    memcpy(group->gid, gid, sizeof(group->gid));
    group->users = 1;
    list_init(&group->members);
    list_init(&group->bucket);
    list_append(bucket_of(engine, gid), &group->bucket);
    return group;
}

void group_put(struct group *group)
{
    if (--group->users)
        return;
    list_remove(&group->bucket);
    free(group);
}

static struct member *find_member(struct qp *qp, const uint8_t gid[16])
{
    for (struct list *link = qp->groups.next; link != &qp->groups; link = link->next) {
        struct member *member = list_entry(link, struct member, of_qp);

        if (memcmp(member->group->gid, gid, 16) == 0)
            return member;
    }
    return NULL;
}

static uint32_t members_of(const struct group *group, const struct tenant *tenant)
{
    uint32_t count = 0;

    for (struct list *link = group->members.next; link != &group->members; link = link->next)
        count += list_entry(link, struct member, link)->qp->tenant == tenant;
    return count;
}

int multicast_attach(struct qp *qp, const uint8_t gid[16])
{
    if (qp->type != IBV_QPT_UD || !gid_is_multicast(gid))
        return -EINVAL;
    if (find_member(qp, gid))
        return 0;
    if (qp->tenant->memberships == SLUICE_TENANT_GROUPS)
        return -ENOMEM;
    struct member *member = calloc(1, sizeof(*member));
    struct group *group = member ? group_get(qp->session->engine, gid) : NULL;

    /* Each tenant has a share of its own: nobody fills a group for the others. */
    if (!group || members_of(group, qp->tenant) == SLUICE_GROUP_QPS) {
        if (group)
            group_put(group);
        free(member);
        return -ENOMEM;
    }
    member->qp = qp;
    member->group = group;
    list_init(&member->link);
    list_append(&group->members, &member->link);
    list_init(&member->of_qp);
    list_append(&qp->groups, &member->of_qp);
    qp->group_count++;
    qp->tenant->memberships++;
    return 0;
}

static void detach(struct member *member)
{
    member->qp->group_count--;
    member->qp->tenant->memberships--;
    list_remove(&member->link);
    list_remove(&member->of_qp);
    group_put(member->group);
    free(member);
}

int multicast_detach(struct qp *qp, const uint8_t gid[16])
{
    struct member *member = find_member(qp, gid);

    if (!member)
        return -EINVAL;
    detach(member);
    return 0;
}

void multicast_detach_all(struct qp *qp)
{
    while (!list_empty(&qp->groups))
        detach(list_entry(qp->groups.next, struct member, of_qp));
}
