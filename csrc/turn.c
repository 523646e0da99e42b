/* SPDX-License-Identifier: Apache-2.0 */
#include "turn.h"

#include <infiniband/verbs.h>

#include "account.h"
#include "ah.h"
#include "clock.h"
#include "device.h"
#include "qp.h"
#include "session.h"
#include "tenant.h"
#include "transport/transport.h"

/* How long a turn should last where others wait, and its bounds where the cost is not known well. */
enum { TURN_NS = 5000, MESSAGES_SHARED = 64, MESSAGES_ALONE = 256, BYTES_LEAST = 4096, MEASURED_BYTES = 512, CACHE_LINE = 64 };

enum flow turn_flow(const struct qp *qp)
{
    const struct tenant *tenant = qp->tenant;

    if (tenant->shape.wire_only && qp->transport == &transport_local)
        return FLOW_FREE;
    return tenant->told_apart && qp_reads(qp) ? FLOW_INGRESS : FLOW_EGRESS;
}

struct tenant *turn_destination(const struct qp *qp)
{
    if (qp->peer)
        return qp->peer->tenant;
    if (qp->type != IBV_QPT_UD)
        return NULL;
    const struct ah *ah = ah_find(qp->session, qp->message.wqe->ah);
    struct tenant *tenant = ah && !ah->group ? ah_tenant(qp->session->engine, ah) : NULL;

    if (!tenant || tenant->others == 0)
        return tenant;
    /* Which of its devices the QP is on. */
    const struct qp *to = qp_lookup(qp->session->engine, qp->message.wqe->remote_qpn);

    return to && to->tenant->first == tenant ? to->tenant : tenant;
}

static void charge_peer(struct allowance *allowance)
{
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        if (allowance->peer_moved[direction] && allowance->peer->limited[direction] && !allowance->peer->shape.wire_only)
            account_charge(&allowance->peer->account, direction, allowance->peer_moved[direction], allowance->more);
        allowance->peer_moved[direction] = 0;
        allowance->admitted[direction] = false;
    }
}

bool turn_admits(struct allowance *allowance, struct qp *qp, uint32_t direction)
{
    struct tenant *peer = turn_destination(qp);

    if (peer != allowance->peer) {
        /* Datagrams go to one tenant after the other. */
        if (allowance->peer)
            charge_peer(allowance);
        allowance->peer = peer;
    }
    if (!peer || allowance->admitted[direction])
        return true;
    if (!peer->limited[direction] || peer->shape.wire_only) {
        allowance->admitted[direction] = true;
        return true;
    }
    struct lane *lane = account_lane(&peer->account, direction, &qp->claim);

    if (lane) {
        qp_wait_for_rate(qp);
        tenant_waits(qp->tenant, &qp->claim, lane);
        return false;
    }
    qp->claim.pass = NULL;
    allowance->admitted[direction] = true;
    if (allowance->bytes > allowance->moved + peer->chunk[direction])
        allowance->bytes = allowance->moved + peer->chunk[direction];
    return true;
}

static bool has_chores(const struct tenant *tenant, enum flow flow)
{
    return flow < DIRECTIONS && !list_empty(&tenant->chores[flow]);
}

/* Nobody else has work, and no other QP of the tenant's has any of this kind. */
static bool is_alone(const struct tenant *tenant, enum flow flow)
{
    const struct list *qps = &tenant->active[flow], *chores = flow < DIRECTIONS ? &tenant->chores[flow] : NULL;

    return devices_working(tenant->engine) == entity_working(&tenant->account.entity) && qps->next == qps->prev &&
           (!chores || (chores->next == chores->prev && (list_empty(qps) || list_empty(chores))));
}

static struct allowance allow(const struct tenant *tenant, enum flow flow)
{
    bool alone = is_alone(tenant, flow);
    struct allowance allowance = {.flow = flow, .messages = MESSAGES_ALONE, .bytes = TURN_ALONE};
    const struct bucket *operations = &tenant->account.entity.operations;

    if (!alone) {
        uint32_t messages = TURN_NS / (tenant->message_ns + 1);
        uint32_t bytes = TURN_NS * 1024 / (tenant->kib_ns + 1);

        allowance.messages = messages < 1 ? 1 : messages < MESSAGES_SHARED ? messages : MESSAGES_SHARED;
        allowance.bytes = bytes < BYTES_LEAST ? BYTES_LEAST : bytes < TURN_SHARED ? bytes : TURN_SHARED;
    }
    if (flow < DIRECTIONS && tenant->chunk[flow] < allowance.bytes)
        allowance.bytes = tenant->chunk[flow];
    if (operations->rate && operations->chunk < allowance.messages)
        allowance.messages = operations->chunk;
    return allowance;
}

static void average(uint32_t *average, uint64_t value)
{
    uint64_t bounded = value < 1 << 20 ? value : 1 << 20;

    *average = (uint32_t)((7ull * *average + bounded + 4) / 8);
}

