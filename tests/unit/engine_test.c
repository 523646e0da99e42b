/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine with this program in the shim's place: rings, doorbell and mailbox as
 * abi.h says, and what a hostile one may write there.
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
#include "client.h"
#include "holdings.h"
#include "worker.h"

static void rings_lose_nothing(void)
{
    struct client a, b;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    /* Batches of all sizes, so that the engine meets every fill, sleeping and awake. */
    uint64_t posted = 0, completed = 0;

    for (uint32_t round = 0; round < 3000; round++) {
        uint32_t batch = round * 7 % ENTRIES + 1;

        for (uint32_t i = 0; i < batch; i++)
            post_write(&a, &b, posted++, 8 + round % 300);
        publish(&a);
        for (uint32_t i = 0; i < batch; i++) {
            struct sluice_cqe cqe = wait_cqe(&a);

            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == completed++ && cqe.tail == (uint32_t)completed);
        }
    }
    close_client(&a);
    close_client(&b);
}

static void data_arrives_in_chunks(void)
{
    struct client a, b;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    for (uint32_t i = 0; i < MEMORY; i++)
        a.memory[i] = (uint8_t)(i * 31 + (i >> 9));
    post_write(&a, &b, 1, MEMORY);
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS && memcmp(a.memory, b.memory, MEMORY) == 0);
    close_client(&a);
    close_client(&b);
}

/* Whether a tenant has polled what its QP was sent: its own, and what was there when it was asked first. */
static void what_is_unread_is_known(void)
{
    struct client a, b;
    uint32_t mark = 0;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    CHECK(!sluice_qp_unread(engine, tenant, b.qp_num, 1, &mark));
    for (uint32_t i = 0; i < 2; i++) {
        post_receive(&b, i, 0, 8);
        post_write(&a, &b, i, 8);
        ((struct sluice_wqe *)((uint8_t *)a.sq + i * a.sq_stride))->opcode = IBV_WR_SEND;
        publish(&a);
        CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
        CHECK(sluice_qp_unread(engine, tenant, b.qp_num, i == 0, &mark) == 1);
        CHECK(!sluice_qp_unread(engine, tenant + 1, b.qp_num, 0, &mark) && !sluice_qp_unread(engine, tenant, 5, 0, &mark));
    }
    CHECK(wait_cqe(&b).status == IBV_WC_SUCCESS);
    CHECK(!sluice_qp_unread(engine, tenant, b.qp_num, 0, &mark) && sluice_qp_unread(engine, tenant, b.qp_num, 1, &mark));
    close_client(&a);
    close_client(&b);
}

static void garbage_ends_its_session_only(void)
{
    for (int kind = 0; kind < 5; kind++) {
        struct client a, b, bad;

        open_client(&a);
        open_client(&b);
        open_client(&bad);
        join(&a, &b);
        switch (kind) {
        case 0: /* more posted than there is room */
            move(&bad, IBV_QPS_INIT, 0);
            move(&bad, IBV_QPS_RTR, a.qp_num);
            move(&bad, IBV_QPS_RTS, a.qp_num);
            store_release(&bad.shared->sq.producer, 0x80000000u);
            ring(&bad);
            break;
        case 1: /* unknown operation */
        case 2: /* too many SGEs */
        case 3: /* inline data beyond the slot */
            move(&bad, IBV_QPS_INIT, 0);
            move(&bad, IBV_QPS_RTR, a.qp_num);
            move(&bad, IBV_QPS_RTS, a.qp_num);
            post_write(&bad, &a, 1, 8);
            bad.sq->opcode = kind == 1 ? 200 : IBV_WR_RDMA_WRITE;
            bad.sq->num_sge = kind == 2 ? 60000 : 1;
            bad.sq->flags = kind == 3 ? SLUICE_WQE_INLINE : 0;
            bad.sq->inline_length = 65535;
            publish(&bad);
            break;
        case 4: /* a consumer index from nowhere, found when the CQ seems full */
            join(&a, &bad);
            move(&a, IBV_QPS_RESET, 0);
            join(&bad, &a);
            store_release(&bad.cq->consumer, 0x40000000u);
            for (uint32_t i = 0; i < 5; i++) {
                for (uint32_t j = 0; j < ENTRIES; j++)
                    post_write(&bad, &a, j, 8);
                publish(&bad);
                while (!load_relaxed(&bad.shared->sq.armed) && load_acquire(&bad.shared->state) != IBV_QPS_ERR)
                    sched_yield();
            }
            break;
        }
        expect_broken(&bad);
        close_client(&bad);
        if (kind != 4) {
            post_write(&a, &b, 9, 8);
            publish(&a);
            CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
        }
        close_client(&a);
        close_client(&b);
    }
}

