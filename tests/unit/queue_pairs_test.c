/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UC, UD, XRC and shared receive queues in the engine, with this program in the
 * shim's place: what is lost without a word, what isn't, and what a hostile tenant
 * may write into each ring.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "engine.h"
#include "futex.h"
#include "node.h"

enum { ENTRIES = 32, MEMORY = 1 << 18, QKEY = 0x1234, GROUP_QPN = 0xffffff };

static struct sluice_engine *engine;
static uint32_t tenants[2];

/* One session with a context, a PD, a CQ and memory. */
struct client {
    uint32_t tenant, session, context, pd, cq, key;
    int events;
    uint8_t *memory;
    struct sluice_segment *segment;
    struct sluice_cq_shared *cq_shared;
    struct sluice_cqe *ring;
    uint32_t polled, entries;
};

struct queue_pair {
    struct client *client;
    uint32_t handle, number;
    struct sluice_qp_shared *shared;
    uint8_t *sq, *rq;
    uint32_t sq_stride, rq_stride;
};

struct receive_queue {
    struct client *client;
    uint32_t handle, number;
    struct sluice_srq_shared *shared;
    uint8_t *ring;
    uint32_t stride;
};

static void wake(void)
{
    full_fence();
    while (load_relaxed(&engine->page->parked) &&
           syscall(SYS_futex, &engine->page->parked, FUTEX_WAKE, 1, NULL, NULL, 0) == 0)
        sched_yield();
}

/* ---- objects ----------------------------------------------------------- */

static uint32_t register_memory(struct client *client)
{
    struct sluice_command *mailbox = &client->segment->command;

    mailbox->op = SLUICE_COMMAND_REG_MR;
    mailbox->pd = client->pd;
    mailbox->access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    mailbox->addr = mailbox->iova = (uintptr_t)client->memory;
    mailbox->length = MEMORY;
    store_release(&mailbox->state, (uint32_t)SLUICE_COMMAND_POSTED);
    exchange(&client->segment->command_rung, 1);
    wake();
    while (load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE)
        sched_yield();
    CHECK(mailbox->status == 0);
    return mailbox->key;
}

static void open_client(struct client *client, uint32_t tenant)
{
    struct sluice_session_files files;
    struct sluice_create_cq_reply cq;

    memset(client, 0, sizeof(*client));
    client->tenant = tenant;
    client->session = (uint32_t)sluice_session_open(engine, tenant, &files);
    client->segment = segment_head(&engine->sessions[client->session]->segment);
    client->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mmap(client->memory, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, files.arena,
               (off_t)(uintptr_t)client->memory) == client->memory);
    client->context = (uint32_t)sluice_context_open(engine, client->session, 0, &client->events);
    client->pd = (uint32_t)sluice_pd_alloc(engine, client->session, client->context);
    struct sluice_create_cq_request request = {.cqe = 8 * ENTRIES, .context = client->context};

    CHECK(sluice_cq_create(engine, client->session, &request, &cq) == 0);
    client->cq = cq.handle;
    client->cq_shared = (struct sluice_cq_shared *)((uint8_t *)client->segment + cq.offset);
    client->ring = (struct sluice_cqe *)((uint8_t *)client->segment + cq.ring);
    client->entries = cq.cqe;
    client->key = register_memory(client);
    close(files.segment);
    close(files.arena);
}

static void close_client(struct client *client)
{
    CHECK(sluice_session_close(engine, client->session) == 0);
    close(client->events);
    munmap(client->memory, MEMORY);
}

/* type: enum ibv_qp_type; srq and xrcd: handles or 0. */
static struct queue_pair make_qp(struct client *client, uint32_t type, uint32_t srq, uint32_t xrcd)
{
    struct sluice_create_qp_request request = {
        .pd = client->pd, .send_cq = client->cq, .recv_cq = client->cq, .qp_type = type, .srq = srq, .xrcd = xrcd,
        .cap = {.max_send_wr = ENTRIES, .max_recv_wr = ENTRIES, .max_send_sge = 2, .max_recv_sge = 2}};
    struct sluice_create_qp_reply reply;

    CHECK(sluice_qp_create(engine, client->session, &request, &reply) == 0);
    return (struct queue_pair){
        .client = client, .handle = reply.handle, .number = reply.qp_num,
        .shared = (struct sluice_qp_shared *)((uint8_t *)client->segment + reply.offset),
        .sq = (uint8_t *)client->segment + reply.sq_offset, .rq = (uint8_t *)client->segment + reply.rq_offset,
        .sq_stride = reply.sq_stride, .rq_stride = reply.rq_stride};
}

static struct receive_queue make_srq(struct client *client, uint32_t xrcd)
{
    struct sluice_create_srq_request request = {
        .pd = client->pd, .max_wr = ENTRIES, .max_sge = 1, .xrcd = xrcd, .cq = xrcd ? client->cq : 0};
    struct sluice_create_srq_reply reply;

    CHECK(sluice_srq_create(engine, client->session, &request, &reply) == 0);
    return (struct receive_queue){
        .client = client, .handle = reply.handle, .number = reply.srq_num, .stride = reply.stride,
        .shared = (struct sluice_srq_shared *)((uint8_t *)client->segment + reply.offset),
        .ring = (uint8_t *)client->segment + reply.offset + sizeof(struct sluice_srq_shared)};
}

