/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "closing.h"
#include "tenant.h"

#ifdef __SANITIZE_THREAD__
enum { SLOTS = 64 }; /* its shadow leaves little room */
#else
enum { SLOTS = 16384 };
#endif
enum { ARENA_WINDOWS = 1 << (SLUICE_ARENA_SHIFT - SLUICE_WINDOW_SHIFT), FAULTS = 16 };

/* One entry a slot of the reserved stretch: what is mapped there, to map it again after a fault. */
struct slot {
    int fd; /* -1: free */
    int protection;
    uint64_t offset;
};

static uint8_t *stretch;
static struct slot slots[SLOTS];
static uint32_t free_slots[SLOTS], free_count;
static uint32_t sharers; /* tenants that have any */
static uint32_t leaving[SLUICE_MAX_TENANTS]; /* by tenant: windows of what it has closed, which are mapped still */
static struct sigaction earlier_action;
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;

bool windows_moved;
_Thread_local volatile bool window_fault;
static _Thread_local uint32_t faulted[FAULTS], fault_count;

static void note_fault(uint32_t slot)
{
    for (uint32_t i = 0; i < fault_count; i++)
        if (faulted[i] == slot)
            return;
    if (fault_count < FAULTS)
        faulted[fault_count++] = slot;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    uintptr_t place = (uintptr_t)info->si_addr - (uintptr_t)stretch;

    if (stretch && place < SLOTS * WINDOW_SIZE) {
        int error = errno;
        uintptr_t page = (uintptr_t)info->si_addr & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);

        uint32_t slot = (uint32_t)(place / WINDOW_SIZE);

        /*
         * mmap is a bare system call: safe here. Of huge pages no small one can be
         * replaced, but the whole window can. Where even this fails there is no way on.
         */
        if (mmap((void *)page, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED &&
            mmap(stretch + slot * WINDOW_SIZE, WINDOW_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            abort();
        window_fault = true;
        note_fault(slot);
        errno = error;
        return;
    }
    if (earlier_action.sa_flags & SA_SIGINFO) {
        earlier_action.sa_sigaction(number, info, context);
    } else if (earlier_action.sa_handler != SIG_DFL && earlier_action.sa_handler != SIG_IGN) {
        earlier_action.sa_handler(number);
    } else {
        /* Not ours: the default action, when the access is tried again. */
        signal(SIGBUS, SIG_DFL);
    }
}

int windows_open(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

    if (stretch)
        return 0;
    size_t size = (SLOTS + 1) * WINDOW_SIZE;
    uint8_t *place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (place == MAP_FAILED)
        return -errno;
    /* On a window's own boundary, as files of huge pages need. */
    place = (uint8_t *)(((uintptr_t)place + WINDOW_SIZE - 1) & ~(uintptr_t)(WINDOW_SIZE - 1));
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i].fd = -1;
        free_slots[i] = SLOTS - 1 - i;
    }
    free_count = SLOTS;
    if (sigaction(SIGBUS, &action, &earlier_action))
        return -errno; /* the addresses stay reserved: they cost nothing */
    stretch = place;
    return 0;
}

static bool slot_map(uint32_t slot)
{
    return mmap(stretch + slot * WINDOW_SIZE, WINDOW_SIZE, slots[slot].protection,
                MAP_SHARED | MAP_NORESERVE | MAP_FIXED, slots[slot].fd, (off_t)slots[slot].offset) != MAP_FAILED;
}

