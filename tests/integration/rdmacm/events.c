/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every event of rdma_cm that one process can bring about by connecting to itself:
 * refusals, private data, descriptors that don't block, migration, ids that block, errors.
 *
 *     rdmacm-events           all of it
 *     rdmacm-events wait      listens, accepts one connection, says so, sleeps until it is killed
 *     rdmacm-events peer PORT connects to that and waits for DISCONNECTED
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, strerror(errno)); \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

enum { PATIENCE_MS = 60000 };

static struct rdma_event_channel *channel;

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

/* The next event, which must be this one. */
static struct rdma_cm_event *expect(struct rdma_event_channel *from, enum rdma_cm_event_type type)
{
    struct pollfd ready = {.fd = from->fd, .events = POLLIN};
    struct rdma_cm_event *event;

    CHECK(poll(&ready, 1, PATIENCE_MS) == 1);
    CHECK(!rdma_get_cm_event(from, &event));
    if (event->event != type) {
        fprintf(stderr, "%s (%d) instead of %s\n", rdma_event_str(event->event), event->status,
                rdma_event_str(type));
        exit(1);
    }
    return event;
}

static void expect_status(enum rdma_cm_event_type type, int status)
{
    struct rdma_cm_event *event = expect(channel, type);

    CHECK(event->status == status);
    CHECK(!rdma_ack_cm_event(event));
}

static struct rdma_cm_id *listener(void)
{
    struct sockaddr_in any = loopback(0);
    struct rdma_cm_id *id;

    CHECK(!rdma_create_id(channel, &id, NULL, RDMA_PS_TCP));
    CHECK(!rdma_bind_addr(id, (struct sockaddr *)&any));
    CHECK(id->verbs && rdma_get_src_port(id));
    CHECK(!rdma_listen(id, 4));
    return id;
}

static struct rdma_cm_id *resolved(uint16_t port)
{
    struct sockaddr_in to = loopback(port);
    struct rdma_cm_id *id;

    CHECK(!rdma_create_id(channel, &id, NULL, RDMA_PS_TCP));
    CHECK(!rdma_resolve_addr(id, NULL, (struct sockaddr *)&to, 2000));
    expect_status(RDMA_CM_EVENT_ADDR_RESOLVED, 0);
    CHECK(id->verbs && id->pd && id->port_num == 1);
    CHECK(!rdma_resolve_route(id, 2000));
    expect_status(RDMA_CM_EVENT_ROUTE_RESOLVED, 0);
    CHECK(id->route.num_paths == 1);
    return id;
}

static void create_qp(struct rdma_cm_id *id)
{
    struct ibv_qp_init_attr attr = {
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1},
    };

    CHECK(!rdma_create_qp(id, NULL, &attr));
    CHECK(id->qp && id->send_cq && id->recv_cq && id->send_cq_channel);
}

/* What it shows: who listens, who doesn't, and what they say of it. */
static void refusals(void)
{
    struct rdma_cm_id *listens = listener(), *id = resolved(ntohs(rdma_get_src_port(listens)));
    struct rdma_conn_param param = {.private_data = "please", .private_data_len = 6};

    create_qp(id);
    CHECK(!rdma_connect(id, &param));
    struct rdma_cm_event *request = expect(channel, RDMA_CM_EVENT_CONNECT_REQUEST);

    CHECK(request->listen_id == listens && request->param.conn.private_data_len == 56);
    CHECK(memcmp(request->param.conn.private_data, "please\0", 7) == 0);
    struct rdma_cm_id *child = request->id;

    CHECK(!rdma_reject(child, "sorry", 5));
    CHECK(!rdma_ack_cm_event(request));
    struct rdma_cm_event *rejected = expect(channel, RDMA_CM_EVENT_REJECTED);

    CHECK(rejected->status == 28 && rejected->param.conn.private_data_len == 148);
    CHECK(strcmp(rejected->param.conn.private_data, "sorry") == 0);
    CHECK(!rdma_ack_cm_event(rejected));
    CHECK(!rdma_destroy_id(child));
    rdma_destroy_qp(id);
    CHECK(!rdma_destroy_id(id));

    id = resolved(ntohs(rdma_get_src_port(listens)));
    CHECK(!rdma_destroy_id(listens));
    create_qp(id);
    CHECK(!rdma_connect(id, NULL));
    expect_status(RDMA_CM_EVENT_REJECTED, 8);
    rdma_destroy_qp(id);
    CHECK(!rdma_destroy_id(id));

    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(1)};

    CHECK(inet_pton(AF_INET, "203.0.113.77", &nobody.sin_addr) == 1);
    CHECK(!rdma_create_id(channel, &id, NULL, RDMA_PS_TCP));
    CHECK(!rdma_resolve_addr(id, NULL, (struct sockaddr *)&nobody, 100));
    expect_status(RDMA_CM_EVENT_ADDR_ERROR, -EHOSTUNREACH);
    CHECK(!rdma_destroy_id(id));
}

