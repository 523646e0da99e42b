/* SPDX-License-Identifier: Apache-2.0 */
#include "inflow.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "../clock.h"
#include "../tenant.h"
#include "trunk.h"

/* Who is owed something and hears nothing takes the trunk for dead after 3 s (trunk.c). */
#define SIGN_OF_LIFE_NS NS_PER_SECOND

static void on_timer(struct timer *timer);

void inflows_init(struct inflows *inflows)
{
    list_init(&inflows->granting);
    list_init(&inflows->lost);
    inflows->timer.fire = on_timer;
}

/* ---- what the sender is told --------------------------------------------- */

/* Of what it owes. */
static void grant(struct inflow *inflow, uint32_t bytes)
{
    struct inflows *inflows = &inflow->trunk->inflows;

    inflow->owed -= bytes;
    inflow->granted += bytes;
    if (inflow->owed == 0)
        inflows->owing--;
    if (inflow->owed && inflow->granted < INFLOW_GRANT_LEAST)
        return;
    if (list_unlinked(&inflow->granting))
        list_append(&inflows->granting, &inflow->granting);
    net_wake(inflow->trunk->engine->net, &inflow->trunk->in);
}

static void fill(struct inflows *inflows)
{
    uint32_t count = 0;

    while (count < sizeof(inflows->frames) / sizeof(*inflows->frames) && !list_empty(&inflows->granting)) {
        struct inflow *inflow = list_entry(list_take(&inflows->granting), struct inflow, granting);

        inflows->frames[count++] = (struct grant_frame){inflow->id, inflow->granted};
        inflow->granted = 0;
    }
    inflows->start = 0;
    inflows->end = count * (uint32_t)sizeof(*inflows->frames);
}

void inflows_write(struct trunk *trunk)
{
    struct inflows *inflows = &trunk->inflows;
    struct net_socket *socket = &trunk->in;

    while (socket->writable) {
        if (inflows->start == inflows->end)
            fill(inflows);
        if (inflows->start == inflows->end)
            return;
        ssize_t result = send(socket->fd, (uint8_t *)inflows->frames + inflows->start, inflows->end - inflows->start,
                              MSG_DONTWAIT | MSG_NOSIGNAL);

        if (result < 0) {
            socket->writable = errno == EINTR;
            continue;
        }
        inflows->start += (uint32_t)result;
        inflows->said = trunk->engine->now;
    }
}

/* ---- what is owed in nobody's turns ---------------------------------------- */

static void watch(struct trunk *trunk)
{
    struct inflows *inflows = &trunk->inflows;
    uint64_t when = trunk->engine->now + (list_empty(&inflows->lost) ? SIGN_OF_LIFE_NS : INFLOW_LOST_NS);

    if (inflows->owing && (!inflows->timer.place || inflows->timer.when > when))
        timer_set(&trunk->engine->timers, &inflows->timer, when);
}

static void give_back_lost(struct inflows *inflows)
{
    for (uint32_t left = INFLOW_LOST; left && !list_empty(&inflows->lost);) {
        struct inflow *inflow = list_entry(list_take(&inflows->lost), struct inflow, lost);
        uint32_t bytes = inflow->owed < left ? inflow->owed : left;

        left -= bytes;
        grant(inflow, bytes);
        if (inflow->owed)
            list_append(&inflows->lost, &inflow->lost);
    }
}

static void on_timer(struct timer *timer)
{
    struct trunk *trunk = list_entry(timer, struct trunk, inflows.timer);
    struct inflows *inflows = &trunk->inflows;

    give_back_lost(inflows);
    if (inflows->owing && inflows->start == inflows->end && list_empty(&inflows->granting) &&
        trunk->engine->now - inflows->said >= SIGN_OF_LIFE_NS) {
        inflows->frames[0] = (struct grant_frame){0, 0};
        inflows->start = 0;
        inflows->end = sizeof(*inflows->frames);
        net_wake(trunk->engine->net, &trunk->in);
    }
    watch(trunk);
}

/* ---- what came -------------------------------------------------------------- */

static void owe(struct inflow *inflow, uint32_t bytes)
{
    if (inflow->owed == 0)
        inflow->trunk->inflows.owing++;
    inflow->owed += bytes;
}

