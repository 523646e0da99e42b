/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"
#include "clock.h"

enum {
    FUTEX_WAIT_OP = 51, /* IORING_OP_FUTEX_WAIT, where headers are older than the kernel */
    FUTEX_32_BITS = 2,  /* FUTEX2_SIZE_U32 */
    ENTRIES = 8,
    WORD = 1,           /* user_data of the two requests */
    DESCRIPTOR = 2
};

struct uring {
    int fd;
    uint32_t *word;
    int descriptor;
    bool word_waits, descriptor_waits; /* the request is with the kernel */
    bool refused;                      /* it doesn't know the futex operation */
    void *rings;
    size_t rings_size;
    struct io_uring_sqe *sqes;
    uint32_t *sq_tail, *sq_array, *sq_flags, sq_mask;
    uint32_t *cq_head, *cq_tail, cq_mask;
    struct io_uring_cqe *cqes;
};

static bool map_rings(struct uring *uring, const struct io_uring_params *params)
{
    size_t sq = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);

    uring->rings_size = sq > cq ? sq : cq;
    uring->rings = mmap(NULL, uring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED, uring->fd, IORING_OFF_SQ_RING);
    if (uring->rings == MAP_FAILED) {
        uring->rings = NULL;
        return false;
    }
    uint8_t *base = uring->rings;

    uring->sq_tail = (uint32_t *)(base + params->sq_off.tail);
    uring->sq_array = (uint32_t *)(base + params->sq_off.array);
    uring->sq_flags = (uint32_t *)(base + params->sq_off.flags);
    uring->sq_mask = *(uint32_t *)(base + params->sq_off.ring_mask);
    uring->cq_head = (uint32_t *)(base + params->cq_off.head);
    uring->cq_tail = (uint32_t *)(base + params->cq_off.tail);
    uring->cq_mask = *(uint32_t *)(base + params->cq_off.ring_mask);
    uring->cqes = (struct io_uring_cqe *)(base + params->cq_off.cqes);
    uring->sqes = mmap(NULL, ENTRIES * sizeof(*uring->sqes), PROT_READ | PROT_WRITE, MAP_SHARED, uring->fd,
                       IORING_OFF_SQES);
    if (uring->sqes == MAP_FAILED)
        uring->sqes = NULL;
    return uring->sqes;
}

static struct io_uring_sqe *next_sqe(struct uring *uring, uint32_t user_data)
{
    uint32_t tail = *uring->sq_tail, slot = tail & uring->sq_mask;
    struct io_uring_sqe *sqe = &uring->sqes[slot];

    memset(sqe, 0, sizeof(*sqe));
    sqe->user_data = user_data;
    uring->sq_array[slot] = slot;
    store_release(uring->sq_tail, tail + 1);
    return sqe;
}

static void reap(struct uring *uring)
{
    uint32_t head = *uring->cq_head;

    /* Pairs with the kernel's release. */
    while (head != load_acquire(uring->cq_tail)) {
        const struct io_uring_cqe *cqe = &uring->cqes[head++ & uring->cq_mask];

        if (cqe->user_data == WORD) {
            uring->word_waits = false;
            uring->refused |= cqe->res == -EINVAL;
        } else if (cqe->user_data == DESCRIPTOR) {
            uring->descriptor_waits = false;
        }
    }
    store_release(uring->cq_head, head);
}

bool uring_quiet(struct uring *uring)
{
    /* The kernel has put something by until it is asked (IORING_SETUP_DEFER_TASKRUN). */
    if (load_relaxed(uring->sq_flags) & IORING_SQ_TASKRUN) {
        syscall(SYS_io_uring_enter, uring->fd, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0);
        reap(uring);
    }
    return uring->descriptor_waits;
}

void uring_sleep(struct uring *uring, uint32_t value, uint64_t deadline)
{
    uint32_t submit = 0;
    uint64_t now = deadline == UINT64_MAX ? 0 : clock_now(), left = deadline > now ? deadline - now : 0;
    struct __kernel_timespec timeout = {.tv_sec = (int64_t)(left / NS_PER_SECOND),
                                        .tv_nsec = (long long)(left % NS_PER_SECOND)};
    struct io_uring_getevents_arg argument = {.ts = deadline == UINT64_MAX ? 0 : (uintptr_t)&timeout};

    if (!uring->word_waits) {
        struct io_uring_sqe *sqe = next_sqe(uring, WORD);

        sqe->opcode = FUTEX_WAIT_OP;
        sqe->fd = FUTEX_32_BITS;
        sqe->addr = (uintptr_t)uring->word;
        sqe->off = value;
        sqe->addr3 = UINT32_MAX; /* any waker's bits */
        uring->word_waits = true;
        submit++;
    }
    if (!uring->descriptor_waits) {
        struct io_uring_sqe *sqe = next_sqe(uring, DESCRIPTOR);

        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->fd = uring->descriptor;
        sqe->poll32_events = POLLIN;
        uring->descriptor_waits = true;
        submit++;
    }
    syscall(SYS_io_uring_enter, uring->fd, submit, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument,
            sizeof(argument));
    reap(uring);
}

struct uring *uring_open(uint32_t *word, int descriptor)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG};
    struct uring *uring = calloc(1, sizeof(*uring));

    if (!uring)
        return NULL;
    uring->word = word;
    uring->descriptor = descriptor;
    uring->fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &params);
    if (uring->fd < 0 || !(params.features & IORING_FEAT_SINGLE_MMAP) || !(params.features & IORING_FEAT_EXT_ARG) ||
        !map_rings(uring, &params)) {
        uring_close(uring);
        return NULL;
    }
    /* A word that is another already: the answer comes at once, and says whether the operation is known. */
    uint32_t value = load_relaxed(word) + 1;

    uring_sleep(uring, value, clock_now() + NS_PER_SECOND);
    if (uring->refused) {
        uring_close(uring);
        return NULL;
    }
    return uring;
}

void uring_close(struct uring *uring)
{
    if (!uring)
        return;
    if (uring->sqes)
        munmap(uring->sqes, ENTRIES * sizeof(*uring->sqes));
    if (uring->rings)
        munmap(uring->rings, uring->rings_size);
    if (uring->fd >= 0)
        close(uring->fd);
    free(uring);
}
