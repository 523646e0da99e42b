/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ah.h"
#include "atomic.h"
#include "context.h"
#include "ending.h"
#include "fence.h"
#include "futex.h"
#include "holdings.h"
#include "memory.h"
#include "mr.h"
#include "multicast.h"
#include "nic.h"
#include "qp.h"
#include "srq.h"
#include "xrc.h"
#include "tenant.h"
#include "worker.h"

static int take_number(struct sluice_engine *engine, struct session *session)
{
    for (uint32_t number = 0; number < SLUICE_MAX_SESSIONS; number++) {
        if (engine->sessions[number])
            continue;
        engine->sessions[number] = session;
        session->number = number;
        session->live = engine->live_count;
        engine->live[engine->live_count++] = session;
        return 0;
    }
    return -EAGAIN;
}

static void free_memory(struct session *session)
{
    segment_close(&session->segment, session->tenant->number);
    arena_close(&session->arena.view);
    free(session->qps);
    free(session->srqs);
    free(session->ahs);
    free(session->cqs);
    free(session);
}

static uint32_t carry_out(struct chore *chore, uint32_t bytes);
static uint32_t clean(struct chore *chore, uint32_t bytes);

int session_open(struct tenant *tenant, struct sluice_session_files *files)
{
    if (!tenant_take_files(tenant, FILES_OF_SESSION))
        return -EMFILE;
    struct session *session = calloc(1, sizeof(*session));
    int error = -ENOMEM;

    if (!session) {
        tenant_give_files(tenant, FILES_OF_SESSION);
        return -ENOMEM;
    }
    session->engine = tenant->engine;
    session->tenant = tenant;
    session->moved = tenant->counters->tx_bytes + tenant->counters->rx_bytes;
    session->segment.fd = session->arena.view.fd = -1;
    session->next_handle = (uint32_t)(engine_random(tenant->engine) >> 34) + 1;
    session->qp_hint = (uint32_t)(engine_random(tenant->engine) >> 34) % SLUICE_SESSION_QPS;
    session->srq_hint = (uint32_t)(engine_random(tenant->engine) >> 34) % SLUICE_SESSION_SRQS;
    session->cq_hint = (uint32_t)(engine_random(tenant->engine) >> 34) % SLUICE_SESSION_CQS;
    session->ah_hint = (uint32_t)(engine_random(tenant->engine) >> 34) % SLUICE_SESSION_AHS;
    session->arena.session = session;
    session->arena.writable = true;
    session->arena.view.tenant = tenant;
    list_init(&session->contexts);
    list_init(&session->pds);
    list_init(&session->channels);
    list_init(&session->mrs);
    list_init(&session->mws);
    list_init(&session->memories);
    list_init(&session->xrcds);
    session->command.run = carry_out;
    list_init(&session->command.link);
    session->cleaning.run = clean;
    list_init(&session->cleaning.link);
    ending_init(session);
    session->qps = calloc(SLUICE_SESSION_QPS, sizeof(*session->qps));
    session->srqs = calloc(SLUICE_SESSION_SRQS, sizeof(struct srq *));
    session->ahs = calloc(SLUICE_SESSION_AHS, sizeof(struct ah *));
    session->cqs = calloc(SLUICE_SESSION_CQS, sizeof(struct cq *));
    if (!session->qps || !session->srqs || !session->ahs || !session->cqs || (error = segment_open(&session->segment)) ||
        (error = arena_open(&session->arena.view)))
        goto fail;

    files->engine_page = tenant->engine->page_fd;
    files->segment = fcntl(session->segment.fd, F_DUPFD_CLOEXEC, 3);
    files->arena = fcntl(session->arena.view.fd, F_DUPFD_CLOEXEC, 3);
    if (files->segment < 0 || files->arena < 0) {
        error = -errno;
        goto fail_files;
    }
    error = take_number(tenant->engine, session);
    if (error)
        goto fail_files;
    tenant->session_count++;
    tenant->counters->sessions++;
    return (int)session->number;

fail_files:
    if (files->segment >= 0)
        close(files->segment);
    if (files->arena >= 0)
        close(files->arena);
fail:
    free_memory(session);
    tenant_give_files(tenant, FILES_OF_SESSION);
    return error;
}

