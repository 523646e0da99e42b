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
    struct spans_walk to = spans_walk(dst, offset), from = spans_walk(src, offset);
    uint32_t look = offset + TURN_PIECE;

    while (offset < end) {
        uint32_t length, from_length;
        uint8_t *target = walk_at(&to, &length);
        const uint8_t *source = walk_at(&from, &from_length);

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
        if (__builtin_expect(window_fault, 0))
            break;
        offset += length;
        to.offset += length;
        from.offset += length;
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
    struct spans_walk walk = spans_walk(dst, offset);
    const uint8_t *from = bytes;

    while (length) {
        uint32_t piece;
        uint8_t *target = walk_at(&walk, &piece);

        if (!target)
            return false;
        if (piece > length)
            piece = length;
        copy_ordered(target, from, piece);
        if (__builtin_expect(window_fault, 0))
            break;
        from += piece;
        walk.offset += piece;
        length -= piece;
    }
    if (__builtin_expect(window_fault, 0)) {
        windows_repair();
        return false;
    }
    return true;
}

static uint32_t gather(const struct spans *spans, uint32_t offset, uint32_t length, struct iovec *iov, uint32_t *count,
                       uint32_t room)
{
    struct spans_walk walk = spans_walk(spans, offset);
    uint32_t gathered = 0;

    while (gathered < length && *count < room) {
        uint32_t piece;
        uint8_t *at = walk_at(&walk, &piece);

        if (!at)
            return UINT32_MAX;
        if (piece > length - gathered)
            piece = length - gathered;
        iov[(*count)++] = (struct iovec){.iov_base = at, .iov_len = piece};
        walk.offset += piece;
        gathered += piece;
    }
    return gathered;
}

uint32_t spans_gather(const struct spans *spans, uint32_t offset, uint32_t length, struct iovec *iov, uint32_t *count,
                      uint32_t room)
{
    uint32_t before = *count;

    windows_moved = false;
    uint32_t gathered = gather(spans, offset, length, iov, count, room);

    if (__builtin_expect(windows_moved, 0)) {
        /* Some may lead nowhere; one alone can't. */
        windows_moved = false;
        *count = before;
        gathered = gather(spans, offset, length, iov, count, before < room ? before + 1 : room);
    }
    return gathered;
}

bool spans_seen(const struct spans *spans)
{
    for (uint32_t i = 0; i < spans->count; i++) {
        const struct span *span = &spans->list[i];

        if (!span->memory)
            continue;
        uint64_t first = span->address >> SLUICE_WINDOW_SHIFT;
        uint64_t last = (span->address + span->length - 1) >> SLUICE_WINDOW_SHIFT;

        for (uint64_t window = first; window <= last; window++)
            if (!span->memory->view.windows[window])
                return false;
    }
    return true;
}
