/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UD messages (IBTA 9.8.3). Between QPs of this node: one copy for each receiver, all
 * of it at once, as a message fits one packet. To other nodes: by a trunk. What nobody takes is lost.
 */
#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <netinet/ip.h>
#include <string.h>

#include "../account.h"
#include "../ah.h"
#include "../gate.h"
#include "../multicast.h"
#include "../parcel.h"
#include "../relay.h"
#include "../spans.h"
#include "../tenant.h"
#include "datagram.h"
#include "trunk.h"

enum {
    MULTICAST_QPN = 0xffffff,
    QKEY_OWN = 31, /* the bit in a WR's Q_Key that says: the QP's own (IBTA 10.2.5) */
    /* What RoCE v2 has between the IP header and the data, and after it. */
    UDP_HEADER = 8,
    BTH_DETH = 12 + 8,
    IMMEDIATE = 4,
    ICRC = 4,
    HOP_LIMIT = 64 /* where the AH gives none */
};

/* ---- the header in front of the data ----------------------------------- */

union grh {
    struct ibv_grh ipv6;
    struct {
        uint8_t unused[20];
        struct iphdr header;
    } ipv4; /* an IPv4 header lies in the last 20 bytes */
    uint8_t bytes[SLUICE_GRH];
};

static bool is_ipv4(const uint8_t gid[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    return memcmp(gid, mapped, sizeof(mapped)) == 0;
}

static uint16_t checksum(const void *header)
{
    uint16_t words[10];
    uint32_t sum = 0;

    memcpy(words, header, sizeof(words));
    for (int i = 0; i < 10; i++)
        sum += words[i];
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~(sum + (sum >> 16));
}

static void write_grh(union grh *grh, const struct ah *ah, uint32_t length, bool immediate)
{
    uint16_t payload = (uint16_t)(UDP_HEADER + BTH_DETH + (immediate ? IMMEDIATE : 0) + ((length + 3) & ~3u) + ICRC);
    uint8_t hops = ah->attr.hop_limit ? (uint8_t)ah->attr.hop_limit : HOP_LIMIT;

    memset(grh, 0, sizeof(*grh));
    if (!is_ipv4(ah->attr.dgid)) {
        grh->ipv6.version_tclass_flow =
            htonl(6u << 28 | (ah->attr.traffic_class & 0xff) << 20 | (ah->attr.flow_label & 0xfffff));
        grh->ipv6.paylen = htons(payload);
        grh->ipv6.next_hdr = IPPROTO_UDP;
        grh->ipv6.hop_limit = hops;
        memcpy(grh->ipv6.sgid.raw, ah->sgid, 16);
        memcpy(grh->ipv6.dgid.raw, ah->attr.dgid, 16);
        return;
    }
    struct iphdr *header = &grh->ipv4.header;

    header->version = 4;
    header->ihl = 5;
    header->tos = (uint8_t)ah->attr.traffic_class;
    header->tot_len = htons((uint16_t)(sizeof(*header) + payload));
    header->frag_off = htons(IP_DF);
    header->ttl = hops;
    header->protocol = IPPROTO_UDP;
    memcpy(&header->saddr, ah->sgid + 12, 4);
    memcpy(&header->daddr, ah->attr.dgid + 12, 4);
    header->check = checksum(header);
}

/* ---- delivery ---------------------------------------------------------- */

/* What the receiver is told beside GRH and data. */
struct datagram {
    uint32_t src_qp, qkey, length; /* bytes of data */
    uint32_t imm;
    bool immediate, solicited;
};

static struct datagram describe(const struct qp *qp)
{
    const struct sluice_wqe *wqe = qp->message.wqe;

    return (struct datagram){
        .src_qp = qp->qp_num,
        .qkey = wqe->remote_qkey >> QKEY_OWN ? qp->attr.qkey : wqe->remote_qkey,
        .length = qp->message.total,
        .imm = wqe->imm_data,
        .immediate = wqe->opcode == IBV_WR_SEND_WITH_IMM,
        .solicited = wqe->flags & SLUICE_WQE_SOLICITED,
    };
}

static void count_received(struct qp *to, const struct datagram *datagram)
{
    to->counters->rx_bytes += datagram->length;
    to->tenant->counters->rx_bytes += datagram->length;
    to->counters->rx_messages++;
    to->tenant->counters->rx_messages++;
}

/* src is GRH and data. False: the QP doesn't take it. */
static bool deliver(const struct datagram *datagram, struct qp *to, const struct spans *src)
{
    struct receive *receive = &to->receive;
    struct spans dst = {.count = 0};

    if (to->type != IBV_QPT_UD || !qp_can_respond(to) || to->session->broken || to->attr.qkey != datagram->qkey)
        return false;
    /* One that was too short for an earlier message is still there. */
    if (!receive->active && !qp_take_receive(to, to->srq, false))
        return false;
    bool resolved = spans_add_sges(&dst, receive->pd, receive->sges, receive->num_sge, IBV_ACCESS_LOCAL_WRITE);

    if (resolved && dst.total < src->total)
        return false;
    const struct arrival arrival = {
        .byte_len = (uint32_t)src->total,
        .wc_flags = IBV_WC_GRH | (datagram->immediate ? IBV_WC_WITH_IMM : 0),
        .imm_data = datagram->immediate ? datagram->imm : 0,
        .solicited = datagram->solicited,
    };

    receive->src_qp = datagram->src_qp;
    if (resolved && __builtin_expect(parcel_needed(to, &dst), 0)) {
        if (!parcel_send(to, &dst, src, &arrival))
            return false;
        count_received(to, datagram);
        return true;
    }
    if (!resolved ||
        spans_copy(to->session->engine, &dst, src, 0, (uint32_t)src->total) > (uint32_t)src->total) {
        parcel_spoil(to);
        return false;
    }
    count_received(to, datagram);
    qp_complete_receive(to, IBV_WC_SUCCESS, IBV_WC_RECV, arrival.byte_len, arrival.wc_flags, arrival.imm_data,
                        arrival.solicited);
    return true;
}

/*
 * Nobody can hold back a group's sender for one of its members, nor one behind a NIC:
 * what is beyond the receiver's ingress ceiling, or would come before others' turns, is lost, as at a port that is slower than
 * its switch.
 */
static bool deliver_within_ceiling(const struct datagram *datagram, struct qp *to, const struct spans *src)
{
    struct tenant *tenant = to->tenant;
    bool limited = tenant->limited[FLOW_INGRESS] && !tenant->shape.wire_only;

    if (limited && !entity_takes(&tenant->account.entity, FLOW_INGRESS, tenant->engine->now)) {
        to->counters->drops++;
        tenant->counters->drops++;
        return false;
    }
    if (!deliver(datagram, to, src))
        return false;
    if (limited) {
        entity_took(&tenant->account.entity, FLOW_INGRESS, datagram->length, tenant->engine->now);
        account_charge(&tenant->account, FLOW_INGRESS, datagram->length, false);
    }
    return true;
}

/* Whether the gate has judged all members that the sender may come to; it is asked where it hasn't. */
static bool is_judged(struct sluice_engine *engine, const struct sender *sender, const struct group *group)
{
    for (struct list *link = group->members.next; link != &group->members; link = link->next)
        if (gate_answer(engine, sender, list_entry(link, struct member, link)->qp->tenant) == ANSWER_UNKNOWN)
            return false;
    return true;
}

/* To those that the gate lets it come to; all are judged. */
static bool deliver_to_group(struct sluice_engine *engine, const struct datagram *datagram, const struct sender *sender,
                             struct group *group, const struct spans *src)
{
    bool delivered = false;

    for (struct list *link = group->members.next; link != &group->members; link = link->next) {
        struct qp *to = list_entry(link, struct member, link)->qp;

        if (gate_answer(engine, sender, to->tenant) == ANSWER_YES)
            delivered |= deliver_within_ceiling(datagram, to, src);
    }
    return delivered;
}

static bool deliver_to_one(struct qp *qp, struct ah *ah, const struct spans *src)
{
    struct sluice_engine *engine = qp->session->engine;
    struct qp *to = qp_lookup(engine, qp->message.wqe->remote_qpn);
    struct datagram datagram = describe(qp);
    const struct tenant *tenant = ah_tenant(engine, ah);

    if (!tenant)
        ah_ask(ah);
    return to && to->tenant->first == tenant && deliver(&datagram, to, src);
}

/* ---- sending ----------------------------------------------------------- */

/* The same where some of the data lie in a process. PROGRESS_MORE: they are on their way here. */
static enum progress fetch(struct qp *qp, union grh *grh, struct spans *src, uint32_t *status)
{
    struct spans data = {.count = 0};

    *status = IBV_WC_LOC_PROT_ERR;
    spans_add_sges(&data, qp->pd, qp->message.sges, qp->message.wqe->num_sge, 0);
    enum relayed relayed = relay_gather(qp, &data);

    if (relayed != RELAYED_DONE)
        return relayed == RELAYED_LATER ? PROGRESS_MORE : PROGRESS_FAILED;
    spans_clear(src);
    spans_add_host(src, grh->bytes, SLUICE_GRH);
    spans_add_host(src, data.list[0].host, data.list[0].length);
    return PROGRESS_DONE;
}

/* GRH and data of the message at hand. PROGRESS_DONE: they are there; PROGRESS_FAILED: *status says why. */
static enum progress gather(struct qp *qp, union grh *grh, struct spans *src, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;

    spans_add_host(src, grh->bytes, SLUICE_GRH);
    *status = IBV_WC_LOC_PROT_ERR;
    if (wqe->flags & SLUICE_WQE_INLINE)
        spans_add_host(src, message->inline_data, wqe->inline_length);
    else if (!spans_add_sges(src, qp->pd, message->sges, wqe->num_sge, 0))
        return PROGRESS_FAILED;
    *status = IBV_WC_LOC_LEN_ERR;
    if (src->total > SLUICE_GRH + SLUICE_MTU)
        return PROGRESS_FAILED;
    message->total = (uint32_t)src->total - SLUICE_GRH;
    write_grh(grh, message->ah, message->total, wqe->opcode == IBV_WR_SEND_WITH_IMM);
    return __builtin_expect(src->by_process, 0) ? fetch(qp, grh, src, status) : PROGRESS_DONE;
}

static enum progress sent(struct qp *qp)
{
    struct message *message = &qp->message;

    message->moved = message->total;
    qp->counters->tx_bytes += message->total;
    qp->tenant->counters->tx_bytes += message->total;
    qp->counters->tx_messages++;
    qp->tenant->counters->tx_messages++;
    return PROGRESS_DONE;
}

static struct datagram_frame make_frame(const struct qp *qp, const struct ah *ah, const struct datagram *datagram)
{
    struct datagram_frame frame = {
        .length = (uint16_t)datagram->length,
        .src_qp = datagram->src_qp,
        .dst_qp = qp->message.wqe->remote_qpn,
        .qkey = datagram->qkey,
        .imm = datagram->imm,
        .flags = (uint16_t)((datagram->immediate ? DATAGRAM_IMMEDIATE : 0) | (datagram->solicited ? DATAGRAM_SOLICITED : 0)),
    };

    memcpy(frame.dgid, ah->attr.dgid, sizeof(frame.dgid));
    return frame;
}

/* To its members here, and to all other nodes, which know theirs. */
static enum progress send_to_group(struct qp *qp, const struct ah *ah, const struct spans *src, uint32_t *status)
{
    struct sluice_engine *engine = qp->session->engine;
    struct datagram datagram = describe(qp);
    struct datagram_frame frame = make_frame(qp, ah, &datagram);
    const struct sender *sender = gate_find(engine, ah->sgid, -1);
    uint32_t copies;

    if (qp->message.wqe->remote_qpn != MULTICAST_QPN)
        return PROGRESS_DROPPED;
    /* Before anything is sent: once it goes on, all of it does. */
    if (!is_judged(engine, sender, ah->group)) {
        qp->line = gate_line(engine);
        return PROGRESS_BLOCKED;
    }
    *status = IBV_WC_LOC_PROT_ERR;
    enum progress progress = trunks_send(qp, &frame, src, &copies);

    if (progress != PROGRESS_DONE)
        return progress;
    /* One is charged as the message itself. */
    if (copies > 1)
        account_charge(&qp->tenant->account, FLOW_EGRESS, (copies - 1ull) * datagram.length, false);
    return deliver_to_group(engine, &datagram, sender, ah->group, src) || copies ? sent(qp) : PROGRESS_DROPPED;
}

enum progress local_send_datagram(struct qp *qp, uint32_t *status)
{
    struct ah *ah = qp->message.ah;
    struct spans src = {.count = 0};
    union grh grh;

    enum progress gathered = gather(qp, &grh, &src, status);

    if (gathered != PROGRESS_DONE)
        return gathered;
    if (ah->group)
        return send_to_group(qp, ah, &src, status);
    return deliver_to_one(qp, ah, &src) ? sent(qp) : PROGRESS_DROPPED;
}

enum progress trunk_send_datagram(struct qp *qp, uint32_t *status)
{
    struct ah *ah = qp->message.ah;
    struct spans src = {.count = 0};
    union grh grh;

    enum progress gathered = gather(qp, &grh, &src, status);

    if (gathered != PROGRESS_DONE)
        return gathered;
    if (!ah->stream) { /* severed */
        ah_ask(ah);
        return PROGRESS_DROPPED;
    }
    struct datagram datagram = describe(qp);
    struct datagram_frame frame = make_frame(qp, ah, &datagram);

    *status = IBV_WC_LOC_PROT_ERR;
    enum progress progress = trunk_send(ah->stream, qp, &frame, &src);

    return progress == PROGRESS_DONE ? sent(qp) : progress;
}

enum progress datagram_to_neighbour(struct qp *qp, struct qp *to, uint32_t *status)
{
    struct spans src = {.count = 0};
    union grh grh;

    enum progress gathered = gather(qp, &grh, &src, status);

    if (gathered != PROGRESS_DONE)
        return gathered;
    struct datagram datagram = describe(qp);

    return deliver_within_ceiling(&datagram, to, &src) ? sent(qp) : PROGRESS_DROPPED;
}

void datagram_from_nic(struct qp *to, uint32_t src_qp, bool immediate, uint32_t imm, uint8_t *bytes, uint32_t length)
{
    struct datagram datagram = {
        .src_qp = src_qp,
        .qkey = to->attr.qkey,
        .length = length - SLUICE_GRH,
        .imm = imm,
        .immediate = immediate,
        .solicited = true, /* the NIC doesn't say: who waits is woken by each */
    };
    struct spans src = {.count = 0};

    spans_add_host(&src, bytes, length);
    deliver_within_ceiling(&datagram, to, &src);
}

/* Its sender's GID, as the header in front of the data has it. */
static void sender_of(const struct datagram_frame *frame, uint8_t gid[16])
{
    union grh grh;

    memcpy(grh.bytes, frame->grh, sizeof(grh.bytes));
    memcpy(gid, grh.ipv6.sgid.raw, 16);
    if (is_ipv4(frame->dgid)) {
        memcpy(gid, frame->dgid, 12);
        memcpy(gid + 12, &grh.ipv4.header.saddr, 4);
    }
}

/* False: it waits for the gate. */
static bool group_arrived(struct inflow *inflow, const struct datagram_frame *frame, const struct datagram *datagram,
                          struct group *group, const struct spans *src)
{
    struct sluice_engine *engine = inflow->trunk->engine;
    uint32_t size = datagram_size(datagram->length);
    uint8_t gid[16];

    sender_of(frame, gid);
    const struct sender *sender = gate_find(engine, gid, (int32_t)inflow->trunk->number);

    if (!is_judged(engine, sender, group))
        return false;
    if (deliver_to_group(engine, datagram, sender, group, src))
        inflow_paid(inflow, size);
    else
        inflow_came(inflow, size, NULL);
    return true;
}

bool datagram_arrived(struct inflow *inflow, struct datagram_frame *frame)
{
    struct sluice_engine *engine = inflow->trunk->engine;
    struct datagram datagram = {
        .src_qp = frame->src_qp,
        .qkey = frame->qkey,
        .length = frame->length,
        .imm = frame->imm,
        .immediate = frame->flags & DATAGRAM_IMMEDIATE,
        .solicited = frame->flags & DATAGRAM_SOLICITED,
    };
    struct spans src = {.count = 0};

    spans_add_host(&src, frame->grh, SLUICE_GRH + frame->length);
    if (gid_is_multicast(frame->dgid)) {
        struct group *group = frame->dst_qp == MULTICAST_QPN ? group_find(engine, frame->dgid) : NULL;

        if (group)
            return group_arrived(inflow, frame, &datagram, group, &src);
        inflow_came(inflow, datagram_size(frame->length), NULL);
        return true;
    }
    struct qp *to = qp_lookup(engine, frame->dst_qp);

    if (to && memcmp(to->tenant->first->gid, frame->dgid, sizeof(frame->dgid)) != 0)
        to = NULL;
    if (to)
        deliver(&datagram, to, &src);
    inflow_came(inflow, datagram_size(frame->length), to ? to->tenant : NULL);
    return true;
}
