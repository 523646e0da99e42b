/* SPDX-License-Identifier: Apache-2.0 */
/* fork and exec beside an open device. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "suite.h"

static int status_of(pid_t pid)
{
    int status = -1;

    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(child_does_not_disturb, BOTH, "a forked child that writes to what it inherited changes nothing of its parent's", "man ibv_fork_init; fork(2)")
{
    ibv_fork_init();
    connect_rc(e);
    pid_t pid = fork();

    if (pid == 0) {
        /* Where the range isn't inherited (MADV_DONTFORK) the child may not even look. */
        signal(SIGSEGV, SIG_DFL);
        memset(e->memory, 0x99, 4096);
        _exit(0);
    }
    int status = status_of(pid);

    CHECK(status == 0 || status == 128 + SIGSEGV);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8192);
        EXPECT(1, IBV_WC_SUCCESS);
        ARRIVED(0, 4096, 0);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 8192, 0);
}

TEST(commands_run, BOTH, "system() works beside an open device, and the device goes on", "man ibv_fork_init; system(3)")
{
    ibv_fork_init();
    connect_rc(e);
    EQUAL(system("true"), 0);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(child_opens_its_own, SOLO, "a child of a process that has opened the device can open it for itself", "fork(2); practice of servers that fork")
{
    pid_t pid = fork();

    if (pid == 0) {
        struct ibv_device **list = ibv_get_device_list(NULL);
        struct ibv_context *context = list && list[0] ? ibv_open_device(list[0]) : NULL;
        struct ibv_pd *pd = context ? ibv_alloc_pd(context) : NULL;

        _exit(pd && !ibv_dealloc_pd(pd) && !ibv_close_device(context) ? 0 : 1);
    }
    EQUAL(status_of(pid), 0);
    MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
}