static void move_to(struct queue_pair *qp, uint32_t state, const struct queue_pair *peer)
{
    struct sluice_qp_attr now, attr = {
        .qp_state = state, .dest_qp_num = peer ? peer->number : 0, .timeout = 8, .retry_cnt = 1, .rnr_retry = 7,
        .qkey = QKEY, .max_rd_atomic = 1, .max_dest_rd_atomic = 1,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ};
    uint32_t mask = IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                    IBV_QP_ACCESS_FLAGS | IBV_QP_QKEY | IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC;

    CHECK(sluice_qp_modify(engine, qp->client->session, qp->handle, &attr, mask, SLUICE_TRANSPORT_LOCAL,
                           peer ? (int32_t)peer->client->tenant : -1, &now) == 0);
}

/* peer: NULL for UD. */
static void start(struct queue_pair *qp, const struct queue_pair *peer)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++)
        move_to(qp, state, peer);
}

static uint32_t make_ah(struct client *client, const struct client *to, const uint8_t *group)
{
    static const uint8_t sgid[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1};
    struct sluice_create_ah_request request = {.pd = client->pd, .attr = {.is_global = 1, .port_num = 1}};

    memcpy(request.attr.dgid, group ? group : sgid, 16);
    int handle = sluice_ah_create(engine, client->session, &request, sgid, to ? (int32_t)to->tenant : -1);

    CHECK(handle > 0);
    return (uint32_t)handle;
}

static uint32_t state_of(const struct queue_pair *qp)
{
    struct sluice_qp_attr now;

    CHECK(sluice_qp_query(engine, qp->client->session, qp->handle, &now) == 0);
    return now.qp_state;
}

static uint64_t drops_of(const struct client *client)
{
    return load_relaxed(&engine->tenants[client->tenant]->counters->drops);
}

/* ---- work -------------------------------------------------------------- */

