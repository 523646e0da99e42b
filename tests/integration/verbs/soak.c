/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends, reads and counts for as long as its input is open, and looks at every byte
 * and every order: what a wire that comes and goes must not change.
 *
 *     soak PORT             the responder
 *     soak PORT ADDRESS     the requester; says how many steps were right, or how it ended
 *
 * A step is a WRITE and a SEND of random length whose bytes tell its number, a fetch-and-add
 * that must find exactly the steps before it, and a READ of bytes that never change. Who gets the
 * SEND finds the WRITE before it in place.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "pair.h"

enum { LARGEST = 200000, STEPS = 8 /* at a time */, KINDS = 4, LAST = 0x80000000 };
/* A WRITE takes no receive: its place is free when the responder has posted one more for each step since. */
enum { PLACES = 2 * STEPS };
enum { ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC };

/* Of the responder: what is counted and read, where SENDs and WRITEs go. Of the requester: what it sends and gets. */
struct area {
    uint64_t counter, found[STEPS];
    uint8_t constant[LARGEST];
    uint8_t slots[STEPS][LARGEST];
    uint8_t written[PLACES][LARGEST];
    uint8_t read[STEPS][LARGEST];
};

static uint32_t length_of(uint32_t step)
{
    uint32_t x = step * 2654435761u + 12345;

    x ^= x >> 13;
    return x % 5 ? x % 4000 + 8 : x % (LARGEST - 8) + 8;
}

static uint8_t byte_of(uint32_t step, uint32_t offset)
{
    return (uint8_t)(step * 131 + offset * 7 + (offset >> 8));
}

static void fill(uint8_t *at, uint32_t length, uint32_t step)
{
    for (uint32_t i = 0; i < length; i++)
        at[i] = byte_of(step, i);
}

static void check(const uint8_t *at, uint32_t length, uint32_t step, const char *what)
{
    for (uint32_t i = 0; i < length; i++)
        CHECK(at[i] == byte_of(step, i), "step %u: %s: byte %u of %u is wrong", step, what, i, length);
}

/* Waits for as long as it takes. */
static struct ibv_wc next(struct ibv_cq *cq)
{
    struct ibv_wc wc;

    while (ibv_poll_cq(cq, 1, &wc) == 0)
        usleep(50);
    return wc;
}

static void respond(struct pair *pair, struct area *area, const struct ibv_mr *mr)
{
    struct ibv_recv_wr *bad;

    fill(area->constant, LARGEST, 77);
    for (uint32_t step = 0; step < STEPS; step++) {
        struct ibv_sge sge = {.addr = (uintptr_t)area->slots[step], .length = LARGEST, .lkey = mr->lkey};
        struct ibv_recv_wr wr = {.wr_id = step, .sg_list = &sge, .num_sge = 1};

        CHECK(!ibv_post_recv(pair->own.qp, &wr, &bad), "ibv_post_recv");
    }
    pair_meet(pair);
    for (uint32_t step = 0;; step++) {
        struct ibv_wc wc = next(pair->own.cq);

        if (wc.status != IBV_WC_SUCCESS) {
            printf("receive: %s\n", ibv_wc_status_str(wc.status));
            return;
        }
        CHECK((wc.imm_data & ~(uint32_t)LAST) == step, "message %u came where %u was due", wc.imm_data, step);
        CHECK(wc.byte_len == length_of(step), "step %u: %u bytes", step, wc.byte_len);
        check(area->slots[step % STEPS], wc.byte_len, step, "SEND");
        check(area->written[step % PLACES], wc.byte_len, step, "WRITE");
        if (wc.imm_data & LAST) {
            pair_meet(pair);
            printf("%u messages right\n", step + 1);
            return;
        }
        struct ibv_sge sge = {.addr = (uintptr_t)area->slots[step % STEPS], .length = LARGEST, .lkey = mr->lkey};
        struct ibv_recv_wr wr = {.wr_id = step, .sg_list = &sge, .num_sge = 1};

        CHECK(!ibv_post_recv(pair->own.qp, &wr, &bad), "ibv_post_recv");
    }
}

