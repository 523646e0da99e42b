/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams between nodes: two tenants of one engine, and trunks whose connections this
 * program makes, holds up, breaks, and writes nonsense to.
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
#include "transport/trunk.h"
#include "worker.h"

enum { QKEY = 0x1234567, SLOT = SLUICE_GRH + SLUICE_MTU, HALF = ENTRIES / 2, LARGEST = sizeof(struct datagram_frame) + SLUICE_MTU };

static const uint8_t gids[2][16] = {{[10] = 0xff, [11] = 0xff, 10, 0, 0, 1}, {[10] = 0xff, [11] = 0xff, 10, 0, 0, 2}};
static uint32_t tenants[2];
static struct client from, to;
static uint32_t out, in, handle; /* trunks, and the address handle that leads to out */

static void to_rts(struct client *client)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        struct sluice_qp_attr now, attr = {.qp_state = state, .qkey = QKEY};

        CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr, IBV_QP_STATE | IBV_QP_QKEY,
                               SLUICE_TRANSPORT_LOCAL, -1, &now) == 0);
    }
}

/* An address handle of this client's, not led anywhere. */
static uint32_t new_handle(const struct client *client, const uint8_t gid[16])
{
    struct sluice_create_ah_request request = {.pd = client->pd, .attr = {.is_global = 1, .port_num = 1}};

    memcpy(request.attr.dgid, gid, sizeof(request.attr.dgid));
    int result = sluice_ah_create(engine, client->session, &request, gids[0], -1);

    CHECK(result >= 0);
    return (uint32_t)result;
}

static void begin(void)
{
    tenant = tenants[0];
    open_client_of(&from, IBV_QPT_UD);
    tenant = tenants[1];
    open_client_of(&to, IBV_QPT_UD);
    to_rts(&from);
    to_rts(&to);
    handle = new_handle(&from, gids[1]);
    CHECK(sluice_ah_lead(engine, from.session, handle, -1, (int32_t)out) == 0);
}

static void finish(void)
{
    struct sluice_engine_event event;

    close_client(&from);
    close_client(&to);
    while (sluice_engine_next_event(engine, &event))
        CHECK(event.kind == SLUICE_EVENT_TRUNK_DISCONNECTED && event.trunk == out);
}

static void make_pair(int ends[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
}

/* A connection of the two trunks. Returns a descriptor of its own on one end, with which it can be broken. */
static int connect_both(void)
{
    int ends[2];

    make_pair(ends);
    int own = dup(ends[0]);

    CHECK(own >= 0 && sluice_trunk_connect(engine, out, ends[0]) == 0 && sluice_trunk_accept(engine, in, ends[1]) == 0);
    return own;
}

/* This program's end of a connection by which datagrams come. */
static int speak_to(void)
{
    int ends[2];

    make_pair(ends);
    CHECK(sluice_trunk_accept(engine, in, ends[0]) == 0);
    return ends[1];
}

/* A connection on which out sends, to this program. */
static int listen_to(void)
{
    int ends[2];

    make_pair(ends);
    CHECK(sluice_trunk_connect(engine, out, ends[0]) == 0);
    return ends[1];
}

static uint8_t byte_of(uint64_t number, uint32_t offset)
{
    return (uint8_t)(number * 131 + offset * 7 + (offset >> 8));
}

/* The next datagram of a client, out of its own place in memory. */
static void post_by(struct client *client, uint32_t ah, uint64_t number, uint32_t length)
{
    uint32_t offset = (uint32_t)(number % ENTRIES) * SLUICE_MTU;
    struct sluice_wqe *wqe = slot(client);

    for (uint32_t i = 0; i < length; i++)
        client->memory[offset + i] = byte_of(number, i);
    *wqe = (struct sluice_wqe){.opcode = IBV_WR_SEND_WITH_IMM, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1, .wr_id = number,
                               .ah = ah, .remote_qpn = to.qp_num, .remote_qkey = QKEY, .imm_data = (uint32_t)number};
    *(struct sluice_sge *)(wqe + 1) =
        (struct sluice_sge){.addr = (uintptr_t)client->memory + offset, .length = length, .lkey = client->key};
    client->posted++;
    publish(client);
}

static void post(uint64_t number, uint32_t length)
{
    post_by(&from, handle, number, length);
}

static void expect_sent(uint64_t number)
{
    struct sluice_cqe cqe = wait_cqe(&from);

    CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == number);
}

