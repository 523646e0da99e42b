/* SPDX-License-Identifier: Apache-2.0 */
#include "nic_srq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

/* A receive that the NIC has. */
struct held {
    uint64_t wr_id;
    uint64_t number; /* in the order of posting; 0: none */
    uint32_t num_sge;
    uint32_t reserved;
};

static struct held *held_at(const struct nic_srq *of, uint32_t place)
{
    return (struct held *)(of->copies + (uint64_t)place * of->stride);
}

static void release(struct nic *nic, struct nic_srq *of)
{
    if (of->twin)
        nic->call.ibv_destroy_srq(of->twin);
    if (of->cq)
        nic_give_cq(nic, of->cq, of->cq->entries);
    free(of->copies);
    free(of->free);
    free(of);
}

static int create(struct nic *nic, struct srq *srq, struct nic_srq *of)
{
    uint32_t most = (uint32_t)(nic->attr.max_srq_wr < nic->attr.max_cqe ? nic->attr.max_srq_wr : nic->attr.max_cqe);
    uint32_t sges = srq->max_sge ? srq->max_sge : 1;
    struct ibv_srq_init_attr attr = {.attr = {.max_sge = sges}};

    of->owner = srq;
    of->entries = srq->queue.entries < most ? srq->queue.entries : most;
    of->stride = (uint32_t)(sizeof(struct held) + sges * sizeof(struct sluice_sge));
    of->copies = calloc(of->entries, of->stride);
    of->free = calloc(of->entries, sizeof(*of->free));
    if (!of->copies || !of->free)
        return -ENOMEM;
    for (uint32_t place = 0; place < of->entries; place++)
        of->free[place] = place;
    attr.attr.max_wr = of->entries;
    errno = 0;
    of->cq = nic_make_cq(nic, of->entries);
    if (of->cq)
        of->twin = nic->call.ibv_create_srq(srq->pd->nic, &attr);
    if (!of->twin)
        return errno ? -errno : -ENOMEM;
    of->cq->srq = of;
    return 0;
}

int nic_srq_join(struct srq *srq)
{
    struct nic *nic = nic_of_pd(srq->pd);

    if (!srq->nic) {
        struct nic_srq *of = calloc(1, sizeof(*of));
        int error = of ? create(nic, srq, of) : -ENOMEM;

        if (error) {
            if (of)
                release(nic, of);
            return error;
        }
        srq->nic = of;
    }
    srq->nic->users++;
    return 0;
}

static int by_number(const void *one, const void *other)
{
    uint64_t a = (*(struct held *const *)one)->number, b = (*(struct held *const *)other)->number;

    return a < b ? -1 : a > b;
}

/* What the NIC has not filled is given back to the SRQ, in its order. */
static void give_back(struct nic_srq *of)
{
    uint32_t count = 0;
    struct held **left = of->out ? calloc(of->out, sizeof(*left)) : NULL;

    for (uint32_t place = 0; left && place < of->entries && count < of->out; place++)
        if (held_at(of, place)->number)
            left[count++] = held_at(of, place);
    if (count) {
        qsort(left, count, sizeof(*left), by_number);
        for (uint32_t i = 0; i < count; i++)
            srq_give_back(of->owner, left[i]->wr_id, (const struct sluice_sge *)(left[i] + 1), left[i]->num_sge);
    }
    free(left);
}

void nic_srq_leave(struct srq *srq)
{
    struct nic *nic = nic_of_pd(srq->pd);
    struct nic_srq *of = srq->nic;

    if (!of || --of->users)
        return;
    nic_poll_cq(nic, of->cq);
    srq->nic = NULL;
    give_back(of);
    release(nic, of);
}

void nic_srq_connect(struct srq *srq)
{
    srq->nic->connected++;
    nic_srq_fill(srq);
}

void nic_srq_disconnect(struct srq *srq)
{
    srq->nic->connected--;
}

static uint32_t share(const struct srq *srq)
{
    const struct nic_srq *of = srq->nic;

    if (of->connected == 0)
        return 0;
    return srq->others ? (of->entries + 1) / 2 : of->entries;
}

/* False: the NIC won't have it; it is the SRQ's again. */
static bool post(struct nic_srq *of, const struct receive *receive)
{
    uint32_t place = of->free[of->out];
    struct held *held = held_at(of, place);
    struct ibv_sge sges[SLUICE_MAX_SGE];
    struct ibv_recv_wr wr = {.wr_id = place, .sg_list = sges, .num_sge = (int)receive->num_sge}, *refused;

    *held = (struct held){.wr_id = receive->wr_id, .number = ++of->taken, .num_sge = receive->num_sge};
    memcpy(held + 1, receive->sges, receive->num_sge * sizeof(struct sluice_sge));
    for (uint32_t i = 0; i < receive->num_sge; i++)
        sges[i] = (struct ibv_sge){receive->sges[i].addr, receive->sges[i].length, receive->sges[i].lkey};
    if (ibv_post_srq_recv(of->twin, &wr, &refused)) {
        held->number = 0;
        srq_give_back(of->owner, receive->wr_id, receive->sges, receive->num_sge);
        return false;
    }
    of->out++;
    return true;
}

void nic_srq_fill(struct srq *srq)
{
    struct nic_srq *of = srq->nic;
    struct receive receive;

    while (of && of->out < share(srq) && srq_lend(srq, true, &receive))
        if (!post(of, &receive))
            break;
}

bool nic_srq_completed(struct nic_srq *of, const struct ibv_wc *wc, uint64_t *wr_id)
{
    uint32_t place = (uint32_t)wc->wr_id;

    if (wc->wr_id >= of->entries || held_at(of, place)->number == 0)
        return false;
    *wr_id = held_at(of, place)->wr_id;
    held_at(of, place)->number = 0;
    of->free[--of->out] = place;
    return true;
}
