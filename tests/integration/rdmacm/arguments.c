/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each function of librdmacm says of arguments out of range and of ids in the wrong state: -1 and an errno, as
 * rdma-core's librdmacm with a kernel's rdma_ucm says it (there this program is right, too).
 *
 *     rdmacm-arguments [ADDRESS]    of the device; 127.0.0.1
 *
 * Prints what differs; exit code 1 where anything does.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

enum { PATIENCE_MS = 60000, NOT_A_STATE = 99, NOT_AN_OPTION = 99, NOT_A_LEVEL = 7, USER = 18 };

static struct rdma_event_channel *channel;
static struct in_addr here;
static unsigned wrong, looked_at;

static void judge(const char *state, const char *call, int line, long result, int error, int expected)
{
    looked_at++;
    if (expected ? result == -1 && error == expected : result == 0)
        return;
    printf("%d: %s: %s: %ld, %s; expected %s\n", line, state, call, result, result ? strerror(error) : "-",
           expected ? strerror(expected) : "success");
    wrong++;
}

#define IS(state, call, expected)                              \
    do {                                                       \
        errno = 0;                                             \
        long result_ = (call);                                 \
        judge(state, #call, __LINE__, result_, errno, expected); \
    } while (0)

#define MUST(condition)                                                                           \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, strerror(errno)); \
            exit(2);                                                                              \
        }                                                                                         \
    } while (0)

static struct sockaddr *at(uint16_t port)
{
    static struct sockaddr_in address;

    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = port, .sin_addr = here};
    return (struct sockaddr *)&address;
}

static struct sockaddr *group(void)
{
    static struct sockaddr_in address = {.sin_family = AF_INET};

    inet_pton(AF_INET, "239.9.8.7", &address.sin_addr);
    return (struct sockaddr *)&address;
}

static struct sockaddr *in_ipv6(void)
{
    static struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

    return (struct sockaddr *)&address;
}

/* <infiniband/ib.h>, which C++ and older headers do without: struct sockaddr_ib. */
static struct sockaddr *in_infiniband(void)
{
    static struct {
        uint16_t family, pkey;
        uint32_t flow;
        uint8_t gid[16];
        uint64_t service, mask, scope;
    } address = {.family = AF_IB, .pkey = 0xffff, .gid = {[10] = 0xff, [11] = 0xff}, .mask = UINT64_MAX};

    memcpy(address.gid + 12, &here, sizeof(here));
    return (struct sockaddr *)&address;
}

/* 203.0.113.77 is documentation's: nobody has it. */
static struct sockaddr *elsewhere(void)
{
    static struct sockaddr_in address = {.sin_family = AF_INET};

    inet_pton(AF_INET, "203.0.113.77", &address.sin_addr);
    return (struct sockaddr *)&address;
}

static struct sockaddr *in_no_family(void)
{
    static struct sockaddr_un address = {.sun_family = AF_UNIX};

    return (struct sockaddr *)&address;
}

static struct rdma_cm_event *next(enum rdma_cm_event_type type)
{
    struct pollfd ready = {.fd = channel->fd, .events = POLLIN};
    struct rdma_cm_event *event;

    MUST(poll(&ready, 1, PATIENCE_MS) == 1);
    MUST(!rdma_get_cm_event(channel, &event));
    if (event->event != type) {
        fprintf(stderr, "%s (%d), not %s\n", rdma_event_str(event->event), event->status, rdma_event_str(type));
        exit(2);
    }
    return event;
}

static void skip(enum rdma_cm_event_type type)
{
    MUST(!rdma_ack_cm_event(next(type)));
}

static struct rdma_cm_id *idle(enum rdma_port_space space)
{
    struct rdma_cm_id *id;

    MUST(!rdma_create_id(channel, &id, NULL, space));
    return id;
}

static struct rdma_cm_id *listener(enum rdma_port_space space)
{
    struct rdma_cm_id *id = idle(space);

    MUST(!rdma_bind_addr(id, at(0)) && !rdma_listen(id, 4));
    return id;
}

static struct rdma_cm_id *resolved(enum rdma_port_space space, uint16_t port)
{
    struct rdma_cm_id *id = idle(space);

    MUST(!rdma_resolve_addr(id, NULL, at(port), 5000));
    skip(RDMA_CM_EVENT_ADDR_RESOLVED);
    return id;
}