static void check_bytes(const uint8_t *bytes, uint64_t number, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        CHECK(bytes[i] == byte_of(number, i));
}

static void every_size_arrives(void)
{
    static const uint32_t sizes[] = {0, 1, 7, 8, 9, 63, 1000, 4095, 4096};

    begin();
    close(connect_both());
    for (uint64_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        memset(to.memory, 0xee, 2 * SLOT);
        post_receive(&to, i, 0, SLOT);
        post(i, sizes[i]);
        expect_sent(i);
        struct sluice_cqe cqe = wait_cqe(&to);

        CHECK(cqe.status == IBV_WC_SUCCESS && cqe.byte_len == SLUICE_GRH + sizes[i] && cqe.src_qp == from.qp_num);
        CHECK(cqe.wc_flags == (IBV_WC_GRH | IBV_WC_WITH_IMM) && cqe.imm_data == (uint32_t)i);
        /* An IPv4 header in the last 20 bytes of the GRH: from whom, and to whom. */
        CHECK(memcmp(to.memory + 32, gids[0] + 12, 4) == 0 && memcmp(to.memory + 36, gids[1] + 12, 4) == 0);
        check_bytes(to.memory + SLUICE_GRH, i, sizes[i]);
        CHECK(to.memory[SLUICE_GRH + sizes[i]] == 0xee);
    }
    finish();
}

static void grant(int socket, uint32_t stream, uint32_t bytes)
{
    struct grant_frame frame = {stream, bytes};

    CHECK(send(socket, &frame, sizeof(frame), MSG_NOSIGNAL) == sizeof(frame));
}

/* What the receiver's kernel doesn't take waits at the sender, and comes in order. */
static void a_full_connection_makes_senders_wait(void)
{
    uint8_t datagram[LARGEST];
    const struct datagram_frame *frame = (const struct datagram_frame *)datagram;
    enum { COUNT = 4 * ENTRIES };
    uint64_t posted = 0, sent = 0;

    begin();
    int socket = listen_to();

    for (uint64_t number = 0; number < COUNT; number++) {
        /* As many as there is room for in the send queue, whose first ones wait by now. */
        while (posted < COUNT && posted < number + HALF)
            post(posted++, SLUICE_MTU);
        CHECK(recv(socket, datagram, sizeof(datagram), MSG_WAITALL) == sizeof(datagram));
        CHECK(frame->length == SLUICE_MTU && frame->dst_qp == to.qp_num && frame->imm == (uint32_t)number);
        CHECK(memcmp(frame->dgid, gids[1], sizeof(frame->dgid)) == 0);
        check_bytes(datagram + sizeof(*frame), number, SLUICE_MTU);
        grant(socket, frame->stream, LARGEST);
        while (sent < posted && sent < number)
            expect_sent(sent++);
    }
    while (sent < COUNT)
        expect_sent(sent++);
    close(socket);
    finish();
}

