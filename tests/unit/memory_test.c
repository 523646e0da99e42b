/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys, windows and memory of all kinds, with this program in the shim's place: also
 * what a hostile one asks for, and sessions that end in the middle of a copy.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "atomic.h"
#include "check.h"
#include "client.h"
#include "closing.h"
#include "mr.h"
#include "worker.h"

enum { ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_MW_BIND };

static struct sluice_command reg_mr(const struct client *client)
{
    return (struct sluice_command){.op = SLUICE_COMMAND_REG_MR, .pd = client->pd, .access = ALL,
                                   .addr = (uintptr_t)client->memory, .iova = (uintptr_t)client->memory,
                                   .length = MEMORY};
}

static const struct sluice_tenant_counters *counters(void)
{
    return engine->tenants[tenant]->counters;
}

static void an_old_key_never_fits(void)
{
    struct client a;
    uint32_t before = 0;
    unsigned seen[16] = {0};

    open_client(&a);
    for (int i = 0; i < 20000; i++) {
        uint32_t key = command(&a, reg_mr(&a));

        CHECK(key != before && (!before || key >> MR_VARIANT_BITS == before >> MR_VARIANT_BITS));
        before = key;
        seen[key >> 8 & 15]++;
        command(&a, (struct sluice_command){.op = SLUICE_COMMAND_DEREG_MR, .pd = a.pd, .key = key});
        struct sluice_command again = {.op = SLUICE_COMMAND_DEREG_MR, .pd = a.pd, .key = key};

        CHECK(try_command(&a, &again) == EINVAL);
    }
    for (int i = 0; i < 16; i++)
        CHECK(seen[i] > 500);
    close_client(&a);
    CHECK(counters()->mrs == 0 && counters()->mws == 0 && counters()->mr_bytes == 0);
}

static bool has_keys(void)
{
    worker_enter(engine);
    bool has = counters()->mrs || counters()->mws || counters()->mr_bytes;

    worker_leave(engine);
    return has;
}

/* Whatever is asked for, what is counted comes out even. */
static void nonsense_is_refused(void)
{
    struct client a;
    uint64_t random = 88172645463325252ull;
    uint32_t keys[64] = {0};

    open_client(&a);
    for (int i = 0; i < 100000; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint32_t which = random >> 8 & 63;
        struct sluice_command what = reg_mr(&a);

        what.op = random % 7;
        what.key = random & 0x10000 ? keys[which] : (uint32_t)(random >> 32);
        what.flags = random >> 20 & 7;
        if (random & 0x20000)
            what.access = (uint32_t)(random >> 24);
        if ((random >> 40 & 15) == 0)
            what.length = random;
        if ((random >> 44 & 15) == 0)
            what.addr = random << 7;
        if ((random >> 48 & 15) == 0)
            what.iova = ~random;
        if ((random >> 52 & 15) == 0)
            what.memory = (uint32_t)random;
        if ((random >> 56 & 15) == 0)
            what.pd = (uint32_t)random;
        if (try_command(&a, &what) == 0 && what.op != SLUICE_COMMAND_DEREG_MR && what.op != SLUICE_COMMAND_DEALLOC_MW)
            keys[which] = what.key;
    }
    CHECK(counters()->mrs + counters()->mws <= 100000);
    close_client(&a);
    /* They may be many, which end in turns. */
    while (has_keys())
        sched_yield();
}

static void post_bind(struct client *client, uint32_t key, uint32_t lkey, uint64_t addr, uint64_t length,
                      uint32_t access)
{
    struct sluice_wqe *wqe = slot(client);

    *wqe = (struct sluice_wqe){.opcode = IBV_WR_BIND_MW, .flags = SLUICE_WQE_SIGNALED, .remote_addr = addr,
                               .rkey = key, .imm_data = lkey};
    *(struct sluice_bind *)(wqe + 1) = (struct sluice_bind){.length = length, .access = access};
    client->posted++;
}

