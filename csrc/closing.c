/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "closing.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "engine.h"
#include "worker.h"

/* Some milliseconds of the kernel's, for which it may keep this process's other threads from mapping. */
enum { PIECE = 1 << 25 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;
static struct list waiting = {&waiting, &waiting};
static bool works;
static uint32_t counts[SLUICE_MAX_TENANTS];

static void run_all(void)
{
    pthread_mutex_lock(&lock);
    while (!list_empty(&waiting)) {
        struct closing *closing = list_entry(list_take(&waiting), struct closing, link);
        uint32_t *count = &counts[closing->tenant];

        pthread_mutex_unlock(&lock);
        closing->run(closing);
        __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
        pthread_mutex_lock(&lock);
    }
    works = false;
    pthread_cond_broadcast(&idle);
    pthread_mutex_unlock(&lock);
}

static void *work(void *argument)
{
    (void)argument;
    pthread_setname_np(pthread_self(), "sluice-closing");
    run_all();
    return NULL;
}

void closing_send(struct closing *closing)
{
    list_init(&closing->link);
    __atomic_fetch_add(&counts[closing->tenant], 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&lock);
    list_append(&waiting, &closing->link);
    bool alone = !works;

    works = true;
    pthread_mutex_unlock(&lock);
    if (alone && worker_spawn(work, NULL))
        run_all();
}

uint32_t closing_count(uint32_t tenant)
{
    return __atomic_load_n(&counts[tenant], __ATOMIC_RELAXED);
}

void closing_wait(void)
{
    pthread_mutex_lock(&lock);
    while (works)
        pthread_cond_wait(&idle, &lock);
    pthread_mutex_unlock(&lock);
}

void closing_unmap_pages(void *start, size_t size)
{
    for (size_t done = 0; done < size; done += PIECE)
        madvise((char *)start + done, size - done < PIECE ? size - done : PIECE, MADV_DONTNEED);
}