/* What was on its way is lost, whole; what waits goes by the next connection. */
static void a_broken_connection_loses_whole_datagrams(void)
{
    uint64_t next = 0, sent = 0;

    begin();
    for (uint32_t round = 0; round < 20; round++) {
        int socket = round % 2 ? listen_to() : connect_both();

        for (uint32_t i = 0; i < HALF; i++) {
            /* For each one: what waited may come as late as the last one does. */
            post_receive(&to, next, (uint32_t)(next % ENTRIES) * SLOT, SLOT);
            post(next, 1 + (uint32_t)(next * 977 % SLUICE_MTU));
            next++;
        }
        if (round % 3)
            expect_sent(sent++);
        shutdown(socket, SHUT_RDWR);
        close(socket);
        close(connect_both());
        while (sent < next)
            expect_sent(sent++);
        /* One that surely comes tells that all others have come, or never will. */
        post_receive(&to, next, (uint32_t)(next % ENTRIES) * SLOT, SLOT);
        post(next++, 1);
        expect_sent(sent++);
        struct sluice_cqe cqe;

        do {
            cqe = wait_cqe(&to);
            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.byte_len > SLUICE_GRH);
            check_bytes(to.memory + (cqe.wr_id % ENTRIES) * SLOT + SLUICE_GRH, cqe.imm_data, cqe.byte_len - SLUICE_GRH);
        } while (cqe.imm_data != next - 1);
        /* Receives that were left over would take the next round's. */
        close_client(&to);
        tenant = tenants[1];
        open_client_of(&to, IBV_QPT_UD);
        to_rts(&to);
    }
    finish();
}

static void nobody_connects(void)
{
    struct sluice_engine_event event = {0};

    begin();
    shutdown(listen_to(), SHUT_RDWR);
    while (!sluice_engine_next_event(engine, &event))
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_TRUNK_DISCONNECTED && event.trunk == out);
    post(0, 100);
    post(1, 100);
    /* Lost, as datagrams are, once it has been waited for long enough. */
    expect_sent(0);
    expect_sent(1);
    CHECK(engine->tenants[tenants[0]]->counters->drops == 2);
    finish();
}

/* Between two rounds of the worker, which counts them. */
static uint64_t drops_of(uint32_t number)
{
    worker_enter(engine);
    uint64_t drops = engine->tenants[number]->counters->drops;

    worker_leave(engine);
    return drops;
}

/* Waits until the QP waits for credit. */
static void expect_held(const struct client *client)
{
    for (bool held = false; !held; sched_yield()) {
        worker_enter(engine);
        const struct session *session = engine->sessions[client->session];
        const struct qp *qp = session->qps[client->qp];

        held = qp->wait == QP_WAIT_TRANSPORT && !list_empty(&engine->trunks[out]->streams.held);
        worker_leave(engine);
    }
}

/* Its sender is held back: nothing is lost, and it goes on when it may. */
static void what_is_beyond_a_ceiling_waits(void)
{
    /* What is owed beyond the burst takes hours. */
    struct sluice_shape none = {0}, narrow = {.share = {.max_bps = {1000, 1000}, .burst = {8192, 8192}}};
    const struct sluice_tenant_counters *counters = engine->tenants[tenants[1]]->counters;
    uint64_t drops = counters->drops, received = counters->rx_bytes;

    begin();
    CHECK(sluice_tenant_shape(engine, tenants[1], &narrow) == 0);
    close(connect_both());
    for (uint32_t i = 0; i < ENTRIES; i++)
        post_receive(&to, i, i * SLOT, SLOT);
    for (uint64_t i = 0; i < ENTRIES; i++)
        post(i, SLUICE_MTU);
    uint64_t waited = engine->tenants[tenants[0]]->counters->throttled_ns[SLUICE_LIMIT_PEER];

    expect_held(&from);
    worker_enter(engine);
    CHECK(counters->rx_bytes - received < ENTRIES * SLUICE_MTU);
    worker_leave(engine);
    CHECK(sluice_tenant_shape(engine, tenants[1], &none) == 0);
    for (uint64_t i = 0; i < ENTRIES; i++) {
        expect_sent(i);
        CHECK(wait_cqe(&to).imm_data == i);
    }
    CHECK(counters->drops == drops);
    worker_enter(engine);
    CHECK(engine->tenants[tenants[0]]->counters->throttled_ns[SLUICE_LIMIT_PEER] > waited);
    worker_leave(engine);
    finish();
}

/* The next datagram that comes to this program; returns its stream. */
static uint32_t expect_datagram(int socket, const struct client *client, uint64_t number)
{
    uint8_t datagram[LARGEST];
    const struct datagram_frame *frame = (const struct datagram_frame *)datagram;

    CHECK(recv(socket, datagram, sizeof(datagram), MSG_WAITALL) == sizeof(datagram));
    CHECK(frame->src_qp == client->qp_num && frame->imm == (uint32_t)number);
    return frame->stream;
}

