/* SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH = 256, PATIENCE = 60 };

struct ibv_context *open_device(void)
{
    int count;
    struct ibv_device **list = ibv_get_device_list(&count);

    CHECK(list && count == 1, "%d devices", count);
    struct ibv_context *context = ibv_open_device(list[0]);

    CHECK(context, "ibv_open_device");
    ibv_free_device_list(list);
    return context;
}

void end_open(struct end *end, struct ibv_context *context, uint64_t send_ops_flags)
{
    end->context = context;
    end->pd = ibv_alloc_pd(context);
    end->cq = ibv_create_cq(context, 2 * DEPTH, NULL, NULL, 0);
    CHECK(end->pd && end->cq, "PD or CQ");
    CHECK(!ibv_query_gid(context, 1, 0, &end->gid), "ibv_query_gid");
    qp_open(end, send_ops_flags);
}

void qp_open(struct end *end, uint64_t send_ops_flags)
{
    struct ibv_qp_attr init = {
        .qp_state = IBV_QPS_INIT,
        .port_num = 1,
        .qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                           IBV_ACCESS_REMOTE_ATOMIC,
    };
    struct ibv_qp_init_attr_ex attr = {
        .send_cq = end->cq,
        .recv_cq = end->cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 29, .max_recv_sge = 29,
                .max_inline_data = 256},
        .comp_mask = IBV_QP_INIT_ATTR_PD | (send_ops_flags ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0),
        .pd = end->pd,
        .send_ops_flags = send_ops_flags,
    };

    end->qp = ibv_create_qp_ex(end->context, &attr);
    CHECK(end->qp, "ibv_create_qp_ex");
    CHECK(!ibv_modify_qp(end->qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
          "INIT");
}

void end_connect(struct end *end, uint32_t qp_num, union ibv_gid gid, uint8_t rnr_retry, uint8_t timeout)
{
    struct ibv_qp_attr rtr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = IBV_MTU_4096,
        .dest_qp_num = qp_num,
        .max_dest_rd_atomic = 1,
        .min_rnr_timer = 1,
        .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .hop_limit = 1}},
    };
    struct ibv_qp_attr rts = {
        .qp_state = IBV_QPS_RTS,
        .timeout = timeout,
        .retry_cnt = 1,
        .rnr_retry = rnr_retry,
        .max_rd_atomic = 1,
    };

    CHECK(!ibv_modify_qp(end->qp, &rtr,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER),
          "RTR");
    CHECK(!ibv_modify_qp(end->qp, &rts,
                         IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                             IBV_QP_MAX_QP_RD_ATOMIC),
          "RTS");
}

void end_close(struct end *end)
{
    CHECK(!ibv_destroy_qp(end->qp), "ibv_destroy_qp");
    CHECK(!ibv_destroy_cq(end->cq), "ibv_destroy_cq");
    CHECK(!ibv_dealloc_pd(end->pd), "ibv_dealloc_pd");
}

static void send_all(int fd, const void *data, size_t size)
{
    CHECK(send(fd, data, size, MSG_NOSIGNAL) == (ssize_t)size, "the other process is gone");
}

static void receive_all(int fd, void *data, size_t size)
{
    CHECK(recv(fd, data, size, MSG_WAITALL) == (ssize_t)size, "the other process is gone");
}

static int meet_server(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_ANY)};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    CHECK(!bind(listener, (struct sockaddr *)&address, sizeof(address)) && !listen(listener, 1), "port %u", port);
    int fd = accept(listener, NULL, NULL);

    CHECK(fd >= 0, "accept");
    close(listener);
    return fd;
}

static int meet_client(uint16_t port, const char *host)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr(host)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(!connect(fd, (struct sockaddr *)&address, sizeof(address)), "nobody listens on port %u", port);
    return fd;
}

void pair_open(struct pair *pair, int argc, char **argv, uint64_t send_ops_flags)
{
    CHECK(argc >= 2, "usage: %s PORT [client | ADDRESS]", argv[0]);
    pair->server = argc < 3;
    const char *timeout = getenv("PAIR_TIMEOUT");
    const char *host = pair->server || !strcmp(argv[2], "client") ? "127.0.0.1" : argv[2];

    pair->socket = pair->server ? meet_server((uint16_t)atoi(argv[1])) : meet_client((uint16_t)atoi(argv[1]), host);
    end_open(&pair->own, open_device(), send_ops_flags);
    pair_exchange(pair, NULL, 0);
    end_connect(&pair->own, pair->peer.qp_num, pair->peer.gid, 7, timeout ? (uint8_t)atoi(timeout) : 12);
    pair_meet(pair);
}

void pair_exchange(struct pair *pair, const void *addr, uint32_t rkey)
{
    struct address own = {
        .addr = (uintptr_t)addr, .rkey = rkey, .qp_num = pair->own.qp->qp_num, .gid = pair->own.gid};

    send_all(pair->socket, &own, sizeof(own));
    receive_all(pair->socket, &pair->peer, sizeof(pair->peer));
}

void pair_meet(struct pair *pair)
{
    char here = 1;

    send_all(pair->socket, &here, 1);
    receive_all(pair->socket, &here, 1);
}

struct ibv_wc wait_completion(struct ibv_cq *cq)
{
    struct ibv_wc wc;
    time_t start = time(NULL);

    for (;;) {
        int count = ibv_poll_cq(cq, 1, &wc);

        CHECK(count >= 0, "ibv_poll_cq");
        if (count)
            return wc;
        CHECK(time(NULL) - start < PATIENCE, "no completion");
    }
}