static void slot_free(uint32_t slot)
{
    mmap(stretch + slot * WINDOW_SIZE, WINDOW_SIZE, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    slots[slot].fd = -1;
    pthread_mutex_lock(&slots_lock);
    free_slots[free_count++] = slot;
    pthread_mutex_unlock(&slots_lock);
}

static uint32_t slot_of(const struct arena *arena, uint32_t index)
{
    return (uint32_t)((size_t)(arena->windows[index] - stretch) / WINDOW_SIZE);
}

/* Its tenant has so many fewer, of which it had more than none. */
static void count_unmapped(const struct arena *arena, uint32_t count)
{
    if (arena->tenant && (arena->tenant->windows -= count) == 0)
        __atomic_fetch_sub(&sharers, 1, __ATOMIC_RELAXED);
}

static void unmap(struct arena *arena, uint32_t index)
{
    slot_free(slot_of(arena, index));
    arena->windows[index] = NULL;
    arena->mapped--;
    count_unmapped(arena, 1);
}

/* Whether the tenant has as many as it may have now. */
static bool at_its_limit(const struct tenant *tenant)
{
    uint32_t part = SLOTS / 2 / (__atomic_load_n(&sharers, __ATOMIC_RELAXED) + 1);

    if (part < 2)
        part = 2; /* a copy needs two */
    pthread_mutex_lock(&slots_lock);
    bool scarce = free_count <= SLOTS / 2;
    pthread_mutex_unlock(&slots_lock);
    uint32_t has = tenant->windows + __atomic_load_n(&leaving[tenant->number], __ATOMIC_RELAXED);

    return has >= WINDOWS_OF_TENANT || (scarce && has >= part);
}

/* False: it has too few, so that a copy between two of its windows would never get both. */
static bool give_up_one(struct arena *arena)
{
    if (arena->mapped < 3)
        return false;
    while (!arena->windows[arena->hand])
        arena->hand = (arena->hand + 1) % arena->count;
    unmap(arena, arena->hand);
    arena->hand = (arena->hand + 1) % arena->count;
    windows_moved = true;
    return true;
}

static int make_windows(struct arena *arena, uint32_t count)
{
    arena->windows = mmap(NULL, count * sizeof(*arena->windows), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->windows == MAP_FAILED) {
        arena->windows = NULL;
        return -errno;
    }
    arena->count = count;
    return 0;
}

int arena_open(struct arena *arena)
{
    int error = make_windows(arena, ARENA_WINDOWS);

    if (error)
        return error;
    arena->fd = memfd_create("sluice-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (arena->fd < 0 || ftruncate(arena->fd, (off_t)ARENA_SIZE) ||
        fcntl(arena->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        error = -errno;
        arena_close(arena);
        return error;
    }
    return 0;
}

int arena_of_file(struct arena *arena, int fd, uint64_t size, bool writable)
{
    int error = make_windows(arena, (uint32_t)((size + WINDOW_SIZE - 1) / WINDOW_SIZE));

    if (error)
        return error;
    arena->read_only = !writable;
    arena->fd = fd;
    return 0;
}

/* What is left of one: its windows are nobody's any more, and its file. */
struct leftover {
    struct closing closing;
    struct arena arena;
};

/* left: where it is counted how many windows that are to go there still are; NULL: nowhere. Its tenant may be gone. */
static void give_back(struct arena *arena, uint32_t *left)
{
    for (uint32_t i = 0; arena->mapped && i < arena->count; i++) {
        if (!arena->windows[i])
            continue;
        closing_unmap_pages(arena->windows[i], WINDOW_SIZE);
        slot_free(slot_of(arena, i));
        arena->mapped--;
        if (left)
            __atomic_fetch_sub(left, 1, __ATOMIC_RELAXED);
    }
    if (arena->windows)
        munmap(arena->windows, arena->count * sizeof(*arena->windows));
    if (arena->fd >= 0)
        close(arena->fd);
}

static void run(struct closing *closing)
{
    struct leftover *leftover = list_entry(closing, struct leftover, closing);

    give_back(&leftover->arena, &leaving[closing->tenant]);
    free(leftover);
}

void arena_close(struct arena *arena)
{
    struct leftover *leftover = arena->tenant ? malloc(sizeof(*leftover)) : NULL;
    struct arena left = *arena;

    if (left.mapped)
        count_unmapped(arena, left.mapped);
    arena->windows = NULL;
    arena->fd = -1;
    arena->mapped = 0;
    if (!leftover) {
        give_back(&left, NULL);
        return;
    }
    __atomic_fetch_add(&leaving[left.tenant->number], left.mapped, __ATOMIC_RELAXED);
    *leftover = (struct leftover){.closing = {.run = run, .tenant = left.tenant->number}, .arena = left};
    closing_send(&leftover->closing);
}

uint8_t *arena_map(struct arena *arena, uint64_t address)
{
    uint32_t slot;

    if (arena->tenant && at_its_limit(arena->tenant) && !give_up_one(arena)) {
        tenant_may_have(arena->tenant, SLUICE_LIMIT_WINDOWS, arena->tenant->windows, 1, arena->tenant->windows);
        return NULL;
    }
    pthread_mutex_lock(&slots_lock);
    slot = free_count ? free_slots[--free_count] : SLOTS;
    pthread_mutex_unlock(&slots_lock);
    if (slot == SLOTS)
        return NULL;
    slots[slot] = (struct slot){arena->fd, arena->read_only ? PROT_READ : PROT_READ | PROT_WRITE,
                                address & ~(WINDOW_SIZE - 1)};
    if (!slot_map(slot)) {
        slot_free(slot);
        return NULL;
    }
    arena->mapped++;
    if (arena->tenant && arena->tenant->windows++ == 0)
        __atomic_fetch_add(&sharers, 1, __ATOMIC_RELAXED);
    return arena->windows[address >> SLUICE_WINDOW_SHIFT] = stretch + slot * WINDOW_SIZE;
}

void windows_repair(void)
{
    while (fault_count)
        slot_map(faulted[--fault_count]);
    window_fault = false;
}
