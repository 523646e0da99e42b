/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Regions in memory of every kind: what can be registered is read and written
 * through the device, byte by byte, and is the very memory that the application
 * and others see.
 *
 *     places                prints "KIND works", "KIND errno N" or "KIND absent" a line
 *     places hang [atomic]  memory whose page faults nobody answers: prints what a READ of it, or an atomic, says
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 1 << 20, PAGE = 4096, HUGE_PAGE = 2 << 20, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
       IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC };

static struct end end;
static uint8_t *plain;
static struct ibv_mr *plain_mr;

static enum ibv_wc_status run(enum ibv_wr_opcode opcode, uint64_t local, uint32_t lkey, uint64_t remote, uint32_t rkey,
                              uint32_t length)
{
    struct ibv_sge sge = {.addr = local, .length = length, .lkey = lkey};
    struct ibv_sge to = {.addr = remote, .length = length, .lkey = rkey};
    struct ibv_recv_wr *bad_recv, recv = {.sg_list = &to, .num_sge = 1};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {remote, rkey}};

    if (opcode == IBV_WR_SEND)
        CHECK(!ibv_post_recv(end.qp, &recv, &bad_recv), "ibv_post_recv");
    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = remote;
        wr.wr.atomic.rkey = rkey;
        wr.wr.atomic.compare_add = 5;
    }
    CHECK(!ibv_post_send(end.qp, &wr, &bad), "ibv_post_send");
    enum ibv_wc_status status = wait_completion(end.cq).status;

    if (opcode == IBV_WR_SEND && status == IBV_WC_SUCCESS) {
        struct ibv_wc wc = wait_completion(end.cq);

        CHECK(wc.status == IBV_WC_SUCCESS && wc.byte_len == length, "receive");
    }
    return status;
}

static void fill(uint8_t *at, uint32_t length, uint32_t seed)
{
    for (uint32_t i = 0; i < length; i++)
        at[i] = (uint8_t)(i * 7 + (i >> 8) + seed);
}

static void expect(const uint8_t *at, uint32_t length, uint32_t seed, const char *what)
{
    for (uint32_t i = 0; i < length; i++)
        CHECK(at[i] == (uint8_t)(i * 7 + (i >> 8) + seed), "%s: byte %u of %u", what, i, length);
}

/* Every operation in both directions, in sizes around pages and pieces; and within the memory itself. */
static void try(const char *kind, uint8_t *memory, uint32_t size)
{
    static const uint32_t lengths[] = {1, 7, 8, 9, 4095, 4097, 65536, 65537, 300001};

    if (!memory) {
        printf("%s absent\n", kind);
        return;
    }
    struct ibv_mr *mr = ibv_reg_mr(end.pd, memory, size, ALL);

    if (!mr) {
        printf("%s errno %d\n", kind, errno);
        return;
    }
    uint64_t at = (uintptr_t)memory, other = (uintptr_t)plain;

    for (unsigned i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        uint32_t length = lengths[i], offset = i * 5, half = size / 2;

        if (length + offset > size)
            break;
        memset(memory, 0, size);
        fill(plain, length, i);
        CHECK(run(IBV_WR_RDMA_WRITE, other, plain_mr->lkey, at + offset, mr->rkey, length) == IBV_WC_SUCCESS, "WRITE");
        expect(memory + offset, length, i, "WRITE");
        CHECK((offset == 0 || memory[offset - 1] == 0) && (offset + length == size || memory[offset + length] == 0),
              "%s: beside it", kind);
        fill(memory + offset, length, i + 1);
        memset(plain, 0, SIZE);
        CHECK(run(IBV_WR_RDMA_READ, other, plain_mr->lkey, at + offset, mr->rkey, length) == IBV_WC_SUCCESS, "READ");
        expect(plain, length, i + 1, "READ");
        fill(plain, length, i + 2);
        CHECK(run(IBV_WR_RDMA_READ, at + offset, mr->lkey, other, plain_mr->rkey, length) == IBV_WC_SUCCESS, "READ to");
        expect(memory + offset, length, i + 2, "READ to");
        CHECK(run(IBV_WR_SEND, at + offset, mr->lkey, other, plain_mr->lkey, length) == IBV_WC_SUCCESS, "SEND");
        expect(plain, length, i + 2, "SEND");
        fill(plain, length, i + 3);
        CHECK(run(IBV_WR_SEND, other, plain_mr->lkey, at + offset, mr->lkey, length) == IBV_WC_SUCCESS, "SEND to");
        expect(memory + offset, length, i + 3, "SEND to");
        if (length <= half) {
            fill(memory, length, i + 4);
            CHECK(run(IBV_WR_RDMA_WRITE, at, mr->lkey, at + half, mr->rkey, length) == IBV_WC_SUCCESS, "within");
            expect(memory + half, length, i + 4, "within");
        }
    }
    uint64_t *word = (uint64_t *)(memory + 64);

    *word = 37;
    CHECK(run(IBV_WR_ATOMIC_FETCH_AND_ADD, other, plain_mr->lkey, at + 64, mr->rkey, 8) == IBV_WC_SUCCESS && *word == 42 &&
              *(uint64_t *)plain == 37,
          "%s: atomic", kind);
    /* The result of an atomic may go anywhere. */
    *(uint64_t *)plain = 50;
    CHECK(run(IBV_WR_ATOMIC_FETCH_AND_ADD, at + 64, mr->lkey, other, plain_mr->rkey, 8) == IBV_WC_SUCCESS &&
              *word == 50 && *(uint64_t *)plain == 55,
          "%s: an atomic's result", kind);
    CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
    printf("%s works\n", kind);
    fflush(stdout);
}