static struct rdma_cm_id *routed(enum rdma_port_space space, uint16_t port)
{
    struct rdma_cm_id *id = resolved(space, port);

    MUST(!rdma_resolve_route(id, 5000));
    skip(RDMA_CM_EVENT_ROUTE_RESOLVED);
    return id;
}

static void create_qp(struct rdma_cm_id *id, enum ibv_qp_type type)
{
    struct ibv_qp_init_attr attr = {
        .qp_type = type, .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};

    MUST(!rdma_create_qp(id, NULL, &attr));
}

static void destroy(struct rdma_cm_id *id)
{
    if (id->qp)
        rdma_destroy_qp(id);
    MUST(!rdma_destroy_id(id));
}

/* ---- what no state makes right ------------------------------------------------ */

static void any_state(void)
{
    struct rdma_cm_id *id;
    struct rdma_cm_event *event;
    struct rdma_addrinfo *found, hints = {.ai_flags = RAI_NUMERICHOST, .ai_port_space = RDMA_PS_TCP};

    IS("-", rdma_create_id(channel, &id, NULL, (enum rdma_port_space)0x7777), EINVAL);
    IS("-", rdma_create_id(channel, &id, NULL, (enum rdma_port_space)0), EINVAL);
    IS("-", rdma_get_cm_event(channel, NULL), EINVAL);
    IS("-", rdma_ack_cm_event(NULL), EINVAL);
    IS("-", rdma_getaddrinfo(NULL, NULL, NULL, &found), EINVAL);
    IS("-", rdma_getaddrinfo("no.such.host.invalid", "1", &hints, &found) == EAI_NONAME ? 0 : -1, 0);
    MUST(strcmp(rdma_event_str(RDMA_CM_EVENT_TIMEWAIT_EXIT), "RDMA_CM_EVENT_TIMEWAIT_EXIT") == 0);
    MUST(strcmp(rdma_event_str((enum rdma_cm_event_type)NOT_A_STATE), "UNKNOWN EVENT") == 0);

    hints = (struct rdma_addrinfo){.ai_flags = RAI_FAMILY, .ai_family = AF_IB};
    MUST(!rdma_getaddrinfo("127.0.0.1", "9", &hints, &found) && found->ai_family == AF_INET);
    rdma_freeaddrinfo(found);
    MUST(!rdma_getaddrinfo("127.0.0.1", "9", NULL, &found));
    found->ai_port_space = 0x7777;
    IS("-", rdma_create_ep(&id, found, NULL, NULL), EINVAL);
    rdma_freeaddrinfo(found);

    struct rdma_event_channel *quiet = rdma_create_event_channel();
    struct pollfd unread = {.fd = quiet->fd, .events = POLLIN};

    MUST(quiet && poll(&unread, 1, 0) == 0);
    MUST(!fcntl(quiet->fd, F_SETFL, O_NONBLOCK));
    IS("empty", rdma_get_cm_event(quiet, &event), EAGAIN);
    rdma_destroy_event_channel(quiet);
}

static void options(void)
{
    struct rdma_cm_id *id = idle(RDMA_PS_TCP), *datagram = idle(RDMA_PS_UDP);
    uint8_t byte = 20;
    int number = 1, none = 0;
    char much[4096] = {0};

    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &byte, sizeof(byte)), 0);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &number, sizeof(number)), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, much, sizeof(much)), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, NULL, 0), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, NULL, 1), EFAULT);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &byte, sizeof(byte)), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &byte, sizeof(byte)), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &number, sizeof(number)), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &byte, sizeof(byte)), 0);
    IS("datagram", rdma_set_option(datagram, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &byte, sizeof(byte)), EINVAL);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, NOT_AN_OPTION, &number, sizeof(number)), ENOSYS);
    IS("idle", rdma_set_option(id, RDMA_OPTION_ID, NOT_AN_OPTION, much, sizeof(much)), ENOSYS);
    IS("idle", rdma_set_option(id, NOT_A_LEVEL, 0, &number, sizeof(number)), ENOSYS);
    IS("idle", rdma_set_option(id, NOT_A_LEVEL, 0, much, sizeof(much)), ENOSYS);
    IS("idle", rdma_set_option(id, RDMA_OPTION_IB, NOT_AN_OPTION, &number, sizeof(number)), ENOSYS);
    IS("idle", rdma_set_option(id, RDMA_OPTION_IB, RDMA_OPTION_IB_PATH, &number, sizeof(number)), EINVAL);

    MUST(!rdma_bind_addr(id, at(0)));
    IS("bound", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &number, sizeof(number)), 0);
    IS("bound", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &number, sizeof(number)), 0);
    IS("bound", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &none, sizeof(none)), EINVAL);
    MUST(!rdma_listen(id, 1));
    IS("listening", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &number, sizeof(number)), EINVAL);
    IS("listening", rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &number, sizeof(number)), EINVAL);
    destroy(id);
    destroy(datagram);
}

