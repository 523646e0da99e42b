/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load of a tenant: one end of a connection that posts work and sleeps until it is
 * told of completions, so that what is measured is the engine and not how well
 * applications spin beside each other.
 *
 *   load PORT                                  the passive end: memory, and nothing to do
 *   load PORT client KIND SIZE DEPTH QPS SECONDS
 *   load - client KIND …                       alone: its QPs are connected to themselves
 *
 * KIND: write, read, atomic: DEPTH messages of SIZE bytes on each of QPS queue pairs,
 *       every (DEPTH/2)th signaled
 *       events: as write, every message signaled and each completion told of
 *       datagrams: as write, from UD QPs to UD QPs of the passive end's; SIZE is 4096 at most
 *       latency: one WRITE of SIZE bytes at a time, one every 200 us
 *       mr, qp: register and deregister SIZE bytes, or create and destroy a QP
 *
 * Starts when a line comes on stdin. Prints "operations N bytes N p50 US p99 US p999 US".
 */
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"

enum { MEMORY = 16 << 20, MAX_QPS = 64, SAMPLES = 1 << 20, PACE_NS = 200000 };
enum { MTU = 4096, GRH = 40, RECEIVES = 256, QKEY = 0x1234567 };

static struct pair pair;
static bool alone;
static struct ibv_qp *qps[MAX_QPS];
static struct ibv_ah *ah;              /* of datagrams */
static uint32_t there[MAX_QPS];        /* numbers of the QPs that they go to */
static struct ibv_comp_channel *channel;
static struct ibv_cq *cq;
static struct ibv_mr *mr;
static uint32_t samples[SAMPLES], sample_count;

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static struct ibv_qp *make_qp(uint32_t depth)
{
    struct ibv_qp_init_attr attr = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = depth, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = 1,
                               .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC};
    struct ibv_qp *qp = ibv_create_qp(pair.own.pd, &attr);

    CHECK(qp, "ibv_create_qp");
    CHECK(!ibv_modify_qp(qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS), "INIT");
    return qp;
}

static void exchange(const void *addr, uint32_t rkey)
{
    if (!alone) {
        pair_exchange(&pair, addr, rkey);
        return;
    }
    pair.peer = (struct address){
        .addr = (uintptr_t)addr, .rkey = rkey, .qp_num = pair.own.qp->qp_num, .gid = pair.own.gid};
}

static void meet(void)
{
    if (!alone)
        pair_meet(&pair);
}

/* The pair's own QP meets first; further ones are told through it. */
static void connect_all(uint32_t count, uint32_t depth)
{
    for (uint32_t i = 0; i < count; i++) {
        qps[i] = pair.own.qp = make_qp(depth);
        exchange(mr->addr, mr->rkey);
        end_connect(&pair.own, pair.peer.qp_num, pair.peer.gid, 7, 0);
        meet();
    }
}

static void post_receive(struct ibv_qp *qp)
{
    struct ibv_sge sge = {.addr = (uintptr_t)mr->addr, .length = GRH + MTU, .lkey = mr->lkey};
    struct ibv_recv_wr *bad, wr = {.wr_id = (uintptr_t)qp, .sg_list = &sge, .num_sge = 1};

    CHECK(!ibv_post_recv(qp, &wr, &bad), "ibv_post_recv");
}

static struct ibv_qp *make_datagram_qp(uint32_t depth)
{
    struct ibv_qp_init_attr init = {
        .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = depth, .max_recv_wr = RECEIVES, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY};
    struct ibv_qp *qp = ibv_create_qp(pair.own.pd, &init);

    CHECK(qp, "ibv_create_qp");
    CHECK(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY), "INIT");
    attr.qp_state = IBV_QPS_RTR;
    CHECK(!ibv_modify_qp(qp, &attr, IBV_QP_STATE), "RTR");
    attr.qp_state = IBV_QPS_RTS;
    CHECK(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN), "RTS");
    return qp;
}

