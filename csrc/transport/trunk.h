/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams to and from another node: a TCP connection each way, which all UD QPs
 * share. There is one for each pair of nodes and not one for each QP, since a UD QP talks
 * to any number of others; nobody holds it up, as what arrives is placed at once or lost, and nobody
 * sends more than the receiver's router grants his stream (stream.h, inflow.h). Grants go against the datagrams, on the same
 * connection.
 *
 * A sender whose datagram finds the buffer full waits in line, as for a wire that is
 * busy. What waits in the router is bounded by that buffer, and by nothing that a
 * tenant says. Where there is no connection senders wait for it for some seconds, and
 * after that what they send is lost, as IBTA 9.8 allows.
 *
 * The control plane makes the connections: who opens a trunk sends on it, so that two
 * nodes that open one to each other have two.
 */
#ifndef SLUICE_TRUNK_H
#define SLUICE_TRUNK_H

#include "../net.h"
#include "../spans.h"
#include "inflow.h"
#include "stream.h"
#include "transport.h"

enum {
    TRUNKS = SLUICE_MAX_NODES,
    TRUNK_BUFFER = 1 << 18, /* bytes, each way, while there is a connection */
    DATAGRAM_IMMEDIATE = 1,
    DATAGRAM_SOLICITED = 2
};

/* A datagram on the wire (SLUICE_TRUNK_VERSION), little-endian; length bytes of data follow, padded with zeroes to a multiple of 8. */
struct datagram_frame {
    uint16_t length; /* up to SLUICE_MTU */
    uint16_t flags;
    uint32_t src_qp;
    uint32_t dst_qp;
    uint32_t qkey;
    uint32_t imm;     /* as given by the application */
    uint32_t stream;  /* stream_id() */
    uint8_t dgid[16];
    uint8_t grh[SLUICE_GRH]; /* as it is to be placed before the data */
};

_Static_assert(sizeof(struct datagram_frame) == 80, "the wire's layout");

/* Bytes from one to the next. */
static inline uint32_t datagram_size(uint32_t length)
{
    return (uint32_t)sizeof(struct datagram_frame) + ((length + 7) & ~7u);
}

struct trunk {
    uint32_t number;
    struct sluice_engine *engine;
    struct net_socket out, in;
    uint8_t *sending, *reading; /* TRUNK_BUFFER; NULL while there is no connection */
    uint32_t start, end;        /* of what is to be sent */
    uint32_t has;               /* bytes that came */
    struct grant_frame heard;   /* a grant, and how much of it has come */
    uint32_t heard_bytes;
    struct list waiting;        /* QPs whose datagram finds no room, or no connection yet */
    struct streams streams;     /* of what is sent */
    struct inflows inflows;     /* of what comes */
    uint64_t progress;          /* ns: when the socket last took or brought something */
    bool given_up;              /* there has been no connection for too long: datagrams are lost */
    struct timer timer;
};

/* Returns its number. -ENOMEM; -EAGAIN: there are as many as may be. */
int trunk_open(struct sluice_engine *engine);
struct trunk *trunk_find(struct sluice_engine *engine, uint32_t number);
/* Connections that the control plane made, authenticated; an earlier one ends. Take fd over where they return 0; -errno. */
int trunk_connect(struct trunk *trunk, int fd);
int trunk_accept(struct trunk *trunk, int fd);
void trunks_free(struct sluice_engine *engine);

/*
 * A datagram: its frame, whose stream is set here, and data behind it (src from offset SLUICE_GRH on). PROGRESS_BLOCKED:
 * qp waits in qp->line. PROGRESS_FAILED: memory could not be had.
 */
enum progress trunk_send(struct stream *stream, struct qp *qp, struct datagram_frame *frame, const struct spans *src);

/*
 * The same to all nodes that this one has trunks to, for a group: what finds no room or no credit on one of them is lost
 * there. *copies gets how many were sent. PROGRESS_BLOCKED: a connection is still being made.
 */
enum progress trunks_send(struct qp *qp, struct datagram_frame *frame, const struct spans *src, uint32_t *copies);

/* Datagrams that waited for the gate (gate.h) are looked at again. */
void trunks_look_again(struct sluice_engine *engine);

/* datagram.c: the data follow the frame. False: it is for a group, and waits for the gate. */
bool datagram_arrived(struct inflow *inflow, struct datagram_frame *frame);

/* The socket whose id this is, where it isn't a QP's. */
struct net_socket *trunk_socket(struct sluice_engine *engine, uint32_t id);

#endif
