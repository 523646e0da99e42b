/* SPDX-License-Identifier: Apache-2.0 */
#include "parcel.h"

#include <infiniband/verbs.h>
#include <stdlib.h>

#include "reach.h"
#include "spans.h"

struct parcel {
    struct errand errand;
    struct list link; /* qp->parcels */
    struct qp *qp;    /* NULL: dropped */
    bool back, placed;
    struct receive receive;
    struct arrival arrival;
    uint32_t count; /* pieces that the thread stores */
    struct {
        uint64_t address;
        uint32_t offset, length; /* in bytes */
    } pieces[SLUICE_MAX_SGE];
    uint8_t bytes[]; /* GRH and data */
};

static bool carry(const struct reach *reach, struct errand *errand)
{
    const struct parcel *parcel = list_entry(errand, struct parcel, errand);

    for (uint32_t i = 0; i < parcel->count; i++)
        if (!reach_write(reach, parcel->pieces[i].address, parcel->bytes + parcel->pieces[i].offset,
                         parcel->pieces[i].length))
            return false;
    return true;
}

/* Completes those at the front that are back. */
static void complete(struct qp *qp)
{
    while (!list_empty(&qp->parcels)) {
        struct parcel *parcel = list_entry(qp->parcels.next, struct parcel, link);
        const struct arrival *arrival = &parcel->arrival;
        bool placed = parcel->placed;

        if (!parcel->back)
            return;
        list_remove(&parcel->link);
        if (placed)
            qp_complete_taken(qp, &parcel->receive, IBV_WC_SUCCESS, IBV_WC_RECV, arrival->byte_len, arrival->wc_flags,
                              arrival->imm_data, arrival->solicited);
        else
            qp_complete_taken(qp, &parcel->receive, IBV_WC_LOC_PROT_ERR, IBV_WC_RECV, 0, 0, 0, false);
        free(parcel);
        if (!placed) {
            qp_error(qp); /* flushes the rest */
            return;
        }
    }
}

static void done(struct errand *errand, bool carried)
{
    struct parcel *parcel = list_entry(errand, struct parcel, errand);

    if (!parcel->qp) {
        free(parcel);
        return;
    }
    parcel->back = true;
    parcel->placed = carried;
    /* In the error state all are flushed together, when the last is back (qp_state.c). */
    if (!parcel->qp->session->broken && parcel->qp->state != IBV_QPS_ERR)
        complete(parcel->qp);
}

bool parcel_needed(const struct qp *qp, const struct spans *dst)
{
    return dst->by_process || !list_empty(&qp->parcels);
}

/* Notes what is the thread's to store, and stores the rest. Returns whose thread, or NULL. *had: false where memory could not be had. */
static struct reach *place(struct parcel *parcel, const struct spans *dst, uint32_t total, bool *had)
{
    struct span bytes = {.host = parcel->bytes, .length = total};
    struct reach *reach = NULL;
    uint32_t offset = 0;

    *had = true;
    for (uint32_t i = 0; i < dst->count && offset < total && *had; i++) {
        const struct span *span = &dst->list[i];
        uint32_t length = span->length < total - offset ? span->length : total - offset;
        struct spans to, from;

        if (span_in_process(span)) {
            reach = span->memory->reach;
            parcel->pieces[parcel->count].address = span->address;
            parcel->pieces[parcel->count].offset = offset;
            parcel->pieces[parcel->count++].length = length;
        } else {
            spans_set_part(&to, span, 0, length);
            spans_set_part(&from, &bytes, offset, length);
            *had = spans_copy_all(parcel->qp->session->engine, &to, &from) <= length;
        }
        offset += length;
    }
    return reach;
}

bool parcel_send(struct qp *qp, const struct spans *dst, const struct spans *src, const struct arrival *arrival)
{
    struct sluice_engine *engine = qp->session->engine;
    uint32_t total = (uint32_t)src->total;
    struct parcel *parcel = malloc(sizeof(*parcel) + total);
    struct spans bytes = {.count = 0};

    if (!parcel)
        return false;
    *parcel = (struct parcel){.errand = {.carry = carry, .done = done}, .qp = qp, .receive = qp->receive, .arrival = *arrival};
    list_init(&parcel->errand.link);
    list_init(&parcel->link);
    spans_add_host(&bytes, parcel->bytes, total);
    bool had = spans_copy_all(engine, &bytes, src) <= total;
    struct reach *reach = had ? place(parcel, dst, total, &had) : NULL;

    if (reach && !reach_has_room(engine, reach)) {
        free(parcel);
        return false;
    }
    qp->receive.active = false;
    list_append(&qp->parcels, &parcel->link);
    if (reach && had) {
        reach_send(reach, &parcel->errand);
        errand_keep(engine, &parcel->errand);
        return true;
    }
    /* It only waits for those before it. */
    parcel->back = true;
    parcel->placed = had;
    complete(qp);
    return true;
}

bool parcel_spoil(struct qp *qp)
{
    struct parcel *parcel = malloc(sizeof(*parcel));

    if (!parcel)
        return false;
    *parcel = (struct parcel){.qp = qp, .back = true, .receive = qp->receive};
    list_init(&parcel->link);
    qp->receive.active = false;
    list_append(&qp->parcels, &parcel->link);
    complete(qp);
    return true;
}

void parcels_drop(struct qp *qp)
{
    while (!list_empty(&qp->parcels)) {
        struct parcel *parcel = list_entry(list_take(&qp->parcels), struct parcel, link);

        parcel->qp = NULL;
        if (parcel->back)
            free(parcel);
    }
}

void parcels_flush(struct qp *qp)
{
    for (struct list *link = qp->parcels.next; link != &qp->parcels; link = link->next) {
        const struct parcel *parcel = list_entry(link, struct parcel, link);

        qp_complete_taken(qp, &parcel->receive, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
    }
    parcels_drop(qp);
}
