/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end of the connection lives on another node, and no RDMA NIC leads
 * there: each connected QP has a TCP connection of its own to its peer.
 *
 * One for each, not one for two nodes or two tenants: the kernel then gives each QP its
 * own flow control, so that a receiver without a receive posted, whose tenant is
 * throttled, or whose memory can't be had stops nobody but itself, and there is no
 * queue in the router that a tenant could fill. It costs 12 KiB for each, and
 * what the kernel takes for an idle socket (some KiB); idle ones cost no time, as epoll names those
 * that have something.
 *
 * The control plane makes connections, proves to each other who is at the two ends,
 * and hands them over (sluice_qp_connect). A connection that breaks is replaced by
 * another: both ends say how many requests they have executed (TCP_HELLO), and the requester
 * takes up there. It keeps no copy of what it sent, for the send queue still holds it: a slot is
 * the shim's again only when its completion was polled. So:
 *
 *   a SEND or WRITE that was executed is acknowledged, one that wasn't begins anew
 *   a READ whose answer didn't come whole is executed again (IBTA 9.4.4 allows it)
 *   an atomic that was executed is answered from the replay cache, never executed twice
 *
 * Memory that only its own process reaches (reach.h: stacks) goes through a buffer, piece by piece (tcp_process.c).
 *
 * Memory: payload goes from the sender's memory into the socket by one gathering
 * system call, and from the socket into the receiver's by one scattering one. Only
 * what arrives in the same packet as a header, and messages of some hundred bytes,
 * pass through the buffer below. The last bytes of a message always do, so that they are stored
 * last and with release order (copy.h).
 */
#ifndef SLUICE_TCP_H
#define SLUICE_TCP_H

#include "../net.h"
#include "../reach.h"
#include "../spans.h"
#include "tcp_frame.h"
#include "transport.h"

enum {
    TCP_ANSWERS = 32,      /* READ parts and atomics of one requester that wait for their answer; power of two */
    TCP_BUFFER = 8192,     /* bytes */
    TCP_HOLD_BACK = 64,    /* last bytes of a message that pass through the buffer */
    TCP_BULK = 2048,       /* from here on payload is read to its place */
    TCP_COPY = 256,        /* up to here a payload is copied beside its header */
    TCP_BATCHED = 8192,    /* up to here messages share a system call */
    TCP_BATCH = 64,        /* messages in one system call */
    TCP_PIECE = 1 << 16,   /* bytes of memory that only its process reaches, at a time */
    TCP_PROMPT = 4,        /* requests that followed at once, before acknowledgements wait for the next */
    TCP_VISIT = 1 << 16    /* bytes of one connection before the next has its turn, where a turn has no more */
};

/*
 * What a responder's tenant takes or gives is work of its tenant's, in turns as its QPs' own sending is (turn.h): by
 * guarantee, weight and ceilings. Who must wait reads (or answers) nothing meanwhile, so that TCP holds back the sender: of
 * this QP, and of no other. So the peer's kernel sends what this end's shaper has granted, and no more.
 */
struct tcp_grant {
    struct chore chore;
    uint32_t left;  /* bytes of this turn; 0: it isn't its turn */
    uint32_t moved; /* in it */
};

/* Something that this responder owes. */
struct tcp_answer {
    uint8_t kind; /* TCP_READ_ANSWER, TCP_ATOMIC_ANSWER or TCP_NAK */
    bool begun;   /* its last frame is, at least */
    uint32_t msn;
    uint32_t total;
    uint32_t offset, end; /* READ: what is still to be sent */
    uint16_t srqn;
    uint32_t rkey;
    uint64_t addr;
    uint64_t value; /* atomic: the word; NAK: enum ibv_wc_status */
};

enum tcp_receiving {
    TCP_HEADER,  /* the next bytes are a header's */
    TCP_PAYLOAD, /* payload of frame, left bytes of it */
    TCP_DISCARD, /* the same, for nobody */
    TCP_HOLD,    /* frame waits for a receive: nothing is read */
    TCP_STORE,   /* payload is on its way into a process, or an atomic is performed there: the same */
    TCP_STOPPED  /* after a NAK: nothing is read any more */
};

