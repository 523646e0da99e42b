/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that is linked to libsluice.a and registers all of its own data, the library's among it, and forks: parent and
 * child must have nothing in common. Prints "apart".
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 10000, ROUNDS = 5, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

/* The linker's: all data of the program. */
extern char __data_start[], _end[];

static struct end end;
static uint8_t from[SIZE], to[SIZE];
static struct ibv_mr *data;
static int bell[2], back[2];
static volatile sig_atomic_t raised;

static void set_up(void)
{
    end_open(&end, open_device(), 0);
    end_connect(&end, end.qp->qp_num, end.gid, 7, 14);
    data = ibv_reg_mr(end.pd, __data_start, (size_t)(_end - __data_start), ALL);
    CHECK(data, "ibv_reg_mr");
}

static void expect(const uint8_t *bytes, uint8_t value, const char *whose)
{
    for (int i = 0; i < SIZE; i++)
        CHECK(bytes[i] == value, "%s: byte %d is %d, not %d", whose, i, bytes[i], value);
}

static void write_all(uint8_t value, const char *whose)
{
    struct ibv_sge sge = {.addr = (uintptr_t)from, .length = SIZE, .lkey = data->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uintptr_t)to, data->rkey}};

    memset(from, value, SIZE);
    CHECK(!ibv_post_send(end.qp, &wr, &bad), "ibv_post_send");
    struct ibv_wc wc = wait_completion(end.cq);

    CHECK(wc.status == IBV_WC_SUCCESS, "%s: %s", whose, ibv_wc_status_str(wc.status));
    expect(to, value, whose);
}

static int pipes(void)
{
    DIR *files = opendir("/proc/self/fd");
    int count = 0;

    for (struct dirent *entry; (entry = readdir(files));) {
        struct stat status;

        count += !fstat(atoi(entry->d_name), &status) && S_ISFIFO(status.st_mode) && atoi(entry->d_name) > 2;
    }
    closedir(files);
    return count;
}

static void child(uint8_t value, int before)
{
    char byte;

    CHECK(read(bell[0], &byte, 1) == 1, "the parent is gone");
    expect(from, value, "child");
    expect(to, value, "child");
    CHECK(pipes() == before, "child: %d pipes, and %d before", pipes(), before);
    memset(from, 0, SIZE);
    memset(to, 0, SIZE);
    CHECK(write(back[1], "w", 1) == 1, "write");
    set_up();
    write_all(100, "child");
    exit(0);
}

static void on_signal(int number)
{
    (void)number;
    raised++;
}

static void *use(void *unused)
{
    (void)unused;
    for (int i = 0; i < 20; i++) {
        void *block = malloc(SIZE);
        struct ibv_mr *mr = ibv_reg_mr(end.pd, block, SIZE, ALL);

        CHECK(mr && !ibv_dereg_mr(mr), "a thread's region: %d", errno);
        free(block);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[2];
    int status;
    char byte;

    signal(SIGUSR1, on_signal);
    set_up();
    for (uint8_t round = 1; round <= ROUNDS; round++) {
        write_all(round, "parent");
        CHECK(!pipe(bell) && !pipe(back), "pipe");
        int before = pipes();
        pid_t pid = fork();

        CHECK(pid >= 0, "fork");
        if (pid == 0)
            child(round, before);
        close(bell[0]);
        close(back[1]);
        write_all((uint8_t)(round + 50), "parent");
        CHECK(write(bell[1], "w", 1) == 1 && read(back[0], &byte, 1) == 1, "the child is gone");
        expect(from, (uint8_t)(round + 50), "parent");
        expect(to, (uint8_t)(round + 50), "parent");
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "child: status %#x", status);
        write_all((uint8_t)(round + 60), "parent");
        /* libc's own data, too: who it is, its threads, its heap. */
        raise(SIGUSR1);
        CHECK(raised == round, "raise");
        for (int i = 0; i < 2; i++)
            CHECK(!pthread_create(&threads[i], NULL, use, NULL), "pthread_create");
        for (int i = 0; i < 2; i++)
            CHECK(!pthread_join(threads[i], NULL), "pthread_join");
        close(bell[1]);
        close(back[0]);
    }
    puts("apart");
    return 0;
}
