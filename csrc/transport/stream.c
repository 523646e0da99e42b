/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../qp.h"
#include "../tenant.h"
#include "trunk.h"

void streams_init(struct streams *streams)
{
    list_init(&streams->held);
}

static struct tenant *tenant_of(const struct stream *stream)
{
    return tenant_find(stream->trunk->engine, stream->id / STREAM_SLOTS);
}

void stream_hold(struct stream *stream)
{
    if (!list_unlinked(&stream->held))
        return;
    list_append(&stream->trunk->streams.held, &stream->held);
    tenant_waits_for_grant(tenant_of(stream));
}

static void release(struct stream *stream)
{
    if (list_unlinked(&stream->held))
        return;
    list_remove(&stream->held);
    tenant_has_grant(tenant_of(stream));
}

static void let_go(struct stream *stream)
{
    struct list going;

    release(stream);
    list_init(&going);
    list_splice(&going, &stream->waiting);
    while (!list_empty(&going))
        qp_activate(list_entry(going.next, struct qp, link));
}

/* Nobody uses it, and nothing of it is on its way. */
static void stream_free(struct stream *stream)
{
    struct streams *streams = &stream->trunk->streams;

    release(stream);
    streams->of[stream->id / STREAM_SLOTS][stream->id % STREAM_SLOTS] = NULL;
    free(stream);
}

void streams_free(struct streams *streams)
{
    for (uint32_t tenant = 0; tenant < SLUICE_MAX_TENANTS; tenant++) {
        if (!streams->of[tenant])
            continue;
        for (uint32_t slot = 0; slot < STREAM_SLOTS; slot++)
            free(streams->of[tenant][slot]);
        free(streams->of[tenant]);
    }
}

void streams_begin(struct streams *streams)
{
    for (uint32_t tenant = 0; tenant < SLUICE_MAX_TENANTS; tenant++) {
        streams->groups[tenant] = STREAM_WINDOW;
        for (uint32_t slot = 0; streams->of[tenant] && slot < STREAM_SLOTS; slot++) {
            struct stream *stream = streams->of[tenant][slot];

            if (!stream)
                continue;
            stream->credit = STREAM_WINDOW;
            if (stream->users == 0)
                stream_free(stream);
        }
    }
    streams_let_go(streams);
}

void streams_let_go(struct streams *streams)
{
    while (!list_empty(&streams->held))
        let_go(list_entry(streams->held.next, struct stream, held));
}

bool streams_waited_for(struct streams *streams)
{
    /* QPs leave without a word where they are destroyed. */
    while (!list_empty(&streams->held)) {
        struct stream *stream = list_entry(streams->held.next, struct stream, held);

        if (!list_empty(&stream->waiting))
            return true;
        release(stream);
    }
    return false;
}

static void give_back(uint32_t *credit, uint32_t bytes)
{
    *credit = bytes < STREAM_WINDOW - *credit ? *credit + bytes : STREAM_WINDOW;
}

void streams_granted(struct streams *streams, const struct grant_frame *grant)
{
    uint32_t tenant = grant->stream / STREAM_SLOTS, slot = grant->stream % STREAM_SLOTS;

    if (tenant >= SLUICE_MAX_TENANTS || grant->bytes == 0)
        return;
    if (slot == STREAM_GROUPS) {
        give_back(&streams->groups[tenant], grant->bytes);
        return;
    }
    struct stream *stream = streams->of[tenant] ? streams->of[tenant][slot] : NULL;

    if (!stream)
        return;
    give_back(&stream->credit, grant->bytes);
    if (stream->users == 0 && stream->credit == STREAM_WINDOW)
        stream_free(stream);
    else if (stream->credit >= datagram_size(SLUICE_MTU))
        let_go(stream);
}

static struct stream *make(struct trunk *trunk, uint32_t tenant, uint32_t slot, const uint8_t gid[16])
{
    struct stream *stream = calloc(1, sizeof(*stream));

    if (!stream)
        return NULL;
    stream->trunk = trunk;
    stream->id = stream_id(tenant, slot);
    stream->credit = STREAM_WINDOW;
    memcpy(stream->gid, gid, sizeof(stream->gid));
    list_init(&stream->waiting);
    list_init(&stream->held);
    return stream;
}

int stream_get(struct trunk *trunk, uint32_t tenant, const uint8_t gid[16], struct stream **out)
{
    struct stream ***of = &trunk->streams.of[tenant];
    uint32_t unused = STREAM_SLOTS;

    if (!*of && !(*of = calloc(STREAM_SLOTS, sizeof(**of))))
        return -ENOMEM;
    for (uint32_t slot = STREAM_GROUPS + 1; slot < STREAM_SLOTS; slot++) {
        struct stream *stream = (*of)[slot];

        if (stream && memcmp(stream->gid, gid, sizeof(stream->gid)) == 0) {
            stream->users++;
            *out = stream;
            return 0;
        }
        if (!stream && slot < unused)
            unused = slot;
    }
    if (unused == STREAM_SLOTS || !(*out = make(trunk, tenant, unused, gid)))
        return -ENOMEM;
    (*of)[unused] = *out;
    (*out)->users = 1;
    return 0;
}

void stream_put(struct stream *stream)
{
    if (--stream->users)
        return;
    /* They find their address handle gone. */
    let_go(stream);
    if (stream->credit == STREAM_WINDOW)
        stream_free(stream);
}