enum tcp_source { TCP_NOTHING, TCP_CONTROL, TCP_REQUEST, TCP_ANSWER, TCP_ZEROES };

struct tcp_piece; /* of memory that only its process reaches: tcp_process.c */

struct tcp_endpoint {
    struct net_socket socket;
    struct qp *qp;
    bool dead;     /* its QP has given it up */
    bool greeted;  /* the peer's HELLO has come */
    bool hello_due;
    uint32_t base; /* index in the send queue of request 0 */

    /* Requester */
    uint32_t acknowledged;  /* requests that the peer has executed */
    uint32_t most;          /* requests that were ever begun to be sent */
    uint32_t known;         /* the same, as of its HELLO: sent before */
    uint32_t answered;      /* messages on the way that want an answer: READs and atomics */
    uint32_t parts;         /* READ parts and atomics on the way */
    uint32_t answer_offset; /* how much of the oldest READ has come */
    bool whole;             /* qp->message is in the socket but for what sending says */
    bool rnr;               /* the peer waits for a receive */
    uint64_t rnr_until;     /* ns: until when; UINT64_MAX: for ever */
    bool fault;             /* memory of request fault_msn could not be read */
    uint32_t fault_msn;
    bool put_back;          /* requests that were on the way when the last connection ended wait to be sent again */
    bool caught_up;         /* something is acknowledged that the head had not passed */
    uint64_t heard;         /* ns: when something last came from the peer */
    uint64_t progress;      /* ns: the same, or bytes came to its kernel */
    uint64_t written, arrived; /* bytes given to the socket; of these, known to be with the peer when last asked */
    struct timer timer;     /* runs while something is on its way, or there is no way */

    /* Responder */
    uint32_t expected; /* requests executed: the next one's number */
    uint32_t told;     /* of these, acknowledged */
    bool rnr_due;
    bool acknowledge;  /* even if there is nothing new: an RNR is over, or to see whether the wire works */
    bool losing;       /* unreliable: what is left of message lost_msn is thrown away */
    uint32_t lost_msn;
    /* Where requests of this QP follow those that it executes, acknowledgements go with them (tcp_write.c). */
    uint32_t prompt;   /* how many have followed at once, in a row */
    bool unanswered;   /* none has, to the last one executed */
    uint64_t executed; /* ns: when that was */
    struct timer hold; /* runs while an acknowledgement waits */
    struct tcp_grant grants[DIRECTIONS];
    uint64_t spoke;    /* ns: when a sign of life was last sent to a requester who is held back */
    bool failed;       /* a NAK was queued */
    uint32_t event;    /* enum ibv_event_type that goes with it; 0: none */
    struct tcp_answer answers[TCP_ANSWERS + 1]; /* one more for a NAK */
    uint32_t answers_head, answers_count;
    struct {
        uint32_t msn;
        uint64_t value;
    } replay[TCP_ANSWERS]; /* the last atomics executed */
    uint32_t replay_count; /* atomics executed, running */

    /* What is being written: the rest of a header, and payload behind it */
    enum tcp_source source;
    uint32_t sending_header, sending;
    uint8_t header[sizeof(struct tcp_frame)];
    struct tcp_piece *request_piece, *answer_piece;
    struct tcp_piece *outgoing; /* which of them the frame's payload is written from; NULL: from where it lies */

    /* What is being read */
    enum tcp_receiving receiving;
    struct tcp_frame frame;
    uint32_t left;
    int low; /* SO_RCVLOWAT, as it was last set */
    uint64_t operands[2];
    uint32_t start, end; /* of what the buffer holds */
    struct tcp_piece *incoming; /* TCP_STORE: payload; or NULL, and it is an atomic */
    struct tcp_piece *atomic;   /* request `expected`: stays over a broken connection, for it is executed but once */
    struct list held;    /* in an SRQ's held while receiving is TCP_HOLD; at the end in net->dead */
    uint8_t buffer[TCP_BUFFER];
};

