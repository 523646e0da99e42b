/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tcp transport between two sessions of one engine, over pairs of sockets that
 * this program makes, breaks and writes nonsense to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "client.h"
#include "qp.h"
#include "transport/tcp.h"
#include "worker.h"

/* Returns as the verb would. */
static int try_move(struct client *client, uint32_t state, uint32_t peer)
{
    struct sluice_qp_attr now, attr = {
        .qp_state = state, .dest_qp_num = peer, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7,
        .max_rd_atomic = 4, .max_dest_rd_atomic = 4,
        .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC};

    return sluice_qp_modify(engine, client->session, client->qp, &attr,
                            IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                IBV_QP_ACCESS_FLAGS | IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC,
                            SLUICE_TRANSPORT_TCP, -1, &now);
}

static void bring_up(struct client *client, uint32_t peer)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++)
        CHECK(try_move(client, state, peer) == 0);
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

/* ---- memory that only its process reaches ------------------------------------ */

/* A second region: ordinary memory of this process, which the engine reaches as another's. Returns its key. */
static uint32_t reach_process(struct client *client, uint8_t **memory)
{
    int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

    *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mem >= 0 && *memory != MAP_FAILED);
    int handle = sluice_memory_open_process(engine, client->session, mem);

    CHECK(handle > 0);
    return command(client, (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = client->pd, .memory = (uint32_t)handle, .length = MEMORY,
        .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC,
        .addr = (uintptr_t)*memory, .iova = (uintptr_t)*memory});
}

/* The region of its arena, with all rights. */
static void allow_all(struct client *client)
{
    client->key = command(client, (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = client->pd, .length = MEMORY,
        .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC,
        .addr = (uintptr_t)client->memory, .iova = (uintptr_t)client->memory});
}

struct place {
    uint8_t *memory;
    uint32_t key;
};

static void put_sge(struct sluice_sge *sge, const struct place *place, uint32_t length)
{
    *sge = (struct sluice_sge){.addr = (uintptr_t)place->memory, .length = length, .lkey = place->key};
}

static struct sluice_wqe *post(struct client *client, uint8_t opcode, const struct place *local,
                               const struct place *remote, uint32_t length, uint64_t wr_id)
{
    struct sluice_wqe *wqe = slot(client);

    *wqe = (struct sluice_wqe){.opcode = opcode, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1, .wr_id = wr_id,
                               .remote_addr = (uintptr_t)remote->memory, .rkey = remote->key};
    put_sge((struct sluice_sge *)(wqe + 1), local, length);
    client->posted++;
    return wqe;
}

/* The WQE gets a second piece. */
static void add_piece(struct sluice_wqe *wqe, const struct place *local, uint32_t length)
{
    put_sge((struct sluice_sge *)(wqe + 1) + wqe->num_sge++, local, length);
}

static void post_add(struct client *client, const struct place *found, const struct place *word, uint64_t wr_id)
{
    struct sluice_wqe *wqe = post(client, IBV_WR_ATOMIC_FETCH_AND_ADD, found, word, sizeof(uint64_t), wr_id);
    struct sluice_atomic *operands = (struct sluice_atomic *)(wqe + 1);

    *operands = (struct sluice_atomic){.compare_add = 1};
    put_sge((struct sluice_sge *)(operands + 1), found, sizeof(uint64_t));
}

static void fill(uint8_t *at, uint32_t length, uint32_t seed)
{
    for (uint32_t i = 0; i < length; i++)
        at[i] = (uint8_t)(i * 31 + (i >> 8) * 7 + seed);
}

static void expect_filled(const uint8_t *at, uint32_t length, uint32_t start, uint32_t seed)
{
    for (uint32_t i = start; i < start + length; i++)
        CHECK(at[i - start] == (uint8_t)(i * 31 + (i >> 8) * 7 + seed));
}

