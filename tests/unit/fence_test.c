/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When memory is its application's again: a thread that stores into a process (reach.h) is held up in the middle of it, and
 * nothing may say meanwhile that the memory is free.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "client.h"
#include "qp.h"
#include "reach.h"
#include "worker.h"

enum {
    LENGTH = 4096,
    QKEY = 77,
    ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_MW_BIND,
};

static const uint8_t gid[16] = {[10] = 0xff, [11] = 0xff, 10, 0, 0, 1};

/* ---- the thread, held up -------------------------------------------------- */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_changed = PTHREAD_COND_INITIALIZER;
static bool gate_closed;
static uint32_t waiting; /* threads before it */

/* In libc's place, by whichever of its names the engine calls it: only threads that store in a process do. */
static ssize_t gated_pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    pthread_mutex_lock(&gate);
    waiting++;
    pthread_cond_broadcast(&gate_changed);
    while (gate_closed)
        pthread_cond_wait(&gate_changed, &gate);
    waiting--;
    pthread_mutex_unlock(&gate);
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    return gated_pwrite(fd, bytes, length, offset);
}

#ifndef __USE_FILE_OFFSET64
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
    return gated_pwrite(fd, bytes, length, offset);
}
#endif

static void hold(void)
{
    pthread_mutex_lock(&gate);
    gate_closed = true;
    pthread_mutex_unlock(&gate);
}

/* Until the thread is before the gate. */
static void await_store(void)
{
    pthread_mutex_lock(&gate);
    while (!waiting)
        pthread_cond_wait(&gate_changed, &gate);
    pthread_mutex_unlock(&gate);
}

static void let_go(void)
{
    pthread_mutex_lock(&gate);
    gate_closed = false;
    pthread_cond_broadcast(&gate_changed);
    pthread_mutex_unlock(&gate);
}

/* ---- two clients, and memory that only the second one's process reaches ------ */

static struct client a, b;
static uint8_t *arena;    /* what b's session has in its arena */
static uint32_t by_process; /* its memory's handle */

static struct sluice_command region_of_process(void)
{
    return (struct sluice_command){.op = SLUICE_COMMAND_REG_MR, .pd = b.pd, .access = ALL, .memory = by_process,
                                   .addr = (uintptr_t)b.memory, .iova = (uintptr_t)b.memory, .length = MEMORY};
}

static void open_of(uint32_t qp_type)
{
    open_client_of(&a, qp_type);
    open_client_of(&b, qp_type);
    int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

    CHECK(mem >= 0);
    int handle = sluice_memory_open_process(engine, b.session, mem);

    CHECK(handle > 0);
    arena = b.memory;
    by_process = (uint32_t)handle;
    b.memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(b.memory != MAP_FAILED);
    b.key = command(&b, region_of_process());
    /* For READs of it. */
    a.key = command(&a, (struct sluice_command){.op = SLUICE_COMMAND_REG_MR, .pd = a.pd, .access = ALL,
                                                .addr = (uintptr_t)a.memory, .iova = (uintptr_t)a.memory, .length = MEMORY});
    memset(a.memory, 0xaa, MEMORY);
}

static void bring_up(struct client *client, uint32_t peer, uint32_t transport)
{
    bool datagrams = transport == SLUICE_TRANSPORT_LOCAL && !peer;

    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        struct sluice_qp_attr now, attr = {
            .qp_state = state, .dest_qp_num = peer, .timeout = 0, .retry_cnt = 7, .rnr_retry = 7, .qkey = QKEY,
            .max_rd_atomic = 1, .max_dest_rd_atomic = 1, .qp_access_flags = ALL & ~IBV_ACCESS_MW_BIND};

        CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr,
                               datagrams ? IBV_QP_STATE | IBV_QP_QKEY
                                         : IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                               IBV_QP_RNR_RETRY | IBV_QP_ACCESS_FLAGS | IBV_QP_MAX_QP_RD_ATOMIC |
                                               IBV_QP_MAX_DEST_RD_ATOMIC,
                               transport, transport == SLUICE_TRANSPORT_LOCAL ? (int32_t)tenant : -1, &now) == 0);
    }
}

/* RESET and ERR take no attributes. */
static void end_with(struct client *client, uint32_t state)
{
    struct sluice_qp_attr now, attr = {.qp_state = state};

    CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr, IBV_QP_STATE, SLUICE_TRANSPORT_NONE, -1, &now) == 0);
}