static void windows_end_with_what_they_hang_on(void)
{
    struct client a, b;

    for (int how = 0; how < 4; how++) {
        open_client(&a);
        open_client(&b);
        join(&a, &b);
        uint32_t region = command(&a, reg_mr(&a));
        uint32_t window = command(&a, (struct sluice_command){
            .op = SLUICE_COMMAND_ALLOC_MW, .pd = a.pd, .flags = IBV_MW_TYPE_2});

        post_bind(&a, window ^ 1, region, (uintptr_t)a.memory, MEMORY, IBV_ACCESS_REMOTE_WRITE);
        publish(&a);
        CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS);
        struct sluice_command dereg = {.op = SLUICE_COMMAND_DEREG_MR, .pd = a.pd, .key = region};

        CHECK(try_command(&a, &dereg) == EBUSY);
        /* The window, its QP, the session; or another session that knows the keys. */
        if (how == 0)
            command(&a, (struct sluice_command){.op = SLUICE_COMMAND_DEALLOC_MW, .pd = a.pd, .key = window});
        if (how == 1)
            CHECK(sluice_qp_destroy(engine, a.session, a.qp) == 0);
        if (how == 3) {
            struct sluice_command theft = {.op = SLUICE_COMMAND_DEALLOC_MW, .pd = b.pd, .key = window};

            CHECK(try_command(&b, &theft) == EINVAL);
            theft = dereg;
            theft.pd = b.pd;
            CHECK(try_command(&b, &theft) == EINVAL);
            post_bind(&b, window ^ 2, region, (uintptr_t)a.memory, 8, IBV_ACCESS_REMOTE_WRITE);
            publish(&b);
            CHECK(wait_cqe(&b).status == IBV_WC_MW_BIND_ERR);
        }
        if (how < 2)
            command(&a, dereg);
        close_client(&a);
        close_client(&b);
        CHECK(counters()->mrs == 0 && counters()->mws == 0);
    }
}

static int resize(const struct client *client, const struct sluice_resize_cq_request *request,
                  struct sluice_resize_cq_reply *reply)
{
    struct sluice_engine_event event;
    int result;

    while ((result = sluice_cq_resize(engine, client->session, request, reply)) == -EINPROGRESS) {
        while (!sluice_engine_next_event(engine, &event))
            sched_yield();
        CHECK(event.kind == SLUICE_EVENT_VERB && event.session == (uint32_t)client->session);
    }
    return result;
}

/* It takes many turns to copy what waits; what comes meanwhile comes after it. */
static void a_long_queue_is_resized_in_turns(void)
{
    enum { WAITING = 20000, MORE = 50 };
    struct client a, b;
    struct sluice_resize_cq_request request = {.cqe = 65536};
    struct sluice_resize_cq_reply reply;
    uint32_t posted = 0, polled = 0, longer = 0;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    request.handle = a.cq_handle;
    CHECK(resize(&a, &request, &reply) == 0);
    a.ring = (struct sluice_cqe *)((uint8_t *)a.segment + reply.ring);
    a.cq_entries = reply.cqe;
    for (; posted < WAITING; posted++) {
        post_write(&a, &b, posted, 8);
        publish(&a);
        while (load_acquire(&a.ring[posted & (a.cq_entries - 1)].turn) == 0)
            sched_yield();
    }
    for (uint32_t cqe = 1 << 17; cqe >= 1 << 16; cqe /= 2) {
        int result;

        request.cqe = cqe;
        while ((result = sluice_cq_resize(engine, a.session, &request, &reply)) == -EINPROGRESS) {
            if (longer++ == 0)
                for (; posted < WAITING + MORE; posted++) {
                    post_write(&a, &b, posted, 8);
                    publish(&a);
                }
            sched_yield();
        }
        CHECK(result == 0 && reply.cqe == cqe);
        a.ring = (struct sluice_cqe *)((uint8_t *)a.segment + reply.ring);
        a.cq_entries = reply.cqe;
    }
    CHECK(longer);
    for (; polled < posted; polled++) {
        struct sluice_cqe cqe = wait_cqe(&a);

        CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == polled);
    }
    /* In the middle of another, the session ends. */
    request.cqe = 1 << 17;
    for (polled = 0; polled < 1000; polled++) {
        post_write(&a, &b, polled, 8);
        publish(&a);
        while (load_acquire(&a.ring[(posted + polled) & (a.cq_entries - 1)].turn) != (posted + polled) / a.cq_entries + 1)
            sched_yield();
    }
    CHECK(sluice_cq_resize(engine, a.session, &request, &reply) == -EINPROGRESS);
    close_client(&a);
    close_client(&b);
    struct sluice_engine_event event;

    while (sluice_engine_next_event(engine, &event))
        ;
}

