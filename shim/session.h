/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This process's session with the router: the two sockets, the shared memory, and
 * the ways to reach the engine. One per process, made at the first verb, shared by
 * all contexts that the application opens. A forked child has none until it opens one.
 */
#ifndef SLUICE_SHIM_SESSION_H
#define SLUICE_SHIM_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

struct session {
    bool open;                 /* false before the first verb and in a forked child */
    bool dead;                 /* the router is gone: there won't be another session */
    uint8_t *segment;          /* 2^SLUICE_SEGMENT_SHIFT bytes */
    struct sluice_segment *head;
    struct sluice_engine_page *page; /* read-only */
    int descriptors;           /* AF_UNIX SOCK_SEQPACKET */
    int control;               /* zmq */
};

extern struct session session;

/* Connects where it isn't connected. 0 or errno: ENOENT without a router, EPROTO with one of another version. */
int session_open(void);

/*
 * One request and its answer; header.op, size and cookie are filled in. Returns
 * the answer's status, or EIO where the router is gone.
 */
int session_call(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size);

/* The same for CREATE_CHANNEL and OPEN_CONTEXT, whose answer comes with a descriptor. */
int session_call_fd(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size, int *fd);

/* The same with a descriptor that goes with the request (-1: none). */
int session_call_with(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size, int fd);

/* A request about one handle. */
int session_call_handle(uint16_t op, uint32_t handle, uint32_t *new_handle);

/* Runs a mailbox command on the engine. Returns its status; *command gets the results. */
int session_command(struct sluice_command *command);

/* Tells the engine that QP or SRQ handle has something new. */
void session_ring(uint32_t handle);
void session_ring_srq(uint32_t handle);

/* Whether the node has a NIC, for which registered memory is pinned. */
bool session_pins(void);

/* Whether the router has closed its end: a system call. */
bool session_lost(void);

/* Whether the engine asks those who poll in vain to give way: this tenant moves much, and cores are scarce. */
bool session_gives_way(void);

/* Prints where SLUICE_DEBUG is set. */
void session_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
