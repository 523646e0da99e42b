/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams to an address or a group, which may be there later than whoever sends:
 *
 *     datagrams receive [GROUP]    prints its QP's number, and "arrived" when the first has come
 *     datagrams send ADDRESS       makes an address handle, prints "ready", reads the number of the QP to send to from
 *                                  its input, and sends until that ends
 *
 * ADDRESS, GROUP: of IPv4 or IPv6.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "pair.h"

enum { QKEY = 0x1234567, GRH = 40, SIZE = 64, INTERVAL_US = 5000, DEPTH = 16 };

static struct end end;
static uint8_t *memory;
static struct ibv_mr *mr;

static void open_end(void)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY};
    struct ibv_qp_init_attr init = {
        .qp_type = IBV_QPT_UD,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 1, .max_recv_sge = 1}};

    end.context = open_device();
    end.pd = ibv_alloc_pd(end.context);
    end.cq = ibv_create_cq(end.context, DEPTH, NULL, NULL, 0);
    init.send_cq = init.recv_cq = end.cq;
    end.qp = ibv_create_qp(end.pd, &init);
    memory = calloc(1, GRH + SIZE);
    mr = ibv_reg_mr(end.pd, memory, GRH + SIZE, IBV_ACCESS_LOCAL_WRITE);
    CHECK(end.qp && mr, "no QP");
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY), "INIT");
    attr.qp_state = IBV_QPS_RTR;
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE), "RTR");
    attr.qp_state = IBV_QPS_RTS;
    CHECK(!ibv_modify_qp(end.qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN), "RTS");
}

static union ibv_gid gid_of(const char *text)
{
    union ibv_gid gid = {.raw = {[10] = 0xff, [11] = 0xff}};

    CHECK(inet_pton(AF_INET, text, gid.raw + 12) == 1 || inet_pton(AF_INET6, text, gid.raw) == 1, "address %s", text);
    return gid;
}

static void receive(const char *group)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = GRH + SIZE, .lkey = mr->lkey};
    struct ibv_recv_wr *bad, wr = {.sg_list = &sge, .num_sge = 1};
    struct ibv_wc wc;

    CHECK(!ibv_post_recv(end.qp, &wr, &bad), "ibv_post_recv");
    if (group) {
        union ibv_gid gid = gid_of(group);

        CHECK(!ibv_attach_mcast(end.qp, &gid, 0), "ibv_attach_mcast");
    }
    printf("%u\n", end.qp->qp_num);
    fflush(stdout);
    while (ibv_poll_cq(end.cq, 1, &wc) == 0)
        usleep(INTERVAL_US);
    CHECK(wc.status == IBV_WC_SUCCESS && wc.byte_len == GRH + SIZE && (wc.wc_flags & IBV_WC_GRH), "receive");
    for (int i = 0; i < SIZE; i++)
        CHECK(memory[GRH + i] == (uint8_t)(i * 7 + 1), "byte %d", i);
    printf("arrived\n");
}

static void send_until_told(const char *address)
{
    struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid_of(address), .hop_limit = 1}};
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = SIZE, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND,
                                   .send_flags = IBV_SEND_SIGNALED, .wr.ud = {.remote_qkey = QKEY}};
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

    wr.wr.ud.ah = ibv_create_ah(end.pd, &attr);
    CHECK(wr.wr.ud.ah, "ibv_create_ah");
    for (int i = 0; i < SIZE; i++)
        memory[i] = (uint8_t)(i * 7 + 1);
    printf("ready\n");
    fflush(stdout);
    CHECK(scanf("%u", &wr.wr.ud.remote_qpn) == 1, "a QP's number");
    while (getchar() != '\n')
        ;
    while (poll(&input, 1, 0) == 0) {
        CHECK(!ibv_post_send(end.qp, &wr, &bad), "ibv_post_send");
        CHECK(wait_completion(end.cq).status == IBV_WC_SUCCESS, "send");
        usleep(INTERVAL_US);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc >= 2, "usage: datagrams receive [GROUP] | send ADDRESS");
    open_end();
    if (strcmp(argv[1], "receive") == 0)
        receive(argc > 2 ? argv[2] : NULL);
    else
        send_until_told(argv[2]);
    return 0;
}