/* A connection between QPs that the library moves, and its end. */
static void life(void)
{
    struct rdma_cm_id *listens = listener(), *id = resolved(ntohs(rdma_get_src_port(listens)));
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    create_qp(id);
    CHECK(!rdma_connect(id, NULL));
    struct rdma_cm_event *request = expect(channel, RDMA_CM_EVENT_CONNECT_REQUEST);
    struct rdma_cm_id *child = request->id;

    create_qp(child);
    CHECK(!rdma_accept(child, NULL));
    CHECK(!rdma_ack_cm_event(request));
    for (int end = 0; end < 2; end++) {
        struct rdma_cm_event *event = expect(channel, RDMA_CM_EVENT_ESTABLISHED);

        CHECK(!ibv_query_qp(event->id->qp, &attr, IBV_QP_STATE, &init) && attr.qp_state == IBV_QPS_RTS);
        CHECK(!rdma_ack_cm_event(event));
    }
    CHECK(!rdma_disconnect(id));
    CHECK(!ibv_query_qp(id->qp, &attr, IBV_QP_STATE, &init) && attr.qp_state == IBV_QPS_ERR);
    struct rdma_cm_event *event = expect(channel, RDMA_CM_EVENT_DISCONNECTED);

    CHECK(event->id == child && !rdma_ack_cm_event(event));
    CHECK(!rdma_disconnect(child));
    event = expect(channel, RDMA_CM_EVENT_DISCONNECTED);
    CHECK(event->id == id && !rdma_ack_cm_event(event));
    expect_status(RDMA_CM_EVENT_TIMEWAIT_EXIT, 0);
    expect_status(RDMA_CM_EVENT_TIMEWAIT_EXIT, 0);
    rdma_destroy_qp(id);
    rdma_destroy_qp(child);
    CHECK(!rdma_destroy_id(id) && !rdma_destroy_id(child) && !rdma_destroy_id(listens));
}

/* Nothing is read twice or lost: O_NONBLOCK, epoll, and an id that changes its channel. */
static void descriptors(void)
{
    struct rdma_event_channel *other = rdma_create_event_channel();
    struct rdma_cm_event *event;
    struct rdma_cm_id *id;
    struct sockaddr_in to = loopback(1);
    struct epoll_event ready = {.events = EPOLLIN};
    int epoll = epoll_create1(0);

    CHECK(other && epoll >= 0);
    CHECK(!fcntl(channel->fd, F_SETFL, O_NONBLOCK));
    CHECK(rdma_get_cm_event(channel, &event) == -1 && errno == EAGAIN);
    CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, channel->fd, &ready));
    CHECK(epoll_wait(epoll, &ready, 1, 0) == 0);
    CHECK(!rdma_create_id(channel, &id, &to, RDMA_PS_TCP));
    CHECK(!rdma_resolve_addr(id, NULL, (struct sockaddr *)&to, 2000));
    CHECK(epoll_wait(epoll, &ready, 1, PATIENCE_MS) == 1);
    CHECK(!rdma_migrate_id(id, other) && id->channel == other);
    CHECK(epoll_wait(epoll, &ready, 1, 0) == 0);
    CHECK(rdma_get_cm_event(channel, &event) == -1 && errno == EAGAIN);
    event = expect(other, RDMA_CM_EVENT_ADDR_RESOLVED);
    CHECK(event->id == id && id->context == &to && !rdma_ack_cm_event(event));
    CHECK(!rdma_resolve_route(id, 2000));
    CHECK(!rdma_destroy_id(id)); /* with its event unread */
    struct pollfd quiet = {.fd = other->fd, .events = POLLIN};

    CHECK(poll(&quiet, 1, 0) == 0);
    CHECK(!fcntl(channel->fd, F_SETFL, 0));
    rdma_destroy_event_channel(other);
    close(epoll);
}

