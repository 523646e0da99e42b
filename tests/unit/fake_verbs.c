/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "fake_verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#undef ibv_reg_mr
#undef ibv_query_port

enum { DEVICES = 2, QPS = 128, RECEIVES = 1024, KINDS = 11, FIRST_QP = 17, FEW_SENDS = 16, MAX_CQE = 1 << 15 };

struct cq {
    struct ibv_cq cq;
    struct ibv_wc *ring;
    uint32_t size, head, tail;
    bool armed;
};

struct receives {
    uint64_t wr_ids[RECEIVES];
    uint32_t head, tail;
};

struct srq {
    struct ibv_srq srq;
    struct receives receives;
};

struct qp {
    struct ibv_qp qp;
    struct receives receives;
    struct ibv_wc *held;
    uint32_t held_count, held_size;
    struct ibv_qp_rate_limit_attr pace;
};

static const char *const kinds[KINDS] = {"qp", "mr", "srq", "ah", "mw", "cq", "pd", "pace", "burst", "lifting", "depth"};
static int refused[KINDS];
static uint32_t objects;
static uint64_t posted;
static uint32_t announced;
static bool hold, stopped;
static uint32_t registering;
static struct ibv_packet_pacing_caps pacing;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t goes_on = PTHREAD_COND_INITIALIZER;
/* Each numbers its own, from the same numbers on. */
static struct device {
    struct ibv_device device;
    struct qp *qps[QPS];
    uint32_t next; /* place: numbers are given in turn */
    uint32_t keys;
    int async_pipe[2];
} devices[DEVICES] = {{.device = {.name = "fake0", .ibdev_path = "/sys/class/mem/null"}}, {.device = {.name = "fake1"}}};
static struct ibv_device *list[] = {&devices[0].device, &devices[1].device, NULL};

static struct device *device_of(struct ibv_context *context)
{
    return (struct device *)context->device;
}

static int refusal(const char *what)
{
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i], what) == 0)
            return errno = refused[i];
    return 0;
}

static void *made(const char *what, size_t size)
{
    if (refusal(what))
        return NULL;
    __atomic_fetch_add(&objects, 1, __ATOMIC_SEQ_CST);
    return calloc(1, size);
}

static int gone(void *object)
{
    __atomic_fetch_sub(&objects, 1, __ATOMIC_SEQ_CST);
    free(object);
    return 0;
}

uint32_t fake_objects(void)
{
    return __atomic_load_n(&objects, __ATOMIC_SEQ_CST);
}

void fake_refuse(const char *what, int error)
{
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i], what) == 0)
            refused[i] = error;
}

uint64_t fake_posted(void)
{
    return __atomic_load_n(&posted, __ATOMIC_SEQ_CST);
}

uint32_t fake_announced(void)
{
    pthread_mutex_lock(&lock);
    uint32_t count = announced;

    pthread_mutex_unlock(&lock);
    return count;
}

/* ---- completions -------------------------------------------------------- */

static void push(struct ibv_cq *public, const struct ibv_wc *wc)
{
    struct cq *cq = (struct cq *)public;

    if (cq->tail - cq->head == cq->size)
        abort();
    cq->ring[cq->tail++ % cq->size] = *wc;
    if (cq->armed && cq->cq.channel) {
        cq->armed = false;
        announced++;
        if (write(*(int *)(cq->cq.channel + 1), &public, sizeof(public)) < 0)
            abort();
    }
}

static int poll_cq(struct ibv_cq *public, int count, struct ibv_wc *wc)
{
    struct cq *cq = (struct cq *)public;
    int found = 0;

    pthread_mutex_lock(&lock);
    while (found < count && cq->head != cq->tail)
        wc[found++] = cq->ring[cq->head++ % cq->size];
    pthread_mutex_unlock(&lock);
    return found;
}