static void publish(struct queue_pair *qp, struct sluice_queue_shared *queue)
{
    struct sluice_segment *segment = qp->client->segment;

    store_release(&queue->producer, load_relaxed(&queue->producer) + 1);
    full_fence();
    if (!load_relaxed(&queue->armed) || !exchange(&queue->armed, 0))
        return;
    __atomic_fetch_or(&segment->words[qp->handle / 64], 1ull << (qp->handle % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&segment->summary[qp->handle / 4096], 1ull << (qp->handle / 64 % 64), __ATOMIC_SEQ_CST);
    wake();
}

/* Posts what with one SGE of length bytes at the start of the memory, signaled. */
static void post(struct queue_pair *qp, struct sluice_wqe what, uint32_t length)
{
    uint8_t *slot = qp->sq + (load_relaxed(&qp->shared->sq.producer) & (ENTRIES - 1)) * qp->sq_stride;

    what.flags |= SLUICE_WQE_SIGNALED;
    what.num_sge = 1;
    *(struct sluice_wqe *)slot = what;
    *(struct sluice_sge *)(slot + sizeof(what)) =
        (struct sluice_sge){.addr = (uintptr_t)qp->client->memory, .length = length, .lkey = qp->client->key};
    publish(qp, &qp->shared->sq);
}

static void write_receive(uint8_t *slot, const struct client *client, uint64_t wr_id, uint32_t length)
{
    *(struct sluice_recv_wqe *)slot = (struct sluice_recv_wqe){.wr_id = wr_id, .num_sge = 1};
    *(struct sluice_sge *)(slot + sizeof(struct sluice_recv_wqe)) =
        (struct sluice_sge){.addr = (uintptr_t)client->memory + MEMORY / 2, .length = length, .lkey = client->key};
}

static void receive(struct queue_pair *qp, uint64_t wr_id, uint32_t length)
{
    write_receive(qp->rq + (load_relaxed(&qp->shared->rq.producer) & (ENTRIES - 1)) * qp->rq_stride, qp->client, wr_id,
                  length);
    publish(qp, &qp->shared->rq);
}

static void ring_srq(const struct receive_queue *srq)
{
    __atomic_fetch_or(&srq->client->segment->srq_words[srq->handle / 64], 1ull << (srq->handle % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&srq->client->segment->srq_summary, 1ull << (srq->handle / 64), __ATOMIC_SEQ_CST);
    wake();
}

static void receive_shared(struct receive_queue *srq, uint64_t wr_id, uint32_t length)
{
    struct sluice_queue_shared *queue = &srq->shared->queue;

    write_receive(srq->ring + (load_relaxed(&queue->producer) & (ENTRIES - 1)) * srq->stride, srq->client, wr_id, length);
    store_release(&queue->producer, load_relaxed(&queue->producer) + 1);
    full_fence();
    if (load_relaxed(&queue->armed) && exchange(&queue->armed, 0))
        ring_srq(srq);
}

static struct sluice_cqe wait_cqe(struct client *client)
{
    struct sluice_cqe *cqe = &client->ring[client->polled & (client->entries - 1)];

    while (load_acquire(&cqe->turn) != client->polled / client->entries + 1)
        sched_yield();
    struct sluice_cqe copy = *cqe;

    store_release(&client->cq_shared->consumer, ++client->polled);
    return copy;
}

static void expect(struct client *client, uint64_t wr_id, uint32_t status)
{
    struct sluice_cqe cqe = wait_cqe(client);

    CHECK(cqe.wr_id == wr_id && cqe.status == status);
}

static void expect_event(const struct client *client, uint32_t type, uint32_t element)
{
    struct sluice_async_event event;

    CHECK(read(client->events, &event, sizeof(event)) == sizeof(event));
    CHECK(event.event_type == type && event.element == element);
}

/* ---- UC ---------------------------------------------------------------- */

static void uc_loses_without_a_word(void)
{
    struct client a, b;

    open_client(&a, tenants[0]);
    open_client(&b, tenants[1]);
    struct queue_pair from = make_qp(&a, IBV_QPT_UC, 0, 0), to = make_qp(&b, IBV_QPT_UC, 0, 0);

    start(&from, &to);
    start(&to, &from);
    memset(a.memory, 0xaa, MEMORY);
    uint64_t before = drops_of(&a);

    post(&from, (struct sluice_wqe){.wr_id = 1, .opcode = IBV_WR_RDMA_WRITE, .rkey = b.key ^ 0x100000,
                                    .remote_addr = (uintptr_t)b.memory}, 100);
    expect(&a, 1, IBV_WC_SUCCESS);
    post(&from, (struct sluice_wqe){.wr_id = 2, .opcode = IBV_WR_SEND}, 100);
    expect(&a, 2, IBV_WC_SUCCESS);
    receive(&to, 3, 50);
    post(&from, (struct sluice_wqe){.wr_id = 4, .opcode = IBV_WR_SEND}, 100); /* too long for it */
    expect(&a, 4, IBV_WC_SUCCESS);
    CHECK(drops_of(&a) == before + 3 && b.memory[0] == 0 && b.memory[MEMORY / 2] == 0);
    CHECK(state_of(&from) == IBV_QPS_RTS && state_of(&to) == IBV_QPS_RTS);
    /* The receive is there for the next one. */
    post(&from, (struct sluice_wqe){.wr_id = 5, .opcode = IBV_WR_SEND}, 50);
    expect(&a, 5, IBV_WC_SUCCESS);
    expect(&b, 3, IBV_WC_SUCCESS);
    CHECK(b.memory[MEMORY / 2 + 49] == 0xaa && b.memory[MEMORY / 2 + 50] == 0);
    /* Nobody is there any more; a long message is still sent at its length. */
    close_client(&b);
    post(&from, (struct sluice_wqe){.wr_id = 6, .opcode = IBV_WR_SEND}, MEMORY);
    expect(&a, 6, IBV_WC_SUCCESS);
    close_client(&a);
}

static void local_errors_lead_to_sqe(void)
{
    struct client a;

    open_client(&a, tenants[0]);
    struct queue_pair qp = make_qp(&a, IBV_QPT_UC, 0, 0);

    start(&qp, &qp);
    receive(&qp, 9, 100);
    a.key ^= 0x100000;
    post(&qp, (struct sluice_wqe){.wr_id = 1, .opcode = IBV_WR_SEND}, 100);
    a.key ^= 0x100000;
    expect(&a, 1, IBV_WC_LOC_PROT_ERR);
    CHECK(state_of(&qp) == IBV_QPS_SQE);
    post(&qp, (struct sluice_wqe){.wr_id = 2, .opcode = IBV_WR_SEND}, 100);
    expect(&a, 2, IBV_WC_WR_FLUSH_ERR);
    move_to(&qp, IBV_QPS_RTS, &qp);
    post(&qp, (struct sluice_wqe){.wr_id = 3, .opcode = IBV_WR_SEND}, 100);
    /* The receive wasn't flushed. */
    expect(&a, 9, IBV_WC_SUCCESS);
    expect(&a, 3, IBV_WC_SUCCESS);
    close_client(&a);
}

/* ---- UD ---------------------------------------------------------------- */

static struct sluice_wqe datagram(uint64_t wr_id, uint32_t ah, uint32_t qpn, uint32_t qkey)
{
    return (struct sluice_wqe){
        .wr_id = wr_id, .opcode = IBV_WR_SEND, .ah = ah, .remote_qpn = qpn, .remote_qkey = qkey};
}

static void datagrams(void)
{
    struct client a, b;

    open_client(&a, tenants[0]);
    open_client(&b, tenants[1]);
    struct queue_pair from = make_qp(&a, IBV_QPT_UD, 0, 0), to = make_qp(&b, IBV_QPT_UD, 0, 0);
    struct queue_pair connected = make_qp(&b, IBV_QPT_RC, 0, 0);
    uint32_t ah = make_ah(&a, &b, NULL), nobody = make_ah(&a, NULL, NULL), other = make_ah(&a, &a, NULL);

    start(&from, NULL);
    start(&to, NULL);
    start(&connected, &from);
    memset(a.memory, 0xaa, MEMORY);
    uint64_t before = drops_of(&a);

    post(&from, datagram(1, ah, to.number, QKEY), 100); /* no receive */
    expect(&a, 1, IBV_WC_SUCCESS);
    receive(&to, 10, 140);
    post(&from, datagram(2, ah, to.number, QKEY + 1), 100);
    post(&from, datagram(3, nobody, to.number, QKEY), 100);
    post(&from, datagram(4, other, to.number, QKEY), 100); /* not that tenant's */
    post(&from, datagram(5, ah, connected.number, QKEY), 100);
    post(&from, datagram(6, ah, to.number, QKEY), 101); /* too long for the receive */
    for (uint64_t i = 2; i <= 6; i++)
        expect(&a, i, IBV_WC_SUCCESS);
    CHECK(drops_of(&a) == before + 6 && b.memory[MEMORY / 2 + 40] == 0);
    /* The top bit says: the QP's own Q_Key. */
    post(&from, datagram(7, ah, to.number, 0x80000000), 100);
    expect(&a, 7, IBV_WC_SUCCESS);
    struct sluice_cqe cqe = wait_cqe(&b);

    CHECK(cqe.wr_id == 10 && cqe.byte_len == 140 && cqe.src_qp == from.number && cqe.wc_flags == IBV_WC_GRH);
    CHECK(b.memory[MEMORY / 2 + 20] == 0x45 && b.memory[MEMORY / 2 + 139] == 0xaa && b.memory[MEMORY / 2 + 140] == 0);

    post(&from, datagram(8, ah, to.number, QKEY), SLUICE_MTU + 1);
    expect(&a, 8, IBV_WC_LOC_LEN_ERR);
    CHECK(state_of(&from) == IBV_QPS_SQE);
    move_to(&from, IBV_QPS_RTS, NULL);
    CHECK(sluice_ah_destroy(engine, a.session, ah) == 0);
    post(&from, datagram(9, ah, to.number, QKEY), 100);
    expect(&a, 9, IBV_WC_LOC_QP_OP_ERR);
    /* An AH that was cut off, and one whose tenant's number is another's now, lead nowhere. */
    CHECK(sluice_ah_sever(engine, a.session, other) == 0 && sluice_ah_sever(engine, a.session, ah) == -EINVAL);
    CHECK(sluice_pd_dealloc(engine, a.session, a.pd) == -EBUSY);
    close_client(&a);
    close_client(&b);
}

static void multicast(void)
{
    static const uint8_t group[16] = {[10] = 0xff, [11] = 0xff, [12] = 239, [15] = 7};
    static const uint8_t unicast[16] = {[10] = 0xff, [11] = 0xff, [12] = 10};
    struct client a, b;

    open_client(&a, tenants[0]);
    open_client(&b, tenants[1]);
    struct queue_pair from = make_qp(&a, IBV_QPT_UD, 0, 0), one = make_qp(&b, IBV_QPT_UD, 0, 0),
                      two = make_qp(&b, IBV_QPT_UD, 0, 0), not = make_qp(&b, IBV_QPT_UD, 0, 0),
                      rc = make_qp(&b, IBV_QPT_RC, 0, 0);
    struct queue_pair *all[] = {&from, &one, &two, &not};

    for (int i = 0; i < 4; i++) {
        start(all[i], NULL);
        if (i)
            receive(all[i], (uint64_t)i, 200);
    }
    CHECK(sluice_qp_attach(engine, b.session, rc.handle, group) == -EINVAL);
    CHECK(sluice_qp_attach(engine, b.session, one.handle, unicast) == -EINVAL);
    for (int i = 0; i < 2; i++) /* attaching twice is attaching once */
        CHECK(sluice_qp_attach(engine, b.session, one.handle, group) == 0);
    CHECK(sluice_qp_attach(engine, b.session, two.handle, group) == 0);
    uint32_t ah = make_ah(&a, NULL, group);

    post(&from, datagram(1, ah, GROUP_QPN, QKEY), 100);
    expect(&a, 1, IBV_WC_SUCCESS);
    expect(&b, 1, IBV_WC_SUCCESS);
    expect(&b, 2, IBV_WC_SUCCESS);
    /* A receiver's ceiling: what is beyond it is lost to that receiver, and to nobody's error. */
    const struct sluice_shape narrow = {.share.max_bps[FLOW_INGRESS] = 1000}, none = {0};

    CHECK(sluice_tenant_shape(engine, b.tenant, &narrow) == 0);
    for (uint64_t i = 0; i < 2; i++) {
        receive(&two, 10 + i, 200);
        post(&from, datagram(10 + i, ah, GROUP_QPN, QKEY), 160);
        expect(&a, 10 + i, IBV_WC_SUCCESS);
    }
    expect(&b, 10, IBV_WC_SUCCESS);
    CHECK(drops_of(&b) > 0);
    CHECK(sluice_tenant_shape(engine, b.tenant, &none) == 0);
    CHECK(sluice_qp_destroy(engine, b.session, one.handle) == -EBUSY);
    CHECK(sluice_qp_detach(engine, b.session, one.handle, group) == 0);
    CHECK(sluice_qp_detach(engine, b.session, one.handle, group) == -EINVAL);
    CHECK(sluice_qp_destroy(engine, b.session, one.handle) == 0);
    close_client(&b);
    post(&from, datagram(2, ah, GROUP_QPN, QKEY), 100);
    expect(&a, 2, IBV_WC_SUCCESS);
    close_client(&a);
}

/* The engine's next event is the question whether this tenant hears the sender, and there is no other. */
static void expect_question(const uint8_t sender[16], uint32_t tenant)
{
    struct sluice_engine_event event;

    while (!sluice_engine_next_event(engine, &event))
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_MEMBER && event.tenant == tenant && memcmp(event.gid, sender, 16) == 0);
    CHECK(event.trunk == UINT32_MAX);
    CHECK(!sluice_engine_next_event(engine, &event));
}

/* The last of all: a gate stays. */
static void who_hears_whom_in_a_group_is_asked(void)
{
    static const uint8_t group[16] = {[10] = 0xff, [11] = 0xff, [12] = 239, [15] = 7};
    static const uint8_t sender[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1}; /* make_ah's */
    struct sluice_shape shape = {0};
    struct sluice_engine_event event;
    struct client a, b, c;

    open_client(&a, tenants[0]);
    open_client(&b, tenants[1]);
    open_client(&c, (uint32_t)sluice_tenant_add(engine, 0, -1, &shape));
    struct queue_pair from = make_qp(&a, IBV_QPT_UD, 0, 0), one = make_qp(&b, IBV_QPT_UD, 0, 0),
                      two = make_qp(&c, IBV_QPT_UD, 0, 0);
    struct queue_pair *all[] = {&from, &one, &two};

    for (int i = 0; i < 3; i++)
        start(all[i], NULL);
    CHECK(sluice_qp_attach(engine, b.session, one.handle, group) == 0);
    CHECK(sluice_qp_attach(engine, c.session, two.handle, group) == 0);
    uint32_t ah = make_ah(&a, NULL, group);

    CHECK(sluice_gate_admit(engine, sender, -1, b.tenant, 1) == -EINVAL);
    sluice_gate_forget(engine, NULL);
    for (int i = 0; i < 2; i++) /* closing twice is closing once */
        CHECK(sluice_gate_close(engine) == 0);
    CHECK(sluice_gate_admit(engine, sender, -1, SLUICE_MAX_TENANTS, 1) == -EINVAL);

    /* One is asked for after the other, and nobody gets anything before all are known. */
    receive(&one, 1, 200);
    receive(&two, 1, 200);
    post(&from, datagram(1, ah, GROUP_QPN, QKEY), 100);
    expect_question(sender, b.tenant);
    CHECK(sluice_gate_admit(engine, sender, -1, b.tenant, 0) == 0);
    expect_question(sender, c.tenant);
    CHECK(load_acquire(&a.ring[a.polled % a.entries].turn) != a.polled / a.entries + 1);
    CHECK(sluice_gate_admit(engine, sender, -1, c.tenant, 1) == 0);
    expect(&a, 1, IBV_WC_SUCCESS);
    expect(&c, 1, IBV_WC_SUCCESS);
    /* The answers are kept: what comes to nobody is a drop of its sender's. */
    uint64_t drops = drops_of(&a);

    post(&from, datagram(2, ah, GROUP_QPN, QKEY), 100);
    expect(&a, 2, IBV_WC_SUCCESS);
    CHECK(drops_of(&a) == drops + 1 && !sluice_engine_next_event(engine, &event));
    /* Until they may be others: of one sender, or of all. */
    for (uint64_t i = 3; i <= 4; i++) {
        sluice_gate_forget(engine, i == 3 ? sender : NULL);
        receive(&two, i, 200);
        post(&from, datagram(i, ah, GROUP_QPN, QKEY), 100);
        expect_question(sender, b.tenant);
        CHECK(sluice_gate_admit(engine, sender, -1, b.tenant, i == 3) == 0);
        expect_question(sender, c.tenant);
        CHECK(sluice_gate_admit(engine, sender, -1, c.tenant, 1) == 0);
        expect(&a, i, IBV_WC_SUCCESS);
        expect(&c, i, IBV_WC_SUCCESS);
    }
    expect(&b, 1, IBV_WC_SUCCESS);
    /* Another sender is another question. */
    sluice_gate_forget(engine, (const uint8_t[16]){1});
    post(&from, datagram(5, ah, GROUP_QPN, QKEY), 100);
    expect(&a, 5, IBV_WC_SUCCESS);
    CHECK(!sluice_engine_next_event(engine, &event));
    /* A tenant that has another's number has not its answers; who waits may end meanwhile. */
    close_client(&c);
    CHECK(sluice_tenant_remove(engine, c.tenant) == 0);
    CHECK(sluice_tenant_add(engine, 0, -1, &shape) == (int)c.tenant);
    open_client(&c, c.tenant);
    two = make_qp(&c, IBV_QPT_UD, 0, 0);
    start(&two, NULL);
    CHECK(sluice_qp_attach(engine, c.session, two.handle, group) == 0);
    post(&from, datagram(6, ah, GROUP_QPN, QKEY), 100);
    expect_question(sender, c.tenant);
    close_client(&a);
    CHECK(sluice_gate_admit(engine, sender, -1, c.tenant, 1) == 0);
    close_client(&b);
    close_client(&c);
    CHECK(sluice_tenant_remove(engine, c.tenant) == 0);
}

/* ---- shared receive queues --------------------------------------------- */

static void many_take_from_one(void)
{
    enum { QPS = 4, ROUNDS = 2000 };
    struct client a, b;
    struct queue_pair from[QPS], to[QPS];

    open_client(&a, tenants[0]);
    open_client(&b, tenants[1]);
    struct receive_queue srq = make_srq(&b, 0);

    for (int i = 0; i < QPS; i++) {
        from[i] = make_qp(&a, IBV_QPT_RC, 0, 0);
        to[i] = make_qp(&b, IBV_QPT_RC, srq.handle, 0);
        start(&from[i], &to[i]);
        start(&to[i], &from[i]);
    }
    CHECK(sluice_srq_destroy(engine, b.session, srq.handle) == -EBUSY);
    /* All wait for a receive, and each that is posted serves one of them. */
    for (uint64_t round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < QPS; i++)
            post(&from[i], (struct sluice_wqe){.wr_id = (uint64_t)i, .opcode = IBV_WR_SEND}, 8);
        for (uint64_t i = 0; i < QPS; i++)
            receive_shared(&srq, round * QPS + i, 8);
        uint32_t served = 0;

        for (uint64_t i = 0; i < QPS; i++) {
            struct sluice_cqe cqe = wait_cqe(&b);

            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == round * QPS + i && cqe.queue == SLUICE_CQE_SRQ &&
                  cqe.tail == srq.handle);
            for (uint32_t j = 0; j < QPS; j++)
                served |= cqe.qp_num == to[j].number ? 1u << j : 0;
            CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
        }
        CHECK(served == (1u << QPS) - 1);
        CHECK(load_acquire(&srq.shared->consumer) == (round + 1) * QPS);
    }
    /* The low watermark, once. */
    struct sluice_srq_reply now;

    CHECK(sluice_srq_set_limit(engine, b.session, srq.handle, ENTRIES + 1) == -EINVAL);
    for (uint64_t i = 0; i < 3; i++)
        receive_shared(&srq, i, 8);
    CHECK(sluice_srq_set_limit(engine, b.session, srq.handle, 2) == 0);
    for (int i = 0; i < 3; i++) {
        post(&from[0], (struct sluice_wqe){.opcode = IBV_WR_SEND}, 8);
        expect(&a, 0, IBV_WC_SUCCESS);
        CHECK(sluice_srq_query(engine, b.session, srq.handle, &now) == 0 && now.limit == (i == 0 ? 2 : 0));
    }
    expect_event(&b, IBV_EVENT_SRQ_LIMIT_REACHED, srq.handle);
    move_to(&to[1], IBV_QPS_ERR, NULL);
    expect_event(&b, IBV_EVENT_QP_LAST_WQE_REACHED, to[1].number);
    for (int i = 0; i < QPS; i++)
        CHECK(sluice_qp_destroy(engine, b.session, to[i].handle) == 0);
    CHECK(sluice_srq_destroy(engine, b.session, srq.handle) == 0);
    close_client(&a);
    close_client(&b);
}

