/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One tenant after another's memory: trespass PORT is the victim, trespass PORT client the intruder, who knows all that
 * isn't his to know: the number of a queue pair, its packet numbers (0), an address, a key. He says how each try ended.
 */
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 4096, RECEIVES = 8, SECRET = 0x5a, TIMEOUT = 10 };

static uint8_t memory[SIZE] __attribute__((aligned(4096)));
static struct ibv_srq *srq;
static struct ibv_mr *mr;

/* Receives that are shared: where a NIC joins neighbours, it is such. */
static struct ibv_qp *make_qp(struct end *end)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1,
                               .qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ};
    struct ibv_qp_init_attr init = {.send_cq = end->cq, .recv_cq = end->cq, .srq = srq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 4, .max_send_sge = 1}};

    end->qp = ibv_create_qp(end->pd, &init);
    CHECK(end->qp, "ibv_create_qp");
    CHECK(!ibv_modify_qp(end->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS), "INIT");
    return end->qp;
}

static void set_up(struct pair *pair, int byte)
{
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = RECEIVES, .max_sge = 1}};
    struct end *own = &pair->own;

    own->context = open_device();
    own->pd = ibv_alloc_pd(own->context);
    own->cq = ibv_create_cq(own->context, 64, NULL, NULL, 0);
    CHECK(own->pd && own->cq && !ibv_query_gid(own->context, 1, 0, &own->gid), "PD, CQ or GID");
    memset(memory, byte, SIZE);
    mr = ibv_reg_mr(own->pd, memory, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
    srq = ibv_create_srq(own->pd, &attr);
    CHECK(mr && srq, "MR or SRQ");
    for (uint64_t i = 0; i < RECEIVES; i++) {
        struct ibv_sge sge = {(uintptr_t)memory, SIZE, mr->lkey};
        struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;

        CHECK(!ibv_post_srq_recv(srq, &wr, &bad), "ibv_post_srq_recv");
    }
}

/* Two QPs of this end's, connected to each other. */
static void make_two(struct end *end, struct ibv_qp **one, struct ibv_qp **other)
{
    *one = make_qp(end);
    *other = make_qp(end);
    end_connect(end, (*one)->qp_num, end->gid, 7, TIMEOUT);
    end->qp = *one;
    end_connect(end, (*other)->qp_num, end->gid, 7, TIMEOUT);
}

/* How the request ends. */
static enum ibv_wc_status try(struct end *end, struct ibv_qp *qp, enum ibv_wr_opcode opcode, const struct address *to, uint64_t addr,
                              uint32_t lkey)
{
    struct ibv_sge sge = {addr, 64, lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {.remote_addr = to->addr, .rkey = to->rkey}};

    CHECK(!ibv_post_send(qp, &wr, &bad), "ibv_post_send");
    return wait_completion(end->cq).status;
}

static void be_the_victim(struct pair *pair)
{
    struct ibv_qp *one, *other;
    struct ibv_wc wc;

    set_up(pair, SECRET);
    make_two(&pair->own, &one, &other);
    pair_exchange(pair, memory, mr->rkey);
    pair_meet(pair);
    for (uint32_t i = 0; i < SIZE; i++)
        CHECK(memory[i] == SECRET, "byte %u was overwritten", i);
    CHECK(ibv_poll_cq(pair->own.cq, 1, &wc) == 0, "something came: status %d, opcode %d", wc.status, wc.opcode);
    /* And nothing of its own was disturbed. */
    struct address to = {0};

    CHECK(try(&pair->own, other, IBV_WR_SEND, &to, (uintptr_t)memory, mr->lkey) == IBV_WC_SUCCESS, "its own SEND");
    CHECK(wait_completion(pair->own.cq).status == IBV_WC_SUCCESS, "and the receive");
    pair_meet(pair);
}

static void intrude(struct pair *pair)
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_SEND};
    struct ibv_qp *one, *other;
    union ibv_gid gid;
    enum ibv_wc_status status;

    set_up(pair, 0);
    make_two(&pair->own, &one, &other);
    pair_exchange(pair, memory, mr->rkey);
    gid = pair->peer.gid;
    for (uint32_t i = 0; i < sizeof(opcodes) / sizeof(*opcodes); i++) {
        make_qp(&pair->own);
        end_connect(&pair->own, pair->peer.qp_num, gid, 7, TIMEOUT);
        status = try(&pair->own, pair->own.qp, opcodes[i], &pair->peer, (uintptr_t)memory, mr->lkey);
        CHECK(status == IBV_WC_RETRY_EXC_ERR, "another's QP: opcode %d: status %d", opcodes[i], status);
    }
    /* The host's own address is that of its NICs, as a NIC has it, and of nobody here. */
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &gid);
    for (uint32_t i = 0; i < sizeof(opcodes) / sizeof(*opcodes); i++) {
        make_qp(&pair->own);
        end_connect(&pair->own, pair->peer.qp_num, gid, 7, TIMEOUT);
        status = try(&pair->own, pair->own.qp, opcodes[i], &pair->peer, (uintptr_t)memory, mr->lkey);
        CHECK(status == IBV_WC_RETRY_EXC_ERR, "the host's address: opcode %d: status %d", opcodes[i], status);
    }
    /* By a QP of one's own the key opens nothing, of this end or of the other. */
    status = try(&pair->own, one, IBV_WR_RDMA_WRITE, &pair->peer, (uintptr_t)memory, mr->lkey);
    CHECK(status == IBV_WC_REM_ACCESS_ERR, "another's rkey: status %d", status);
    make_two(&pair->own, &one, &other);
    struct address own = {.addr = (uintptr_t)memory, .rkey = mr->rkey};

    status = try(&pair->own, one, IBV_WR_RDMA_WRITE, &own, pair->peer.addr, pair->peer.rkey);
    /* (rxe says the latter of a key that its PD hasn't.) */
    CHECK(status == IBV_WC_LOC_PROT_ERR || status == IBV_WC_LOC_QP_OP_ERR, "another's key as lkey: status %d", status);
    for (uint32_t i = 0; i < SIZE; i++)
        CHECK(memory[i] == 0, "byte %u was read", i);
    pair_meet(pair);
    pair_meet(pair);
}

static void meet(struct pair *pair, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (!pair->server) {
        CHECK(!connect(fd, (struct sockaddr *)&address, sizeof(address)), "nobody listens on port %d", port);
        pair->socket = fd;
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    CHECK(!bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 1), "port %d", port);
    pair->socket = accept(fd, NULL, NULL);
    CHECK(pair->socket >= 0, "accept");
    close(fd);
}

int main(int argc, char **argv)
{
    struct pair pair = {.server = argc < 3};

    CHECK(argc >= 2, "usage: %s PORT [client]", argv[0]);
    meet(&pair, atoi(argv[1]));
    if (pair.server)
        be_the_victim(&pair);
    else
        intrude(&pair);
    printf("ok\n");
    return 0;
}
