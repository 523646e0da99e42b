/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.h"
#include "futex.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static int uffd = -1;

/* For the fault handler: the range that is closed now (sequence odd), or was last. */
static uint64_t closed_start, closed_end;
static uint32_t closed_sequence;
static struct sigaction earlier;

void guard_init(int device)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};

    /* One's own where that is allowed; where it isn't, by the router's device, or the container's (Linux 6.1). */
    if (device < 0) {
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (uffd < 0)
            device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    }
    if (device >= 0) {
        uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
    }
    if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api)) {
        close(uffd);
        uffd = -1;
    }
}

void guard_exit(void)
{
    if (uffd >= 0)
        close(uffd);
    uffd = -1;
}

/* ---- userfaultfd ------------------------------------------------------- */

static int close_by_fault(struct guard *guard)
{
    struct uffdio_register registration = {
        .range = {.start = guard->start, .len = guard->length},
        /* Missing too: a first write to an untouched page would otherwise go by. */
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
    };
    struct uffdio_writeprotect protect = {
        .range = {.start = guard->start, .len = guard->length},
        .mode = UFFDIO_WRITEPROTECT_MODE_WP,
    };

    if (ioctl(uffd, UFFDIO_REGISTER, &registration))
        return errno;
    guard->faults = true;
    while (ioctl(uffd, UFFDIO_WRITEPROTECT, &protect)) {
        /* The address space changes under it: again. */
        if (errno == EAGAIN || errno == EINTR)
            continue;
        int error = errno;

        guard_give_up(guard);
        return error;
    }
    return 0;
}

/* ---- mprotect and SIGSEGV ---------------------------------------------- */

static void pass_on(int number, siginfo_t *info, void *context)
{
    if (earlier.sa_flags & SA_SIGINFO) {
        earlier.sa_sigaction(number, info, context);
    } else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
        earlier.sa_handler(number);
    } else {
        /* The default action comes when the access is repeated. */
        struct sigaction action = {.sa_handler = SIG_DFL};

        sigaction(SIGSEGV, &action, NULL);
    }
}

static void on_sigsegv(int number, siginfo_t *info, void *context)
{
    static _Thread_local void *retried;
    int error = errno;
    uint32_t sequence = load_acquire(&closed_sequence);
    uint64_t address = (uintptr_t)info->si_addr;

    if (info->si_code == SEGV_ACCERR && address >= load_relaxed(&closed_start) && address < load_relaxed(&closed_end)) {
        if (sequence & 1) {
            while (load_acquire(&closed_sequence) == sequence)
                futex_wait(&closed_sequence, sequence, UINT64_MAX);
            errno = error;
            return;
        }
        /* It was open again before the signal arrived: once more, but a fault of the application's own comes back. */
        if (retried != info->si_addr) {
            retried = info->si_addr;
            return;
        }
    }
    retried = NULL;
    pass_on(number, info, context);
}

static int close_by_signal(struct guard *guard)
{
    struct sigaction ours = {.sa_sigaction = on_sigsegv, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK}, now;

    /* The application may have set a handler of its own since the last time: it comes after ours. */
    if (sigaction(SIGSEGV, NULL, &now))
        return errno;
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_sigsegv) {
        earlier = now;
        if (sigaction(SIGSEGV, &ours, NULL))
            return errno;
    }
    guard->faults = false;
    store_relaxed(&closed_start, guard->start);
    store_relaxed(&closed_end, guard->start + guard->length);
    store_release(&closed_sequence, closed_sequence + 1);
    if (mprotect((void *)(uintptr_t)guard->start, guard->length, guard->protection & ~PROT_WRITE)) {
        int error = errno;

        guard_open(guard);
        return error;
    }
    return 0;
}

/* ---- both -------------------------------------------------------------- */

int guard_close(struct guard *guard, bool anonymous)
{
    if (uffd >= 0 && anonymous && close_by_fault(guard) == 0)
        return 0;
    return close_by_signal(guard);
}

void guard_open(const struct guard *guard)
{
    if (guard->faults) {
        struct uffdio_range range = {.start = guard->start, .len = guard->length};

        ioctl(uffd, UFFDIO_WAKE, &range);
        return;
    }
    store_release(&closed_sequence, closed_sequence + 1);
    syscall(SYS_futex, &closed_sequence, FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
}

void guard_give_up(const struct guard *guard)
{
    struct uffdio_range range = {.start = guard->start, .len = guard->length};

    if (guard->faults)
        ioctl(uffd, UFFDIO_UNREGISTER, &range); /* wakes as well, and lifts the protection */
    else
        mprotect((void *)(uintptr_t)guard->start, guard->length, guard->protection);
    guard_open(guard);
}