/* ---- XRC --------------------------------------------------------------- */

static void xrc(void)
{
    struct client a, maker, owner, stranger;

    open_client(&a, tenants[0]);
    open_client(&maker, tenants[1]);
    open_client(&owner, tenants[1]);
    open_client(&stranger, tenants[0]);
    CHECK(sluice_xrcd_open(engine, maker.session, maker.context, 1, 8, 15, 0) == -EAGAIN);
    int domain = sluice_xrcd_open(engine, maker.session, maker.context, 1, 8, 15, SLUICE_XRCD_CREATE);
    int shared = sluice_xrcd_open(engine, owner.session, owner.context, 1, 8, 15, 0);
    int private = sluice_xrcd_open(engine, owner.session, owner.context, 0, 0, 0, SLUICE_XRCD_CREATE);

    CHECK(domain > 0 && shared > 0 && private > 0);
    CHECK(sluice_xrcd_open(engine, owner.session, owner.context, 1, 8, 15, SLUICE_XRCD_CREATE | SLUICE_XRCD_EXCL) ==
          -EINVAL);
    /* Another tenant's file of the same number is another domain. */
    CHECK(sluice_xrcd_open(engine, stranger.session, stranger.context, 1, 8, 15, 0) == -EAGAIN);

    struct queue_pair from = make_qp(&a, IBV_QPT_XRC_SEND, 0, 0);
    struct queue_pair to = make_qp(&maker, IBV_QPT_XRC_RECV, 0, (uint32_t)domain);
    struct receive_queue srq = make_srq(&owner, (uint32_t)shared), elsewhere = make_srq(&owner, (uint32_t)private);

    start(&from, &to);
    start(&to, &from);
    receive_shared(&srq, 5, 100);
    post(&from, (struct sluice_wqe){.wr_id = 1, .opcode = IBV_WR_SEND, .remote_srqn = (uint16_t)srq.number}, 100);
    expect(&a, 1, IBV_WC_SUCCESS);
    struct sluice_cqe cqe = wait_cqe(&owner);

    CHECK(cqe.wr_id == 5 && cqe.status == IBV_WC_SUCCESS && cqe.qp_num == to.number && cqe.src_qp == from.number);
    /* The QP stays with who opened it when its maker's process ends; an empty SRQ makes the sender wait. */
    struct sluice_open_qp_request open = {.xrcd = (uint32_t)private, .qp_num = to.number};
    struct sluice_create_qp_reply opened;

    CHECK(sluice_qp_open(engine, owner.session, &open, &opened) == -EINVAL);
    open.xrcd = (uint32_t)shared;
    CHECK(sluice_qp_open(engine, owner.session, &open, &opened) == 0 && opened.qp_num == to.number);
    CHECK(sluice_xrcd_close(engine, owner.session, (uint32_t)shared) == -EBUSY);
    post(&from, (struct sluice_wqe){.wr_id = 2, .opcode = IBV_WR_SEND, .remote_srqn = (uint16_t)srq.number}, 100);
    close_client(&maker);
    receive_shared(&srq, 6, 100);
    expect(&a, 2, IBV_WC_SUCCESS);
    expect(&owner, 6, IBV_WC_SUCCESS);
    /* Without an SRQ: a key of a process that has the domain open, and no other's. */
    post(&from, (struct sluice_wqe){.wr_id = 3, .opcode = IBV_WR_RDMA_WRITE, .rkey = owner.key,
                                    .remote_addr = (uintptr_t)owner.memory}, 8);
    expect(&a, 3, IBV_WC_SUCCESS);
    post(&from, (struct sluice_wqe){.wr_id = 4, .opcode = IBV_WR_SEND, .remote_srqn = (uint16_t)elsewhere.number}, 8);
    expect(&a, 4, IBV_WC_REM_INV_REQ_ERR);
    expect_event(&owner, IBV_EVENT_QP_REQ_ERR, to.number);
    CHECK(state_of(&from) == IBV_QPS_ERR);

    move_to(&from, IBV_QPS_RESET, NULL);
    struct queue_pair again = {.client = &owner, .handle = opened.handle, .number = opened.qp_num};

    move_to(&again, IBV_QPS_RESET, NULL);
    start(&again, &from);
    start(&from, &again);
    post(&from, (struct sluice_wqe){.wr_id = 7, .opcode = IBV_WR_RDMA_WRITE, .rkey = stranger.key,
                                    .remote_addr = (uintptr_t)stranger.memory}, 8);
    expect(&a, 7, IBV_WC_REM_ACCESS_ERR);
    CHECK(sluice_qp_destroy(engine, owner.session, opened.handle) == 0);
    close_client(&a);
    close_client(&owner);
    close_client(&stranger);
}

