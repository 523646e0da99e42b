/* SPDX-License-Identifier: Apache-2.0 */
/* The state table of ibv_modify_qp: which transitions there are, and what each takes. */
#include "suite.h"

enum { STATES = 7 };

/* One transition: what must and what may be given, IBV_QP_STATE aside. */
struct transition {
    enum ibv_qp_state from, to;
    int required, optional;
};

struct table {
    enum ibv_qp_type type;
    struct transition transitions[12];
};

#define PATH (IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN)
#define RETRIES (IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC)

/*
 * IBTA table "QP state transition properties", as Linux has it for all its devices
 * (ib_modify_qp_is_ok); alternate paths are InfiniBand's and left out.
 */
static const struct table rc = {
    IBV_QPT_RC,
    {
        {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, 0},
        {IBV_QPS_INIT, IBV_QPS_INIT, 0, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_INIT, IBV_QPS_RTR, PATH | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
         IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX},
        {IBV_QPS_RTR, IBV_QPS_RTS, RETRIES | IBV_QP_SQ_PSN, IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER},
        {IBV_QPS_RTS, IBV_QPS_RTS, 0, IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER},
        {IBV_QPS_RTS, IBV_QPS_SQD, 0, IBV_QP_EN_SQD_ASYNC_NOTIFY},
        {IBV_QPS_SQD, IBV_QPS_RTS, 0, IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER},
        {IBV_QPS_SQD, IBV_QPS_SQD, 0,
         IBV_QP_PORT | IBV_QP_AV | IBV_QP_PKEY_INDEX | RETRIES | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_ACCESS_FLAGS |
             IBV_QP_MIN_RNR_TIMER},
        {0},
    },
};

static const struct table uc = {
    IBV_QPT_UC,
    {
        {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, 0},
        {IBV_QPS_INIT, IBV_QPS_INIT, 0, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_INIT, IBV_QPS_RTR, PATH, IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX},
        {IBV_QPS_RTR, IBV_QPS_RTS, IBV_QP_SQ_PSN, IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_RTS, IBV_QPS_RTS, 0, IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_RTS, IBV_QPS_SQD, 0, IBV_QP_EN_SQD_ASYNC_NOTIFY},
        {IBV_QPS_SQD, IBV_QPS_RTS, 0, IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_SQD, IBV_QPS_SQD, 0, IBV_QP_AV | IBV_QP_PKEY_INDEX | IBV_QP_ACCESS_FLAGS},
        {0},
    },
};

static const struct table ud = {
    IBV_QPT_UD,
    {
        {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY, 0},
        {IBV_QPS_INIT, IBV_QPS_INIT, 0, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY},
        {IBV_QPS_INIT, IBV_QPS_RTR, 0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY},
        {IBV_QPS_RTR, IBV_QPS_RTS, IBV_QP_SQ_PSN, IBV_QP_QKEY},
        {IBV_QPS_RTS, IBV_QPS_RTS, 0, IBV_QP_QKEY},
        {IBV_QPS_RTS, IBV_QPS_SQD, 0, IBV_QP_EN_SQD_ASYNC_NOTIFY},
        {IBV_QPS_SQD, IBV_QPS_RTS, 0, IBV_QP_QKEY},
        {IBV_QPS_SQD, IBV_QPS_SQD, 0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY},
        {0},
    },
};

/* Every attribute that a table may name. */
#define ATTRIBUTES                                                                                                    \
    (IBV_QP_EN_SQD_ASYNC_NOTIFY | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY | PATH | RETRIES | \
     IBV_QP_MIN_RNR_TIMER | IBV_QP_SQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC)

static const struct transition *find(const struct table *table, enum ibv_qp_state from, enum ibv_qp_state to)
{
    for (const struct transition *one = table->transitions; one->from || one->to; one++)
        if (one->from == from && one->to == to)
            return one;
    return NULL;
}

