/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nic transport over a device that carries nothing (fake_verbs.h): what happens when the NIC refuses, is full, or is
 * taken away, and what is left of it afterwards.
 *
 *   test-nic            all of it
 *   test-nic COUNT N    so many WRITEs of 8 bytes, and what of the engine's time one took (docs/nic.md)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <infiniband/verbs.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "client.h"
#include "context.h"
#include "fake_verbs.h"
#include "nic.h"
#include "qp.h"
#include "transport/nic.h"
#include "transport/trunk.h"
#include "worker.h"

enum { GID_INDEX = 0, UNTOUCHED = 1 << 20, QKEY = 0x1234 };

static void open_engine(void)
{
    struct sluice_shape shape = {0};
    struct sluice_nic nic;

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    CHECK(sluice_nic_open(engine, 0, "fake0", 1) == 0);
    CHECK(sluice_nic_query(engine, 0, &nic) == 0);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &shape);
}

static void close_engine(void)
{
    sluice_engine_close(engine);
    CHECK(fake_objects() == 0);
}

/* Of the device's table: RoCE v2 only, what applications mean first, and not what leads no further than a link. */
static void test_gids(void)
{
    static const uint8_t expected[][17] = {{[10] = 0xff, 0xff, 10, 0, 0, 1, 4},
                                           {0x20, 0x01, 0x0d, 0xb8, [15] = 1, 3},
                                           {0xfe, 0x80, [15] = 1, 1}};
    struct sluice_nic nic;

    open_engine();
    CHECK(sluice_nic_query(engine, 0, &nic) == 0 && nic.gid_count == 3);
    for (uint32_t i = 0; i < nic.gid_count; i++) {
        CHECK(memcmp(nic.gids[i].raw, expected[i], 16) == 0);
        CHECK(nic.indices[i] == expected[i][16] && nic.interfaces[i] == 11);
    }
    close_engine();
}

static int modify(const struct client *client, uint32_t handle, uint32_t state)
{
    struct sluice_qp_attr now, attr = {.qp_state = state, .dest_qp_num = 1000, .timeout = 8, .retry_cnt = 1,
                                       .rnr_retry = 7, .max_rd_atomic = 1, .max_dest_rd_atomic = 1,
                                       .ah = {.is_global = 1, .sgid_index = GID_INDEX, .port_num = 1}};

    return sluice_qp_modify(engine, client->session, handle, &attr,
                            IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_AV,
                            SLUICE_TRANSPORT_NIC, -1, &now);
}

static void connect(const struct client *client, uint32_t handle)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++)
        CHECK(modify(client, handle, state) == 0);
}

static void write_some(struct client *client, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        post_write(client, client, i, 8);
    publish(client);
}

/* ---- what is carried ---------------------------------------------------- */

static void test_requests_complete(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    connect(&client, client.qp);
    write_some(&client, 20);
    for (uint64_t i = 0; i < 20; i++) {
        struct sluice_cqe cqe = wait_cqe(&client);

        CHECK(cqe.wr_id == i && cqe.status == IBV_WC_SUCCESS);
    }
    close_client(&client);
    close_engine();
}

static void await_receives(uint32_t qp_num, uint32_t count)
{
    while (fake_receives(qp_num) != count)
        sched_yield();
}

/* The doorbell is one for both queues: sends don't hand over receives, nor lose any. */
static void test_receives_reach_the_nic(void)
{
    struct client client;
    uint64_t next = 0;

    open_engine();
    open_client(&client);
    move(&client, IBV_QPS_INIT, 0);
    for (uint64_t wr_id = 0; wr_id < 3; wr_id++)
        post_receive(&client, wr_id, 0, 64);
    CHECK(fake_receives(client.qp_num) == 0);
    for (uint32_t state = IBV_QPS_RTR; state <= IBV_QPS_RTS; state++)
        CHECK(modify(&client, client.qp, state) == 0);
    await_receives(client.qp_num, 3);
    for (uint64_t round = 1; round <= 2 * ENTRIES; round++) {
        write_some(&client, 1);
        CHECK(wait_cqe(&client).opcode == IBV_WC_RDMA_WRITE);
        post_receive(&client, round + 2, 0, 64);
        await_receives(client.qp_num, 4);
        CHECK(fake_receive(client.qp_num, 10));
        struct sluice_cqe cqe = wait_cqe(&client);

        CHECK(cqe.wr_id == next++ && cqe.queue == SLUICE_CQE_RECEIVE && cqe.byte_len == 10);
    }
    /* As many as the queue holds, of which none has been polled. */
    for (uint32_t left = ENTRIES - 3; left; left--)
        post_receive(&client, 3 + 2 * ENTRIES - left, 0, 64);
    await_receives(client.qp_num, ENTRIES);
    close_client(&client);
    close_engine();
}

static void test_windows_have_the_nics_keys(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    connect(&client, client.qp);
    uint32_t bindable = command(&client, (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = client.pd, .addr = (uintptr_t)client.memory,
        .iova = (uintptr_t)client.memory, .length = 4096, .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND});
    uint32_t key = command(&client, (struct sluice_command){
        .op = SLUICE_COMMAND_ALLOC_MW, .pd = client.pd, .flags = IBV_MW_TYPE_2});

    for (uint32_t tag = 1; tag < 3; tag++) {
        struct sluice_wqe *wqe = slot(&client);

        *wqe = (struct sluice_wqe){.opcode = IBV_WR_BIND_MW, .flags = SLUICE_WQE_SIGNALED, .wr_id = tag,
                                   .rkey = key | tag, .imm_data = bindable, .remote_addr = (uintptr_t)client.memory};
        *(struct sluice_bind *)(wqe + 1) = (struct sluice_bind){.length = 64, .access = IBV_ACCESS_REMOTE_WRITE};
        client.posted++;
        publish(&client);
        struct sluice_cqe cqe = wait_cqe(&client);

        CHECK(cqe.wr_id == tag && cqe.status == IBV_WC_SUCCESS && cqe.opcode == IBV_WC_BIND_MW);
    }
    /* A region with a window on it stays; the window is found by the tag that it was made with. */
    struct sluice_command dereg = {.op = SLUICE_COMMAND_DEREG_MR, .pd = client.pd, .key = bindable};

    CHECK(try_command(&client, &dereg) == EBUSY);
    command(&client, (struct sluice_command){.op = SLUICE_COMMAND_DEALLOC_MW, .pd = client.pd, .key = key});
    CHECK(try_command(&client, &dereg) == 0);
    close_client(&client);
    close_engine();
}

