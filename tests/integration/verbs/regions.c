/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory regions: registered anew with every combination of flags, zero-based,
 * with each argument out of range; and what an application does to its memory
 * meanwhile. a's QP writes into memory that b's PD knows.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 16384, LOCAL = IBV_ACCESS_LOCAL_WRITE, ALL = LOCAL | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ };

static struct ibv_context *context;
static struct end a, b;
static uint8_t *source;
static struct ibv_mr *source_mr;

static void set_up(void)
{
    end_open(&a, context, 0);
    end_open(&b, context, 0);
    end_connect(&a, b.qp->qp_num, b.gid, 7, 12);
    end_connect(&b, a.qp->qp_num, a.gid, 7, 12);
    source_mr = ibv_reg_mr(a.pd, source, SIZE, ALL);
    CHECK(source_mr, "ibv_reg_mr");
}

static void tear_down(void)
{
    struct ibv_async_event event;
    int flags = fcntl(context->async_fd, F_GETFL);

    CHECK(!ibv_dereg_mr(source_mr), "ibv_dereg_mr");
    fcntl(context->async_fd, F_SETFL, flags | O_NONBLOCK);
    while (!ibv_get_async_event(context, &event))
        ibv_ack_async_event(&event);
    fcntl(context->async_fd, F_SETFL, flags);
    end_close(&a);
    end_close(&b);
}

static enum ibv_wc_status write_to(uint64_t remote, uint32_t length, uint32_t rkey)
{
    struct ibv_sge sge = {.addr = (uintptr_t)source, .length = length, .lkey = source_mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {remote, rkey}};

    CHECK(!ibv_post_send(a.qp, &wr, &bad), "ibv_post_send");
    return wait_completion(a.cq).status;
}

/* A QP in this PD, connected to itself, writes 8 bytes there. */
static enum ibv_wc_status loop_write(struct ibv_pd *pd, uint64_t remote, uint32_t rkey, uint8_t value)
{
    struct end end = {.context = context, .pd = pd, .cq = ibv_create_cq(context, 600, NULL, NULL, 0), .gid = a.gid};
    struct ibv_async_event event;
    int flags = fcntl(context->async_fd, F_GETFL);

    CHECK(end.cq, "ibv_create_cq");
    qp_open(&end, 0);
    end_connect(&end, end.qp->qp_num, a.gid, 7, 12);
    uint64_t bytes = 0x0101010101010101ull * value;
    struct ibv_sge sge = {.addr = (uintptr_t)&bytes, .length = 8};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE, .wr.rdma = {remote, rkey}};

    CHECK(!ibv_post_send(end.qp, &wr, &bad), "ibv_post_send");
    enum ibv_wc_status status = wait_completion(end.cq).status;

    fcntl(context->async_fd, F_SETFL, flags | O_NONBLOCK);
    while (!ibv_get_async_event(context, &event))
        ibv_ack_async_event(&event);
    fcntl(context->async_fd, F_SETFL, flags);
    CHECK(!ibv_destroy_qp(end.qp) && !ibv_destroy_cq(end.cq), "end");
    return status;
}

static void expect_write(struct ibv_pd *pd, struct ibv_mr *mr, uint8_t *memory, bool granted, const char *what)
{
    uint8_t before = memory[0], value = (uint8_t)(before + 1);
    enum ibv_wc_status status = loop_write(pd, (uintptr_t)memory, mr->rkey, value);

    CHECK(status == (granted ? IBV_WC_SUCCESS : IBV_WC_REM_ACCESS_ERR), "%s: %s", what, ibv_wc_status_str(status));
    CHECK(memory[0] == (granted ? value : before), "%s: memory", what);
}