static void a_queue_is_resized_in_order(void)
{
    struct client a, b;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    for (uint32_t i = 0; i < 400; i++) {
        struct sluice_resize_cq_request request = {.handle = a.cq_handle, .cqe = 32 + i * 13 % 700};
        struct sluice_resize_cq_reply reply;

        for (uint32_t j = 0; j < 20; j++)
            post_write(&a, &b, i * 20 + j, 8);
        publish(&a);
        for (uint32_t j = 0; j < 20; j++) {
            /* In the middle: while the engine may still be completing. */
            if (j == i % 20) {
                CHECK(resize(&a, &request, &reply) == 0 && reply.cqe >= request.cqe);
                a.ring = (struct sluice_cqe *)((uint8_t *)a.segment + reply.ring);
                a.cq_entries = reply.cqe;
            }
            struct sluice_cqe cqe = wait_cqe(&a);

            CHECK(cqe.status == IBV_WC_SUCCESS && cqe.wr_id == i * 20 + j);
        }
    }
    struct sluice_resize_cq_request none = {.handle = a.cq_handle + 1000, .cqe = 4};
    struct sluice_resize_cq_reply reply;

    CHECK(sluice_cq_resize(engine, a.session, &none, &reply) == -EINVAL);
    none.handle = a.cq_handle;
    none.cqe = 0;
    CHECK(sluice_cq_resize(engine, a.session, &none, &reply) == -EINVAL);
    /* A consumer index from nowhere. */
    none.cqe = 64;
    store_release(&a.cq->consumer, 0x40000000u);
    CHECK(sluice_cq_resize(engine, a.session, &none, &reply) == -EIO);
    expect_broken(&a);
    close_client(&a);
    close_client(&b);
}

#ifndef __SANITIZE_THREAD__ /* which leaves room for few windows */
/* b's memory, all of it, under one key. */
static uint32_t everywhere(struct client *b)
{
    struct sluice_command what = reg_mr(b);

    what.addr = what.iova = 0;
    what.length = ARENA_SIZE;
    return command(b, what);
}

/* Touches so many windows of b, one after the other. */
static void touch(struct client *a, struct client *b, uint32_t key, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        post_write(a, b, i, 8);
        struct sluice_wqe *wqe =
            (struct sluice_wqe *)((uint8_t *)a->sq + ((a->posted - 1) & (ENTRIES - 1)) * a->sq_stride);

        wqe->rkey = key;
        wqe->remote_addr = (1ull << 32) + i * WINDOW_SIZE;
        publish(a);
        CHECK(wait_cqe(a).status == IBV_WC_SUCCESS);
    }
}

/* A tenant that touches memory everywhere keeps no window from the others, and goes on itself. */
static void windows_are_shared_out(void)
{
    struct client a, b;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    touch(&a, &b, everywhere(&b), 3 * WINDOWS_OF_TENANT);
    CHECK(engine->tenants[tenant]->windows <= WINDOWS_OF_TENANT);
    close_client(&b);
    close_client(&a);
    CHECK(engine->tenants[tenant]->windows == 0);
}