static void test_registering_anew_gives_another_key(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    struct sluice_command again = {.op = SLUICE_COMMAND_REREG_MR, .key = client.key, .pd = client.pd,
                                   .flags = IBV_REREG_MR_CHANGE_ACCESS, .access = IBV_ACCESS_LOCAL_WRITE};
    uint32_t before = fake_objects();

    fake_refuse("mr", ENOMEM);
    CHECK(try_command(&client, &again) == ENOMEM);
    fake_refuse("mr", 0);
    again.key = client.key;
    CHECK(try_command(&client, &again) == 0 && again.key != client.key && fake_objects() == before);
    struct sluice_command old = {.op = SLUICE_COMMAND_DEREG_MR, .pd = client.pd, .key = client.key};

    CHECK(try_command(&client, &old) == EINVAL);
    close_client(&client);
    close_engine();
}

/* ---- shared receive queues ---------------------------------------------- */

struct shared {
    uint32_t handle, stride, posted;
    struct sluice_srq_shared *shared;
    uint8_t *ring;
};

static struct shared make_srq(const struct client *client)
{
    struct sluice_create_srq_request request = {.pd = client->pd, .max_wr = 16, .max_sge = 1};
    struct sluice_create_srq_reply reply;

    CHECK(sluice_srq_create(engine, client->session, &request, &reply) == 0);
    struct sluice_srq_shared *shared = (struct sluice_srq_shared *)((uint8_t *)client->segment + reply.offset);

    return (struct shared){.handle = reply.handle, .stride = reply.stride, .shared = shared, .ring = (uint8_t *)(shared + 1)};
}

static struct sluice_create_qp_reply make_sharing_qp(const struct client *client, const struct shared *srq)
{
    struct sluice_create_qp_reply reply;
    struct sluice_create_qp_request request = {
        .pd = client->pd, .send_cq = client->cq_handle, .recv_cq = client->cq_handle, .qp_type = IBV_QPT_RC,
        .srq = srq->handle, .cap = {.max_send_wr = 4, .max_send_sge = 1}};

    CHECK(sluice_qp_create(engine, client->session, &request, &reply) == 0);
    return reply;
}

static void post_shared(struct client *client, struct shared *srq, uint64_t wr_id)
{
    struct sluice_recv_wqe *wqe = (struct sluice_recv_wqe *)(srq->ring + (srq->posted & 15) * srq->stride);

    *wqe = (struct sluice_recv_wqe){.wr_id = wr_id, .num_sge = 1};
    *(struct sluice_sge *)(wqe + 1) =
        (struct sluice_sge){.addr = (uintptr_t)client->memory, .length = 64, .lkey = client->key};
    store_release(&srq->shared->queue.producer, ++srq->posted);
    full_fence();
    if (!exchange(&srq->shared->queue.armed, 0))
        return;
    __atomic_fetch_or(&client->segment->srq_words[srq->handle / 64], 1ull << srq->handle % 64, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&client->segment->srq_summary, 1ull << srq->handle / 64, __ATOMIC_SEQ_CST);
    wake();
}

static void test_receives_of_an_srq_come_and_go(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    struct shared srq = make_srq(&client);
    struct sluice_create_qp_reply qp = make_sharing_qp(&client, &srq);

    for (uint64_t wr_id = 1; wr_id <= 5; wr_id++)
        post_shared(&client, &srq, wr_id);
    CHECK(fake_receives(qp.qp_num) == 0);
    connect(&client, qp.handle);
    await_receives(qp.qp_num, 5);
    post_shared(&client, &srq, 6);
    await_receives(qp.qp_num, 6);
    CHECK(fake_receive(qp.qp_num, 10));
    struct sluice_cqe cqe = wait_cqe(&client);

    CHECK(cqe.wr_id == 1 && cqe.byte_len == 10 && cqe.queue == SLUICE_CQE_SRQ && cqe.qp_num == qp.qp_num);
    /* The last QP that the NIC has of it leaves: the next one finds the rest, in its order. */
    CHECK(sluice_qp_destroy(engine, client.session, qp.handle) == 0);
    qp = make_sharing_qp(&client, &srq);
    connect(&client, qp.handle);
    await_receives(qp.qp_num, 5);
    for (uint64_t wr_id = 2; wr_id <= 6; wr_id++) {
        CHECK(fake_receive(qp.qp_num, 1));
        CHECK(wait_cqe(&client).wr_id == wr_id);
    }
    CHECK(sluice_qp_destroy(engine, client.session, qp.handle) == 0);
    close_client(&client);
    close_engine();
}

/* ---- datagrams ---------------------------------------------------------- */

