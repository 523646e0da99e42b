/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every byte of WRITE, READ, SEND (with and without immediate data, inline, by
 * scatter/gather lists of up to 29 pieces, by ibv_post_send and by ibv_wr_*) and of
 * atomics arrives where it should, and no byte beside it changes.
 *
 *     bytes PORT            the responder, which checks what arrives
 *     bytes PORT client     the requester
 *
 * BYTES_ON=stack in the environment of both: their memory is a stack, which only their own process reaches. Then
 * atomics are such against each other, not against its processor (IBV_ATOMIC_HCA), and words may be torn.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "pair.h"

#define GIB (1ull << 30)
#define AREA (2ull << 20) /* each side's buffer: the largest message and its surroundings */
#define BIG (GIB / 1024 + 1)

static const uint32_t sizes[] = {0, 1, 7, 8, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, BIG};
enum { SIZES = sizeof(sizes) / sizeof(*sizes), GUARD = 64 };

enum operation { WRITE, WRITE_IMM, READ, SEND, SEND_IMM, OPERATIONS };
enum path { CLASSIC, EXTENDED, PATHS };
enum shape { WHOLE, PIECES, INLINE, SHAPES };

static const uint64_t extended_ops = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM |
                                     IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM |
                                     IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP |
                                     IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;

static const enum ibv_wr_opcode opcodes[OPERATIONS] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM,
                                                       IBV_WR_RDMA_READ, IBV_WR_SEND, IBV_WR_SEND_WITH_IMM};

static bool on_stack;

/* The byte at an offset in the message of a step. */
static uint8_t pattern(uint32_t step, uint32_t offset)
{
    return (uint8_t)(offset * 31 + (offset >> 8) * 7 + step * 101 + 13);
}

static void fill(uint8_t *at, uint32_t length, uint32_t step)
{
    for (uint32_t i = 0; i < length; i++)
        at[i] = pattern(step, i);
}

static void check(const uint8_t *at, uint32_t length, uint32_t step, const char *what)
{
    for (uint32_t i = 0; i < length; i++)
        CHECK(at[i] == pattern(step, i), "step %u, %s: byte %u of %u is wrong", step, what, i, length);
    for (int i = 1; i <= GUARD; i++)
        CHECK(at[-i] == 0xee && at[length + (uint32_t)i - 1] == 0xee, "step %u, %s: a byte %d beside it changed",
              step, what, i);
}

/* A list of uneven pieces, some of them empty, that covers a buffer. */
static int cut(struct ibv_sge *sges, uint8_t *at, uint32_t length, uint32_t lkey, enum shape shape)
{
    int count = 0;

    if (shape != PIECES) {
        sges[0] = (struct ibv_sge){.addr = (uintptr_t)at, .length = length, .lkey = lkey};
        return 1;
    }
    for (uint32_t done = 0; count < 29; count++) {
        uint32_t piece = count == 28 ? length - done : count % 5 == 3 ? 0 : length / 40 * (uint32_t)(1 + count % 2) + 1;

        if (piece > length - done)
            piece = length - done;
        sges[count] = (struct ibv_sge){.addr = (uintptr_t)at + done, .length = piece, .lkey = lkey};
        done += piece;
    }
    return count;
}

static void post_classic(struct pair *pair, enum operation operation, struct ibv_sge *sges, int count,
                         uint64_t remote, uint32_t step, bool in_line)
{
    struct ibv_send_wr *bad, wr = {
        .wr_id = step,
        .sg_list = sges,
        .num_sge = count,
        .opcode = opcodes[operation],
        .send_flags = IBV_SEND_SIGNALED | (in_line ? IBV_SEND_INLINE : 0),
        .imm_data = htonl(step),
        .wr.rdma = {.remote_addr = remote, .rkey = pair->peer.rkey},
    };

    CHECK(!ibv_post_send(pair->own.qp, &wr, &bad), "step %u: ibv_post_send", step);
}

