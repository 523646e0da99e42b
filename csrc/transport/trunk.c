/* SPDX-License-Identifier: Apache-2.0 */
#include "trunk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../clock.h"
#include "../spans.h"

/* How long datagrams wait for a connection. */
#define UNREACHABLE_NS (3 * NS_PER_SECOND)

/* Ids of sockets beyond those of QPs: which trunk, which way. */
enum { TRUNK_ID = 1 << 24, TRUNK_IN = 1 };

static void serve_out(struct sluice_engine *engine, struct net_socket *socket);
static void serve_in(struct sluice_engine *engine, struct net_socket *socket);

static void let_all_go(struct trunk *trunk)
{
    struct list going;

    list_init(&going);
    list_splice(&going, &trunk->waiting);
    while (!list_empty(&going))
        qp_activate(list_entry(going.next, struct qp, link));
}

static bool anybody_waits(struct trunk *trunk)
{
    return !list_empty(&trunk->waiting) || streams_waited_for(&trunk->streams);
}

static void close_out(struct trunk *trunk)
{
    net_remove(trunk->engine, &trunk->out, false);
    free(trunk->sending);
    trunk->sending = NULL;
}

static void close_in(struct trunk *trunk)
{
    net_remove(trunk->engine, &trunk->in, false);
    free(trunk->reading);
    trunk->reading = NULL;
    inflows_end(trunk);
}

static void on_timer(struct timer *timer)
{
    struct trunk *trunk = list_entry(timer, struct trunk, timer);
    struct sluice_engine *engine = trunk->engine;

    if (trunk->out.fd >= 0 && engine->now - trunk->progress < UNREACHABLE_NS) {
        if (anybody_waits(trunk))
            timer_set(&engine->timers, timer, trunk->progress + UNREACHABLE_NS);
        return;
    }
    if (trunk->out.fd >= 0) {
        close_out(trunk);
        engine_tell_trunk(engine, trunk->number);
    }
    trunk->given_up = true;
    let_all_go(trunk);
    streams_let_go(&trunk->streams);
}

static void init_socket(struct net_socket *socket, uint32_t id,
                        void (*serve)(struct sluice_engine *engine, struct net_socket *socket))
{
    *socket = (struct net_socket){.fd = -1, .id = id, .serve = serve};
    list_init(&socket->ready);
}

int trunk_open(struct sluice_engine *engine)
{
    for (uint32_t number = 0; number < TRUNKS; number++) {
        if (engine->trunks[number])
            continue;
        struct trunk *trunk = calloc(1, sizeof(*trunk));
        int error = trunk ? timers_reserve(&engine->timers) : -ENOMEM;

        if (!error && (error = timers_reserve(&engine->timers)))
            timers_release(&engine->timers);
        if (error) {
            free(trunk);
            return error;
        }
        trunk->number = number;
        trunk->engine = engine;
        trunk->timer.fire = on_timer;
        init_socket(&trunk->out, TRUNK_ID | number << 1, serve_out);
        init_socket(&trunk->in, TRUNK_ID | number << 1 | TRUNK_IN, serve_in);
        list_init(&trunk->waiting);
        streams_init(&trunk->streams);
        inflows_init(&trunk->inflows);
        engine->trunks[number] = trunk;
        return (int)number;
    }
    return -EAGAIN;
}

struct trunk *trunk_find(struct sluice_engine *engine, uint32_t number)
{
    return number < TRUNKS ? engine->trunks[number] : NULL;
}

struct net_socket *trunk_socket(struct sluice_engine *engine, uint32_t id)
{
    struct trunk *trunk = id & TRUNK_ID ? trunk_find(engine, (id & ~TRUNK_ID) >> 1) : NULL;

    return !trunk ? NULL : id & TRUNK_IN ? &trunk->in : &trunk->out;
}

void trunks_free(struct sluice_engine *engine)
{
    for (uint32_t number = 0; engine->trunks && number < TRUNKS; number++) {
        struct trunk *trunk = engine->trunks[number];

        if (!trunk)
            continue;
        close_out(trunk);
        close_in(trunk);
        streams_free(&trunk->streams);
        timer_cancel(&engine->timers, &trunk->timer);
        timers_release(&engine->timers);
        timers_release(&engine->timers);
        free(trunk);
    }
}

int trunk_connect(struct trunk *trunk, int fd)
{
    uint8_t *buffer = malloc(TRUNK_BUFFER);

    if (!buffer)
        return -ENOMEM;
    close_out(trunk);
    int error = net_add(trunk->engine, &trunk->out, fd);

    if (error) {
        free(buffer);
        return error;
    }
    trunk->sending = buffer;
    trunk->start = trunk->end = trunk->heard_bytes = 0;
    trunk->progress = trunk->engine->now;
    trunk->given_up = false;
    timer_cancel(&trunk->engine->timers, &trunk->timer);
    let_all_go(trunk);
    streams_begin(&trunk->streams);
    return 0;
}