/* Its QP is a UD one from here on, in this state: RTR or RTS. */
static void become_ud(struct client *client, uint32_t state)
{
    struct sluice_create_qp_request request = {
        .pd = client->pd, .send_cq = client->cq_handle, .recv_cq = client->cq_handle, .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = ENTRIES, .max_recv_wr = ENTRIES, .max_send_sge = 1, .max_recv_sge = 1}};
    struct sluice_create_qp_reply reply;
    struct sluice_qp_attr now, attr = {.qkey = QKEY};

    CHECK(sluice_qp_create(engine, client->session, &request, &reply) == 0);
    client->qp = reply.handle;
    client->qp_num = reply.qp_num;
    client->shared = (struct sluice_qp_shared *)((uint8_t *)client->segment + reply.offset);
    client->sq = (struct sluice_wqe *)((uint8_t *)client->segment + reply.sq_offset);
    client->sq_stride = reply.sq_stride;
    client->rq = (struct sluice_recv_wqe *)((uint8_t *)client->segment + reply.rq_offset);
    client->rq_stride = reply.rq_stride;
    client->posted = 0;
    for (attr.qp_state = IBV_QPS_INIT; attr.qp_state <= state; attr.qp_state++)
        CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr, IBV_QP_STATE | IBV_QP_QKEY,
                               SLUICE_TRANSPORT_NONE, -1, &now) == 0);
}

static uint32_t make_ah(const struct client *client, int32_t behind)
{
    struct sluice_create_ah_request request = {.pd = client->pd, .attr = {.is_global = 1, .port_num = 1}};
    const uint8_t gid[16] = {[10] = 0xff, 0xff, 10, 0, 0, 1};

    memcpy(request.attr.dgid, gid, sizeof(gid));
    int ah = sluice_ah_create(engine, client->session, &request, gid, -1);

    CHECK(ah > 0 && sluice_ah_by_nic(engine, client->session, (uint32_t)ah, behind) == 0);
    return (uint32_t)ah;
}

static void send_datagram(struct client *client, uint32_t ah, uint32_t qp_num, uint32_t qkey)
{
    struct sluice_wqe *wqe = slot(client);

    *wqe = (struct sluice_wqe){.opcode = IBV_WR_SEND, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1, .ah = ah,
                               .remote_qpn = qp_num, .remote_qkey = qkey};
    *(struct sluice_sge *)(wqe + 1) =
        (struct sluice_sge){.addr = (uintptr_t)client->memory, .length = 64, .lkey = client->key};
    client->posted++;
    publish(client);
}

static void test_datagrams_go_by_the_nic(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    become_ud(&client, IBV_QPS_RTS);
    uint32_t ah = make_ah(&client, -1);
    uint64_t before = fake_posted();

    send_datagram(&client, ah, 77, QKEY);
    CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS && fake_posted() == before + 1);
    /* Communication managers listen there, and with such keys. */
    send_datagram(&client, ah, 1, QKEY);
    send_datagram(&client, ah, 77, 0x80010000);
    CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS && wait_cqe(&client).status == IBV_WC_SUCCESS);
    CHECK(fake_posted() == before + 2); /* the last one with the QP's own key */
    CHECK(sluice_ah_sever(engine, client.session, ah) == 0);
    send_datagram(&client, ah, 77, QKEY);
    CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS && fake_posted() == before + 2);
    CHECK(sluice_ah_destroy(engine, client.session, ah) == 0);
    close_client(&client);
    close_engine();
}

/* A QP that only receives wakes nobody: its CQ on the NIC was made while the worker slept. */
static void test_a_sleeping_worker_hears_of_datagrams(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    while (!load_relaxed(&engine->page->parked))
        sched_yield();
    become_ud(&client, IBV_QPS_RTR);
    post_receive(&client, 7, 0, 1024);
    CHECK(fake_receive(client.qp_num, SLUICE_GRH + 10));
    struct sluice_cqe cqe = wait_cqe(&client);

    CHECK(cqe.wr_id == 7 && cqe.status == IBV_WC_SUCCESS && cqe.byte_len == SLUICE_GRH + 10);
    close_client(&client);
    close_engine();
}

static void test_neighbours_are_asked_for(void)
{
    struct sluice_shape shape = {0};
    struct sluice_engine_event event;
    struct client one, other;

    open_engine();
    open_client(&one);
    become_ud(&one, IBV_QPS_RTS);
    uint32_t first = tenant, ah = make_ah(&one, 0);

    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &shape);
    open_client(&other);
    become_ud(&other, IBV_QPS_RTS);
    uint64_t before = fake_posted();

    send_datagram(&one, ah, other.qp_num, QKEY);
    while (sluice_engine_next_event(engine, &event) == 0)
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_NEIGHBOUR && event.tenant == first && event.peer == tenant);
    CHECK(sluice_neighbour_admit(engine, first, tenant, 0) == 0);
    CHECK(wait_cqe(&one).status == IBV_WC_SUCCESS);
    CHECK(engine->tenants[first]->counters->drops == 1);
    CHECK(sluice_neighbour_admit(engine, first, tenant, 1) == 0);
    /* No receive is there; but it came so far, and not by the NIC. */
    send_datagram(&one, ah, other.qp_num, QKEY);
    CHECK(wait_cqe(&one).status == IBV_WC_SUCCESS && fake_posted() == before);
    CHECK(sluice_engine_next_event(engine, &event) == 0);
    /* Who isn't of this node the NIC finds behind its GID. */
    send_datagram(&one, ah, 0xabcdef, QKEY);
    CHECK(wait_cqe(&one).status == IBV_WC_SUCCESS && fake_posted() == before + 1);
    close_client(&other);
    close_client(&one);
    close_engine();
}

/* ---- neighbours that the NIC joins ------------------------------------------ */

/* Towards RTS, to a QP behind the GID of the device's NIC. timeout: of the QP's attributes; 0 waits for ever. */
static void connect_behind(const struct client *client, uint32_t qp_num, uint8_t timeout)
{
    struct sluice_qp_attr now, attr = {.dest_qp_num = qp_num, .timeout = timeout, .retry_cnt = 1, .rnr_retry = 7,
                                       .ah = {.is_global = 1, .sgid_index = GID_INDEX, .port_num = 1}};

    for (attr.qp_state = IBV_QPS_INIT; attr.qp_state <= IBV_QPS_RTS; attr.qp_state++)
        CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr,
                               IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                   IBV_QP_AV,
                               SLUICE_TRANSPORT_NIC, 0, &now) == 0);
}