static void open_pair(uint32_t transport)
{
    open_of(IBV_QPT_RC);
    bring_up(&a, b.qp_num, transport);
    bring_up(&b, a.qp_num, transport);
    if (transport == SLUICE_TRANSPORT_TCP) {
        int ends[2];

        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        CHECK(sluice_qp_connect(engine, a.session, a.qp, ends[0]) == 0);
        CHECK(sluice_qp_connect(engine, b.session, b.qp, ends[1]) == 0);
    }
}

static void close_pair(void)
{
    struct sluice_engine_event event;

    munmap(arena, MEMORY);
    close_client(&a);
    close_client(&b);
    while (sluice_engine_next_event(engine, &event))
        CHECK(event.kind == SLUICE_EVENT_QP_DISCONNECTED);
}

static void post(struct client *client, uint8_t opcode, const struct client *to)
{
    post_write(client, to, 1, LENGTH);
    ((struct sluice_wqe *)((uint8_t *)client->sq + ((client->posted - 1) & (ENTRIES - 1)) * client->sq_stride))->opcode = opcode;
    publish(client);
}

/* A WRITE to b, of which the thread is in the middle. */
static void begin_write(void)
{
    hold();
    post(&a, IBV_WR_RDMA_WRITE, &b);
    await_store();
}

static bool completed(const struct client *client)
{
    const struct sluice_cqe *cqe = &client->ring[client->polled & (client->cq_entries - 1)];

    return load_acquire(&cqe->turn) == client->polled / client->cq_entries + 1;
}

/* b's command was carried out: in the second round at the latest it stands before another session's. */
static void let_it_be_carried_out(void)
{
    for (int i = 0; i < 2; i++) {
        struct sluice_command nothing = {.op = SLUICE_COMMAND_DEREG_MR, .pd = a.pd, .key = 0};

        try_command(&a, &nothing);
    }
}

/* What was posted to b's mailbox isn't answered before the thread is done, and then with success. */
static void expect_fenced(struct sluice_command *what)
{
    begin_command(&b, what);
    let_it_be_carried_out();
    CHECK(load_acquire(&b.segment->command.state) == SLUICE_COMMAND_POSTED);
    let_go();
    CHECK(await_command(&b, what) == 0);
    /* Whatever came, came before. */
    uint8_t byte = b.memory[LENGTH - 1];

    CHECK(byte == 0xaa);
    memset(b.memory, 0x55, LENGTH);
}

static void expect_untouched(void)
{
    for (uint32_t i = 0; i < LENGTH; i++)
        CHECK(b.memory[i] == 0x55);
}

/* ---- commands ------------------------------------------------------------------ */

static void a_region_ends_when_nothing_is_under_way(uint32_t transport)
{
    for (int how = 0; how < 5; how++) {
        struct sluice_command what;

        open_pair(transport);
        begin_write();
        what = (struct sluice_command){.op = SLUICE_COMMAND_DEREG_MR, .pd = b.pd, .key = b.key};
        if (how == 1) { /* it moves */
            what = region_of_process();
            what.op = SLUICE_COMMAND_REREG_MR;
            what.key = b.key;
            what.flags = IBV_REREG_MR_CHANGE_TRANSLATION;
            what.addr = what.iova = (uintptr_t)arena;
            what.memory = 0;
        }
        if (how == 2) /* its rights end */
            what = (struct sluice_command){.op = SLUICE_COMMAND_REREG_MR, .pd = b.pd, .key = b.key,
                                           .flags = IBV_REREG_MR_CHANGE_ACCESS};
        if (how == 3) { /* its QP does, and that of who writes */
            end_with(&b, IBV_QPS_RESET);
            end_with(&a, IBV_QPS_RESET);
            what = (struct sluice_command){.op = SLUICE_COMMAND_FENCE};
        }
        if (how == 4) {
            CHECK(sluice_qp_destroy(engine, b.session, b.qp) == 0);
            what = (struct sluice_command){.op = SLUICE_COMMAND_FENCE};
        }
        expect_fenced(&what);
        if (how < 3)
            CHECK(wait_cqe(&a).status == (transport == SLUICE_TRANSPORT_TCP ? IBV_WC_SUCCESS : IBV_WC_REM_ACCESS_ERR));
        expect_untouched();
        close_pair();
    }
}

static void of_a_node(void)
{
    a_region_ends_when_nothing_is_under_way(SLUICE_TRANSPORT_LOCAL);
}

static void of_two(void)
{
    a_region_ends_when_nothing_is_under_way(SLUICE_TRANSPORT_TCP);
}