static void errors(void)
{
    struct rdma_cm_id *id, *second;
    struct sockaddr_in at = loopback(0), elsewhere = {.sin_family = AF_INET};
    struct rdma_conn_param param = {0};
    uint8_t tos = 32, long_tos[4] = {0};
    struct ibv_ece ece = {0};

    CHECK(!rdma_create_id(channel, &id, NULL, RDMA_PS_TCP));
    CHECK(rdma_bind_addr(id, &(struct sockaddr){.sa_family = AF_UNIX}) == -1 && errno == EINVAL);
    CHECK(rdma_connect(id, &param) == -1 && errno == EINVAL);
    CHECK(rdma_accept(id, &param) == -1 && errno == EINVAL);
    CHECK(rdma_disconnect(id) == -1 && errno == EINVAL);
    CHECK(rdma_resolve_route(id, 1) == -1 && errno == EINVAL);
    CHECK(rdma_notify(id, IBV_EVENT_COMM_EST) == -1 && errno == EINVAL);
    CHECK(rdma_create_qp(id, NULL, &(struct ibv_qp_init_attr){.qp_type = IBV_QPT_RC}) == -1 && errno == EINVAL);
    CHECK(inet_pton(AF_INET, "203.0.113.77", &elsewhere.sin_addr) == 1);
    CHECK(rdma_bind_addr(id, (struct sockaddr *)&elsewhere) == -1 && errno == EADDRNOTAVAIL);
    CHECK(!rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &tos, sizeof(tos)));
    CHECK(rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, long_tos, sizeof(long_tos)) == -1 && errno == EINVAL);
    CHECK(rdma_set_option(id, 7, 0, &tos, sizeof(tos)) == -1 && errno == ENOSYS);
    CHECK(rdma_set_local_ece(id, &ece) == -1 && errno == EINVAL);
    CHECK(!rdma_get_remote_ece(id, &ece) && !ece.vendor_id);
    CHECK(!rdma_bind_addr(id, (struct sockaddr *)&at));
    at.sin_port = rdma_get_src_port(id);
    CHECK(!rdma_create_id(channel, &second, NULL, RDMA_PS_TCP));
    CHECK(rdma_bind_addr(second, (struct sockaddr *)&at) == -1 && errno == EADDRINUSE);
    CHECK(!rdma_destroy_id(second) && !rdma_destroy_id(id));
    CHECK(rdma_ack_cm_event(NULL) == -1 && errno == EINVAL);
    CHECK(strcmp(rdma_event_str(RDMA_CM_EVENT_TIMEWAIT_EXIT), "RDMA_CM_EVENT_TIMEWAIT_EXIT") == 0);
}

/* What each function refuses of an id in a state, or of a kind, that it isn't for. */
static void bad_arguments(void)
{
    struct sockaddr_in at = loopback(0), group = {.sin_family = AF_INET};
    struct rdma_conn_param param = {0}, long_data = {.private_data = &at, .private_data_len = 255};
    struct ibv_qp_attr attr = {.qp_state = (enum ibv_qp_state)99};
    struct rdma_cm_id *id, *listens;
    int mask;

    CHECK(rdma_create_id(channel, &id, NULL, (enum rdma_port_space)0x7777) == -1 && errno == EINVAL);
    CHECK(inet_pton(AF_INET, "239.9.8.7", &group.sin_addr) == 1);

    CHECK(!rdma_create_id(channel, &id, NULL, RDMA_PS_TCP));
    CHECK(rdma_reject(id, NULL, 0) == -1 && errno == EINVAL);
    CHECK(rdma_establish(id) == -1 && errno == EINVAL);
    CHECK(rdma_init_qp_attr(id, &attr, &mask) == -1 && errno == EINVAL);
    CHECK(rdma_join_multicast(id, (struct sockaddr *)&group, NULL) == -1 && errno == EINVAL);
    CHECK(rdma_leave_multicast(id, (struct sockaddr *)&group) == -1 && errno == EADDRNOTAVAIL);
    CHECK(rdma_set_option(id, RDMA_OPTION_ID, 99, &mask, sizeof(mask)) == -1 && errno == ENOSYS);
    CHECK(!rdma_bind_addr(id, (struct sockaddr *)&at));
    CHECK(rdma_bind_addr(id, (struct sockaddr *)&at) == -1 && errno == EINVAL);
    CHECK(!rdma_listen(id, 1));
    CHECK(rdma_resolve_addr(id, NULL, (struct sockaddr *)&at, 1) == -1 && errno == EINVAL);
    CHECK(rdma_connect(id, &param) == -1 && errno == EINVAL);
    CHECK(!rdma_destroy_id(id));

    listens = listener();
    id = resolved(ntohs(rdma_get_src_port(listens)));
    CHECK(rdma_resolve_addr(id, NULL, (struct sockaddr *)&at, 1) == -1 && errno == EINVAL);
    CHECK(rdma_resolve_route(id, 1) == -1 && errno == EINVAL);
    CHECK(rdma_listen(id, 1) == -1 && errno == EINVAL);
    create_qp(id);
    CHECK(rdma_create_qp(id, NULL, &(struct ibv_qp_init_attr){.qp_type = IBV_QPT_RC}) == -1 && errno == EINVAL);
    CHECK(rdma_connect(id, &long_data) == -1 && errno == EINVAL);
    rdma_destroy_qp(id);
    CHECK(!rdma_destroy_id(id) && !rdma_destroy_id(listens));
}

