/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How processes begin and end around the device:
 *
 *     life fork            children that copy, write, use the device, and have none of their parent's
 *     life spawn           system, popen, posix_spawn, vfork
 *     life segv            an application with its own SIGSEGV handler
 *     life threads         threads from before and after the device was opened
 *     life end HOW         exit, _exit, abort, exec; with everything still open
 *     life unload LIBRARY  dlopen, use, dlclose, fork, exit
 *     life count LIBRARY   prints how many devices the library finds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 1 << 20, PAGE = 4096, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

extern char **environ;

static struct end end;
static uint8_t *memory;
static struct ibv_mr *mr;

static void set_up(void)
{
    end_open(&end, open_device(), 0);
    end_connect(&end, end.qp->qp_num, end.gid, 7, 14);
    /* Not whole pages: heap objects of others lie beside it. */
    memory = malloc(SIZE);
    memset(memory, 1, SIZE);
    mr = ibv_reg_mr(end.pd, memory, SIZE, ALL);
    CHECK(mr, "ibv_reg_mr: %d", errno);
}

/* The upper half of memory becomes as the lower one, by the device. */
static void write_half(uint8_t value)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = SIZE / 2, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {(uintptr_t)memory + SIZE / 2, mr->rkey}};

    memset(memory, value, SIZE / 2);
    CHECK(!ibv_post_send(end.qp, &wr, &bad), "ibv_post_send");
    struct ibv_wc wc = wait_completion(end.cq);

    CHECK(wc.status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc.status));
    for (int i = 0; i < SIZE; i++)
        CHECK(memory[i] == value, "byte %d is %d, not %d", i, memory[i], value);
}

static void expect_exit(pid_t child, const char *what)
{
    int status;

    CHECK(child > 0 && waitpid(child, &status, 0) == child, "%s", what);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %#x", what, status);
}

/* ---- fork -------------------------------------------------------------- */

static void wait_for(int fd)
{
    char byte;

    CHECK(read(fd, &byte, 1) == 1, "the other process is gone");
}

static void child_of_fork(int in, int out)
{
    struct end parents = end;
    struct ibv_mr *parents_mr = mr;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    struct ibv_send_wr *bad, wr = {.opcode = IBV_WR_RDMA_WRITE};
    struct ibv_wc wc;

    /* The parent has written since: not here. */
    wait_for(in);
    for (int i = 0; i < SIZE; i++)
        CHECK(memory[i] == 1, "child: byte %d is %d", i, memory[i]);
    memset(memory, 9, SIZE);
    CHECK(write(out, "w", 1) == 1, "write");

    /* The parent's objects are of no use, and do no harm. */
    ibv_post_send(parents.qp, &wr, &bad);
    CHECK(ibv_poll_cq(parents.cq, 1, &wc) == 0, "child: the parent's completion");
    CHECK(ibv_modify_qp(parents.qp, &attr, IBV_QP_STATE), "child: the parent's QP");
    CHECK(ibv_dereg_mr(parents_mr), "child: the parent's region");

    /* A session of its own, also with the memory that the parent has registered. */
    set_up();
    mr = ibv_reg_mr(end.pd, memory, SIZE, ALL);
    CHECK(mr, "child: ibv_reg_mr");
    CHECK(ibv_destroy_qp(parents.qp) && ibv_destroy_cq(parents.cq) && ibv_dealloc_pd(parents.pd) &&
              ibv_dereg_mr(parents_mr),
          "child: the parent's objects beside its own");
    write_half(7);
    pid_t grandchild = fork();

    if (grandchild == 0) {
        memset(memory, 5, SIZE);
        set_up();
        write_half(6);
        _exit(0);
    }
    expect_exit(grandchild, "grandchild");
    write_half(8);
    exit(0);
}

static void test_fork(void)
{
    int to_child[2], to_parent[2];

    set_up();
    CHECK(!pipe(to_child) && !pipe(to_parent), "pipe");
    for (int round = 0; round < 5; round++) {
        memset(memory, 1, SIZE);
        pid_t child = fork();

        if (child == 0)
            child_of_fork(to_child[0], to_parent[1]);
        write_half(2);
        CHECK(write(to_child[1], "w", 1) == 1, "write");
        wait_for(to_parent[0]);
        for (int i = 0; i < SIZE; i++)
            CHECK(memory[i] == 2, "parent: byte %d is %d", i, memory[i]);
        write_half(3);
        expect_exit(child, "child");
        write_half(4);
    }
    /* Memory that a child can't even copy in one go is its parent's too: a large region, hardly touched. */
    size_t large = 8ul << 30;
    volatile uint8_t *sparse = mmap(NULL, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    CHECK(sparse != MAP_FAILED && ibv_reg_mr(end.pd, (void *)(uintptr_t)sparse, large, ALL), "8 GiB");
    sparse[large / 2] = 3;
    pid_t child = fork();

    if (child == 0)
        _exit(sparse[large / 2] == 3 && sparse[0] == 0 && sparse[large - 1] == 0 ? 0 : 1);
    expect_exit(child, "a large region");
}

/* ---- spawn ------------------------------------------------------------- */

static void test_spawn(void)
{
    char line[64] = "";
    char *argv[] = {"true", NULL};
    pid_t child;

    set_up();
    for (int i = 0; i < 20; i++) {
        CHECK(system("exit 7") == 7 << 8, "system");
        FILE *pipe = popen("echo hello", "r");

        CHECK(pipe && fgets(line, sizeof(line), pipe) && strcmp(line, "hello\n") == 0 && !pclose(pipe), "popen");
        CHECK(!posix_spawnp(&child, "true", NULL, NULL, argv, environ), "posix_spawn");
        expect_exit(child, "posix_spawn");
        child = vfork();
        if (child == 0) {
            execvp("true", argv);
            _exit(1);
        }
        expect_exit(child, "vfork");
        child = fork();
        if (child == 0) {
            execvp("true", argv);
            _exit(1);
        }
        expect_exit(child, "fork and exec");
        write_half((uint8_t)i);
    }
}

/* ---- signals ----------------------------------------------------------- */

static volatile sig_atomic_t faults;
static sigjmp_buf back;
static volatile uint8_t *forbidden;

static void on_fault(int number)
{
    (void)number;
    faults++;
    siglongjmp(back, 1);
}

static void fault(void)
{
    int before = faults;

    if (!sigsetjmp(back, 1))
        *forbidden = 1;
    CHECK(faults == before + 1, "the application's handler was not called");
}

static void test_segv(void)
{
    struct sigaction action = {.sa_handler = on_fault};

    forbidden = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int before = 1; before >= 0; before--) {
        if (before)
            sigaction(SIGSEGV, &action, NULL);
        set_up();
        if (!before)
            sigaction(SIGSEGV, &action, NULL);
        for (int i = 0; i < 100; i++) {
            uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

            page[0] = 1;
            struct ibv_mr *one = ibv_reg_mr(end.pd, page, PAGE, ALL);

            CHECK(one, "ibv_reg_mr");
            fault();
            CHECK(!ibv_dereg_mr(one), "ibv_dereg_mr");
            munmap(page, PAGE);
        }
        write_half(3);
        signal(SIGSEGV, SIG_DFL);
    }
    /* Without a handler it dies of it as ever. */
    pid_t child = fork();
    int status;

    if (child == 0)
        *forbidden = 1;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status %#x",
          status);
}