static uint32_t flying_of(uint32_t number)
{
    worker_enter(engine);
    uint32_t bytes = engine->tenants[number]->flying;

    worker_leave(engine);
    return bytes;
}

static bool carries(void)
{
    worker_enter(engine);
    bool carries = nic_carries(engine);

    worker_leave(engine);
    return carries;
}

static bool is_grounded(uint32_t number)
{
    worker_enter(engine);
    bool grounded = !list_empty(&engine->tenants[number]->grounded);

    worker_leave(engine);
    return grounded;
}

static bool waits_for_peer(const struct client *client)
{
    worker_enter(engine);
    bool waits = engine->sessions[client->session]->qps[client->qp]->wait == QP_WAIT_PEER;

    worker_leave(engine);
    return waits;
}

/* Whoever names a neighbour's QP that doesn't name his gets nothing onto the NIC. */
static void test_neighbours_name_each_other(void)
{
    struct client one, other, stranger;

    open_engine();
    open_client(&one);
    open_client(&other);
    open_client(&stranger);
    connect_behind(&one, other.qp_num, 0);
    uint64_t before = fake_posted();

    /* It waits for the one that comes late. */
    write_some(&one, 3);
    while (!waits_for_peer(&one))
        sched_yield();
    CHECK(fake_posted() == before);
    connect_behind(&other, one.qp_num, 8);
    for (uint64_t i = 0; i < 3; i++)
        CHECK(wait_cqe(&one).status == IBV_WC_SUCCESS);
    CHECK(fake_posted() == before + 3);
    connect_behind(&stranger, other.qp_num, 8);
    write_some(&stranger, 2);
    CHECK(wait_cqe(&stranger).status == IBV_WC_RETRY_EXC_ERR && wait_cqe(&stranger).status == IBV_WC_WR_FLUSH_ERR);
    CHECK(fake_posted() == before + 3);
    /* Who is at the other end now is another one: what is on its way ends first, in order. */
    fake_hold(1);
    write_some(&other, 2);
    while (fake_posted() != before + 5)
        sched_yield();
    CHECK(modify(&one, one.qp, IBV_QPS_RESET) == 0);
    write_some(&other, 1);
    fake_hold(0);
    CHECK(wait_cqe(&other).status == IBV_WC_SUCCESS && wait_cqe(&other).status == IBV_WC_SUCCESS);
    CHECK(wait_cqe(&other).status == IBV_WC_RETRY_EXC_ERR && fake_posted() == before + 5);
    /* A number that is no QP's of this router is a program's without Sluice. */
    CHECK(modify(&stranger, stranger.qp, IBV_QPS_RESET) == 0);
    connect_behind(&stranger, 0xabcdef, 8);
    write_some(&stranger, 1);
    CHECK(wait_cqe(&stranger).status == IBV_WC_SUCCESS);
    close_client(&one);
    close_client(&other);
    close_client(&stranger);
    close_engine();
}

/* A wake-up that nobody needs; who has fallen asleep needs it. */
static void test_what_is_done_at_once_is_not_announced(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    connect(&client, client.qp);
    uint32_t before = fake_announced();

    for (int i = 0; i < 20; i++) {
        write_some(&client, 1);
        CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS);
    }
    CHECK(fake_announced() == before);
    fake_hold(1);
    write_some(&client, 1);
    while (!load_relaxed(&engine->page->parked) || flying_of(tenant) == 0)
        sched_yield();
    fake_hold(0);
    CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS);
    close_client(&client);
    close_engine();
}

/* The worker's time is that of a NIC in software, while this has something to carry, and of no other. */
static void test_who_carries(void)
{
    static const bool software[] = {true, false};

    for (uint32_t i = 0; i < 2; i++) {
        struct client client;

        open_engine();
        sluice_nic_close(engine, 0);
        CHECK(sluice_nic_open(engine, 0, i ? "fake1" : "fake0", 1) == 0);
        open_client(&client);
        connect(&client, client.qp);
        CHECK(!carries());
        fake_hold(1);
        write_some(&client, 1);
        while (flying_of(tenant) == 0)
            sched_yield();
        CHECK(carries() == software[i]);
        fake_hold(0);
        CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS);
        close_client(&client);
        close_engine();
    }
}

/* Who has much under way to somebody who never takes it stops nobody else. */
static void test_a_share_of_what_flies(void)
{
    struct sluice_shape shape = {0};
    struct client hog, other;

    /* How much goes in one request is a matter of turns, and these are one of time: 4 KiB where the machine is slow. */
    send_entries = 2 * NIC_FLIGHT / 4096;
    open_engine();
    open_client(&hog);
    connect(&hog, hog.qp);
    uint32_t first = tenant;

    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &shape);
    open_client(&other);
    connect(&other, other.qp);
    send_entries = ENTRIES;
    fake_hold(1);
    for (uint32_t i = 0; i < 3; i++)
        post_write(&hog, &hog, i, MEMORY);
    publish(&hog);
    while (!is_grounded(first))
        sched_yield();
    CHECK(flying_of(first) > NIC_FLIGHT - NIC_CHUNK && flying_of(first) <= NIC_FLIGHT);
    write_some(&other, 10);
    while (flying_of(tenant) != 80)
        sched_yield();
    /* And of that it has no more than its share, or what the other left. */
    for (uint32_t i = 0; i < 3; i++)
        post_write(&other, &other, 10 + i, NIC_CHUNK);
    publish(&other);
    while (!is_grounded(tenant))
        sched_yield();
    CHECK(flying_of(tenant) <= NIC_SHARE || flying_of(first) + flying_of(tenant) <= NIC_FLIGHT);
    fake_hold(0);
    for (uint64_t i = 0; i < 13; i++) {
        struct sluice_cqe cqe = wait_cqe(&other);

        CHECK(cqe.wr_id == i && cqe.status == IBV_WC_SUCCESS);
    }
    for (uint64_t i = 0; i < 3; i++)
        CHECK(wait_cqe(&hog).status == IBV_WC_SUCCESS);
    CHECK(flying_of(first) == 0 && flying_of(tenant) == 0);
    /* Nor does it when it is gone with it. */
    fake_hold(1);
    post_write(&hog, &hog, 0, MEMORY);
    publish(&hog);
    while (flying_of(first) != NIC_FLIGHT)
        sched_yield();
    post_write(&other, &other, 0, MEMORY);
    publish(&other);
    while (!is_grounded(tenant))
        sched_yield();
    CHECK(flying_of(tenant) > 0 && flying_of(tenant) <= NIC_SHARE);
    close_client(&hog);
    while (flying_of(tenant) != NIC_FLIGHT)
        sched_yield();
    fake_hold(0);
    CHECK(wait_cqe(&other).status == IBV_WC_SUCCESS);
    close_client(&other);
    close_engine();
}