/* Who has no credit waits, whatever he does about his address handle, and nobody else does. */
static void a_stream_is_held_back_alone(void)
{
    enum { FIT = STREAM_WINDOW / LARGEST };
    struct sluice_qp_attr now, attr = {.qp_state = IBV_QPS_RTS};
    struct client other;
    uint64_t number = 0;
    uint32_t stream = 0;

    begin();
    int socket = listen_to();

    for (; number <= FIT; number++)
        post(number, SLUICE_MTU);
    for (uint64_t i = 0; i < FIT; i++) {
        stream = expect_datagram(socket, &from, i);
        expect_sent(i);
    }
    expect_held(&from);
    /* Without its address handle the datagram fails, and its QP with it; a handle made anew has no other credit. */
    CHECK(sluice_ah_destroy(engine, from.session, handle) == 0);
    CHECK(wait_cqe(&from).status == IBV_WC_LOC_QP_OP_ERR);
    handle = new_handle(&from, gids[1]);
    CHECK(sluice_ah_lead(engine, from.session, handle, -1, (int32_t)out) == 0);
    CHECK(sluice_qp_modify(engine, from.session, from.qp, &attr, IBV_QP_STATE, SLUICE_TRANSPORT_LOCAL, -1, &now) == 0);
    post(number, SLUICE_MTU);
    expect_held(&from);
    /* Another tenant's goes. */
    tenant = tenants[1];
    open_client_of(&other, IBV_QPT_UD);
    to_rts(&other);
    uint32_t leads = new_handle(&other, gids[1]);

    CHECK(sluice_ah_lead(engine, other.session, leads, -1, (int32_t)out) == 0);
    post_by(&other, leads, 7, SLUICE_MTU);
    CHECK(expect_datagram(socket, &other, 7) != stream && wait_cqe(&other).wr_id == 7);
    expect_held(&from);
    /* Numbers that no router says are passed over; more than was sent is no more credit. */
    grant(socket, UINT32_MAX, 1);
    grant(socket, stream + 1, 1);
    grant(socket, stream, UINT32_MAX);
    CHECK(expect_datagram(socket, &from, number) == stream);
    expect_sent(number++);
    close_client(&other);
    close(socket);
    finish();
}

static void a_tenant_has_its_share_of_streams(void)
{
    uint8_t gid[16] = {[10] = 0xff, [11] = 0xff, 10, 1};
    uint32_t handles[STREAM_SLOTS];

    begin();
    close(listen_to());
    for (uint32_t i = 2; i <= STREAM_SLOTS; i++) {
        gid[15] = (uint8_t)i;
        handles[i - 1] = new_handle(&from, gid);
        CHECK(sluice_ah_lead(engine, from.session, handles[i - 1], -1, (int32_t)out) == (i < STREAM_SLOTS ? 0 : -ENOMEM));
    }
    /* One that is left makes room. */
    CHECK(sluice_ah_sever(engine, from.session, handles[1]) == 0);
    CHECK(sluice_ah_lead(engine, from.session, handles[STREAM_SLOTS - 1], -1, (int32_t)out) == 0);
    finish();
}

/* A datagram of 4096 bytes as a router sends it. */
static void say(int socket, uint32_t stream, uint32_t dst_qp)
{
    uint8_t datagram[LARGEST] = {0};
    struct datagram_frame *frame = (struct datagram_frame *)datagram;

    *frame = (struct datagram_frame){.length = SLUICE_MTU, .src_qp = 1, .dst_qp = dst_qp, .qkey = QKEY, .stream = stream};
    memcpy(frame->dgid, gids[1], sizeof(frame->dgid));
    CHECK(send(socket, datagram, sizeof(datagram), MSG_NOSIGNAL) == sizeof(datagram));
}