static inline struct net_socket *tcp_socket(struct qp *qp)
{
    return &((struct tcp_endpoint *)qp->wire)->socket;
}

/* The worker's scratch for messages that share a system call. */
struct tcp_batch *tcp_batch_new(void);

/* The control plane made a connection to the peer, authenticated. Takes fd over where it returns 0; -errno. */
int tcp_attach(struct qp *qp, int fd);

/* Frees what QPs have given up. Between two rounds. */
void tcp_bury(struct net *net);

/* A receive was posted on the SRQ for which it was held. */
void tcp_resume(struct tcp_endpoint *endpoint);

/* ---- between the files of this transport ---------------------------------- */

/* The connection is gone: both sides forget what was on its way, and the control plane is asked for another. */
void tcp_lost(struct tcp_endpoint *endpoint);

/* Writing failed: what the peer has said is read first, then the connection is lost. */
static inline void tcp_broken(struct tcp_endpoint *endpoint)
{
    endpoint->socket.writable = false;
    endpoint->socket.readable = true;
    net_wake(endpoint->qp->session->engine->net, &endpoint->socket);
}

/* Has the payload read that has come so far, though it is less than is waited for. */
void tcp_read_what_came(struct tcp_endpoint *endpoint);

/* Whether it is the responder's turn. False: it waits for one, and is served again. */
bool tcp_admitted(struct tcp_endpoint *endpoint, uint32_t direction);
/* Bytes that it took or gave. */
void tcp_charge(struct tcp_endpoint *endpoint, uint32_t direction, uint32_t bytes);

/* The peer lives. */
static inline void tcp_heard(struct tcp_endpoint *endpoint)
{
    endpoint->heard = endpoint->progress = endpoint->qp->session->engine->now;
}

/* There has been no connection for so long that unreliable messages needn't wait for one. */
bool tcp_unreachable(const struct tcp_endpoint *endpoint);

/* Starts the timer that ends with IBV_WC_RETRY_EXC_ERR where nothing moves. */
void tcp_watch(struct tcp_endpoint *endpoint);

/* requester (tcp_send.c, tcp_answers.c) */
/* enum ibv_wr_opcode: READ and atomics, which bring something back. */
static inline bool tcp_wants_answer(uint8_t opcode)
{
    return opcode >= 4 /* IBV_WR_RDMA_READ */ && opcode <= 6 /* IBV_WR_ATOMIC_FETCH_AND_ADD */;
}


enum progress tcp_send(struct qp *qp, uint32_t budget, uint32_t *status);
/* Hands over what tcp_send has gathered. */
void tcp_flush(struct qp *qp);
/* Completes what is acknowledged, in order, up to a READ or atomic that has no answer yet. */
void tcp_acknowledge(struct tcp_endpoint *endpoint, uint32_t msn);
/* The oldest request fails. */
void tcp_fail(struct tcp_endpoint *endpoint, uint32_t status);
/*
 * The frame that came is for the requester: its header, where its payload belongs, and its end.
 * Each false where the peer makes no sense, or the QP has ended.
 */
bool tcp_begin_answer(struct tcp_endpoint *endpoint);
bool tcp_place_answer(struct tcp_endpoint *endpoint, struct spans *spans);
bool tcp_end_answer(struct tcp_endpoint *endpoint);

/* writing (tcp_write.c) */
/* Writes what is due: the rest of a frame, HELLO, answers, acknowledgements. False: the connection is gone. */
bool tcp_write(struct tcp_endpoint *endpoint);
/* The acknowledgement that is due, to go before a request. False: there is none. */
bool tcp_take_acknowledgement(struct tcp_endpoint *endpoint, struct tcp_frame *frame);
/* The QP leaves: what it has executed it has executed. */
void tcp_say_last(struct tcp_endpoint *endpoint);
/* A request of this QP's own is sent. */
void tcp_follows(struct tcp_endpoint *endpoint);
/* Writes a frame's header and payload [offset, offset + length) of spans; what the socket doesn't take follows later.
 * False: the connection is gone, or endpoint->fault is set. */
