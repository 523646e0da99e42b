/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What verbs of the control path cost an application, in microseconds (medians):
 *
 *     control              prints "reg_mr_4k T reg_mr_1g T connect T ..."
 *     control ways         prints GB/s of WRITEs of 1 MiB into memory that the router reaches
 *                          in the arena, by its own file, and through /proc/PID/mem
 *     control idle COUNT   connects COUNT QPs, prints "ready", and stays until its input ends
 *
 * reg_mr_4k: 4 KiB of live heap; reg_mr_1g: 1 GiB that nobody has touched;
 * reg_live, dereg_live: mean of 10,000 MRs of 64 KiB, all live at once;
 * reg_loop, dereg_loop: mean of 10,000 times the same 64 KiB;
 * reg_new, dereg_new: mean of 10,000 times 64 KiB that were just allocated and written;
 * connect: from ibv_create_qp to RTS.
 */
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "pair.h"

enum { ROUNDS = 201, LARGE_ROUNDS = 11, ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };
#define LARGE (1ul << 30)

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof(*values), ascending);
    return values[count / 2];
}

/* Each time other memory: registering the same again is much cheaper. */
static double reg_small(struct ibv_pd *pd)
{
    static double took[ROUNDS];
    uint8_t *memory = mmap(NULL, ROUNDS * 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED, "mmap");
    memset(memory, 1, ROUNDS * 8192);
    for (int i = 0; i < ROUNDS; i++) {
        double start = now_us();
        struct ibv_mr *mr = ibv_reg_mr(pd, memory + i * 8192, 4096, ACCESS);

        took[i] = now_us() - start;
        CHECK(mr && !ibv_dereg_mr(mr), "ibv_reg_mr");
    }
    return median(took, ROUNDS);
}

static double reg_large(struct ibv_pd *pd)
{
    static double took[LARGE_ROUNDS];

    for (int i = 0; i < LARGE_ROUNDS; i++) {
        void *memory = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        CHECK(memory != MAP_FAILED, "mmap");
        double start = now_us();
        struct ibv_mr *mr = ibv_reg_mr(pd, memory, LARGE, ACCESS);

        took[i] = now_us() - start;
        CHECK(mr && !ibv_dereg_mr(mr), "ibv_reg_mr of 1 GiB");
        munmap(memory, LARGE);
    }
    return median(took, LARGE_ROUNDS);
}

enum { COUNT = 10000, SIZE = 65536 };

/* Each is written first and apart from the next, as separate allocations are. */
static void many_live(struct ibv_pd *pd, double took[2])
{
    static struct ibv_mr *mrs[COUNT];
    uint64_t stride = SIZE + 8192;
    uint8_t *memory = mmap(NULL, COUNT * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED, "mmap");
    for (uint64_t i = 0; i < COUNT; i++)
        memset(memory + i * stride, 1, SIZE);
    double start = now_us();

    for (uint64_t i = 0; i < COUNT; i++) {
        mrs[i] = ibv_reg_mr(pd, memory + i * stride, SIZE, ACCESS);
        CHECK(mrs[i], "ibv_reg_mr");
    }
    double between = now_us();

    for (int i = 0; i < COUNT; i++)
        CHECK(!ibv_dereg_mr(mrs[i]), "ibv_dereg_mr");
    took[0] = (between - start) / COUNT;
    took[1] = (now_us() - between) / COUNT;
    munmap(memory, COUNT * stride);
}

static void one_by_one(struct ibv_pd *pd, double took[2], int anew)
{
    uint8_t *memory = NULL;

    took[0] = took[1] = 0;
    for (int i = 0; i < COUNT; i++) {
        if (anew || !memory) {
            memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(memory != MAP_FAILED, "mmap");
            memset(memory, 1, SIZE);
        }
        double start = now_us();
        struct ibv_mr *mr = ibv_reg_mr(pd, memory, SIZE, ACCESS);
        double between = now_us();

        CHECK(mr && !ibv_dereg_mr(mr), "ibv_reg_mr");
        took[0] += (between - start) / COUNT;
        took[1] += (now_us() - between) / COUNT;
        if (anew)
            munmap(memory, SIZE);
    }
}

/* The shared PD and CQ are those of base; the QP is connected to itself. */
static struct ibv_qp *connect_qp(const struct end *base)
{
    struct end end = *base;

    qp_open(&end, 0);
    end_connect(&end, end.qp->qp_num, end.gid, 7, 14);
    return end.qp;
}

static double connect_time(const struct end *base)
{
    static double took[ROUNDS];

    for (int i = 0; i < ROUNDS; i++) {
        double start = now_us();
        struct ibv_qp *qp = connect_qp(base);

        took[i] = now_us() - start;
        CHECK(!ibv_destroy_qp(qp), "ibv_destroy_qp");
    }
    return median(took, ROUNDS);
}

enum { LONG = 1 << 20, WRITES = 2000 };

static double write_rate(const struct end *end, void *from, void *to)
{
    struct ibv_mr *source = ibv_reg_mr(end->pd, from, LONG, ACCESS), *target = ibv_reg_mr(end->pd, to, LONG, ACCESS);

    CHECK(source && target, "ibv_reg_mr");
    struct ibv_sge sge = {.addr = (uintptr_t)from, .length = LONG, .lkey = source->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uintptr_t)to, target->rkey}};
    double start = now_us();

    for (int i = 0; i < WRITES; i++) {
        CHECK(!ibv_post_send(end->qp, &wr, &bad), "ibv_post_send");
        CHECK(wait_completion(end->cq).status == IBV_WC_SUCCESS, "write");
    }
    double took = now_us() - start;

    CHECK(!ibv_dereg_mr(source) && !ibv_dereg_mr(target), "ibv_dereg_mr");
    return (double)LONG * WRITES / took / 1e3;
}

static void ways(struct end *base)
{
    uint8_t stack[LONG];
    uint8_t *from = malloc(LONG);
    void *shared = mmap(NULL, LONG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(shared != MAP_FAILED, "mmap");
    memset(from, 1, LONG);
    end_connect(base, base->qp->qp_num, base->gid, 7, 14);
    printf("arena %.1f file %.1f", write_rate(base, from, malloc(LONG)), write_rate(base, from, shared));
    printf(" process %.1f\n", write_rate(base, from, stack));
}

int main(int argc, char **argv)
{
    struct end base;
    int idle = argc == 3 && strcmp(argv[1], "idle") == 0 ? atoi(argv[2]) : 0;

    int compare = argc == 2 && strcmp(argv[1], "ways") == 0;

    CHECK(argc == 1 || idle > 0 || compare, "usage: control [ways | idle COUNT]");
    end_open(&base, open_device(), 0);
    if (compare) {
        ways(&base);
        return 0;
    }
    if (idle == 0) {
        double live[2], loop[2], anew[2];

        many_live(base.pd, live);
        one_by_one(base.pd, loop, 0);
        one_by_one(base.pd, anew, 1);
        printf("reg_mr_4k %.1f reg_mr_1g %.1f connect %.1f ", reg_small(base.pd), reg_large(base.pd),
               connect_time(&base));
        printf("reg_live %.1f dereg_live %.1f reg_loop %.1f dereg_loop %.1f reg_new %.1f dereg_new %.1f\n", live[0],
               live[1], loop[0], loop[1], anew[0], anew[1]);
        return 0;
    }
    for (int i = 0; i < idle; i++)
        connect_qp(&base);
    printf("ready\n");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
