/* SPDX-License-Identifier: Apache-2.0 */
/* One end: its device, and objects that tests start from. */
#include <arpa/inet.h>
#include <stdarg.h>
#include <sys/mman.h>

#include "suite.h"

enum { PORT = 1 };

bool lacking(int error)
{
    return error == EOPNOTSUPP || error == ENOSYS;
}

void leave(struct end *e, enum outcome outcome, const char *file, int line, const char *format, ...)
{
    char text[REASON];
    va_list arguments;
    const char *name = strrchr(file, '/');

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    e->result->outcome = outcome;
    if (outcome == OUTCOME_SKIPPED)
        snprintf(e->result->reason, REASON, "%.200s", text);
    else
        snprintf(e->result->reason, REASON, "%s:%d: %.200s", name ? name + 1 : file, line, text);
    longjmp(e->leave, 1);
}

/* ---- what was made is destroyed ------------------------------------------- */

void keep(struct end *e, void *object, int (*destroy)(void *object))
{
    CHECK(e->object_count < OBJECTS);
    e->objects[e->object_count++] = (struct object){.destroy = destroy, .object = object};
}

int drop(struct end *e, void *object)
{
    for (unsigned i = e->object_count; i-- > 0;) {
        if (e->objects[i].object != object || !e->objects[i].destroy)
            continue;
        int error = e->objects[i].destroy(object);

        if (!error)
            e->objects[i].destroy = NULL;
        return error;
    }
    FAIL("dropped what was never kept");
}

bool end_close(struct end *e)
{
    bool clean = true;

    while (e->object_count > 0) {
        struct object *last = &e->objects[--e->object_count];

        if (last->destroy && last->destroy(last->object))
            clean = false;
    }
    if (e->context && ibv_close_device(e->context))
        clean = false;
    e->context = NULL;
    return clean;
}

/* ---- the device ------------------------------------------------------------ */

static void choose_gid(struct end *e)
{
    e->gid_index = e->options->gid_index;
    for (int index = 0; e->gid_index < 0 && index < e->port.gid_tbl_len; index++) {
        struct ibv_gid_entry entry;

        if (ibv_query_gid_ex(e->context, PORT, (uint32_t)index, &entry, 0) || entry.gid_type != IBV_GID_TYPE_ROCE_V2)
            continue;
        if (IN6_IS_ADDR_V4MAPPED((struct in6_addr *)entry.gid.raw))
            e->gid_index = index;
    }
    if (e->gid_index < 0)
        e->gid_index = 0;
    if (ibv_query_gid(e->context, PORT, e->gid_index, &e->gid))
        FAIL("no GID %d", e->gid_index);
}

void end_open(struct end *e)
{
    int count;
    struct ibv_device **list = ibv_get_device_list(&count);
    const char *wanted = e->options->device;

    for (int i = 0; list && i < count && !e->context; i++)
        if (!wanted || strcmp(ibv_get_device_name(list[i]), wanted) == 0)
            e->context = ibv_open_device(list[i]);
    if (list)
        ibv_free_device_list(list);
    if (!e->context)
        FAIL("no device %s", wanted ? wanted : "at all");
    DO(ibv_query_device(e->context, &e->device));
    DO(ibv_query_port(e->context, PORT, &e->port));
    choose_gid(e);
}

/* ---- objects ---------------------------------------------------------------- */

struct plan plan_of(enum ibv_qp_type type)
{
    return (struct plan){
        .type = type,
        .cqe = 4 * DEPTH,
        .send_wr = DEPTH,
        .recv_wr = DEPTH,
        .sge = 4,
        .inline_data = 64,
        .mr_access = ALL_ACCESS,
        .qp_access = type == IBV_QPT_UC ? IBV_ACCESS_REMOTE_WRITE : ALL_ACCESS,
        .rnr_retry = 7,
        .retry_cnt = 7,
        .timeout = 14,
        .min_rnr_timer = 1,
        .rd_atomic = 1,
        .qkey = 0x11111111,
    };
}

static int unmap(void *memory)
{
    return munmap(memory, MEMORY);
}

void set_up(struct end *e, const struct plan *plan)
{
    e->pd = MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
    if (plan->notified)
        e->channel = MADE(ibv_create_comp_channel(e->context), ibv_destroy_comp_channel);
    e->cq = MADE(ibv_create_cq(e->context, (int)plan->cqe, e, e->channel, 0), ibv_destroy_cq);
    e->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(e->memory != MAP_FAILED);
    keep(e, e->memory, unmap);
    for (uint32_t i = 0; i < MEMORY; i++)
        e->memory[i] = e->first ? pattern(i) : 0x55;
    e->mr = reg(e, e->memory, MEMORY, (int)plan->mr_access);
    if (plan->srq_wr) {
        struct ibv_srq_init_attr attr = {.attr = {.max_wr = plan->srq_wr, .max_sge = plan->sge}};

        e->srq = MADE(ibv_create_srq(e->pd, &attr), ibv_destroy_srq);
    }
}

