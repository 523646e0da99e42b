/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One RC connection between two processes, over any device, by a clock that an emulated processor has too (perftest
 * counts cycles, and asks first how long one takes):
 *
 *     wire PORT [DEVICE GID_INDEX]           the server
 *     wire PORT HOST [DEVICE GID_INDEX]      the client, which prints a line for each figure
 *
 * write, read and send: MB/s at 64 KiB and 1 MiB, with 16 requests outstanding, and 32 receives: with as many as requests each SEND
 * would race the receive that follows another, and what comes too early waits for a timer (of 4 ms and more on rxe). rate:
 * thousand 8-byte WRITEs a second, 64 outstanding. latency: microseconds of half a round trip of 8-byte WRITEs that both
 * sides spin for, the median; latency_asleep: the same of SENDs, where both sleep until they have an event. register:
 * microseconds of ibv_reg_mr, and of ibv_dereg_mr, of that many bytes that have been written, each time others; medians.
 */
#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY = 1 << 20, DEPTH = 64, WINDOW = 16, RECEIVES = 2 * WINDOW, ROUNDS = 400, REGIONS = 21, MESSAGES = 16000 };

#define MUST(condition)                                                          \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "wire.c:%d: not so: %s\n", __LINE__, #condition);    \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

struct address {
    uint64_t memory;
    uint32_t key, qp_num;
    union ibv_gid gid;
};

static struct ibv_comp_channel *channel;
static struct ibv_cq *cq;
static struct ibv_qp *qp;
static struct ibv_mr *mr;
static volatile uint8_t *memory;
static struct address peer;
static int gid_index, meeting;
static struct ibv_port_attr port;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static void meet(void)
{
    char word = 0;

    MUST(send(meeting, &word, 1, MSG_NOSIGNAL) == 1 && recv(meeting, &word, 1, MSG_WAITALL) == 1);
}

/* ---- the connection ------------------------------------------------------ */

static void open_end(const char *name, struct address *own)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *context = NULL;

    for (int i = 0; list && list[i] && !context; i++)
        if (!name || strcmp(ibv_get_device_name(list[i]), name) == 0)
            context = ibv_open_device(list[i]);
    MUST(context);
    struct ibv_pd *pd = ibv_alloc_pd(context);

    channel = ibv_create_comp_channel(context);
    cq = ibv_create_cq(context, 4 * DEPTH, NULL, channel, 0);
    struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1,
                                            .max_recv_sge = 1, .max_inline_data = 16}};

    qp = ibv_create_qp(pd, &init);
    memory = aligned_alloc(4096, MEMORY);
    memset((void *)memory, 0, MEMORY);
    mr = ibv_reg_mr(pd, (void *)memory, MEMORY, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
    MUST(channel && cq && qp && mr && !ibv_query_port(context, 1, &port));
    own->memory = (uintptr_t)memory;
    own->key = mr->rkey;
    own->qp_num = qp->qp_num;
    MUST(!ibv_query_gid(context, 1, gid_index, &own->gid));
}

static void connect_end(void)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1,
                               .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ};

    MUST(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR, .path_mtu = port.active_mtu, .dest_qp_num = peer.qp_num,
                                .max_dest_rd_atomic = 16, .min_rnr_timer = 1,
                                .ah_attr = {.is_global = 1, .port_num = 1,
                                            .grh = {.dgid = peer.gid, .sgid_index = (uint8_t)gid_index, .hop_limit = 1}}};
    MUST(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                       IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 18, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 16};
    MUST(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                       IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
}

static void find_each_other(uint16_t number, const char *host)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number)};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

    meeting = listener;
    if (host) {
        MUST(inet_pton(AF_INET, host, &address.sin_addr) == 1);
        MUST(!connect(meeting, (struct sockaddr *)&address, sizeof(address)));
        return;
    }
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    MUST(!bind(listener, (struct sockaddr *)&address, sizeof(address)) && !listen(listener, 1));
    meeting = accept(listener, NULL, NULL);
    MUST(meeting >= 0);
    close(listener);
}

/* ---- work ---------------------------------------------------------------- */

static void post(enum ibv_wr_opcode opcode, uint32_t length)
{
    struct ibv_sge sge = {(uintptr_t)memory, length, mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = opcode,
                                   .send_flags = IBV_SEND_SIGNALED | (length <= 16 && opcode != IBV_WR_RDMA_READ ? IBV_SEND_INLINE : 0u),
                                   .wr.rdma = {.remote_addr = peer.memory, .rkey = peer.key}};

    MUST(!ibv_post_send(qp, &wr, &bad));
}

static void post_receive(void)
{
    struct ibv_sge sge = {(uintptr_t)memory, MEMORY, mr->lkey};
    struct ibv_recv_wr *bad, wr = {.sg_list = &sge, .num_sge = 1};

    MUST(!ibv_post_recv(qp, &wr, &bad));
}

static uint32_t complete(void)
{
    struct ibv_wc wcs[WINDOW];
    int count = ibv_poll_cq(cq, WINDOW, wcs);

    MUST(count >= 0);
    for (int i = 0; i < count; i++)
        MUST(wcs[i].status == IBV_WC_SUCCESS);
    return (uint32_t)count;
}

/* Microseconds for so many requests, of which so many are outstanding. */
static double ask(enum ibv_wr_opcode opcode, uint32_t length, uint32_t total, uint32_t window)
{
    uint32_t posted = 0, done = 0;
    double start = now();

    while (done < total) {
        for (; posted < total && posted - done < window; posted++)
            post(opcode, length);
        done += complete();
    }
    return now() - start;
}