/* Nothing is under way: nothing is waited for. And what a session waited for ends with it. */
static void sessions_end_meanwhile(void)
{
    struct sluice_command what;

    open_pair(SLUICE_TRANSPORT_LOCAL);
    post(&a, IBV_WR_RDMA_WRITE, &b);
    CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
    begin_write();
    what = (struct sluice_command){.op = SLUICE_COMMAND_DEREG_MR, .pd = b.pd, .key = b.key};
    begin_command(&b, &what);
    let_it_be_carried_out();
    post_receive(&b, 3, 0, LENGTH);
    close_pair();
    let_go();
}

/* ---- windows ------------------------------------------------------------------- */

static uint32_t bind_window(uint32_t type)
{
    uint32_t window =
        command(&b, (struct sluice_command){.op = SLUICE_COMMAND_ALLOC_MW, .pd = b.pd, .flags = type});
    struct sluice_wqe *wqe = slot(&b);
    uint32_t key = (window & ~0xffu) | ((window + 1) & 0xff);

    *wqe = (struct sluice_wqe){.opcode = IBV_WR_BIND_MW, .flags = SLUICE_WQE_SIGNALED, .remote_addr = (uintptr_t)b.memory,
                               .rkey = key, .imm_data = b.key};
    *(struct sluice_bind *)(wqe + 1) = (struct sluice_bind){.length = MEMORY, .access = IBV_ACCESS_REMOTE_WRITE};
    b.posted++;
    publish(&b);
    CHECK(wait_cqe(&b).status == IBV_WC_SUCCESS);
    return key;
}

/* Its WR completes no sooner. */
static void expect_wr_fenced(void)
{
    bool waits = false;

    publish(&b);
    while (!waits && !completed(&b)) {
        sched_yield();
        worker_enter(engine);
        waits = engine->sessions[b.session]->qps[b.qp]->wait == QP_WAIT_COPY;
        worker_leave(engine);
    }
    CHECK(!completed(&b));
    let_go();
    /* The WRITE finds its key gone, and the QP fails by that: it may do so first. */
    uint32_t status = wait_cqe(&b).status;

    CHECK(status == IBV_WC_SUCCESS || status == IBV_WC_WR_FLUSH_ERR);
    memset(b.memory, 0x55, LENGTH);
    CHECK(wait_cqe(&a).status == IBV_WC_REM_ACCESS_ERR);
    expect_untouched();
}

static void a_window_ends_when_nothing_is_under_way(void)
{
    for (int how = 0; how < 3; how++) {
        open_pair(SLUICE_TRANSPORT_LOCAL);
        uint32_t region = b.key;
        uint32_t key = bind_window(how == 1 ? IBV_MW_TYPE_2 : IBV_MW_TYPE_1);

        b.key = key;
        begin_write();
        if (how == 0) {
            struct sluice_command dealloc = {.op = SLUICE_COMMAND_DEALLOC_MW, .pd = b.pd, .key = key};

            expect_fenced(&dealloc);
            CHECK(wait_cqe(&a).status == IBV_WC_REM_ACCESS_ERR);
            expect_untouched();
        } else {
            struct sluice_wqe *wqe = slot(&b);

            if (how == 1) {
                *wqe = (struct sluice_wqe){.opcode = IBV_WR_LOCAL_INV, .flags = SLUICE_WQE_SIGNALED, .imm_data = key};
            } else { /* to a place of its own, by another key */
                *wqe = (struct sluice_wqe){.opcode = IBV_WR_BIND_MW, .flags = SLUICE_WQE_SIGNALED, .imm_data = region,
                                           .rkey = (key & ~0xffu) | ((key + 1) & 0xff), .remote_addr = (uintptr_t)b.memory};
                *(struct sluice_bind *)(wqe + 1) =
                    (struct sluice_bind){.length = LENGTH, .access = IBV_ACCESS_REMOTE_WRITE};
            }
            b.posted++;
            expect_wr_fenced();
        }
        close_pair();
    }
}

/* ---- completions ---------------------------------------------------------------- */

/* b fails: what is flushed isn't before the thread is done. count: so many completions. */
static void expect_flush_fenced(uint32_t count)
{
    await_store();
    end_with(&b, IBV_QPS_ERR);
    /* Also what is posted now. */
    post_receive(&b, 9, 0, LENGTH);
    ring(&b);
    let_it_be_carried_out();
    CHECK(!completed(&b));
    let_go();
    for (uint32_t i = 0; i < count; i++) {
        CHECK(wait_cqe(&b).status == IBV_WC_WR_FLUSH_ERR);
        memset(b.memory, 0x55, LENGTH);
    }
    CHECK(wait_cqe(&b).wr_id == 9);
    expect_untouched();
}

