/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two processes with one RC connection: they meet over TCP, exchange what a connection needs, and wait for each other between
 * steps. Any failure ends the program with a message.
 */
#ifndef SLUICE_TEST_PAIR_H
#define SLUICE_TEST_PAIR_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define DIE(...)                                                        \
    do {                                                                \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                 \
        fprintf(stderr, __VA_ARGS__);                                   \
        fputc('\n', stderr);                                            \
        exit(1);                                                        \
    } while (0)

#define CHECK(condition, ...)  \
    do {                       \
        if (!(condition))      \
            DIE(__VA_ARGS__);  \
    } while (0)

struct address {
    uint64_t addr;
    uint32_t rkey;
    uint32_t qp_num;
    union ibv_gid gid;
};

struct end {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    union ibv_gid gid;
};

struct pair {
    bool server;
    int socket;
    struct end own;
    struct address peer;
};

/* One end: device, PD, CQ and an RC QP in INIT. send_ops_flags: for ibv_wr_*, or 0. */
void end_open(struct end *end, struct ibv_context *context, uint64_t send_ops_flags);
/* Another QP of it in INIT; end->qp. */
void qp_open(struct end *end, uint64_t send_ops_flags);
/* Brings the QP to RTS. rnr_retry and timeout as in struct ibv_qp_attr. */
void end_connect(struct end *end, uint32_t qp_num, union ibv_gid gid, uint8_t rnr_retry, uint8_t timeout);
void end_close(struct end *end);

/* arguments: PORT of the server, or PORT and "client" (this host) or an address. PAIR_TIMEOUT: the QP's timeout, else 12. */
void pair_open(struct pair *pair, int argc, char **argv, uint64_t send_ops_flags);
/* Exchanges addresses. */
void pair_exchange(struct pair *pair, const void *addr, uint32_t rkey);
/* Both have come this far. */
void pair_meet(struct pair *pair);

struct ibv_context *open_device(void);
/* Waits for one completion; dies after some seconds without. */
struct ibv_wc wait_completion(struct ibv_cq *cq);

#endif
