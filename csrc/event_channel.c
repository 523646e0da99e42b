/* SPDX-License-Identifier: Apache-2.0 */
#include "event_channel.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "node.h"

/* A packet takes about 768 bytes of it, whatever its size; the kernel doubles what it is told (man 7 socket). */
enum { ROOM = 32768 };
/* Who leaves its events unread is asked seldom. */
#define FIRST_PAUSE_NS 1000000ull
#define LAST_PAUSE_NS 64000000ull

static void on_retry(struct timer *timer)
{
    struct event_channel *channel = list_entry(timer, struct event_channel, retry);

    channel->full = false;
    channel->has_room(channel);
}

int event_channel_open(struct event_channel *channel, struct sluice_engine *engine,
                       void (*has_room)(struct event_channel *channel), int *read_fd)
{
    int fds[2], room = ROOM;

    if (timers_reserve(&engine->timers))
        return -ENOMEM;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds)) {
        timers_release(&engine->timers);
        return -errno;
    }
    /* Nothing comes from there: nor descriptors, whose closing could take its time here. */
    if (setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)) || shutdown(fds[1], SHUT_RD)) {
        int error = -errno;

        close(fds[0]);
        close(fds[1]);
        timers_release(&engine->timers);
        return error;
    }
    *channel = (struct event_channel){.fd = fds[1], .engine = engine, .pause_ns = FIRST_PAUSE_NS, .has_room = has_room};
    channel->retry.fire = on_retry;
    *read_fd = fds[0];
    return 0;
}

void event_channel_close(struct event_channel *channel)
{
    if (channel->fd < 0)
        return;
    timer_cancel(&channel->engine->timers, &channel->retry);
    timers_release(&channel->engine->timers);
    close(channel->fd);
    channel->fd = -1;
}

bool event_channel_send(struct event_channel *channel, const void *event, size_t size)
{
    if (channel->full)
        return false;
    if (send(channel->fd, event, size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
        channel->pause_ns = FIRST_PAUSE_NS;
        return true;
    }
    /* Also where the kernel has no memory for it now. Else nobody reads it. */
    if (errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM)
        return true;
    channel->full = true;
    timer_set(&channel->engine->timers, &channel->retry, channel->engine->now + channel->pause_ns);
    if (channel->pause_ns < LAST_PAUSE_NS)
        channel->pause_ns *= 2;
    return false;
}
