/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instructions that the engine's worker executes for a message, in user space: what it costs on any processor, where
 * nanoseconds are those of one, and of what else it does.
 *
 *     instructions [ADDRESSES]    a line for each kind of message; where they were executed goes to that file (addr2line)
 *
 * Two processes. One has an engine and a tenant's process (tests/unit/client.h), and a NIC that carries nothing (fake_verbs.h), which
 * completes requests when it is told to. The other lets its worker go one instruction at a time (ptrace(2)), from the beginning of a
 * round until a word of memory says that the message has come so far, and counts. An instruction that repeats itself (rep movs) is
 * one. What is executed in the NIC's library is counted apart: there it is that of the device at hand, which an
 * application without Sluice executes as well.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <infiniband/verbs.h>
#include <link.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "client.h"
#include "clock.h"
#include "fake_verbs.h"
#include "nic.h"
#include "qp.h"
#include "timer.h"
#include "transport/nic.h"
#include "worker.h"

enum { LIST = 16, KIB = 1024, BIG = 64 * KIB };

enum order {
    ORDER_NONE,
    ORDER_STOP, /* at the address */
    ORDER_STEP, /* until the word has the value */
    ORDER_FREE, /* runs, until told otherwise */
    ORDER_END   /* is nobody's business any more */
};

/* What one process asks of the other, and gets. */
struct orders {
    uint32_t order; /* ORDER_NONE: carried out */
    pid_t worker;
    uintptr_t address;
    const volatile uint32_t *word;
    uint32_t value;
    uintptr_t library, library_end; /* the NIC's */
    uint64_t engine, in_library;    /* instructions */
    bool traced, stopped;
    char what[64];
};

static struct orders *orders;

/* ---- who counts ------------------------------------------------------------- */

extern const char __executable_start;
static FILE *addresses;

static uintptr_t where(uintptr_t *stack)
{
    struct user_regs_struct registers;
    struct iovec of = {&registers, sizeof(registers)};

    CHECK(ptrace(PTRACE_GETREGSET, orders->worker, NT_PRSTATUS, &of) == 0);
    *stack = registers.rsp;
    return registers.rip;
}

static void step(void)
{
    int status;

    CHECK(ptrace(PTRACE_SINGLESTEP, orders->worker, NULL, NULL) == 0);
    CHECK(waitpid(orders->worker, &status, __WALL) == orders->worker && WIFSTOPPED(status));
}

static void read_there(uintptr_t address, void *to, size_t size)
{
    struct iovec here = {to, size}, there = {(void *)address, size};

    CHECK(process_vm_readv(orders->worker, &here, 1, &there, 1, 0) == (ssize_t)size);
}

static void stop(void)
{
    uintptr_t stack;
    int status;

    if (!orders->traced)
        CHECK(ptrace(PTRACE_SEIZE, orders->worker, NULL, NULL) == 0);
    orders->traced = true;
    if (!orders->stopped) {
        CHECK(ptrace(PTRACE_INTERRUPT, orders->worker, NULL, NULL) == 0);
        CHECK(waitpid(orders->worker, &status, __WALL) == orders->worker && WIFSTOPPED(status));
    }
    orders->stopped = true;
    while (where(&stack) != orders->address)
        step();
}

static bool came_so_far(void)
{
    uint32_t word;

    read_there((uintptr_t)orders->word, &word, sizeof(word));
    return word == orders->value;
}

static void count(void)
{
    uintptr_t stack, at = where(&stack), back = 0;

    orders->engine = orders->in_library = 0;
    if (addresses)
        fprintf(addresses, "# %s\n", orders->what);
    while (!came_so_far()) {
        uintptr_t before = at;

        if (!back && at >= orders->library && at < orders->library_end)
            read_there(stack, &back, sizeof(back)); /* called just now */
        else if (at == back)
            back = 0;
        if (back)
            orders->in_library++;
        else
            orders->engine++;
        if (!back && addresses)
            fprintf(addresses, "%#lx\n", (unsigned long)(at - (uintptr_t)&__executable_start));
        step();
        while ((at = where(&stack)) == before)
            step();
    }
}

/* Ends with the other process. Returns its exit code. */
static int serve(pid_t other)
{
    int status;

    for (;;) {
        if (waitpid(other, &status, WNOHANG) == other)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        switch (load_acquire(&orders->order)) {
        case ORDER_NONE:
            sched_yield();
            continue;
        case ORDER_STOP:
            stop();
            break;
        case ORDER_STEP:
            count();
            break;
        case ORDER_FREE:
            CHECK(ptrace(PTRACE_CONT, orders->worker, NULL, NULL) == 0);
            orders->stopped = false;
            break;
        case ORDER_END:
            CHECK(ptrace(PTRACE_DETACH, orders->worker, NULL, NULL) == 0);
            break;
        }
        store_release(&orders->order, (uint32_t)ORDER_NONE);
    }
}

