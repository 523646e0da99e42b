/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"
#include "futex.h"
#include "node.h"

enum { PATIENCE = 20 }; /* seconds for an answer */

struct sluice_engine *fuzz_engine;
uint32_t fuzz_tenant;
static struct fuzz_session honest[2];

#define MUST(condition)                                                              \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);  \
            abort();                                                                 \
        }                                                                            \
    } while (0)

static void wake(void)
{
    full_fence();
    while (load_relaxed(&fuzz_engine->page->parked) &&
           syscall(SYS_futex, &fuzz_engine->page->parked, FUTEX_WAKE, 1, NULL, NULL, 0) == 0)
        sched_yield();
}

void fuzz_ring(struct fuzz_session *session, uint32_t qp)
{
    qp %= SLUICE_SESSION_QPS;
    __atomic_fetch_or(&session->segment->words[qp / 64], 1ull << (qp % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&session->segment->summary[qp / 4096], 1ull << (qp / 64 % 64), __ATOMIC_SEQ_CST);
    wake();
}

void fuzz_ring_command(struct fuzz_session *session)
{
    exchange(&session->segment->command_rung, 1);
    wake();
}

void fuzz_settle(void)
{
    struct sluice_qp_attr now;

    for (int i = 0; i < 3; i++)
        sluice_qp_query(fuzz_engine, honest[0].number, honest[0].qp, &now);
}

static uint32_t reg_mr(struct fuzz_session *session)
{
    struct sluice_command *mailbox = &session->segment->command;
    time_t start = time(NULL);

    *mailbox = (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = session->pd, .addr = (uintptr_t)session->memory,
        .iova = (uintptr_t)session->memory, .length = MEMORY,
        .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC};
    store_release(&mailbox->state, (uint32_t)SLUICE_COMMAND_POSTED);
    fuzz_ring_command(session);
    while (load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE) {
        MUST(time(NULL) - start < PATIENCE);
        sched_yield();
    }
    MUST(mailbox->status == 0);
    return mailbox->key;
}

void fuzz_open(struct fuzz_session *session, uint32_t qp_type, bool with_srq)
{
    struct sluice_session_files files;
    struct sluice_create_cq_request cq = {.cqe = 4 * ENTRIES};

    memset(session, 0, sizeof(*session));
    int number = sluice_session_open(fuzz_engine, fuzz_tenant, &files);

    MUST(number >= 0);
    session->number = (uint32_t)number;
    session->descriptors[0] = files.segment;
    session->descriptors[1] = files.arena;
    session->segment = mmap(NULL, 1ull << SLUICE_SEGMENT_SHIFT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                            files.segment, 0);
    MUST(session->segment != MAP_FAILED);
    session->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(mmap(session->memory, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, files.arena,
              (off_t)(uintptr_t)session->memory) == session->memory);
    int context = sluice_context_open(fuzz_engine, session->number, 0, &session->descriptors[2]);

    MUST(context > 0);
    session->context = cq.context = (uint32_t)context;
    int pd = sluice_pd_alloc(fuzz_engine, session->number, session->context);

    MUST(pd > 0);
    session->pd = (uint32_t)pd;
    MUST(sluice_cq_create(fuzz_engine, session->number, &cq, &session->cq_layout) == 0);
    session->cq = session->cq_layout.handle;
    if (with_srq) {
        struct sluice_create_srq_request srq = {.pd = session->pd, .max_wr = ENTRIES, .max_sge = 4};

        MUST(sluice_srq_create(fuzz_engine, session->number, &srq, &session->srq_layout) == 0);
    }
    struct sluice_create_ah_request ah = {.pd = session->pd, .attr = {.is_global = 1, .port_num = 1}};
    int handle = sluice_ah_create(fuzz_engine, session->number, &ah, (const uint8_t[16]){0}, (int32_t)fuzz_tenant);

    MUST(handle >= 0);
    session->ah = (uint32_t)handle;
    session->qp_type = qp_type;
    struct sluice_create_qp_request qp = {
        .pd = session->pd, .send_cq = session->cq, .recv_cq = session->cq, .qp_type = qp_type,
        .srq = session->srq_layout.handle,
        .cap = {.max_send_wr = ENTRIES, .max_recv_wr = ENTRIES, .max_send_sge = 4, .max_recv_sge = 4, .max_inline_data = 64}};

    MUST(sluice_qp_create(fuzz_engine, session->number, &qp, &session->qp_layout) == 0);
    session->qp = session->qp_layout.handle;
    session->qp_num = session->qp_layout.qp_num;
    session->key = reg_mr(session);
}

void fuzz_close(struct fuzz_session *session)
{
    MUST(sluice_session_close(fuzz_engine, session->number) == 0);
    munmap(session->segment, 1ull << SLUICE_SEGMENT_SHIFT);
    munmap(session->memory, MEMORY);
    for (int i = 0; i < 3; i++)
        close(session->descriptors[i]);
}

static void move(struct fuzz_session *session, uint32_t state, const struct fuzz_session *peer)
{
    struct sluice_qp_attr now, attr = {
        .qp_state = state, .dest_qp_num = peer->qp_num, .timeout = 10, .retry_cnt = 1, .rnr_retry = 1, .path_mtu = 3,
        .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC};

    MUST(sluice_qp_modify(fuzz_engine, session->number, session->qp, &attr,
                          IBV_QP_STATE | IBV_QP_QKEY | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                              IBV_QP_ACCESS_FLAGS | IBV_QP_PATH_MTU | IBV_QP_PORT,
                          SLUICE_TRANSPORT_LOCAL, (int32_t)fuzz_tenant, &now) == 0);
}

void fuzz_join(struct fuzz_session *one, struct fuzz_session *other)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        move(one, state, other);
        if (one != other)
            move(other, state, one);
    }
}