/* Raises the producer of a queue that is flushed, always as far as there is room, as long as posting says so. */
static uint32_t posting;

static void *post_for_ever(void *argument)
{
    struct client *bad = argument;
    uint32_t flushed = 0;

    while (load_relaxed(&posting)) {
        const struct sluice_cqe *cqe = &bad->ring[bad->polled & (bad->cq_entries - 1)];

        if (load_acquire(&cqe->turn) == bad->polled / bad->cq_entries + 1) {
            flushed = load_relaxed(&cqe->tail);
            store_release(&bad->cq->consumer, ++bad->polled);
        }
        store_release(&bad->shared->sq.producer, flushed + ENTRIES);
    }
    return NULL;
}

/* Who posts as fast as its WQEs are flushed has no more of the worker than its part. */
static void a_flush_has_an_end(void)
{
    struct client a, b, bad;
    pthread_t thread;

    open_client(&a);
    open_client(&b);
    open_client(&bad);
    join(&a, &b);
    move(&bad, IBV_QPS_INIT, 0);
    move(&bad, IBV_QPS_ERR, 0);
    store_relaxed(&posting, 1u);
    CHECK(pthread_create(&thread, NULL, post_for_ever, &bad) == 0);
    ring(&bad);
    for (uint64_t round = 0; round < 300; round++) {
        post_write(&a, &b, round, 8);
        publish(&a);
        CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
    }
    store_relaxed(&posting, 0u);
    CHECK(pthread_join(thread, NULL) == 0);
    close_client(&bad);
    close_client(&a);
    close_client(&b);
}

#ifndef __SANITIZE_THREAD__ /* stores that race by design */
static void random_bytes_everywhere(void)
{
    struct client a, b;
    uint64_t random = 88172645463325252ull;

    for (int round = 0; round < 30; round++) {
        open_client(&a);
        open_client(&b);
        join(&a, &b);
        uint8_t *rings = (uint8_t *)a.segment;

        for (int i = 0; i < 20000; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            uint64_t at = random % (SLUICE_SEGMENT_RINGS + 65536);

            /* Volatile, as another process's stores are. */
            *(volatile uint8_t *)(rings + at) = (uint8_t)(random >> 32);
            if (i % 64 == 0)
                wake();
        }
        close_client(&a);
        close_client(&b);
        struct sluice_engine_event event;

        while (sluice_engine_next_event(engine, &event))
            ;
    }
    open_client(&a);
    close_client(&a);
}

#endif

static void the_peer_leaves(void)
{
    struct client a, b;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    close_client(&b);
    post_write(&a, &a, 1, 8);
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_RETRY_EXC_ERR);
    close_client(&a);
}

static void tenants_cannot_write_the_engine_page(void)
{
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, engine->page_fd, 0) == MAP_FAILED);
    CHECK(write(engine->page_fd, "x", 1) == -1);
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", engine->page_fd);
    FILE *again = fopen(path, "r+");

    CHECK(!again || mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(again), 0) == MAP_FAILED);
    if (again)
        fclose(again);
}

static void a_full_memory_is_an_error(void)
{
    struct client a, b;

    /* Where the arena has no page to give, SIGBUS: here by a file that is too short. */
    struct arena arena = {.fd = memfd_create("short", MFD_CLOEXEC), .count = 1};
    uint8_t *windows[1] = {NULL};

    arena.windows = windows;
    CHECK(ftruncate(arena.fd, 4096) == 0);
    volatile uint8_t *window = arena_at(&arena, 0);

    CHECK(window && !window_fault);
    window[100] = 1;
    window[8192] = 1;
    CHECK(window_fault && window[8192] == 1);
    windows_repair();
    CHECK(!window_fault && window[100] == 1);
    close(arena.fd);
    open_client(&a);
    open_client(&b);
    join(&a, &b);
    close_client(&a);
    close_client(&b);
}

