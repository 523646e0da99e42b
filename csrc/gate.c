/* SPDX-License-Identifier: Apache-2.0 */
#include "gate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "multicast.h"
#include "qp.h"
#include "transport/trunk.h"

/* More senders than that at a time, and all are forgotten. */
enum { SENDERS = 4096, BUCKETS = 1024 };

struct sender {
    uint8_t gid[16];
    int32_t trunk; /* by which its datagrams come; -1: it is of this node */
    struct list bucket;
    struct answers answers;
};

struct gate {
    struct list buckets[BUCKETS];
    struct list waiting;
    uint32_t senders;
    bool asked; /* one question at a time, whoever waits */
};

static struct list *bucket_of(struct gate *gate, const uint8_t gid[16])
{
    return &gate->buckets[gid_hash(gid) % BUCKETS];
}

static struct sender *find(struct gate *gate, const uint8_t gid[16], int32_t trunk)
{
    struct list *bucket = bucket_of(gate, gid);

    for (struct list *link = bucket->next; link != bucket; link = link->next) {
        struct sender *sender = list_entry(link, struct sender, bucket);

        if (sender->trunk == trunk && memcmp(sender->gid, gid, sizeof(sender->gid)) == 0)
            return sender;
    }
    return NULL;
}

static void drop(struct gate *gate, struct sender *sender)
{
    list_remove(&sender->bucket);
    gate->senders--;
    free(sender);
}

static void drop_all(struct gate *gate)
{
    for (uint32_t i = 0; i < BUCKETS; i++)
        while (!list_empty(&gate->buckets[i]))
            drop(gate, list_entry(gate->buckets[i].next, struct sender, bucket));
}

struct sender *gate_find(struct sluice_engine *engine, const uint8_t gid[16], int32_t trunk)
{
    struct gate *gate = engine->gate;
    struct sender *sender = gate ? find(gate, gid, trunk) : NULL;

    if (!gate || sender)
        return sender;
    if (gate->senders == SENDERS)
        drop_all(gate);
    sender = calloc(1, sizeof(*sender));
    if (!sender)
        return NULL;
    memcpy(sender->gid, gid, sizeof(sender->gid));
    sender->trunk = trunk;
    list_init(&sender->bucket);
    list_append(bucket_of(gate, gid), &sender->bucket);
    gate->senders++;
    return sender;
}

enum answer gate_answer(struct sluice_engine *engine, const struct sender *sender, const struct tenant *tenant)
{
    struct gate *gate = engine->gate;

    if (!gate)
        return ANSWER_YES;
    if (!sender)
        return ANSWER_NO;
    enum answer answer = answers_get(&sender->answers, tenant->first->number);

    if (answer == ANSWER_UNKNOWN && !gate->asked) {
        gate->asked = true;
        engine_ask_member(engine, sender->gid, sender->trunk, tenant->first->number);
    }
    return answer;
}

struct list *gate_line(struct sluice_engine *engine)
{
    return &engine->gate->waiting;
}

int gate_close(struct sluice_engine *engine)
{
    if (engine->gate)
        return 0;
    struct gate *gate = calloc(1, sizeof(*gate));

    if (!gate)
        return -ENOMEM;
    for (uint32_t i = 0; i < BUCKETS; i++)
        list_init(&gate->buckets[i]);
    list_init(&gate->waiting);
    engine->gate = gate;
    return 0;
}

/* Whoever waits looks again, and asks its own question. */
static void let_all_go(struct sluice_engine *engine)
{
    struct list woken;

    engine->gate->asked = false;
    list_init(&woken);
    list_splice(&woken, &engine->gate->waiting);
    while (!list_empty(&woken))
        qp_activate(list_entry(list_take(&woken), struct qp, link));
    trunks_look_again(engine);
}

int gate_admit(struct sluice_engine *engine, const uint8_t gid[16], int32_t trunk, uint32_t tenant, bool admitted)
{
    if (!engine->gate || tenant >= SLUICE_MAX_TENANTS)
        return -EINVAL;
    struct sender *sender = gate_find(engine, gid, trunk);

    if (sender)
        answers_put(&sender->answers, tenant, admitted);
    let_all_go(engine);
    return sender ? 0 : -ENOMEM;
}

void gate_forget(struct sluice_engine *engine, const uint8_t gid[16])
{
    if (!engine->gate)
        return;
    if (!gid) {
        drop_all(engine->gate);
        return;
    }
    struct list *bucket = bucket_of(engine->gate, gid);

    /* Whoever named it. */
    for (struct list *link = bucket->next, *next; link != bucket; link = next) {
        struct sender *sender = list_entry(link, struct sender, bucket);

        next = link->next;
        if (memcmp(sender->gid, gid, sizeof(sender->gid)) == 0)
            drop(engine->gate, sender);
    }
}

void gate_forget_tenant(struct sluice_engine *engine, uint32_t number)
{
    for (uint32_t i = 0; engine->gate && i < BUCKETS; i++) {
        struct list *bucket = &engine->gate->buckets[i];

        for (struct list *link = bucket->next; link != bucket; link = link->next)
            answers_forget(&list_entry(link, struct sender, bucket)->answers, number);
    }
}

void gate_free(struct sluice_engine *engine)
{
    if (engine->gate)
        drop_all(engine->gate);
    free(engine->gate);
    engine->gate = NULL;
}