static void post_extended(struct pair *pair, enum operation operation, struct ibv_sge *sges, int count,
                          uint64_t remote, uint32_t step, bool in_line)
{
    struct ibv_qp_ex *qp = ibv_qp_to_qp_ex(pair->own.qp);

    ibv_wr_start(qp);
    qp->wr_id = step;
    qp->wr_flags = IBV_SEND_SIGNALED;
    switch (operation) {
    case WRITE:
        ibv_wr_rdma_write(qp, pair->peer.rkey, remote);
        break;
    case WRITE_IMM:
        ibv_wr_rdma_write_imm(qp, pair->peer.rkey, remote, htonl(step));
        break;
    case READ:
        ibv_wr_rdma_read(qp, pair->peer.rkey, remote);
        break;
    case SEND:
        ibv_wr_send(qp);
        break;
    default:
        ibv_wr_send_imm(qp, htonl(step));
    }
    if (in_line)
        ibv_wr_set_inline_data(qp, (void *)(uintptr_t)sges->addr, sges->length);
    else
        ibv_wr_set_sge_list(qp, (size_t)count, sges);
    CHECK(!ibv_wr_complete(qp), "step %u: ibv_wr_complete", step);
}

static bool consumes_receive(enum operation operation)
{
    return operation == WRITE_IMM || operation == SEND || operation == SEND_IMM;
}

static void request(struct pair *pair, enum operation operation, enum path path, enum shape shape, uint8_t *own,
                    uint64_t remote, uint32_t size, uint32_t lkey, uint32_t step)
{
    struct ibv_sge sges[29];

    if (operation == READ)
        memset(own - GUARD, 0xee, size + 2 * GUARD);
    else
        fill(own, size, step);
    int count = cut(sges, own, size, lkey, shape);

    pair_meet(pair);
    (path == CLASSIC ? post_classic : post_extended)(pair, operation, sges, count, remote, step, shape == INLINE);
    if (shape == INLINE)
        memset(own, 0, size); /* the bytes were taken when posted */
    struct ibv_wc wc = wait_completion(pair->own.cq);

    CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id == step, "step %u: %s", step, ibv_wc_status_str(wc.status));
    if (operation == READ)
        check(own, size, step, "read");
    pair_meet(pair);
}

static void respond(struct pair *pair, enum operation operation, enum shape shape, uint8_t *own, uint32_t size,
                    uint32_t lkey, uint32_t step)
{
    struct ibv_sge sges[29];
    struct ibv_recv_wr *bad, wr = {.wr_id = step, .sg_list = sges};

    if (operation == READ)
        fill(own, size, step);
    else
        memset(own - GUARD, 0xee, size + 2 * GUARD);
    wr.num_sge = operation == WRITE_IMM ? 0 : cut(sges, own, size, lkey, shape);
    if (consumes_receive(operation))
        CHECK(!ibv_post_recv(pair->own.qp, &wr, &bad), "ibv_post_recv");
    pair_meet(pair);
    if (consumes_receive(operation)) {
        struct ibv_wc wc = wait_completion(pair->own.cq);

        CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id == step && wc.byte_len == size, "step %u: receive", step);
        if (operation != SEND)
            CHECK((wc.wc_flags & IBV_WC_WITH_IMM) && wc.imm_data == htonl(step), "step %u: immediate", step);
        check(own, size, step, "received");
    }
    pair_meet(pair);
    if (operation == WRITE)
        check(own, size, step, "written");
}

/* All operations between these two places. */
static uint32_t transfers(struct pair *pair, uint8_t *own, uint64_t remote, uint32_t lkey, uint32_t step)
{
    for (enum operation operation = 0; operation < OPERATIONS; operation++)
        for (enum path path = 0; path < PATHS; path++)
            for (enum shape shape = 0; shape < SHAPES; shape++)
                for (int i = 0; i < SIZES; i++, step++) {
                    if (shape == INLINE && (operation == READ || sizes[i] > 256))
                        continue;
                    if (pair->server)
                        respond(pair, operation, shape, own, sizes[i], lkey, step);
                    else
                        request(pair, operation, path, shape, own, remote, sizes[i], lkey, step);
                }
    return step;
}