/* WRITE and READ, each end in the arena or in the process, and one message of both. */
static void processes_memory_is_carried(void)
{
    static const uint32_t sizes[] = {1, 8, 65, 257, 2049, 8193, 65535, 65536, 65537, 300001};
    struct client a, b;
    struct place of_a[2], of_b[2];

    open_pair(&a, &b);
    close(connect_both(&a, &b));
    allow_all(&a);
    allow_all(&b);
    of_a[1].key = reach_process(&a, &of_a[1].memory);
    of_b[1].key = reach_process(&b, &of_b[1].memory);
    of_a[0] = (struct place){a.memory, a.key};
    of_b[0] = (struct place){b.memory, b.key};
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        uint32_t size = sizes[i], first = size / 3;

        for (uint32_t ends = 0; ends < 8; ends++) {
            struct place *remote = &of_b[ends >> 1 & 1];
            struct place local[2] = {of_a[ends & 1], of_a[!(ends & 1)]};
            uint32_t lengths[2] = {size, 0};
            struct sluice_wqe *wqe;

            if (ends & 4 && first) {
                lengths[0] = first;
                lengths[1] = size - first;
            }
            memset(remote->memory, 0xee, size + 1);
            fill(local[0].memory, size, i);
            for (uint32_t j = 0; j < lengths[1]; j++)
                local[1].memory[j] = local[0].memory[first + j];
            wqe = post(&a, IBV_WR_RDMA_WRITE, &local[0], remote, lengths[0], i);
            if (lengths[1])
                add_piece(wqe, &local[1], lengths[1]);
            publish(&a);
            CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
            expect_filled(remote->memory, size, 0, i);
            CHECK(remote->memory[size] == 0xee);

            fill(remote->memory, size, i + 1);
            memset(local[0].memory, 0xee, size + 1);
            memset(local[1].memory, 0xee, size + 1);
            wqe = post(&a, IBV_WR_RDMA_READ, &local[0], remote, lengths[0], i);
            if (lengths[1])
                add_piece(wqe, &local[1], lengths[1]);
            publish(&a);
            CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
            expect_filled(local[0].memory, lengths[0], 0, i + 1);
            expect_filled(local[1].memory, lengths[1], lengths[0], i + 1);
            CHECK(local[0].memory[lengths[0]] == 0xee && local[1].memory[lengths[1]] == 0xee);
        }
    }
    munmap(of_a[1].memory, MEMORY);
    munmap(of_b[1].memory, MEMORY);
    close_client(&a);
    close_client(&b);
}

/* Through broken connections: each byte right, each atomic executed once and answered with what it found. */
static void processes_memory_over_broken_connections(void)
{
    struct client a, b;
    struct place of_a[2], of_b[2];
    uint64_t posted = 0, completed = 0, added = 0;

    open_pair(&a, &b);
    allow_all(&a);
    allow_all(&b);
    of_a[1].key = reach_process(&a, &of_a[1].memory);
    of_b[1].key = reach_process(&b, &of_b[1].memory);
    of_a[0] = (struct place){a.memory, a.key};
    of_b[0] = (struct place){b.memory, b.key};
    /* What is written lies behind the word that is counted; what is read and found goes elsewhere. */
    struct place target = {of_b[1].memory + 8, of_b[1].key}, found = {of_a[1].memory + MEMORY / 2, of_a[1].key};

    fill(of_a[1].memory, MEMORY / 4, 3);
    for (uint32_t round = 0; round < 100; round++) {
        int handle = connect_both(&a, &b);
        uint64_t before = added;

        for (uint32_t i = 0; i < 6; i++) {
            struct place word = {found.memory + 8 * i, found.key};

            post(&a, IBV_WR_RDMA_WRITE, &of_a[1], &target, 1 + (round * 977 + i * 30011) % (MEMORY / 4), posted++);
            post_add(&a, &word, &of_b[1], posted++);
            added++;
        }
        publish(&a);
        for (uint32_t i = 0; i < round % 12; i++)
            CHECK(wait_cqe(&a).wr_id == completed++);
        shutdown(handle, SHUT_RDWR);
        close(handle);
        close(connect_both(&a, &b));
        while (completed < posted) {
            struct sluice_cqe cqe = wait_cqe(&a);

            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == completed++);
        }
        for (uint32_t i = 0; i < 6; i++)
            CHECK(((uint64_t *)found.memory)[i] == before + i);
        CHECK(*(uint64_t *)of_b[1].memory == added);
        expect_filled(target.memory, 1 + (round * 977) % (MEMORY / 4), 0, 3);
        drain_events();
    }
    munmap(of_a[1].memory, MEMORY);
    munmap(of_b[1].memory, MEMORY);
    close_client(&a);
    close_client(&b);
    drain_events();
}

