/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What travels on a connection between two nodes: frames, each a header of 40
 * bytes, little-endian, and behind it length bytes of payload. A connection carries one
 * QP's traffic, in both directions: what this QP asks for (requests), and what it
 * answers to the other's requests.
 *
 * Requests are numbered (msn) as IBTA 9.7.4 numbers messages: from 0 when the
 * QP goes to RTR, one a message. A message may be cut into frames; each says where in
 * the message its payload belongs, and repeats all that is needed to check it.
 *
 * A responder executes requests in their order. Whatever it says carries in msn
 * how many it has executed: all before are acknowledged.
 */
#ifndef SLUICE_TCP_FRAME_H
#define SLUICE_TCP_FRAME_H

#include <stdint.h>

enum { TCP_FRAME_MAX = 1 << 20 /* bytes of payload */ };

enum tcp_kind {
    TCP_HELLO = 1, /* the first frame each way. msn: requests executed so far; total: SLUICE_TCP_VERSION; imm: enum ibv_qp_type */

    /* Requests */
    TCP_WRITE,       /* payload */
    TCP_WRITE_IMM,   /* payload; imm */
    TCP_SEND,        /* payload */
    TCP_SEND_IMM,    /* payload; imm */
    TCP_SEND_INV,    /* payload; imm: the rkey to invalidate */
    TCP_READ,        /* no payload; part: bytes asked for from offset on */
    TCP_COMPARE_SWAP, /* payload: compare and swap, 8 bytes each */
    TCP_FETCH_ADD,   /* payload: the addend and 0 */

    /* Answers */
    TCP_ACK,         /* nothing but msn */
    TCP_READ_ANSWER, /* payload; offset and total as asked for */
    TCP_ATOMIC_ANSWER, /* payload: the word as it was, 8 bytes */
    TCP_RNR,         /* request msn waits for a receive. imm: the RNR NAK timer field */
    TCP_NAK,         /* request msn failed: imm is an enum ibv_wc_status; the last frame of a connection */
    TCP_KINDS
};

enum tcp_flag {
    TCP_SOLICITED = 1,
    TCP_LAST = 2 /* READ_ANSWER: all of that part has come */
};

struct tcp_frame {
    uint8_t kind;  /* enum tcp_kind */
    uint8_t flags; /* enum tcp_flag */
    uint16_t srqn; /* request to an XRC_RECV QP: the SRQ that it names */
    uint32_t msn;
    uint32_t length; /* of the payload, bytes */
    uint32_t total;  /* of the message, bytes */
    uint32_t offset; /* of the payload, or of the part asked for, in the message */
    uint32_t part;
    uint32_t imm;    /* immediate data: as given by the application */
    uint32_t rkey;
    uint64_t addr;   /* of the message's first byte at the responder */
};

_Static_assert(sizeof(struct tcp_frame) == 40, "the wire's layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian, and so is each host so far");

#endif