/* As many receives are there as before. */
static void answer(uint32_t total)
{
    for (uint32_t done = 0; done < total;) {
        uint32_t more = complete();

        done += more;
        for (; more; more--)
            post_receive();
    }
}

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

/* One side writes a number, the other one writes it back. */
static void ping(bool first)
{
    static double took[ROUNDS];

    for (uint32_t round = 1; round <= ROUNDS; round++) {
        uint8_t number = (uint8_t)(round % 251 + 1);
        double start = now();

        for (int turn = 0; turn < 2; turn++) {
            if ((turn == 0) != first) {
                while (memory[4096] != number)
                    ;
                continue;
            }
            memory[0] = number;
            struct ibv_sge sge = {(uintptr_t)memory, 8, mr->lkey};
            struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                           .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE,
                                           .wr.rdma = {.remote_addr = peer.memory + 4096, .rkey = peer.key}};

            MUST(!ibv_post_send(qp, &wr, &bad));
            while (complete() == 0)
                ;
        }
        took[round - 1] = (now() - start) / 2;
    }
    qsort(took, ROUNDS, sizeof(*took), ascending);
    if (first)
        printf("latency %.1f\n", took[ROUNDS / 2]);
}

/* Asleep until a message is there. */
static void await_receive(void)
{
    for (bool armed = false;; armed = !armed) {
        struct ibv_wc wc;
        struct ibv_cq *of;
        void *context;
        int count;

        while ((count = ibv_poll_cq(cq, 1, &wc)) > 0) {
            MUST(wc.status == IBV_WC_SUCCESS);
            if (wc.opcode & IBV_WC_RECV)
                return;
        }
        MUST(count == 0);
        if (!armed) {
            MUST(!ibv_req_notify_cq(cq, 1));
            continue;
        }
        MUST(!ibv_get_cq_event(channel, &of, &context));
        ibv_ack_cq_events(of, 1);
    }
}

/* A message there and one back, where nobody spins: both sides sleep until they have an event. */
static void ping_asleep(bool first)
{
    static double took[ROUNDS];
    struct ibv_sge sge = {(uintptr_t)memory, 8, mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND,
                                   .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE | IBV_SEND_SOLICITED};

    post_receive();
    meet();
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double start = now();

        if (!first)
            await_receive();
        post_receive();
        MUST(!ibv_post_send(qp, &wr, &bad));
        if (first)
            await_receive();
        took[round] = (now() - start) / 2;
    }
    qsort(took, ROUNDS, sizeof(*took), ascending);
    if (first)
        printf("latency_asleep %.1f\n", took[ROUNDS / 2]);
}

/* Beside nothing else. */
static void register_memory(size_t length)
{
    static double made[REGIONS], gone[REGIONS];
    uint8_t *place = aligned_alloc(4096, REGIONS * length);

    MUST(place);
    memset(place, 1, REGIONS * length);
    for (size_t i = 0; i < REGIONS; i++) {
        double start = now();
        struct ibv_mr *region = ibv_reg_mr(qp->pd, place + i * length, length, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);

        made[i] = now() - start;
        MUST(region);
        start = now();
        MUST(!ibv_dereg_mr(region));
        gone[i] = now() - start;
    }
    qsort(made, REGIONS, sizeof(*made), ascending);
    qsort(gone, REGIONS, sizeof(*gone), ascending);
    printf("register_%zu %.1f\nderegister_%zu %.1f\n", length, made[REGIONS / 2], length, gone[REGIONS / 2]);
    free(place);
}

static void measure(bool client)
{
    static const struct {
        const char *name;
        enum ibv_wr_opcode opcode;
    } kinds[] = {{"write", IBV_WR_RDMA_WRITE}, {"read", IBV_WR_RDMA_READ}, {"send", IBV_WR_SEND}};

    for (uint32_t i = 0; i < RECEIVES && !client; i++)
        post_receive();
    for (uint32_t length = 1 << 16; length <= MEMORY; length <<= 4)
        for (uint32_t kind = 0; kind < 3; kind++) {
            uint32_t total = (48u << 20) / length;

            meet();
            if (client)
                printf("%s_%u %.1f\n", kinds[kind].name, length, length * (double)total / ask(kinds[kind].opcode, length, total, WINDOW));
            else if (kind == 2)
                answer(total);
            meet();
        }
    if (client)
        printf("rate %.1f\n", MESSAGES * 1e3 / ask(IBV_WR_RDMA_WRITE, 8, MESSAGES, DEPTH));
    meet();
    if (client) {
        register_memory(4096);
        register_memory(MEMORY);
    }
    meet();
    ping(client);
    ping_asleep(client);
}

int main(int argc, char **argv)
{
    struct address own;
    bool client = argc == 3 || argc == 5;
    char **device = argv + (client ? 3 : 2);

    MUST(argc >= 2 && argc <= 5);
    if (argc >= 4)
        gid_index = atoi(device[1]);
    open_end(argc >= 4 ? device[0] : NULL, &own);
    find_each_other((uint16_t)atoi(argv[1]), client ? argv[2] : NULL);
    MUST(send(meeting, &own, sizeof(own), 0) == sizeof(own) && recv(meeting, &peer, sizeof(peer), MSG_WAITALL) == sizeof(peer));
    connect_end();
    meet();
    setvbuf(stdout, NULL, _IOLBF, 0);
    measure(client);
    meet();
    return 0;
}