/* ---- who is counted ------------------------------------------------------------ */

static void give(enum order order)
{
    store_release(&orders->order, (uint32_t)order);
    while (load_acquire(&orders->order) != ORDER_NONE)
        sched_yield();
}

/*
 * In libc's place: the worker's clock, which stands still while its instructions are counted, but for what they may take. Else, step by
 * step, it would believe itself slow: what it does every so often it would do always, and turns would be short.
 */
enum { CLOCK_NS = 20 };

static uint64_t held; /* ns; 0: not */

int clock_gettime(clockid_t id, struct timespec *time)
{
    static int (*libc)(clockid_t, struct timespec *);

    if (!libc)
        libc = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int error = libc(id, time);

    if (load_relaxed(&held)) {
        held += CLOCK_NS;
        *time = (struct timespec){(time_t)(held / NS_PER_SECOND), (long)(held % NS_PER_SECOND)};
    }
    return error;
}

/* The worker is before this function, awake. */
static void stop_at(void *function)
{
    orders->address = (uintptr_t)function;
    store_release(&orders->order, (uint32_t)ORDER_STOP);
    while (load_acquire(&orders->order) != ORDER_NONE) {
        worker_wake(engine->page);
        sched_yield();
    }
}

/* Before it looks for what tenants have rung for; before it looks for what NICs have done. */
static void stop_before_doorbells(void)
{
    stop_at((void *)(uintptr_t)timers_run);
}

static void stop_before_completions(void)
{
    stop_before_doorbells();
    stop_at((void *)(uintptr_t)nic_serve);
}

struct tally {
    uint64_t engine, library;
};

static void step_until(const volatile uint32_t *word, uint32_t value, struct tally *tally)
{
    store_relaxed(&held, clock_now());
    orders->word = word;
    orders->value = value;
    give(ORDER_STEP);
    tally->engine += orders->engine;
    tally->library += orders->in_library;
    store_relaxed(&held, 0);
    give(ORDER_FREE);
}

/* Until so many CQEs from the next one on are there. */
static void step_until_cqe(const struct client *client, uint32_t count, struct tally *tally)
{
    uint32_t last = client->polled + count - 1;

    step_until(&client->ring[last & (client->cq_entries - 1)].turn, last / client->cq_entries + 1, tally);
}

static void take(struct client *client, uint32_t count)
{
    while (count--)
        CHECK(wait_cqe(client).status == IBV_WC_SUCCESS);
}

struct kind {
    const char *name;
    uint8_t opcode;
    uint32_t bytes;
};

static void post(struct client *client, const struct client *to, const struct kind *kind, uint32_t count)
{
    while (count--) {
        post_write(client, to, 0, kind->bytes);
        client->posted--;
        slot(client)->opcode = kind->opcode;
        client->posted++;
    }
    publish(client);
}

static void post_receives(struct client *client, uint32_t bytes, uint32_t count)
{
    while (count--)
        post_receive(client, 0, 0, bytes);
}

/* Nobody watches its send queue: what is posted next rings. */
static void await_rest(const struct client *client)
{
    while (!load_relaxed(&client->shared->sq.armed))
        sched_yield();
}

static void connect(struct client *client, uint32_t peer, uint32_t transport)
{
    struct sluice_qp_attr now, attr = {
        .dest_qp_num = peer, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 16, .max_dest_rd_atomic = 16,
        .path_mtu = IBV_MTU_1024, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
        .ah = {.is_global = 1, .port_num = 1}};

    for (attr.qp_state = IBV_QPS_INIT; attr.qp_state <= IBV_QPS_RTS; attr.qp_state++)
        CHECK(sluice_qp_modify(engine, client->session, client->qp, &attr,
                               IBV_QP_STATE | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                   IBV_QP_ACCESS_FLAGS | IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_AV,
                               transport, (int32_t)tenant, &now) == 0);
}

/* With a region that may be read as well. */
static void open_with_region(struct client *client)
{
    open_client(client);
    client->key = command(client, (struct sluice_command){
        .op = SLUICE_COMMAND_REG_MR, .pd = client->pd, .addr = (uintptr_t)client->memory, .iova = (uintptr_t)client->memory,
        .length = MEMORY, .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ});
}

/* ---- what is counted ------------------------------------------------------------ */

/* How often each is counted, after once that isn't. */
enum { TIMES = 2, TIMES_ALONE = 6 };

