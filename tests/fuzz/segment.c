/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile process scribbles over its segment (doorbells, mailbox, indices, WQEs,
 * the CQ's consumer) while the engine works on it. Its QP, of any kind, is connected
 * to itself, so that WQEs that happen to be right are carried out as well.
 */
#include <string.h>

#include "atomic.h"
#include "session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left);

/* Stores as another process does: byte by byte, unordered. */
static void scribble(uint8_t *to, const uint8_t **data, size_t *left)
{
    uint8_t bytes[64];
    size_t size = fuzz_take(data, left, bytes, 1 + fuzz_byte(data, left) % sizeof(bytes));

    for (size_t i = 0; i < size; i++)
        *(volatile uint8_t *)(to + i) = bytes[i];
}

/* A WQE that is right but for what the input says. */
static void post(struct fuzz_session *session, const uint8_t **data, size_t *left)
{
    uint8_t *base = (uint8_t *)session->segment, block[SLUICE_WQE_MAX] = {0};
    struct sluice_qp_shared *shared = (struct sluice_qp_shared *)(base + session->qp_layout.offset);
    bool receive = fuzz_byte(data, left) & 1;
    uint32_t stride = receive ? session->qp_layout.rq_stride : session->qp_layout.sq_stride;
    struct sluice_queue_shared *queue = receive ? &shared->rq : &shared->sq;
    uint64_t ring = receive ? session->qp_layout.rq_offset : session->qp_layout.sq_offset;

    if (receive && session->srq_layout.handle) {
        struct sluice_srq_shared *srq = (struct sluice_srq_shared *)(base + session->srq_layout.offset);

        queue = &srq->queue;
        stride = session->srq_layout.stride;
        ring = session->srq_layout.offset + sizeof(*srq);
    }
    uint32_t index = queue->producer;
    uint8_t *slot = base + ring + (index & (ENTRIES - 1)) * stride;
    struct sluice_sge *sge;
    uint8_t at, value;

    if (receive) {
        struct sluice_recv_wqe *wqe = (struct sluice_recv_wqe *)block;

        wqe->num_sge = fuzz_byte(data, left) % 5;
        sge = (struct sluice_sge *)(wqe + 1);
    } else {
        struct sluice_wqe *wqe = (struct sluice_wqe *)block;

        wqe->opcode = fuzz_byte(data, left) % 12;
        wqe->flags = fuzz_byte(data, left) & 15;
        wqe->num_sge = fuzz_byte(data, left) % 5;
        wqe->inline_length = fuzz_byte(data, left) % 80;
        wqe->remote_addr = (uintptr_t)session->memory + 8ull * fuzz_byte(data, left);
        wqe->rkey = session->key;
        if (session->qp_type == IBV_QPT_UD) {
            wqe->ah = session->ah;
            wqe->remote_qpn = session->qp_num;
        }
        sge = (struct sluice_sge *)(wqe + 1);
        if (wqe->opcode == IBV_WR_ATOMIC_CMP_AND_SWP || wqe->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD)
            sge = (struct sluice_sge *)((uint8_t *)sge + sizeof(struct sluice_atomic));
    }
    for (int i = 0; i < 4; i++)
        sge[i] = (struct sluice_sge){.addr = (uintptr_t)session->memory + 256ull * fuzz_byte(data, left),
                                     .length = fuzz_byte(data, left) % 3 ? 8 : 4000, .lkey = session->key};
    for (int changes = fuzz_byte(data, left) % 4; changes > 0; changes--) {
        at = fuzz_byte(data, left);
        value = fuzz_byte(data, left);
        block[at % stride] = value;
    }
    memcpy(slot, block, stride < sizeof(block) ? stride : sizeof(block));
    store_release(&queue->producer, index + 1);
    fuzz_ring(session, session->qp);
}

static void command(struct fuzz_session *session, const uint8_t **data, size_t *left)
{
    struct sluice_command what;

    fuzz_take(data, left, &what, sizeof(what));
    what.op = fuzz_byte(data, left) % 8;
    what.state = fuzz_byte(data, left) % 8 ? (uint32_t)SLUICE_COMMAND_POSTED : what.state;
    if (fuzz_byte(data, left) % 4)
        what.pd = session->pd;
    if (fuzz_byte(data, left) % 4)
        what.key = session->key;
    if (fuzz_byte(data, left) % 4) {
        what.addr = what.iova = (uintptr_t)session->memory + what.addr % 8192;
        what.length %= MEMORY;
    }
    memcpy((uint8_t *)&session->segment->command + 4, (uint8_t *)&what + 4, sizeof(what) - 4);
    store_release(&session->segment->command.state, what.state);
    fuzz_ring_command(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left)
{
    struct fuzz_session session;

    static const uint32_t types[] = {IBV_QPT_RC, IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD};

    fuzz_begin();
    uint8_t kind = fuzz_byte(&data, &left);

    fuzz_open(&session, types[kind % 4], kind & 4);
    fuzz_join(&session, &session);
    uint8_t *base = (uint8_t *)session.segment;
    uint16_t offset;

    while (left > 0) {
        switch (fuzz_byte(&data, &left) % 8) {
        case 0:
            fuzz_take(&data, &left, &offset, sizeof(offset));
            scribble(base + offset % sizeof(struct sluice_segment), &data, &left);
            break;
        case 1:
            fuzz_take(&data, &left, &offset, sizeof(offset));
            scribble(base + session.qp_layout.offset + offset % 16384, &data, &left);
            break;
        case 2:
            fuzz_take(&data, &left, &offset, sizeof(offset));
            scribble(base + (kind & 8 && session.srq_layout.handle ? session.srq_layout.offset : session.cq_layout.offset) +
                         offset % 8192,
                     &data, &left);
            break;
        case 3:
        case 4:
            post(&session, &data, &left);
            break;
        case 5:
            command(&session, &data, &left);
            break;
        case 6:
            fuzz_take(&data, &left, &offset, sizeof(offset));
            fuzz_ring(&session, offset);
            break;
        case 7:
            fuzz_settle();
            break;
        }
    }
    fuzz_settle();
    fuzz_check();
    fuzz_close(&session);
    return 0;
}