/* Memory that isn't there any more: who sends it has a local error, who writes there a remote one. */
static void processes_memory_is_gone(void)
{
    for (uint32_t ours = 0; ours < 2; ours++) {
        struct client a, b;
        uint8_t *memory;

        open_pair(&a, &b);
        close(connect_both(&a, &b));
        struct place here = {a.memory, a.key}, there = {b.memory, b.key};
        uint32_t key = reach_process(ours ? &a : &b, &memory);

        *(ours ? &here : &there) = (struct place){memory, key};
        munmap(memory, MEMORY);
        post(&a, IBV_WR_RDMA_WRITE, &here, &there, MEMORY / 2, 1);
        post(&a, IBV_WR_RDMA_WRITE, &here, &there, MEMORY / 2, 2);
        publish(&a);
        CHECK(wait_cqe(&a).status == (ours ? IBV_WC_LOC_PROT_ERR : IBV_WC_REM_OP_ERR));
        CHECK(wait_cqe(&a).status == IBV_WC_WR_FLUSH_ERR);
        close_client(&a);
        close_client(&b);
        drain_events();
    }
}

/* Whoever goes first, in whatever moment. */
static void processes_end_in_the_middle(void)
{
    for (uint32_t round = 0; round < 60; round++) {
        struct client a, b;
        uint8_t *from, *to;

        open_pair(&a, &b);
        close(connect_both(&a, &b));
        struct place here = {NULL, reach_process(&a, &from)}, there = {NULL, reach_process(&b, &to)};

        here.memory = from;
        there.memory = to;
        for (uint32_t i = 0; i < 4; i++)
            post(&a, i & 1 ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE, &here, &there, MEMORY, i);
        publish(&a);
        for (uint32_t i = 0; i < round * 200; i++)
            spin_hint();
        close_client(round & 1 ? &a : &b);
        close_client(round & 1 ? &b : &a);
        munmap(from, MEMORY);
        munmap(to, MEMORY);
        drain_events();
    }
}

/* What was written is acknowledged within a moment also where the other side asks for things of its own. */
static void answers_carry_acknowledgements(void)
{
    struct client a, b;

    open_pair(&a, &b);
    close(connect_both(&a, &b));
    for (uint32_t round = 1; round <= 400; round++) {
        uint32_t value = round;

        memcpy(a.memory, &value, sizeof(value));
        post_write(&a, &b, round, sizeof(value));
        publish(&a);
        while (load_acquire((uint32_t *)b.memory) != round)
            sched_yield();
        /* Every fourth time nothing follows, once there were many at a stretch. */
        if (round < 100 || round % 4) {
            post_write(&b, &a, round, sizeof(value));
            publish(&b);
            CHECK(wait_cqe(&b).status == IBV_WC_SUCCESS);
        }
        CHECK(wait_cqe(&a).wr_id == round);
    }
    close_client(&a);
    close_client(&b);
    drain_events();
}

