/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a message through a third process costs at best: client and server spin on
 * a word of shared memory and never yield, as perftest does; the relay sleeps on
 * one futex and is woken for each message. No queue, no check, no copy but 8 bytes.
 *
 *     relay [MESSAGES]
 *
 * prints the one-way latency (half a round trip) in microseconds:
 *     typical P50 p99 P99
 */
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WARM_UP = 1000 };

struct mailbox {
    _Alignas(64) _Atomic uint64_t posted;   /* by an end */
    _Alignas(64) _Atomic uint64_t received; /* by the relay, for the other end */
};

struct shared {
    _Alignas(64) _Atomic uint32_t asleep;
    struct mailbox client, server;
};

static struct shared *shared;

static void wake_relay(void)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&shared->asleep) && atomic_exchange(&shared->asleep, 0))
        syscall(SYS_futex, &shared->asleep, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void relay(void)
{
    uint64_t from_client = 0, from_server = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        uint64_t client = atomic_load_explicit(&shared->client.posted, memory_order_acquire);
        uint64_t server = atomic_load_explicit(&shared->server.posted, memory_order_acquire);

        if (client != from_client)
            atomic_store_explicit(&shared->server.received, from_client = client, memory_order_release);
        if (server != from_server)
            atomic_store_explicit(&shared->client.received, from_server = server, memory_order_release);
        atomic_store(&shared->asleep, 1);
        if (atomic_load(&shared->client.posted) == from_client && atomic_load(&shared->server.posted) == from_server)
            syscall(SYS_futex, &shared->asleep, FUTEX_WAIT, 1, NULL, NULL, 0);
        atomic_store(&shared->asleep, 0);
    }
}

static void serve(void)
{
    uint64_t seen = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        uint64_t now;

        while ((now = atomic_load_explicit(&shared->server.received, memory_order_acquire)) == seen)
            ;
        seen = now;
        atomic_store_explicit(&shared->server.posted, now, memory_order_release);
        wake_relay();
    }
}

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

int main(int argc, char **argv)
{
    long messages = argc > 1 ? atol(argv[1]) : 20000;

    if (messages < 100 || messages > 10000000) {
        fprintf(stderr, "relay: between 100 and 10000000 messages\n");
        return 2;
    }
    double *one_way = malloc((size_t)messages * sizeof(*one_way));

    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!one_way || shared == MAP_FAILED) {
        perror("relay");
        return 1;
    }
    pid_t relay_pid = fork();

    if (relay_pid == 0)
        relay();
    pid_t server_pid = fork();

    if (server_pid == 0)
        serve();
    for (long i = -WARM_UP; i < messages; i++) {
        uint64_t number = (uint64_t)(i + WARM_UP + 1);
        double start = now_us();

        atomic_store_explicit(&shared->client.posted, number, memory_order_release);
        wake_relay();
        while (atomic_load_explicit(&shared->client.received, memory_order_acquire) != number)
            ;
        if (i >= 0)
            one_way[i] = (now_us() - start) / 2;
    }
    kill(relay_pid, SIGKILL);
    kill(server_pid, SIGKILL);
    while (wait(NULL) > 0)
        ;
    qsort(one_way, (size_t)messages, sizeof(*one_way), ascending);
    printf("typical %.2f p99 %.2f\n", one_way[messages / 2], one_way[messages * 99 / 100]);
    return 0;
}