int trunk_accept(struct trunk *trunk, int fd)
{
    uint8_t *buffer = malloc(TRUNK_BUFFER);

    if (!buffer)
        return -ENOMEM;
    close_in(trunk);
    int error = net_add(trunk->engine, &trunk->in, fd);

    if (error) {
        free(buffer);
        return error;
    }
    trunk->reading = buffer;
    trunk->has = 0;
    return 0;
}

/* ---- sending ----------------------------------------------------------------- */

/* There is a connection, and room. False: memory could not be had. */
static bool put(struct trunk *trunk, const struct datagram_frame *frame, const struct spans *src)
{
    struct datagram_frame *place = (struct datagram_frame *)(trunk->sending + trunk->end);
    uint32_t size = datagram_size(frame->length);
    struct spans dst = {.count = 0};

    /* The header before the data is copied with them. */
    spans_add_host(&dst, place->grh, SLUICE_GRH + frame->length);
    if (spans_copy_all(trunk->engine, &dst, src) > (uint32_t)src->total)
        return false;
    memcpy(place, frame, offsetof(struct datagram_frame, grh));
    memset((uint8_t *)(place + 1) + frame->length, 0, size - sizeof(*frame) - frame->length);
    trunk->end += size;
    net_wake(trunk->engine->net, &trunk->out);
    return true;
}

static bool has_room(const struct trunk *trunk, const struct datagram_frame *frame)
{
    return TRUNK_BUFFER - trunk->end >= datagram_size(frame->length);
}

static enum progress wait_in_line(struct trunk *trunk, struct qp *qp, struct list *line)
{
    struct sluice_engine *engine = trunk->engine;

    if (!trunk->timer.place)
        timer_set(&engine->timers, &trunk->timer, engine->now + UNREACHABLE_NS);
    qp->line = line;
    return PROGRESS_BLOCKED;
}

enum progress trunk_send(struct stream *stream, struct qp *qp, struct datagram_frame *frame, const struct spans *src)
{
    struct trunk *trunk = stream->trunk;
    uint32_t size = datagram_size(frame->length);

    if (trunk->out.fd < 0 && trunk->given_up)
        return PROGRESS_DROPPED;
    if (trunk->out.fd >= 0 && stream->credit < size) {
        stream_hold(stream);
        return wait_in_line(trunk, qp, &stream->waiting);
    }
    if (trunk->out.fd < 0 || !has_room(trunk, frame))
        return wait_in_line(trunk, qp, &trunk->waiting);
    frame->stream = stream->id;
    if (!put(trunk, frame, src))
        return PROGRESS_FAILED;
    stream->credit -= size;
    return PROGRESS_DONE;
}

enum progress trunks_send(struct qp *qp, struct datagram_frame *frame, const struct spans *src, uint32_t *copies)
{
    struct trunk **trunks = qp->session->engine->trunks;
    uint32_t tenant = qp->tenant->first->number, size = datagram_size(frame->length);

    *copies = 0;
    for (uint32_t number = 0; number < TRUNKS && trunks[number]; number++)
        if (trunks[number]->out.fd < 0 && !trunks[number]->given_up)
            return wait_in_line(trunks[number], qp, &trunks[number]->waiting);
    frame->stream = stream_id(tenant, STREAM_GROUPS);
    for (uint32_t number = 0; number < TRUNKS && trunks[number]; number++) {
        uint32_t *credit = &trunks[number]->streams.groups[tenant];

        if (trunks[number]->out.fd < 0 || *credit < size || !has_room(trunks[number], frame))
            continue;
        if (!put(trunks[number], frame, src))
            return PROGRESS_FAILED;
        *credit -= size;
        ++*copies;
    }
    return PROGRESS_DONE;
}

static void lost(struct trunk *trunk)
{
    close_out(trunk);
    /* Who waits for room waits for the next connection. */
    timer_set(&trunk->engine->timers, &trunk->timer, trunk->engine->now + UNREACHABLE_NS);
    engine_tell_trunk(trunk->engine, trunk->number);
}