static int req_notify_cq(struct ibv_cq *public, int solicited)
{
    (void)solicited;
    pthread_mutex_lock(&lock);
    ((struct cq *)public)->armed = true;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* ---- work --------------------------------------------------------------- */

static enum ibv_wc_opcode opcode_of(enum ibv_wr_opcode opcode)
{
    switch (opcode) {
    case IBV_WR_RDMA_READ:
        return IBV_WC_RDMA_READ;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        return IBV_WC_RDMA_WRITE;
    case IBV_WR_BIND_MW:
        return IBV_WC_BIND_MW;
    default:
        return IBV_WC_SEND;
    }
}

static int post_send(struct ibv_qp *public, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct qp *qp = (struct qp *)public;

    (void)bad;
    pthread_mutex_lock(&lock);
    for (; wr; wr = wr->next) {
        struct ibv_wc wc = {.wr_id = wr->wr_id, .opcode = opcode_of(wr->opcode), .qp_num = public->qp_num,
                            .status = public->state == IBV_QPS_ERR ? IBV_WC_WR_FLUSH_ERR : IBV_WC_SUCCESS};

        __atomic_add_fetch(&posted, 1, __ATOMIC_SEQ_CST);
        if (!hold) {
            push(public->send_cq, &wc);
            continue;
        }
        if (qp->held_count == qp->held_size)
            qp->held = realloc(qp->held, (qp->held_size += 1024) * sizeof(*qp->held));
        qp->held[qp->held_count++] = wc;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

static void let_go(struct qp *qp, enum ibv_wc_status status)
{
    for (uint32_t i = 0; i < qp->held_count; i++) {
        qp->held[i].status = status;
        push(qp->qp.send_cq, &qp->held[i]);
    }
    qp->held_count = 0;
}

void fake_hold(int on)
{
    pthread_mutex_lock(&lock);
    hold = on;
    for (int i = 0; i < DEVICES * QPS && !on; i++)
        if (devices[i / QPS].qps[i % QPS])
            let_go(devices[i / QPS].qps[i % QPS], IBV_WC_SUCCESS);
    pthread_mutex_unlock(&lock);
}

static int put(struct receives *receives, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    pthread_mutex_lock(&lock);
    for (; wr && receives->tail - receives->head != RECEIVES; wr = wr->next)
        receives->wr_ids[receives->tail++ % RECEIVES] = wr->wr_id;
    pthread_mutex_unlock(&lock);
    *bad = wr;
    return wr ? ENOMEM : 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    return put(&((struct qp *)qp)->receives, wr, bad);
}

static int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    return put(&((struct srq *)srq)->receives, wr, bad);
}

static struct qp *find(uint32_t qp_num)
{
    uint32_t place = (qp_num - FIRST_QP) % QPS;

    return devices[0].qps[place] ? devices[0].qps[place] : devices[1].qps[place];
}

static struct receives *receives_of(struct qp *qp)
{
    return qp->qp.srq ? &((struct srq *)qp->qp.srq)->receives : &qp->receives;
}

int fake_receive(uint32_t qp_num, uint32_t bytes)
{
    struct qp *qp = find(qp_num);
    struct receives *receives = receives_of(qp);
    struct ibv_wc wc = {.opcode = IBV_WC_RECV, .byte_len = bytes, .qp_num = qp_num};

    pthread_mutex_lock(&lock);
    bool some = receives->head != receives->tail;

    if (some) {
        wc.wr_id = receives->wr_ids[receives->head++ % RECEIVES];
        push(qp->qp.recv_cq, &wc);
    }
    pthread_mutex_unlock(&lock);
    return some;
}

uint32_t fake_receives(uint32_t qp_num)
{
    struct receives *receives = receives_of(find(qp_num));

    pthread_mutex_lock(&lock);
    uint32_t count = receives->tail - receives->head;

    pthread_mutex_unlock(&lock);
    return count;
}

/* ---- the device --------------------------------------------------------- */

struct ibv_device **ibv_get_device_list(int *count)
{
    if (count)
        *count = DEVICES;
    return list;
}

void ibv_free_device_list(struct ibv_device **of)
{
    (void)of;
}

const char *ibv_get_device_name(struct ibv_device *of)
{
    return of->name;
}

static uint32_t new_key(struct ibv_context *context)
{
    return __atomic_add_fetch(&device_of(context)->keys, 1, __ATOMIC_SEQ_CST) << 8;
}

static struct ibv_mw *alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type)
{
    struct ibv_mw *mw = made("mw", sizeof(*mw));

    if (mw)
        *mw = (struct ibv_mw){.context = pd->context, .pd = pd, .type = type, .rkey = new_key(pd->context)};
    return mw;
}

static int dealloc_mw(struct ibv_mw *mw)
{
    return gone(mw);
}

/* ---- pacing ------------------------------------------------------------- */

void fake_pacing(uint32_t types, uint32_t least, uint32_t most)
{
    pacing = (struct ibv_packet_pacing_caps){least, most, types};
}

static int query_device_ex(struct ibv_context *context, const struct ibv_query_device_ex_input *input,
                           struct ibv_device_attr_ex *attr, size_t size)
{
    (void)context;
    (void)input;
    memset(attr, 0, size);
    attr->packet_pacing_caps = pacing;
    return 0;
}

static int modify_qp_rate_limit(struct ibv_qp *qp, struct ibv_qp_rate_limit_attr *attr)
{
    if (qp->state != IBV_QPS_RTS)
        return EINVAL;
    if (attr->max_burst_sz && (!attr->rate_limit || refusal("burst")))
        return EINVAL;
    if (!attr->rate_limit && refusal("lifting"))
        return EINVAL;
    if (attr->rate_limit && attr->rate_limit < pacing.qp_rate_limit_max && refusal("pace"))
        return refusal("pace");
    pthread_mutex_lock(&lock);
    ((struct qp *)qp)->pace = *attr;
    pthread_mutex_unlock(&lock);
    return 0;
}

uint32_t fake_pace(uint32_t qp_num, uint32_t *burst)
{
    pthread_mutex_lock(&lock);
    struct ibv_qp_rate_limit_attr pace = find(qp_num)->pace;

    pthread_mutex_unlock(&lock);
    *burst = pace.max_burst_sz;
    return pace.rate_limit;
}

struct ibv_context *ibv_open_device(struct ibv_device *of)
{
    struct verbs_context *all = made("context", sizeof(*all));
    struct ibv_context *context = &all->context;

    *all = (struct verbs_context){
        .query_device_ex = query_device_ex,
        .modify_qp_rate_limit = modify_qp_rate_limit,
        .sz = sizeof(*all),
        .context = {.device = of,
                    .abi_compat = __VERBS_ABI_IS_EXTENDED,
                    .ops = {.poll_cq = poll_cq, .req_notify_cq = req_notify_cq, .post_send = post_send,
                            .post_recv = post_recv, .post_srq_recv = post_srq_recv, .alloc_mw = alloc_mw,
                            .dealloc_mw = dealloc_mw}},
    };
    device_of(context)->next = device_of(context)->keys = 0;
    if (pipe2(device_of(context)->async_pipe, O_CLOEXEC))
        abort();
    context->async_fd = device_of(context)->async_pipe[0];
    return context;
}

int ibv_close_device(struct ibv_context *context)
{
    close(device_of(context)->async_pipe[0]);
    close(device_of(context)->async_pipe[1]);
    return gone(verbs_get_ctx(context));
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    (void)context;
    *attr = (struct ibv_device_attr){.phys_port_cnt = 2, .max_qp = QPS, .max_qp_wr = 1024, .max_sge = 16,
                                     .max_cqe = MAX_CQE, .max_mr = 1024, .max_pd = 1024, .max_ah = 1024,
                                     .max_srq = 1024, .max_srq_wr = RECEIVES, .max_srq_sge = 16,
                                     .max_qp_rd_atom = 16, .max_mr_size = 1ull << 40};
    return 0;
}

int ibv_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *attr)
{
    struct ibv_port_attr *all = (struct ibv_port_attr *)attr;

    (void)context;
    (void)port;
    *all = (struct ibv_port_attr){.state = IBV_PORT_ACTIVE, .active_mtu = IBV_MTU_1024, .gid_tbl_len = 5};
    return 0;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port, uint32_t index, struct ibv_gid_entry *entry,
                      uint32_t flags, size_t size)
{
    (void)port;
    (void)flags;
    const uint8_t number = (uint8_t)(device_of(context) - devices + 1);
    const uint8_t link_local[16] = {0xfe, 0x80, [15] = number}, ipv6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = number};
    const uint8_t ipv4[16] = {[10] = 0xff, 0xff, 10, 0, 0, number};
    const uint8_t *const table[] = {link_local, link_local, NULL, ipv6, ipv4}; /* as kernels fill theirs, with a gap */

    if (!table[index])
        return ENODATA;
    memset(entry, 0, size);
    entry->gid_index = index;
    entry->gid_type = index == 0 ? IBV_GID_TYPE_ROCE_V1 : IBV_GID_TYPE_ROCE_V2;
    entry->ndev_ifindex = 10u + number;
    memcpy(entry->gid.raw, table[index], 16);
    return 0;
}