static void limits_of_memory_regions(void)
{
    struct sluice_shape shape = {.max_mrs = 1};
    struct client a;

    CHECK(sluice_tenant_shape(engine, tenant, &shape) == 0);
    open_client(&a);
    struct sluice_command *mailbox = &a.segment->command;

    mailbox->op = SLUICE_COMMAND_REG_MR;
    store_release(&mailbox->state, (uint32_t)SLUICE_COMMAND_POSTED);
    exchange(&a.segment->command_rung, 1);
    wake();
    while (load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE)
        sched_yield();
    CHECK(mailbox->status == ENOMEM);
    close_client(&a);
    memset(&shape, 0, sizeof(shape));
    CHECK(sluice_tenant_shape(engine, tenant, &shape) == 0);
}

/* What may be on which device; what is counted where rails.c sees. */
static void a_tenant_on_two_devices(void)
{
    struct sluice_shape none = {0};
    struct sluice_share share = {0};
    struct sluice_session_files files;
    int fd;

    CHECK(sluice_tenant_add(engine, 1, (int32_t)tenant, &none) == -ENODEV);
    CHECK(sluice_device_shape(engine, 1, 1000000000, 1) == -ENODEV);
    int device = sluice_device_add(engine);

    CHECK(device == 1 && sluice_device_shape(engine, 1, 1000000000, 1) == 0);
    int session = sluice_session_open(engine, tenant, &files);

    CHECK(session >= 0 && sluice_context_open(engine, (uint32_t)session, 1, &fd) == -ENODEV);
    CHECK(sluice_context_open(engine, (uint32_t)session, SLUICE_MAX_DEVICES, &fd) == -ENODEV);
    int second = sluice_tenant_add(engine, 1, (int32_t)tenant, &none);

    CHECK(second >= 0 && engine->tenants[second]->counters->device == 1);
    CHECK(sluice_tenant_add(engine, 1, (int32_t)tenant, &none) == -EEXIST);
    CHECK(sluice_tenant_add(engine, 1, second, &none) == -EINVAL);
    CHECK(sluice_session_open(engine, (uint32_t)second, &files) == -EINVAL);
    int context = sluice_context_open(engine, (uint32_t)session, 1, &fd);

    CHECK(context > 0);
    close(fd);
    int pd = sluice_pd_alloc(engine, (uint32_t)session, (uint32_t)context);

    CHECK(pd > 0 && sluice_pd_device(engine, (uint32_t)session, (uint32_t)pd) == 1);
    /* A group is of one device. */
    int group = sluice_group_add(engine, 0, &share);
    struct sluice_shape in_group = {.group = (uint32_t)group + 1};

    CHECK(group >= 0 && sluice_tenant_shape(engine, (uint32_t)second, &in_group) == -EINVAL);
    CHECK(sluice_group_remove(engine, (uint32_t)group) == 0);
    CHECK(sluice_tenant_remove(engine, (uint32_t)second) == -EBUSY);
    CHECK(sluice_context_close(engine, (uint32_t)session, (uint32_t)context) == 0);
    CHECK(sluice_tenant_remove(engine, tenant) == -EBUSY);
    CHECK(sluice_tenant_remove(engine, (uint32_t)second) == 0);
    CHECK(sluice_session_close(engine, (uint32_t)session) == 0);
    close(files.segment);
    close(files.arena);
}

static uint32_t spinning;

static void *spin(void *nothing)
{
    while (load_relaxed(&spinning))
        spin_hint();
    return nothing;
}

/* More threads than cores: who moves much is asked to give way, and no more once it moves little. */
static void who_moves_much_gives_way(void)
{
    enum { BATCH = 16, SPINNERS = 1024 };
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_t threads[SPINNERS];
    struct client a, b;

    if (count > SPINNERS)
        count = SPINNERS;
    open_client(&a);
    open_client(&b);
    join(&a, &b);
    CHECK(load_relaxed(&a.segment->give_way) == 0);
    store_relaxed(&spinning, 1u);
    for (long i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, spin, NULL) == 0);
    for (uint32_t length = MEMORY, wanted = 1;; length = 8, wanted = 0) {
        while (load_relaxed(&a.segment->give_way) != wanted) {
            for (uint32_t i = 0; i < BATCH; i++)
                post_write(&a, &b, i, length);
            publish(&a);
            for (uint32_t i = 0; i < BATCH; i++)
                CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
        }
        if (!wanted)
            break;
    }
    store_relaxed(&spinning, 0u);
    for (long i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    close_client(&a);
    close_client(&b);
}