static void addresses(void)
{
    struct rdma_cm_id *id = idle(RDMA_PS_TCP), *second = idle(RDMA_PS_TCP);

    IS("idle", rdma_bind_addr(id, NULL), EINVAL);
    IS("idle", rdma_bind_addr(id, in_no_family()), EINVAL);
    IS("idle", rdma_bind_addr(id, elsewhere()), EADDRNOTAVAIL);
    IS("idle", rdma_resolve_addr(id, NULL, NULL, 1), EINVAL);
    IS("idle", rdma_resolve_addr(id, NULL, in_no_family(), 1), EINVAL);
    IS("idle", rdma_resolve_addr(id, in_no_family(), elsewhere(), 1), EINVAL);
    IS("idle", rdma_bind_addr(id, in_infiniband()), ENODEV); /* RoCE */
    struct rdma_cm_id *over_infiniband = idle(RDMA_PS_IPOIB);

    IS("idle", rdma_bind_addr(over_infiniband, at(0)), EINVAL); /* RoCE */
    MUST(!rdma_resolve_addr(over_infiniband, NULL, at(htons(9)), 5000));
    skip(RDMA_CM_EVENT_ADDR_ERROR);
    MUST(!rdma_destroy_id(over_infiniband));
    IS("idle", rdma_resolve_addr(id, in_infiniband(), in_infiniband(), 1), ENODEV);
    IS("idle", rdma_resolve_addr(id, in_infiniband(), at(9), 1), ENODEV);
    MUST(!rdma_bind_addr(id, at(0)));
    uint16_t port = rdma_get_src_port(id);

    IS("bound", rdma_bind_addr(id, in_infiniband()), EINVAL);
    IS("bound", rdma_resolve_addr(id, NULL, in_infiniband(), 1), EINVAL);
    IS("idle", rdma_bind_addr(second, at(port)), EADDRINUSE);
    IS("bound", rdma_bind_addr(id, at(0)), EINVAL);
    IS("bound", rdma_resolve_addr(id, NULL, in_ipv6(), 1), EINVAL);
    MUST(!rdma_bind_addr(second, at(0)) && rdma_get_src_port(second) != port);
    MUST(!rdma_listen(id, -1));
    IS("listening", rdma_listen(id, 1), EINVAL);
    IS("listening", rdma_bind_addr(id, at(0)), EINVAL);
    IS("listening", rdma_resolve_addr(id, NULL, at(port), 1), EINVAL);
    destroy(second);
    destroy(id);
}

/* ---- ids that are not as far as the function needs --------------------------------- */

