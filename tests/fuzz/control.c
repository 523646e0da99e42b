/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's functions behind control messages, with arbitrary requests in
 * arbitrary order. Only what the control plane checks beforehand is kept out:
 * nothing else (router/sluice/control/verbs.py passes a tenant's structs on as
 * they came).
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left);

/* Small numbers name objects; now and then something else. */
static uint32_t handle(const uint8_t **data, size_t *left)
{
    uint8_t byte = fuzz_byte(data, left);
    uint32_t word;

    if (byte < 250)
        return byte % 24;
    fuzz_take(data, left, &word, sizeof(word));
    return word;
}

static void create_cq(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_create_cq_request request;
    struct sluice_create_cq_reply reply;

    fuzz_take(data, left, &request, sizeof(request));
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
    if (fuzz_byte(data, left) < 200)
        request.qp_type = 2 + request.qp_type % 4;
    if (fuzz_byte(data, left) < 200)
        request.cap = (struct sluice_qp_cap){request.cap.max_send_wr % 300, request.cap.max_recv_wr % 300, request.cap.max_send_sge % 32,
                                             request.cap.max_recv_sge % 32, request.cap.max_inline_data % 500};
    sluice_qp_create(fuzz_engine, session, &request, &reply);
}

static void modify_qp(uint32_t session, const uint8_t **data, size_t *left)
{
    struct sluice_qp_attr attr, now;
    uint32_t mask;

    fuzz_take(data, left, &mask, sizeof(mask));
    fuzz_take(data, left, &attr, sizeof(attr));
    if (fuzz_byte(data, left) < 220)
        attr.qp_state %= 7;
    sluice_qp_modify(fuzz_engine, session, handle(data, left), &attr, mask,
                     fuzz_byte(data, left) & 1 ? SLUICE_TRANSPORT_LOCAL : SLUICE_TRANSPORT_NONE,
                     (int8_t)fuzz_byte(data, left) % 3, &now);
}

static void step(struct fuzz_session *one, const uint8_t **data, size_t *left)
{
    uint32_t session = fuzz_byte(data, left) < 240 ? one->number : handle(data, left);
    struct sluice_qp_attr now;
    int fd;

    switch (fuzz_byte(data, left) % 15) {
    case 0:
        sluice_pd_alloc(fuzz_engine, session);
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
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left)
{
    struct fuzz_session session;

    fuzz_begin();
    fuzz_open(&session);
    /* The honest pair's sessions are 0 and 1: requests in their name would be theirs to make. */
    while (left > 0)
        step(&session, &data, &left);
    fuzz_close(&session);
    fuzz_check();
    return 0;
}