/* Many tenants who together want more windows than the node has leave enough for one that comes late. */
static void colluding_tenants_leave_windows(void)
{
    enum { GREEDY = 20, ENOUGH = 128 };
    static struct client ends[GREEDY + 1][2];
    uint32_t first = tenant, tenants[GREEDY + 1];
    struct sluice_shape none = {0};

    for (uint32_t i = 0; i <= GREEDY; i++) {
        tenant = tenants[i] = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
        CHECK((int)tenant >= 0);
        open_client(&ends[i][0]);
        open_client(&ends[i][1]);
        join(&ends[i][0], &ends[i][1]);
        touch(&ends[i][0], &ends[i][1], everywhere(&ends[i][1]), i < GREEDY ? 2 * WINDOWS_OF_TENANT : ENOUGH);
    }
    CHECK(engine->tenants[tenant]->windows >= ENOUGH);
    for (uint32_t i = 0; i <= GREEDY; i++) {
        CHECK(engine->tenants[tenants[i]]->windows <= WINDOWS_OF_TENANT);
        close_client(&ends[i][0]);
        close_client(&ends[i][1]);
        CHECK(sluice_tenant_remove(engine, tenants[i]) == 0);
    }
    tenant = first;
}
#endif

/* A tenant that opens all that it may open is refused more, and another one isn't. */
static uint32_t files_of(uint32_t number)
{
    worker_enter(engine);
    uint32_t files = engine->tenants[number]->files;

    worker_leave(engine);
    return files;
}

static void files_are_shared_out(void)
{
    struct rlimit before, few = {.rlim_cur = 1024};
    uint32_t first = tenant;
    struct sluice_shape none = {0};
    struct client a, b;
    int fd, handle, count = 0;

    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few.rlim_max = before.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    open_client(&a);
    const uint64_t refused = engine->tenants[tenant]->counters->refused[SLUICE_LIMIT_FILES];

    while ((handle = sluice_channel_create(engine, a.session, &fd)) > 0) {
        close(fd);
        count++;
    }
    CHECK(handle == -EMFILE && count > 64 && count < 128);
    CHECK(sluice_context_open(engine, a.session, 0, &fd) == -EMFILE);
    CHECK(engine->tenants[tenant]->counters->refused[SLUICE_LIMIT_FILES] == refused + 2);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    open_client(&b);
    handle = sluice_channel_create(engine, b.session, &fd);
    CHECK(handle > 0 && close(fd) == 0);
    CHECK(sluice_channel_destroy(engine, b.session, (uint32_t)handle) == 0);
    close_client(&b);
    CHECK(engine->tenants[tenant]->files == 0 && sluice_tenant_remove(engine, tenant) == 0);
    tenant = first;
    close_client(&a);
    /* It had much, which ends in turns. */
    while (files_of(tenant))
        sched_yield();
    closing_wait();
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
}

static uint32_t open_files(void)
{
    uint32_t count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* What a session had, a thread gives back: nothing of it stays, and until then it counts for its tenant. */
static void a_session_leaves_nothing(void)
{
    uint32_t files = open_files();
    struct client a, b;

    for (int i = 0; i < 50; i++) {
        open_client(&a);
        open_client(&b);
        join(&a, &b);
        CHECK(engine->tenants[tenant]->session_count == 2);
        close_client(&a);
        close_client(&b);
    }
    CHECK(engine->tenants[tenant]->windows == 0 && engine->tenants[tenant]->files == 0);
    CHECK(closing_count(tenant) == 0 && open_files() == files);
}

/* ---- memory of other kinds --------------------------------------------- */

static void only_files_in_memory(void)
{
    struct client a;
    int fds[2], memfd = memfd_create("test", MFD_CLOEXEC);
    char disk[] = "memory-test-XXXXXX", read_only[64];

    open_client(&a);
    CHECK(pipe2(fds, O_CLOEXEC) == 0 && memfd >= 0);
    CHECK(sluice_memory_open_file(engine, a.session, fds[0], 0) == -EOPNOTSUPP);
    CHECK(sluice_memory_open_file(engine, a.session, -1, 0) == -EBADF);
    CHECK(sluice_memory_open_file(engine, a.session, memfd, 1) == -EINVAL); /* empty */
    CHECK(ftruncate(memfd, MEMORY) == 0);
    snprintf(read_only, sizeof(read_only), "/proc/self/fd/%d", memfd);
    int reader = open(read_only, O_RDONLY | O_CLOEXEC);

    CHECK(reader >= 0 && sluice_memory_open_file(engine, a.session, reader, 1) == -EACCES);
    int file = mkstemp(disk);

    CHECK(file >= 0 && unlink(disk) == 0 && ftruncate(file, MEMORY) == 0);
    int handle = sluice_memory_open_file(engine, a.session, file, 1);

    CHECK(handle == -EOPNOTSUPP || handle > 0); /* where this directory is a tmpfs */
    if (handle < 0)
        close(file);

    /* To be read only: no region of it can be written, nor a window bound that could. */
    handle = sluice_memory_open_file(engine, a.session, reader, 0);
    CHECK(handle > 0);
    struct sluice_command what = reg_mr(&a);

    what.memory = (uint32_t)handle;
    what.addr = 0;
    CHECK(try_command(&a, &what) == EINVAL);
    what.access = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_MW_BIND;
    CHECK(try_command(&a, &what) == 0);
    struct sluice_command more = {.op = SLUICE_COMMAND_REREG_MR, .pd = a.pd, .key = what.key, .flags = IBV_REREG_MR_CHANGE_ACCESS,
                                  .access = ALL};

    CHECK(try_command(&a, &more) == EINVAL);
    CHECK(sluice_memory_close(engine, a.session, (uint32_t)handle) == -EBUSY);
    command(&a, (struct sluice_command){.op = SLUICE_COMMAND_DEREG_MR, .pd = a.pd, .key = what.key});
    CHECK(sluice_memory_close(engine, a.session, (uint32_t)handle) == 0);
    CHECK(sluice_memory_close(engine, a.session, (uint32_t)handle) == -EINVAL);
    CHECK(sluice_memory_close(engine, a.session, 0) == -EINVAL);
    close(memfd);
    close(fds[0]);
    close(fds[1]);
    close_client(&a);
}

static uint32_t mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    uint32_t lines = 0;

    for (int c; (c = getc(maps)) != EOF;)
        lines += c == '\n';
    fclose(maps);
    return lines;
}