void fake_event(uint32_t device, int port, int type)
{
    if (write(devices[device].async_pipe[1], (int[]){type, port}, 2 * sizeof(int)) < 0)
        abort();
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
    int said[2];

    if (read(context->async_fd, said, sizeof(said)) != sizeof(said))
        return -1;
    *event = (struct ibv_async_event){.event_type = (enum ibv_event_type)said[0], .element.port_num = said[1]};
    return 0;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
    (void)event;
}

/* ---- objects ------------------------------------------------------------ */

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    struct ibv_pd *pd = made("pd", sizeof(*pd));

    if (pd)
        pd->context = context;
    return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
    return gone(pd);
}

void fake_stop_registering(int on)
{
    pthread_mutex_lock(&lock);
    stopped = on;
    pthread_cond_broadcast(&goes_on);
    pthread_mutex_unlock(&lock);
}

uint32_t fake_registering(void)
{
    pthread_mutex_lock(&lock);
    uint32_t count = registering;

    pthread_mutex_unlock(&lock);
    return count;
}

static void wait_to_register(void)
{
    pthread_mutex_lock(&lock);
    registering++;
    while (stopped)
        pthread_cond_wait(&goes_on, &lock);
    registering--;
    pthread_mutex_unlock(&lock);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned access)
{
    wait_to_register();
    struct ibv_mr *mr = made("mr", sizeof(*mr));

    (void)iova;
    (void)access;
    if (!mr)
        return NULL;
    *mr = (struct ibv_mr){.context = pd->context, .pd = pd, .addr = addr, .length = length};
    mr->lkey = mr->rkey = new_key(pd->context);
    return mr;
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
    return gone(mr);
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    struct ibv_comp_channel *channel = made("channel", sizeof(*channel) + sizeof(int));
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        abort();
    *channel = (struct ibv_comp_channel){.context = context, .fd = ends[0]};
    *(int *)(channel + 1) = ends[1];
    return channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    close(channel->fd);
    close(*(int *)(channel + 1));
    return gone(channel);
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context, struct ibv_comp_channel *channel,
                             int vector)
{
    struct cq *cq = made("cq", sizeof(*cq));

    (void)vector;
    if (!cq)
        return NULL;
    cq->cq = (struct ibv_cq){.context = context, .cq_context = cq_context, .channel = channel, .cqe = cqe};
    cq->size = (uint32_t)cqe;
    cq->ring = calloc(cq->size, sizeof(*cq->ring));
    return &cq->cq;
}