/* As much is granted again. */
static void expect_grants(int socket, uint32_t stream, uint32_t bytes)
{
    struct grant_frame frame;

    for (uint32_t has = 0; has < bytes; has += frame.bytes) {
        CHECK(recv(socket, &frame, sizeof(frame), MSG_WAITALL) == sizeof(frame));
        CHECK(frame.bytes == 0 || (frame.stream == stream && frame.bytes <= bytes - has));
    }
}

/* Whoever takes what comes, or nobody; also where its tenant goes meanwhile. */
static void what_came_is_granted_again(void)
{
    enum { COUNT = 8, NOBODY = 0xabcdef };
    struct sluice_shape none = {0}, narrow = {.share = {.max_bps = {1000, 1000}, .burst = {8192, 8192}}};

    begin();
    int socket = speak_to();

    for (uint32_t i = 0; i < COUNT; i++)
        say(socket, stream_id(3, 5), NOBODY);
    expect_grants(socket, stream_id(3, 5), COUNT * LARGEST);
    for (uint32_t i = 0; i < COUNT; i++)
        say(socket, stream_id(3, 5), to.qp_num);
    expect_grants(socket, stream_id(3, 5), COUNT * LARGEST);
    close_client(&to);
    CHECK(sluice_tenant_remove(engine, tenants[1]) == 0);
    tenants[1] = (uint32_t)sluice_tenant_add(engine, 0, -1, &narrow);
    CHECK(sluice_tenant_address(engine, tenants[1], gids[1]) == 0);
    tenant = tenants[1];
    open_client_of(&to, IBV_QPT_UD);
    to_rts(&to);
    for (uint32_t i = 0; i < 2 * COUNT; i++)
        say(socket, stream_id(SLUICE_MAX_TENANTS - 1, STREAM_SLOTS - 1), to.qp_num);
    for (bool owes = false; !owes; sched_yield()) {
        worker_enter(engine);
        owes = !list_empty(&engine->tenants[tenants[1]]->chores[FLOW_INGRESS]);
        worker_leave(engine);
    }
    close_client(&to);
    CHECK(sluice_tenant_remove(engine, tenants[1]) == 0);
    expect_grants(socket, stream_id(SLUICE_MAX_TENANTS - 1, STREAM_SLOTS - 1), 2 * COUNT * LARGEST);
    tenants[1] = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    CHECK(sluice_tenant_address(engine, tenants[1], gids[1]) == 0);
    tenant = tenants[1];
    open_client_of(&to, IBV_QPT_UD);
    close(socket);
    finish();
}

/* Who sends what nobody has granted is no router: its connection ends, and no count of what it is owed runs over. */
static void credit_is_not_for_the_taking(void)
{
    enum { FIT = STREAM_WINDOW / LARGEST };
    struct sluice_shape none = {0}, narrow = {.share = {.max_bps = {1000, 1000}, .burst = {8192, 8192}}};
    uint8_t datagram[LARGEST] = {0};
    struct datagram_frame *frame = (struct datagram_frame *)datagram;
    uint32_t said = 0;

    begin();
    CHECK(sluice_tenant_shape(engine, tenants[1], &narrow) == 0);
    int socket = speak_to();

    *frame = (struct datagram_frame){.length = SLUICE_MTU, .src_qp = 1, .dst_qp = to.qp_num, .qkey = QKEY, .stream = stream_id(3, 5)};
    memcpy(frame->dgid, gids[1], sizeof(frame->dgid));
    while (said < 16 * FIT && send(socket, datagram, sizeof(datagram), MSG_NOSIGNAL) == sizeof(datagram))
        said++;
    CHECK(said >= FIT && said < 16 * FIT);
    CHECK(sluice_tenant_shape(engine, tenants[1], &none) == 0);
    close(socket);
    finish();
}

