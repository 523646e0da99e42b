/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's functions behind control messages, with arbitrary requests in
 * arbitrary order: router/sluice/control/verbs.py passes a tenant's structs on as
 * they came, but for what it checks first (the state table, address vectors).
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left);

/* Where the handles of each kind start: PDs, CQs and the like; QPs; SRQs; AHs. */
static uint32_t bases[4];

/* Small numbers name objects; now and then something else. */
static uint32_t handle(const uint8_t **data, size_t *left)
{
    uint8_t byte = fuzz_byte(data, left);
    uint32_t word;

    if (byte < 250)
        return bases[byte % 4] + byte / 4 % 24;
    fuzz_take(data, left, &word, sizeof(word));
    return word;
}

static void create_cq(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_create_cq_request request;
    struct sluice_create_cq_reply reply;

    fuzz_take(data, left, &request, sizeof(request));
    request.context = handle(data, left);
    request.channel = handle(data, left);
    if (request.cqe > 4096 && request.cqe <= SLUICE_MAX_CQE)
        request.cqe %= 4096; /* large ones are right, only slow */
    sluice_cq_create(fuzz_engine, session, &request, &reply);
}

static void create_qp(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_create_qp_request request;
    struct sluice_create_qp_reply reply;

    fuzz_take(data, left, &request, sizeof(request));
    request.pd = handle(data, left);
    request.send_cq = handle(data, left);
    request.recv_cq = handle(data, left);
    request.srq = fuzz_byte(data, left) & 1 ? handle(data, left) : 0;
    request.xrcd = handle(data, left);
    if (fuzz_byte(data, left) < 200) {
        static const uint32_t types[] = {IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD, IBV_QPT_XRC_SEND, IBV_QPT_XRC_RECV};

        request.qp_type = types[request.qp_type % 5];
    }
    if (fuzz_byte(data, left) < 200)
        request.cap = (struct sluice_qp_cap){request.cap.max_send_wr % 300, request.cap.max_recv_wr % 300, request.cap.max_send_sge % 32,
                                             request.cap.max_recv_sge % 32, request.cap.max_inline_data % 500};
    sluice_qp_create(fuzz_engine, session, &request, &reply);
}

/* The control plane lets through what the state table allows (qp_state.py): so do we, values aside. */
static bool allowed(uint32_t from, uint32_t to)
{
    if (to == IBV_QPS_RESET)
        return true;
    if (to == IBV_QPS_ERR)
        return from != IBV_QPS_RESET;
    return (from == to && from != IBV_QPS_SQE && from != IBV_QPS_ERR && from != IBV_QPS_RTR) || (from < IBV_QPS_RTS && to == from + 1) ||
           (from == IBV_QPS_RTS && to == IBV_QPS_SQD) || (to == IBV_QPS_RTS && (from == IBV_QPS_SQD || from == IBV_QPS_SQE));
}

static void modify_qp(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_qp_attr attr, now;
    uint32_t mask, qp = handle(data, left);

    fuzz_take(data, left, &mask, sizeof(mask));
    fuzz_take(data, left, &attr, sizeof(attr));
    attr.qp_state = fuzz_byte(data, left) % 7;
    if (sluice_qp_query(fuzz_engine, session, qp, &now))
        return;
    if ((mask & IBV_QP_STATE) && !allowed(now.qp_state, attr.qp_state))
        return;
    sluice_qp_modify(fuzz_engine, session, qp, &attr, mask, fuzz_byte(data, left) & 1 ? SLUICE_TRANSPORT_LOCAL : SLUICE_TRANSPORT_NONE,
                     (int8_t)fuzz_byte(data, left) % 3, &now);
}

static void create_srq(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_create_srq_request request;
    struct sluice_create_srq_reply reply;

    fuzz_take(data, left, &request, sizeof(request));
    request.pd = handle(data, left);
    request.xrcd = fuzz_byte(data, left) & 1 ? handle(data, left) : 0;
    request.cq = handle(data, left);
    if (fuzz_byte(data, left) < 200) {
        request.max_wr %= 300;
        request.max_sge %= 32;
    }
    sluice_srq_create(fuzz_engine, session, &request, &reply);
}