/* Values that fit everywhere. */
static struct ibv_qp_attr values(struct end *e, struct ibv_qp *qp)
{
    return (struct ibv_qp_attr){
        .path_mtu = IBV_MTU_1024,
        .qkey = 0x1234,
        .rq_psn = 1,
        .sq_psn = 1,
        .dest_qp_num = qp->qp_num,
        .qp_access_flags = qp->qp_type == IBV_QPT_UC ? IBV_ACCESS_REMOTE_WRITE : ALL_ACCESS,
        .ah_attr = path_to(e, &e->gid),
        .max_rd_atomic = 1,
        .max_dest_rd_atomic = 1,
        .min_rnr_timer = 12,
        .port_num = 1,
        .timeout = 14,
        .retry_cnt = 7,
        .rnr_retry = 7,
    };
}

static int move(struct end *e, struct ibv_qp *qp, enum ibv_qp_state to, int mask)
{
    struct ibv_qp_attr attr = values(e, qp);

    attr.qp_state = to;
    return ibv_modify_qp(qp, &attr, IBV_QP_STATE | mask);
}

/* Until then an SQD queue may refuse changes (IBTA 10.3.1); nothing is posted, so it doesn't last. */
static void await_drained(struct end *e, struct ibv_qp *qp)
{
    double deadline = now() + 1;
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    do {
        DO(ibv_query_qp(qp, &attr, IBV_QP_STATE | IBV_QP_EN_SQD_ASYNC_NOTIFY, &init));
    } while (attr.sq_draining && now() < deadline);
}

/* Brings a QP from RESET into a state by the shortest way. */
static void bring(struct end *e, struct ibv_qp *qp, const struct table *table, enum ibv_qp_state state)
{
    static const enum ibv_qp_state way[] = {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_SQD};

    DO(to_state(qp, IBV_QPS_RESET));
    if (state == IBV_QPS_ERR) {
        DO(move(e, qp, IBV_QPS_INIT, find(table, IBV_QPS_RESET, IBV_QPS_INIT)->required));
        DO(move(e, qp, IBV_QPS_ERR, 0));
        return;
    }
    for (int i = 0; way[i] != state; i++)
        DO(move(e, qp, way[i + 1], find(table, way[i], way[i + 1])->required));
    if (state == IBV_QPS_SQD)
        await_drained(e, qp);
    EQUAL(state_of(e, qp), state);
}

static struct ibv_qp *prepare(struct end *e, const struct table *table)
{
    struct plan plan = plan_of(table->type);

    set_up(e, &plan);
    return create_qp(e, &plan);
}

/* From SQE nothing is tried here: only a failing send leads there. */
static void only_those_of_the_table(struct end *e, const struct table *table)
{
    static const enum ibv_qp_state from[] = {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_SQD, IBV_QPS_ERR};
    struct ibv_qp *qp = prepare(e, table);

    for (unsigned i = 0; i < sizeof(from) / sizeof(*from); i++) {
        for (enum ibv_qp_state to = IBV_QPS_RESET; to <= IBV_QPS_ERR; to++) {
            const struct transition *transition = find(table, from[i], to);

            bring(e, qp, table, from[i]);
            int error = move(e, qp, to, transition ? transition->required : 0);
            bool allowed = transition || to == IBV_QPS_RESET || (to == IBV_QPS_ERR && from[i] != IBV_QPS_RESET);

            CHECK_THAT(error == (allowed ? 0 : EINVAL), "%d to %d: %s", from[i], to, error ? strerror(error) : "0");
            EQUAL(state_of(e, qp), allowed ? to : from[i]);
        }
    }
}

static void required_attributes(struct end *e, const struct table *table)
{
    struct ibv_qp *qp = prepare(e, table);

    for (const struct transition *one = table->transitions; one->from || one->to; one++) {
        for (int bit = 1; bit <= IBV_QP_DEST_QPN; bit *= 2) {
            if (!(one->required & bit))
                continue;
            bring(e, qp, table, one->from);
            int error = move(e, qp, one->to, one->required & ~bit);

            CHECK_THAT(error == EINVAL, "%d to %d without 0x%x: %s", one->from, one->to, bit, error ? strerror(error) : "0");
            EQUAL(state_of(e, qp), one->from);
        }
    }
}

static void optional_attributes(struct end *e, const struct table *table)
{
    struct ibv_qp *qp = prepare(e, table);

    for (const struct transition *one = table->transitions; one->from || one->to; one++) {
        for (int bit = 1; bit <= IBV_QP_DEST_QPN; bit *= 2) {
            if (!((one->required | one->optional) & bit))
                continue;
            bring(e, qp, table, one->from);
            int error = move(e, qp, one->to, one->required | bit);

            CHECK_THAT(!error, "%d to %d with 0x%x: %s", one->from, one->to, bit, strerror(error));
        }
    }
}