static void test_rereg(void)
{
    uint8_t *first = calloc(1, SIZE), *second = calloc(1, 2 * SIZE);

    set_up();
    for (int flags = 1; flags < 8; flags++) {
        struct ibv_mr *mr = ibv_reg_mr(a.pd, first, SIZE, LOCAL);
        bool moves = flags & IBV_REREG_MR_CHANGE_TRANSLATION, other_pd = flags & IBV_REREG_MR_CHANGE_PD,
             more = flags & IBV_REREG_MR_CHANGE_ACCESS;

        CHECK(mr, "ibv_reg_mr");
        expect_write(a.pd, mr, first, false, "before");
        int result = ibv_rereg_mr(mr, flags, other_pd ? b.pd : NULL, moves ? second : NULL, moves ? 2 * SIZE : 0,
                                  more ? ALL : 0);

        CHECK(!result, "flags %d: %d, errno %d", flags, result, errno);
        CHECK(mr->pd == (other_pd ? b.pd : a.pd) && mr->addr == (moves ? second : first) &&
                  mr->length == (moves ? 2 * SIZE : SIZE),
              "flags %d", flags);
        expect_write(a.pd, mr, first, more && !moves && !other_pd, "the old memory in the old PD");
        expect_write(b.pd, mr, first, more && !moves && other_pd, "the old memory in the new PD");
        expect_write(a.pd, mr, second, more && moves && !other_pd, "the new memory in the old PD");
        expect_write(b.pd, mr, second, more && moves && other_pd, "the new memory in the new PD");
        CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
    }
    /* The PD that it left has nothing of it. */
    struct ibv_pd *pd = ibv_alloc_pd(context);
    struct ibv_mr *mr = ibv_reg_mr(pd, first, SIZE, LOCAL | IBV_ACCESS_MW_BIND);

    CHECK(ibv_dealloc_pd(pd) == EBUSY, "a PD with a region");
    CHECK(!ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_PD, b.pd, NULL, 0, 0) && !ibv_dealloc_pd(pd), "the old PD is free");

    /* What libibverbs refuses by itself; the region stays as it is. */
    int both = IBV_REREG_MR_CHANGE_TRANSLATION | IBV_REREG_MR_CHANGE_ACCESS;
    struct {
        int flags;
        struct ibv_pd *pd;
        void *addr;
        size_t length;
        int access, result, error;
    } cases[] = {
        {8, NULL, NULL, 0, 0, IBV_REREG_MR_ERR_INPUT, EINVAL},
        {1 << 30, NULL, NULL, 0, 0, IBV_REREG_MR_ERR_INPUT, EINVAL},
        {IBV_REREG_MR_CHANGE_TRANSLATION, NULL, NULL, SIZE, 0, IBV_REREG_MR_ERR_INPUT, EINVAL},
        {IBV_REREG_MR_CHANGE_TRANSLATION, NULL, second, 0, 0, IBV_REREG_MR_ERR_INPUT, EINVAL},
        {IBV_REREG_MR_CHANGE_TRANSLATION, NULL, second, SIZE, ALL, IBV_REREG_MR_ERR_INPUT, EINVAL},
        {IBV_REREG_MR_CHANGE_PD, NULL, NULL, 0, 0, IBV_REREG_MR_ERR_INPUT, EINVAL},
        {0, NULL, NULL, 0, 0, IBV_REREG_MR_ERR_CMD, EINVAL},
        {IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, 1 << 15, IBV_REREG_MR_ERR_CMD, EINVAL},
        {IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, IBV_ACCESS_REMOTE_WRITE, IBV_REREG_MR_ERR_CMD, EINVAL},
        {IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, LOCAL | IBV_ACCESS_ON_DEMAND, IBV_REREG_MR_ERR_CMD, EOPNOTSUPP},
        {both, NULL, (void *)4096, SIZE, ALL, IBV_REREG_MR_ERR_CMD, EFAULT},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        errno = 0;
        int result = ibv_rereg_mr(mr, cases[i].flags, cases[i].pd, cases[i].addr, cases[i].length, cases[i].access);

        CHECK(result == cases[i].result && errno == cases[i].error, "case %u: %d, errno %d", i, result, errno);
    }
    /* A bound window holds it. */
    struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_1);
    struct ibv_mw_bind bind = {.send_flags = IBV_SEND_SIGNALED,
                               .bind_info = {.mr = mr, .addr = (uintptr_t)first, .length = 8,
                                             .mw_access_flags = IBV_ACCESS_REMOTE_WRITE}};

    CHECK(mw && !ibv_bind_mw(b.qp, mw, &bind) && wait_completion(b.cq).status == IBV_WC_SUCCESS, "bind");
    CHECK(ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, 0) == IBV_REREG_MR_ERR_CMD && errno == EBUSY,
          "a bound window");
    CHECK(!ibv_dealloc_mw(mw) && !ibv_rereg_mr(mr, IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, ALL), "and lets go");
    expect_write(b.pd, mr, first, true, "after all these");
    CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
    tear_down();
    free(first);
    free(second);
}