static uint8_t *map(int flags, int fd, off_t offset, size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, offset);

    return memory == MAP_FAILED ? NULL : memory;
}

static void on_memfd(bool keep)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    CHECK(fd >= 0 && !ftruncate(fd, 4 * SIZE), "memfd");
    uint8_t *memory = map(MAP_SHARED, fd, SIZE, SIZE), *again = map(MAP_SHARED, fd, SIZE, SIZE);

    if (!keep)
        close(fd);
    try(keep ? "memfd" : "memfd-closed", memory, SIZE);
    /* Another mapping of it has seen all. */
    CHECK(memcmp(memory, again, SIZE) == 0, "another mapping");
    if (keep) {
        /* Cut off under the router's eyes: an error of that message, no more. */
        struct ibv_mr *mr = ibv_reg_mr(end.pd, memory, SIZE, ALL);

        CHECK(mr && !ftruncate(fd, 0), "ftruncate");
        enum ibv_wc_status status =
            run(IBV_WR_RDMA_WRITE, (uintptr_t)plain, plain_mr->lkey, (uintptr_t)memory, mr->rkey, SIZE);

        CHECK(status == IBV_WC_REM_OP_ERR, "a file that was cut off: %s", ibv_wc_status_str(status));
        CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
        close(fd);
    }
}

static void on_shm(void)
{
    char name[64];

    snprintf(name, sizeof(name), "/sluice-test-%d", getpid());
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

    if (fd < 0 || ftruncate(fd, SIZE)) {
        printf("posix-shm absent\n");
        return;
    }
    uint8_t *memory = map(MAP_SHARED, fd, 0, SIZE);

    close(fd);
    shm_unlink(name);
    try("posix-shm", memory, SIZE);
}

static void on_sysv(void)
{
    int id = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
    void *memory = id < 0 ? (void *)-1 : shmat(id, NULL, 0);

    if (id >= 0)
        shmctl(id, IPC_RMID, NULL);
    try("sysv-shm", memory == (void *)-1 ? NULL : memory, SIZE);
}

static void on_disk(void)
{
    char name[] = "./sluice-test-XXXXXX";
    int fd = mkstemp(name);

    if (fd < 0 || ftruncate(fd, SIZE)) {
        printf("file absent\n");
        return;
    }
    unlink(name);
    try("file", map(MAP_SHARED, fd, 0, SIZE), SIZE);
    close(fd);
}

static void *on_thread_stack(void *unused)
{
    uint8_t stack[3 * 65536];

    try("thread-stack", stack, sizeof(stack));
    return unused;
}

/* Half private, half shared. */
static uint8_t *map_several(void)
{
    uint8_t *memory = map(MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, 2 * SIZE);

    CHECK(mmap(memory + SIZE, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
          "mmap");
    return memory + SIZE / 2;
}

/* Whoever touches the first half from now on waits for ever. */
static bool nobody_answers(uint8_t *memory)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {.start = (uintptr_t)memory, .len = SIZE / 2},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

    return uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &range) &&
           !madvise(memory, SIZE / 2, MADV_REMOVE);
}

static void hang(enum ibv_wr_opcode opcode, uint32_t length)
{
    uint8_t *memory = map_several();
    struct ibv_mr *mr = ibv_reg_mr(end.pd, memory, SIZE, ALL);

    if (!mr || !nobody_answers(memory)) {
        printf("absent\n");
        return;
    }
    printf("%s\n",
           ibv_wc_status_str(run(opcode, (uintptr_t)plain, plain_mr->lkey, (uintptr_t)memory, mr->rkey, length)));
    fflush(stdout);
    /* It stays until it is told to go. */
    while (getchar() != EOF)
        ;
}

int main(int argc, char **argv)
{
    uint8_t stack[200000];
    pthread_t thread;

    end_open(&end, open_device(), 0);
    end_connect(&end, end.qp->qp_num, end.gid, 7, 14);
    plain = malloc(SIZE);
    plain_mr = ibv_reg_mr(end.pd, plain, SIZE, ALL);
    CHECK(plain_mr, "ibv_reg_mr");
    if (argc > 1 && strcmp(argv[1], "hang") == 0) {
        if (argc > 2)
            hang(IBV_WR_ATOMIC_FETCH_AND_ADD, 8);
        else
            hang(IBV_WR_RDMA_READ, 4096);
        return 0;
    }
    try("heap", malloc(SIZE), SIZE);
    try("stack", stack, sizeof(stack));
    CHECK(!pthread_create(&thread, NULL, on_thread_stack, NULL) && !pthread_join(thread, NULL), "thread");
    on_memfd(false);
    on_shm();
    on_sysv();
    try("shared-anonymous", map(MAP_SHARED | MAP_ANONYMOUS, -1, 0, SIZE), SIZE);
    on_disk();
    try("several", map_several(), SIZE);
    try("huge-private", map(MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0, HUGE_PAGE), HUGE_PAGE);
    int huge = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);

    try("huge-shared", huge >= 0 && !ftruncate(huge, HUGE_PAGE) ? map(MAP_SHARED, huge, 0, HUGE_PAGE) : NULL, HUGE_PAGE);
    on_memfd(true); /* it breaks the connection in the end */
    return 0;
}
