/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "lookout.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "atomic.h"
#include "futex.h"

struct lookout {
    uint32_t *word;
    uint32_t watching; /* the thread waits for the descriptor, or is about to */
    int descriptor;
    int end; /* eventfd: readable when the thread shall end */
    pthread_t thread;
};

static void *look_out(void *argument)
{
    struct lookout *lookout = argument;
    struct pollfd fds[] = {{.fd = lookout->end, .events = POLLIN}, {.fd = lookout->descriptor, .events = POLLIN}};

    pthread_setname_np(pthread_self(), "sluice-lookout");
    for (;;) {
        while (!load_acquire(&lookout->watching))
            futex_wait(&lookout->watching, 0, UINT64_MAX);
        while (poll(fds, 2, -1) < 0)
            ;
        if (fds[0].revents)
            return NULL;
        /* In this order: the sleeper, once woken, begins anew before it sleeps again. */
        exchange(&lookout->watching, 0);
        exchange(lookout->word, 0);
        futex_wake(lookout->word);
    }
}

struct lookout *lookout_open(uint32_t *word, int descriptor)
{
    struct lookout *lookout = calloc(1, sizeof(*lookout));
    sigset_t all, before;

    if (!lookout)
        return NULL;
    lookout->word = word;
    lookout->descriptor = descriptor;
    lookout->end = eventfd(0, EFD_CLOEXEC);
    if (lookout->end < 0) {
        free(lookout);
        return NULL;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&lookout->thread, NULL, look_out, lookout);

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        close(lookout->end);
        free(lookout);
        errno = error;
        return NULL;
    }
    return lookout;
}

void lookout_close(struct lookout *lookout)
{
    if (!lookout)
        return;
    eventfd_write(lookout->end, 1);
    lookout_begin(lookout);
    pthread_join(lookout->thread, NULL);
    close(lookout->end);
    free(lookout);
}

void lookout_begin(struct lookout *lookout)
{
    if (!exchange(&lookout->watching, 1))
        futex_wake(&lookout->watching);
}

bool lookout_waits(const struct lookout *lookout)
{
    return load_relaxed(&lookout->watching);
}