/* ---- what takes long to destroy ------------------------------------------ */

enum { MANY = 2000 };

/* QPs of its own PD, or of another context's. */
static void make_many(uint32_t session, uint32_t pd, uint32_t cq)
{
    struct sluice_create_qp_request request = {
        .pd = pd, .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct sluice_create_qp_reply reply;

    for (uint32_t i = 0; i < MANY; i++)
        CHECK(sluice_qp_create(engine, session, &request, &reply) == 0);
}

static uint64_t qps_of(uint32_t number)
{
    worker_enter(engine);
    uint64_t count = engine->tenants[number] ? engine->tenants[number]->counters->qps : 0;

    worker_leave(engine);
    return count;
}

static bool is_there(uint32_t number)
{
    worker_enter(engine);
    bool there = engine->tenants[number];

    worker_leave(engine);
    return there;
}

static void a_context_with_much_ends_in_turns(void)
{
    struct sluice_create_cq_request cq_request = {.cqe = 16};
    struct sluice_create_cq_reply cq;
    struct sluice_engine_event event;
    struct client a, b;
    int fd;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    int context = sluice_context_open(engine, a.session, device, &fd);

    close(fd);
    int pd = sluice_pd_alloc(engine, a.session, (uint32_t)context);

    cq_request.context = (uint32_t)context;
    CHECK(pd > 0 && sluice_cq_create(engine, a.session, &cq_request, &cq) == 0);
    make_many(a.session, (uint32_t)pd, cq.handle);
    uint32_t key = command(&a, (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = (uint32_t)pd, .access = IBV_ACCESS_LOCAL_WRITE, .addr = (uintptr_t)a.memory,
        .iova = (uintptr_t)a.memory, .length = MEMORY});
    CHECK(sluice_context_close(engine, a.session, (uint32_t)context) == -EINPROGRESS);
    CHECK(sluice_pd_alloc(engine, a.session, (uint32_t)context) == -EINVAL);
    /* The other context works meanwhile. */
    post_write(&a, &b, 1, 8);
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
    while (!sluice_engine_next_event(engine, &event))
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_VERB && event.session == a.session);
    CHECK(sluice_context_close(engine, a.session, (uint32_t)context) == 0);
    CHECK(sluice_context_close(engine, a.session, (uint32_t)context) == -EINVAL);
    CHECK(qps_of(tenant) == 2);
    struct sluice_command gone = {.op = SLUICE_COMMAND_DEREG_MR, .pd = (uint32_t)pd, .key = key};

    CHECK(try_command(&a, &gone) == EINVAL);
    close_client(&a);
    close_client(&b);
}

static void a_tenant_is_removed_while_its_sessions_end(void)
{
    struct sluice_share share = {0};
    struct sluice_shape none = {0};
    struct client a, b;
    uint32_t own = tenant;

    int group = sluice_group_add(engine, 0, &share);

    none.group = (uint32_t)group + 1;
    int other = sluice_tenant_add(engine, 0, -1, &none);

    CHECK(other >= 0);
    tenant = (uint32_t)other;
    open_client(&a);
    open_client(&b);
    make_many(a.session, a.pd, a.cq_handle);
    make_many(b.session, b.pd, b.cq_handle);
    CHECK(sluice_session_close(engine, a.session) == 0);
    CHECK(sluice_session_close(engine, a.session) == -EINVAL);
    CHECK(sluice_tenant_remove(engine, tenant) == -EBUSY);
    CHECK(sluice_session_close(engine, b.session) == 0);
    CHECK(sluice_tenant_remove(engine, tenant) == 0);
    CHECK(sluice_tenant_remove(engine, tenant) == -EINVAL);
    CHECK(sluice_group_remove(engine, (uint32_t)group) == 0);
    while (is_there(tenant))
        sched_yield();
    munmap(a.memory, MEMORY);
    munmap(b.memory, MEMORY);
    tenant = own;
}

