/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs of lifetimes:
 *
 *     hold key              registers memory, prints its rkey and address, and stays
 *     hold write PORT [client]   the client writes for ever; the server waits for its input
 *                           to end and then says how its own WRITE to the client ends
 *     hold lost             waits for the router to end, and looks what becomes of its device
 */
#include <errno.h>
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

static void hold_lost(void)
{
    struct ibv_context *context = open_device();
    struct ibv_cq *cq = ibv_create_cq(context, 1, NULL, NULL, 0);
    struct ibv_cq_init_attr_ex attr = {.cqe = 1};
    struct ibv_poll_cq_attr poll = {0};
    struct ibv_cq_ex *extended = ibv_create_cq_ex(context, &attr);
    struct ibv_async_event event;
    struct ibv_wc completion;
    int got;

    CHECK(cq && extended, "ibv_create_cq");
    printf("ready\n");
    fflush(stdout);
    CHECK(ibv_get_async_event(context, &event) == 0, "ibv_get_async_event");
    CHECK(event.event_type == IBV_EVENT_DEVICE_FATAL, "%s", ibv_event_type_str(event.event_type));
    ibv_ack_async_event(&event);
    CHECK(ibv_get_async_event(context, &event) == -1 && errno == EIO, "a second event");
    /* Who spins on completions notices as well. */
    do
        got = ibv_poll_cq(cq, 1, &completion);
    while (got == 0);
    CHECK(got < 0, "%d completions", got);
    do
        got = ibv_start_poll(extended, &poll);
    while (got == ENOENT);
    CHECK(got == EIO, "ibv_start_poll: %d", got);
    CHECK(!ibv_alloc_pd(context) && errno == EIO, "a PD of no device");
    CHECK(ibv_close_device(context) == 0, "ibv_close_device");
}

int main(int argc, char **argv)
{
    CHECK(argc > 1, "usage: hold key | hold write PORT [client] | hold lost");
    if (strcmp(argv[1], "key") == 0)
        hold_key();
    else if (strcmp(argv[1], "lost") == 0)
        hold_lost();
    else
        write_for_ever(argc - 1, argv + 1);
    return 0;
}