static void meet_for_datagrams(uint32_t count, uint32_t depth, bool receives)
{
    for (uint32_t i = 0; i < count; i++) {
        qps[i] = pair.own.qp = make_datagram_qp(depth);
        for (uint32_t n = 0; receives && n < RECEIVES; n++)
            post_receive(qps[i]);
        exchange(NULL, 0);
        there[i] = pair.peer.qp_num;
        meet();
    }
    struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = pair.peer.gid, .hop_limit = 1}};

    ah = ibv_create_ah(pair.own.pd, &attr);
    CHECK(ah, "ibv_create_ah");
}

static void post(struct ibv_qp *qp, enum ibv_wr_opcode opcode, uint32_t size, bool signaled)
{
    struct ibv_sge sge = {.addr = (uintptr_t)mr->addr, .length = opcode == IBV_WR_ATOMIC_FETCH_AND_ADD ? 8 : size,
                          .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.wr_id = (uintptr_t)qp, .sg_list = &sge, .num_sge = 1, .opcode = opcode,
                                   .send_flags = signaled ? IBV_SEND_SIGNALED : 0};

    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = pair.peer.addr;
        wr.wr.atomic.rkey = pair.peer.rkey;
        wr.wr.atomic.compare_add = 1;
    } else if (opcode == IBV_WR_SEND) {
        uint32_t i = 0;

        while (qps[i] != qp)
            i++;
        wr.wr.ud.ah = ah;
        wr.wr.ud.remote_qpn = there[i];
        wr.wr.ud.remote_qkey = QKEY;
    } else {
        wr.wr.rdma.remote_addr = pair.peer.addr;
        wr.wr.rdma.rkey = pair.peer.rkey;
    }
    CHECK(!ibv_post_send(qp, &wr, &bad), "ibv_post_send");
}

static void wait_event(void)
{
    struct ibv_cq *told;
    void *context;

    CHECK(!ibv_get_cq_event(channel, &told, &context), "ibv_get_cq_event");
    ibv_ack_cq_events(told, 1);
    CHECK(!ibv_req_notify_cq(cq, 0), "ibv_req_notify_cq");
}

static uint64_t flood(enum ibv_wr_opcode opcode, uint32_t size, uint32_t depth, uint32_t count, uint32_t every, uint64_t end)
{
    uint64_t operations = 0;
    struct ibv_wc wc[64];

    CHECK(!ibv_req_notify_cq(cq, 0), "ibv_req_notify_cq");
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t n = 0; n < depth; n++)
            post(qps[i], opcode, size, (n + 1) % every == 0);
    while (now_ns() < end) {
        int got = ibv_poll_cq(cq, 64, wc);

        if (got == 0) {
            wait_event();
            continue;
        }
        for (int i = 0; i < got; i++) {
            CHECK(wc[i].status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc[i].status));
            operations += every;
            for (uint32_t n = 0; n < every; n++)
                post((struct ibv_qp *)(uintptr_t)wc[i].wr_id, opcode, size, n + 1 == every);
        }
    }
    return operations;
}

/* Whatever comes, until the process is ended. */
static void receive(void)
{
    struct ibv_wc wc[64];

    CHECK(!ibv_req_notify_cq(cq, 0), "ibv_req_notify_cq");
    for (;;) {
        int got = ibv_poll_cq(cq, 64, wc);

        if (got == 0)
            wait_event();
        for (int i = 0; i < got; i++)
            post_receive((struct ibv_qp *)(uintptr_t)wc[i].wr_id);
    }
}

static uint64_t latency(uint32_t size, uint64_t end)
{
    struct ibv_wc wc;
    uint64_t next = now_ns();

    CHECK(!ibv_req_notify_cq(cq, 0), "ibv_req_notify_cq");
    while (next < end) {
        struct timespec until = {.tv_sec = (time_t)(next / 1000000000ull), .tv_nsec = (long)(next % 1000000000ull)};

        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        uint64_t start = now_ns();

        post(qps[0], IBV_WR_RDMA_WRITE, size, true);
        while (ibv_poll_cq(cq, 1, &wc) == 0)
            wait_event();
        uint64_t done = now_ns();

        if (sample_count < SAMPLES)
            samples[sample_count++] = (uint32_t)(done - start);
        next += PACE_NS;
        if (next < done)
            next = done;
    }
    return sample_count;
}