static void as_many_queues_as_are_reported(void)
{
    struct sluice_create_cq_request request = {.cqe = 1};
    struct sluice_create_cq_reply reply;
    struct client a;
    uint32_t count = 1; /* its own */
    int error, fd;

    open_client(&a);
    int context = sluice_context_open(engine, a.session, device, &fd);

    close(fd);
    request.context = (uint32_t)context;
    while ((error = sluice_cq_create(engine, a.session, &request, &reply)) == 0)
        count++;
    CHECK(error == -ENOMEM && count == SLUICE_SESSION_CQS - 1);
    CHECK(sluice_cq_destroy(engine, a.session, reply.handle) == 0);
    CHECK(sluice_cq_destroy(engine, a.session, reply.handle) == -EINVAL);
    CHECK(sluice_cq_create(engine, a.session, &request, &reply) == 0);
    CHECK(sluice_cq_destroy(engine, a.session, SLUICE_SESSION_CQS) == -EINVAL && sluice_cq_destroy(engine, a.session, 0) == -EINVAL);
    close_client(&a);
    while (qps_of(tenant))
        sched_yield();
}

/* Many WRs of a QP that failed are flushed some at a time, in order and at their tenant's expense. */
static void a_long_flush_is_in_order(void)
{
    enum { POSTED = 5000 };
    uint32_t before = send_entries;
    struct client a;

    send_entries = 8192;
    open_client(&a);
    send_entries = before;
    struct sluice_resize_cq_request request = {.handle = a.cq_handle, .cqe = 2 * POSTED};
    struct sluice_resize_cq_reply reply;

    CHECK(sluice_cq_resize(engine, a.session, &request, &reply) == 0);
    a.ring = (struct sluice_cqe *)((uint8_t *)a.segment + reply.ring);
    a.cq_entries = reply.cqe;
    move(&a, IBV_QPS_ERR, 0);
    worker_enter(engine);
    const uint64_t charged = engine->tenants[tenant]->counters->engine_ns;

    worker_leave(engine);
    for (uint32_t i = 0; i < POSTED; i++)
        post_write(&a, &a, i, 8);
    publish(&a);
    for (uint32_t i = 0; i < POSTED; i++) {
        struct sluice_cqe cqe = wait_cqe(&a);

        CHECK(cqe.status == IBV_WC_WR_FLUSH_ERR && cqe.wr_id == i);
    }
    worker_enter(engine);
    CHECK(engine->tenants[tenant]->counters->engine_ns > charged);
    worker_leave(engine);
    close_client(&a);
}

/* ---- what a node has once -------------------------------------------------- */

/* As many as it gets. */
static uint32_t take_all(uint32_t number, enum holding what)
{
    uint32_t count = 0;

    worker_enter(engine);
    while (holding_take(engine->tenants[number], what))
        count++;
    worker_leave(engine);
    return count;
}

static void give_all(uint32_t number, enum holding what, uint32_t count)
{
    worker_enter(engine);
    while (count--)
        holding_give(engine->tenants[number], what);
    worker_leave(engine);
}

