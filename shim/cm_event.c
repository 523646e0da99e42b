/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event channels: man rdma_create_event_channel, rdma_get_cm_event, rdma_ack_cm_event. A
 * channel's descriptor is a socket with one byte for each event that waits in the router,
 * so poll, epoll and O_NONBLOCK work on it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cm.h"
#include "objects.h"
#include "session.h"

EXPORT struct rdma_event_channel *rdma_create_event_channel(void)
{
    struct sluice_handle_request request = {0};
    struct sluice_handle_reply reply;

    if (cm_open())
        return NULL;
    struct cm_channel *channel = calloc(1, sizeof(*channel));

    if (!channel)
        return NULL;
    int error = session_call_fd(SLUICE_OP_CM_CREATE_CHANNEL, &request, sizeof(request), &reply, sizeof(reply),
                                &channel->channel.fd);

    if (error) {
        free(channel);
        errno = error;
        return NULL;
    }
    channel->handle = reply.handle;
    return &channel->channel;
}

enum { REMEMBERED = 64 };

static pthread_mutex_t readers_lock = PTHREAD_MUTEX_INITIALIZER;
static struct cm_channel *remembered[REMEMBERED]; /* destroyed channels, which a late thread may still name */
static unsigned next_remembered;

static void forget_channel(struct cm_channel *channel)
{
    session_call_handle(SLUICE_OP_CM_DESTROY_CHANNEL, channel->handle, NULL);
    pthread_mutex_lock(&readers_lock);
    struct cm_channel **place = &remembered[next_remembered++ % REMEMBERED], *oldest = *place;

    *place = channel;
    pthread_mutex_unlock(&readers_lock);
    free(oldest);
}

/*
 * A thread that waits on the channel goes on waiting, as it does in the kernel: programs destroy
 * their channel on the way out under a thread that they never join. So its socket stays. A thread
 * that comes a moment too late waits as well.
 */
EXPORT void rdma_destroy_event_channel(struct rdma_event_channel *public)
{
    struct cm_channel *channel = to_cm_channel(public);

    pthread_mutex_lock(&readers_lock);
    bool unused = !channel->readers;

    channel->destroyed = true;
    pthread_mutex_unlock(&readers_lock);
    close(public->fd);
    if (unused)
        forget_channel(channel);
}

/* ---- reading ----------------------------------------------------------- */

/* A reader that has taken one of them is told that there is no event, and waits on. */
void cm_channel_drain(const struct rdma_event_channel *channel, uint32_t surplus)
{
    char bytes[64];
    ssize_t got;

    for (; surplus; surplus -= (uint32_t)got) {
        got = recv(channel->fd, bytes, surplus < sizeof(bytes) ? surplus : sizeof(bytes), MSG_DONTWAIT);
        if (got <= 0)
            return;
    }
}

/* A reader counts until its question is answered: the channel is the router's as long. */
static void begin_reading(struct cm_channel *channel)
{
    pthread_mutex_lock(&readers_lock);
    bool late = channel->destroyed;

    channel->readers += !late;
    pthread_mutex_unlock(&readers_lock);
    while (late)
        pause();
}

/* Whether the channel was destroyed meanwhile. */
static bool end_reading(struct cm_channel *channel)
{
    pthread_mutex_lock(&readers_lock);
    bool destroyed = channel->destroyed, last = --channel->readers == 0 && destroyed;

    pthread_mutex_unlock(&readers_lock);
    if (last)
        forget_channel(channel);
    return destroyed;
}

/* Waits for an event and asks for it; 0 or errno. EAGAIN as the descriptor's flags say. */
static int ask_for_event(struct cm_channel *channel, struct sluice_cm_event_reply *reply)
{
    for (;;) {
        struct sluice_handle_request request = {.handle = channel->handle};
        char one;

        begin_reading(channel);
        ssize_t got = read(channel->channel.fd, &one, 1);
        int error = got < 0 ? errno : got ? 0 : EIO; /* at its end the router is gone */
        bool empty = error; /* by itself, and not because what it told of is gone */

        if (!error)
            error = session_call(SLUICE_OP_CM_GET_EVENT, &request, sizeof(request), reply, sizeof(*reply));
        bool destroyed = end_reading(channel);

        /* Again: where its id was destroyed or migrated between the byte and the question; where the channel was, to wait. */
        if (!(error && destroyed) && (empty || error != EAGAIN))
            return error;
    }
}

static void set_private_data(struct cm_event *event, const struct sluice_cm_param *from, const void **data,
                             uint8_t *length)
{
    if (!from->private_data_len)
        return;
    memcpy(event->private_data, from->private_data, sizeof(event->private_data));
    *data = event->private_data;
    *length = from->private_data_len;
}

