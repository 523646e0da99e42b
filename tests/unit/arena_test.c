/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The identity arena: contents, neighbours, fork and errors; once with userfaultfd
 * (where this machine has it) and once with the fallback.
 */
#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "abi.h"
#include "check.h"

enum { PAGE = 4096 };

static int arena_fd;

/* Through a mapping of the arena's own, as the engine sees it. */
static uint8_t seen(const void *address)
{
    uint8_t byte;

    CHECK(pread(arena_fd, &byte, 1, (off_t)(uintptr_t)address) == 1);
    return byte;
}

static void expect_on_arena(uint8_t *at, size_t length, uint8_t value)
{
    for (size_t i = 0; i < length; i++)
        CHECK(at[i] == value);
    CHECK(seen(at) == value && seen(at + length - 1) == value);
    uint8_t other = (uint8_t)~value;

    CHECK(pwrite(arena_fd, &other, 1, (off_t)(uintptr_t)at) == 1 && at[0] == other);
    at[0] = value;
    CHECK(seen(at) == value);
}

static uint8_t in_bss[3 * PAGE + 17];
static uint8_t in_data[2 * PAGE] = {1, 2, 3};

static void contents_stay(void)
{
    uint8_t *on_heap = malloc(100000);
    uint8_t *mapped = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct {
        uint8_t *at;
        size_t length;
    } places[] = {{on_heap + 3, 99000}, {mapped + 100, 50 * PAGE}, {in_bss + 1, sizeof(in_bss) - 2},
                  {in_data, sizeof(in_data)}, {on_heap, 1}};

    for (unsigned i = 0; i < sizeof(places) / sizeof(*places); i++) {
        memset(places[i].at, (int)(i + 1), places[i].length);
        CHECK(sluice_arena_adopt(places[i].at, places[i].length, 1) == 0);
        expect_on_arena(places[i].at, places[i].length, (uint8_t)(i + 1));
        /* Again, and overlapping: nothing changes. */
        CHECK(sluice_arena_adopt(places[i].at, places[i].length, 1) == 0);
        expect_on_arena(places[i].at, places[i].length, (uint8_t)(i + 1));
    }
    munmap(mapped, 64 * PAGE);
    free(on_heap);
}

static void untouched_memory_is_zero(void)
{
    size_t length = 1ull << 30;
    uint8_t *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct stat before, after;

    mapped[length / 2] = 7;
    CHECK(fstat(arena_fd, &before) == 0);
    CHECK(sluice_arena_adopt(mapped, length, 1) == 0);
    CHECK(fstat(arena_fd, &after) == 0);
    CHECK(after.st_blocks - before.st_blocks < 4096); /* of 512 bytes: untouched pages were not made */
    CHECK(mapped[0] == 0 && mapped[length / 2] == 7 && mapped[length - 1] == 0);
    munmap(mapped, length);
}