bool tcp_write_frame(struct tcp_endpoint *endpoint, enum tcp_source source, const struct tcp_frame *frame,
                     const struct spans *spans, uint32_t offset);

/* responder (tcp_respond.c): each false where the peer makes no sense */
bool tcp_begin_request(struct tcp_endpoint *endpoint);
bool tcp_end_request(struct tcp_endpoint *endpoint);
/* Where payload of the frame belongs. False: nowhere; a NAK is queued where that is right. */
bool tcp_place(struct tcp_endpoint *endpoint, struct spans *spans);
/* Goes on with the request that waited for a receive. */
bool tcp_continue_request(struct tcp_endpoint *endpoint);
/* The atomic at hand was performed by a thread; original: what it found. False where the peer makes no sense. */
bool tcp_atomic_performed(struct tcp_endpoint *endpoint, bool failed, uint64_t original);
/* Payload of the frame could not be stored. */
void tcp_no_memory(struct tcp_endpoint *endpoint);
/* The request at hand fails: a NAK, and where event isn't 0 that enum ibv_event_type for the application here. */
void tcp_refuse(struct tcp_endpoint *endpoint, uint32_t status, uint32_t event);
/* What a READ asks for. False: it may not. */
bool tcp_readable(struct tcp_endpoint *endpoint, uint16_t srqn, uint32_t rkey, uint64_t addr, uint32_t total,
                  struct spans *spans);

/* memory that only its process reaches (tcp_process.c) */
enum tcp_reach {
    TCP_SEEN,     /* the engine sees it */
    TCP_FETCHED,  /* it is in the piece's buffer, or on its way out of it */
    TCP_LATER,    /* not yet: the socket is served, or the QP active, when it is */
    TCP_UNREACHED /* it could not be had */
};

/* Bytes [offset, offset + *length) of a message, at most: *length becomes how many of them go at once. */
enum tcp_reach tcp_fetch(struct tcp_endpoint *endpoint, struct tcp_piece **piece, uint32_t msn,
                         const struct spans *spans, uint32_t offset, uint32_t *length);
/* As tcp_write_frame, of what was fetched; where its payload is as long as the frame is being written; and its end. */
bool tcp_write_fetched(struct tcp_endpoint *endpoint, enum tcp_source source, const struct tcp_frame *frame,
                       struct tcp_piece *piece);
const uint8_t *tcp_fetched(const struct tcp_endpoint *endpoint, uint32_t offset);
void tcp_fetched_sent(struct tcp_endpoint *endpoint);

/* Where payload of offset and *length belongs; *length becomes how much goes at once. TCP_FETCHED: by way of *buffer, and
 * tcp_store. */
enum tcp_reach tcp_prepare_store(struct tcp_endpoint *endpoint, const struct spans *spans, uint32_t offset,
                                 uint32_t *length, uint8_t **buffer);
/* Both false: it can't be had. */
bool tcp_store(struct tcp_endpoint *endpoint, const struct spans *spans, uint32_t offset, uint32_t length);
bool tcp_start_atomic(struct tcp_endpoint *endpoint, const struct span *word);
/* What has become of it: TCP_FETCHED where it is done. *original: what an atomic found. */
enum tcp_reach tcp_stored(struct tcp_endpoint *endpoint, bool *atomic, uint64_t *original);
/* A connection's, and what outlives it. */
void tcp_give_up_pieces(struct tcp_endpoint *endpoint);
void tcp_give_up_atomic(struct tcp_endpoint *endpoint);

/* reading (tcp_read.c). False: the connection is gone. */
bool tcp_read(struct tcp_endpoint *endpoint);
/* Whether what a READ or an atomic brought is being stored by a thread. */
bool tcp_stores_answer(const struct tcp_endpoint *endpoint);

#endif