static void states_before_a_connection(void)
{
    struct rdma_conn_param param = {.qp_num = 17};
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT};
    struct ibv_ece ece = {.vendor_id = 1, .comp_mask = 1}, none = {0};
    struct rdma_cm_id *id = idle(RDMA_PS_TCP), *other;
    int mask;

    /* Of an id without a device rdma_connect, rdma_create_qp and others aren't asked here: real libraries end in a fault. */
    IS("idle", rdma_reject(id, NULL, 0), EINVAL);
    IS("idle", rdma_reject_ece(id, NULL, 0), EINVAL);
    IS("idle", rdma_notify(id, IBV_EVENT_COMM_EST), EINVAL);
    IS("idle", rdma_establish(id), EINVAL);
    IS("idle", rdma_init_qp_attr(id, &attr, &mask), EINVAL);
    IS("idle", rdma_join_multicast(id, group(), NULL), EINVAL);
    IS("idle", rdma_get_request(id, &other), EINVAL);
    IS("idle", rdma_set_local_ece(id, &none), EINVAL);
    IS("idle", rdma_set_local_ece(id, &ece), EINVAL);
    IS("idle", rdma_set_local_ece(id, NULL), EINVAL);
    IS("idle", rdma_set_local_ece(NULL, &none), EINVAL);
    IS("idle", rdma_get_remote_ece(id, NULL), EINVAL);
    IS("idle", rdma_get_remote_ece(NULL, &none), EINVAL);
    IS("idle", rdma_get_remote_ece(id, &none), 0);
    destroy(id);

    id = listener(RDMA_PS_TCP);
    IS("listening", rdma_connect(id, &param), EINVAL);
    IS("listening", rdma_resolve_route(id, 1), EINVAL);
    IS("listening", rdma_accept(id, &param), EINVAL);
    IS("listening", rdma_disconnect(id), 0);
    destroy(id);

    id = resolved(RDMA_PS_TCP, htons(9));
    IS("resolved", rdma_connect(id, &param), EINVAL);
    IS("resolved", rdma_bind_addr(id, at(0)), EINVAL);
    IS("resolved", rdma_listen(id, 1), EINVAL);
    IS("resolved", rdma_resolve_addr(id, NULL, at(9), 1), EINVAL);
    IS("resolved", rdma_accept(id, &param), EINVAL);
    IS("resolved", rdma_reject(id, NULL, 0), EINVAL);
    IS("resolved", rdma_disconnect(id), EINVAL);
    attr.qp_state = (enum ibv_qp_state)NOT_A_STATE;
    IS("resolved", rdma_init_qp_attr(id, &attr, &mask), EINVAL);
    attr.qp_state = IBV_QPS_RTR;
    IS("resolved", rdma_init_qp_attr(id, &attr, &mask), 0); /* those of INIT: there is no connection yet */
    destroy(id);

    id = routed(RDMA_PS_TCP, htons(9));
    IS("routed", rdma_resolve_route(id, 1), EINVAL);
    IS("routed", rdma_resolve_addr(id, NULL, at(9), 1), EINVAL);
    IS("routed", rdma_connect(id, NULL), EINVAL); /* neither a QP nor its number */
    destroy(id);
}