/* Its router is there, and grants nothing nor says that it lives. */
static void a_silent_node_is_given_up(void)
{
    enum { COUNT = STREAM_WINDOW / LARGEST + 1 };
    struct sluice_engine_event event = {0};

    begin();
    int socket = listen_to();
    uint64_t drops = drops_of(tenants[0]);

    for (uint64_t i = 0; i < COUNT; i++)
        post(i, SLUICE_MTU);
    for (uint64_t i = 0; i < COUNT; i++)
        expect_sent(i);
    CHECK(drops_of(tenants[0]) == drops + 1);
    CHECK(sluice_engine_next_event(engine, &event) && event.kind == SLUICE_EVENT_TRUNK_DISCONNECTED && event.trunk == out);
    close(socket);
    finish();
}

/* Frames that no router sends, whole and in pieces: the connection ends at the most, and memory is only where receives are. */
static void nonsense_harms_nobody(void)
{
    uint64_t random = 88172645463325252ull;

    begin();
    memset(to.memory, 0xee, MEMORY);
    for (uint32_t round = 0; round < 1000; round++) {
        struct {
            struct datagram_frame frame;
            uint8_t data[256];
        } said[3];
        int ends[2];

        for (uint32_t i = 0; i < sizeof(said); i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            ((uint8_t *)said)[i] = (uint8_t)(random >> 32);
        }
        for (uint32_t i = 0; i < 3; i++) {
            said[i].frame.length = round % 3 ? sizeof(said[i].data) : said[i].frame.length % (2 * SLUICE_MTU);
            if (random >> i & 1)
                said[i].frame.dst_qp = to.qp_num;
            if (random >> i & 2)
                memcpy(said[i].frame.dgid, gids[1], sizeof(gids[1]));
            if (random >> i & 4)
                said[i].frame.qkey = QKEY;
            if (random >> i & 8)
                said[i].frame.stream %= SLUICE_MAX_TENANTS * STREAM_SLOTS;
        }
        if (round % 16 == 0 && to.receives < ENTRIES)
            post_receive(&to, round, 0, SLUICE_GRH + 64);
        make_pair(ends);
        CHECK(sluice_trunk_accept(engine, in, ends[0]) == 0);
        for (uint32_t done = 0, step = round % 200 + 1; done < sizeof(said); done += step)
            if (send(ends[1], (uint8_t *)said + done, sizeof(said) - done < step ? sizeof(said) - done : step, MSG_NOSIGNAL) < 0)
                break;
        close(ends[1]);
    }
    /* It goes on. */
    close_client(&to);
    tenant = tenants[1];
    open_client_of(&to, IBV_QPT_UD);
    to_rts(&to);
    close(connect_both());
    post_receive(&to, 1, 0, SLOT);
    post(7, 8);
    expect_sent(7);
    CHECK(wait_cqe(&to).imm_data == 7);
    check_bytes(to.memory + SLUICE_GRH, 7, 8);
    finish();
}

static void send_frame(int socket, const uint8_t dgid[16], uint32_t dst_qp, const uint8_t source[4], uint32_t imm)
{
    struct datagram_frame frame = {.src_qp = 1, .dst_qp = dst_qp, .qkey = QKEY, .imm = imm, .flags = DATAGRAM_IMMEDIATE};

    memcpy(frame.dgid, dgid, sizeof(frame.dgid));
    memcpy(frame.grh + 32, source, 4);
    CHECK(send(socket, &frame, sizeof(frame), MSG_NOSIGNAL) == sizeof(frame));
}

static void expect_arrived(uint32_t imm)
{
    struct sluice_cqe cqe = wait_cqe(&to);

    CHECK(cqe.status == IBV_WC_SUCCESS && cqe.imm_data == imm);
}

/* The trunk whose node's router named the sender. */
static int32_t asked_by;

static void expect_question(const uint8_t source[4])
{
    struct sluice_engine_event event;

    while (!sluice_engine_next_event(engine, &event))
        sched_yield();
    CHECK(event.kind == SLUICE_EVENT_MEMBER && event.tenant == tenants[1] && event.trunk < SLUICE_MAX_NODES);
    asked_by = (int32_t)event.trunk;
    CHECK(event.gid[10] == 0xff && event.gid[11] == 0xff && memcmp(event.gid + 12, source, 4) == 0);
    CHECK(!sluice_engine_next_event(engine, &event));
}

