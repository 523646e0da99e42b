/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "client.h"

#include <infiniband/verbs.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "closing.h"
#include "futex.h"

struct sluice_engine *engine;
uint32_t tenant, device, send_sges = 1, send_entries = ENTRIES;

void wake(void)
{
    full_fence();
    while (load_relaxed(&engine->page->parked) &&
           syscall(SYS_futex, &engine->page->parked, FUTEX_WAKE, 1, NULL, NULL, 0) == 0)
        sched_yield();
}

void ring(struct client *client)
{
    __atomic_fetch_or(&client->segment->words[client->qp / 64], 1ull << (client->qp % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&client->segment->summary[client->qp / 4096], 1ull << (client->qp / 64 % 64), __ATOMIC_SEQ_CST);
    wake();
}

void begin_command(struct client *client, const struct sluice_command *what)
{
    struct sluice_command *mailbox = &client->segment->command;

    memcpy((char *)mailbox + 4, (const char *)what + 4, sizeof(*what) - 4);
    store_release(&mailbox->state, (uint32_t)SLUICE_COMMAND_POSTED);
    exchange(&client->segment->command_rung, 1);
    wake();
}

int await_command(struct client *client, struct sluice_command *what)
{
    struct sluice_command *mailbox = &client->segment->command;

    while (load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE)
        sched_yield();
    what->key = mailbox->key;
    return what->status = mailbox->status;
}

int try_command(struct client *client, struct sluice_command *what)
{
    begin_command(client, what);
    return await_command(client, what);
}

uint32_t command(struct client *client, struct sluice_command what)
{
    CHECK(try_command(client, &what) == 0);
    return what.key;
}

void open_client(struct client *client)
{
    open_client_of(client, IBV_QPT_RC);
}

void open_client_of(struct client *client, uint32_t qp_type)
{
    struct sluice_session_files files;
    struct sluice_create_cq_request cq_request = {.cqe = 4 * ENTRIES};
    struct sluice_create_cq_reply cq;
    struct sluice_create_qp_reply qp;

    memset(client, 0, sizeof(*client));
    client->session = (uint32_t)sluice_session_open(engine, tenant, &files);
    /* The engine's own mapping, so that ThreadSanitizer sees both sides at one address. */
    client->segment = segment_head(&engine->sessions[client->session]->segment);
    client->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mmap(client->memory, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, files.arena,
               (off_t)(uintptr_t)client->memory) == client->memory);
    /* As its shim does for a NIC. */
    memset(client->memory, 0, MEMORY);
    int async_events, context = sluice_context_open(engine, client->session, device, &async_events);
    int pd = sluice_pd_alloc(engine, client->session, (uint32_t)context);

    cq_request.context = (uint32_t)context;
    CHECK(pd > 0 && sluice_cq_create(engine, client->session, &cq_request, &cq) == 0);
    struct sluice_create_qp_request qp_request = {
        .pd = (uint32_t)pd, .send_cq = cq.handle, .recv_cq = cq.handle, .qp_type = qp_type,
        .cap = {.max_send_wr = send_entries, .max_recv_wr = ENTRIES, .max_send_sge = send_sges, .max_recv_sge = 1}};

    CHECK(sluice_qp_create(engine, client->session, &qp_request, &qp) == 0);
    client->pd = (uint32_t)pd;
    client->cq_handle = cq.handle;
    client->qp = qp.handle;
    client->qp_num = qp.qp_num;
    client->shared = (struct sluice_qp_shared *)((uint8_t *)client->segment + qp.offset);
    client->sq = (struct sluice_wqe *)((uint8_t *)client->segment + qp.sq_offset);
    client->sq_stride = qp.sq_stride;
    client->sq_entries = send_entries;
    client->rq = (struct sluice_recv_wqe *)((uint8_t *)client->segment + qp.rq_offset);
    client->rq_stride = qp.rq_stride;
    client->cq = (struct sluice_cq_shared *)((uint8_t *)client->segment + cq.offset);
    client->ring = (struct sluice_cqe *)((uint8_t *)client->segment + cq.ring);
    client->cq_entries = cq.cqe;
    client->key = command(client, (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = (uint32_t)pd, .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
        .addr = (uintptr_t)client->memory, .iova = (uintptr_t)client->memory, .length = MEMORY});
    close(files.segment);
    close(files.arena);
    close(async_events);
}

void close_client(struct client *client)
{
    CHECK(sluice_session_close(engine, client->session) == 0);
    /* What it had counts for its tenant until then. */
    closing_wait();
    munmap(client->memory, MEMORY);
}

void move(struct client *client, uint32_t state, uint32_t peer)
{
    struct sluice_qp_attr now, attr = {
        .qp_state = state, .dest_qp_num = peer, .timeout = 8, .retry_cnt = 1, .rnr_retry = 7,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};

    CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr,
                           IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                               IBV_QP_ACCESS_FLAGS,
                           SLUICE_TRANSPORT_LOCAL, (int32_t)tenant, &now) == 0);
}

void join(struct client *a, struct client *b)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        move(a, state, b->qp_num);
        move(b, state, a->qp_num);
    }
}

void publish(struct client *client)
{
    store_release(&client->shared->sq.producer, client->posted);
    full_fence();
    if (load_relaxed(&client->shared->sq.armed) && exchange(&client->shared->sq.armed, 0))
        ring(client);
}

struct sluice_wqe *slot(struct client *client)
{
    return (struct sluice_wqe *)((uint8_t *)client->sq + (client->posted & (client->sq_entries - 1)) * client->sq_stride);
}

void post_write(struct client *client, const struct client *to, uint64_t wr_id, uint32_t length)
{
    struct sluice_wqe *wqe = slot(client);

    *wqe = (struct sluice_wqe){.opcode = IBV_WR_RDMA_WRITE, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1,
                               .wr_id = wr_id, .remote_addr = (uintptr_t)to->memory, .rkey = to->key};
    *(struct sluice_sge *)(wqe + 1) =
        (struct sluice_sge){.addr = (uintptr_t)client->memory, .length = length, .lkey = client->key};
    client->posted++;
}

void post_receive(struct client *client, uint64_t wr_id, uint32_t offset, uint32_t length)
{
    struct sluice_recv_wqe *wqe =
        (struct sluice_recv_wqe *)((uint8_t *)client->rq + (client->receives & (ENTRIES - 1)) * client->rq_stride);

    *wqe = (struct sluice_recv_wqe){.wr_id = wr_id, .num_sge = 1};
    *(struct sluice_sge *)(wqe + 1) =
        (struct sluice_sge){.addr = (uintptr_t)client->memory + offset, .length = length, .lkey = client->key};
    store_release(&client->shared->rq.producer, ++client->receives);
    full_fence();
    if (load_relaxed(&client->shared->rq.armed) && exchange(&client->shared->rq.armed, 0))
        ring(client);
}

struct sluice_cqe wait_cqe(struct client *client)
{
    struct sluice_cqe *cqe = &client->ring[client->polled & (client->cq_entries - 1)];

    while (load_acquire(&cqe->turn) != client->polled / client->cq_entries + 1)
        sched_yield();
    struct sluice_cqe copy = *cqe;

    store_release(&client->cq->consumer, ++client->polled);
    return copy;
}

void expect_broken(const struct client *client)
{
    struct sluice_engine_event event;

    while (sluice_engine_next_event(engine, &event) == 0)
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_SESSION_BROKEN && event.session == client->session && event.reason[0]);
}

void make_connection(int ends[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
}
