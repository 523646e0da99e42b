/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's view of sessions' registered memory: an arena (a file whose offset
 * is the application's address), or another file that an application has mapped,
 * is seen through windows of 1 GiB, each mapped when first used. So registering maps nothing, a look-up is one index, and
 * thousands of memory regions don't use up the kernel's map count.
 *
 * All windows of all arenas lie in one reserved stretch of addresses. A fault
 * there (SIGBUS: the kernel could not give the page, for instance because the
 * tenant's memory cgroup is full) is survived: the handler puts a page of zeroes
 * in the place, and the copy's owner asks windows_faulted() afterwards.
 */
#ifndef SLUICE_WINDOW_H
#define SLUICE_WINDOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

#define WINDOW_SIZE (1ull << SLUICE_WINDOW_SHIFT)
#define ARENA_SIZE (1ull << SLUICE_ARENA_SHIFT)

struct tenant;

struct arena {
    int fd;
    bool read_only;
    uint32_t count;    /* windows */
    uint32_t mapped;   /* of these */
    uint32_t hand;     /* where to look for one to give up */
    struct tenant *tenant; /* whose windows they are, all arenas and files together; NULL: not counted */
    uint8_t **windows; /* NULL: not mapped */
};

/*
 * Of the node's 16,384: a tenant that wants more gives up its oldest. Half of the node's are for those who have less than
 * their part of that half, so that many tenants who want all that they may have together keep none from the others.
 */
enum { WINDOWS_OF_TENANT = 1024 };

/* Reserves the addresses and installs the SIGBUS handler. Once a process. -errno. */
int windows_open(void);

int arena_open(struct arena *arena);
/*
 * The same view of another file of that many bytes; an address is an offset in it.
 * What lies behind its end, or is cut off later, faults. Takes fd over unless it fails.
 */
int arena_of_file(struct arena *arena, int fd, uint64_t size, bool writable);
/* Its pages are given back later, in a thread (closing.h). */
void arena_close(struct arena *arena);

/* Maps the window of an address below count * WINDOW_SIZE. NULL: no window is left. */
uint8_t *arena_map(struct arena *arena, uint64_t address);

/* Where the engine sees such an address; valid to the end of its window. */
static inline uint8_t *arena_at(struct arena *arena, uint64_t address)
{
    uint8_t *window = arena->windows[address >> SLUICE_WINDOW_SHIFT];

    if (__builtin_expect(!window, 0)) {
        window = arena_map(arena, address);
        if (!window)
            return NULL;
    }
    return window + (address & (WINDOW_SIZE - 1));
}

/*
 * A window was given up for another: pointers from before may lead nowhere. Whoever
 * holds two clears it, and asks again for both until it stays clear.
 */
extern bool windows_moved;

/*
 * This thread's last copies met a page that could not be had. Set by a signal handler: hence volatile. Looked at after
 * each copy, before the next one: of its two windows all pages are made whole again, but a gather list may lead through as many
 * windows as a tenant likes, and a page that was left behind is a mapping of the router's. A byte of the static TLS, which takes
 * no call to find in a module that Python opens late, either.
 */
extern _Thread_local volatile bool window_fault __attribute__((tls_model("initial-exec")));

/* Makes faulted windows whole again; call when window_fault is set, which it clears. */
void windows_repair(void);

#endif
