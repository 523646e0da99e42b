/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "net.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "atomic.h"
#include "clock.h"
#include "device.h"
#include "futex.h"
#include "lookout.h"
#include "qp.h"
#include "transport/tcp.h"
#include "transport/trunk.h"
#include "uring.h"

/* While there is other work, sockets are looked at this often: the look costs a tenth of it. */
#define LOOK_NS 10000ull
/* Where the kernel gives neither way to be woken: a few hundredths of a core, while there are connections. */
#define NAP_NS 50000ull
/* How long a closed connection may take to deliver its last frame. */
#define LINGER_NS NS_PER_SECOND
/*
 * A connection that says nothing for so long is asked whether it lives; TCP itself
 * tells of those that have bytes on their way.
 */
enum { KEEPALIVE_IDLE = 2, KEEPALIVE_INTERVAL = 1, KEEPALIVE_COUNT = 3 /* s, s, times */ };
/* What waits unsent in a socket: enough for the wire, too little to delay who comes next. */
enum { UNSENT = 1 << 18 };

int net_open(struct sluice_engine *engine)
{
    struct net *net = calloc(1, sizeof(*net));

    if (!net)
        return -ENOMEM;
    engine->net = net;
    list_init(&net->ready);
    list_init(&net->dead);
    for (uint32_t i = 0; i < sizeof(net->closing) / sizeof(*net->closing); i++)
        net->closing[i].fd = -1;
    net->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (net->epoll < 0)
        return -errno;
    net->batch = tcp_batch_new();
    return net->batch ? 0 : -ENOMEM;
}

void net_close(struct sluice_engine *engine)
{
    struct net *net = engine->net;

    if (!net)
        return;
    tcp_bury(net);
    uring_close(net->uring);
    lookout_close(net->lookout);
    for (uint32_t i = 0; i < sizeof(net->closing) / sizeof(*net->closing); i++)
        if (net->closing[i].fd >= 0)
            close(net->closing[i].fd);
    if (net->epoll >= 0)
        close(net->epoll);
    free(net->batch);
    free(net);
    engine->net = NULL;
}

static void set(int fd, int level, int name, int value)
{
    /* Each is a wish: a socket of another family than TCP (a test's) has none of them. */
    if (setsockopt(fd, level, name, &value, sizeof(value)))
        return;
}

int net_add(struct sluice_engine *engine, struct net_socket *socket, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = socket->id};

    if (fcntl(fd, F_SETFL, O_NONBLOCK))
        return -errno;
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
    if (epoll_ctl(engine->net->epoll, EPOLL_CTL_ADD, fd, &event))
        return -errno;
    socket->fd = fd;
    socket->readable = socket->writable = true;
    socket->hung_up = false;
    engine->net->sockets++;
    net_wake(engine->net, socket);
    return 0;
}

int net_watch(struct sluice_engine *engine, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 0 /* no QP's number */};

    if (epoll_ctl(engine->net->epoll, EPOLL_CTL_ADD, fd, &event))
        return -errno;
    engine->net->watches = true;
    return 0;
}

void net_remove(struct sluice_engine *engine, struct net_socket *socket, bool linger)
{
    struct net *net = engine->net;

    list_remove(&socket->ready);
    if (socket->fd < 0)
        return;
    epoll_ctl(net->epoll, EPOLL_CTL_DEL, socket->fd, NULL);
    net->sockets--;
    if (linger) {
        uint32_t place = net->closing_next++ % (sizeof(net->closing) / sizeof(*net->closing));

        shutdown(socket->fd, SHUT_WR);
        if (net->closing[place].fd >= 0)
            close(net->closing[place].fd);
        else
            net->lingering++;
        net->closing[place].fd = socket->fd;
        net->closing[place].until = engine->now + LINGER_NS;
    } else {
        close(socket->fd);
    }
    socket->fd = -1;
}

static void end_lingering(struct sluice_engine *engine)
{
    struct net *net = engine->net;

    for (uint32_t i = 0; i < sizeof(net->closing) / sizeof(*net->closing); i++) {
        if (net->closing[i].fd < 0 || net->closing[i].until > engine->now)
            continue;
        close(net->closing[i].fd);
        net->closing[i].fd = -1;
        net->lingering--;
    }
}

static struct net_socket *find(struct sluice_engine *engine, uint32_t id)
{
    struct qp *qp = qp_lookup(engine, id);

    if (qp)
        return qp->wire ? tcp_socket(qp) : NULL;
    return trunk_socket(engine, id);
}

static void look(struct sluice_engine *engine)
{
    struct epoll_event events[64];
    int count;

    engine->net->looked = engine->now;
    do {
        count = epoll_wait(engine->net->epoll, events, sizeof(events) / sizeof(*events), 0);
        for (int i = 0; i < count; i++) {
            struct net_socket *socket = find(engine, events[i].data.u32);

            /* An event may outlive its socket by a moment. */
            if (!socket)
                continue;

            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                socket->readable = true;
            if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                socket->hung_up = true;
            if (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
                socket->writable = true;
            net_wake(engine->net, socket);
        }
    } while (count == (int)(sizeof(events) / sizeof(*events)));
}

void net_serve(struct sluice_engine *engine)
{
    struct net *net = engine->net;
    struct list round;

    tcp_bury(net);
    if (net->sockets && (!list_empty(&net->ready) || engine->now - net->looked >= LOOK_NS ||
                         !devices_working(engine)) &&
        !(net->uring && uring_quiet(net->uring)))
        look(engine);
    if (net->lingering)
        end_lingering(engine);
    if (list_empty(&net->ready))
        return;
    net->served = engine->now;
    list_init(&round);
    list_splice(&round, &net->ready);
    while (!list_empty(&round)) {
        struct net_socket *socket = list_entry(list_take(&round), struct net_socket, ready);

        socket->serve(engine, socket);
    }
}

bool net_prepare(struct sluice_engine *engine, uint32_t *word)
{
    struct net *net = engine->net;

    if (!net->sockets && !net->watches)
        return false;
    if (!net->uring && !net->lookout) {
        net->uring = uring_open(word, net->epoll);
        if (!net->uring)
            net->lookout = lookout_open(word, net->epoll);
    }
    return !net->uring && !net->lookout;
}

bool net_sleep(struct sluice_engine *engine, uint32_t *word, uint32_t value, uint64_t deadline, bool naps)
{
    /* Once made always: its request for the word stays with the kernel, and would take another sleeper's wake-up. */
    if (engine->net->uring) {
        uring_sleep(engine->net->uring, value, deadline);
        return !uring_quiet(engine->net->uring);
    }
    if (engine->net->lookout)
        lookout_begin(engine->net->lookout);
    if (naps) {
        uint64_t nap = clock_now() + NAP_NS;

        deadline = deadline < nap ? deadline : nap;
    }
    futex_wait(word, value, deadline);
    return naps || (engine->net->lookout && !lookout_waits(engine->net->lookout));
}