/* The word before and after: fetch-add and compare-and-swap, by both post paths. */
static void atomics(struct pair *pair, uint64_t *own, uint64_t remote, uint32_t lkey)
{
    struct ibv_sge sge = {.addr = (uintptr_t)own, .length = 8, .lkey = lkey};
    uint64_t word = 5;

    *own = 5;
    pair_meet(pair);
    if (!pair->server) {
        for (int i = 0; i < 100; i++) {
            bool add = i % 3 == 0, fits = i % 3 == 1;
            uint64_t compare = fits ? word : word + 1, operand = 0x100000001ull * (unsigned)i;

            if (i % 2) {
                struct ibv_qp_ex *qp = ibv_qp_to_qp_ex(pair->own.qp);

                ibv_wr_start(qp);
                qp->wr_flags = IBV_SEND_SIGNALED;
                if (add)
                    ibv_wr_atomic_fetch_add(qp, pair->peer.rkey, remote, operand);
                else
                    ibv_wr_atomic_cmp_swp(qp, pair->peer.rkey, remote, compare, operand);
                ibv_wr_set_sge(qp, lkey, sge.addr, 8);
                CHECK(!ibv_wr_complete(qp), "ibv_wr_complete");
            } else {
                struct ibv_send_wr *bad, wr = {
                    .sg_list = &sge,
                    .num_sge = 1,
                    .opcode = add ? IBV_WR_ATOMIC_FETCH_AND_ADD : IBV_WR_ATOMIC_CMP_AND_SWP,
                    .send_flags = IBV_SEND_SIGNALED,
                    .wr.atomic = {.remote_addr = remote, .rkey = pair->peer.rkey,
                                  .compare_add = add ? operand : compare, .swap = operand},
                };
                CHECK(!ibv_post_send(pair->own.qp, &wr, &bad), "ibv_post_send");
            }
            struct ibv_wc wc = wait_completion(pair->own.cq);

            CHECK(wc.status == IBV_WC_SUCCESS && wc.byte_len == 8, "atomic %d: %s", i, ibv_wc_status_str(wc.status));
            CHECK(*own == word, "atomic %d returned %lx, not %lx", i, (long)*own, (long)word);
            word = add ? word + operand : fits ? operand : word;
        }
    }
    pair_meet(pair);
    if (on_stack)
        return;
    /* Both sides and the responder's own processor add to one word. */
    enum { ADDS = 2000 };
    uint64_t *target = pair->server ? own + 1 : own;

    if (pair->server)
        *target = 0;
    pair_meet(pair);
    for (int i = 0; i < ADDS; i++) {
        if (pair->server) {
            __atomic_fetch_add(target, 1, __ATOMIC_RELAXED);
            continue;
        }
        struct ibv_send_wr *bad, wr = {
            .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .send_flags = IBV_SEND_SIGNALED,
            .wr.atomic = {.remote_addr = remote + 8, .rkey = pair->peer.rkey, .compare_add = 1},
        };
        CHECK(!ibv_post_send(pair->own.qp, &wr, &bad), "ibv_post_send");
        CHECK(wait_completion(pair->own.cq).status == IBV_WC_SUCCESS, "fetch-add");
    }
    pair_meet(pair);
    if (pair->server)
        CHECK(*target == 2 * ADDS, "%lu additions of %d", (long)*target, 2 * ADDS);
}