/* What such work costs, for the length of later turns. */
static void learn(struct tenant *tenant, const struct allowance *allowance, uint64_t ns)
{
    if (allowance->tries == 0)
        return;
    if (allowance->moved / allowance->tries < MEASURED_BYTES)
        average(&tenant->message_ns, ns / allowance->tries);
    else
        average(&tenant->kib_ns, ns * 1024 / allowance->moved);
}

/* Of a system call: worth more bytes than a copy's turn has where it isn't alone. */
static uint32_t bytes_of_call(const struct tenant *tenant, const struct allowance *allowance)
{
    uint32_t bytes = allowance->bytes < TURN_SHARED ? TURN_SHARED : allowance->bytes;

    return tenant->chunk[allowance->flow] < bytes ? tenant->chunk[allowance->flow] : bytes;
}

static void send(struct tenant *tenant, struct allowance *allowance)
{
    struct list *active = &tenant->active[allowance->flow];
    struct qp *qp = list_entry(list_take(active), struct qp, link);

    list_append(active, &qp->link);
    /*
     * To ask another node takes as long for any number of bytes, and only so many questions go at once: by their cost
     * they would ask for the least, and that is too little to fill the way.
     */
    if (allowance->flow < DIRECTIONS && qp->transport == &transport_tcp && qp_reads(qp))
        allowance->bytes = bytes_of_call(tenant, allowance);
    qp_send(qp, allowance);
    allowance->more = qp->wait == QP_WAIT_RATE || (qp->wait == QP_WAIT_NOTHING && !list_unlinked(&qp->link));
}

static void attend(struct tenant *tenant, struct allowance *allowance)
{
    struct chore *chore = list_entry(tenant->chores[allowance->flow].next, struct chore, link);

    tenant_drop_chore(tenant, allowance->flow, chore);
    allowance->moved = chore->run(chore, bytes_of_call(tenant, allowance));
}

/* Chores and QPs that send take turns; a tenant that has no operation left now has its chores all the same. */
static bool chore_is_next(struct tenant *tenant, enum flow flow)
{
    if (!has_chores(tenant, flow))
        return false;
    tenant->chore_next[flow] = !tenant->chore_next[flow];
    return tenant->chore_next[flow] || list_empty(&tenant->active[flow]) ||
           !bucket_ready(&tenant->account.entity.operations, tenant->engine->now);
}

/* Of a thousand tenants none is in a cache near the core when its turn comes: asked for a turn ahead, it is. */
static void fetch(const void *object, size_t size)
{
    for (size_t offset = 0; offset < size; offset += CACHE_LINE)
        __builtin_prefetch((const char *)object + offset);
}

static void fetch_tenant(const struct turn *turn)
{
    struct entity *entity = shaper_guess(turn);

    if (entity)
        fetch(list_entry(entity, struct tenant, account.entity), sizeof(struct tenant));
}

/* Later, as it is found in the tenant. */
static void fetch_qp(const struct turn *turn)
{
    struct entity *entity = shaper_guess(turn);
    const struct list *active = entity ? &list_entry(entity, struct tenant, account.entity)->active[turn->flow] : NULL;

    if (active && turn->flow != FLOW_CONTROL && !list_empty(active))
        fetch(list_entry(active->next, struct qp, link), sizeof(struct qp));
}

static void command(struct tenant *tenant, struct allowance *allowance)
{
    struct chore *chore = list_entry(list_take(&tenant->active[FLOW_CONTROL]), struct chore, link);

    allowance->operations = chore->run(chore, 0);
    tenant->counters->verbs += allowance->operations;
}

bool turn_take(struct sluice_engine *engine)
{
    struct turn turn;

    while (devices_next(engine, &turn)) {
        struct tenant *tenant = list_entry(turn.leaf, struct tenant, account.entity);
        struct list *active = &tenant->active[turn.flow];

        if (list_empty(active) && !has_chores(tenant, turn.flow)) {
            /* What it had was flushed, destroyed or stopped meanwhile. */
            entity_set_work(turn.leaf, turn.flow, false);
            continue;
        }
        uint64_t start = engine->now;
        struct allowance allowance = allow(tenant, turn.flow);

        fetch_tenant(&turn);
        if (turn.flow == FLOW_CONTROL)
            command(tenant, &allowance);
        else if (chore_is_next(tenant, turn.flow))
            attend(tenant, &allowance);
        else
            send(tenant, &allowance);
        fetch_qp(&turn);
        engine->now = clock_now();
        uint64_t ns = engine->now - start;

        tenant->counters->engine_ns += ns;
        learn(tenant, &allowance, ns);
        if (list_empty(active) && !has_chores(tenant, turn.flow))
            entity_set_work(turn.leaf, turn.flow, false);
        shaper_charge(turn.leaf->shaper, &turn, allowance.moved, allowance.operations, ns, engine->now);
        device_charge(tenant->account.device, &turn, ns);
        if (allowance.peer)
            charge_peer(&allowance);
        return true;
    }
    return false;
}