static void a_receive_is_flushed_when_nothing_is_under_way(uint32_t transport)
{
    open_pair(transport);
    post_receive(&b, 2, 0, LENGTH);
    hold();
    post(&a, IBV_WR_SEND, &b);
    expect_flush_fenced(1);
    close_pair();
}

static void a_read_is_flushed_when_nothing_is_under_way(uint32_t transport)
{
    open_pair(transport);
    hold();
    post(&b, IBV_WR_RDMA_READ, &a);
    expect_flush_fenced(1);
    close_pair();
}

static void connected_queue_pairs_fail(void)
{
    for (uint32_t transport = SLUICE_TRANSPORT_LOCAL; transport <= SLUICE_TRANSPORT_TCP; transport++) {
        if (transport == SLUICE_TRANSPORT_NIC)
            continue;
        a_receive_is_flushed_when_nothing_is_under_way(transport);
        a_read_is_flushed_when_nothing_is_under_way(transport);
    }
}

static void post_datagram(uint32_t ah)
{
    struct sluice_wqe *wqe = slot(&a);

    *wqe = (struct sluice_wqe){.opcode = IBV_WR_SEND, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1, .ah = ah,
                               .remote_qpn = b.qp_num, .remote_qkey = QKEY};
    *(struct sluice_sge *)(wqe + 1) = (struct sluice_sge){.addr = (uintptr_t)a.memory, .length = 256, .lkey = a.key};
    a.posted++;
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
}

/* Two datagrams on their way; and how it fails: by itself, or by a receive that leads nowhere, which completes in its turn. */
static void datagrams_fail(void)
{
    for (int how = 0; how < 2; how++) {
        open_of(IBV_QPT_UD);
        bring_up(&a, 0, SLUICE_TRANSPORT_LOCAL);
        bring_up(&b, 0, SLUICE_TRANSPORT_LOCAL);
        struct sluice_create_ah_request request = {.pd = a.pd, .attr = {.is_global = 1, .port_num = 1}};

        memcpy(request.attr.dgid, gid, sizeof(gid));
        int ah = sluice_ah_create(engine, a.session, &request, gid, (int32_t)tenant);

        CHECK(ah > 0);
        hold();
        for (uint32_t i = 0; i < 2; i++) {
            post_receive(&b, 2 + i, 0, LENGTH);
            post_datagram((uint32_t)ah);
        }
        if (how == 0) {
            expect_flush_fenced(2);
        } else {
            uint32_t key = b.key;

            b.key ^= 1;
            post_receive(&b, 4, 0, LENGTH);
            b.key = key;
            post_datagram((uint32_t)ah);
            await_store();
            CHECK(!completed(&b));
            let_go();
            CHECK(wait_cqe(&b).status == IBV_WC_SUCCESS && wait_cqe(&b).status == IBV_WC_SUCCESS);
            struct sluice_cqe cqe = wait_cqe(&b);

            CHECK(cqe.status == IBV_WC_LOC_PROT_ERR && cqe.wr_id == 4);
        }
        close_pair();
    }
}

/* Whose thread hangs leaves no more with it than REACH_KEPT, whatever he ends. */
static void what_hangs_is_bounded(void)
{
    open_pair(SLUICE_TRANSPORT_LOCAL);
    hold();
    post(&b, IBV_WR_RDMA_READ, &a);
    await_store();
    for (uint32_t i = 0; i < REACH_KEPT + ENTRIES; i++) {
        worker_enter(engine);
        struct qp *qp = engine->sessions[b.session]->qps[b.qp];

        /* As a receive of which a part has come. */
        qp->receive.active = true;
        qp->receive.pd = qp->pd;
        qp->receive.cq = qp->recv_cq;
        worker_leave(engine);
        end_with(&b, IBV_QPS_ERR);
        end_with(&b, IBV_QPS_RESET);
    }
    worker_enter(engine);
    const struct reach *reach = engine->sessions[b.session]->reach;

    CHECK(reach_busy(reach) && !reach_may_wait(engine, reach));
    /* Which takes nothing from what others store there. */
    CHECK(reach_has_room(engine, reach));
    worker_leave(engine);
    let_go();
    close_pair();
}

int main(void)
{
    struct sluice_shape none = {0};

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    CHECK(sluice_tenant_address(engine, tenant, gid) == 0);
    RUN(of_a_node);
    RUN(of_two);
    RUN(sessions_end_meanwhile);
    RUN(a_window_ends_when_nothing_is_under_way);
    RUN(connected_queue_pairs_fail);
    RUN(datagrams_fail);
    RUN(what_hangs_is_bounded);
    CHECK(sluice_tenant_remove(engine, tenant) == 0);
    sluice_engine_close(engine);
    return 0;
}
