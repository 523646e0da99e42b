/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tcp transport between two sessions of one engine, over pairs of sockets that
 * this program makes, breaks and writes nonsense to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <infiniband/verbs.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "client.h"
#include "transport/tcp_frame.h"

static void bring_up(struct client *client, uint32_t peer)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        struct sluice_qp_attr now, attr = {
            .qp_state = state, .dest_qp_num = peer, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7,
            .max_rd_atomic = 4, .max_dest_rd_atomic = 4,
            .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};

        CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr,
                               IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                   IBV_QP_RNR_RETRY | IBV_QP_ACCESS_FLAGS | IBV_QP_MAX_QP_RD_ATOMIC |
                                   IBV_QP_MAX_DEST_RD_ATOMIC,
                               SLUICE_TRANSPORT_TCP, -1, &now) == 0);
    }
}

/* A connection of theirs. Returns a descriptor of its own on one end, with which it can be broken. */
static int connect_both(struct client *a, struct client *b)
{
    int ends[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    int handle = dup(ends[0]);

    CHECK(handle >= 0 && sluice_qp_connect(engine, a->session, a->qp, ends[0]) == 0);
    CHECK(sluice_qp_connect(engine, b->session, b->qp, ends[1]) == 0);
    return handle;
}

static void open_pair(struct client *a, struct client *b)
{
    open_client(a);
    open_client(b);
    bring_up(a, b->qp_num);
    bring_up(b, a->qp_num);
}

static void drain_events(void)
{
    struct sluice_engine_event event;

    while (sluice_engine_next_event(engine, &event))
        CHECK(event.kind == SLUICE_EVENT_QP_DISCONNECTED);
}

static void every_size_arrives(void)
{
    static const uint32_t sizes[] = {1, 8, 40, 63, 64, 65, 255, 256, 257, 2047, 2048, 2049, 4096, 8191, 8192, 8193,
                                     65536, 262143, 262144, MEMORY};
    struct client a, b;

    open_pair(&a, &b);
    close(connect_both(&a, &b));
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        for (uint32_t j = 0; j < MEMORY; j++)
            a.memory[j] = (uint8_t)(j * 31 + (j >> 9) + i);
        memset(b.memory, 0xee, MEMORY);
        post_write(&a, &b, i, sizes[i]);
        publish(&a);
        CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS && memcmp(a.memory, b.memory, sizes[i]) == 0);
        CHECK(sizes[i] == MEMORY || b.memory[sizes[i]] == 0xee);
    }
    close_client(&a);
    close_client(&b);
}

static void lists_complete_in_order(void)
{
    struct client a, b;
    uint64_t posted = 0, completed = 0;

    open_pair(&a, &b);
    close(connect_both(&a, &b));
    for (uint32_t round = 0; round < 500; round++) {
        uint32_t batch = round * 7 % ENTRIES + 1;

        for (uint32_t i = 0; i < batch; i++)
            post_write(&a, &b, posted++, 8 + (round * 37 + i * 1001) % 20000);
        publish(&a);
        for (uint32_t i = 0; i < batch; i++) {
            struct sluice_cqe cqe = wait_cqe(&a);

            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == completed++ && cqe.tail == (uint32_t)completed);
        }
    }
    close_client(&a);
    close_client(&b);
}

static void broken_connections_are_replaced(void)
{
    struct client a, b;
    uint64_t posted = 0, completed = 0;

    open_pair(&a, &b);
    for (uint32_t round = 0; round < 200; round++) {
        int handle = connect_both(&a, &b);

        for (uint32_t i = 0; i < ENTRIES / 2; i++)
            post_write(&a, &b, posted++, 8 + (round * 977 + i * 30011) % MEMORY);
        publish(&a);
        for (uint32_t i = 0; i < round % (ENTRIES / 2); i++)
            CHECK(wait_cqe(&a).wr_id == completed++);
        shutdown(handle, SHUT_RDWR);
        close(handle);
        close(connect_both(&a, &b));
        while (completed < posted) {
            struct sluice_cqe cqe = wait_cqe(&a);

            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == completed++);
        }
        CHECK(memcmp(a.memory, b.memory, 8) == 0);
        drain_events();
    }
    close_client(&a);
    close_client(&b);
    drain_events();
}

static void nobody_connects(void)
{
    struct client a, b;

    open_pair(&a, &b);
    post_write(&a, &b, 1, 8);
    post_write(&a, &b, 2, 8);
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_RETRY_EXC_ERR);
    CHECK(wait_cqe(&a).status == IBV_WC_WR_FLUSH_ERR);
    close_client(&a);
    close_client(&b);
}

static void a_wrong_key_is_refused(void)
{
    struct client a, b;

    open_pair(&a, &b);
    close(connect_both(&a, &b));
    post_write(&a, &b, 1, 8);
    post_write(&a, &b, 2, 8);
    ((struct sluice_wqe *)((uint8_t *)a.sq + a.sq_stride))->rkey ^= 0x5000;
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
    CHECK(wait_cqe(&a).status == IBV_WC_REM_ACCESS_ERR);
    while (load_acquire(&b.shared->state) != IBV_QPS_ERR)
        sched_yield();
    close_client(&a);
    close_client(&b);
    drain_events();
}

/* Frames that no router sends, whole and in pieces: the connection ends, nothing else happens. */
static void nonsense_ends_the_connection(void)
{
    struct client a, b;
    uint64_t random = 88172645463325252ull;

    open_pair(&a, &b);
    memset(b.memory, 0xee, MEMORY);
    for (uint32_t round = 0; round < 2000; round++) {
        struct tcp_frame frames[4] = {{.kind = TCP_HELLO, .total = TCP_VERSION, .imm = IBV_QPT_RC}};
        int ends[2];

        for (uint32_t i = 0; i < sizeof(frames); i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            if (i >= sizeof(*frames))
                ((uint8_t *)frames)[i] = (uint8_t)(random >> 32);
        }
        for (uint32_t i = 1; i < 4; i++) {
            frames[i].kind %= TCP_KINDS;
            frames[i].length %= 200;
            frames[i].msn = 0;
            frames[i].total = round % 3 ? frames[i].length : frames[i].total;
            frames[i].offset = round % 3 ? 0 : frames[i].offset;
        }
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        if (sluice_qp_connect(engine, b.session, b.qp, ends[0])) {
            /* A request was refused, and the QP has ended, as it must. */
            close(ends[0]);
            close(ends[1]);
            close_client(&b);
            open_client(&b);
            memset(b.memory, 0xee, MEMORY);
            bring_up(&b, a.qp_num);
            continue;
        }
        uint32_t said = 0;

        while (said < sizeof(frames)) {
            ssize_t result = send(ends[1], (uint8_t *)frames + said, round % sizeof(frames) + 1, MSG_NOSIGNAL);

            if (result < 0)
                break;
            said += (uint32_t)result;
            if (said + round % sizeof(frames) + 1 > sizeof(frames))
                break;
        }
        close(ends[1]);
        if (round % 100 == 0)
            drain_events();
    }
    for (uint32_t i = 0; i < MEMORY; i++)
        CHECK(b.memory[i] == 0xee);
    drain_events();
    close_client(&a);
    close_client(&b);
    drain_events();
}

int main(void)
{
    struct sluice_shape none = {0};

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    RUN(every_size_arrives);
    RUN(lists_complete_in_order);
    RUN(broken_connections_are_replaced);
    RUN(nobody_connects);
    RUN(a_wrong_key_is_refused);
    RUN(nonsense_ends_the_connection);
    CHECK(sluice_tenant_remove(engine, tenant) == 0);
    sluice_engine_close(engine);
    return 0;
}
