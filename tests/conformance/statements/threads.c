/* SPDX-License-Identifier: Apache-2.0 */
/* All verbs may be called by several threads at once (rdma-core promises it). */
#include <pthread.h>
#include <sched.h>

#include "suite.h"

enum { THREADS = 4, EACH = 500 };

struct worker {
    struct end *e;
    struct ibv_qp *qp;
    int number;
    const char *failure;
    unsigned done;
};

static void run(struct end *e, struct worker *workers, int count, void *(*body)(void *))
{
    pthread_t threads[THREADS + 1];

    for (int i = 0; i < count; i++)
        CHECK(!pthread_create(&threads[i], NULL, body, &workers[i]));
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < count; i++)
        CHECK_THAT(!workers[i].failure, "thread %d: %s", i, workers[i].failure);
}

static unsigned polled;

/* Posts EACH WRITEs of 8 bytes and polls whatever comes, until all threads' are complete. */
static void *post_and_poll(void *argument)
{
    struct worker *worker = argument;
    struct end *e = worker->e;
    struct ibv_wc wc[4];
    double deadline = now() + 2 * e->options->patience;

    while (__atomic_load_n(&polled, __ATOMIC_RELAXED) < THREADS * EACH) {
        if (worker->done < EACH) {
            int error = ask(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .wr_id = (uint64_t)worker->number, .length = 8,
                                                .to = 8 * (uint64_t)worker->number, .qp = worker->qp});

            if (!error)
                worker->done++;
            else if (error != ENOMEM)
                worker->failure = "ibv_post_send";
        }
        int count = ibv_poll_cq(e->cq, 4, wc);

        for (int i = 0; i < count; i++)
            if (wc[i].status != IBV_WC_SUCCESS)
                worker->failure = ibv_wc_status_str(wc[i].status);
        if (count < 0)
            worker->failure = "ibv_poll_cq";
        if (count > 0)
            __atomic_fetch_add(&polled, (unsigned)count, __ATOMIC_RELAXED);
        if (count == 0)
            sched_yield();
        if (now() > deadline)
            worker->failure = "no completion";
        if (worker->failure)
            return NULL;
    }
    return NULL;
}

TEST(one_qp, BOTH, "threads may post to one QP and poll one CQ at once; each WR completes once", "man ibv_post_send; rdma-core Documentation/libibverbs.md: thread safety")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.cqe = 1024;
    connect_as(e, &plan);
    if (e->first) {
        struct worker workers[THREADS];

        polled = 0;
        for (int i = 0; i < THREADS; i++)
            workers[i] = (struct worker){.e = e, .number = i, .qp = e->qp};
        run(e, workers, THREADS, post_and_poll);
        EXPECT_NOTHING();
    }
    meet(e);
    if (!e->first) {
        for (int i = 0; i < THREADS; i++)
            ARRIVED(8 * i, 8, 0);
    }
}

TEST(several_qps, BOTH, "threads with a QP each share one CQ", "rdma-core Documentation/libibverbs.md: thread safety")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct worker workers[THREADS];

    plan.cqe = 1024;
    connect_as(e, &plan);
    for (int i = 0; i < THREADS; i++) {
        struct ibv_qp *qp = create_qp(e, &plan);

        join(e, qp, &plan);
        workers[i] = (struct worker){.e = e, .number = i, .qp = qp};
    }
    if (e->first) {
        polled = 0;
        run(e, workers, THREADS, post_and_poll);
        EXPECT_NOTHING();
    }
    meet(e);
}

static void *make_and_destroy(void *argument)
{
    struct worker *worker = argument;
    struct end *e = worker->e;
    struct plan plan = plan_of(IBV_QPT_RC);
    uint8_t *memory = malloc(20000);

    plan.send_wr = plan.recv_wr = 4;
    for (int i = 0; i < 40 && !worker->failure; i++) {
        struct ibv_pd *pd = ibv_alloc_pd(e->context);
        struct ibv_cq *cq = ibv_create_cq(e->context, 16, NULL, NULL, 0);
        struct ibv_mr *mr = pd ? ibv_reg_mr(pd, memory, 20000, ALL_ACCESS) : NULL;
        struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
                                        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
        struct ibv_qp *qp = pd && cq ? ibv_create_qp(pd, &init) : NULL;

        if (!pd || !cq || !mr || !qp)
            worker->failure = "an object can't be made";
        else if (to_init(e, qp, &plan) || ibv_destroy_qp(qp) || ibv_dereg_mr(mr) || ibv_destroy_cq(cq) || ibv_dealloc_pd(pd))
            worker->failure = "an object can't be destroyed";
    }
    free(memory);
    return NULL;
}

TEST(control, SOLO, "threads may make and destroy objects at once", "rdma-core Documentation/libibverbs.md: thread safety")
{
    struct worker workers[THREADS];

    for (int i = 0; i < THREADS; i++)
        workers[i] = (struct worker){.e = e, .number = i};
    run(e, workers, THREADS, make_and_destroy);
}

static bool stop_writing, writing;

static void *scribble(void *argument)
{
    struct worker *worker = argument;
    volatile uint64_t *word = (volatile uint64_t *)(void *)(worker->e->memory + 65536 + 64);

    while (!__atomic_load_n(&stop_writing, __ATOMIC_RELAXED)) {
        *word = *word + 1;
        worker->done++;
        __atomic_store_n(&writing, true, __ATOMIC_RELAXED);
        /* Lost writes show as a word that went back. */
        if (*word != worker->done) {
            worker->failure = "a write to memory that was being registered got lost";
            return NULL;
        }
        if (worker->done % 64 == 0)
            sched_yield();
    }
    return NULL;
}

static void *register_around(void *argument)
{
    struct worker *worker = argument;
    struct end *e = worker->e;

    while (!__atomic_load_n(&writing, __ATOMIC_RELAXED))
        sched_yield();
    for (int i = 0; i < 100 && !worker->failure; i++) {
        uint8_t *fresh = aligned_alloc(4096, 8192);
        struct ibv_mr *mr = ibv_reg_mr(e->pd, e->memory + 65536, 4096, ALL_ACCESS), *other = ibv_reg_mr(e->pd, fresh, 8192, ALL_ACCESS);

        if (!mr || !other || ibv_dereg_mr(mr) || ibv_dereg_mr(other))
            worker->failure = "ibv_reg_mr";
        free(fresh);
    }
    __atomic_store_n(&stop_writing, true, __ATOMIC_RELAXED);
    return NULL;
}

static void *act(void *argument)
{
    struct worker *worker = argument;

    return worker->number ? register_around(argument) : scribble(argument);
}

TEST(written_while_registered, SOLO, "memory may be written while it is registered; no write is lost", "man ibv_reg_mr")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct worker workers[2] = {{.e = e, .number = 0}, {.e = e, .number = 1}};

    set_up(e, &plan);
    memset(e->memory + 65536, 0, 4096);
    stop_writing = writing = false;
    run(e, workers, 2, act);
}