static void other_attributes(struct end *e, const struct table *table)
{
    struct ibv_qp *qp = prepare(e, table);

    for (const struct transition *one = table->transitions; one->from || one->to; one++) {
        for (int bit = 1; bit <= IBV_QP_DEST_QPN; bit *= 2) {
            if (!(ATTRIBUTES & bit) || ((one->required | one->optional) & bit))
                continue;
            bring(e, qp, table, one->from);
            int error = move(e, qp, one->to, one->required | bit);

            CHECK_THAT(error == EINVAL, "%d to %d with 0x%x: %s", one->from, one->to, bit, error ? strerror(error) : "0");
            EQUAL(state_of(e, qp), one->from);
        }
    }
}

#define TABLE_TESTS(kind, name)                                                                                       \
    TEST(kind##_transitions, SOLO, name " QPs go from state to state as the table says and in no other way: EINVAL",  \
         "IBTA 10.3.1, 11.2.5.2; man ibv_modify_qp")                                                                  \
    {                                                                                                                 \
        only_those_of_the_table(e, &kind);                                                                            \
    }                                                                                                                 \
    TEST(kind##_required, SOLO, name " transitions without a required attribute are refused: EINVAL, state kept",     \
         "IBTA 11.2.5.2; man ibv_modify_qp")                                                                          \
    {                                                                                                                 \
        required_attributes(e, &kind);                                                                                \
    }                                                                                                                 \
    TEST(kind##_optional, SOLO, name " transitions take each of their attributes", "IBTA 11.2.5.2; man ibv_modify_qp") \
    {                                                                                                                 \
        optional_attributes(e, &kind);                                                                                \
    }                                                                                                                 \
    TEST(kind##_others, SOLO, name " transitions refuse attributes that aren't theirs: EINVAL, state kept",           \
         "IBTA 11.2.5.2; man ibv_modify_qp")                                                                          \
    {                                                                                                                 \
        other_attributes(e, &kind);                                                                                   \
    }

TABLE_TESTS(rc, "RC")
TABLE_TESTS(uc, "UC")
TABLE_TESTS(ud, "UD")

TEST(created_in_reset, SOLO, "a QP is created in RESET with the granted sizes and its creation attributes", "IBTA 10.3.1; man ibv_create_qp, ibv_query_qp")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    set_up(e, &plan);
    struct ibv_qp_init_attr asked = {
        .qp_context = e, .send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC, .sq_sig_all = 1,
        .cap = {.max_send_wr = 10, .max_recv_wr = 11, .max_send_sge = 2, .max_recv_sge = 3, .max_inline_data = 20}};

    e->qp = MADE(ibv_create_qp(e->pd, &asked), ibv_destroy_qp);
    CHECK(asked.cap.max_send_wr >= 10 && asked.cap.max_recv_wr >= 11 && asked.cap.max_send_sge >= 2 &&
          asked.cap.max_recv_sge >= 3 && asked.cap.max_inline_data >= 20);
    EQUAL(e->qp->state, IBV_QPS_RESET);
    CHECK(e->qp->qp_context == e && e->qp->pd == e->pd && e->qp->send_cq == e->cq && e->qp->recv_cq == e->cq &&
          e->qp->qp_type == IBV_QPT_RC && e->qp->srq == NULL && e->qp->context == e->context);
    CHECK(e->qp->qp_num > 1 && e->qp->qp_num < 1 << 24);
    DO(ibv_query_qp(e->qp, &attr, IBV_QP_STATE | IBV_QP_CAP, &init));
    EQUAL(attr.qp_state, IBV_QPS_RESET);
    CHECK(init.cap.max_send_wr >= 10 && init.cap.max_recv_wr >= 11 && init.cap.max_send_sge >= 2 && init.cap.max_recv_sge >= 3 &&
          init.cap.max_inline_data >= 20);
    CHECK(init.qp_type == IBV_QPT_RC && init.send_cq == e->cq && init.recv_cq == e->cq && init.srq == NULL);
    EQUAL(init.sq_sig_all, 1);
}