/*
 * Pages that could not be had, in more windows than one message should need: whatever was put in their place is gone with
 * the message, or a tenant could use up the router's mappings.
 */
static void a_file_that_was_cut_off_leaves_no_mapping(void)
{
    struct client a, b;
    uint32_t before = 0;
    int file = memfd_create("test", MFD_CLOEXEC);

    CHECK(file >= 0 && ftruncate(file, (off_t)(SLUICE_MAX_SGE * WINDOW_SIZE)) == 0);
    send_sges = SLUICE_MAX_SGE;
    open_client(&a);
    send_sges = 1;
    open_client(&b);
    int handle = sluice_memory_open_file(engine, a.session, fcntl(file, F_DUPFD_CLOEXEC, 3), 1);
    struct sluice_command what = reg_mr(&a);

    CHECK(handle > 0);
    what.memory = (uint32_t)handle;
    what.addr = what.iova = 0;
    what.length = SLUICE_MAX_SGE * WINDOW_SIZE;
    uint32_t key = command(&a, what);

    CHECK(ftruncate(file, 0) == 0);
    for (uint32_t round = 0; round < 50; round++) {
        struct sluice_wqe *wqe = slot(&a);
        struct sluice_sge *sges = (struct sluice_sge *)(wqe + 1);

        join(&a, &b);
        post_write(&a, &b, round, 0);
        wqe->num_sge = SLUICE_MAX_SGE;
        for (uint32_t i = 0; i < SLUICE_MAX_SGE; i++)
            sges[i] = (struct sluice_sge){.addr = i * WINDOW_SIZE + round * 8192ull, .length = 1, .lkey = key};
        publish(&a);
        CHECK(wait_cqe(&a).status == IBV_WC_REM_OP_ERR);
        move(&a, IBV_QPS_RESET, 0);
        move(&b, IBV_QPS_RESET, 0);
        if (round == 0)
            before = mappings();
    }
    CHECK(mappings() < before + SLUICE_MAX_SGE);
    close(file);
    close_client(&a);
    close_client(&b);
}

/* A second region of b's: ordinary memory of this process, which the engine reaches as another's. */
static void reach_process(struct client *b, uint8_t *memory)
{
    int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

    CHECK(mem >= 0);
    int handle = sluice_memory_open_process(engine, b->session, mem);

    CHECK(handle > 0);
    struct sluice_command what = reg_mr(b);

    what.memory = (uint32_t)handle;
    what.addr = what.iova = (uintptr_t)memory;
    b->key = command(b, what);
    munmap(b->memory, MEMORY);
    b->memory = memory;
}