/* ---- contexts ---------------------------------------------------------- */

static void events_reach_their_context(void)
{
    struct client a;
    int second;

    open_client(&a, tenants[0]);
    int context = sluice_context_open(engine, a.session, 0, &second);
    int pd = sluice_pd_alloc(engine, a.session, (uint32_t)context);
    struct client other = a;

    other.pd = (uint32_t)pd;
    other.events = second;
    struct queue_pair mine = make_qp(&a, IBV_QPT_RC, 0, 0), theirs = make_qp(&other, IBV_QPT_RC, 0, 0);

    CHECK(sluice_qp_fail(engine, a.session, theirs.handle) == 0);
    CHECK(sluice_qp_fail(engine, a.session, mine.handle) == 0);
    expect_event(&other, IBV_EVENT_QP_FATAL, theirs.number);
    expect_event(&a, IBV_EVENT_QP_FATAL, mine.number);
    /* Closing one destroys what was made in it, and nothing else. */
    CHECK(sluice_context_close(engine, a.session, (uint32_t)context) == 0);
    CHECK(sluice_context_close(engine, a.session, (uint32_t)context) == -EINVAL);
    CHECK(sluice_qp_destroy(engine, a.session, theirs.handle) == -EINVAL);
    CHECK(sluice_pd_dealloc(engine, a.session, (uint32_t)pd) == -EINVAL);
    CHECK(sluice_pd_alloc(engine, a.session, (uint32_t)context) == -EINVAL);
    CHECK(sluice_qp_destroy(engine, a.session, mine.handle) == 0);
    char byte;

    CHECK(read(second, &byte, 1) == 0);
    close(second);
    close_client(&a);
}