static void set_connection(struct cm_event *event, const struct sluice_cm_param *from)
{
    struct rdma_conn_param *to = &event->event.param.conn;

    set_private_data(event, from, &to->private_data, &to->private_data_len);
    to->responder_resources = from->responder_resources;
    to->initiator_depth = from->initiator_depth;
    to->flow_control = from->flow_control;
    to->retry_count = from->retry_count;
    to->rnr_retry_count = from->rnr_retry_count;
    to->srq = from->srq;
    to->qp_num = from->qp_num;
}

static void set_datagram(struct cm_event *event, const struct sluice_cm_event_reply *from)
{
    struct rdma_ud_param *to = &event->event.param.ud;

    set_private_data(event, &from->param, &to->private_data, &to->private_data_len);
    to->qp_num = from->param.qp_num;
    to->qkey = from->param.qkey;
    ah_attr_from_abi(&to->ah_attr, &from->ah);
}

static void set_parameters(struct cm_event *event, const struct sluice_cm_event_reply *from)
{
    if (event->about->id.qp_type == IBV_QPT_UD)
        set_datagram(event, from);
    else
        set_connection(event, &from->param);
}

/* ---- what the library does before the application sees an event --------- */

static int on_request(struct cm_event *event, const struct sluice_cm_event_reply *from)
{
    struct cm_id *listener = event->about;
    struct cm_id *id = cm_id_new(listener->id.channel, listener->id.context, listener->id.ps, listener->id.qp_type);

    if (!id) {
        uint32_t handle = from->handle;
        struct sluice_handle_request request = {.handle = handle};
        struct sluice_cm_events_reply reply;

        if (session_call(SLUICE_OP_CM_DESTROY_ID, &request, sizeof(request), &reply, sizeof(reply)) == 0)
            cm_channel_drain(listener->id.channel, reply.surplus);
        return -1;
    }
    id->handle = from->handle;
    id->initiator_depth = from->param.initiator_depth;
    id->responder_resources = from->param.responder_resources;
    id->remote_ece = (struct ibv_ece){.vendor_id = from->param.ece_vendor, .options = from->param.ece_options};
    if ((listener->synchronous && rdma_migrate_id(&id->id, NULL)) || cm_set_route(id, &from->route)) {
        rdma_destroy_id(&id->id);
        return -1;
    }
    event->event.listen_id = &listener->id;
    event->event.id = &id->id;
    return 0;
}

static void on_response(struct cm_event *event, const struct sluice_cm_event_reply *from)
{
    struct cm_id *id = event->about;

    id->remote_ece = (struct ibv_ece){.vendor_id = from->param.ece_vendor, .options = from->param.ece_options};
    if (!id->id.qp)
        return; /* the application moves its QP itself, then calls rdma_establish */
    if (cm_finish_connect(id)) {
        event->event.event = RDMA_CM_EVENT_CONNECT_ERROR;
        event->event.status = -errno;
        id->connect_failed = true;
    } else {
        event->event.event = RDMA_CM_EVENT_ESTABLISHED;
    }
}

static void on_join(struct cm_event *event)
{
    struct cm_group *group = event->group;
    struct rdma_ud_param *to = &event->event.param.ud;

    group->gid = to->ah_attr.grh.dgid;
    to->private_data = group->context;
    to->private_data_len = 0;
    if (event->event.event != RDMA_CM_EVENT_MULTICAST_JOIN || !group->id->id.qp || group->send_only)
        return;
    int error = ibv_attach_mcast(group->id->id.qp, &group->gid, 0);

    if (error) {
        event->event.event = RDMA_CM_EVENT_MULTICAST_ERROR;
        event->event.status = -error;
    }
}

/* 0; 1 where the application is not to see it; the event is complete otherwise. */
static int process(struct cm_event *event, const struct sluice_cm_event_reply *from)
{
    struct cm_id *id = event->about;

    switch (event->event.event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        if (cm_set_route(id, &from->route)) {
            event->event.event = RDMA_CM_EVENT_ADDR_ERROR;
            event->event.status = -errno;
        }
        break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        if (cm_set_route(id, &from->route)) {
            event->event.event = RDMA_CM_EVENT_ROUTE_ERROR;
            event->event.status = -errno;
        }
        break;
    case RDMA_CM_EVENT_CONNECT_REQUEST:
        return on_request(event, from) ? 1 : 0;
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
        on_response(event, from);
        break;
    case RDMA_CM_EVENT_REJECTED:
        if (id->connect_failed)
            return 1;
        cm_modify_err(&id->id);
        break;
    case RDMA_CM_EVENT_DISCONNECTED:
        return id->connect_failed;
    case RDMA_CM_EVENT_MULTICAST_JOIN:
    case RDMA_CM_EVENT_MULTICAST_ERROR:
        on_join(event);
        break;
    default:
        break;
    }
    return 0;
}