void session_free(struct session *session)
{
    struct sluice_engine *engine = session->engine;

    fence_forget(engine, session->fence);
    engine->sessions[session->number] = NULL;
    engine->live[session->live] = engine->live[--engine->live_count];
    engine->live[session->live]->live = session->live;
    tenant_give_files(session->tenant, FILES_OF_SESSION);
    session->tenant->session_count--;
    session->tenant->ending_sessions--;
    session->tenant->counters->sessions--;
    free_memory(session);
}

/* ---- its segment ------------------------------------------------------- */

void session_goes_on(struct session *session)
{
    if (!session->awaited)
        return;
    session->awaited = false;
    engine_tell_verb(session);
}

int64_t session_take_part(struct session *session, uint64_t size)
{
    int64_t offset = segment_take(&session->segment, size);

    if (offset == -ENOMEM && !list_unlinked(&session->cleaning.link)) {
        session->awaited = true;
        return -EINPROGRESS;
    }
    return offset;
}

void session_give_part(struct session *session, uint64_t offset, uint64_t size)
{
    if (!session->segment.ending && !segment_give(&session->segment, offset, size))
        tenant_add_task(session->tenant, &session->cleaning);
}

static uint32_t clean(struct chore *chore, uint32_t bytes)
{
    struct session *session = list_entry(chore, struct session, cleaning);

    (void)bytes;
    if (segment_clean(&session->segment))
        tenant_add_task(session->tenant, chore);
    else
        session_goes_on(session);
    return 0;
}

/* ---- the doorbell ------------------------------------------------------ */

bool session_rung(const struct session *session)
{
    const struct sluice_segment *head = segment_head(&session->segment);

    if (session->broken)
        return false;
    return load_relaxed(&head->summary[0]) | load_relaxed(&head->summary[1]) | load_relaxed(&head->summary[2]) |
           load_relaxed(&head->summary[3]) | load_relaxed(&head->srq_summary) | load_relaxed(&head->command_rung);
}