/* ---- threads ----------------------------------------------------------- */

static int stop;

static void *make_and_destroy(void *argument)
{
    struct client *client = argument;
    uint64_t made = 0;

    while (!load_relaxed(&stop) || made < 50) {
        struct receive_queue srq = make_srq(client, 0);
        struct queue_pair qp = make_qp(client, made % 2 ? IBV_QPT_RC : IBV_QPT_UD, srq.handle, 0);
        uint32_t ah = make_ah(client, client, NULL);

        start(&qp, made % 2 ? &qp : NULL);
        CHECK(sluice_qp_destroy(engine, client->session, qp.handle) == 0);
        CHECK(sluice_srq_destroy(engine, client->session, srq.handle) == 0);
        CHECK(sluice_ah_destroy(engine, client->session, ah) == 0);
        made++;
    }
    return NULL;
}

static void made_and_destroyed_under_traffic(void)
{
    struct client a, b, c;
    pthread_t thread;

    open_client(&a, tenants[0]);
    open_client(&b, tenants[1]);
    open_client(&c, tenants[0]);
    struct receive_queue srq = make_srq(&b, 0);
    struct queue_pair from = make_qp(&a, IBV_QPT_RC, 0, 0), to = make_qp(&b, IBV_QPT_RC, srq.handle, 0);

    start(&from, &to);
    start(&to, &from);
    store_relaxed(&stop, 0);
    CHECK(pthread_create(&thread, NULL, make_and_destroy, &c) == 0);
    for (uint64_t i = 0; i < 5000; i++) {
        receive_shared(&srq, i, 100);
        post(&from, (struct sluice_wqe){.wr_id = i, .opcode = IBV_WR_SEND}, 100);
        expect(&b, i, IBV_WC_SUCCESS);
        expect(&a, i, IBV_WC_SUCCESS);
    }
    store_relaxed(&stop, 1);
    pthread_join(thread, NULL);
    close_client(&a);
    close_client(&b);
    close_client(&c);
}

