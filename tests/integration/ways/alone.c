/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that has the library by its path, from dlopen alone: nothing is preloaded, nothing searched, nothing linked.
 *
 *     ways-alone LIBRARY
 *
 * Opens, uses, forks and closes it, and all of it again; prints "alone".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#undef ibv_query_port

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);       \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* The function of that name in the library, with the type that its header gives it. */
#define IN(library, name) ((__typeof__(&name))look_up(library, #name))

enum { SIZE = 1 << 20, PAGE = 4096, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

/* Exported for other libraries of rdma-core: declared in none of its headers. */
typedef int read_sysfs_file(const char *directory, const char *file, char *text, size_t size);

static void *look_up(void *library, const char *name)
{
    void *symbol = dlsym(library, name);

    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return symbol;
}

struct loop {
    void *library;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
};

static void open_loop(struct loop *loop, void *library)
{
    int count = 0;
    char board[64] = "";
    union ibv_gid gid;
    struct ibv_device **list = IN(library, ibv_get_device_list)(&count);

    CHECK(count == 1);
    read_sysfs_file *read_file = (read_sysfs_file *)look_up(library, "ibv_read_sysfs_file");

    CHECK(read_file(list[0]->ibdev_path, "board_id", board, sizeof(board)) > 0 && strcmp(board, "SLUICE0000000001") == 0);
    loop->library = library;
    CHECK((loop->context = IN(library, ibv_open_device)(list[0])));
    IN(library, ibv_free_device_list)(list);
    CHECK((loop->pd = IN(library, ibv_alloc_pd)(loop->context)));
    CHECK((loop->cq = IN(library, ibv_create_cq)(loop->context, 16, NULL, NULL, 0)));
    struct ibv_qp_init_attr attr = {.send_cq = loop->cq, .recv_cq = loop->cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1}};

    CHECK((loop->qp = IN(library, ibv_create_qp)(loop->pd, &attr)));
    CHECK(!IN(library, ibv_query_gid)(loop->context, 1, 0, &gid));
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
    struct ibv_qp_attr rtr = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = loop->qp->qp_num,
                              .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .hop_limit = 1}}};
    struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7};

    CHECK(!IN(library, ibv_modify_qp)(loop->qp, &init,
                                      IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    CHECK(!IN(library, ibv_modify_qp)(loop->qp, &rtr,
                                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
    CHECK(!IN(library, ibv_modify_qp)(loop->qp, &rts,
                                      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                          IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
}

static void close_loop(struct loop *loop)
{
    CHECK(!IN(loop->library, ibv_destroy_qp)(loop->qp) && !IN(loop->library, ibv_destroy_cq)(loop->cq));
    CHECK(!IN(loop->library, ibv_dealloc_pd)(loop->pd) && !IN(loop->library, ibv_close_device)(loop->context));
}

/* The upper half of memory becomes as the lower one, by the device. */
static void write_half(struct loop *loop, uint8_t *memory, uint8_t value)
{
    struct ibv_mr *mr = IN(loop->library, ibv_reg_mr_iova2)(loop->pd, memory, SIZE, (uintptr_t)memory, ALL);

    CHECK(mr);
    memset(memory, value, SIZE / 2);
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = SIZE / 2, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {(uintptr_t)memory + SIZE / 2, mr->rkey}};
    struct ibv_wc wc;

    CHECK(!ibv_post_send(loop->qp, &wr, &bad));
    while (ibv_poll_cq(loop->cq, 1, &wc) == 0)
        ;
    CHECK(wc.status == IBV_WC_SUCCESS);
    for (int i = 0; i < SIZE; i++)
        CHECK(memory[i] == value);
    CHECK(!IN(loop->library, ibv_dereg_mr)(mr));
}

static void fork_beside(void *library, uint8_t *memory, uint8_t value)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        struct loop own;

        CHECK(memory[SIZE - 1] == value);
        if (library) {
            open_loop(&own, library);
            write_half(&own, memory, 99);
        }
        memset(memory, 98, SIZE);
        exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    for (int i = 0; i < SIZE; i++)
        CHECK(memory[i] == value);
}

int main(int argc, char **argv)
{
    (void)argc;
    uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED);
    for (uint8_t round = 1; round <= 3; round++) {
        void *library = dlopen(argv[1], RTLD_NOW | (round == 2 ? RTLD_GLOBAL : RTLD_LOCAL));
        struct loop loop;

        CHECK(library);
        open_loop(&loop, library);
        write_half(&loop, memory, round);
        fork_beside(library, memory, round);
        write_half(&loop, memory, round + 10);
        close_loop(&loop);
        CHECK(!dlclose(library));
        fork_beside(NULL, memory, round + 10);
        /* What was registered is moved as a whole. */
        memory = mremap(memory, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
                        mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        CHECK(memory != MAP_FAILED && memory[0] == round + 10 && memory[SIZE - 1] == round + 10);
    }
    puts("alone");
    return 0;
}