/* Addresses that count from 0, or from anywhere. */
static void test_addresses(void)
{
    uint8_t *memory = calloc(1, SIZE);
    /* Not a constant: then the header calls ibv_reg_mr_iova2. */
    volatile int zero_based = ALL | IBV_ACCESS_ZERO_BASED;
    volatile int relaxed = ALL | IBV_ACCESS_RELAXED_ORDERING;

    set_up();
    struct ibv_mr *mrs[] = {
        ibv_reg_mr(b.pd, memory, SIZE, ALL | IBV_ACCESS_ZERO_BASED),
        ibv_reg_mr(b.pd, memory, SIZE, zero_based),
        ibv_reg_mr_iova(b.pd, memory, SIZE, 0, ALL),
        ibv_reg_mr_iova(b.pd, memory, SIZE, 0xdead000000000000, ALL),
        ibv_reg_mr(b.pd, memory, SIZE, relaxed),
        ibv_reg_mr(b.pd, memory, SIZE, ALL | IBV_ACCESS_HUGETLB),
        ibv_reg_mr(b.pd, memory, SIZE, ALL | (1 << 29)), /* optional, and unknown */
    };
    uint64_t bases[] = {0, 0, 0, 0xdead000000000000, (uintptr_t)memory, (uintptr_t)memory, (uintptr_t)memory};

    for (unsigned i = 0; i < 7; i++) {
        CHECK(mrs[i] && mrs[i]->addr == memory && mrs[i]->length == SIZE, "region %u: %d", i, errno);
        source[0] = (uint8_t)(i + 1);
        CHECK(write_to(bases[i] + 100, 1, mrs[i]->rkey) == IBV_WC_SUCCESS && memory[100] == i + 1, "region %u", i);
    }
    /* The last byte, and no more. */
    CHECK(write_to(SIZE - 1, 1, mrs[0]->rkey) == IBV_WC_SUCCESS, "the last byte");
    CHECK(write_to(SIZE - 1, 2, mrs[0]->rkey) == IBV_WC_REM_ACCESS_ERR, "one more");
    for (unsigned i = 0; i < 7; i++)
        CHECK(!ibv_dereg_mr(mrs[i]), "ibv_dereg_mr");
    tear_down();
    free(memory);
}

static void refused(void *addr, size_t length, int access, int error)
{
    errno = 0;
    struct ibv_mr *mr = ibv_reg_mr(a.pd, addr, length, access);

    CHECK(!mr && errno == error, "ibv_reg_mr(%p, %zu, %#x): errno %d, not %d", addr, length, access, errno, error);
}

static void test_arguments(void)
{
    long page = sysconf(_SC_PAGESIZE);
    uint8_t *read_only = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *hole = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct ibv_sge sge = {0};

    set_up();
    munmap(hole + page, (size_t)page);
    refused(source, 0, ALL, EINVAL);
    refused(source, SIZE, 1 << 15, EINVAL);
    refused(source, SIZE, IBV_ACCESS_REMOTE_WRITE, EINVAL);
    refused(source, SIZE, IBV_ACCESS_REMOTE_ATOMIC, EINVAL);
    refused(source, SIZE, ALL | IBV_ACCESS_ON_DEMAND, EOPNOTSUPP);
    refused(NULL, SIZE_MAX, ALL | IBV_ACCESS_ON_DEMAND, EOPNOTSUPP);
    refused(source, SIZE_MAX, ALL, EINVAL);
    refused((void *)(UINTPTR_MAX - 100), 50, ALL, EINVAL);
    refused(NULL, SIZE, ALL, EFAULT);
    refused(hole, SIZE, ALL, EFAULT);
    refused(read_only, SIZE, LOCAL, EFAULT);
    refused(read_only, SIZE, IBV_ACCESS_MW_BIND, EFAULT);
    struct ibv_mr *mr = ibv_reg_mr(a.pd, read_only, SIZE, IBV_ACCESS_REMOTE_READ);

    CHECK(mr && !ibv_dereg_mr(mr), "memory that is only read: %d", errno);
    CHECK(!ibv_reg_mr_iova(a.pd, source, SIZE, UINT64_MAX - SIZE + 1, ALL) && errno == EINVAL, "iova over the end");
    CHECK(!ibv_reg_dmabuf_mr(a.pd, 0, SIZE, 0, -1, ALL) && errno == EOPNOTSUPP, "ibv_reg_dmabuf_mr: %d", errno);
    CHECK(!ibv_alloc_null_mr(a.pd) && errno == EOPNOTSUPP, "ibv_alloc_null_mr: %d", errno);
    CHECK(ibv_advise_mr(a.pd, IBV_ADVISE_MR_ADVICE_PREFETCH, 0, &sge, 1) == EOPNOTSUPP, "ibv_advise_mr");
    munmap(read_only, SIZE);
    munmap(hole, SIZE);
    tear_down();
}