/* ---- refusals ----------------------------------------------------------- */

static void test_a_full_device(void)
{
    struct client client;
    struct sluice_create_qp_reply reply;

    open_engine();
    open_client(&client);
    struct sluice_create_qp_request request = {.pd = client.pd, .send_cq = client.cq_handle, .recv_cq = client.cq_handle,
                                               .qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 4, .max_recv_wr = 4}};
    struct sluice_command region = {.op = SLUICE_COMMAND_REG_MR, .pd = client.pd, .length = MEMORY,
                                    .addr = (uintptr_t)client.memory, .iova = (uintptr_t)client.memory};
    uint32_t before = fake_objects();

    for (uint32_t type = IBV_QPT_RC; type <= IBV_QPT_UD; type++) {
        request.qp_type = type;
        for (const char **what = (const char *[]){"qp", "srq", "mr", NULL}; *what; what++) {
            if (type != IBV_QPT_UD && strcmp(*what, "qp") != 0)
                continue;
            fake_refuse(*what, ENOMEM);
            CHECK(sluice_qp_create(engine, client.session, &request, &reply) == -ENOMEM);
            fake_refuse(*what, 0);
            CHECK(fake_objects() == before);
        }
    }
    fake_refuse("mr", EPERM);
    CHECK(try_command(&client, &region) == EPERM);
    region.length = 4096;
    CHECK(try_command(&client, &region) == EPERM && fake_objects() == before);
    fake_refuse("mr", 0);
    fake_refuse("pd", ENOMEM);
    CHECK(sluice_pd_alloc(engine, client.session, engine->sessions[client.session]->next_handle) < 0);
    fake_refuse("pd", 0);
    CHECK(try_command(&client, &region) == 0);
    close_client(&client);
    close_engine();
}

/* What the device takes less of at once than the tenant posts. */
static void test_a_device_with_shallow_queues(void)
{
    struct client client;

    open_engine();
    fake_refuse("depth", EINVAL);
    open_client(&client);
    CHECK(qp_lookup(engine, client.qp_num)->twin->sends == 16);
    fake_refuse("depth", 0);
    connect(&client, client.qp);
    write_some(&client, ENTRIES);
    for (uint32_t i = 0; i < ENTRIES; i++)
        CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS);
    close_client(&client);
    close_engine();
}

static void test_memory_that_was_never_touched(void)
{
    struct client client;

    open_engine();
    open_client(&client);
    /* Of its arena, as a shim that touches nothing would have it: pages that pinning made were the router's. */
    struct sluice_command region = {.op = SLUICE_COMMAND_REG_MR, .pd = client.pd, .length = UNTOUCHED,
                                    .addr = 1ull << 40, .iova = 1ull << 40};
    uint32_t before = fake_objects();

    CHECK(try_command(&client, &region) == EFAULT && fake_objects() == before);
    close_client(&client);
    /* A session that ends while its memory is being registered. */
    open_client(&client);
    region.addr = region.iova = (uintptr_t)client.memory;
    region.length = MEMORY;
    region.pd = client.pd;
    begin_command(&client, &region);
    close_client(&client);
    close_engine();
}

/* ---- the device goes and comes ------------------------------------------ */

static void test_a_device_that_is_removed(void)
{
    struct client client, later;

    open_engine();
    open_client(&client);
    connect(&client, client.qp);
    fake_hold(1);
    uint64_t before = fake_posted();

    write_some(&client, 10);
    while (fake_posted() != before + 10)
        sched_yield();
    write_some(&client, 10);
    sluice_nic_close(engine, 0);
    CHECK(fake_objects() == 0);
    for (uint64_t i = 0; i < 20; i++) {
        struct sluice_cqe cqe = wait_cqe(&client);

        CHECK(cqe.wr_id == i % 10 && cqe.status == IBV_WC_WR_FLUSH_ERR);
    }
    /* What was made in its time is without it. */
    move(&client, IBV_QPS_RESET, 0);
    move(&client, IBV_QPS_INIT, 0);
    CHECK(modify(&client, client.qp, IBV_QPS_RTR) == -EOPNOTSUPP);
    fake_hold(0);
    CHECK(sluice_nic_open(engine, 0, "fake0", 1) == 0);
    CHECK(modify(&client, client.qp, IBV_QPS_RTR) == -EOPNOTSUPP);
    open_client(&later);
    connect(&later, later.qp);
    write_some(&later, 1);
    CHECK(wait_cqe(&later).status == IBV_WC_SUCCESS);
    close_client(&client);
    close_client(&later);
    close_engine();
}

/* ---- several ------------------------------------------------------------ */

/* A second device with its NIC, and a part of it for the tenant. */
static void open_second(void)
{
    struct sluice_shape shape = {0};
    struct sluice_nic nic;

    CHECK(sluice_nic_open(engine, 1, "fake1", 1) == -ENODEV && sluice_device_add(engine) == 1);
    CHECK(sluice_nic_open(engine, 1, "fake1", 3) == -ENODEV);
    CHECK(sluice_nic_open(engine, 0, "fake1", 1) == -EBUSY && sluice_nic_open(engine, 1, "fake1", 1) == 0);
    CHECK(sluice_nic_query(engine, 1, &nic) == 0 && nic.gids[0].raw[15] == 2);
    CHECK(sluice_tenant_add(engine, 1, (int32_t)tenant, &shape) > 0);
}