static void print(const char *transport, const struct kind *kind, uint32_t list, uint32_t messages, const struct tally *out,
                  const struct tally *in)
{
    printf("%-6s %-12s %-12s %8.0f", transport, kind->name, list == 1 ? "alone" : "in lists", (double)out->engine / messages);
    if (in)
        printf(" %12.0f %8.0f %12.0f", (double)in->engine / messages, (double)(out->engine + in->engine) / messages,
               (double)(out->library + in->library) / messages);
    printf("\n");
    fflush(stdout);
}

static void name(const char *transport, const struct kind *kind, uint32_t list)
{
    snprintf(orders->what, sizeof(orders->what), "%s %s, %u", transport, kind->name, list);
}

static void send_by_nic(struct client *client, const struct kind *kind, uint32_t list)
{
    struct nic_qp *twin = engine->sessions[client->session]->qps[client->qp]->twin;
    uint32_t times = list == 1 ? TIMES_ALONE : TIMES;
    struct tally out = {0}, in = {0}, before = {0};

    name("nic", kind, list);
    for (uint32_t time = 0; time <= times; time++) {
        fake_hold(1);
        await_rest(client);
        stop_before_doorbells();
        post(client, client, kind, list);
        step_until(&twin->posted, twin->posted + list, time ? &out : &before);
        stop_before_completions();
        fake_hold(0);
        step_until_cqe(client, list, time ? &in : &before);
        take(client, list);
    }
    print("nic", kind, list, times * list, &out, &in);
}

static void receive_by_nic(struct client *client, const struct kind *kind, uint32_t list)
{
    uint32_t times = list == 1 ? TIMES_ALONE : TIMES;
    struct tally out = {0}, in = {0}, before = {0};

    name("nic", kind, list);
    for (uint32_t time = 0; time <= times; time++) {
        await_rest(client);
        stop_before_doorbells();
        post_receives(client, kind->bytes, list);
        step_until(&client->shared->taken, client->receives, time ? &out : &before);
        stop_before_completions();
        for (uint32_t i = 0; i < list; i++)
            CHECK(fake_receive(client->qp_num, kind->bytes));
        step_until_cqe(client, list, time ? &in : &before);
        take(client, list);
    }
    print("nic", kind, list, times * list, &out, &in);
}

static void send_locally(struct client *client, struct client *to, const struct kind *kind, uint32_t list)
{
    uint32_t times = list == 1 ? TIMES_ALONE : TIMES;
    struct tally out = {0}, before = {0};

    name("local", kind, list);
    for (uint32_t time = 0; time <= times; time++) {
        if (kind->opcode == IBV_WR_SEND)
            post_receives(to, kind->bytes, list);
        await_rest(client);
        stop_before_doorbells();
        post(client, to, kind, list);
        step_until_cqe(client, list, time ? &out : &before);
        take(client, list);
        if (kind->opcode == IBV_WR_SEND)
            take(to, list);
    }
    print("local", kind, list, times * list, &out, NULL);
}

/*
 * A crowd: tenants that each write 8 bytes to themselves again and again, in turns, without limits and with those of isolation/isolation.py,
 * which are never met.
 */
enum { CROWD = 10, CROWD_LIST = 128 };

static uint64_t count_messages(const uint32_t *tenants)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < CROWD; i++)
        sum += engine->tenants[tenants[i]]->counters->tx_messages;
    return sum;
}

static void crowd(struct client *clients, const uint32_t *tenants, const struct sluice_shape *shape, const char *what)
{
    struct kind kind = {"WRITE 8 B", IBV_WR_RDMA_WRITE, 8};
    struct tally counted = {0}, before = {0};
    uint64_t messages = 0;

    for (uint32_t i = 0; i < CROWD; i++)
        CHECK(sluice_tenant_shape(engine, tenants[i], shape) == 0);
    snprintf(orders->what, sizeof(orders->what), "%d tenants, %s", CROWD, what);
    for (uint32_t time = 0; time <= TIMES; time++) {
        for (uint32_t i = 0; i < CROWD; i++)
            await_rest(&clients[i]);
        stop_before_doorbells();
        for (uint32_t i = 0; i < CROWD; i++) {
            for (uint32_t n = 0; n < CROWD_LIST; n++) {
                struct sluice_wqe *wqe = slot(&clients[i]);

                post_write(&clients[i], &clients[i], 0, kind.bytes);
                wqe->flags = n + 1 < CROWD_LIST ? 0 : SLUICE_WQE_SIGNALED;
            }
            publish(&clients[i]);
        }
        uint64_t start = count_messages(tenants);

        step_until_cqe(&clients[0], 1, time ? &counted : &before);
        messages += time ? count_messages(tenants) - start : 0;
        for (uint32_t i = 0; i < CROWD; i++)
            take(&clients[i], 1);
    }
    printf("%-6s %-12s %-12s %10.1f\n", "local", kind.name, what, (double)counted.engine / (double)messages);
    fflush(stdout);
}