/* ---- threads ----------------------------------------------------------- */

enum { THREADS = 4 };

static pthread_barrier_t opened;

static void *use(void *context)
{
    struct end own;
    uint8_t *buffer = malloc(SIZE / 4);

    if (!context)
        pthread_barrier_wait(&opened);
    end_open(&own, end.context, 0);
    end_connect(&own, own.qp->qp_num, own.gid, 7, 14);
    for (int i = 0; i < 200; i++) {
        struct ibv_mr *one = ibv_reg_mr(own.pd, buffer, SIZE / 4, ALL);

        CHECK(one, "ibv_reg_mr");
        buffer[0] = (uint8_t)i;
        struct ibv_sge sge = {.addr = (uintptr_t)buffer, .length = 1, .lkey = one->lkey};
        struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                       .send_flags = IBV_SEND_SIGNALED,
                                       .wr.rdma = {(uintptr_t)buffer + 1000, one->rkey}};

        CHECK(!ibv_post_send(own.qp, &wr, &bad) && wait_completion(own.cq).status == IBV_WC_SUCCESS, "write");
        CHECK(buffer[1000] == (uint8_t)i && !ibv_dereg_mr(one), "write");
    }
    end_close(&own);
    free(buffer);
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[2 * THREADS];

    CHECK(!pthread_barrier_init(&opened, NULL, THREADS + 1), "pthread_barrier_init");
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, use, NULL), "pthread_create");
    set_up();
    pthread_barrier_wait(&opened);
    for (int i = THREADS; i < 2 * THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, use, &end), "pthread_create");
    /* Forks meanwhile, whoever holds which lock. */
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();

        if (child == 0) {
            memset(memory, 2, SIZE);
            _exit(memory[SIZE - 1] == 2 ? 0 : 1);
        }
        expect_exit(child, "fork beside threads");
    }
    for (int i = 0; i < 2 * THREADS; i++)
        pthread_join(threads[i], NULL);
    write_half(9);
}

/* ---- the end ----------------------------------------------------------- */

static void end_by(const char *how)
{
    char *argv[] = {"cat", NULL};

    set_up();
    write_half(2);
    printf("ready\n");
    fflush(stdout);
    CHECK(getchar() == '\n', "input");
    if (strcmp(how, "exit") == 0)
        exit(0);
    if (strcmp(how, "_exit") == 0)
        _exit(0);
    if (strcmp(how, "abort") == 0)
        abort();
    execvp("cat", argv);
    DIE("exec: %d", errno);
}

/* ---- loaded by hand ---------------------------------------------------- */

static int count_devices(void *library)
{
    struct ibv_device **(*get)(int *) = (struct ibv_device * *(*)(int *)) dlsym(library, "ibv_get_device_list");
    void (*give_back)(struct ibv_device **) = (void (*)(struct ibv_device **))dlsym(library, "ibv_free_device_list");
    int count = -1;

    CHECK(get && give_back, "dlsym");
    give_back(get(&count));
    return count;
}

static void unload(const char *path)
{
    for (int i = 0; i < 3; i++) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

        CHECK(library, "%s", dlerror());
        CHECK(count_devices(library) == 1, "no device");
        CHECK(!dlclose(library), "dlclose");
        pid_t child = fork();

        if (child == 0)
            exit(0);
        expect_exit(child, "fork after dlclose");
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "fork") == 0)
        test_fork();
    else if (strcmp(what, "spawn") == 0)
        test_spawn();
    else if (strcmp(what, "segv") == 0)
        test_segv();
    else if (strcmp(what, "threads") == 0)
        test_threads();
    else if (strcmp(what, "end") == 0 && argc > 2)
        end_by(argv[2]);
    else if (strcmp(what, "unload") == 0 && argc > 2)
        unload(argv[2]);
    else if (strcmp(what, "count") == 0 && argc > 2)
        printf("%d\n", count_devices(dlopen(argv[2], RTLD_NOW)));
    else
        DIE("usage: life fork | spawn | segv | threads | end HOW | unload LIBRARY | count LIBRARY");
    return 0;
}