/* One has a quarter; those that agree leave a share for whoever comes then. */
static void numbers_are_shared_out(void)
{
    enum { GREEDY = 6 };
    struct sluice_shape none = {0};
    struct sluice_create_qp_reply reply;
    uint32_t tenants[GREEDY + 1], has[GREEDY + 1], own = tenant, sum = 0;
    struct client a, b;

    for (uint32_t i = 0; i <= GREEDY; i++)
        tenants[i] = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    for (uint32_t i = 0; i < GREEDY; i++) {
        has[i] = take_all(tenants[i], HOLDING_QPS);
        sum += has[i];
        CHECK(has[i] <= SLUICE_MAX_QPS / 4 && sum < SLUICE_MAX_QPS);
        CHECK(engine->tenants[tenants[i]]->counters->last_refused == SLUICE_LIMIT_QPS + 1);
    }
    CHECK(has[0] == SLUICE_MAX_QPS / 4);
    /* Who comes last has a share, a real one has what is left of its own, and who has enough has no more. */
    has[GREEDY] = take_all(tenants[GREEDY], HOLDING_QPS);
    CHECK(has[GREEDY] >= SLUICE_MAX_QPS / 32);
    give_all(tenants[GREEDY], HOLDING_QPS, has[GREEDY]);
    tenant = tenants[GREEDY];
    open_client(&b);
    give_all(tenants[0], HOLDING_QPS, 1);
    tenant = tenants[0];
    has[0]--;
    struct sluice_session_files files;
    int session = sluice_session_open(engine, tenant, &files), fd;

    close(files.segment);
    close(files.arena);
    int context = sluice_context_open(engine, (uint32_t)session, 0, &fd);

    close(fd);
    int pd = sluice_pd_alloc(engine, (uint32_t)session, (uint32_t)context);
    struct sluice_create_cq_request cq_request = {.cqe = 1, .context = (uint32_t)context};
    struct sluice_create_cq_reply cq;

    CHECK(sluice_cq_create(engine, (uint32_t)session, &cq_request, &cq) == 0);
    struct sluice_create_qp_request request = {
        .pd = (uint32_t)pd, .send_cq = cq.handle, .recv_cq = cq.handle, .qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 1}};

    CHECK(sluice_qp_create(engine, (uint32_t)session, &request, &reply) == -ENOMEM);
    /* All that has gone may be had again. */
    for (uint32_t i = 0; i < GREEDY; i++)
        give_all(tenants[i], HOLDING_QPS, has[i]);
    CHECK(sluice_qp_create(engine, (uint32_t)session, &request, &reply) == 0);
    CHECK(sluice_session_close(engine, (uint32_t)session) == 0);
    close_client(&b);
    tenant = own;
    for (uint32_t i = 0; i <= GREEDY; i++)
        CHECK(sluice_tenant_remove(engine, tenants[i]) == 0);
    open_client(&a);
    close_client(&a);
    for (uint32_t what = 0; what < HOLDINGS; what++) {
        worker_enter(engine);
        while (engine->held[what]) { /* what other tests had much of ends in turns */
            worker_leave(engine);
            sched_yield();
            worker_enter(engine);
        }
        worker_leave(engine);
    }
}

/* A process has as many AHs as are reported, a tenant's processes together a quarter of all. */
static void address_handles_have_an_end(void)
{
    enum { PROCESSES = 5 };
    static const uint8_t gid[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1};
    struct client clients[PROCESSES];
    uint32_t count = 0;

    for (int i = 0; i < PROCESSES; i++) {
        open_client(&clients[i]);
        struct sluice_create_ah_request request = {.pd = clients[i].pd, .attr = {.port_num = 1}};
        int result;

        memcpy(request.attr.dgid, gid, sizeof(gid));
        while ((result = sluice_ah_create(engine, clients[i].session, &request, gid, -1)) > 0)
            count++;
        CHECK(result == -ENOMEM && count == (i < PROCESSES - 1 ? (i + 1u) * (SLUICE_SESSION_AHS - 1) : 4 * SLUICE_SESSION_AHS));
    }
    CHECK(engine->tenants[tenant]->counters->last_refused == SLUICE_LIMIT_OBJECTS + 1);
    for (int i = 0; i < PROCESSES; i++)
        close_client(&clients[i]);
}

int main(void)
{
    struct sluice_shape none = {0};

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    RUN(rings_lose_nothing);
    RUN(data_arrives_in_chunks);
    RUN(what_is_unread_is_known);
    RUN(garbage_ends_its_session_only);
    RUN(a_flush_has_an_end);
    RUN(the_peer_leaves);
    RUN(tenants_cannot_write_the_engine_page);
    RUN(a_full_memory_is_an_error);
    RUN(limits_of_memory_regions);
    RUN(a_tenant_on_two_devices);
    RUN(a_context_with_much_ends_in_turns);
    RUN(a_tenant_is_removed_while_its_sessions_end);
    RUN(as_many_queues_as_are_reported);
    RUN(a_long_flush_is_in_order);
    RUN(address_handles_have_an_end);
    RUN(numbers_are_shared_out);
    RUN(who_moves_much_gives_way);
#ifndef __SANITIZE_THREAD__
    RUN(random_bytes_everywhere);
#endif
    CHECK(sluice_tenant_remove(engine, tenant) == 0);
    sluice_engine_close(engine);
    return 0;
}