void session_ring_again(struct session *session, uint32_t qp)
{
    struct sluice_segment *head = segment_head(&session->segment);
    uint32_t word = qp / 64;

    __atomic_fetch_or(&head->words[word], 1ull << (qp % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&head->summary[word / 64], 1ull << (word % 64), __ATOMIC_SEQ_CST);
    worker_wake(session->engine->page);
}

void session_answer(struct session *session, const struct sluice_command *command)
{
    struct sluice_command *mailbox = &segment_head(&session->segment)->command;

    mailbox->key = command->key;
    mailbox->status = command->status;
    /* Full order: either the shim, about to sleep, sees DONE, or we see that it sleeps. */
    exchange(&mailbox->state, (uint32_t)SLUICE_COMMAND_DONE);
    full_fence();
    if (load_relaxed(&mailbox->sleeping))
        futex_wake(&mailbox->state);
}

static void answer_fenced(void *owner)
{
    struct session *session = owner;

    session->fence = NULL;
    session_answer(session, &session->fenced);
}

void session_answer_fenced(struct session *session, const struct sluice_command *command)
{
    session->fenced = *command;
    session->fence = fence_send(session->engine, session->reach, answer_fenced, session);
    if (!session->fence)
        session_answer(session, command);
}

static void answer_command(struct session *session)
{
    struct sluice_command *mailbox = &segment_head(&session->segment)->command;
    struct sluice_command command;

    /* Who posts another before the one is answered is no shim of ours. */
    if (load_acquire(&mailbox->state) != SLUICE_COMMAND_POSTED || session->registration || session->fence)
        return;
    copy_once(&command, mailbox, sizeof(command));
    enum answered answered = mr_command(session, &command);

    session->engine->commanded = session->engine->now;
    if (answered == ANSWERED)
        session_answer(session, &command);
    else if (answered == ANSWERED_FENCED)
        session_answer_fenced(session, &command);
}

static uint32_t carry_out(struct chore *chore, uint32_t bytes)
{
    (void)bytes;
    answer_command(list_entry(chore, struct session, command));
    return 1;
}

void session_queue_command(struct session *session)
{
    tenant_add_task(session->tenant, &session->command);
}

/* QPs that ring at once, and what it takes to look at more of them, each in a cache line of its own. */
enum { RUNG_FREE = 8, RUNG_NS = 50 };

static void poll_srqs(struct session *session)
{
    struct sluice_segment *head = segment_head(&session->segment);
    uint64_t summary = exchange(&head->srq_summary, 0);

    for (; summary; summary &= summary - 1) {
        uint32_t word = (uint32_t)__builtin_ctzll(summary);
        uint64_t bits = exchange(&head->srq_words[word], 0);

        for (; bits; bits &= bits - 1) {
            struct srq *srq = session->srqs[word * 64 + (uint32_t)__builtin_ctzll(bits)];

            if (srq)
                srq_ring(srq);
        }
    }
}

void session_poll(struct session *session)
{
    struct sluice_segment *head = segment_head(&session->segment);
    uint32_t rung = 0;

    /* The tenant's turn comes for it: a storm of commands is no faster than one's share of the engine. */
    if (load_relaxed(&head->command_rung) && exchange(&head->command_rung, 0) && list_unlinked(&session->command.link))
        session_queue_command(session);
    if (load_relaxed(&head->srq_summary))
        poll_srqs(session);
    for (uint32_t i = 0; i < SLUICE_DOORBELL_SUMMARY; i++) {
        uint64_t summary = load_relaxed(&head->summary[i]) ? exchange(&head->summary[i], 0) : 0;

        for (; summary; summary &= summary - 1) {
            uint32_t word = i * 64 + (uint32_t)__builtin_ctzll(summary);
            uint64_t bits = exchange(&head->words[word], 0);

            rung += (uint32_t)__builtin_popcountll(bits);
            for (; bits; bits &= bits - 1) {
                struct qp *qp = session->qps[word * 64 + (uint32_t)__builtin_ctzll(bits)];

                if (qp)
                    qp_ring(qp);
                if (session->broken)
                    return;
            }
        }
    }
    /* Who rings for many, whether they have anything or not, is looked at at his own expense. */
    if (rung > RUNG_FREE)
        tenant_charge_time(session->tenant, (uint64_t)rung * RUNG_NS);
}

/* ---- the end of a session that misbehaves ------------------------------ */

static void tell(struct sluice_engine *engine, const struct sluice_engine_event *event)
{
    if (engine->events.count == ENGINE_EVENTS)
        return; /* can't be */
    engine->events.ring[(engine->events.head + engine->events.count++) % ENGINE_EVENTS] = *event;
    if (eventfd_write(engine->events.fd, 1))
        return; /* only where it is readable already */
}

void session_break(struct session *session, const char *reason)
{
    struct sluice_engine *engine = session->engine;

    if (session->broken)
        return;
    session->broken = true;
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++)
        if (session->qps[handle] && session->qps[handle]->session == session)
            qp_error(session->qps[handle]);
    struct sluice_engine_event event = {.kind = SLUICE_EVENT_SESSION_BROKEN, .session = session->number};

    snprintf(event.reason, sizeof(event.reason), "%s", reason);
    tell(engine, &event);
}

void engine_tell_qp(struct qp *qp, uint32_t kind)
{
    struct sluice_engine_event event = {.kind = kind, .session = qp->session->number, .qp = qp->handle};

    if (!qp->session->broken)
        tell(qp->session->engine, &event);
}

void engine_tell_verb(struct session *session)
{
    struct sluice_engine_event event = {.kind = SLUICE_EVENT_VERB, .session = session->number};

    if (!session->broken)
        tell(session->engine, &event);
}

void engine_tell_ah(struct ah *ah)
{
    struct session *session = ah->pd->session;
    struct sluice_engine_event event = {
        .kind = SLUICE_EVENT_AH_UNRESOLVED, .session = session->number, .ah = ah->handle};

    memcpy(event.gid, ah->attr.dgid, sizeof(event.gid));
    session->asking = true;
    tell(session->engine, &event);
}