/* What an application may do to registered memory: its own loss, nobody else's. */
static void test_memory_that_goes(void)
{
    enum { KINDS = 6 };

    for (int kind = 0; kind < KINDS; kind++) {
        uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        set_up();
        memset(memory, 1, SIZE);
        struct ibv_mr *mr = ibv_reg_mr(b.pd, memory, SIZE, ALL);

        CHECK(mr, "ibv_reg_mr");
        switch (kind) {
        case 0:
            munmap(memory, SIZE);
            break;
        case 1:
            CHECK(mremap(memory, SIZE, 2 * SIZE, MREMAP_MAYMOVE) != MAP_FAILED, "mremap");
            break;
        case 2:
            CHECK(!madvise(memory, SIZE, MADV_DONTNEED), "MADV_DONTNEED");
            break;
        case 3:
            CHECK(!madvise(memory, SIZE, MADV_REMOVE), "MADV_REMOVE");
            break;
        case 4:
            CHECK(!mprotect(memory, SIZE, PROT_NONE), "mprotect");
            break;
        case 5:
            CHECK(mmap(memory, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory,
                  "mmap");
            break;
        }
        enum ibv_wc_status status = write_to((uintptr_t)memory, SIZE, mr->rkey);

        CHECK(status == IBV_WC_SUCCESS || status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_OP_ERR, "kind %d: %s",
              kind, ibv_wc_status_str(status));
        CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
        tear_down();
        if (kind == 5) {
            /* Registered again, it is the new memory that is reached. */
            set_up();
            mr = ibv_reg_mr(b.pd, memory, SIZE, ALL);
            source[0] = 99;
            CHECK(mr && memory[0] == 0, "ibv_reg_mr");
            CHECK(write_to((uintptr_t)memory, 1, mr->rkey) == IBV_WC_SUCCESS && memory[0] == 99, "the new memory");
            CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
            tear_down();
        }
    }
}

/* ---- rdma-core 61 and newer: by name, since the headers may not have it - */

struct buffer;

/* struct ibv_mr_init_attr */
struct region {
    size_t length;
    int access;
    uint64_t comp_mask, iova;
    void *addr;
    int fd;
    uint64_t fd_offset;
    void *dmah;
    struct buffer *buf;
};

enum { OF_IOVA = 1, OF_ADDR = 2, OF_FD = 4, OF_FD_OFFSET = 8, OF_BUF = 32, OF_NOTHING = 1 << 20 };

static struct ibv_mr *(*reg_mr_ex)(struct ibv_pd *pd, struct region *attr);

static void refused_region(struct ibv_pd *pd, uint64_t mask, struct region region, int expected)
{
    region.comp_mask = mask;
    errno = 0;
    CHECK(!reg_mr_ex(pd, &region) && errno == expected, "ibv_reg_mr_ex, mask %#lx: %d", (long)mask, errno);
}

static void test_newer(void)
{
    void *(*alloc_buf)(struct ibv_pd *, size_t, struct buffer **) = (__typeof__(alloc_buf))dlsym(RTLD_DEFAULT, "ibv_alloc_buf");
    void (*free_buf)(struct buffer *) = (__typeof__(free_buf))dlsym(RTLD_DEFAULT, "ibv_free_buf");
    struct ibv_mr *(*reg_buf_mr)(struct ibv_pd *, struct buffer *, void *, size_t, int) =
        (__typeof__(reg_buf_mr))dlsym(RTLD_DEFAULT, "ibv_reg_buf_mr");
    int (*export_buf)(struct buffer *) = (__typeof__(export_buf))dlsym(RTLD_DEFAULT, "ibv_export_buf_dmabuf_fd");
    struct buffer *buf;

    reg_mr_ex = (__typeof__(reg_mr_ex))dlsym(RTLD_DEFAULT, "ibv_reg_mr_ex");
    CHECK(alloc_buf && free_buf && reg_buf_mr && export_buf && reg_mr_ex, "dlsym");
    set_up();
    uint8_t *memory = alloc_buf(b.pd, SIZE, &buf);
    struct region region = {.length = SIZE, .access = ALL, .iova = 1 << 30, .addr = memory, .fd = -1, .buf = buf};

    CHECK(memory, "ibv_alloc_buf");
    region.comp_mask = OF_ADDR | OF_IOVA | OF_BUF;
    struct ibv_mr *mr = reg_mr_ex(b.pd, &region);

    CHECK(mr, "ibv_reg_mr_ex: %d", errno);
    source[0] = 42;
    CHECK(write_to(1 << 30, 1, mr->rkey) == IBV_WC_SUCCESS && memory[0] == 42, "a WRITE to it");
    CHECK(mr->addr == memory && mr->length == SIZE && mr->pd == b.pd && !ibv_dereg_mr(mr), "what it says of itself");
    mr = reg_buf_mr(b.pd, buf, memory + 8, SIZE - 8, ALL);
    CHECK(mr && !ibv_dereg_mr(mr), "ibv_reg_buf_mr: %d", errno);

    CHECK(!reg_buf_mr(a.pd, buf, memory, SIZE, ALL) && errno == EINVAL, "a buffer of another PD");
    CHECK(!reg_buf_mr(b.pd, buf, memory + 1, SIZE, ALL) && errno == EINVAL, "beyond the buffer");
    CHECK(!reg_buf_mr(b.pd, buf, memory - 1, SIZE, ALL) && errno == EINVAL, "before the buffer");
    CHECK(export_buf(buf) == -1 && errno == ENODATA, "ibv_export_buf_dmabuf_fd: %d", errno);
    refused_region(b.pd, OF_BUF, region, EINVAL);
    refused_region(a.pd, OF_BUF | OF_ADDR, region, EINVAL);
    refused_region(b.pd, OF_BUF | OF_ADDR | OF_FD, region, EINVAL);
    refused_region(b.pd, 0, region, EINVAL);
    refused_region(b.pd, OF_ADDR | OF_FD_OFFSET, region, EINVAL);
    refused_region(b.pd, OF_FD | OF_IOVA, region, EINVAL);
    refused_region(b.pd, OF_ADDR | OF_NOTHING, region, EOPNOTSUPP);
    refused_region(b.pd, OF_FD | OF_FD_OFFSET | OF_IOVA, region, EOPNOTSUPP);
    region.length = SIZE + 1;
    refused_region(b.pd, OF_BUF | OF_ADDR, region, EINVAL);
    free_buf(buf);
    tear_down();
}

/* ---- growth ------------------------------------------------------------ */

/* Bytes of the file that registered memory lies in; found by its name, as an operator would. */
static uint64_t arena_bytes(void)
{
    char path[64], name[64];

    for (int fd = 0; fd < 1024; fd++) {
        struct stat status;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, name, sizeof(name) - 1);

        if (length > 0 && strncmp(name, "/memfd:sluice-arena", 19) == 0 && !stat(path, &status))
            return (uint64_t)status.st_blocks * 512;
    }
    return 0;
}