TEST(attributes_are_kept, SOLO, "ibv_query_qp gives what ibv_modify_qp has set", "man ibv_query_qp")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    struct ibv_qp_attr set = {
        .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_512, .dest_qp_num = 0x345, .rq_psn = 0x54321, .max_dest_rd_atomic = 3,
        .min_rnr_timer = 17, .ah_attr = path_to(e, &e->gid)};

    set.ah_attr.grh.hop_limit = 33;
    set.ah_attr.grh.traffic_class = 0x20;
    DO(to_init(e, e->qp, &plan));
    DO(ibv_modify_qp(e->qp, &set, IBV_QP_STATE | PATH | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
    set = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .timeout = 11, .retry_cnt = 5, .rnr_retry = 6, .sq_psn = 0xabcdef, .max_rd_atomic = 2};
    DO(ibv_modify_qp(e->qp, &set, IBV_QP_STATE | RETRIES | IBV_QP_SQ_PSN));
    DO(ibv_query_qp(e->qp, &attr, ~0, &init));
    EQUAL(attr.qp_state, IBV_QPS_RTS);
    EQUAL(attr.cur_qp_state, IBV_QPS_RTS);
    EQUAL(attr.path_mtu, IBV_MTU_512);
    EQUAL(attr.dest_qp_num, 0x345);
    EQUAL(attr.rq_psn, 0x54321);
    EQUAL(attr.sq_psn, 0xabcdef);
    EQUAL(attr.max_dest_rd_atomic, 3);
    EQUAL(attr.max_rd_atomic, 2);
    EQUAL(attr.min_rnr_timer, 17);
    EQUAL(attr.timeout, 11);
    EQUAL(attr.retry_cnt, 5);
    EQUAL(attr.rnr_retry, 6);
    EQUAL(attr.port_num, 1);
    EQUAL(attr.qp_access_flags, ALL_ACCESS);
    EQUAL(attr.ah_attr.is_global, 1);
    EQUAL(attr.ah_attr.grh.hop_limit, 33);
    EQUAL(attr.ah_attr.grh.traffic_class, 0x20);
    EQUAL(attr.ah_attr.grh.sgid_index, e->gid_index);
    CHECK(memcmp(&attr.ah_attr.grh.dgid, &e->gid, sizeof(e->gid)) == 0);
}

TEST(values_out_of_range, SOLO, "attributes out of their range are refused: EINVAL, state kept", "man ibv_modify_qp: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);

    const struct {
        enum ibv_qp_state from;
        const char *what;
        struct ibv_qp_attr attr;
        int mask;
    } cases[] = {
        {IBV_QPS_RESET, "port 0", {.qp_state = IBV_QPS_INIT, .port_num = 0}, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_RESET, "a port that isn't there", {.qp_state = IBV_QPS_INIT, .port_num = 77},
         IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS},
        {IBV_QPS_RTS, "cur_qp_state that isn't so", {.qp_state = IBV_QPS_RTS, .cur_qp_state = IBV_QPS_SQE}, IBV_QP_CUR_STATE},
        {IBV_QPS_RESET, "a state that is none", {.qp_state = (enum ibv_qp_state)40}, 0},
        {IBV_QPS_INIT, "max_dest_rd_atomic beyond the device's", {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .max_dest_rd_atomic = 255},
         PATH | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER},
        {IBV_QPS_INIT, "a GID index that isn't there", {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024,
         .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = 250}}}, PATH | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER},
        {IBV_QPS_INIT, "an address vector without a GID", {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024,
         .ah_attr = {.is_global = 0, .port_num = 1}}, PATH | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER},
        {IBV_QPS_INIT, "a path MTU of none", {.qp_state = IBV_QPS_RTR, .path_mtu = (enum ibv_mtu)9},
         PATH | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct ibv_qp_attr attr = cases[i].attr;

        bring(e, qp, &rc, cases[i].from);
        if (cases[i].mask & IBV_QP_AV && !attr.ah_attr.port_num)
            attr.ah_attr = path_to(e, &e->gid);
        int error = ibv_modify_qp(qp, &attr, IBV_QP_STATE | cases[i].mask);

        CHECK_THAT(error == EINVAL, "%s: %s", cases[i].what, error ? strerror(error) : "0");
        EQUAL(state_of(e, qp), cases[i].from);
    }
}

