/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads and stores of words that another process, or another thread, writes at
 * the same time. Every ordering that the data path relies on is one of these
 * six; the comment at each use says what it pairs with.
 */
#ifndef SLUICE_ATOMIC_H
#define SLUICE_ATOMIC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A word that may change any time, without ordering: counters, hints. */
#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)

/* What was written before the store is seen by who loads it. */
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#define exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
/* Only where it is still that: an rvalue of the word's type. */
#define replace(p, that, v)                                                                                         \
    ((void)__atomic_compare_exchange_n((p), &(__typeof__(that)){that}, (v), 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))

/*
 * A full fence: an earlier store is visible before a later load happens. Both
 * sides of a sleep-or-tell decision need one (Dekker): one writes work then
 * reads "asleep", the other writes "asleep" then reads work.
 */
#ifdef __SANITIZE_THREAD__
/* ThreadSanitizer doesn't model fences; a read-modify-write on a shared word does the same. */
extern uint32_t sluice_fence_word;
#define full_fence() ((void)__atomic_fetch_add(&sluice_fence_word, 0, __ATOMIC_SEQ_CST))
#define release_fence() full_fence()
#else
#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
/* Earlier stores are visible before later ones. */
#define release_fence() __atomic_thread_fence(__ATOMIC_RELEASE)
#endif

/* A private copy of what somebody else may change meanwhile. The compiler may not go back to the original for a part of it. */
static inline void copy_once(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    __asm__ volatile("" : : "r"(to) : "memory");
}

/* Tells the core that this is a spin loop. */
static inline void spin_hint(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

#endif