/* ---- hostile ----------------------------------------------------------- */

static void expect_broken(const struct client *client)
{
    struct sluice_engine_event event;

    /* Others are questions: where an address handle leads. */
    while (sluice_engine_next_event(engine, &event) == 0 || event.kind == SLUICE_EVENT_AH_UNRESOLVED)
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_SESSION_BROKEN && event.session == client->session);
}

static void garbage_ends_its_session_only(void)
{
    for (int kind = 0; kind < 4; kind++) {
        struct client a, bad;

        open_client(&a, tenants[0]);
        open_client(&bad, tenants[1]);
        struct receive_queue srq = make_srq(&bad, 0);
        struct queue_pair from = make_qp(&a, IBV_QPT_RC, 0, 0), to = make_qp(&bad, IBV_QPT_RC, srq.handle, 0);
        struct queue_pair ud = make_qp(&bad, IBV_QPT_UD, 0, 0);

        start(&from, &to);
        start(&to, &from);
        start(&ud, NULL);
        switch (kind) {
        case 0: /* more receives than there is room for */
            store_release(&srq.shared->queue.producer, 0x80000000u);
            break;
        case 1: /* a receive with too many SGEs */
            write_receive(srq.ring, &bad, 1, 8);
            ((struct sluice_recv_wqe *)srq.ring)->num_sge = 60000;
            store_release(&srq.shared->queue.producer, 1);
            break;
        case 2: /* what UD can't do */
            post(&ud, (struct sluice_wqe){.opcode = IBV_WR_RDMA_WRITE}, 8);
            break;
        case 3:
            post(&ud, (struct sluice_wqe){.opcode = IBV_WR_BIND_MW}, 0);
            break;
        }
        post(&from, (struct sluice_wqe){.wr_id = 1, .opcode = IBV_WR_SEND}, 8);
        expect_broken(&bad);
        expect(&a, 1, IBV_WC_RETRY_EXC_ERR);
        close_client(&bad);
        close_client(&a);
    }
}