TEST(pkey_index_out_of_range, SOLO, "a P_Key index beyond the table is refused: EINVAL", "man ibv_modify_qp: EINVAL; IBTA 10.9.1.2")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .pkey_index = e->port.pkey_tbl_len};

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    REFUSED(ibv_modify_qp(e->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS), EINVAL);
    EQUAL(state_of(e, e->qp), IBV_QPS_RESET);
}

TEST(nothing_to_modify, SOLO, "no attribute at all changes nothing, and is no error", "Linux: ib_modify_qp_is_ok")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(ibv_modify_qp(e->qp, &attr, 0));
    EQUAL(state_of(e, e->qp), IBV_QPS_RESET);
    DO(to_init(e, e->qp, &plan));
    DO(ibv_modify_qp(e->qp, &attr, 0));
    EQUAL(state_of(e, e->qp), IBV_QPS_INIT);
}

TEST(way_to_nobody, SOLO, "the way to a peer begins at a port of the device and doesn't end at the unspecified GID", "man ibv_modify_qp: EINVAL; RFC 4291, 2.5.2")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = 1, .max_dest_rd_atomic = 1,
                               .min_rnr_timer = 12, .ah_attr = path_to(e, &e->gid)};
    const int mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                     IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(to_init(e, e->qp, &plan));
    attr.ah_attr.port_num = 0;
    REFUSED(ibv_modify_qp(e->qp, &attr, mask), EINVAL);
    attr.ah_attr.port_num = e->device.phys_port_cnt + 1;
    REFUSED(ibv_modify_qp(e->qp, &attr, mask), EINVAL);
    if (e->port.link_layer == IBV_LINK_LAYER_ETHERNET) {
        attr.ah_attr.port_num = 1;
        memset(&attr.ah_attr.grh.dgid, 0, sizeof(attr.ah_attr.grh.dgid));
        REFUSED(ibv_modify_qp(e->qp, &attr, mask), EINVAL);
    }
    EQUAL(state_of(e, e->qp), IBV_QPS_INIT);
}

TEST(public_state, SOLO, "qp->state follows ibv_modify_qp", "struct ibv_qp")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);

    for (enum ibv_qp_state state = IBV_QPS_INIT; state <= IBV_QPS_RTS; state++) {
        bring(e, qp, &rc, state);
        EQUAL(qp->state, state);
    }
    DO(to_state(qp, IBV_QPS_ERR));
    EQUAL(qp->state, IBV_QPS_ERR);
}

TEST(posting_before_ready, SOLO, "ibv_post_send is refused before RTS, ibv_post_recv in RESET: EINVAL", "IBTA 10.3.1, 10.8.2; man ibv_post_send, ibv_post_recv")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    REFUSED(receive_on(e, e->qp, 1, 0, 8), EINVAL);
    for (enum ibv_qp_state state = IBV_QPS_RESET; state <= IBV_QPS_RTR; state++) {
        bring(e, e->qp, &rc, state);
        REFUSED(ask(e, (struct request){.opcode = IBV_WR_SEND, .length = 8}), EINVAL);
        if (state != IBV_QPS_RESET)
            RECEIVE(1, 0, 8);
    }
}

TEST(posted_in_error_is_flushed, SOLO, "what is posted in ERR is flushed at once", "IBTA 10.3.1 (Error state)")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    bring(e, e->qp, &rc, IBV_QPS_RTS);
    DO(to_state(e->qp, IBV_QPS_ERR));
    for (uint64_t i = 0; i < 5; i++) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 8);
        EQUAL(EXPECT(i, IBV_WC_WR_FLUSH_ERR).qp_num, e->qp->qp_num);
        RECEIVE(100 + i, 0, 8);
        EXPECT(100 + i, IBV_WC_WR_FLUSH_ERR);
    }
}

TEST(error_flushes_receives, SOLO, "going to ERR flushes the posted receives in order", "IBTA 10.3.1, 10.8.3.1")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    bring(e, e->qp, &rc, IBV_QPS_RTR);
    for (uint64_t i = 0; i < 20; i++)
        RECEIVE(i, 0, 8);
    EXPECT_NOTHING();
    DO(to_state(e->qp, IBV_QPS_ERR));
    for (uint64_t i = 0; i < 20; i++)
        EXPECT(i, IBV_WC_WR_FLUSH_ERR);
}

