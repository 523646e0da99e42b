/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A router of another node that says anything: frames of the tcp transport on a QP's connection, as requests and as
 * answers to what the QP asks for, or datagrams on a trunk. They are right but for what the input says, whole and in
 * pieces, on connections that break.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomic.h"
#include "session.h"
#include "transport/tcp_frame.h"
#include "transport/trunk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left);

static const uint8_t gid[16] = {[10] = 0xff, [11] = 0xff, 10, 0, 0, 1};

struct wire {
    struct fuzz_session session;
    uint32_t trunk;
    bool datagrams;
    int socket; /* this program's end; -1: none */
    uint32_t msn;
};

static void modify(struct wire *wire)
{
    for (uint32_t state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        struct sluice_qp_attr now, attr = {
            .qp_state = state, .dest_qp_num = 7, .qkey = 1, .retry_cnt = 1, .rnr_retry = 7, .path_mtu = 3, .port_num = 1,
            .max_rd_atomic = 4, .max_dest_rd_atomic = 4,
            .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC};

        if (sluice_qp_modify(fuzz_engine, wire->session.number, wire->session.qp, &attr,
                             IBV_QP_STATE | IBV_QP_QKEY | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                 IBV_QP_RNR_RETRY | IBV_QP_ACCESS_FLAGS | IBV_QP_MAX_QP_RD_ATOMIC |
                                 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_PATH_MTU | IBV_QP_PORT,
                             wire->datagrams ? SLUICE_TRANSPORT_LOCAL : SLUICE_TRANSPORT_TCP, -1, &now))
            abort();
    }
}

static void hang_up(struct wire *wire)
{
    if (wire->socket >= 0)
        close(wire->socket);
    wire->socket = -1;
}

static void connect_anew(struct wire *wire)
{
    int ends[2];

    hang_up(wire);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends))
        abort();
    int error = wire->datagrams ? sluice_trunk_accept(fuzz_engine, wire->trunk, ends[0])
                                : sluice_qp_connect(fuzz_engine, wire->session.number, wire->session.qp, ends[0]);

    /* A QP that has ended has no connection any more. */
    if (error)
        close(ends[0]);
    wire->socket = ends[1];
    wire->msn = 0;
}

