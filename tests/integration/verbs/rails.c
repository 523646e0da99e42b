/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tenant with two devices: one process uses both at once, with the same memory. What is made on one
 * device is no part of the other, and QPs of both reach each other.
 */
#include <errno.h>
#include <string.h>

#include "pair.h"

enum { RAILS = 2, SIZE = 1 << 20, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static struct ibv_context *contexts[RAILS];
static uint8_t *source, *target;

static void open_devices(void)
{
    int count;
    struct ibv_device **list = ibv_get_device_list(&count);

    CHECK(list && count == RAILS, "%d devices", count);
    CHECK(!strcmp(ibv_get_device_name(list[0]), "sluice0") && !strcmp(ibv_get_device_name(list[1]), "sluice1"), "names");
    CHECK(ibv_get_device_guid(list[0]) != ibv_get_device_guid(list[1]), "two devices have one GUID");
    for (int i = 0; i < RAILS; i++) {
        struct ibv_device_attr attr;

        contexts[i] = ibv_open_device(list[i]);
        CHECK(contexts[i], "ibv_open_device");
        CHECK(!ibv_query_device(contexts[i], &attr) && attr.node_guid == ibv_get_device_guid(list[i]), "node_guid");
    }
    ibv_free_device_list(list);
}

static enum ibv_wc_status write_to(struct end *from, uint32_t lkey, uint32_t rkey)
{
    struct ibv_sge sge = {.addr = (uintptr_t)source, .length = SIZE, .lkey = lkey};
    struct ibv_send_wr *bad, wr = {
        .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED,
        .wr.rdma = {.remote_addr = (uintptr_t)target, .rkey = rkey}};

    CHECK(!ibv_post_send(from->qp, &wr, &bad), "ibv_post_send");
    return wait_completion(from->cq).status;
}

/* From a QP of one device to one of the same or the other. */
static void cross(int from, int to)
{
    struct end a, b;

    end_open(&a, contexts[from], 0);
    end_open(&b, contexts[to], 0);
    end_connect(&a, b.qp->qp_num, b.gid, 7, 12);
    end_connect(&b, a.qp->qp_num, a.gid, 7, 12);
    struct ibv_mr *source_mr = ibv_reg_mr(a.pd, source, SIZE, ALL), *target_mr = ibv_reg_mr(b.pd, target, SIZE, ALL);

    CHECK(source_mr && target_mr, "ibv_reg_mr");
    memset(source, 0xa0 + 4 * from + to, SIZE);
    memset(target, 0x55, SIZE);
    enum ibv_wc_status status = write_to(&a, source_mr->lkey, target_mr->rkey);

    CHECK(status == IBV_WC_SUCCESS, "%d to %d: %s", from, to, ibv_wc_status_str(status));
    CHECK(!memcmp(source, target, SIZE), "%d to %d: other bytes", from, to);
    CHECK(!ibv_dereg_mr(source_mr) && !ibv_dereg_mr(target_mr), "ibv_dereg_mr");
    end_close(&a);
    end_close(&b);
}

/* The same memory on both devices; each has a key of its own, which the other doesn't know. */
static void keys_are_of_one_device(void)
{
    struct end a, b, other;

    end_open(&a, contexts[0], 0);
    end_open(&b, contexts[0], 0);
    end_open(&other, contexts[1], 0);
    end_connect(&a, b.qp->qp_num, b.gid, 7, 12);
    end_connect(&b, a.qp->qp_num, a.gid, 7, 12);
    struct ibv_mr *source_mr = ibv_reg_mr(a.pd, source, SIZE, ALL);
    struct ibv_mr *target_mr = ibv_reg_mr(b.pd, target, SIZE, ALL), *foreign = ibv_reg_mr(other.pd, target, SIZE, ALL);

    CHECK(source_mr && target_mr && foreign, "ibv_reg_mr");
    CHECK(write_to(&a, source_mr->lkey, target_mr->rkey) == IBV_WC_SUCCESS, "a key of the device");
    CHECK(write_to(&a, source_mr->lkey, foreign->rkey) == IBV_WC_REM_ACCESS_ERR, "a key of the other device");
    CHECK(!ibv_dereg_mr(source_mr) && !ibv_dereg_mr(target_mr) && !ibv_dereg_mr(foreign), "ibv_dereg_mr");
    end_close(&a);
    end_close(&b);
    end_close(&other);
}

static void queue_pairs_are_of_one_device(void)
{
    struct end a, b;

    end_open(&a, contexts[0], 0);
    end_open(&b, contexts[1], 0);
    struct ibv_qp_init_attr attr = {
        .send_cq = b.cq, .recv_cq = a.cq, .qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 1, .max_send_sge = 1}};

    CHECK(!ibv_create_qp(a.pd, &attr) && errno == EINVAL, "a PD of one device, a CQ of the other: %s", strerror(errno));
    struct ibv_srq_init_attr srq_attr = {.attr = {.max_wr = 1, .max_sge = 1}};

    attr.send_cq = a.cq;
    attr.srq = ibv_create_srq(b.pd, &srq_attr);
    CHECK(attr.srq, "ibv_create_srq");
    CHECK(!ibv_create_qp(a.pd, &attr) && errno == EINVAL, "a PD of one device, an SRQ of the other: %s", strerror(errno));
    CHECK(!ibv_destroy_srq(attr.srq), "ibv_destroy_srq");
    end_close(&a);
    end_close(&b);
}

int main(void)
{
    source = aligned_alloc(4096, SIZE);
    target = aligned_alloc(4096, SIZE);
    CHECK(source && target, "memory");
    open_devices();
    for (int from = 0; from < RAILS; from++)
        for (int to = 0; to < RAILS; to++)
            cross(from, to);
    keys_are_of_one_device();
    queue_pairs_are_of_one_device();
    for (int i = 0; i < RAILS; i++)
        CHECK(!ibv_close_device(contexts[i]), "ibv_close_device");
    puts("both devices, one process");
    return 0;
}
