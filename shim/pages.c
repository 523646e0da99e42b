/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libc's functions that move, grow or empty an application's pages. Of memory that was ever registered that is a mapping
 * of a file at the offset of its address (arena.h): grown, it would show what belongs to its neighbours; moved, it would
 * be of a place that others may take; told to be empty, it would keep its contents. So it becomes private memory first.
 *
 * Preloaded, these come before libc's. Linked statically, the linker's --wrap puts them there (sluice.pc).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "atomic.h"

enum { DONTNEED_LOCKED = 24 /* MADV_DONTNEED_LOCKED, Linux 5.18 */, SMALLEST_MAPPED = 4096 - 64 /* bytes of a page of malloc's */ };

#ifdef SLUICE_WRAPPED
#define EXPORT
#define OURS(name) __wrap_##name
#define NEXT(name) __real_##name

void *__real_mremap(void *old, size_t old_length, size_t new_length, int flags, ...);
int __real_madvise(void *addr, size_t length, int advice);
void *__real_realloc(void *memory, size_t size);
void *OURS(mremap)(void *old, size_t old_length, size_t new_length, int flags, ...);
int OURS(madvise)(void *addr, size_t length, int advice);
void *OURS(realloc)(void *memory, size_t size);

__attribute__((constructor)) static void look_up(void)
{
    sluice_arena_watched();
}
#else
#define EXPORT __attribute__((visibility("default")))
#define OURS(name) name
#define NEXT(name) ((__typeof__(&name))next_function(&next.name, #name))

static struct {
    void *mremap, *madvise, *realloc;
} next;

/* By libc and not by system calls: others look for these calls there (UCX). */
static void *next_function(void **slot, const char *name)
{
    void *function = load_relaxed(slot);

    if (!function) {
        function = dlsym(RTLD_NEXT, name);
        store_relaxed(slot, function);
    }
    return function;
}

__attribute__((constructor)) static void look_up(void)
{
    next_function(&next.mremap, "mremap");
    next_function(&next.madvise, "madvise");
    next_function(&next.realloc, "realloc");
    /* Opened by dlopen, we aren't asked. Whose it is tells its place: by the name of ours the linker finds who is asked, too. */
    Dl_info asked, own;

    if (dladdr(dlsym(RTLD_DEFAULT, "mremap"), &asked) && dladdr(&next, &own) && asked.dli_fbase == own.dli_fbase)
        sluice_arena_watched();
}
#endif

EXPORT void *OURS(mremap)(void *old, size_t old_length, size_t new_length, int flags, ...)
{
    va_list arguments;

    va_start(arguments, flags);
    void *address = flags & MREMAP_FIXED ? va_arg(arguments, void *) : NULL;

    va_end(arguments);
    /* A length of 0 makes a second mapping of what is shared: of private memory there is none. */
    size_t length = old_length ? old_length : 1;
    bool stays = old_length && new_length <= old_length && !(flags & MREMAP_FIXED);

    if (!stays && sluice_arena_may_hold(old, length) && sluice_arena_release(old, length)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return NEXT(mremap)(old, old_length, new_length, flags, address);
}

EXPORT int OURS(madvise)(void *addr, size_t length, int advice)
{
    bool empties = advice == MADV_DONTNEED || advice == MADV_FREE || advice == DONTNEED_LOCKED;

    if (empties && sluice_arena_may_hold(addr, length))
        return sluice_arena_drop(addr, length, advice, NEXT(madvise));
    return NEXT(madvise)(addr, length, advice);
}

/*
 * What fills pages of its own is grown by mremap inside of libc, where nobody sees
 * it. Whose allocator this is doesn't matter: realloc may always move.
 */
EXPORT void *OURS(realloc)(void *memory, size_t size)
{
    if (!memory || !sluice_arena_may_hold(memory, 1))
        return NEXT(realloc)(memory, size);
    size_t held = malloc_usable_size(memory);

    if (size <= held || held < SMALLEST_MAPPED)
        return NEXT(realloc)(memory, size);
    void *grown = malloc(size);

    if (grown) {
        memcpy(grown, memory, held);
        free(memory);
    }
    return grown;
}