/* Whoever has executed something says so, even if its QP goes before it would have. */
static void the_last_acknowledgement_comes(void)
{
    for (uint32_t round = 0; round < 20; round++) {
        struct client a, b;

        open_pair(&a, &b);
        close(connect_both(&a, &b));
        for (uint32_t i = 1; i <= 10; i++) {
            memcpy(a.memory, &i, sizeof(i));
            post_write(&a, &b, i, sizeof(i));
            publish(&a);
            while (load_acquire((uint32_t *)b.memory) != i)
                sched_yield();
            if (i < 10) {
                post_write(&b, &a, i, sizeof(i));
                publish(&b);
                CHECK(wait_cqe(&b).status == IBV_WC_SUCCESS && wait_cqe(&a).wr_id == i);
            }
        }
        close_client(&b);
        CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
        close_client(&a);
        drain_events();
    }
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

/* A router of another version, that connects again and again: as good as nobody. */
static void nobody_who_can_be_understood_connects(void)
{
    const struct tcp_frame hello = {.kind = TCP_HELLO, .total = SLUICE_TCP_VERSION + 1, .imm = IBV_QPT_RC};
    struct client a, b;

    open_pair(&a, &b);
    post_write(&a, &b, 1, 8);
    post_write(&a, &b, 2, 8);
    publish(&a);
    while (load_acquire(&a.shared->state) != IBV_QPS_ERR) {
        struct sluice_engine_event event;
        int ends[2];

        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        CHECK(send(ends[1], &hello, sizeof(hello), MSG_NOSIGNAL) == sizeof(hello));
        if (sluice_qp_connect(engine, a.session, a.qp, ends[0]))
            close(ends[0]); /* it has ended */
        else
            while (!sluice_engine_next_event(engine, &event) && load_acquire(&a.shared->state) != IBV_QPS_ERR)
                sched_yield();
        close(ends[1]);
    }
    CHECK(wait_cqe(&a).status == IBV_WC_RETRY_EXC_ERR);
    CHECK(wait_cqe(&a).status == IBV_WC_WR_FLUSH_ERR);
    close_client(&a);
    close_client(&b);
    drain_events();
}

/* As socketpair, by TCP. */
static void make_stream(int ends[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(listener >= 0 && ends[0] >= 0 && bind(listener, (struct sockaddr *)&address, length) == 0);
    CHECK(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    CHECK(connect(ends[0], (struct sockaddr *)&address, length) == 0);
    ends[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(ends[1] >= 0);
    close(listener);
}

/* In the middle of a payload, more of which it has yet to be told of. */
static bool waits_for_more(const struct client *client)
{
    worker_enter(engine);
    const struct tcp_endpoint *endpoint = engine->sessions[client->session]->qps[client->qp]->wire;
    bool waits = endpoint && endpoint->receiving == TCP_PAYLOAD && endpoint->low > 1;

    worker_leave(engine);
    return waits;
}

/* What came of an answer lies unread in the socket, as it is less than is worth a wake-up. Then nothing comes any more. */
static void half_an_answer_is_no_life(void)
{
    enum { TOTAL = 1 << 16, BEGINNING = 4000, MORE = 1000 };
    const struct tcp_frame hello = {.kind = TCP_HELLO, .total = SLUICE_TCP_VERSION, .imm = IBV_QPT_RC};
    const struct tcp_frame answer = {.kind = TCP_READ_ANSWER, .flags = TCP_LAST, .length = TOTAL, .total = TOTAL};
    static const uint8_t payload[BEGINNING];
    struct tcp_frame said[2];
    struct client a, b;
    int ends[2];

    open_pair(&a, &b);
    make_stream(ends);
    CHECK(sluice_qp_connect(engine, a.session, a.qp, ends[0]) == 0);
    post_write(&a, &b, 1, TOTAL);
    ((struct sluice_wqe *)a.sq)->opcode = IBV_WR_RDMA_READ;
    publish(&a);
    CHECK(send(ends[1], &hello, sizeof(hello), 0) == sizeof(hello));
    CHECK(recv(ends[1], said, sizeof(said), MSG_WAITALL) == sizeof(said) && said[1].kind == TCP_READ);
    CHECK(send(ends[1], &answer, sizeof(answer), 0) == sizeof(answer));
    CHECK(send(ends[1], payload, BEGINNING, 0) == BEGINNING);
    while (!waits_for_more(&a))
        sched_yield();
    CHECK(send(ends[1], payload, MORE, 0) == MORE);
    CHECK(wait_cqe(&a).status == IBV_WC_RETRY_EXC_ERR);
    close(ends[1]);
    close_client(&a);
    close_client(&b);
    drain_events();
}

/* A READ is answered as a WRITE is sent: in one frame where nobody else wants to go, and nothing goes before it. */
static void an_answer_is_one_frame(void)
{
    const struct tcp_frame hello = {.kind = TCP_HELLO, .total = SLUICE_TCP_VERSION, .imm = IBV_QPT_RC};
    struct tcp_frame said[2];
    static uint8_t payload[MEMORY];
    struct client a, b;
    int ends[2];

    open_pair(&a, &b);
    allow_all(&b);
    fill(b.memory, MEMORY, 5);
    make_stream(ends);
    CHECK(sluice_qp_connect(engine, b.session, b.qp, ends[0]) == 0);
    const struct tcp_frame read = {
        .kind = TCP_READ, .total = MEMORY, .part = MEMORY, .rkey = b.key, .addr = (uintptr_t)b.memory};

    CHECK(send(ends[1], &hello, sizeof(hello), 0) == sizeof(hello));
    CHECK(send(ends[1], &read, sizeof(read), 0) == sizeof(read));
    CHECK(recv(ends[1], said, sizeof(said), MSG_WAITALL) == sizeof(said));
    CHECK(said[1].kind == TCP_READ_ANSWER && said[1].flags == TCP_LAST && said[1].length == MEMORY);
    CHECK(recv(ends[1], payload, MEMORY, MSG_WAITALL) == MEMORY);
    expect_filled(payload, MEMORY, 0, 5);
    close(ends[1]);
    close_client(&a);
    close_client(&b);
    drain_events();
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
        struct tcp_frame frames[4] = {{.kind = TCP_HELLO, .total = SLUICE_TCP_VERSION, .imm = IBV_QPT_RC}};
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

/* A part of its message is in a socket that takes no more, of which this program is the other end. */
static bool is_stuck(const struct client *client)
{
    worker_enter(engine);
    const struct qp *qp = engine->sessions[client->session]->qps[client->qp];
    bool stuck = qp->wire && qp->message.active && qp->message.moved && !tcp_socket((struct qp *)qp)->writable;

    worker_leave(engine);
    return stuck;
}

/* A WQE that changes while its message is sent, part by part: its process has done what no shim does, and harms itself. */
static void a_request_shrinks(void)
{
    const struct tcp_frame hello = {.kind = TCP_HELLO, .total = SLUICE_TCP_VERSION, .imm = IBV_QPT_RC};
    const struct sluice_shape narrow = {.share = {.max_bps = {1000000000, 0}, .burst = {8192, 0}}}, none = {0};
    uint32_t broken = 0;

    CHECK(sluice_tenant_shape(engine, tenant, &narrow) == 0);
    for (uint32_t round = 0; round < 20; round++) {
        struct sluice_engine_event event = {0};
        struct client a, b;
        int ends[2];
        uint8_t read[1024];

        open_pair(&a, &b);
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        CHECK(sluice_qp_connect(engine, a.session, a.qp, ends[0]) == 0);
        CHECK(send(ends[1], &hello, sizeof(hello), MSG_NOSIGNAL) == sizeof(hello));
        post_write(&a, &b, 1, MEMORY);
        publish(&a);
        while (!is_stuck(&a))
            sched_yield();
        ((struct sluice_sge *)(a.sq + 1))->length = 1 + round * 7;
        /* Read only while it is full, so that it fills again, and the WQE is looked at again. */
        while (!sluice_engine_next_event(engine, &event))
            if (!is_stuck(&a) || recv(ends[1], read, sizeof(read), MSG_DONTWAIT) < 0)
                sched_yield();
        CHECK(event.kind == SLUICE_EVENT_SESSION_BROKEN || event.kind == SLUICE_EVENT_QP_DISCONNECTED);
        broken += event.kind == SLUICE_EVENT_SESSION_BROKEN;
        close_client(&a);
        close_client(&b);
        close(ends[1]);
        while (sluice_engine_next_event(engine, &event))
            ;
    }
    CHECK(broken > 0);
    CHECK(sluice_tenant_shape(engine, tenant, &none) == 0);
}

/* Each takes a file of the router's, of which a tenant has its part. */
static void connections_are_bounded(void)
{
    struct client a, b;
    struct rlimit before, few;
    const struct tenant *owner = engine->tenants[tenant];

    open_client(&a);
    open_client(&b);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    /* An eighth of them is a tenant's. */
    few = (struct rlimit){8ull * (owner->files + 1), before.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    const uint64_t refused = owner->counters->refused[SLUICE_LIMIT_FILES];

    bring_up(&a, b.qp_num);
    CHECK(try_move(&b, IBV_QPS_INIT, a.qp_num) == 0);
    CHECK(try_move(&b, IBV_QPS_RTR, a.qp_num) == -ENOMEM);
    CHECK(owner->counters->refused[SLUICE_LIMIT_FILES] == refused + 1);
    CHECK(try_move(&a, IBV_QPS_RESET, 0) == 0);
    CHECK(try_move(&b, IBV_QPS_RTR, a.qp_num) == 0);
    close_client(&b);
    bring_up(&a, a.qp_num);
    close_client(&a);
    CHECK(owner->files == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
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
    RUN(answers_carry_acknowledgements);
    RUN(the_last_acknowledgement_comes);
    RUN(processes_memory_is_carried);
    RUN(processes_memory_over_broken_connections);
    RUN(processes_memory_is_gone);
    RUN(processes_end_in_the_middle);
    RUN(nobody_connects);
    RUN(nobody_who_can_be_understood_connects);
    RUN(half_an_answer_is_no_life);
    RUN(an_answer_is_one_frame);
    RUN(a_wrong_key_is_refused);
    RUN(nonsense_ends_the_connection);
    RUN(a_request_shrinks);
    RUN(connections_are_bounded);
    CHECK(sluice_tenant_remove(engine, tenant) == 0);
    sluice_engine_close(engine);
    return 0;
}