static void open_client_on(struct client *client, uint32_t number)
{
    device = number;
    open_client(client);
    device = 0;
}

static void test_each_device_has_its_nic(void)
{
    struct client one, other;

    open_engine();
    CHECK(sluice_device_add(engine) == 1);
    struct sluice_shape shape = {0};

    CHECK(sluice_tenant_add(engine, 1, (int32_t)tenant, &shape) > 0);
    uint32_t before = fake_objects();

    /* It has none: what is made there has no part in the first one's. */
    open_client_on(&other, 1);
    CHECK(fake_objects() == before);
    move(&other, IBV_QPS_INIT, 0);
    CHECK(modify(&other, other.qp, IBV_QPS_RTR) == -EOPNOTSUPP);
    close_client(&other);
    CHECK(sluice_nic_open(engine, 1, "fake1", 2) == 0);
    open_client(&one);
    open_client_on(&other, 1);
    CHECK(fake_objects() > before);
    connect(&one, one.qp);
    connect(&other, other.qp);
    write_some(&one, 3);
    write_some(&other, 3);
    for (uint64_t i = 0; i < 3; i++)
        CHECK(wait_cqe(&one).status == IBV_WC_SUCCESS && wait_cqe(&other).status == IBV_WC_SUCCESS);
    close_client(&one);
    close_client(&other);
    close_engine();
}

/*
 * A region that is to lie in another file, and stays where it was, as the NIC refuses: meanwhile the first file may not go,
 * and what is counted is counted on its own device.
 */
static void test_a_region_goes_back(void)
{
    const uint64_t size = 4ull * REGISTRATION_AT_ONCE;
    struct client client;
    int files[2], handles[2];

    open_engine();
    open_second();
    open_client_on(&client, 1);
    const struct sluice_tenant_counters *first = engine->tenants[tenant]->counters, *second = engine->tenants[tenant]->on[1]->counters;

    for (int i = 0; i < 2; i++) {
        files[i] = memfd_create("test", MFD_CLOEXEC);
        CHECK(files[i] >= 0 && ftruncate(files[i], (off_t)size) == 0);
        void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, files[i], 0);

        /* As its shim does for a NIC. */
        CHECK(map != MAP_FAILED && memset(map, 1, size) == map && munmap(map, size) == 0);
        handles[i] = sluice_memory_open_file(engine, client.session, files[i], 1);
        CHECK(handles[i] > 0);
    }
    struct sluice_command region = {.op = SLUICE_COMMAND_REG_MR, .pd = client.pd, .memory = (uint32_t)handles[0],
                                    .length = 4096, .access = IBV_ACCESS_LOCAL_WRITE};

    CHECK(try_command(&client, &region) == 0);
    const uint64_t bytes = second->mr_bytes;
    const uint32_t key = region.key;

    region.op = SLUICE_COMMAND_REREG_MR;
    region.flags = IBV_REREG_MR_CHANGE_TRANSLATION;
    region.memory = (uint32_t)handles[1];
    region.length = size;
    fake_refuse("mr", ENOMEM);
    fake_stop_registering(1);
    begin_command(&client, &region);
    while (fake_registering() == 0)
        sched_yield();
    CHECK(sluice_memory_close(engine, client.session, (uint32_t)handles[0]) == -EBUSY);
    CHECK(sluice_memory_close(engine, client.session, (uint32_t)handles[1]) == -EBUSY);
    fake_stop_registering(0);
    CHECK(await_command(&client, &region) == ENOMEM);
    fake_refuse("mr", 0);
    CHECK(second->mr_bytes == bytes && first->mr_bytes == 0);
    CHECK(sluice_memory_close(engine, client.session, (uint32_t)handles[1]) == 0);
    CHECK(sluice_memory_close(engine, client.session, (uint32_t)handles[0]) == -EBUSY);

    /* A session that ends meanwhile lets go of both. */
    region.key = key;
    region.memory = (uint32_t)handles[0];
    fake_stop_registering(1);
    begin_command(&client, &region);
    while (fake_registering() == 0)
        sched_yield();
    close_client(&client);
    fake_stop_registering(0);
    CHECK(second->mr_bytes == 0);
    close_engine();
}

/* A region moves to a PD of another context while its own one is closed: that PD loses nothing, whoever goes first. */
static void test_a_context_closes_under_a_registration(void)
{
    struct client client;
    int fd;

    open_engine();
    for (int together = 0; together < 2; together++) {
        open_client(&client);
        worker_enter(engine);
        uint32_t first = list_entry(engine->sessions[client.session]->contexts.next, struct context, link)->handle;

        worker_leave(engine);
        int context = sluice_context_open(engine, client.session, 0, &fd);

        close(fd);
        int pd = sluice_pd_alloc(engine, client.session, (uint32_t)context);

        CHECK(pd > 0);
        struct sluice_command move = {.op = SLUICE_COMMAND_REREG_MR, .key = client.key, .pd = (uint32_t)pd,
                                      .flags = IBV_REREG_MR_CHANGE_PD};

        fake_stop_registering(1);
        begin_command(&client, &move);
        while (fake_registering() == 0)
            sched_yield();
        CHECK(sluice_context_close(engine, client.session, first) == 0);
        /* Nobody waits for ever. */
        CHECK(await_command(&client, &move) == EINVAL);
        if (together)
            CHECK(sluice_context_close(engine, client.session, (uint32_t)context) == 0);
        uint32_t before = fake_objects();

        fake_stop_registering(0);
        if (!together) {
            struct sluice_command region = {.op = SLUICE_COMMAND_REG_MR, .pd = (uint32_t)pd, .addr = (uintptr_t)client.memory,
                                            .iova = (uintptr_t)client.memory, .length = 4096};

            CHECK(try_command(&client, &region) == 0 && fake_objects() > before);
        }
        close_client(&client);
    }
    close_engine();
}