void engine_tell_trunk(struct sluice_engine *engine, uint32_t number)
{
    struct sluice_engine_event event = {.kind = SLUICE_EVENT_TRUNK_DISCONNECTED, .trunk = number};

    tell(engine, &event);
}

void engine_ask_neighbour(struct sluice_engine *engine, uint32_t from, uint32_t to)
{
    struct sluice_engine_event event = {.kind = SLUICE_EVENT_NEIGHBOUR, .tenant = from, .peer = to};

    tell(engine, &event);
}

void engine_ask_member(struct sluice_engine *engine, const uint8_t sender[16], int32_t trunk, uint32_t tenant)
{
    struct sluice_engine_event event = {.kind = SLUICE_EVENT_MEMBER, .tenant = tenant, .trunk = (uint32_t)trunk};

    memcpy(event.gid, sender, sizeof(event.gid));
    tell(engine, &event);
}

/* ---- protection domains and completion channels ------------------------ */

int pd_alloc(struct session *session, uint32_t context)
{
    struct context *of = context_find(session, context);

    if (!of)
        return -EINVAL;
    if (session->pd_count == SLUICE_SESSION_PDS || !holding_take(of->tenant, HOLDING_PDS))
        return -ENOMEM;
    struct pd *pd = calloc(1, sizeof(*pd));

    if (!pd) {
        holding_give(of->tenant, HOLDING_PDS);
        return -ENOMEM;
    }
    pd->session = session;
    pd->context = of;
    int error = nic_alloc_pd(pd);

    if (error) {
        holding_give(of->tenant, HOLDING_PDS);
        free(pd);
        return error;
    }
    pd->handle = session->next_handle++;
    list_init(&pd->link);
    list_append(&session->pds, &pd->link);
    session->pd_count++;
    return (int)pd->handle;
}

struct pd *pd_find(struct session *session, uint32_t handle)
{
    for (struct list *link = session->pds.next; link != &session->pds; link = link->next)
        if (list_entry(link, struct pd, link)->handle == handle)
            return list_entry(link, struct pd, link);
    return NULL;
}

int pd_free(struct pd *pd)
{
    if (pd->users)
        return -EBUSY;
    nic_dealloc_pd(pd);
    list_remove(&pd->link);
    pd->session->pd_count--;
    holding_give(pd->context->tenant, HOLDING_PDS);
    free(pd);
    return 0;
}

int pd_dealloc(struct session *session, uint32_t handle)
{
    struct pd *pd = pd_find(session, handle);

    return pd ? pd_free(pd) : -EINVAL;
}

/* Its CQs that found none are looked at again, as if they had got CQEs just now. */
static void channel_has_room(struct event_channel *events)
{
    struct channel *channel = list_entry(events, struct channel, events);

    list_splice(&events->engine->notify, &channel->late);
}

int channel_create(struct session *session, int *read_fd)
{
    if (!tenant_take_files(session->tenant, 1))
        return -EMFILE;
    struct channel *channel = calloc(1, sizeof(*channel));
    int error = channel ? event_channel_open(&channel->events, session->engine, channel_has_room, read_fd) : -ENOMEM;

    if (error) {
        tenant_give_files(session->tenant, 1);
        free(channel);
        return error;
    }
    channel->handle = session->next_handle++;
    list_init(&channel->late);
    list_init(&channel->link);
    list_append(&session->channels, &channel->link);
    return (int)channel->handle;
}

int channel_destroy(struct session *session, uint32_t handle)
{
    for (struct list *link = session->channels.next; link != &session->channels; link = link->next) {
        struct channel *channel = list_entry(link, struct channel, link);

        if (channel->handle != handle)
            continue;
        if (channel->users)
            return -EBUSY;
        list_remove(&channel->link);
        event_channel_close(&channel->events);
        tenant_give_files(session->tenant, 1);
        free(channel);
        return 0;
    }
    return -EINVAL;
}
