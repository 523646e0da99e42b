/* SPDX-License-Identifier: Apache-2.0 */
/* Posting, completions and events. */
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <time.h>

#include "suite.h"

double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int ask(struct end *e, struct request request)
{
    struct ibv_sge sge = {
        .addr = (uintptr_t)e->memory + request.from,
        .length = request.length,
        .lkey = request.lkey ? request.lkey : e->mr->lkey,
    };
    struct ibv_send_wr *bad, wr = {
        .wr_id = request.wr_id,
        .sg_list = request.sges ? request.sges : &sge,
        .num_sge = request.empty ? 0 : request.sges ? request.sge_count : 1,
        .opcode = request.opcode,
        .send_flags = request.flags | (request.quiet ? 0 : IBV_SEND_SIGNALED),
    };
    uint64_t remote = e->peer.memory + request.to;
    uint32_t rkey = request.rkey ? request.rkey : e->peer.rkey;

    if (request.opcode == IBV_WR_SEND_WITH_INV || request.opcode == IBV_WR_LOCAL_INV)
        wr.invalidate_rkey = request.imm;
    else
        wr.imm_data = htonl(request.imm);
    if (request.ah) {
        wr.wr.ud.ah = request.ah;
        wr.wr.ud.remote_qpn = request.qp_num;
        wr.wr.ud.remote_qkey = request.qkey;
    } else if (request.opcode == IBV_WR_ATOMIC_CMP_AND_SWP || request.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = remote;
        wr.wr.atomic.rkey = rkey;
        wr.wr.atomic.compare_add = request.compare_add;
        wr.wr.atomic.swap = request.swap;
    } else {
        wr.wr.rdma.remote_addr = remote;
        wr.wr.rdma.rkey = rkey;
    }
    wr.qp_type.xrc.remote_srqn = request.srq_num;
    return ibv_post_send(request.qp ? request.qp : e->qp, &wr, &bad);
}

int receive_on(struct end *e, struct ibv_qp *qp, uint64_t wr_id, uint32_t at, uint32_t length)
{
    struct ibv_sge sge = {.addr = (uintptr_t)e->memory + at, .length = length, .lkey = e->mr->lkey};
    struct ibv_recv_wr *bad, wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1};

    return e->srq ? ibv_post_srq_recv(e->srq, &wr, &bad) : ibv_post_recv(qp, &wr, &bad);
}

struct ibv_wc next_wc(struct end *e, struct ibv_cq *cq)
{
    double deadline = now() + e->options->patience;
    struct ibv_wc wc;

    for (unsigned turn = 1;; turn++) {
        int count = ibv_poll_cq(cq, 1, &wc);

        if (count < 0)
            FAIL("ibv_poll_cq: %d", count);
        if (count)
            return wc;
        if (turn % 64 == 0) {
            look_after_other(e);
            if (now() > deadline)
                FAIL("no completion");
            sched_yield();
        }
    }
}

struct ibv_wc expect(struct end *e, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status, const char *file,
                     int line)
{
    struct ibv_wc wc = next_wc(e, cq);

    if (wc.wr_id != wr_id || wc.status != status)
        leave(e, OUTCOME_FAILED, file, line, "completion of %llu: %s, not of %llu: %s", (unsigned long long)wc.wr_id,
              ibv_wc_status_str(wc.status), (unsigned long long)wr_id, ibv_wc_status_str(status));
    return wc;
}

enum ibv_qp_state state_of(struct end *e, struct ibv_qp *qp)
{
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    DO(ibv_query_qp(qp, &attr, IBV_QP_STATE, &init));
    return attr.qp_state;
}

void await_state(struct end *e, struct ibv_qp *qp, enum ibv_qp_state state)
{
    double deadline = now() + e->options->patience;

    while (state_of(e, qp) != state) {
        if (now() > deadline)
            FAIL("state %d, not %d", state_of(e, qp), state);
        look_after_other(e);
        sched_yield();
    }
}

bool readable(int fd, int milliseconds)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};

    return poll(&ready, 1, milliseconds) == 1;
}

bool event_waits(struct end *e)
{
    return readable(e->context->async_fd, 0);
}

void await_event(struct end *e, enum ibv_event_type type, const void *element)
{
    double deadline = now() + e->options->patience;

    for (;;) {
        struct ibv_async_event event;

        if (!readable(e->context->async_fd, 100)) {
            look_after_other(e);
            if (now() > deadline)
                FAIL("no event \"%s\"", ibv_event_type_str(type));
            continue;
        }
        DO(ibv_get_async_event(e->context, &event));
        bool right = event.event_type == type && (!element || event.element.qp == element);

        ibv_ack_async_event(&event);
        if (right)
            return;
        if (event.event_type == type)
            FAIL("event \"%s\" of another object", ibv_event_type_str(type));
    }
}

void await_cq_event(struct end *e)
{
    double deadline = now() + e->options->patience;
    struct ibv_cq *cq;
    void *context;

    while (!readable(e->channel->fd, 100)) {
        look_after_other(e);
        if (now() > deadline)
            FAIL("no completion event");
    }
    DO(ibv_get_cq_event(e->channel, &cq, &context));
    CHECK(cq == e->cq && context == e);
    ibv_ack_cq_events(cq, 1);
}