static void count_limits(void)
{
    struct sluice_shape none = {0}, all = {
        .share = {.min_bps = {1000000, 1000000}, .max_bps = {10000000000000, 10000000000000}, .weight = 200},
        .max_operations = 1000000000};
    static struct client clients[CROWD];
    uint32_t tenants[CROWD];

    send_entries = CROWD_LIST;
    for (uint32_t i = 0; i < CROWD; i++) {
        tenants[i] = tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
        open_client(&clients[i]);
        connect(&clients[i], clients[i].qp_num, SLUICE_TRANSPORT_LOCAL);
    }
    printf("%d tenants that write to themselves at a time\n", CROWD);
    crowd(clients, tenants, &none, "no limits");
    crowd(clients, tenants, &all, "all limits");
}

static int find_library(struct dl_phdr_info *info, size_t size, void *argument)
{
    (void)size;
    (void)argument;
    if (!strstr(info->dlpi_name, "libibverbs"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            orders->library = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            orders->library_end = orders->library + info->dlpi_phdr[i].p_memsz;
        }
    return 1;
}

static pid_t find_worker(void)
{
    char path[64], name[32];
    DIR *tasks = opendir("/proc/self/task");
    pid_t found = 0;

    CHECK(tasks);
    for (struct dirent *task; (task = readdir(tasks));) {
        snprintf(path, sizeof(path), "/proc/self/task/%.16s/comm", task->d_name);
        FILE *file = fopen(path, "r");

        if (file && fgets(name, sizeof(name), file) && strcmp(name, "sluice-worker\n") == 0)
            found = atoi(task->d_name);
        if (file)
            fclose(file);
    }
    closedir(tasks);
    return found;
}

static void be_counted(void)
{
    static const struct kind sends[] = {
        {"WRITE 8 B", IBV_WR_RDMA_WRITE, 8}, {"WRITE 64 KiB", IBV_WR_RDMA_WRITE, BIG},
        {"READ 8 B", IBV_WR_RDMA_READ, 8},   {"READ 64 KiB", IBV_WR_RDMA_READ, BIG},
        {"SEND 8 B", IBV_WR_SEND, 8},        {"SEND 64 KiB", IBV_WR_SEND, BIG},
    }, receives[] = {{"RECV 8 B", 0, 8}, {"RECV 64 KiB", 0, BIG}};
    enum { SENDS = sizeof(sends) / sizeof(*sends), RECEIVES = sizeof(receives) / sizeof(*receives) };
    struct sluice_shape shape = {0};
    struct client client, one, other;
    struct sluice_nic nic;

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    CHECK(sluice_nic_open(engine, 0, "fake0", 1) == 0 && sluice_nic_query(engine, 0, &nic) == 0);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &shape);
    open_with_region(&client);
    open_with_region(&one);
    open_with_region(&other);
    connect(&client, 1000, SLUICE_TRANSPORT_NIC);
    connect(&one, other.qp_num, SLUICE_TRANSPORT_LOCAL);
    connect(&other, one.qp_num, SLUICE_TRANSPORT_LOCAL);
    dl_iterate_phdr(find_library, NULL);
    while (!(orders->worker = find_worker()))
        sched_yield();
    CHECK(orders->library);

    printf("instructions per message; in lists: of %d\n", LIST);
    printf("%-6s %-12s %-12s %8s %12s %8s %12s\n", "", "", "", "posted", "done to CQE", "both", "(library)");
    for (uint32_t list = 1; list <= LIST; list += LIST - 1) {
        for (uint32_t i = 0; i < SENDS; i++)
            send_by_nic(&client, &sends[i], list);
        for (uint32_t i = 0; i < RECEIVES; i++)
            receive_by_nic(&client, &receives[i], list);
        for (uint32_t i = 0; i < SENDS; i++)
            send_locally(&one, &other, &sends[i], list);
    }
    count_limits();
    stop_before_doorbells();
    give(ORDER_END);
    exit(0);
}

int main(int argc, char **argv)
{
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
        fprintf(stderr, "usage: instructions [FILE]: counts, and writes to FILE the address of each instruction of a message\n");
        return 2;
    }
    orders = mmap(NULL, sizeof(*orders), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(orders != MAP_FAILED);
    if (argc > 1)
        CHECK(addresses = fopen(argv[1], "w"));
    pid_t other = fork();

    CHECK(other >= 0);
    if (other == 0)
        be_counted();
    return serve(other);
}