struct ibv_qp *try_create_qp(struct end *e, const struct plan *plan)
{
    struct ibv_qp_init_attr_ex attr = {
        .qp_context = e,
        .send_cq = e->cq,
        .recv_cq = e->cq,
        .srq = e->srq,
        .qp_type = plan->type,
        .sq_sig_all = plan->all_signaled,
        .cap = {.max_send_wr = plan->send_wr, .max_recv_wr = plan->recv_wr, .max_send_sge = plan->sge,
                .max_recv_sge = plan->sge, .max_inline_data = plan->inline_data},
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        .pd = e->pd,
        .send_ops_flags = plan->send_ops,
    };

    if (plan->send_ops)
        return ibv_create_qp_ex(e->context, &attr);
    /* The extended structure begins with the members of the plain one. */
    return ibv_create_qp(e->pd, (struct ibv_qp_init_attr *)&attr);
}

struct ibv_qp *create_qp(struct end *e, const struct plan *plan)
{
    return MADE(try_create_qp(e, plan), ibv_destroy_qp);
}

struct ibv_mr *reg(struct end *e, void *addr, size_t length, int access)
{
    return MADE(ibv_reg_mr(e->pd, addr, length, access), ibv_dereg_mr);
}

struct mapping {
    void *address;
    size_t length;
};

static int unmap_pages(void *object)
{
    struct mapping *mapping = object;
    int error = munmap(mapping->address, mapping->length);

    free(mapping);
    return error;
}

uint8_t *pages(struct end *e, size_t length)
{
    void *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct mapping *mapping = malloc(sizeof(*mapping));

    CHECK(address != MAP_FAILED && mapping);
    *mapping = (struct mapping){.address = address, .length = length};
    keep(e, mapping, unmap_pages);
    return address;
}

/* ---- states ----------------------------------------------------------------- */

int to_state(struct ibv_qp *qp, enum ibv_qp_state state)
{
    struct ibv_qp_attr attr = {.qp_state = state};

    return ibv_modify_qp(qp, &attr, IBV_QP_STATE);
}

int to_init(struct end *e, struct ibv_qp *qp, const struct plan *plan)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .port_num = PORT,
        .qkey = plan->qkey,
        .qp_access_flags = plan->qp_access,
    };

    (void)e;
    return ibv_modify_qp(qp, &attr,
                         IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                             (plan->type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS));
}

struct ibv_ah_attr path_to(const struct end *e, const union ibv_gid *gid)
{
    return (struct ibv_ah_attr){
        .is_global = 1,
        .port_num = PORT,
        .grh = {.dgid = *gid, .sgid_index = (uint8_t)e->gid_index, .hop_limit = 64},
    };
}

int to_rtr(struct end *e, struct ibv_qp *qp, const struct plan *plan, const struct address *peer)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = IBV_MTU_1024,
        .dest_qp_num = peer->qp_num,
        .rq_psn = 0x100,
        .max_dest_rd_atomic = plan->rd_atomic,
        .min_rnr_timer = plan->min_rnr_timer,
        .ah_attr = path_to(e, &peer->gid),
    };
    int mask = IBV_QP_STATE;

    if (plan->type != IBV_QPT_UD)
        mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    if (plan->type == IBV_QPT_RC || plan->type == IBV_QPT_XRC_RECV)
        mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    if (plan->type == IBV_QPT_XRC_SEND)
        mask |= 0;
    return ibv_modify_qp(qp, &attr, mask);
}

int to_rts(struct ibv_qp *qp, const struct plan *plan)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTS,
        .timeout = plan->timeout,
        .retry_cnt = plan->retry_cnt,
        .rnr_retry = plan->rnr_retry,
        .sq_psn = 0x100,
        .max_rd_atomic = plan->rd_atomic,
    };
    int mask = IBV_QP_STATE | IBV_QP_SQ_PSN;

    if (plan->type == IBV_QPT_RC || plan->type == IBV_QPT_XRC_SEND)
        mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    if (plan->type == IBV_QPT_XRC_RECV)
        mask |= IBV_QP_TIMEOUT;
    return ibv_modify_qp(qp, &attr, mask);
}

static void bring_up(struct end *e, struct ibv_qp *qp, const struct plan *plan, const struct address *peer)
{
    DO(to_init(e, qp, plan));
    DO(to_rtr(e, qp, plan, peer));
    DO(to_rts(qp, plan));
}

struct address join(struct end *e, struct ibv_qp *qp, const struct plan *plan)
{
    struct address peer, own = {
        .memory = (uintptr_t)e->memory, .rkey = e->mr->rkey, .qp_num = qp->qp_num, .gid = e->gid};

    exchange(e, &own, &peer, sizeof(own));
    bring_up(e, qp, plan, &peer);
    meet(e);
    return peer;
}

void join_here(struct end *e, struct ibv_qp *one, struct ibv_qp *other, const struct plan *plan)
{
    struct address to_one = {.qp_num = one->qp_num, .gid = e->gid}, to_other = {.qp_num = other->qp_num, .gid = e->gid};

    bring_up(e, one, plan, &to_other);
    bring_up(e, other, plan, &to_one);
    e->peer = (struct address){
        .memory = (uintptr_t)e->memory, .rkey = e->mr->rkey, .qp_num = other->qp_num, .gid = e->gid};
}

void connect_as(struct end *e, const struct plan *plan)
{
    set_up(e, plan);
    e->qp = create_qp(e, plan);
    e->peer = join(e, e->qp, plan);
}

void connect_rc(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    connect_as(e, &plan);
}