/* What nobody has taken goes with the CQ, as in the kernel. */
static void drop_events(const struct ibv_cq *cq)
{
    int events = cq->channel->fd, count = 0;
    struct ibv_cq *of;

    if (ioctl(events, FIONREAD, &count))
        abort();
    for (; count; count -= (int)sizeof(of))
        if (read(events, &of, sizeof(of)) != sizeof(of) ||
            (of != cq && write(*(int *)(cq->channel + 1), &of, sizeof(of)) != sizeof(of)))
            abort();
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
    if (cq->channel)
        drop_events(cq);
    free(((struct cq *)cq)->ring);
    return gone(cq);
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context)
{
    if (read(channel->fd, cq, sizeof(struct ibv_cq *)) != sizeof(struct ibv_cq *))
        return -1;
    *cq_context = (*cq)->cq_context;
    return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned count)
{
    (void)cq;
    (void)count;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
    struct srq *srq = made("srq", sizeof(*srq));

    (void)attr;
    if (!srq)
        return NULL;
    srq->srq.context = pd->context;
    srq->srq.pd = pd;
    return &srq->srq;
}

int ibv_destroy_srq(struct ibv_srq *srq)
{
    return gone(srq);
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    if (attr->cap.max_send_wr > FEW_SENDS && refusal("depth"))
        return NULL;
    struct qp *qp = made("qp", sizeof(*qp));

    if (!qp)
        return NULL;
    struct device *of = device_of(pd->context);

    for (uint32_t tried = 0; tried < QPS; tried++) {
        uint32_t i = of->next++ % QPS;

        if (of->qps[i])
            continue;
        of->qps[i] = qp;
        qp->qp = (struct ibv_qp){.context = pd->context, .pd = pd, .send_cq = attr->send_cq, .recv_cq = attr->recv_cq,
                                 .srq = attr->srq, .qp_num = FIRST_QP + i, .qp_type = attr->qp_type};
        return &qp->qp;
    }
    gone(qp);
    errno = ENOMEM;
    return NULL;
}