static void admit(const uint8_t source[4], bool admitted)
{
    uint8_t gid[16] = {[10] = 0xff, [11] = 0xff};

    memcpy(gid + 12, source, 4);
    CHECK(sluice_gate_admit(engine, gid, asked_by, tenants[1], admitted) == 0);
}

/* The last of all: a gate stays. Whatever comes behind a datagram that waits for it waits too, and in order. */
static void a_group_is_asked_for(void)
{
    static const uint8_t group[16] = {[10] = 0xff, [11] = 0xff, 239, 0, 0, 7}, one[4] = {10, 9, 0, 1}, other[4] = {10, 9, 0, 2};
    enum { GROUP_QPN = 0xffffff };
    begin();
    CHECK(sluice_gate_close(engine) == 0 && sluice_qp_attach(engine, to.session, to.qp, group) == 0);
    int socket = speak_to();

    for (uint32_t i = 0; i < 8; i++)
        post_receive(&to, i, i * SLOT, SLOT);
    send_frame(socket, group, GROUP_QPN, one, 1);
    send_frame(socket, group, GROUP_QPN, other, 2);
    send_frame(socket, gids[1], to.qp_num, other, 3);
    expect_question(one);
    admit(one, true);
    expect_arrived(1);
    expect_question(other);
    /* What is known of this node's own sender with that GID is nothing about who is named by another node's router. */
    int32_t trunk = asked_by;

    asked_by = -1;
    admit(other, true);
    asked_by = trunk;
    expect_question(other);
    CHECK(asked_by == trunk);
    admit(other, false);
    expect_arrived(3);
    /* More than there is room for waits at the sender; one at the end says that all that may come has come. */
    sluice_gate_forget(engine, NULL);
    send_frame(socket, group, GROUP_QPN, other, 4);
    expect_question(other);
    admit(one, true);
    expect_question(other);
    for (uint32_t i = 0; i < 2 * TRUNK_BUFFER / sizeof(struct datagram_frame); i++) {
        struct datagram_frame frame = {.src_qp = 1, .dst_qp = GROUP_QPN, .qkey = QKEY};

        memcpy(frame.dgid, group, sizeof(group));
        memcpy(frame.grh + 32, other, 4);
        if (send(socket, &frame, sizeof(frame), MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof(frame))
            break;
    }
    admit(other, false);
    send_frame(socket, group, GROUP_QPN, one, 5);
    expect_arrived(5);
    /* A connection that ends while something waits. */
    sluice_gate_forget(engine, NULL);
    send_frame(socket, group, GROUP_QPN, other, 6);
    close(socket);
    expect_question(other);
    admit(other, true);
    expect_arrived(6);
    CHECK(sluice_qp_detach(engine, to.session, to.qp, group) == 0);
    finish();
}

int main(void)
{
    struct sluice_shape none = {0};

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    for (int i = 0; i < 2; i++) {
        tenants[i] = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
        CHECK(sluice_tenant_address(engine, tenants[i], gids[i]) == 0);
    }
    out = (uint32_t)sluice_trunk_open(engine);
    in = (uint32_t)sluice_trunk_open(engine);
    RUN(every_size_arrives);
    RUN(a_full_connection_makes_senders_wait);
    RUN(a_broken_connection_loses_whole_datagrams);
    RUN(what_is_beyond_a_ceiling_waits);
    RUN(a_stream_is_held_back_alone);
    RUN(a_tenant_has_its_share_of_streams);
    RUN(what_came_is_granted_again);
    RUN(credit_is_not_for_the_taking);
    RUN(nonsense_harms_nobody);
    RUN(nobody_connects);
    RUN(a_silent_node_is_given_up);
    RUN(a_group_is_asked_for);
    for (int i = 0; i < 2; i++)
        CHECK(sluice_tenant_remove(engine, tenants[i]) == 0);
    sluice_engine_close(engine);
    return 0;
}