static uint64_t storm_of_regions(uint32_t size, uint64_t end)
{
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t operations = 0;

    for (; now_ns() < end; operations += 2) {
        struct ibv_mr *one = ibv_reg_mr(pair.own.pd, place, size, IBV_ACCESS_LOCAL_WRITE);

        CHECK(one && !ibv_dereg_mr(one), "ibv_reg_mr");
    }
    return operations;
}

static uint64_t storm_of_qps(uint64_t end)
{
    uint64_t operations = 0;

    for (; now_ns() < end; operations += 3)
        CHECK(!ibv_destroy_qp(make_qp(64)), "ibv_destroy_qp");
    return operations;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static double percentile(double part)
{
    return sample_count ? samples[(uint32_t)((sample_count - 1) * part)] / 1000.0 : 0;
}

int main(int argc, char **argv)
{
    bool client = argc > 2, datagrams;
    const char *kind = client ? argv[3] : "";
    uint32_t size = argc > 4 ? (uint32_t)atoi(argv[4]) : 8, depth = argc > 5 ? (uint32_t)atoi(argv[5]) : 1;
    uint32_t count = argc > 6 ? (uint32_t)atoi(argv[6]) : 1;
    double seconds = argc > 7 ? atof(argv[7]) : 1;

    CHECK(argc == 2 || argc == 8, "usage: %s PORT|- [client KIND SIZE DEPTH QPS SECONDS]", argv[0]);
    CHECK(count && count <= MAX_QPS && size <= MEMORY && depth >= 1, "out of range");
    alone = !strcmp(argv[1], "-");
    if (alone)
        end_open(&pair.own, open_device(), 0);
    else
        pair_open(&pair, client ? 3 : argc, argv, 0);
    /* Of a thousand processes, each touches what it uses. */
    void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | (alone ? 0 : MAP_POPULATE), -1, 0);

    mr = ibv_reg_mr(pair.own.pd, memory, MEMORY, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                                                     IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC);
    channel = ibv_create_comp_channel(pair.own.context);
    cq = channel ? ibv_create_cq(pair.own.context, 65536, NULL, channel, 0) : NULL;
    CHECK(mr && cq, "MR or CQ");
    /* The client says how many QPs there will be, and of what kind. */
    datagrams = !strcmp(kind, "datagrams");
    exchange((void *)(uintptr_t)count, datagrams);
    if (!client) {
        count = (uint32_t)pair.peer.addr;
        datagrams = pair.peer.rkey;
    }
    CHECK(count <= MAX_QPS && (!datagrams || size <= MTU), "out of range");
    if (datagrams)
        meet_for_datagrams(count, depth, !client);
    else
        connect_all(count, depth);
    if (!client && datagrams)
        receive();
    if (!client) {
        meet();
        return 0;
    }
    printf("ready\n");
    fflush(stdout);
    CHECK(getchar() != EOF, "nobody starts it");
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9), operations;
    uint32_t every = depth / 2 ? depth / 2 : 1;

    if (!strcmp(kind, "write"))
        operations = flood(IBV_WR_RDMA_WRITE, size, depth, count, every, end);
    else if (!strcmp(kind, "read"))
        operations = flood(IBV_WR_RDMA_READ, size, depth, count, every, end);
    else if (!strcmp(kind, "atomic"))
        operations = flood(IBV_WR_ATOMIC_FETCH_AND_ADD, 8, depth, count, every, end);
    else if (!strcmp(kind, "events"))
        operations = flood(IBV_WR_RDMA_WRITE, size, depth, count, 1, end);
    else if (datagrams)
        operations = flood(IBV_WR_SEND, size, depth, count, every, end);
    else if (!strcmp(kind, "latency"))
        operations = latency(size, end);
    else if (!strcmp(kind, "mr"))
        operations = storm_of_regions(size, end);
    else if (!strcmp(kind, "qp"))
        operations = storm_of_qps(end);
    else
        DIE("no such load: %s", kind);
    qsort(samples, sample_count, sizeof(*samples), by_value);
    printf("operations %llu bytes %llu p50 %.1f p99 %.1f p999 %.1f\n", (unsigned long long)operations,
           (unsigned long long)(operations * size), percentile(0.5), percentile(0.99), percentile(0.999));
    fflush(stdout);
    meet();
    _exit(0);
}