#ifndef __SANITIZE_THREAD__ /* stores that race by design */
static void random_bytes_everywhere(void)
{
    uint64_t random = 88172645463325252ull;

    for (int round = 0; round < 20; round++) {
        struct client a, b;

        open_client(&a, tenants[0]);
        open_client(&b, tenants[1]);
        int domain = sluice_xrcd_open(engine, a.session, a.context, 0, 0, 0, SLUICE_XRCD_CREATE);
        struct receive_queue srq = make_srq(&a, 0), xsrq = make_srq(&a, (uint32_t)domain);
        struct queue_pair qps[] = {
            make_qp(&a, IBV_QPT_UC, srq.handle, 0), make_qp(&a, IBV_QPT_UD, 0, 0), make_qp(&a, IBV_QPT_XRC_SEND, 0, 0),
            make_qp(&a, IBV_QPT_RC, srq.handle, 0), make_qp(&a, IBV_QPT_XRC_RECV, 0, (uint32_t)domain),
            make_qp(&b, IBV_QPT_RC, 0, 0),
        };

        make_ah(&a, &a, NULL);
        start(&qps[0], &qps[0]);
        start(&qps[1], NULL);
        start(&qps[2], &qps[4]);
        start(&qps[4], &qps[2]);
        start(&qps[3], &qps[5]);
        start(&qps[5], &qps[3]);
        receive_shared(&srq, 1, 100);
        receive_shared(&xsrq, 1, 100);
        for (int i = 0; i < 20000; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            /* Volatile, as another process's stores are. */
            *(volatile uint8_t *)((uint8_t *)a.segment + random % (SLUICE_SEGMENT_RINGS + (1 << 18))) =
                (uint8_t)(random >> 32);
            if (i % 256 == 0)
                post(&qps[5], (struct sluice_wqe){.opcode = IBV_WR_SEND}, 8);
            if (i % 64 == 0)
                wake();
        }
        close_client(&a);
        close_client(&b);
        struct sluice_engine_event event;

        while (sluice_engine_next_event(engine, &event))
            ;
    }
}
#endif

int main(void)
{
    struct sluice_shape none = {0};

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    for (int i = 0; i < 2; i++)
        tenants[i] = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    RUN(uc_loses_without_a_word);
    RUN(local_errors_lead_to_sqe);
    RUN(datagrams);
    RUN(multicast);
    RUN(many_take_from_one);
    RUN(xrc);
    RUN(events_reach_their_context);
    RUN(made_and_destroyed_under_traffic);
    RUN(garbage_ends_its_session_only);
#ifndef __SANITIZE_THREAD__
    RUN(random_bytes_everywhere);
#endif
    RUN(who_hears_whom_in_a_group_is_asked);
    for (int i = 0; i < 2; i++) {
        const struct sluice_tenant_counters *counters = engine->tenants[tenants[i]]->counters;

        CHECK(counters->qps == 0 && counters->cqs == 0 && counters->mrs == 0);
        CHECK(sluice_tenant_remove(engine, tenants[i]) == 0);
    }
    sluice_engine_close(engine);
    return 0;
}
