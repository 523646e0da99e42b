/* SPDX-License-Identifier: Apache-2.0 */
/* Memory regions: registration, rights, overlap, change and end. */
#include <sys/mman.h>

#include "suite.h"

TEST(what_it_says, SOLO, "a region carries what it was registered with, and its keys differ from those of others", "struct ibv_mr; man ibv_reg_mr")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_mr *other = reg(e, e->memory + 100, 1000, ALL_ACCESS);

    CHECK(other->addr == e->memory + 100 && other->length == 1000 && other->pd == e->pd && other->context == e->context);
    CHECK(other->lkey != e->mr->lkey && other->rkey != e->mr->rkey);
}

TEST(remote_write_needs_local_write, SOLO, "REMOTE_WRITE or REMOTE_ATOMIC without LOCAL_WRITE is refused: EINVAL", "man ibv_reg_mr; IBTA 10.6.3.1")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    NO_OBJECT(ibv_reg_mr(e->pd, e->memory, 4096, IBV_ACCESS_REMOTE_WRITE), EINVAL);
    NO_OBJECT(ibv_reg_mr(e->pd, e->memory, 4096, IBV_ACCESS_REMOTE_ATOMIC), EINVAL);
    reg(e, e->memory, 4096, IBV_ACCESS_REMOTE_READ);
    reg(e, e->memory, 4096, 0);
}

TEST(memory_that_is_not_there, SOLO, "memory that isn't mapped can't be registered: EFAULT", "man ibv_reg_mr; get_user_pages")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    uint8_t *memory = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED && munmap(memory + 8192, 8192) == 0);
    int access = ALL_ACCESS;

    NO_OBJECT(ibv_reg_mr(e->pd, NULL, 4096, access), EFAULT);
    NO_OBJECT(ibv_reg_mr(e->pd, memory, 16384, access), EFAULT);
    reg(e, memory, 8192, access);
}

TEST(memory_that_is_read_only, SOLO, "read-only memory can be registered for reading only: else EFAULT", "man ibv_reg_mr; get_user_pages")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    void *memory = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED);
    NO_OBJECT(ibv_reg_mr(e->pd, memory, 8192, IBV_ACCESS_LOCAL_WRITE), EFAULT);
}

TEST(too_large, SOLO, "a region that wraps around or is larger than the address space is refused", "man ibv_reg_mr; ibv_query_device: max_mr_size")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    errno = 0;
    CHECK(!ibv_reg_mr(e->pd, e->memory, SIZE_MAX, ALL_ACCESS));
    CHECK(errno == EINVAL || errno == EFAULT || errno == ENOMEM);
    errno = 0;
    CHECK(!ibv_reg_mr(e->pd, e->memory, 1ull << 47, ALL_ACCESS));
    CHECK(errno == EINVAL || errno == EFAULT || errno == ENOMEM);
}

TEST(odd_addresses, BOTH, "a region may begin and end at any byte", "IBTA 10.6.3; man ibv_reg_mr")
{
    connect_rc(e);
    struct ibv_mr *mr = reg(e, e->memory + 4095, 3, ALL_ACCESS);

    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 3, .to = 4095);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 4, .to = 4095);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    } else {
        await_state(e, e->qp, IBV_QPS_ERR);
        ARRIVED(4095, 3, 0);
        UNTOUCHED(0, 4095);
        UNTOUCHED(4098, 64);
    }
    meet(e);
}

TEST(overlap, BOTH, "regions may overlap; deregistering one leaves the others", "IBTA 10.6.3.3")
{
    connect_rc(e);
    struct ibv_mr *low = reg(e, e->memory, 8192, ALL_ACCESS), *high = reg(e, e->memory + 4096, 8192, ALL_ACCESS);
    uint32_t keys[2] = {low->rkey, high->rkey}, theirs[2];

    exchange(e, keys, theirs, sizeof(keys));
    if (!e->first)
        DO(drop(e, low));
    DO(drop(e, e->mr));
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 4096, .lkey = low->lkey, .to = 4096, .rkey = theirs[1]);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        ARRIVED(4096, 4096, 0);
}

TEST(at_another_address, BOTH, "a region registered with an IO virtual address is reached at that address, locally and remotely", "man ibv_reg_mr: ibv_reg_mr_iova")
{
    enum { OFFSET = 0x1000 };
    uint64_t iova = 0x7000000000ull + OFFSET;

    connect_rc(e);
    struct ibv_mr *mr = MADE(ibv_reg_mr_iova(e->pd, e->memory + OFFSET, 65536, iova, ALL_ACCESS), ibv_dereg_mr);

    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        struct ibv_sge sge = {iova + 5, 3000, mr->lkey};

        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .sges = &sge, .sge_count = 1, .to = iova + 100 - e->peer.memory);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(OFFSET + 100, 3000, OFFSET + 5);
        UNTOUCHED(0, OFFSET + 100);
    }
    meet(e);
    /* Its ordinary address is nothing to this key. */
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8, .to = OFFSET);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
}