static void post(struct pair *pair, struct area *area, const struct ibv_mr *mr, uint32_t step, bool last)
{
    const struct area *there = (const struct area *)(uintptr_t)pair->peer.addr;
    uint32_t length = length_of(step), slot = step % STEPS;
    struct ibv_sge sges[KINDS] = {
        {.addr = (uintptr_t)area->slots[slot], .length = length, .lkey = mr->lkey},
        {.addr = (uintptr_t)area->slots[slot], .length = length, .lkey = mr->lkey},
        {.addr = (uintptr_t)&area->found[slot], .length = 8, .lkey = mr->lkey},
        {.addr = (uintptr_t)area->read[slot], .length = length, .lkey = mr->lkey},
    };
    struct ibv_send_wr *bad, wrs[KINDS] = {
        {.opcode = IBV_WR_SEND_WITH_IMM, .imm_data = step | (last ? LAST : 0)},
        {.opcode = IBV_WR_RDMA_WRITE,
         .wr.rdma = {.remote_addr = (uintptr_t)there->written[step % PLACES], .rkey = pair->peer.rkey}},
        {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD,
         .wr.atomic = {.remote_addr = (uintptr_t)&there->counter, .rkey = pair->peer.rkey, .compare_add = 1}},
        {.opcode = IBV_WR_RDMA_READ, .wr.rdma = {.remote_addr = (uintptr_t)there->constant, .rkey = pair->peer.rkey}},
    };

    fill(area->slots[slot], length, step);
    /* The last SEND ends the responder: what needs it comes before. */
    for (int i = 0; i < KINDS; i++) {
        int kind = (i + 1) % KINDS;

        wrs[kind].wr_id = step * KINDS + (uint32_t)i;
        wrs[kind].sg_list = &sges[kind];
        wrs[kind].num_sge = 1;
        wrs[kind].send_flags = IBV_SEND_SIGNALED;
        CHECK(!ibv_post_send(pair->own.qp, &wrs[kind], &bad), "ibv_post_send");
    }
}

static bool input_open(void)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;

    return poll(&input, 1, 0) == 0 || read(0, &byte, 1) > 0;
}

static void request(struct pair *pair, struct area *area, const struct ibv_mr *mr)
{
    uint32_t posted = 0, completed = 0;
    bool ending = false;

    pair_meet(pair);
    printf("ready\n");
    fflush(stdout);
    while (!ending || completed < posted * KINDS) {
        while (!ending && posted - completed / KINDS < STEPS) {
            ending = !input_open();
            post(pair, area, mr, posted++, ending);
        }
        struct ibv_wc wc = next(pair->own.cq);

        if (wc.status != IBV_WC_SUCCESS) {
            uint32_t left = posted * KINDS - completed - 1;

            printf("%s\n", ibv_wc_status_str(wc.status));
            for (uint32_t i = 0; i < left; i++) {
                wc = next(pair->own.cq);
                CHECK(wc.status == IBV_WC_WR_FLUSH_ERR, "%s after an error", ibv_wc_status_str(wc.status));
            }
            return;
        }
        CHECK(wc.wr_id == completed, "WR %lu completed where %u was due", (unsigned long)wc.wr_id, completed);
        uint32_t step = completed / KINDS;

        if (completed % KINDS == 1)
            CHECK(area->found[step % STEPS] == step, "step %u: the counter was %lu", step,
                  (unsigned long)area->found[step % STEPS]);
        if (completed % KINDS == 2)
            check(area->read[step % STEPS], length_of(step), 77, "READ");
        completed++;
    }
    pair_meet(pair);
    printf("%u steps right\n", posted);
}

int main(int argc, char **argv)
{
    struct pair pair;
    struct area *area = aligned_alloc(4096, (sizeof(*area) + 4095) & ~4095ul);

    CHECK(area, "memory");
    memset(area, 0, sizeof(*area));
    pair_open(&pair, argc, argv, 0);
    struct ibv_mr *mr = ibv_reg_mr(pair.own.pd, area, sizeof(*area), ALL);

    CHECK(mr, "ibv_reg_mr");
    pair_exchange(&pair, area, mr->rkey);
    if (pair.server)
        respond(&pair, area, mr);
    else
        request(&pair, area, mr);
    return 0;
}
