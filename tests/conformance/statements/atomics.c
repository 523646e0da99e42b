/* SPDX-License-Identifier: Apache-2.0 */
/* Atomic operations on 64-bit words of the responder. */
#include "suite.h"

static uint64_t word(const struct end *e, uint32_t at)
{
    uint64_t value;

    memcpy(&value, e->memory + at, sizeof(value));
    return value;
}

static void set_word(struct end *e, uint32_t at, uint64_t value)
{
    memcpy(e->memory + at, &value, sizeof(value));
}

static void needs_atomics(struct end *e)
{
    if (e->device.atomic_cap == IBV_ATOMIC_NONE)
        SKIP("atomic_cap: IBV_ATOMIC_NONE");
}

TEST(fetch_and_add, BOTH, "FETCH_ADD adds modulo 2^64 and brings the value from before", "IBTA 9.4.5.1")
{
    needs_atomics(e);
    connect_rc(e);
    if (!e->first)
        set_word(e, 64, UINT64_MAX - 4);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 1, .from = 8, .length = 8, .to = 64, .compare_add = 10);
        struct ibv_wc wc = EXPECT(1, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_FETCH_ADD);
        EQUAL(word(e, 8), UINT64_MAX - 4);
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 2, .from = 8, .length = 8, .to = 64, .compare_add = (uint64_t)-1);
        EXPECT(2, IBV_WC_SUCCESS);
        EQUAL(word(e, 8), 5);
    }
    meet(e);
    if (!e->first) {
        EQUAL(word(e, 64), 4);
        UNTOUCHED(0, 64);
        UNTOUCHED(72, 64);
    }
}

TEST(compare_and_swap, BOTH, "CMP_SWP stores only where the word equals, and brings the value from before either way", "IBTA 9.4.5.2")
{
    needs_atomics(e);
    connect_rc(e);
    if (!e->first)
        set_word(e, 64, 1000);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .wr_id = 1, .length = 8, .to = 64, .compare_add = 999, .swap = 7);
        EQUAL(EXPECT(1, IBV_WC_SUCCESS).opcode, IBV_WC_COMP_SWAP);
        EQUAL(word(e, 0), 1000);
        ASK(.opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .wr_id = 2, .from = 8, .length = 8, .to = 64, .compare_add = 1000, .swap = 7);
        EXPECT(2, IBV_WC_SUCCESS);
        EQUAL(word(e, 8), 1000);
        ASK(.opcode = IBV_WR_ATOMIC_CMP_AND_SWP, .wr_id = 3, .from = 16, .length = 8, .to = 64, .compare_add = 7, .swap = UINT64_MAX);
        EXPECT(3, IBV_WC_SUCCESS);
        EQUAL(word(e, 16), 7);
    }
    meet(e);
    if (!e->first)
        EQUAL(word(e, 64), UINT64_MAX);
}

TEST(misaligned, BOTH, "an atomic on an address that isn't a multiple of 8 is refused (EINVAL at once, or REM_INV_REQ_ERR), the word unchanged", "IBTA 9.4.5, 9.7.4.1.4")
{
    needs_atomics(e);
    connect_rc(e);
    if (e->first) {
        int error = ask(e, (struct request){.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 1, .length = 8, .to = 4, .compare_add = 1});

        if (error)
            EQUAL(error, EINVAL);
        else
            EXPECT(1, IBV_WC_REM_INV_REQ_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(beyond_the_region, BOTH, "an atomic beyond the region: REM_ACCESS_ERR", "IBTA 9.7.4.1.5")
{
    needs_atomics(e);
    connect_rc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 1, .length = 8, .to = MEMORY, .compare_add = 1);
        EXPECT(1, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
}

enum { ADDS = 2000 };

TEST(both_ends_add, BOTH, "atomics of several QPs on one word lose no addition", "IBTA 9.4.5, 10.2.8")
{
    needs_atomics(e);
    connect_rc(e);
    if (!e->first)
        set_word(e, 64, 0);
    /* Both ends aim at the answering end's word, it over a second connection back to itself. */
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp *qp = e->qp;

    if (!e->first) {
        struct ibv_qp *one = create_qp(e, &plan), *other = create_qp(e, &plan);

        join_here(e, one, other, &plan);
        qp = one;
    }
    meet(e);
    for (unsigned i = 0; i < ADDS; i += 32) {
        for (unsigned j = 0; j < 32; j++)
            ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .qp = qp, .wr_id = j, .from = 4096, .length = 8, .to = 64, .compare_add = 1,
                .quiet = j < 31);
        EXPECT(31, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        EQUAL(word(e, 64), 2 * (ADDS + 31) / 32 * 32);
}

TEST(cpus_add_too, BOTH, "with IBV_ATOMIC_GLOB an atomic is atomic against the responder's CPUs as well", "IBTA 10.2.8; man ibv_query_device: atomic_cap")
{
    if (e->device.atomic_cap != IBV_ATOMIC_GLOB)
        SKIP("atomic_cap isn't IBV_ATOMIC_GLOB");
    connect_rc(e);
    if (!e->first)
        set_word(e, 64, 0);
    meet(e);
    for (unsigned i = 0; i < ADDS; i++) {
        if (!e->first) {
            __atomic_fetch_add((uint64_t *)(void *)(e->memory + 64), 1, __ATOMIC_SEQ_CST);
            continue;
        }
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = i, .length = 8, .to = 64, .compare_add = 1);
        EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        EQUAL(word(e, 64), 2 * ADDS);
}

TEST(result_in_pieces, BOTH, "the value from before is scattered over the WR's SGEs", "IBTA 9.4.5, 10.7.3.2")
{
    needs_atomics(e);
    connect_rc(e);
    if (!e->first)
        set_word(e, 64, 0x0807060504030201ull);
    meet(e);
    if (e->first) {
        uint64_t base = (uintptr_t)e->memory;
        struct ibv_sge sges[2] = {{base, 3, e->mr->lkey}, {base + 100, 5, e->mr->lkey}};

        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 1, .to = 64, .sges = sges, .sge_count = 2);
        EXPECT(1, IBV_WC_SUCCESS);
        for (int i = 0; i < 8; i++)
            EQUAL(e->memory[i < 3 ? i : 97 + i], i + 1);
    }
    meet(e);
}

TEST(order_with_writes, BOTH, "an atomic is executed after the WRITEs before it and before those after it", "IBTA 9.5")
{
    needs_atomics(e);
    connect_rc(e);
    for (uint64_t i = 0; e->first && i < 20; i++) {
        set_word(e, 0, i * 100);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .length = 8, .to = 64);
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .quiet = true, .from = 8, .length = 8, .to = 64, .compare_add = 1);
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = i, .from = 16, .length = 8, .to = 64, .compare_add = 1);
        EXPECT(i, IBV_WC_SUCCESS);
        EQUAL(word(e, 8), i * 100);
        EQUAL(word(e, 16), i * 100 + 1);
    }
    meet(e);
}
