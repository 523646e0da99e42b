/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that a process has by other ways than asking for it: stacks, mapped files. A region is a region. */
#include <netinet/in.h>
#include <sys/mman.h>
#include <unistd.h>

#include "suite.h"

enum { GRH = 40, LENGTH = 1000, QKEY = 0x11111111 };

/* Filled like e->memory of the first end from `from` on. */
static void fill(uint8_t *at, uint32_t length, uint64_t from)
{
    for (uint32_t i = 0; i < length; i++)
        at[i] = pattern(from + i);
}

static bool holds(const uint8_t *at, uint32_t length, uint64_t from)
{
    for (uint32_t i = 0; i < length; i++)
        if (at[i] != pattern(from + i))
            return false;
    return true;
}

static struct ibv_ah *connect_ud(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_UD);

    connect_as(e, &plan);
    struct ibv_ah_attr attr = path_to(e, &e->peer.gid);

    return MADE(ibv_create_ah(e->pd, &attr), ibv_destroy_ah);
}

static void receive_into(struct end *e, uint64_t wr_id, struct ibv_sge *sges, int count)
{
    struct ibv_recv_wr wr = {.wr_id = wr_id, .sg_list = sges, .num_sge = count}, *bad;

    DO(ibv_post_recv(e->qp, &wr, &bad));
}

TEST(datagram_from_stack, BOTH, "a datagram may come from a stack, in several pieces, beside others", "man ibv_reg_mr; IBTA 10.6.3")
{
    struct ibv_ah *ah = connect_ud(e);
    uint8_t stack[2 * LENGTH];
    struct ibv_mr *mr = reg(e, stack, sizeof(stack), IBV_ACCESS_LOCAL_WRITE);
    struct ibv_sge pieces[] = {{(uintptr_t)stack + 100, 300, mr->lkey},
                               {(uintptr_t)e->memory + 400, 200, e->mr->lkey},
                               {(uintptr_t)stack + 600, LENGTH - 500, mr->lkey}};

    for (uint32_t i = 0; !e->first && i < 3; i++)
        RECEIVE(i, 4096 * i, 4096);
    meet(e);
    if (e->first) {
        fill(stack, sizeof(stack), 0);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .sges = pieces, .sge_count = 3);
        ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = 2, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .imm = 5, .sges = pieces, .sge_count = 1);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 3, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .from = 7, .length = 64);
        for (uint64_t i = 1; i <= 3; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(0, IBV_WC_SUCCESS).byte_len, LENGTH + GRH);
        ARRIVED(GRH, LENGTH, 100);
        struct ibv_wc wc = EXPECT(1, IBV_WC_SUCCESS);

        EQUAL(wc.byte_len, 300 + GRH);
        EQUAL(ntohl(wc.imm_data), 5);
        ARRIVED(4096 + GRH, 300, 100);
        EXPECT(2, IBV_WC_SUCCESS);
        ARRIVED(8192 + GRH, 64, 7);
    }
    meet(e);
}

TEST(datagram_into_stack, BOTH, "datagrams that go into a stack arrive whole, and complete in the order of their receives", "man ibv_reg_mr; IBTA 10.6.3, 10.8.3")
{
    enum { COUNT = 48, SLOT = LENGTH + GRH };
    struct ibv_ah *ah = connect_ud(e);
    uint8_t stack[COUNT / 2 * SLOT];

    memset(stack, 0x55, sizeof(stack));
    struct ibv_mr *mr = reg(e, stack, sizeof(stack), IBV_ACCESS_LOCAL_WRITE);

    /* Every other one goes to the usual memory, and the header of each there. */
    for (uint32_t i = 0; !e->first && i < COUNT; i++) {
        struct ibv_sge sges[] = {{(uintptr_t)e->memory + i * SLOT, GRH, e->mr->lkey},
                                 {i % 2 ? (uintptr_t)e->memory + i * SLOT + GRH : (uintptr_t)stack + i / 2 * SLOT, LENGTH,
                                  i % 2 ? e->mr->lkey : mr->lkey}};

        receive_into(e, i, sges, 2);
    }
    meet(e);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t length = i == 0 ? 1 : LENGTH - i;

        if (e->first) {
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .from = i, .length = length);
        } else {
            struct ibv_wc wc = EXPECT(i, IBV_WC_SUCCESS);

            EQUAL(wc.byte_len, length + GRH);
            EQUAL(wc.src_qp, e->peer.qp_num);
            if (i % 2)
                ARRIVED(i * SLOT + GRH, length, i);
            else
                CHECK(holds(stack + i / 2 * SLOT, length, i) && stack[i / 2 * SLOT + length] == 0x55);
        }
    }
    for (uint32_t i = 0; e->first && i < COUNT; i++)
        EXPECT(i, IBV_WC_SUCCESS);
    meet(e);
}

