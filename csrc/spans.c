/* SPDX-License-Identifier: Apache-2.0 */
#include "spans.h"

#include "copy.h"
#include "mr.h"
#include "turn.h"
#include "worker.h"

bool spans_add_sges(struct spans *spans, struct pd *pd, const struct sluice_sge *sges, uint32_t num_sge,
                    uint32_t access)
{
    for (uint32_t i = 0; i < num_sge; i++) {
        if (sges[i].length == 0)
            continue;
        const struct mr *mr =
            mr_find(pd->session->engine, sges[i].lkey, pd, sges[i].addr, sges[i].length,
                    access | MR_LOCAL);

        if (!mr)
            return false;
        spans->list[spans->count++] = (struct span){
            .memory = mr->memory, .address = sges[i].addr + mr->offset, .length = sges[i].length};
        spans->total += sges[i].length;
        spans->by_process |= (mr->access & MR_BY_PROCESS) != 0;
    }
    return true;
}

bool spans_set_remote(struct spans *spans, const struct qp *qp, struct pd *pd, uint32_t rkey, uint64_t address,
                      uint32_t length, uint32_t access)
{
    spans->count = 0;
    spans->total = length;
    spans->by_process = false;
    if (length == 0)
        return true;
    const struct mr *mr = mr_find(pd->session->engine, rkey, pd, address, length, access);

    if (!mr || (mr->qp && mr->qp != qp))
        return false;
    spans->list[spans->count++] =
        (struct span){.memory = mr->memory, .address = address + mr->offset, .length = length};
    spans->by_process = (mr->access & MR_BY_PROCESS) != 0;
    return true;
}

void spans_set_part(struct spans *spans, const struct span *span, uint32_t offset, uint32_t length)
{
    *spans = (struct spans){.count = 1, .total = length};
    spans->list[0] = (struct span){.memory = span->memory,
                                   .address = span->address + offset,
                                   .host = span->host ? span->host + offset : NULL,
                                   .length = length};
}

uint8_t *span_at(const struct span *span, uint32_t offset, uint32_t *length)
{
    *length = span->length - offset;
    if (!span->memory)
        return span->host + offset;
    uint64_t address = span->address + offset;
    uint64_t to_window_end = WINDOW_SIZE - (address & (WINDOW_SIZE - 1));

    if (*length > to_window_end)
        *length = (uint32_t)to_window_end;
    return arena_at(&span->memory->view, address);
}

uint32_t spans_copy(const struct sluice_engine *engine, const struct spans *dst, const struct spans *src,
                    uint32_t offset, uint32_t end)
{
    uint32_t to = 0, from = 0, to_offset = offset, from_offset = offset, look = offset + TURN_PIECE;

    while (offset < end) {
        while (to_offset >= dst->list[to].length)
            to_offset -= dst->list[to++].length;
        while (from_offset >= src->list[from].length)
            from_offset -= src->list[from++].length;
        uint32_t length, from_length;
        uint8_t *target = span_at(&dst->list[to], to_offset, &length);
        const uint8_t *source = span_at(&src->list[from], from_offset, &from_length);

        if (__builtin_expect(windows_moved, 0)) {
            windows_moved = false;
            continue;
        }

        if (!target || !source)
            return end + 1;
        if (length > end - offset)
            length = end - offset;
        if (length > from_length)
            length = from_length;
        if (length > TURN_PIECE)
            length = TURN_PIECE;
        copy_ordered(target, source, length);
        offset += length;
        to_offset += length;
        from_offset += length;
        if (offset >= look && offset < end) {
            if (worker_called(engine))
                break;
            look = offset + TURN_PIECE;
        }
    }
    if (__builtin_expect(window_fault, 0)) {
        windows_repair();
        return end + 1;
    }
    return offset;
}

uint32_t spans_copy_all(const struct sluice_engine *engine, const struct spans *dst, const struct spans *src)
{
    uint32_t total = (uint32_t)src->total, offset = 0;

    /* It ends early where the worker is called. */
    while (offset < total)
        offset = spans_copy(engine, dst, src, offset, total);
    return offset;
}

bool spans_put(const struct spans *dst, uint32_t offset, const void *bytes, uint32_t length)
{
    const uint8_t *from = bytes;
    uint32_t i = 0;

    while (length) {
        uint32_t piece;

        while (offset >= dst->list[i].length)
            offset -= dst->list[i++].length;
        uint8_t *target = span_at(&dst->list[i], offset, &piece);

        if (!target)
            return false;
        if (piece > length)
            piece = length;
        copy_ordered(target, from, piece);
        from += piece;
        offset += piece;
        length -= piece;
    }
    if (__builtin_expect(window_fault, 0)) {
        windows_repair();
        return false;
    }
    return true;
}