TEST(receives_posted_in_init, BOTH, "receives posted in INIT are used once the QP is in RTR", "IBTA 10.3.1 (Initialized state)")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(to_init(e, e->qp, &plan));
    if (!e->first)
        RECEIVE(9, 0, 64);
    struct address own = {.memory = (uintptr_t)e->memory, .rkey = e->mr->rkey, .qp_num = e->qp->qp_num, .gid = e->gid};

    exchange(e, &own, &e->peer, sizeof(own));
    DO(to_rtr(e, e->qp, &plan, &e->peer));
    if (e->first)
        DO(to_rts(e->qp, &plan));
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        /* The responder is in RTR: that is enough to receive. */
        EXPECT(9, IBV_WC_SUCCESS);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}

TEST(reset_and_again, BOTH, "a QP can be reset, even out of ERR, and connected anew", "IBTA 10.3.1 (Reset state)")
{
    connect_rc(e);
    struct plan plan = plan_of(IBV_QPT_RC);

    for (int round = 0; round < 3; round++) {
        if (!e->first)
            RECEIVE(9, 0, 64);
        meet(e);
        if (e->first)
            ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        EXPECT(e->first ? 1 : 9, IBV_WC_SUCCESS);
        meet(e);
        if (round == 1)
            DO(to_state(e->qp, IBV_QPS_ERR));
        DO(to_state(e->qp, IBV_QPS_RESET));
        join(e, e->qp, &plan);
    }
}

TEST(reset_forgets, SOLO, "RESET drops posted WRs without completions", "IBTA 10.3.1 (Reset state); man ibv_modify_qp")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    bring(e, e->qp, &rc, IBV_QPS_RTR);
    for (uint64_t i = 0; i < 10; i++)
        RECEIVE(i, 0, 8);
    DO(to_state(e->qp, IBV_QPS_RESET));
    EXPECT_NOTHING();
    /* All of its room is free again. */
    DO(to_init(e, e->qp, &plan));
    for (uint64_t i = 0; i < DEPTH; i++)
        RECEIVE(i, 0, 8);
    DO(to_state(e->qp, IBV_QPS_ERR));
    for (uint64_t i = 0; i < DEPTH; i++)
        EXPECT(i, IBV_WC_WR_FLUSH_ERR);
}

/* ---- SQD ---------------------------------------------------------------------------- */

TEST(sqd_holds_sends, BOTH, "sends posted in SQD wait until the QP is back in RTS", "IBTA 10.3.1 (Send Queue Drain)")
{
    connect_rc(e);
    if (e->first) {
        struct ibv_wc wc;

        DO(to_state(e->qp, IBV_QPS_SQD));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        for (int i = 0; i < 1000; i++)
            CHECK(ibv_poll_cq(e->cq, 1, &wc) == 0);
        EQUAL(state_of(e, e->qp), IBV_QPS_SQD);
        DO(to_state(e->qp, IBV_QPS_RTS));
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 64, 0);
}

TEST(sqd_tells_when_drained, BOTH, "SQ_DRAINED comes where en_sqd_async_notify was given, after what had begun", "IBTA 10.3.1, 11.6.3.1; man ibv_get_async_event")
{
    connect_rc(e);
    if (e->first) {
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_SQD, .en_sqd_async_notify = 1};

        for (uint64_t i = 0; i < 8; i++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 60000);
        DO(ibv_modify_qp(e->qp, &attr, IBV_QP_STATE | IBV_QP_EN_SQD_ASYNC_NOTIFY));
        await_event(e, IBV_EVENT_SQ_DRAINED, e->qp);
        DO(to_state(e->qp, IBV_QPS_RTS));
        for (uint64_t i = 0; i < 8; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(sqd_still_responds, BOTH, "a QP in SQD goes on responding", "IBTA 10.3.1 (Send Queue Drain)")
{
    connect_rc(e);
    if (!e->first) {
        DO(to_state(e->qp, IBV_QPS_SQD));
        RECEIVE(9, 4096, 64);
    }
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_SUCCESS);
    } else {
        EXPECT(9, IBV_WC_SUCCESS);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}
