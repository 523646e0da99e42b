/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "abi.h"
#include "atomic.h"
#include "guard.h"
#include "mapping.h"

#define ADDRESS_END (1ull << SLUICE_ARENA_SHIFT)
#define SWEEP_BYTES (64ull << 20)
#define BLOCK_SHIFT 21

/* A range that was adopted once: where to look, not proof of what is there. */
struct range {
    uint64_t start, end;
};

static struct {
    int fd;
    int pagemap;
    uint64_t page; /* bytes */
    uint64_t inode;
    uint32_t dev_major, dev_minor;
    struct range *ranges; /* sorted, apart; mmap'ed, as malloc's memory may be what we move */
    size_t count, capacity;
    uint64_t live;    /* bytes of all ranges */
    uint64_t adopted; /* bytes since the last sweep */
    bool forgotten;   /* a range is missing in the list */
    bool size_limited; /* by RLIMIT_FSIZE */
    bool watched;
    pthread_mutex_t lock;
} arena = {.fd = -1, .pagemap = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

int sluice_arena_open(int arena_fd, int userfaultfd_device_fd)
{
    struct stat status;

    arena.fd = arena_fd;
    arena.page = (uint64_t)sysconf(_SC_PAGESIZE);
    guard_init(userfaultfd_device_fd);
    if (fstat(arena_fd, &status))
        return errno;
    arena.inode = status.st_ino;
    arena.dev_major = major(status.st_dev);
    arena.dev_minor = minor(status.st_dev);
    arena.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    return mapping_open();
}

/* Also where the application has moved it to another address. */
static bool is_of_file(const struct mapping *mapping)
{
    return mapping->inode == arena.inode && mapping->dev_major == arena.dev_major &&
           mapping->dev_minor == arena.dev_minor && mapping->shared;
}

static bool is_arena(const struct mapping *mapping)
{
    return is_of_file(mapping) && mapping->offset == mapping->start;
}

static int protection_of(const struct mapping *mapping)
{
    return (mapping->readable ? PROT_READ : 0) | (mapping->writable ? PROT_WRITE : 0) |
           (mapping->executable ? PROT_EXEC : 0);
}

/* ---- blocks ------------------------------------------------------------- */

/* A bit for each block of addresses that has ever been on the arena. Of these 8 MiB only what is written exists. */
static uint64_t blocks[ADDRESS_END >> BLOCK_SHIFT >> 6];

static void mark_blocks(uint64_t start, uint64_t end)
{
    for (uint64_t block = start >> BLOCK_SHIFT; block <= (end - 1) >> BLOCK_SHIFT; block++)
        if (!(load_relaxed(&blocks[block >> 6]) >> (block & 63) & 1))
            __atomic_fetch_or(&blocks[block >> 6], 1ull << (block & 63), __ATOMIC_RELAXED);
}

bool sluice_arena_may_hold(const void *addr, size_t length)
{
    uint64_t start = (uintptr_t)addr;

    if (length == 0 || start >= ADDRESS_END)
        return false;
    uint64_t block = start >> BLOCK_SHIFT;
    uint64_t last = (length > ADDRESS_END - start ? ADDRESS_END - 1 : start + length - 1) >> BLOCK_SHIFT;

    while (block <= last) {
        uint64_t bits = load_relaxed(&blocks[block >> 6]) >> (block & 63);

        if (bits)
            return block + (uint64_t)__builtin_ctzll(bits) <= last;
        block = (block | 63) + 1;
    }
    return false;
}

/* ---- the ranges -------------------------------------------------------- */

/* The first range that ends behind address. */
static size_t range_at(uint64_t address)
{
    size_t low = 0, high = arena.count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (arena.ranges[middle].end > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static bool make_room(void)
{
    size_t capacity = arena.capacity ? arena.capacity * 2 : 4096;

    if (arena.count < arena.capacity)
        return true;
    void *ranges = arena.ranges ? mremap(arena.ranges, arena.capacity * sizeof(struct range),
                                         capacity * sizeof(struct range), MREMAP_MAYMOVE)
                                : mmap(NULL, capacity * sizeof(struct range), PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (ranges == MAP_FAILED)
        return false;
    arena.ranges = ranges;
    arena.capacity = capacity;
    return true;
}

/* Adds a range, merging what it touches. */
static void remember(uint64_t start, uint64_t end)
{
    size_t first = range_at(start ? start - 1 : 0), after = first;

    if (!make_room()) {
        arena.forgotten = true; /* its pages won't be given back before the process ends */
        return;
    }
    while (after < arena.count && arena.ranges[after].start <= end) {
        struct range *range = &arena.ranges[after++];

        arena.live -= range->end - range->start;
        if (range->start < start)
            start = range->start;
        if (range->end > end)
            end = range->end;
    }
    memmove(&arena.ranges[first + 1], &arena.ranges[after], (arena.count - after) * sizeof(struct range));
    arena.count = arena.count - (after - first) + 1;
    arena.ranges[first] = (struct range){start, end};
    arena.live += end - start;
}

/* ---- what the application has moved ------------------------------------- */

/* Parts of the file that are mapped at other addresses than their own: mremap that we didn't see. */
struct strays {
    struct range range[64];
    size_t count;
    bool more;
};

static bool note_stray(const struct mapping *mapping, void *context)
{
    struct strays *strays = context;

    if (!is_of_file(mapping) || mapping->offset == mapping->start)
        return true;
    if (strays->count == sizeof(strays->range) / sizeof(*strays->range)) {
        strays->more = true;
        return false;
    }
    strays->range[strays->count++] =
        (struct range){mapping->offset, mapping->offset + (mapping->end - mapping->start)};
    return true;
}

static bool overlaps_stray(const struct strays *strays, uint64_t start, uint64_t end)
{
    for (size_t i = 0; i < strays->count; i++)
        if (strays->range[i].start < end && start < strays->range[i].end)
            return true;
    return strays->more;
}

static void punch(uint64_t start, uint64_t end)
{
    (void)fallocate(arena.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)(end - start));
}

/*
 * Gives back what the application has unmapped, or mapped anew, since it was
 * adopted. Only what is still ours stays in the list.
 */
static void sweep(void)
{
    struct strays strays = {.count = 0};

    mapping_each(note_stray, &strays);
    /* Rare, and given back when the process ends. */
    if (strays.count) {
        arena.adopted = 0;
        return;
    }
    struct range *old = arena.ranges;
    size_t old_count = arena.count, old_capacity = arena.capacity;

    arena.ranges = NULL;
    arena.count = arena.capacity = 0;
    arena.live = arena.adopted = 0;
    for (size_t i = 0; i < old_count; i++) {
        uint64_t at = old[i].start;

        while (at < old[i].end) {
            struct mapping mapping;
            uint64_t end = old[i].end;

            if (!mapping_find(at, &mapping) || mapping.start >= end) {
                punch(at, end);
                break;
            }
            if (mapping.start > at) {
                punch(at, mapping.start);
                at = mapping.start;
            }
            if (mapping.end < end)
                end = mapping.end;
            if (is_arena(&mapping))
                remember(at, end);
            else
                punch(at, end);
            at = end;
        }
    }
    if (old)
        munmap(old, old_capacity * sizeof(struct range));
}

/* ---- moving pages ------------------------------------------------------ */

/*
 * Whole pages, whoever owns parts of them: memcpy would be wrong where the
 * application runs under a tool that watches it.
 */
__attribute__((no_sanitize("address", "thread"))) static void copy_pages(uint8_t *to, uint64_t from, uint64_t length)
{
    volatile uint64_t *target = (volatile uint64_t *)to;
    const volatile uint64_t *source = (const volatile uint64_t *)(uintptr_t)from;

    for (uint64_t i = 0; i < length / sizeof(*source); i++)
        target[i] = source[i];
}

/*
 * Puts pages into the file at their own address. Writing takes half the time of
 * storing through a mapping, which would fault for each page; but it obeys the
 * limit of file sizes. 0 or errno, without touching errno itself (guard.h).
 */
static int put(uint64_t from, uint64_t length)
{
    if (arena.size_limited) {
        void *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena.fd, (off_t)from);

        if (place == MAP_FAILED)
            return ENOMEM;
        copy_pages(place, from, length);
        munmap(place, length);
        return 0;
    }
    while (length) {
        /* syscall() is no cancellation point: pwrite would write to thread-local memory. */
        long done = syscall(SYS_pwrite64, arena.fd, from, length, from);

        if (done <= 0)
            return ENOMEM;
        from += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return 0;
}

/* Linux 6.7; not in older headers. */
struct page_region {
    uint64_t start, end, categories;
};

struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct pm_scan_arg)
enum { PAGE_PRESENT = 1 << 3, PAGE_SWAPPED = 1 << 4, PAGE_ZERO = 1 << 5, REGIONS = 32 };

/* Puts the pages that were ever written; the others are zeroes here and there. EOPNOTSUPP: no way to know. */
static int put_by_scan(uint64_t start, uint64_t end)
{
    struct page_region regions[REGIONS];
    uint64_t at = start;

    while (at < end) {
        struct pm_scan_arg arg = {
            .size = sizeof(arg),
            .start = at,
            .end = end,
            .vec = (uintptr_t)regions,
            .vec_len = REGIONS,
            .category_inverted = PAGE_ZERO,
            .category_mask = PAGE_ZERO,
            .category_anyof_mask = PAGE_PRESENT | PAGE_SWAPPED,
            .return_mask = PAGE_PRESENT,
        };
        int found = arena.pagemap < 0 ? -1 : ioctl(arena.pagemap, SCAN, &arg);

        if (found < 0 || arg.walk_end <= at)
            return EOPNOTSUPP;
        for (int i = 0; i < found; i++) {
            int error = put(regions[i].start, regions[i].end - regions[i].start);

            if (error)
                return error;
        }
        at = arg.walk_end;
    }
    return 0;
}

/* The same from /proc/self/pagemap: bit 63 present, bit 62 swapped. */
static int put_by_pagemap(uint64_t start, uint64_t end)
{
    uint64_t entries[128];

    for (uint64_t at = start; at < end;) {
        uint64_t pages = (end - at) / arena.page;

        if (pages > sizeof(entries) / sizeof(*entries))
            pages = sizeof(entries) / sizeof(*entries);
        if (arena.pagemap < 0 || syscall(SYS_pread64, arena.pagemap, entries, pages * 8, at / arena.page * 8) !=
                                     (long)(pages * 8))
            return EOPNOTSUPP;
        for (uint64_t i = 0; i < pages; i++, at += arena.page) {
            int error = entries[i] >> 62 ? put(at, arena.page) : 0;

            if (error)
                return error;
        }
    }
    return 0;
}

static int put_range(const struct guard *guard, bool anonymous)
{
    uint64_t end = guard->start + guard->length;
    int error = anonymous ? put_by_scan(guard->start, end) : EOPNOTSUPP;

    if (anonymous && error == EOPNOTSUPP)
        error = put_by_pagemap(guard->start, end);
    /* All of it; but reading an untouched page that userfaultfd watches would wait for ourselves. */
    if (error == EOPNOTSUPP && !guard->faults)
        error = put(guard->start, guard->length);
    return error;
}

/* One exchange: everything here must be able to run while nobody may write to the range. */
struct exchange {
    uint64_t start, end;
    int protection;
    bool anonymous;
    int error;
};

/*
 * Known to glibc 2.32 and newer: no thread was made, or all have ended. Then nobody
 * can write meanwhile, and there is nobody to hold off.
 */
extern char __libc_single_threaded __attribute__((weak));

static bool is_alone(void)
{
    return &__libc_single_threaded && __libc_single_threaded;
}

static void exchange_pages(struct exchange *exchange)
{
    bool alone = is_alone();
    uint64_t length = exchange->end - exchange->start;
    struct guard guard = {.start = exchange->start, .length = length, .protection = exchange->protection};
    struct rlimit limit;
    sigset_t all, before;
    size_t known = range_at(exchange->start);

    /* What an earlier mapping at this address left in the file. */
    if (arena.forgotten || (known < arena.count && arena.ranges[known].start < exchange->end)) {
        struct strays strays = {.count = 0};

        if (!arena.watched)
            mapping_each(note_stray, &strays);
        if (overlaps_stray(&strays, exchange->start, exchange->end)) {
            exchange->error = EOPNOTSUPP;
            return;
        }
        punch(exchange->start, exchange->end);
    }
    arena.size_limited = getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur != RLIM_INFINITY;
    /* A signal handler on this thread would wait for ourselves. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    exchange->error = alone ? 0 : guard_close(&guard, exchange->anonymous);
    if (!exchange->error) {
        exchange->error = put_range(&guard, exchange->anonymous);
        /* In one step for every other thread: a fault meanwhile waits for the address space's lock. */
        if (!exchange->error && mmap((void *)(uintptr_t)exchange->start, length, exchange->protection,
                                     MAP_SHARED | MAP_NORESERVE | MAP_FIXED, arena.fd,
                                     (off_t)exchange->start) == MAP_FAILED)
            exchange->error = errno == EINVAL ? EOPNOTSUPP : ENOMEM; /* part of a huge page: can't be replaced */
        if (!alone && exchange->error)
            guard_give_up(&guard);
        else if (!alone)
            guard_open(&guard);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (exchange->error)
        punch(exchange->start, exchange->end);
}

static int adopt_piece(uint64_t start, uint64_t end, const struct mapping *mapping, bool writable)
{
    uint64_t here = (uintptr_t)__builtin_frame_address(0);
    uint64_t first_stack = getauxval(AT_RANDOM); /* the kernel puts these bytes at its top */
    struct exchange exchange = {
        .start = start,
        .end = end,
        .protection = protection_of(mapping),
        .anonymous = mapping->inode == 0,
    };

    if (!mapping->readable || (writable && !mapping->writable))
        return EFAULT;
    if (is_arena(mapping))
        return 0;
    if (mapping->shared)
        return EOPNOTSUPP;
    /* The stack that we run on: held off, we would wait for ourselves; moved, a fork would share it. */
    if ((here >= mapping->start && here < mapping->end) ||
        (first_stack >= mapping->start && first_stack < mapping->end))
        return EOPNOTSUPP;
    mark_blocks(start, end);
    exchange_pages(&exchange);
    if (exchange.error == EINVAL)
        exchange.error = EOPNOTSUPP; /* device memory: userfaultfd won't watch it */
    if (!exchange.error) {
        remember(start, end);
        arena.adopted += end - start;
    }
    return exchange.error;
}

int sluice_arena_adopt(void *addr, size_t length, int writable)
{
    uint64_t from = (uintptr_t)addr;
    int error = 0;

    if (length == 0 || from >= ADDRESS_END || length > ADDRESS_END - from)
        return EINVAL;
    pthread_mutex_lock(&arena.lock);
    if (arena.fd < 0)
        error = EIO;
    if (!error && arena.adopted > (arena.live > SWEEP_BYTES ? arena.live : SWEEP_BYTES))
        sweep();
    uint64_t at = from & ~(arena.page - 1);
    uint64_t end = (from + length + arena.page - 1) & ~(arena.page - 1);

    while (!error && at < end) {
        struct mapping mapping;

        if (!mapping_find(at, &mapping) || mapping.start > at) {
            error = EFAULT;
            break;
        }
        uint64_t piece_end = mapping.end < end ? mapping.end : end;

        error = adopt_piece(at, piece_end, &mapping, writable);
        at = piece_end;
    }
    pthread_mutex_unlock(&arena.lock);
    return error;
}

bool sluice_arena_mapping(uint64_t addr, struct mapping *mapping)
{
    pthread_mutex_lock(&arena.lock);
    bool found = arena.fd >= 0 && mapping_find(addr, mapping);

    pthread_mutex_unlock(&arena.lock);
    return found;
}

void sluice_arena_retire(void *addr, size_t length)
{
    /* Nothing now: the next adoptions decide when a sweep is worth it. */
    (void)addr;
    (void)length;
}

/* ---- private again -------------------------------------------------------- */

/*
 * Puts a copy of what the file holds at offset in the place of a mapping of it. By
 * mremap, as everything here stays in use while it is exchanged, and with what was
 * touched only. False: no memory.
 */
static bool make_private(uint64_t start, uint64_t end, uint64_t offset, int protection)
{
    uint64_t length = end - start;
    uint8_t *copy = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (copy == MAP_FAILED)
        return false;
    for (uint64_t at = 0; at < length;) {
        off_t data = lseek(arena.fd, (off_t)(offset + at), SEEK_DATA);
        off_t hole = data < 0 ? data : lseek(arena.fd, data, SEEK_HOLE);

        if (hole < 0 || (uint64_t)data >= offset + length)
            break;
        uint64_t until = (uint64_t)hole - offset < length ? (uint64_t)hole - offset : length;

        for (at = (uint64_t)data - offset; at < until;) {
            long done = syscall(SYS_pread64, arena.fd, copy + at, until - at, offset + at);

            if (done <= 0) {
                munmap(copy, length);
                return false;
            }
            at += (uint64_t)done;
        }
    }
    if (protection != (PROT_READ | PROT_WRITE))
        mprotect(copy, length, protection);
    if (syscall(SYS_mremap, copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, start) >= 0)
        return true;
    munmap(copy, length);
    return false;
}

/* The next part of [at, end) that is mapped: it begins at mapping->start and ends at mapping->end. */
static bool next_part(uint64_t at, uint64_t end, struct mapping *mapping)
{
    /* One that goes on beyond end is found there again. */
    if (at >= end || !mapping_find(at, mapping) || mapping->start >= end)
        return false;
    if (mapping->start < at) {
        mapping->offset += at - mapping->start;
        mapping->start = at;
    }
    if (mapping->end > end)
        mapping->end = end;
    return true;
}

int sluice_arena_release(void *addr, size_t length)
{
    uint64_t at = (uintptr_t)addr & ~(arena.page - 1), end = (uintptr_t)addr + length;
    struct mapping part;

    if (arena.fd < 0)
        return 0;
    for (end = (end + arena.page - 1) & ~(arena.page - 1); next_part(at, end, &part); at = part.end) {
        if (!is_of_file(&part))
            continue;
        if (!make_private(part.start, part.end, part.offset, protection_of(&part)))
            return ENOMEM;
        punch(part.offset, part.offset + (part.end - part.start));
    }
    return 0;
}

int sluice_arena_drop(void *addr, size_t length, int advice, int (*advise)(void *addr, size_t length, int advice))
{
    uint64_t at = (uintptr_t)addr, end = (at + length + arena.page - 1) & ~(arena.page - 1);
    struct mapping part;
    int error = 0;

    /* What is no range for the kernel isn't one here. */
    if (arena.fd < 0 || at % arena.page || end < at || end > ADDRESS_END)
        return advise(addr, length, advice);
    for (; at < end; at = part.end) {
        bool found = next_part(at, end, &part);

        if (!found || part.start > at)
            error = ENOMEM; /* as the kernel says of holes, when it has done the rest */
        if (!found)
            break;
        if (is_of_file(&part))
            punch(part.offset, part.offset + (part.end - part.start));
        else if (advise((void *)(uintptr_t)part.start, part.end - part.start, advice))
            return -1;
    }
    if (error)
        errno = error;
    return error ? -1 : 0;
}

void sluice_arena_watched(void)
{
    arena.watched = true;
}

/* ---- fork -------------------------------------------------------------- */

void sluice_arena_fork_prepare(void)
{
    /* Nobody is half-way through an exchange, and nothing is punched before the child has its copy. */
    pthread_mutex_lock(&arena.lock);
}

void sluice_arena_fork_parent(void)
{
    pthread_mutex_unlock(&arena.lock);
}

static bool make_own(const struct mapping *part)
{
    if (make_private(part->start, part->end, part->offset, protection_of(part)))
        return true;
    /* Its own from the first write on: what the parent writes until then is seen here. */
    return mmap((void *)(uintptr_t)part->start, part->end - part->start, protection_of(part),
                MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, arena.fd, (off_t)part->offset) != MAP_FAILED;
}

static void make_range_private(const struct range *range)
{
    struct mapping part;

    for (uint64_t at = range->start; next_part(at, range->end, &part); at = part.end)
        if (is_arena(&part))
            make_own(&part);
}

struct moved {
    struct mapping part[32];
    size_t count;
};

static bool note_moved(const struct mapping *mapping, void *context)
{
    struct moved *moved = context;

    if (is_of_file(mapping) && mapping->offset != mapping->start)
        moved->part[moved->count++] = *mapping;
    return moved->count < sizeof(moved->part) / sizeof(*moved->part);
}

/* What the application has moved without us is in no list: the kernel knows. */
static void make_moved_private(void)
{
    struct moved moved;
    bool more = !arena.watched;

    while (more) {
        moved.count = 0;
        mapping_each(note_moved, &moved);
        more = moved.count == sizeof(moved.part) / sizeof(*moved.part);
        for (size_t i = 0; i < moved.count; i++)
            more &= make_own(&moved.part[i]);
    }
}

void sluice_arena_fork_child(void)
{
    /*
     * In a program that is linked to us, what stands in our own variables may lie in memory that is registered: until
     * here is a copy they are the parent's, and nothing is written to them.
     */
    if (arena.fd >= 0 && mapping_renew() == 0) {
        for (size_t i = 0; i < arena.count; i++)
            make_range_private(&arena.ranges[i]);
        make_moved_private();
    }
    pthread_mutex_init(&arena.lock, NULL);
    if (arena.fd < 0)
        return;
    /* These speak of the parent's address space. */
    guard_exit();
    mapping_close();
    if (arena.pagemap >= 0)
        close(arena.pagemap);
    close(arena.fd);
    arena.fd = arena.pagemap = -1;
    if (arena.ranges)
        munmap(arena.ranges, arena.capacity * sizeof(struct range));
    arena.ranges = NULL;
    arena.count = arena.capacity = 0;
    arena.live = arena.adopted = 0;
    arena.forgotten = false;
}

void sluice_arena_close(void)
{
    pthread_mutex_lock(&arena.lock);
    guard_exit();
    mapping_close();
    if (arena.pagemap >= 0)
        close(arena.pagemap);
    if (arena.fd >= 0)
        close(arena.fd);
    arena.fd = arena.pagemap = -1;
    pthread_mutex_unlock(&arena.lock);
}