/* NICs give the same numbers and keys; a node has each number once, a device each key. */
static void test_numbers_and_keys_of_two_nics(void)
{
    struct client one, other;
    struct sluice_create_qp_reply reply, second;
    int events;

    open_engine();
    open_second();
    open_client(&one);
    open_client_on(&other, 1);
    CHECK(one.key == other.key && one.qp_num != other.qp_num);
    /* Behind the other NIC's GID the same number is somebody else's. */
    CHECK(sluice_qp_tenant(engine, other.qp_num, 1) == (int)tenant && sluice_qp_tenant(engine, other.qp_num, 0) == -ENOENT);
    struct sluice_create_qp_request request = {.pd = one.pd, .send_cq = one.cq_handle, .recv_cq = one.cq_handle,
                                               .qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 1, .max_recv_wr = 1}};

    for (uint32_t i = 0; i < 100; i++)
        CHECK(sluice_qp_create(engine, one.session, &request, &reply) == 0);
    request = (struct sluice_create_qp_request){.pd = other.pd, .send_cq = other.cq_handle, .recv_cq = other.cq_handle,
                                                .qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 1, .max_recv_wr = 1}};
    uint32_t before = fake_objects();

    /* Past all that the other one has now. */
    CHECK(sluice_qp_create(engine, other.session, &request, &second) == 0 && second.qp_num > reply.qp_num);
    CHECK(fake_objects() == before + 1);
    CHECK(sluice_qp_destroy(engine, other.session, second.handle) == 0);
    /* One session on both devices: a key is the PD's device's. */
    int context = sluice_context_open(engine, one.session, 1, &events);
    uint32_t pd = (uint32_t)sluice_pd_alloc(engine, one.session, (uint32_t)context);
    struct sluice_command region = {.op = SLUICE_COMMAND_REG_MR, .pd = pd, .length = 4096, .addr = (uintptr_t)one.memory,
                                    .iova = (uintptr_t)one.memory, .access = IBV_ACCESS_LOCAL_WRITE};
    uint32_t here = command(&one, region);

    region.pd = one.pd;
    uint32_t there = command(&one, region);

    CHECK(here == there);
    struct sluice_command dereg = {.op = SLUICE_COMMAND_DEREG_MR, .pd = pd, .key = here};

    CHECK(try_command(&one, &dereg) == 0 && try_command(&one, &dereg) == EINVAL);
    dereg.pd = one.pd;
    CHECK(try_command(&one, &dereg) == 0 && try_command(&one, &dereg) == EINVAL);
    close(events);
    close_client(&one);
    close_client(&other);
    close_engine();
}

static void test_one_is_removed_and_the_other_goes_on(void)
{
    struct client stays, goes, later;

    open_engine();
    open_second();
    open_client(&stays);
    open_client_on(&goes, 1);
    connect(&stays, stays.qp);
    connect(&goes, goes.qp);
    fake_hold(1);
    uint64_t before = fake_posted();

    write_some(&stays, 10);
    write_some(&goes, 10);
    while (fake_posted() != before + 20)
        sched_yield();
    uint32_t both = fake_objects();

    sluice_nic_close(engine, 1);
    for (uint64_t i = 0; i < 10; i++)
        CHECK(wait_cqe(&goes).status == IBV_WC_WR_FLUSH_ERR);
    CHECK(fake_objects() < both && sluice_nic_async_fd(engine, 1) == -ENODEV && sluice_nic_async_fd(engine, 0) >= 0);
    CHECK(load_relaxed(&engine->page->pins) == 1);
    write_some(&stays, 5);
    fake_hold(0);
    for (uint64_t i = 0; i < 15; i++)
        CHECK(wait_cqe(&stays).status == IBV_WC_SUCCESS);
    CHECK(sluice_nic_open(engine, 1, "fake1", 1) == 0);
    open_client_on(&later, 1);
    connect(&later, later.qp);
    write_some(&later, 1);
    CHECK(wait_cqe(&later).status == IBV_WC_SUCCESS);
    sluice_nic_close(engine, 0);
    sluice_nic_close(engine, 1);
    CHECK(fake_objects() == 0 && load_relaxed(&engine->page->pins) == 0);
    close_client(&stays);
    close_client(&goes);
    close_client(&later);
    close_engine();
}

static uint32_t pace_after_a_message(struct client *client, uint32_t *burst)
{
    write_some(client, 1);
    CHECK(wait_cqe(client).status == IBV_WC_SUCCESS);
    return fake_pace(client->qp_num, burst);
}

static void shape(uint64_t max_bps, uint64_t burst)
{
    struct sluice_shape shape = {.share = {.max_bps = {max_bps, max_bps}, .burst = {burst, burst}}};

    CHECK(sluice_tenant_shape(engine, tenant, &shape) == 0);
}