static void a_new_mapping_has_nothing_of_the_old(void)
{
    uint8_t *first = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    memset(first, 9, 8 * PAGE);
    CHECK(sluice_arena_adopt(first, 8 * PAGE, 1) == 0);
    munmap(first, 8 * PAGE);
    uint8_t *second = mmap(first, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

    second[PAGE] = 3;
    CHECK(sluice_arena_adopt(second, 8 * PAGE, 1) == 0);
    CHECK(second[0] == 0 && second[PAGE] == 3 && second[7 * PAGE] == 0 && seen(second) == 0);
    munmap(second, 8 * PAGE);
}

static void a_loop_does_not_grow(void)
{
    struct stat status;

    for (int i = 0; i < 400; i++) {
        size_t length = 1 << 20;
        uint8_t *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        memset(mapped, i, length);
        CHECK(sluice_arena_adopt(mapped, length, 1) == 0);
        sluice_arena_retire(mapped, length);
        munmap(mapped, length);
        /* Elsewhere the next time. */
        if (i % 3 == 0)
            CHECK(mmap(mapped, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    }
    CHECK(fstat(arena_fd, &status) == 0);
    CHECK((uint64_t)status.st_blocks * 512 < 200u << 20);
}

static void a_limit_of_file_sizes_does_not_matter(void)
{
    struct rlimit before, limit;
    uint8_t *mapped = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = (struct rlimit){.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    memset(mapped, 6, 4 * PAGE);
    CHECK(sluice_arena_adopt(mapped, 4 * PAGE, 1) == 0);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    expect_on_arena(mapped, 4 * PAGE, 6);
    munmap(mapped, 4 * PAGE);
}

/* ---- neighbours -------------------------------------------------------- */

static uint8_t *shared_page;
static volatile bool stop;
static uint64_t increments;
static int pipe_fds[2];
static bool by_fault;

static void *increment(void *unused)
{
    while (!stop) {
        uint8_t *page = __atomic_load_n(&shared_page, __ATOMIC_ACQUIRE);
        volatile uint64_t *word = (volatile uint64_t *)(page + 8);

        (*word)++;
        increments++;
        __atomic_store_n((uint64_t *)(page + 16), increments, __ATOMIC_RELEASE);
        /* Where all cores are wanted, a round would take a whole time slice. */
        if (increments % 4096 == 0)
            sched_yield();
    }
    return unused;
}

static void *read_into(void *unused)
{
    for (uint64_t i = 1; !stop; i++) {
        uint64_t *word = (uint64_t *)(__atomic_load_n(&shared_page, __ATOMIC_ACQUIRE) + 2048);

        if (write(pipe_fds[1], &i, sizeof(i)) != sizeof(i))
            break;
        ssize_t got = read(pipe_fds[0], word, sizeof(i));

        CHECK(got == sizeof(i) && *(volatile uint64_t *)word == i);
    }
    return unused;
}

static void neighbours_lose_nothing(void)
{
    enum { ROUNDS = 400 };
    pthread_t threads[2];
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *aside = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int count = by_fault ? 2 : 1; /* without userfaultfd a system call gets EFAULT, as documented */

    CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0);
    stop = false;
    increments = 0;
    memset(page, 0, PAGE);
    __atomic_store_n(&shared_page, page, __ATOMIC_RELEASE);
    CHECK(pthread_create(&threads[0], NULL, increment, NULL) == 0);
    if (count == 2)
        CHECK(pthread_create(&threads[1], NULL, read_into, NULL) == 0);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(sluice_arena_adopt(page, 64, 1) == 0);
        /* Private again, for the next round: a fresh page elsewhere, which takes its place in one step. */
        uint64_t done = __atomic_load_n((uint64_t *)(page + 16), __ATOMIC_ACQUIRE);
        uint64_t told = *(volatile uint64_t *)(page + 8);

        CHECK(told + 1 >= done);
        page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        page[100] = 1;
        stop = true;
        for (int j = 0; j < count; j++)
            pthread_join(threads[j], NULL);
        uint8_t *old = shared_page;

        CHECK(*(uint64_t *)(old + 8) == increments);
        munmap(old, PAGE);
        stop = false;
        increments = 0;
        __atomic_store_n(&shared_page, page, __ATOMIC_RELEASE);
        CHECK(pthread_create(&threads[0], NULL, increment, NULL) == 0);
        if (count == 2)
            CHECK(pthread_create(&threads[1], NULL, read_into, NULL) == 0);
        /* Both are under way before the exchange. */
        while (*(volatile uint64_t *)(page + 8) == 0)
            sched_yield();
    }
    stop = true;
    for (int j = 0; j < count; j++)
        pthread_join(threads[j], NULL);
    CHECK(*(uint64_t *)(page + 8) == increments);
    munmap(page, PAGE);
    munmap(aside, PAGE);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* ---- the rest ---------------------------------------------------------- */

static void errors_are_told(void)
{
    uint8_t *read_only = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint8_t *hole = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    munmap(hole + PAGE, PAGE);
    CHECK(sluice_arena_adopt(read_only, PAGE, 1) == EFAULT);
    CHECK(sluice_arena_adopt(read_only, PAGE, 0) == 0);
    CHECK(sluice_arena_adopt(shared, PAGE, 1) == EOPNOTSUPP);
    CHECK(sluice_arena_adopt(hole, 3 * PAGE, 1) == EFAULT);
    CHECK(sluice_arena_adopt(NULL, PAGE, 1) == EFAULT);
    CHECK(sluice_arena_adopt((void *)(1ull << 47), PAGE, 1) == EINVAL);
    CHECK(sluice_arena_adopt((void *)(UINTPTR_MAX - 10), PAGE, 1) == EINVAL);
    CHECK(sluice_arena_adopt(hole, 0, 1) == EINVAL);
    CHECK(sluice_arena_adopt(&hole, sizeof(hole), 1) == EOPNOTSUPP);
}

static volatile sig_atomic_t faults;
static uint8_t *forbidden;

static void on_fault(int number)
{
    (void)number;
    faults++;
    mprotect(forbidden, PAGE, PROT_READ | PROT_WRITE);
}

static void the_applications_handler_works(void)
{
    struct sigaction action = {.sa_handler = on_fault}, before;
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    sigaction(SIGSEGV, &action, &before);
    page[0] = 1;
    CHECK(sluice_arena_adopt(page, PAGE, 1) == 0);
    forbidden = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *(volatile uint8_t *)forbidden = 5;
    CHECK(faults > 0 && forbidden[0] == 5);
    faults = 0;
    sigaction(SIGSEGV, &before, NULL);
}

static void a_child_writes_into_its_own(void)
{
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int status;

    memset(page, 1, PAGE);
    CHECK(sluice_arena_adopt(page, PAGE, 1) == 0);
    pid_t child = fork();

    if (child == 0) {
        sluice_arena_fork_child();
        bool same = page[5] == 1;

        page[5] = 2;
        _exit(same && page[5] == 2 ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(page[5] == 1);
    CHECK(system("true") == 0);
}

/* What a mapping goes on with beyond the pages that are given back stays on the arena. */
static void a_part_becomes_private(void)
{
    uint8_t *pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    memset(pages, 7, 4 * PAGE);
    CHECK(sluice_arena_adopt(pages, 4 * PAGE, 1) == 0);
    CHECK(sluice_arena_release(pages + PAGE, PAGE) == 0);
    expect_on_arena(pages, PAGE, 7);
    CHECK(pages[PAGE] == 7 && pages[2 * PAGE - 1] == 7);
    expect_on_arena(pages + 2 * PAGE, 2 * PAGE, 7);
    munmap(pages, 4 * PAGE);
}

static void all(int device)
{
    by_fault = device >= 0;
    arena_fd = memfd_create("arena", MFD_CLOEXEC);
    CHECK(arena_fd >= 0 && ftruncate(arena_fd, 1ll << SLUICE_ARENA_SHIFT) == 0);
    CHECK(sluice_arena_open(dup(arena_fd), device) == 0);
    RUN(contents_stay);
    RUN(untouched_memory_is_zero);
    RUN(a_new_mapping_has_nothing_of_the_old);
    RUN(a_loop_does_not_grow);
    RUN(a_limit_of_file_sizes_does_not_matter);
    RUN(neighbours_lose_nothing);
    RUN(errors_are_told);
    RUN(the_applications_handler_works);
    RUN(a_part_becomes_private);
    RUN(a_child_writes_into_its_own);
    sluice_arena_close();
    close(arena_fd);
}

int main(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int status;

    /* Each guard in a process of its own: what one has moved isn't moved again by the other. */
    for (int fallback = 0; fallback < 2; fallback++) {
        if (!fallback && device < 0) {
            printf("skipped with userfaultfd: no /dev/userfaultfd for this user\n");
            continue;
        }
        printf("%s\n", fallback ? "with mprotect" : "with userfaultfd");
        fflush(stdout);
        pid_t child = fork();

        if (child == 0) {
            /* Root would be given a userfaultfd by the system call: be somebody who isn't. */
            if (fallback && geteuid() == 0)
                CHECK(setgid(65534) == 0 && setuid(65534) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
            all(fallback ? -1 : device);
            exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    return 0;
}