int ibv_destroy_qp(struct ibv_qp *qp)
{
    device_of(qp->context)->qps[(qp->qp_num - FIRST_QP) % QPS] = NULL;
    free(((struct qp *)qp)->held);
    return gone(qp);
}

int ibv_modify_qp(struct ibv_qp *public, struct ibv_qp_attr *attr, int mask)
{
    struct qp *qp = (struct qp *)public;

    if (!(mask & IBV_QP_STATE))
        return 0;
    pthread_mutex_lock(&lock);
    public->state = attr->qp_state;
    if (attr->qp_state == IBV_QPS_ERR) {
        let_go(qp, IBV_WC_WR_FLUSH_ERR);
        while (!public->srq && qp->receives.head != qp->receives.tail)
            push(public->recv_cq, &(struct ibv_wc){.wr_id = qp->receives.wr_ids[qp->receives.head++ % RECEIVES],
                                                   .status = IBV_WC_WR_FLUSH_ERR, .qp_num = public->qp_num});
    } else if (attr->qp_state == IBV_QPS_RESET) {
        qp->held_count = 0;
        qp->receives.head = qp->receives.tail;
        qp->pace = (struct ibv_qp_rate_limit_attr){.rate_limit = 0};
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

int ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask, struct ibv_qp_init_attr *init)
{
    (void)mask;
    (void)init;
    attr->qp_state = qp->state;
    attr->sq_draining = 0;
    return 0;
}

struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
    struct ibv_ah *ah = made("ah", sizeof(*ah));

    (void)attr;
    if (ah)
        *ah = (struct ibv_ah){.context = pd->context, .pd = pd};
    return ah;
}

int ibv_destroy_ah(struct ibv_ah *ah)
{
    return gone(ah);
}