static uint8_t *fresh_memory(void)
{
    return mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void a_thread_copies_what_the_worker_cannot(void)
{
    struct client a, b;

    open_client(&a);
    open_client(&b);
    join(&a, &b);
    reach_process(&b, fresh_memory());
    CHECK(sluice_memory_open_process(engine, b.session, -1) == -EBUSY);
    for (uint32_t length = 1; length <= MEMORY; length = length * 3 + 1) {
        for (uint32_t i = 0; i < length; i++)
            a.memory[i] = (uint8_t)(i * 31 + length);
        post_write(&a, &b, length, length);
        publish(&a);
        CHECK(wait_cqe(&a).status == IBV_WC_SUCCESS && memcmp(a.memory, b.memory, length) == 0);
    }
    /* Memory that is not there any more. */
    mprotect(b.memory, MEMORY, PROT_NONE);
    munmap(b.memory, MEMORY);
    b.memory = fresh_memory();
    struct sluice_command what = reg_mr(&b);

    what.addr = what.iova = 4096;
    what.memory = list_entry(engine->sessions[b.session]->memories.next, struct memory, link)->handle;
    b.key = command(&b, what);
    uint8_t *memory = b.memory;

    b.memory = (uint8_t *)4096;
    post_write(&a, &b, 1, 8);
    publish(&a);
    CHECK(wait_cqe(&a).status == IBV_WC_REM_OP_ERR);
    b.memory = memory;
    close_client(&a);
    close_client(&b);
}

/* Whoever goes first, in whatever moment. */
static void ends_in_the_middle(void)
{
    for (int round = 0; round < 60; round++) {
        struct client a, b;
        uint8_t *memory = fresh_memory();

        open_client(&a);
        open_client(&b);
        join(&a, &b);
        reach_process(&b, memory);
        for (uint32_t i = 0; i < 8; i++)
            post_write(&a, &b, i, MEMORY);
        publish(&a);
        for (int i = 0; i < round * 50; i++)
            spin_hint();
        switch (round % 4) {
        case 0:
            close_client(&b);
            close_client(&a);
            break;
        case 1:
            close_client(&a);
            close_client(&b);
            break;
        case 2:
            move(&a, IBV_QPS_ERR, 0);
            for (uint32_t i = 0; i < 8; i++)
                wait_cqe(&a);
            close_client(&a);
            close_client(&b);
            break;
        case 3:
            move(&a, IBV_QPS_RESET, 0);
            move(&b, IBV_QPS_RESET, 0);
            join(&a, &b);
            post_write(&a, &b, 77, MEMORY);
            publish(&a);
            for (struct sluice_cqe cqe = wait_cqe(&a); cqe.wr_id != 77; cqe = wait_cqe(&a))
                ;
            close_client(&a);
            close_client(&b);
            break;
        }
    }
}

int main(void)
{
    struct sluice_shape none = {0};

    CHECK(sluice_engine_open(NULL, &engine) == 0);
    tenant = (uint32_t)sluice_tenant_add(engine, 0, -1, &none);
    RUN(an_old_key_never_fits);
    RUN(nonsense_is_refused);
    RUN(windows_end_with_what_they_hang_on);
    RUN(a_queue_is_resized_in_order);
    RUN(a_long_queue_is_resized_in_turns);
#ifndef __SANITIZE_THREAD__
    RUN(windows_are_shared_out);
    RUN(colluding_tenants_leave_windows);
#endif
    RUN(files_are_shared_out);
    RUN(a_session_leaves_nothing);
    RUN(only_files_in_memory);
    RUN(a_file_that_was_cut_off_leaves_no_mapping);
    RUN(a_thread_copies_what_the_worker_cannot);
    RUN(ends_in_the_middle);
    CHECK(sluice_tenant_remove(engine, tenant) == 0);
    sluice_engine_close(engine);
    return 0;
}