static void queue_pairs(void)
{
    struct rdma_cm_id *id = routed(RDMA_PS_TCP, htons(9));
    struct ibv_qp_init_attr good = {.qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_init_attr attr = good;
    struct ibv_qp_init_attr_ex complete = {.qp_type = IBV_QPT_RC, .cap = good.cap, .comp_mask = IBV_QP_INIT_ATTR_PD};
    struct ibv_srq_init_attr srq = {.attr = {.max_wr = 1 << 30, .max_sge = 1}};
    struct ibv_srq_init_attr_ex extended = {.attr = {.max_wr = 4, .max_sge = 1}};
    struct ibv_context *second = ibv_open_device(id->verbs->device);
    struct ibv_pd *strange = ibv_alloc_pd(second);
    struct ibv_ece ece = {.vendor_id = 1};

    MUST(second && strange);
    IS("routed", rdma_create_qp(id, strange, &attr), EINVAL);
    complete.pd = strange;
    IS("routed", rdma_create_qp_ex(id, &complete), EINVAL);
    attr = good;
    attr.cap.max_send_sge = 1 << 20;
    IS("routed", rdma_create_qp(id, NULL, &attr), EINVAL);
    MUST(!id->qp && !id->send_cq && !id->recv_cq);
    IS("routed", rdma_create_srq(id, NULL, &srq), EINVAL);
    IS("routed", rdma_create_srq_ex(id, &extended), EINVAL); /* without a type */
    MUST(!id->srq);
    create_qp(id, IBV_QPT_RC);
    attr = good;
    IS("with a QP", rdma_create_qp(id, NULL, &attr), EINVAL);
    IS("with a QP", rdma_create_qp_ex(id, &complete), EINVAL);
    IS("with a QP", rdma_set_local_ece(id, &ece), EINVAL);
    IS("with a QP", rdma_get_remote_ece(id, &ece), EINVAL);
    IS("with a QP", rdma_establish(id), EINVAL);
    destroy(id);
    MUST(!ibv_dealloc_pd(strange) && !ibv_close_device(second));
}

/* ---- connections -------------------------------------------------------------------- */

static void connections(void)
{
    struct rdma_cm_id *listens = listener(RDMA_PS_TCP), *id = routed(RDMA_PS_TCP, rdma_get_src_port(listens));
    char data[255] = {0};
    struct rdma_conn_param param = {0}, bad;

    create_qp(id, IBV_QPT_RC);
    bad = (struct rdma_conn_param){.private_data = data, .private_data_len = 57};
    IS("routed", rdma_connect(id, &bad), EINVAL);
    destroy(id);
    id = routed(RDMA_PS_TCP, rdma_get_src_port(listens));
    create_qp(id, IBV_QPT_RC);
    bad = (struct rdma_conn_param){.responder_resources = RDMA_MAX_RESP_RES - 1};
    IS("routed", rdma_connect(id, &bad), EINVAL);
    bad = (struct rdma_conn_param){.initiator_depth = RDMA_MAX_INIT_DEPTH - 1};
    IS("routed", rdma_connect(id, &bad), EINVAL);
    MUST(!rdma_connect(id, &param));
    IS("connecting", rdma_connect(id, &param), EINVAL);
    IS("connecting", rdma_bind_addr(id, at(0)), EINVAL);
    IS("connecting", rdma_listen(id, 1), EINVAL);
    IS("connecting", rdma_resolve_route(id, 1), EINVAL);

    struct rdma_cm_event *request = next(RDMA_CM_EVENT_CONNECT_REQUEST);
    struct rdma_cm_id *child = request->id;

    IS("asked", rdma_notify(child, IBV_EVENT_COMM_EST), EINVAL);
    IS("asked", rdma_connect(child, &(struct rdma_conn_param){.qp_num = 1}), EINVAL);
    IS("asked", rdma_reject(child, data, 149), EINVAL);
    create_qp(child, IBV_QPT_RC);
    bad = (struct rdma_conn_param){.initiator_depth = RDMA_MAX_INIT_DEPTH - 1};
    IS("asked", rdma_accept(child, &bad), EINVAL);
    MUST(!rdma_accept(child, &param));
    MUST(!rdma_ack_cm_event(request));
    skip(RDMA_CM_EVENT_ESTABLISHED);
    skip(RDMA_CM_EVENT_ESTABLISHED);
    IS("connected", rdma_connect(id, &param), EINVAL);
    IS("connected", rdma_reject(child, NULL, 0), EINVAL);
    IS("connected", rdma_listen(id, 1), EINVAL);
    IS("connected", rdma_notify(child, IBV_EVENT_COMM_EST), EISCONN);
    IS("connected", rdma_notify(child, IBV_EVENT_SQ_DRAINED), EINVAL);
    MUST(!rdma_disconnect(id));
    skip(RDMA_CM_EVENT_DISCONNECTED);
    MUST(!rdma_disconnect(child));
    skip(RDMA_CM_EVENT_DISCONNECTED);
    IS("disconnected", rdma_disconnect(child), 0);
    IS("disconnected", rdma_connect(id, &param), EINVAL);
    destroy(id);
    destroy(child);
    destroy(listens);
}

static void datagrams(void)
{
    struct rdma_cm_id *id = idle(RDMA_PS_UDP);
    struct rdma_cm_join_mc_attr_ex join = {.comp_mask = RDMA_CM_JOIN_MC_ATTR_ADDRESS | RDMA_CM_JOIN_MC_ATTR_JOIN_FLAGS,
                                           .join_flags = RDMA_MC_JOIN_FLAG_FULLMEMBER,
                                           .addr = group()};
    struct rdma_cm_join_mc_attr_ex bad;

    MUST(!rdma_bind_addr(id, at(0)));
    create_qp(id, IBV_QPT_UD);
    IS("bound", rdma_join_multicast(id, NULL, NULL), EINVAL);
    IS("bound", rdma_join_multicast(id, in_no_family(), NULL), EINVAL);
    bad = join;
    bad.comp_mask = RDMA_CM_JOIN_MC_ATTR_RESERVED;
    IS("bound", rdma_join_multicast_ex(id, &bad, NULL), ENOTSUP);
    bad = join;
    bad.comp_mask = RDMA_CM_JOIN_MC_ATTR_JOIN_FLAGS;
    IS("bound", rdma_join_multicast_ex(id, &bad, NULL), EINVAL);
    bad = join;
    bad.comp_mask = RDMA_CM_JOIN_MC_ATTR_ADDRESS;
    IS("bound", rdma_join_multicast_ex(id, &bad, NULL), EINVAL);
    bad = join;
    bad.join_flags = RDMA_MC_JOIN_FLAG_RESERVED;
    IS("bound", rdma_join_multicast_ex(id, &bad, NULL), EINVAL);
    bad = join;
    bad.addr = in_no_family();
    IS("bound", rdma_join_multicast_ex(id, &bad, NULL), EINVAL);
    IS("bound", rdma_leave_multicast(id, NULL), EINVAL);
    IS("bound", rdma_leave_multicast(id, group()), EADDRNOTAVAIL);
    destroy(id);

    id = listener(RDMA_PS_UDP);
    IS("listening", rdma_join_multicast(id, group(), NULL), EINVAL);
    destroy(id);
    id = idle(RDMA_PS_TCP);
    MUST(!rdma_bind_addr(id, at(0)));
    IS("no datagrams", rdma_join_multicast(id, group(), NULL), EINVAL);
    destroy(id);
}

static void blocking(void)
{
    struct rdma_cm_id *id;

    MUST(!rdma_create_id(NULL, &id, NULL, RDMA_PS_TCP));
    IS("blocking", rdma_migrate_id(id, NULL), EINVAL);
    destroy(id);
}

/* ---- rdma-core 60 and newer: what the library has, by name ----------------------------- */

typedef int resolve_function(struct rdma_cm_id *id, const char *node, const char *service,
                             const struct rdma_addrinfo *hints);
typedef int query_function(struct rdma_cm_id *id, struct rdma_addrinfo **info);
typedef int write_function(struct rdma_cm_id *id, unsigned int event, int status, uint64_t arg);

static void newer(void)
{
    resolve_function *resolve = (resolve_function *)dlsym(RTLD_DEFAULT, "rdma_resolve_addrinfo");
    query_function *query = (query_function *)dlsym(RTLD_DEFAULT, "rdma_query_addrinfo");
    write_function *write_event = (write_function *)dlsym(RTLD_DEFAULT, "rdma_write_cm_event");
    struct rdma_addrinfo hints = {.ai_flags = 0x10 | 0x20}, *found;
    uint64_t arg;

    if (!resolve || !query || !write_event)
        return;
    struct rdma_cm_id *id = idle(RDMA_PS_TCP);

    IS("-", resolve(NULL, "127.0.0.1", "9", NULL), EINVAL);
    IS("-", query(NULL, &found), EINVAL);
    IS("idle", query(id, NULL), EINVAL);
    IS("idle", query(id, &found), ENOENT);
    IS("idle", resolve(id, "127.0.0.1", "9", &hints), EOPNOTSUPP); /* by SA and by DNS */
    hints.ai_flags = 0x10;
    IS("idle", resolve(id, NULL, NULL, &hints), EINVAL);
    IS("idle", resolve(id, "127.0.0.1", "9", &hints), EOPNOTSUPP);
    IS("idle", resolve(id, "127.0.0.1", "9", NULL), 0);
    IS("resolving", resolve(id, "127.0.0.1", "9", NULL), EBUSY);
    skip((enum rdma_cm_event_type)16);
    IS("resolved", query(id, &found), 0);
    MUST(found->ai_family == AF_INET && found->ai_dst_len);
    rdma_freeaddrinfo(found);
    IS("queried", query(id, &found), ENOENT);
    IS("idle", write_event(id, RDMA_CM_EVENT_ESTABLISHED, 0, 0), EINVAL);
    IS("idle", write_event(id, USER + 1, 0, 0), EINVAL);
    IS("idle", write_event(id, USER, -5, 0x0123456789abcdef), 0);
    struct rdma_cm_event *event = next((enum rdma_cm_event_type)USER);

    memcpy(&arg, &event->param, sizeof(arg));
    MUST(event->id == id && event->status == -5 && arg == 0x0123456789abcdef);
    MUST(!rdma_ack_cm_event(event));
    /* Its events go with it. */
    IS("idle", write_event(id, USER, 0, 1), 0);
    destroy(id);
    struct pollfd quiet = {.fd = channel->fd, .events = POLLIN};

    MUST(poll(&quiet, 1, 0) == 0);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (inet_pton(AF_INET, argc > 1 ? argv[1] : "127.0.0.1", &here) != 1)
        return 2;
    channel = rdma_create_event_channel();
    MUST(channel);
    any_state();
    options();
    addresses();
    states_before_a_connection();
    queue_pairs();
    connections();
    datagrams();
    blocking();
    newer();
    rdma_destroy_event_channel(channel);
    printf("%u of %u wrong\n", wrong, looked_at);
    return wrong != 0;
}