static void datagrams(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_create_ah_request request;
    uint8_t gid[16];

    switch (fuzz_byte(data, left) % 5) {
    case 0:
        fuzz_take(data, left, &request, sizeof(request));
        request.pd = handle(data, left);
        fuzz_take(data, left, gid, sizeof(gid));
        sluice_ah_create(fuzz_engine, session, &request, gid, (int8_t)fuzz_byte(data, left) % 3);
        break;
    case 1:
        sluice_ah_destroy(fuzz_engine, session, handle(data, left));
        break;
    case 2:
        sluice_ah_sever(fuzz_engine, session, handle(data, left));
        break;
    case 3:
        fuzz_take(data, left, gid, fuzz_byte(data, left) & 1 ? sizeof(gid) : 1);
        sluice_qp_attach(fuzz_engine, session, handle(data, left), gid);
        break;
    case 4:
        fuzz_take(data, left, gid, fuzz_byte(data, left) & 1 ? sizeof(gid) : 1);
        sluice_qp_detach(fuzz_engine, session, handle(data, left), gid);
        break;
    }
}

static void shared_queues(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_open_qp_request open;
    struct sluice_create_qp_reply opened;
    struct sluice_srq_reply reply;

    switch (fuzz_byte(data, left) % 7) {
    case 0:
        create_srq(session, data, left);
        break;
    case 1:
        sluice_srq_destroy(fuzz_engine, session, handle(data, left));
        break;
    case 2:
        sluice_srq_set_limit(fuzz_engine, session, handle(data, left), handle(data, left));
        break;
    case 3:
        sluice_srq_query(fuzz_engine, session, handle(data, left), &reply);
        break;
    case 4:
        sluice_xrcd_open(fuzz_engine, session, handle(data, left), fuzz_byte(data, left) & 1, fuzz_byte(data, left) % 3,
                         fuzz_byte(data, left) % 3, fuzz_byte(data, left) % 4);
        break;
    case 5:
        sluice_xrcd_close(fuzz_engine, session, handle(data, left));
        break;
    case 6:
        fuzz_take(data, left, &open, sizeof(open));
        open.xrcd = handle(data, left);
        sluice_qp_open(fuzz_engine, session, &open, &opened);
        break;
    }
}

static void step(struct fuzz_session *one, const uint8_t **data, size_t *left)
{
    uint32_t session = one->number;
    struct sluice_qp_attr now;
    int fd;

    switch (fuzz_byte(data, left) % 21) {
    case 0:
        sluice_pd_alloc(fuzz_engine, session, handle(data, left));
        break;
    case 1:
        if (sluice_channel_create(fuzz_engine, session, &fd) >= 0)
            close(fd);
        break;
    case 2:
        create_cq(session, data, left);
        break;
    case 3:
        create_qp(session, data, left);
        break;
    case 4:
        sluice_pd_dealloc(fuzz_engine, session, handle(data, left));
        break;
    case 5:
        sluice_channel_destroy(fuzz_engine, session, handle(data, left));
        break;
    case 6:
        sluice_cq_destroy(fuzz_engine, session, handle(data, left));
        break;
    case 7:
        sluice_qp_destroy(fuzz_engine, session, handle(data, left));
        break;
    case 8:
    case 9:
        modify_qp(session, data, left);
        break;
    case 10:
        sluice_qp_query(fuzz_engine, session, handle(data, left), &now);
        break;
    case 11:
        sluice_qp_fail(fuzz_engine, session, handle(data, left));
        break;
    case 12: {
        struct sluice_resize_cq_request request;
        struct sluice_resize_cq_reply reply;

        fuzz_take(data, left, &request, sizeof(request));
        request.handle = handle(data, left);
        if (request.cqe > 4096 && request.cqe <= SLUICE_MAX_CQE)
            request.cqe %= 4096;
        sluice_cq_resize(fuzz_engine, session, &request, &reply);
        break;
    }
    case 13:
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        if (fd >= 0 && ftruncate(fd, fuzz_byte(data, left) * 100) == 0)
            sluice_memory_open_file(fuzz_engine, session, fd, fuzz_byte(data, left) & 1);
        if (fd >= 0)
            close(fd);
        break;
    case 14:
        sluice_memory_close(fuzz_engine, session, handle(data, left));
        break;
    case 15:
    case 16:
        shared_queues(session, data, left);
        break;
    case 17:
    case 18:
        datagrams(session, data, left);
        break;
    case 19:
        if (sluice_context_open(fuzz_engine, session, 0, &fd) >= 0)
            close(fd);
        break;
    case 20:
        sluice_context_close(fuzz_engine, session, handle(data, left));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left)
{
    struct fuzz_session session;

    fuzz_begin();
    fuzz_open(&session, IBV_QPT_RC, true);
    bases[0] = session.context;
    bases[1] = session.qp;
    bases[2] = session.srq_layout.handle;
    bases[3] = session.ah;
    while (left > 0)
        step(&session, &data, &left);
    fuzz_close(&session);
    fuzz_check();
    return 0;
}
