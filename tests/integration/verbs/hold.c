/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs of lifetimes:
 *
 *     hold key              registers memory, prints its rkey and address, and stays
 *     hold write PORT [client]   the client writes for ever; the server waits for its input
 *                           to end and then says how its own WRITE to the client ends
 */
#include <string.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 65536, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static void hold_key(void)
{
    struct end end;
    static uint8_t memory[SIZE];

    end_open(&end, open_device(), 0);
    struct ibv_mr *mr = ibv_reg_mr(end.pd, memory, SIZE, ALL);

    CHECK(mr, "ibv_reg_mr");
    printf("%#x %#lx\n", mr->rkey, (long)(uintptr_t)memory);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    for (int i = 0; i < SIZE; i++)
        CHECK(memory[i] == 0, "byte %d was written", i);
}

static void post(struct pair *pair, uint8_t *memory, struct ibv_mr *mr)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = SIZE, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {.remote_addr = pair->peer.addr, .rkey = pair->peer.rkey}};

    CHECK(!ibv_post_send(pair->own.qp, &wr, &bad), "ibv_post_send");
}

static void write_for_ever(int argc, char **argv)
{
    struct pair pair;
    uint8_t *memory = malloc(SIZE);

    pair_open(&pair, argc, argv, 0);
    struct ibv_mr *mr = ibv_reg_mr(pair.own.pd, memory, SIZE, ALL);

    CHECK(mr, "ibv_reg_mr");
    pair_exchange(&pair, memory, mr->rkey);
    printf("ready\n");
    fflush(stdout);
    if (pair.server) {
        while (getchar() != EOF)
            ;
        post(&pair, memory, mr);
        printf("%s\n", ibv_wc_status_str(wait_completion(pair.own.cq).status));
        return;
    }
    for (int i = 0; i < 64; i++)
        post(&pair, memory, mr);
    for (;;) {
        CHECK(wait_completion(pair.own.cq).status == IBV_WC_SUCCESS, "write");
        post(&pair, memory, mr);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc > 1, "usage: hold key | hold write PORT [client]");
    if (strcmp(argv[1], "key") == 0)
        hold_key();
    else
        write_for_ever(argc - 1, argv + 1);
    return 0;
}