TEST(zero_based, BOTH, "a zero-based region is reached from address 0 on", "man ibv_reg_mr: IBV_ACCESS_ZERO_BASED")
{
    connect_rc(e);
    int access = ALL_ACCESS | IBV_ACCESS_ZERO_BASED;
    struct ibv_mr *mr = reg(e, e->memory + 100, 4096, access);

    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        struct ibv_sge sge = {10, 64, mr->lkey};

        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .sges = &sge, .sge_count = 1, .to = 20 - e->peer.memory);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(120, 64, 110);
        UNTOUCHED(0, 120);
    }
}

TEST(relaxed_ordering, BOTH, "relaxed ordering may be asked for of any device", "man ibv_reg_mr: IBV_ACCESS_RELAXED_ORDERING (optional)")
{
    connect_rc(e);
    int access = ALL_ACCESS | IBV_ACCESS_RELAXED_ORDERING;
    struct ibv_mr *mr = reg(e, e->memory, MEMORY, access);

    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 5000, .lkey = mr->lkey);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 5000, 0);
}

/* ---- rereg ------------------------------------------------------------------------------ */

TEST(rereg_access, BOTH, "ibv_rereg_mr changes the rights of a region", "man ibv_rereg_mr: IBV_REREG_MR_CHANGE_ACCESS")
{
    connect_rc(e);
    struct ibv_mr *mr = reg(e, e->memory, MEMORY, IBV_ACCESS_LOCAL_WRITE);

    DO(ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, ALL_ACCESS));
    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    DO(ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, IBV_ACCESS_LOCAL_WRITE));
    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64, .to = 4096);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(64, MEMORY - 64);
}

TEST(rereg_translation, BOTH, "ibv_rereg_mr moves a region to other memory", "man ibv_rereg_mr: IBV_REREG_MR_CHANGE_TRANSLATION")
{
    connect_rc(e);
    struct ibv_mr *mr = reg(e, e->memory, 4096, ALL_ACCESS);

    DO(ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_TRANSLATION, NULL, e->memory + 8192, 4096, 0));
    CHECK(mr->addr == e->memory + 8192 && mr->length == 4096);
    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64, .to = 8192);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(8192, 64, 0);
        UNTOUCHED(0, 8192);
    }
}

TEST(rereg_pd, BOTH, "ibv_rereg_mr moves a region to another PD", "man ibv_rereg_mr: IBV_REREG_MR_CHANGE_PD")
{
    connect_rc(e);
    struct ibv_pd *other = MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
    struct ibv_mr *mr = MADE(ibv_reg_mr(other, e->memory, MEMORY, ALL_ACCESS), ibv_dereg_mr);

    DO(ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_PD, e->pd, NULL, 0, 0));
    CHECK(mr->pd == e->pd);
    REFUSED(ibv_dealloc_pd(e->pd), EBUSY);
    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(rereg_nonsense, SOLO, "ibv_rereg_mr refuses flags that there aren't, and the region stays", "man ibv_rereg_mr: IBV_REREG_MR_ERR_INPUT")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    errno = 0;
    int error = ibv_rereg_mr(e->mr, 0x40, NULL, NULL, 0, 0);

    if (lacking(errno))
        SKIP("ibv_rereg_mr: %s", strerror(errno));
    CHECK(error == IBV_REREG_MR_ERR_INPUT && errno == EINVAL);
}

/* ---- many, and again ------------------------------------------------------------------------ */

TEST(again_and_again, BOTH, "registering and deregistering the same memory keeps what is in it, and old keys stay dead", "man ibv_reg_mr, ibv_dereg_mr")
{
    connect_rc(e);
    uint32_t key = 0;

    for (int round = 0; round < 200; round++) {
        struct ibv_mr *mr = ibv_reg_mr(e->pd, e->memory, MEMORY, ALL_ACCESS);

        CHECK(mr && mr->rkey != key);
        key = mr->rkey;
        DO(ibv_dereg_mr(mr));
    }
    if (e->first)
        ARRIVED(0, MEMORY, 0);
    else
        UNTOUCHED(0, MEMORY);
    exchange(e, &key, &e->peer.rkey, sizeof(key));
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
}

TEST(reused_address, BOTH, "memory that was unmapped and mapped anew at the same address is registered afresh", "man ibv_reg_mr")
{
    connect_rc(e);
    uint8_t *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED);
    for (int round = 0; round < 5; round++) {
        struct ibv_mr *mr = reg(e, memory, 65536, ALL_ACCESS);
        struct address peer, own = {.memory = (uintptr_t)memory, .rkey = mr->rkey};

        for (int i = 0; i < 65536; i += 4096)
            EQUAL(memory[i], 0);
        exchange(e, &own, &peer, sizeof(own));
        if (e->first) {
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 65536, .to = peer.memory - e->peer.memory, .rkey = peer.rkey);
            EXPECT(1, IBV_WC_SUCCESS);
        }
        meet(e);
        if (!e->first)
            for (unsigned i = 0; i < 65536; i++)
                EQUAL(memory[i], pattern(i));
        meet(e);
        DO(drop(e, mr));
        CHECK(munmap(memory, 65536) == 0 && mmap(memory, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
    }
    munmap(memory, 65536);
}