static void say(struct wire *wire, const void *bytes, size_t size)
{
    if (wire->socket >= 0 && send(wire->socket, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        hang_up(wire);
}

/* What the engine said is nothing to us. */
static void listen_to(struct wire *wire)
{
    uint8_t bytes[4096];

    while (wire->socket >= 0 && recv(wire->socket, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
        ;
}

static void mutate(void *bytes, size_t size, const uint8_t **data, size_t *left)
{
    for (int changes = fuzz_byte(data, left) % 4; changes > 0; changes--) {
        uint8_t at = fuzz_byte(data, left);

        ((uint8_t *)bytes)[at % size] = fuzz_byte(data, left);
    }
}

static void say_frame(struct wire *wire, uint8_t kind, const uint8_t **data, size_t *left)
{
    static const uint32_t lengths[] = {0, 8, 16, 64, 200, 2048, 4096, 40000};
    static uint8_t payload[40000];
    uint32_t length = lengths[fuzz_byte(data, left) % 8];
    bool has = kind != TCP_READ && kind != TCP_ACK && kind != TCP_RNR && kind != TCP_NAK && kind != TCP_HELLO;
    struct tcp_frame frame = {.kind = kind,
                              .msn = wire->msn,
                              .length = has ? length : 0,
                              .total = kind == TCP_HELLO ? SLUICE_TCP_VERSION : length,
                              .part = kind == TCP_READ ? length : 0,
                              .imm = kind == TCP_HELLO ? IBV_QPT_RC : fuzz_byte(data, left),
                              .flags = TCP_LAST,
                              .rkey = wire->session.key,
                              .addr = (uintptr_t)wire->session.memory};

    if (kind == TCP_COMPARE_SWAP || kind == TCP_FETCH_ADD) {
        frame.length = 16;
        frame.total = 8;
    }
    if (kind >= TCP_WRITE && kind <= TCP_FETCH_ADD)
        wire->msn += fuzz_byte(data, left) % 4 != 0;
    mutate(&frame, sizeof(frame), data, left);
    uint32_t said = frame.length < sizeof(payload) ? frame.length : (uint32_t)sizeof(payload);

    say(wire, &frame, sizeof(frame));
    if (fuzz_byte(data, left) % 8 == 0) /* less than it promised */
        said /= 2;
    say(wire, payload, said);
}

static void say_datagram(struct wire *wire, const uint8_t **data, size_t *left)
{
    static const uint32_t lengths[] = {0, 1, 8, 63, 1000, 4095, 4096, 5000};
    struct {
        struct datagram_frame frame;
        uint8_t bytes[5008];
    } one = {.frame = {.length = lengths[fuzz_byte(data, left) % 8], .src_qp = 7, .dst_qp = wire->session.qp_num, .qkey = 1}};

    memcpy(one.frame.dgid, gid, sizeof(gid));
    mutate(&one.frame, sizeof(one.frame), data, left);
    uint32_t size = datagram_size(one.frame.length);

    say(wire, &one, size < sizeof(one) ? size : sizeof(one));
}

/* Receives for what comes, and requests whose answers may come. */
static void post(struct wire *wire, const uint8_t **data, size_t *left)
{
    static const uint8_t opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_SEND, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD};
    uint8_t *base = (uint8_t *)wire->session.segment;
    struct sluice_qp_shared *shared = (struct sluice_qp_shared *)(base + wire->session.qp_layout.offset);
    bool receive = wire->datagrams || fuzz_byte(data, left) & 1;
    struct sluice_queue_shared *queue = receive ? &shared->rq : &shared->sq;
    uint32_t stride = receive ? wire->session.qp_layout.rq_stride : wire->session.qp_layout.sq_stride;
    uint64_t ring = receive ? wire->session.qp_layout.rq_offset : wire->session.qp_layout.sq_offset;
    uint32_t index = queue->producer;
    uint8_t *slot = base + ring + (index & (ENTRIES - 1)) * stride;
    struct sluice_sge sge = {.addr = (uintptr_t)wire->session.memory + 8192, .length = 8, .lkey = wire->session.key};

    if (receive) {
        sge.length = fuzz_byte(data, left) % 4 ? 8192 : 8;
        *(struct sluice_recv_wqe *)slot = (struct sluice_recv_wqe){.num_sge = 1};
        memcpy(slot + sizeof(struct sluice_recv_wqe), &sge, sizeof(sge));
    } else {
        uint8_t opcode = opcodes[fuzz_byte(data, left) % sizeof(opcodes)];
        bool atomic = opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;

        if (!atomic)
            sge.length = 1u << fuzz_byte(data, left) % 15;
        *(struct sluice_wqe *)slot = (struct sluice_wqe){.opcode = opcode, .flags = SLUICE_WQE_SIGNALED, .num_sge = 1,
                                                         .remote_addr = 4096, .rkey = 5};
        memcpy(slot + sizeof(struct sluice_wqe) + (atomic ? sizeof(struct sluice_atomic) : 0), &sge, sizeof(sge));
    }
    store_release(&queue->producer, index + 1);
    fuzz_ring(&wire->session, wire->session.qp);
}

static uint32_t only_trunk(void)
{
    static int trunk = -1;

    if (trunk < 0) {
        trunk = sluice_trunk_open(fuzz_engine);
        if (trunk < 0 || sluice_tenant_address(fuzz_engine, fuzz_tenant, gid))
            abort();
    }
    return (uint32_t)trunk;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left)
{
    struct wire wire = {.socket = -1};

    fuzz_begin();
    uint8_t kind = fuzz_byte(&data, &left);

    wire.trunk = only_trunk();
    wire.datagrams = kind & 1;
    fuzz_open(&wire.session, wire.datagrams ? IBV_QPT_UD : IBV_QPT_RC, kind & 2);
    modify(&wire);
    connect_anew(&wire);
    if (!wire.datagrams && kind & 4)
        say_frame(&wire, TCP_HELLO, &data, &left);
    while (left > 0) {
        uint8_t what = fuzz_byte(&data, &left), raw[64];

        switch (what % 16) {
        case 0:
            connect_anew(&wire);
            break;
        case 1:
            fuzz_settle();
            listen_to(&wire);
            break;
        case 2:
            say(&wire, raw, fuzz_take(&data, &left, raw, 1 + fuzz_byte(&data, &left) % sizeof(raw)));
            break;
        case 3:
        case 4:
            post(&wire, &data, &left);
            break;
        case 5:
            if (!wire.datagrams)
                say_frame(&wire, TCP_HELLO, &data, &left);
            break;
        default:
            if (wire.datagrams)
                say_datagram(&wire, &data, &left);
            else
                say_frame(&wire, (uint8_t)(TCP_WRITE + fuzz_byte(&data, &left) % (TCP_KINDS - TCP_WRITE)), &data, &left);
        }
    }
    fuzz_settle();
    listen_to(&wire);
    fuzz_settle();
    hang_up(&wire);
    fuzz_settle();
    fuzz_check();
    fuzz_close(&wire.session);
    return 0;
}
