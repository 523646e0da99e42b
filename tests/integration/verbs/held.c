/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tenant that holds on to its completion channel: it reads an event into memory that is never made, as it has a
 * userfaultfd that nobody serves, and has the router send another event meanwhile. "held", until its input ends.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pair.h"

static struct end end;
static struct ibv_comp_channel *channel;
static void *never;

static bool readable(int fd)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};

    return poll(&ready, 1, 10000) == 1;
}

/* What is posted to a QP in ERR is flushed. */
static void complete_one(void)
{
    struct ibv_recv_wr *bad, recv = {0};

    CHECK(!ibv_req_notify_cq(end.cq, 0) && !ibv_post_recv(end.qp, &recv, &bad), "flush");
    CHECK(wait_completion(end.cq).status == IBV_WC_WR_FLUSH_ERR, "flushed");
}

static void *hold(void *unused)
{
    (void)unused;
    /* Neither libc nor a library before it is asked. */
    syscall(SYS_read, channel->fd, never, 8);
    return NULL;
}

static int nobody_serves(void *page, size_t length)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {.start = (uintptr_t)page, .len = length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

    if (uffd < 0)
        return -1;
    CHECK(!ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &range), "userfaultfd");
    return uffd;
}

int main(void)
{
    struct ibv_context *context = open_device();
    size_t length = (size_t)sysconf(_SC_PAGESIZE);
    struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};
    pthread_t thread;

    never = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(never != MAP_FAILED, "mmap");
    int uffd = nobody_serves(never, length);

    if (uffd < 0) {
        puts("no userfaultfd");
        return 0;
    }
    end_open(&end, context, 0);
    channel = ibv_create_comp_channel(context);
    CHECK(channel && !ibv_destroy_qp(end.qp) && !ibv_destroy_cq(end.cq), "channel");
    end.cq = ibv_create_cq(context, 64, NULL, channel, 0);
    CHECK(end.cq, "ibv_create_cq");
    qp_open(&end, 0);
    CHECK(!ibv_modify_qp(end.qp, &error, IBV_QP_STATE), "ERR");
    complete_one();
    CHECK(readable(channel->fd), "the first event");
    CHECK(!pthread_create(&thread, NULL, hold, NULL), "thread");
    CHECK(readable(uffd), "a fault that nobody serves");
    complete_one();
    puts("held");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
