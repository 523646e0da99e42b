/* SPDX-License-Identifier: Apache-2.0 */
/* A program that is linked to libibverbs, or to libsluice.a: opens the first device, registers memory, prints all. */
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>

/* Exported for other libraries of rdma-core: declared in none of its headers. */
int ibv_read_sysfs_file(const char *directory, const char *file, char *text, size_t size);

int main(void)
{
    static char memory[1 << 16];
    char board[64];
    int count;
    struct ibv_device **list = ibv_get_device_list(&count);

    if (count == 0) {
        puts("no device");
        return 1;
    }
    struct ibv_context *context = ibv_open_device(list[0]);
    struct ibv_pd *pd = context ? ibv_alloc_pd(context) : NULL;
    struct ibv_mr *mr = pd ? ibv_reg_mr(pd, memory, sizeof(memory), IBV_ACCESS_LOCAL_WRITE) : NULL;

    if (!mr || ibv_read_sysfs_file(list[0]->ibdev_path, "board_id", board, sizeof(board)) <= 0) {
        perror("setting up");
        return 1;
    }
    printf("%s %s\n", ibv_get_device_name(list[0]), board);
    if (ibv_dereg_mr(mr) || ibv_dealloc_pd(pd) || ibv_close_device(context))
        return 1;
    ibv_free_device_list(list);
    return 0;
}