static void test_growth(void)
{
    enum { MIB = 1 << 20, ROUNDS = 600, BOUND = 160 };

    set_up();
    for (int i = 0; i < ROUNDS; i++) {
        /* At a new address each time: the old one stays taken for a while. */
        size_t length = MIB + (size_t)(i % 7) * 4096;
        uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        CHECK(memory != MAP_FAILED, "mmap");
        memset(memory, i, length);
        struct ibv_mr *mr = ibv_reg_mr(b.pd, memory, length, ALL);

        CHECK(mr, "ibv_reg_mr");
        if (i % 10 == 0)
            CHECK(write_to((uintptr_t)memory, SIZE, mr->rkey) == IBV_WC_SUCCESS, "write");
        CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
        munmap(memory, length);
        if (i % 2)
            CHECK(mmap(memory, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED, "mmap");
    }
    CHECK(arena_bytes() < (uint64_t)BOUND * MIB, "%lu MiB after %d of 1 MiB were freed",
          (long)(arena_bytes() / MIB), ROUNDS);
    tear_down();
}

int main(void)
{
    context = open_device();
    source = aligned_alloc(4096, SIZE);
    test_arguments();
    test_addresses();
    test_rereg();
    test_memory_that_goes();
    test_newer();
    test_growth();
    CHECK(!ibv_close_device(context), "ibv_close_device");
    printf("memory regions as they should\n");
    return 0;
}