static uint32_t give_back(struct chore *chore, uint32_t bytes)
{
    struct inflow *inflow = list_entry(chore, struct inflow, chore);
    struct tenant *tenant = inflow->tenant;

    if (bytes > inflow->owed)
        bytes = inflow->owed;
    tenant_charge_time(tenant, inflow->ns);
    inflow->ns = 0;
    grant(inflow, bytes);
    if (inflow->owed)
        tenant_add_chore(tenant, FLOW_INGRESS, chore);
    else
        inflow->tenant = NULL;
    return bytes;
}

/* Who something came for last, where it is still there. */
static struct tenant *last_tenant(const struct inflow *inflow)
{
    struct tenant *tenant = tenant_find(inflow->trunk->engine, inflow->last);

    return tenant && tenant->incarnation == inflow->incarnation ? tenant : NULL;
}

void inflow_came(struct inflow *inflow, uint32_t bytes, struct tenant *tenant)
{
    owe(inflow, bytes);
    if (tenant) {
        inflow->last = tenant->number;
        inflow->incarnation = tenant->incarnation;
    } else {
        tenant = last_tenant(inflow);
    }
    /* A tenant that has several devices has the rest of it granted on the one that it began on. */
    if (inflow->tenant) {
        inflow->ns += inflow->trunk->inflows.datagram_ns;
    } else if (tenant) {
        list_remove(&inflow->lost);
        inflow->tenant = tenant;
        inflow->ns = inflow->trunk->inflows.datagram_ns;
        tenant_add_chore(tenant, FLOW_INGRESS, &inflow->chore);
    } else if (list_unlinked(&inflow->lost)) {
        list_append(&inflow->trunk->inflows.lost, &inflow->lost);
    }
    watch(inflow->trunk);
}

void inflow_paid(struct inflow *inflow, uint32_t bytes)
{
    owe(inflow, bytes);
    grant(inflow, bytes);
}

/* ---- making and ending them -------------------------------------------------- */

struct inflow *inflow_find(struct trunk *trunk, uint32_t id)
{
    uint32_t tenant = id / STREAM_SLOTS, slot = id % STREAM_SLOTS;

    if (tenant >= SLUICE_MAX_TENANTS)
        return NULL;
    struct inflow ***of = &trunk->inflows.of[tenant];

    if (*of && (*of)[slot])
        return (*of)[slot];
    if (!*of && !(*of = calloc(STREAM_SLOTS, sizeof(**of))))
        return NULL;
    struct inflow *inflow = calloc(1, sizeof(*inflow));

    if (!inflow)
        return NULL;
    inflow->trunk = trunk;
    inflow->id = id;
    inflow->last = SLUICE_MAX_TENANTS;
    inflow->chore.run = give_back;
    list_init(&inflow->chore.link);
    list_init(&inflow->granting);
    list_init(&inflow->lost);
    return (*of)[slot] = inflow;
}

static void inflow_free(struct inflow *inflow)
{
    if (inflow->tenant)
        tenant_drop_chore(inflow->tenant, FLOW_INGRESS, &inflow->chore);
    list_remove(&inflow->granting);
    list_remove(&inflow->lost);
    free(inflow);
}

void inflows_end(struct trunk *trunk)
{
    struct inflows *inflows = &trunk->inflows;

    for (uint32_t tenant = 0; tenant < SLUICE_MAX_TENANTS; tenant++) {
        if (!inflows->of[tenant])
            continue;
        for (uint32_t slot = 0; slot < STREAM_SLOTS; slot++)
            if (inflows->of[tenant][slot])
                inflow_free(inflows->of[tenant][slot]);
        free(inflows->of[tenant]);
        inflows->of[tenant] = NULL;
    }
    inflows->owing = inflows->start = inflows->end = 0;
    timer_cancel(&trunk->engine->timers, &inflows->timer);
}

void inflows_forget(struct tenant *tenant)
{
    struct list *chores = &tenant->chores[FLOW_INGRESS];

    /* Its QPs are gone, and with them all other chores. */
    while (!list_empty(chores)) {
        struct inflow *inflow = list_entry(list_take(chores), struct inflow, chore.link);

        inflow->tenant = NULL;
        list_append(&inflow->trunk->inflows.lost, &inflow->lost);
        watch(inflow->trunk);
    }
}
