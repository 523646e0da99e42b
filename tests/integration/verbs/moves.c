/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that was registered once and is then moved, grown or emptied as any other: it must behave as if it had never
 * been registered. Prints "as any other".
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "pair.h"

enum { SIZE = 1 << 20, LARGE = 40 << 20, SWEPT = 64 << 20, SWEEPS = 8 };

static struct ibv_pd *pd;

static struct ibv_mr *reg(void *memory, size_t length)
{
    struct ibv_mr *mr = ibv_reg_mr(pd, memory, length, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);

    CHECK(mr, "ibv_reg_mr");
    return mr;
}

static void register_once(void *memory, size_t length)
{
    CHECK(!ibv_dereg_mr(reg(memory, length)), "ibv_dereg_mr");
}

static uint8_t *pages(size_t length, uint8_t value)
{
    uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(memory != MAP_FAILED, "mmap");
    memset(memory, value, length);
    return memory;
}

static void is_all(const uint8_t *memory, uint8_t value, size_t length, const char *what)
{
    for (size_t i = 0; i < length; i++)
        CHECK(memory[i] == value, "%s: byte %zu is %u, not %u", what, i, memory[i], value);
}

static void emptied(int advice)
{
    uint8_t *memory = pages(SIZE, 1);

    register_once(memory, SIZE);
    CHECK(!madvise(memory, SIZE, advice), "madvise");
    if (advice == MADV_DONTNEED)
        is_all(memory, 0, SIZE, "after MADV_DONTNEED");
    /* What lies between two ranges of different kinds, and holes. */
    memset(memory, 2, SIZE);
    register_once(memory + SIZE / 4, SIZE / 4);
    CHECK(!madvise(memory, SIZE, MADV_DONTNEED), "madvise");
    is_all(memory, 0, SIZE, "both kinds");
    munmap(memory, SIZE / 8);
    CHECK(madvise(memory, SIZE, MADV_DONTNEED) == -1, "a hole");
    munmap(memory, SIZE);
}

static void grown_beside_a_neighbour(void)
{
    uint8_t *memory = pages(2 * SIZE, 3), *neighbour = memory + SIZE;
    struct ibv_mr *other = reg(neighbour, SIZE);

    register_once(memory, SIZE);
    uint8_t *moved = mremap(memory, SIZE, 2 * SIZE, MREMAP_MAYMOVE);

    CHECK(moved != MAP_FAILED && moved != memory, "mremap");
    is_all(moved, 3, SIZE, "moved");
    is_all(moved + SIZE, 0, SIZE, "grown");
    memset(moved + SIZE, 4, SIZE);
    is_all(neighbour, 3, SIZE, "the neighbour");
    /* What comes to the old place, and is registered there. */
    CHECK(mmap(memory, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, "mmap");
    memset(memory, 5, SIZE);
    register_once(memory, SIZE);
    is_all(moved, 3, SIZE, "moved, when others have come to its place");
    CHECK(!ibv_dereg_mr(other), "ibv_dereg_mr");
    munmap(memory, 2 * SIZE);
    munmap(moved, 2 * SIZE);
}

/* The middle of a region, and more than a region. */
static void moved_in_part(void)
{
    uint8_t *memory = pages(4 * SIZE, 3);

    register_once(memory + SIZE, 2 * SIZE);
    uint8_t *middle = mremap(memory + SIZE + SIZE / 2, SIZE, 2 * SIZE, MREMAP_MAYMOVE);

    CHECK(middle != MAP_FAILED, "mremap");
    is_all(middle, 3, SIZE, "the middle");
    is_all(middle + SIZE, 0, SIZE, "what it grew by");
    is_all(memory, 3, SIZE + SIZE / 2, "before it");
    is_all(memory + 2 * SIZE + SIZE / 2, 3, SIZE + SIZE / 2, "behind it");
    munmap(memory, 4 * SIZE);
    munmap(middle, 2 * SIZE);
}

static void reallocated(void)
{
    uint8_t *memory = malloc(LARGE);

    memset(memory, 6, LARGE);
    register_once(memory, LARGE);
    memory = realloc(memory, 2 * LARGE);
    CHECK(memory, "realloc");
    is_all(memory, 6, LARGE, "after realloc");
    /* Enough for what the application has unmapped to be given back. */
    for (int i = 0; i < SWEEPS; i++) {
        void *other = pages(SWEPT, 7);

        register_once(other, SWEPT);
        munmap(other, SWEPT);
    }
    is_all(memory, 6, LARGE, "after realloc, later");
    register_once(memory, LARGE);
    memory = realloc(memory, SIZE);
    is_all(memory, 6, SIZE, "made smaller");
    free(memory);
}

int main(void)
{
    pd = ibv_alloc_pd(open_device());
    CHECK(pd, "ibv_alloc_pd");
    emptied(MADV_DONTNEED);
    emptied(MADV_FREE);
    grown_beside_a_neighbour();
    moved_in_part();
    reallocated();
    puts("as any other");
    return 0;
}