/* What the application wrote itself: the union begins with its number. */
static void set_written(struct cm_event *event, const struct sluice_cm_event_reply *from)
{
    memcpy(&event->event.param, from->param.private_data, sizeof(uint64_t));
}

EXPORT int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **public)
{
    if (!public || !channel)
        return cm_result(EINVAL);
    for (;;) {
        struct sluice_cm_event_reply reply;
        int error = ask_for_event(to_cm_channel(channel), &reply);

        if (error)
            return cm_result(error);
        struct cm_event *event = calloc(1, sizeof(*event));

        if (!event)
            return cm_result(ENOMEM);
        if (reply.event == RDMA_CM_EVENT_MULTICAST_JOIN || reply.event == RDMA_CM_EVENT_MULTICAST_ERROR) {
            event->group = (struct cm_group *)(uintptr_t)reply.uid;
            event->about = event->group->id;
        } else {
            event->about = (struct cm_id *)(uintptr_t)reply.uid;
        }
        event->event.id = &event->about->id;
        event->event.event = reply.event;
        event->event.status = reply.event_status;
        if (reply.event >= CM_EVENT_ADDRINFO_RESOLVED)
            set_written(event, &reply);
        else
            set_parameters(event, &reply);
        if (process(event, &reply)) {
            rdma_ack_cm_event(&event->event);
            continue;
        }
        *public = &event->event;
        return 0;
    }
}

int cm_write_event(struct rdma_cm_id *id, uint32_t event, int status, uint64_t arg)
{
    struct sluice_cm_write_event_request request = {
        .handle = to_cm_id(id)->handle, .event = event, .event_status = status, .arg = arg};
    struct sluice_handle_reply reply;

    return cm_result(session_call(SLUICE_OP_CM_WRITE_EVENT, &request, sizeof(request), &reply, sizeof(reply)));
}

/* rdma-core 60 and newer. event: enum rdma_cm_event_type, as this release's headers have it. */
EXPORT int rdma_write_cm_event(struct rdma_cm_id *id, unsigned int event, int status, uint64_t arg)
{
    return event == CM_EVENT_USER ? cm_write_event(id, event, status, arg) : cm_result(EINVAL);
}

EXPORT int rdma_ack_cm_event(struct rdma_cm_event *public)
{
    struct cm_event *event = (struct cm_event *)public;

    if (!event)
        return cm_result(EINVAL);
    struct cm_id *about = event->about;

    pthread_mutex_lock(&about->lock);
    if (event->group)
        event->group->events_acked++;
    about->events_acked++;
    pthread_cond_broadcast(&about->changed);
    pthread_mutex_unlock(&about->lock);
    free(event);
    return 0;
}

int cm_complete(struct rdma_cm_id *id)
{
    if (!to_cm_id(id)->synchronous)
        return 0;
    if (id->event) {
        rdma_ack_cm_event(id->event);
        id->event = NULL;
    }
    if (rdma_get_cm_event(id->channel, &id->event))
        return -1;
    int status = id->event->status;

    if (status && id->event->event == RDMA_CM_EVENT_REJECTED)
        status = ECONNREFUSED;
    return cm_result(status < 0 ? -status : status);
}

EXPORT const char *rdma_event_str(enum rdma_cm_event_type event)
{
    static const char *const names[] = {
        "RDMA_CM_EVENT_ADDR_RESOLVED",    "RDMA_CM_EVENT_ADDR_ERROR",      "RDMA_CM_EVENT_ROUTE_RESOLVED",
        "RDMA_CM_EVENT_ROUTE_ERROR",      "RDMA_CM_EVENT_CONNECT_REQUEST", "RDMA_CM_EVENT_CONNECT_RESPONSE",
        "RDMA_CM_EVENT_CONNECT_ERROR",    "RDMA_CM_EVENT_UNREACHABLE",     "RDMA_CM_EVENT_REJECTED",
        "RDMA_CM_EVENT_ESTABLISHED",      "RDMA_CM_EVENT_DISCONNECTED",    "RDMA_CM_EVENT_DEVICE_REMOVAL",
        "RDMA_CM_EVENT_MULTICAST_JOIN",   "RDMA_CM_EVENT_MULTICAST_ERROR", "RDMA_CM_EVENT_ADDR_CHANGE",
        "RDMA_CM_EVENT_TIMEWAIT_EXIT",    "RDMA_CM_EVENT_ADDRINFO_RESOLVED", "RDMA_CM_EVENT_ADDRINFO_ERROR",
    };

    return (unsigned)event < sizeof(names) / sizeof(names[0]) ? names[event] : "UNKNOWN EVENT";
}