/* Who sees the last byte sees all; an aligned word is never half old, half new. */
static void order(struct pair *pair, uint8_t *own, uint64_t remote, uint32_t lkey)
{
    enum { ROUNDS = 2000, LENGTH = 3001, WORDS = 512 };

    memset(own, 0, 8192);
    pair_meet(pair);
    for (int round = 1; round <= ROUNDS; round++) {
        uint8_t mark = (uint8_t)(round % 255 + 1);

        if (pair->server) {
            volatile uint8_t *last = own + LENGTH - 1;

            while (*last != mark)
                ;
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            for (int i = 0; i < LENGTH; i++)
                CHECK(own[i] == mark, "round %d: byte %d came after the last one", round, i);
        } else {
            struct ibv_sge sge = {.addr = (uintptr_t)own, .length = LENGTH, .lkey = lkey};

            memset(own, mark, LENGTH);
            post_classic(pair, WRITE, &sge, 1, remote, (uint32_t)round, false);
            CHECK(wait_completion(pair->own.cq).status == IBV_WC_SUCCESS, "write");
        }
        pair_meet(pair);
    }
    if (on_stack)
        return;
    uint64_t *words = (uint64_t *)(own + 4096);

    for (int round = 0; round < ROUNDS && !pair->server; round++) {
        /* From an odd address, so that words of the source and of the destination don't coincide. */
        struct ibv_sge sge = {.addr = (uintptr_t)own + 1, .length = WORDS * 8, .lkey = lkey};

        memset(own, round & 1 ? 0xff : 0, WORDS * 8 + 1);
        post_classic(pair, WRITE, &sge, 1, remote + 4096, (uint32_t)round, false);
        CHECK(wait_completion(pair->own.cq).status == IBV_WC_SUCCESS, "write");
    }
    for (int look = 0; look < 200000 && pair->server; look++) {
        uint64_t word = __atomic_load_n(&words[look % WORDS], __ATOMIC_RELAXED);

        CHECK(word == 0 || word == UINT64_MAX, "a torn word: %lx", (long)word);
    }
    pair_meet(pair);
}

/* A boundary of 1 GiB lies in the middle of the area; so do plenty of page boundaries. */
static uint8_t *area_on_heap(void)
{
    uint8_t *space = mmap(NULL, 3 * GIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    CHECK(space != MAP_FAILED, "mmap");
    return (uint8_t *)(((uintptr_t)space + 2 * GIB - 1) & ~(GIB - 1)) - AREA / 2;
}

int main(int argc, char **argv)
{
    uint8_t stack[AREA];
    const int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                       IBV_ACCESS_REMOTE_ATOMIC;
    struct pair pair;

    pair_open(&pair, argc, argv, extended_ops);
    on_stack = getenv("BYTES_ON") && !strcmp(getenv("BYTES_ON"), "stack");
    uint8_t *area = on_stack ? (uint8_t *)(((uintptr_t)stack + 7) & ~7ull) : area_on_heap();
    struct ibv_mr *mr = ibv_reg_mr(pair.own.pd, area, AREA - 8, access);

    CHECK(mr, "ibv_reg_mr");
    pair_exchange(&pair, area, mr->rkey);

    uint32_t step = 1;
    static const uint64_t places[] = {128, 4096 - 3, AREA / 2 - 33};

    for (unsigned i = 0; i < sizeof(places) / sizeof(*places); i++) {
        step = transfers(&pair, area + places[i], pair.peer.addr + places[i], mr->lkey, step);
        /* The two sides misaligned against each other. */
        uint64_t remote = pair.server ? places[i] + 5 : places[i] + 2;
        uint64_t theirs = pair.server ? places[i] + 2 : places[i] + 5;

        step = transfers(&pair, area + remote, pair.peer.addr + theirs, mr->lkey, step);
    }
    atomics(&pair, (uint64_t *)(area + 4096), pair.peer.addr + 4096, mr->lkey);
    order(&pair, area, pair.peer.addr, mr->lkey);
    CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
    end_close(&pair.own);
    printf("%u transfers, every byte right\n", step - 1);
    return 0;
}