static void test_ceilings_are_the_nics_where_it_can_pace(void)
{
    struct client client;
    struct sluice_share share = {.max_bps = {50000000, 0}};
    struct sluice_shape in_group = {0};
    uint32_t burst;

    fake_pacing(1u << IBV_QPT_RC, 2000, 1000000);
    open_engine();
    open_client(&client);
    connect(&client, client.qp);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    /* As much above the ceiling as a bucket's peak is. */
    shape(100000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 114286 && burst == 0);
    shape(200000000, 1 << 20);
    CHECK(pace_after_a_message(&client, &burst) == 228572 && burst == 1 << 20);
    /* What it can't do, or has no room for, it is not to do by the old rate. */
    shape(1000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    shape(100000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 114286);
    shape(2000000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    shape(100000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 114286);
    fake_refuse("pace", ENOSPC);
    shape(300000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    fake_refuse("pace", 0);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    shape(0, 0);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    /* Devices that pace, but take no burst, and such as know no way back to none. */
    fake_refuse("burst", EINVAL);
    shape(200000000, 1 << 20);
    CHECK(pace_after_a_message(&client, &burst) == 228572 && burst == 0);
    fake_refuse("lifting", EINVAL);
    shape(0, 0);
    CHECK(pace_after_a_message(&client, &burst) == 1000000);
    fake_refuse("lifting", 0);
    fake_refuse("burst", 0);
    shape(100000000, 0);
    CHECK(pace_after_a_message(&client, &burst) == 114286);
    /* A group's, which is lower than the tenant's own. */
    in_group.group = (uint32_t)sluice_group_add(engine, 0, &share) + 1;
    in_group.share.max_bps[0] = 60000000;
    CHECK(sluice_tenant_shape(engine, tenant, &in_group) == 0);
    CHECK(pace_after_a_message(&client, &burst) == 57143);
    /* A QP that starts anew has no rate of before. */
    CHECK(modify(&client, client.qp, IBV_QPS_RESET) == 0);
    connect(&client, client.qp);
    CHECK(fake_pace(client.qp_num, &burst) == 0 && pace_after_a_message(&client, &burst) == 57143);
    close_client(&client);
    close_engine();
}

static void test_what_the_nic_cant_pace(void)
{
    struct client client;
    uint32_t burst;

    fake_pacing(1u << IBV_QPT_RAW_PACKET, 1, 1000000);
    open_engine();
    shape(100000000, 0);
    open_client(&client);
    connect(&client, client.qp);
    CHECK(pace_after_a_message(&client, &burst) == 0);
    close_client(&client);
    close_engine();
    fake_pacing(0, 0, 0);
}

static void test_events_are_those_of_the_port(void)
{
    uint32_t type = 0;

    open_engine();
    open_second();
    fake_event(1, 2, IBV_EVENT_PORT_ERR);
    CHECK(sluice_nic_next_event(engine, 1, &type) == 0);
    fake_event(1, 2, IBV_EVENT_PORT_ACTIVE);
    fake_event(1, 1, IBV_EVENT_PORT_ERR);
    fake_event(1, 0, IBV_EVENT_DEVICE_FATAL);
    CHECK(sluice_nic_next_event(engine, 0, &type) == 0);
    CHECK(sluice_nic_next_event(engine, 1, &type) == 1 && type == IBV_EVENT_PORT_ERR);
    CHECK(sluice_nic_next_event(engine, 1, &type) == 1 && type == IBV_EVENT_DEVICE_FATAL);
    CHECK(sluice_nic_next_event(engine, 1, &type) == 0);
    close_engine();
}

static void count(uint32_t messages)
{
    struct client client;

    open_engine();
    open_client(&client);
    connect(&client, client.qp);
    for (uint32_t i = 0; i < messages; i += ENTRIES / 2) {
        write_some(&client, ENTRIES / 2);
        for (uint32_t j = 0; j < ENTRIES / 2; j++)
            CHECK(wait_cqe(&client).status == IBV_WC_SUCCESS);
    }
    printf("%.0f ns for a message, of which its turn took %.0f ns\n", (double)engine->header->worker_busy_ns / messages,
           (double)engine->tenants[tenant]->counters->engine_ns / messages);
    close_client(&client);
    close_engine();
}

/* Sockets have ids beside QP numbers, which a NIC chooses as it likes. */
static void test_a_trunk_is_no_queue_pair(void)
{
    struct datagram_frame nonsense = {.length = SLUICE_MTU + 1};
    struct client client;
    int ends[2], trunk;
    bool looked = false;
    uint8_t byte;

    open_engine();
    open_client(&client);
    CHECK(client.qp_num & 1);
    do
        trunk = sluice_trunk_open(engine);
    while (trunk >= 0 && (uint32_t)trunk != client.qp_num / 2);
    make_connection(ends);
    CHECK(trunk >= 0 && sluice_trunk_accept(engine, (uint32_t)trunk, ends[0]) == 0);
    /* From now on only epoll tells. */
    while (!looked) {
        worker_enter(engine);
        looked = !engine->trunks[trunk]->in.readable;
        worker_leave(engine);
        sched_yield();
    }
    CHECK(write(ends[1], &nonsense, sizeof(nonsense)) == sizeof(nonsense));
    /* It hangs up. */
    CHECK(read(ends[1], &byte, 1) == 0);
    close(ends[1]);
    close_client(&client);
    close_engine();
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "COUNT") == 0) {
        count((uint32_t)atoi(argv[2]));
        return 0;
    }
    RUN(test_gids);
    RUN(test_requests_complete);
    RUN(test_receives_reach_the_nic);
    RUN(test_windows_have_the_nics_keys);
    RUN(test_registering_anew_gives_another_key);
    RUN(test_receives_of_an_srq_come_and_go);
    RUN(test_datagrams_go_by_the_nic);
    RUN(test_a_sleeping_worker_hears_of_datagrams);
    RUN(test_neighbours_are_asked_for);
    RUN(test_neighbours_name_each_other);
    RUN(test_what_is_done_at_once_is_not_announced);
    RUN(test_who_carries);
    RUN(test_a_share_of_what_flies);
    RUN(test_a_full_device);
    RUN(test_a_device_with_shallow_queues);
    RUN(test_memory_that_was_never_touched);
    RUN(test_a_device_that_is_removed);
    RUN(test_each_device_has_its_nic);
    RUN(test_a_region_goes_back);
    RUN(test_a_context_closes_under_a_registration);
    RUN(test_numbers_and_keys_of_two_nics);
    RUN(test_one_is_removed_and_the_other_goes_on);
    RUN(test_ceilings_are_the_nics_where_it_can_pace);
    RUN(test_what_the_nic_cant_pace);
    RUN(test_events_are_those_of_the_port);
    RUN(test_a_trunk_is_no_queue_pair);
    return 0;
}