/* Takes in what the peer has granted. False: the connection is over. */
static bool hear(struct trunk *trunk)
{
    struct net_socket *socket = &trunk->out;
    uint8_t said[512];

    while (socket->readable) {
        ssize_t result = recv(socket->fd, said, sizeof(said), MSG_DONTWAIT);

        if (result < 0 && (errno == EAGAIN || errno == EINTR)) {
            socket->readable = errno == EINTR;
            continue;
        }
        if (result <= 0)
            return false;
        socket->readable = (size_t)result == sizeof(said);
        trunk->progress = trunk->engine->now;
        for (ssize_t i = 0; i < result; i++) {
            ((uint8_t *)&trunk->heard)[trunk->heard_bytes++] = said[i];
            if (trunk->heard_bytes < sizeof(trunk->heard))
                continue;
            trunk->heard_bytes = 0;
            streams_granted(&trunk->streams, &trunk->heard);
        }
    }
    return true;
}

static void serve_out(struct sluice_engine *engine, struct net_socket *socket)
{
    struct trunk *trunk = list_entry(socket, struct trunk, out);

    if (socket->fd >= 0 && (socket->hung_up || !hear(trunk))) {
        lost(trunk);
        return;
    }
    while (socket->fd >= 0 && socket->writable && trunk->start != trunk->end) {
        ssize_t result = send(socket->fd, trunk->sending + trunk->start, trunk->end - trunk->start,
                              MSG_DONTWAIT | MSG_NOSIGNAL);

        if (result < 0 && errno != EAGAIN && errno != EINTR) {
            lost(trunk);
            return;
        }
        if (result > 0) {
            trunk->start += (uint32_t)result;
            trunk->progress = engine->now;
        }
        socket->writable = trunk->start == trunk->end;
    }
    if (trunk->start == trunk->end) {
        trunk->start = trunk->end = 0;
        let_all_go(trunk);
    }
}

/* ---- receiving --------------------------------------------------------------- */

/* PROGRESS_FAILED: the peer makes no sense; PROGRESS_BLOCKED: the next one waits for the gate. */
static enum progress take_datagrams(struct trunk *trunk)
{
    enum progress progress = PROGRESS_DONE;
    uint32_t start = 0, count = 0;
    uint64_t began = trunk->has < sizeof(struct datagram_frame) ? 0 : clock_now();

    while (trunk->has - start >= sizeof(struct datagram_frame)) {
        struct datagram_frame *frame = (struct datagram_frame *)(trunk->reading + start);

        if (frame->length > SLUICE_MTU)
            return PROGRESS_FAILED;
        if (trunk->has - start < datagram_size(frame->length))
            break;
        struct inflow *inflow = inflow_find(trunk, frame->stream);

        if (!inflow || !inflow_may_come(inflow, datagram_size(frame->length)))
            return PROGRESS_FAILED;
        if (!datagram_arrived(inflow, frame)) {
            progress = PROGRESS_BLOCKED;
            break;
        }
        start += datagram_size(frame->length);
        count++;
    }
    /* For those that come next: a look at the clock for each would cost more than it tells. */
    if (count)
        trunk->inflows.datagram_ns = (uint32_t)((clock_now() - began) / count);
    trunk->has -= start;
    memmove(trunk->reading, trunk->reading + start, trunk->has);
    return progress;
}

/* As take_datagrams; PROGRESS_FAILED also: the connection is over. */
static enum progress receive(struct trunk *trunk)
{
    struct net_socket *socket = &trunk->in;
    size_t room = TRUNK_BUFFER - trunk->has;
    ssize_t result = recv(socket->fd, trunk->reading + trunk->has, room, MSG_DONTWAIT);

    if (result < 0 && (errno == EAGAIN || errno == EINTR)) {
        socket->readable = false;
        return PROGRESS_DONE;
    }
    if (result <= 0)
        return PROGRESS_FAILED;
    trunk->has += (uint32_t)result;
    if ((size_t)result < room && !socket->hung_up)
        socket->readable = false;
    return take_datagrams(trunk);
}

static void serve_in(struct sluice_engine *engine, struct net_socket *socket)
{
    struct trunk *trunk = list_entry(socket, struct trunk, in);

    if (socket->fd < 0)
        return;
    /* What waited for the gate comes first. */
    enum progress progress = take_datagrams(trunk);

    if (progress == PROGRESS_DONE && socket->readable)
        progress = receive(trunk);
    inflows_write(trunk);
    /* Whoever sends makes another connection where this one ends. */
    if (progress == PROGRESS_FAILED)
        close_in(trunk);
    else if (progress == PROGRESS_DONE && socket->readable)
        net_wake(engine->net, socket);
}

void trunks_look_again(struct sluice_engine *engine)
{
    for (uint32_t number = 0; number < TRUNKS && engine->trunks[number]; number++) {
        struct trunk *trunk = engine->trunks[number];

        if (trunk->in.fd >= 0 && trunk->has)
            net_wake(engine->net, &trunk->in);
    }
}
