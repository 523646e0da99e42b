/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tenant's process as the engine sees it: this program writes rings, doorbell and
 * mailbox as abi.h says, in the shim's place.
 */
#ifndef SLUICE_TEST_CLIENT_H
#define SLUICE_TEST_CLIENT_H

#include "engine.h"
#include "node.h"

enum { ENTRIES = 64, MEMORY = 1 << 20 };

extern struct sluice_engine *engine;
extern uint32_t tenant;
/* Of the tenant's, the one on which open_client opens its context. */
extern uint32_t device;
/* SGEs of a WQE on the send queues that open_client makes, and WQEs of the least length: a power of two. */
extern uint32_t send_sges, send_entries;

/* One session with one QP, and memory that lies in its arena. */
struct client {
    uint32_t session, pd, cq_handle, qp, qp_num, key;
    uint8_t *memory;
    struct sluice_segment *segment;
    struct sluice_qp_shared *shared;
    struct sluice_wqe *sq;
    uint32_t sq_stride, sq_entries, posted;
    struct sluice_recv_wqe *rq;
    uint32_t rq_stride, receives;
    struct sluice_cqe *ring;
    struct sluice_cq_shared *cq;
    uint32_t polled, cq_entries;
};

/* Wakes the engine where it sleeps. */
void wake(void);
/* Rings the doorbell of its QP. */
void ring(struct client *client);
/* Puts a command into the mailbox; and waits for its end: *what gets the results. Returns its status. */
void begin_command(struct client *client, const struct sluice_command *what);
int await_command(struct client *client, struct sluice_command *what);
/* Both. */
int try_command(struct client *client, struct sluice_command *what);
/* One that must succeed; returns the key. */
uint32_t command(struct client *client, struct sluice_command what);

void open_client(struct client *client);
/* The same with a QP of another type (enum ibv_qp_type). */
void open_client_of(struct client *client, uint32_t qp_type);
void close_client(struct client *client);

/* Modifies its QP to this state; and two of them to RTS, connected. */
void move(struct client *client, uint32_t state, uint32_t peer);
void join(struct client *a, struct client *b);

/* The next WQE, a WRITE there, and all of them shown to the engine. */
struct sluice_wqe *slot(struct client *client);
void post_write(struct client *client, const struct client *to, uint64_t wr_id, uint32_t length);
void publish(struct client *client);
/* A receive of memory [offset, offset + length). */
void post_receive(struct client *client, uint64_t wr_id, uint32_t offset, uint32_t length);
struct sluice_cqe wait_cqe(struct client *client);

/* The two ends of a connection. */
void make_connection(int ends[2]);

/* Waits until the engine has reported the session as broken. */
void expect_broken(const struct client *client);

#endif