void fuzz_begin(void)
{
    struct sluice_shape none = {0};

    if (fuzz_engine)
        return;
    MUST(sluice_engine_open(NULL, &fuzz_engine) == 0);
    int tenant = sluice_tenant_add(fuzz_engine, 0, -1, &none);

    MUST(tenant >= 0);
    fuzz_tenant = (uint32_t)tenant;
    fuzz_open(&honest[0], IBV_QPT_RC, false);
    fuzz_open(&honest[1], IBV_QPT_RC, false);
    fuzz_join(&honest[0], &honest[1]);
}

void fuzz_check(void)
{
    struct fuzz_session *a = &honest[0], *b = &honest[1];
    uint8_t *base = (uint8_t *)a->segment;
    struct sluice_qp_shared *shared = (struct sluice_qp_shared *)(base + a->qp_layout.offset);
    struct sluice_cq_shared *cq = (struct sluice_cq_shared *)(base + a->cq_layout.offset);
    struct sluice_wqe *wqe =
        (struct sluice_wqe *)(base + a->qp_layout.sq_offset + (a->posted & (a->qp_layout.sq_entries - 1)) * a->qp_layout.sq_stride);
    struct sluice_cqe *cqe = (struct sluice_cqe *)(base + a->cq_layout.ring) + (a->polled & (a->cq_layout.cqe - 1));
    time_t start = time(NULL);
    struct sluice_engine_event event;

    memset(a->memory, (int)(a->posted + 1), 256);
    *wqe = (struct sluice_wqe){.opcode = IBV_WR_RDMA_WRITE, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1, .wr_id = a->posted,
                               .remote_addr = (uintptr_t)b->memory, .rkey = b->key};
    *(struct sluice_sge *)(wqe + 1) = (struct sluice_sge){.addr = (uintptr_t)a->memory, .length = 256, .lkey = a->key};
    store_release(&shared->sq.producer, ++a->posted);
    full_fence();
    if (exchange(&shared->sq.armed, 0))
        fuzz_ring(a, a->qp);
    while (load_acquire(&cqe->turn) != a->polled / a->cq_layout.cqe + 1) {
        MUST(time(NULL) - start < PATIENCE);
        sched_yield();
    }
    MUST(cqe->status == IBV_WC_SUCCESS && cqe->wr_id == a->posted - 1);
    store_release(&cq->consumer, ++a->polled);
    MUST(memcmp(a->memory, b->memory, 256) == 0);
    while (sluice_engine_next_event(fuzz_engine, &event) == 1)
        MUST(event.session != a->number && event.session != b->number);
}

size_t fuzz_take(const uint8_t **data, size_t *left, void *to, size_t size)
{
    size_t got = size < *left ? size : *left;

    memset(to, 0, size);
    memcpy(to, *data, got);
    *data += got;
    *left -= got;
    return got;
}

uint8_t fuzz_byte(const uint8_t **data, size_t *left)
{
    uint8_t byte;

    fuzz_take(data, left, &byte, 1);
    return byte;
}