static void needs_atomics(struct end *e)
{
    if (e->device.atomic_cap == IBV_ATOMIC_NONE)
        SKIP("atomic_cap: IBV_ATOMIC_NONE");
}

TEST(atomic_result_on_stack, BOTH, "the result of an atomic may go to a stack", "IBTA 9.4.5; man ibv_reg_mr")
{
    needs_atomics(e);
    connect_rc(e);
    uint64_t result[2] = {0, 0x5555555555555555}, start = 37;
    struct ibv_mr *mr = reg(e, result, sizeof(result), IBV_ACCESS_LOCAL_WRITE);
    struct ibv_sge sge = {(uintptr_t)result, 8, mr->lkey};

    if (!e->first)
        memcpy(e->memory + 64, &start, sizeof(start));
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 1, .sges = &sge, .sge_count = 1, .to = 64, .compare_add = 5);
        EXPECT(1, IBV_WC_SUCCESS);
        EQUAL(result[0], 37);
        ASK(.opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .wr_id = 2, .sges = &sge, .sge_count = 1, .to = 64, .compare_add = 42, .swap = 1);
        EXPECT(2, IBV_WC_SUCCESS);
        EQUAL(result[0], 42);
        EQUAL(result[1], 0x5555555555555555);
    }
    meet(e);
}

/* The second end's words lie in memory that it has registered; words[1] and words[2] must be 0. */
static void atomics_on(struct end *e, uint64_t *words)
{
    enum { ROUNDS = 200 };
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_mr *mr = reg(e, words, 4 * sizeof(*words), ALL_ACCESS);
    struct address mine = {.memory = (uintptr_t)words, .rkey = mr->rkey}, theirs;
    struct ibv_qp *other = create_qp(e, &plan);

    join(e, other, &plan);
    exchange(e, &mine, &theirs, sizeof(mine));
    uint64_t to = theirs.memory - e->peer.memory;

    if (e->first) {
        ASK(.opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .wr_id = 1, .length = 8, .to = to + 8, .rkey = theirs.rkey, .compare_add = 1, .swap = 7);
        EXPECT(1, IBV_WC_SUCCESS);
        CHECK(*(uint64_t *)e->memory == 0);
        ASK(.opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .wr_id = 2, .length = 8, .to = to + 8, .rkey = theirs.rkey, .compare_add = 0, .swap = 7);
        EXPECT(2, IBV_WC_SUCCESS);
        CHECK(*(uint64_t *)e->memory == 0);
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 3, .length = 8, .to = to + 8, .rkey = theirs.rkey, .compare_add = (uint64_t)-8);
        EXPECT(3, IBV_WC_SUCCESS);
        CHECK(*(uint64_t *)e->memory == 7);
        /* Two QPs at once add to one word: no addition is lost. */
        for (uint32_t i = 0; i < ROUNDS; i++) {
            ASK(.qp = i % 2 ? other : e->qp, .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = i, .from = 8 * (i % 2), .length = 8, .to = to + 16, .rkey = theirs.rkey, .compare_add = 1);
            if (i % 2)
                for (int n = 0; n < 2; n++)
                    EQUAL(next_wc(e, e->cq).status, IBV_WC_SUCCESS);
        }
    }
    meet(e);
    if (!e->first) {
        CHECK(words[0] == 0x5555555555555555 && words[3] == 0x5555555555555555);
        CHECK(words[1] == (uint64_t)-1);
        EQUAL(words[2], ROUNDS);
    }
    meet(e);
}

TEST(atomic_on_stack, BOTH, "the word of an atomic may lie on a stack; atomics of the device don't lose each other's", "IBTA 9.4.5, 10.2.8; man ibv_query_device: IBV_ATOMIC_HCA")
{
    uint64_t words[4] = {0x5555555555555555, 0, 0, 0x5555555555555555};

    needs_atomics(e);
    connect_rc(e);
    atomics_on(e, words);
}

TEST(atomic_in_file, BOTH, "the word of an atomic may lie in a mapped file", "IBTA 9.4.5; man ibv_reg_mr")
{
    char name[] = "./sluice-conformance-XXXXXX";

    needs_atomics(e);
    connect_rc(e);
    int fd = mkstemp(name);

    CHECK(fd >= 0 && unlink(name) == 0 && ftruncate(fd, 4096) == 0);
    uint64_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    close(fd);
    CHECK(words != MAP_FAILED);
    words[0] = words[3] = 0x5555555555555555;
    atomics_on(e, words);
}