/* Ids without a channel block, and say by errno what went wrong. */
static void blocking(void)
{
    struct rdma_addrinfo hints = {.ai_flags = RAI_PASSIVE, .ai_port_space = RDMA_PS_TCP}, *passive, *active;
    struct rdma_cm_id *id;
    int count;

    CHECK(rdma_getaddrinfo(NULL, NULL, NULL, &active) == -1 && errno == EINVAL);
    CHECK(rdma_getaddrinfo("no.such.host.invalid", "1", &(struct rdma_addrinfo){.ai_flags = RAI_NUMERICHOST},
                           &active) == EAI_NONAME);
    CHECK(!rdma_getaddrinfo(NULL, "7471", &hints, &passive));
    CHECK(passive->ai_qp_type == IBV_QPT_RC && passive->ai_src_len && !passive->ai_dst_len);
    hints.ai_flags = RAI_NUMERICHOST;
    CHECK(!rdma_getaddrinfo("127.0.0.1", "9", &hints, &active));
    CHECK(active->ai_port_space == RDMA_PS_TCP && active->ai_family == AF_INET && active->ai_dst_len);
    CHECK(!rdma_create_ep(&id, active, NULL, NULL));
    CHECK(rdma_connect(id, &(struct rdma_conn_param){0}) == -1 && errno == ECONNREFUSED);
    rdma_destroy_ep(id);
    CHECK(!rdma_create_ep(&id, passive, NULL, NULL) && !rdma_listen(id, 0));
    rdma_destroy_ep(id);
    rdma_freeaddrinfo(passive);
    rdma_freeaddrinfo(active);

    struct ibv_context **devices = rdma_get_devices(&count);

    CHECK(devices && count == 1 && devices[0] && !devices[1]);
    rdma_free_devices(devices);
}

static int wait_to_be_killed(void)
{
    struct rdma_cm_id *listens = listener();

    printf("%u\n", ntohs(rdma_get_src_port(listens)));
    fflush(stdout);
    struct rdma_cm_event *event = expect(channel, RDMA_CM_EVENT_CONNECT_REQUEST);

    create_qp(event->id);
    CHECK(!rdma_accept(event->id, NULL));
    expect(channel, RDMA_CM_EVENT_ESTABLISHED);
    puts("connected");
    fflush(stdout);
    pause();
    return 0;
}

static int peer(uint16_t port)
{
    struct rdma_cm_id *id = resolved(port);

    create_qp(id);
    CHECK(!rdma_connect(id, NULL));
    expect_status(RDMA_CM_EVENT_ESTABLISHED, 0);
    expect_status(RDMA_CM_EVENT_DISCONNECTED, 0);
    puts("the peer is gone");
    return 0;
}

int main(int argc, char **argv)
{
    channel = rdma_create_event_channel();
    CHECK(channel);
    if (argc == 2)
        return wait_to_be_killed();
    if (argc == 3)
        return peer((uint16_t)atoi(argv[2]));
    refusals();
    life();
    descriptors();
    errors();
    bad_arguments();
    blocking();
    rdma_destroy_event_channel(channel);
    puts("every event as it should be");
    return 0;
}
