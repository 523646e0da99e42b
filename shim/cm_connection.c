/* SPDX-License-Identifier: Apache-2.0 */
/* Connections: man rdma_connect, rdma_accept, rdma_reject, rdma_establish, rdma_disconnect, rdma_notify. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cm.h"
#include "objects.h"
#include "session.h"

enum { MAX_RETRIES = 7, VENDOR_OPTION_NOT_SUPPORTED = 35 /* IBTA 12.6.7.2 */ };

/* ---- the QP ------------------------------------------------------------ */

EXPORT int rdma_init_qp_attr(struct rdma_cm_id *id, struct ibv_qp_attr *attr, int *attr_mask)
{
    struct sluice_cm_value_request request = {.handle = to_cm_id(id)->handle, .value = attr->qp_state};
    struct sluice_cm_qp_attr_reply reply;
    int error = session_call(SLUICE_OP_CM_INIT_QP_ATTR, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return cm_result(error);
    const struct sluice_qp_attr *from = &reply.attr;

    *attr = (struct ibv_qp_attr){
        .qp_state = from->qp_state,
        .path_mtu = from->path_mtu,
        .qkey = from->qkey,
        .rq_psn = from->rq_psn,
        .sq_psn = from->sq_psn,
        .dest_qp_num = from->dest_qp_num,
        .qp_access_flags = from->qp_access_flags,
        .max_rd_atomic = (uint8_t)from->max_rd_atomic,
        .max_dest_rd_atomic = (uint8_t)from->max_dest_rd_atomic,
        .min_rnr_timer = (uint8_t)from->min_rnr_timer,
        .port_num = (uint8_t)from->port_num,
        .timeout = (uint8_t)from->timeout,
        .retry_cnt = (uint8_t)from->retry_cnt,
        .rnr_retry = (uint8_t)from->rnr_retry,
    };
    ah_attr_from_abi(&attr->ah_attr, &from->ah);
    *attr_mask = (int)reply.attr_mask;
    return 0;
}

static int modify(struct rdma_cm_id *id, enum ibv_qp_state state, uint8_t responder_resources,
                  uint8_t initiator_depth)
{
    struct ibv_qp_attr attr = {.qp_state = state};
    int mask;

    if (rdma_init_qp_attr(id, &attr, &mask))
        return -1;
    if (responder_resources != RDMA_MAX_RESP_RES)
        attr.max_dest_rd_atomic = responder_resources;
    if (initiator_depth != RDMA_MAX_INIT_DEPTH)
        attr.max_rd_atomic = initiator_depth;
    return cm_result(ibv_modify_qp(id->qp, &attr, mask));
}

int cm_modify_rtr(struct rdma_cm_id *id, uint8_t responder_resources)
{
    if (!id->qp)
        return 0;
    /* What the peer may do with it is known only now. */
    if (modify(id, IBV_QPS_INIT, RDMA_MAX_RESP_RES, RDMA_MAX_INIT_DEPTH))
        return -1;
    return modify(id, IBV_QPS_RTR, responder_resources, RDMA_MAX_INIT_DEPTH);
}

int cm_modify_rts(struct rdma_cm_id *id, uint8_t initiator_depth)
{
    return id->qp ? modify(id, IBV_QPS_RTS, RDMA_MAX_RESP_RES, initiator_depth) : 0;
}

int cm_modify_err(struct rdma_cm_id *id)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    return id->qp ? cm_result(ibv_modify_qp(id->qp, &attr, IBV_QP_STATE)) : 0;
}

/* ---- parameters --------------------------------------------------------- */

static bool fits(struct rdma_cm_id *id, const struct rdma_conn_param *param)
{
    uint8_t most = cm_device_max_reads(id);

    if (id->ps != RDMA_PS_TCP)
        return true;
    if (!param)
        return id->qp != NULL;
    return (param->responder_resources == RDMA_MAX_RESP_RES || param->responder_resources <= most) &&
           (param->initiator_depth == RDMA_MAX_INIT_DEPTH || param->initiator_depth <= most);
}

/* 0 or EINVAL: more private data than any message takes. */
static int fill(struct sluice_cm_param_request *request, struct cm_id *id, const struct rdma_conn_param *param)
{
    struct sluice_cm_param *to = &request->param;
    struct ibv_qp *qp = id->id.qp;
    size_t prefix = id->connect_len, data = param && param->private_data ? param->private_data_len : 0;

    if (prefix + data > sizeof(to->private_data))
        return EINVAL;
    *request = (struct sluice_cm_param_request){.uid = (uintptr_t)id, .handle = id->handle};
    to->valid = 1;
    to->qp_num = qp ? qp->qp_num : param ? param->qp_num : 0;
    to->srq = qp ? qp->srq != NULL : param && param->srq;
    to->responder_resources = id->responder_resources;
    to->initiator_depth = id->initiator_depth;
    to->flow_control = param ? param->flow_control : 0;
    to->retry_count = param ? param->retry_count : MAX_RETRIES;
    to->rnr_retry_count = param ? param->rnr_retry_count : MAX_RETRIES;
    to->private_data_len = (uint8_t)(prefix + data);
    if (prefix)
        memcpy(to->private_data, id->connect, prefix);
    if (data)
        memcpy(to->private_data + prefix, param->private_data, data);
    return 0;
}

static int send_param(uint16_t op, struct sluice_cm_param_request *request)
{
    struct sluice_handle_reply reply;

    return session_call(op, request, sizeof(*request), &reply, sizeof(reply));
}

/* ---- the active side ---------------------------------------------------- */

EXPORT int rdma_connect(struct rdma_cm_id *public, struct rdma_conn_param *param)
{
    struct sluice_cm_param_request request;
    struct cm_id *id = to_cm_id(public);
    uint8_t most = cm_device_max_reads(public);

    if (!fits(public, param))
        return cm_result(EINVAL);
    id->initiator_depth =
        param && param->initiator_depth != RDMA_MAX_INIT_DEPTH ? param->initiator_depth : most;
    id->responder_resources =
        param && param->responder_resources != RDMA_MAX_RESP_RES ? param->responder_resources : most;
    int error = fill(&request, id, param);

    if (error)
        return cm_result(error);
    request.param.ece_vendor = id->local_ece.vendor_id;
    request.param.ece_options = id->local_ece.options;
    error = send_param(SLUICE_OP_CM_CONNECT, &request);
    if (error)
        return cm_result(error);
    free(id->connect);
    id->connect = NULL;
    id->connect_len = 0;
    return cm_complete(public);
}

static int say_ready(struct cm_id *id)
{
    struct sluice_cm_param_request request = {.uid = (uintptr_t)id, .handle = id->handle};

    return cm_result(send_param(SLUICE_OP_CM_ACCEPT, &request));
}

int cm_finish_connect(struct cm_id *id)
{
    if (!cm_modify_rtr(&id->id, RDMA_MAX_RESP_RES) && !cm_modify_rts(&id->id, RDMA_MAX_INIT_DEPTH) &&
        !say_ready(id))
        return 0;
    int error = errno;

    cm_modify_err(&id->id);
    return cm_result(error);
}

EXPORT int rdma_establish(struct rdma_cm_id *id)
{
    return id->qp ? cm_result(EINVAL) : say_ready(to_cm_id(id));
}

/* ---- the passive side --------------------------------------------------- */

static uint8_t lesser(uint8_t one, uint8_t other)
{
    return one < other ? one : other;
}

EXPORT int rdma_accept(struct rdma_cm_id *public, struct rdma_conn_param *param)
{
    struct sluice_cm_param_request request;
    struct cm_id *id = to_cm_id(public);
    uint8_t most = cm_device_max_reads(public);
    bool datagram = public->qp_type == IBV_QPT_UD;

    if (!fits(public, param) || (!param && !public->qp))
        return cm_result(EINVAL);
    id->initiator_depth = param && param->initiator_depth != RDMA_MAX_INIT_DEPTH
                              ? param->initiator_depth
                              : lesser(id->initiator_depth, most);
    id->responder_resources = param && param->responder_resources != RDMA_MAX_RESP_RES
                                  ? param->responder_resources
                                  : lesser(id->responder_resources, most);
    if (!datagram && (cm_modify_rtr(public, id->responder_resources) || cm_modify_rts(public, id->initiator_depth)))
        return -1;
    int error = fill(&request, id, param);

    if (!error) {
        /* The peer's own vendor, with our options: that is how it knows that we understood. */
        request.param.ece_vendor = id->remote_ece.vendor_id;
        request.param.ece_options = id->local_ece.options;
        error = send_param(SLUICE_OP_CM_ACCEPT, &request);
    }
    if (error) {
        if (!datagram)
            cm_modify_err(public);
        return cm_result(error);
    }
    if (!datagram)
        return cm_complete(public);
    if (id->synchronous && public->event) {
        rdma_ack_cm_event(public->event);
        public->event = NULL;
    }
    return 0;
}

static int reject(struct rdma_cm_id *id, const void *private_data, uint8_t private_data_len, uint8_t reason)
{
    struct sluice_cm_reject_request request = {.handle = to_cm_id(id)->handle, .reason = reason};
    struct sluice_handle_reply reply;

    if (private_data && private_data_len) {
        if (private_data_len > sizeof(request.private_data))
            return cm_result(EINVAL);
        memcpy(request.private_data, private_data, private_data_len);
        request.private_data_len = private_data_len;
    }
    return cm_result(session_call(SLUICE_OP_CM_REJECT, &request, sizeof(request), &reply, sizeof(reply)));
}

EXPORT int rdma_reject(struct rdma_cm_id *id, const void *private_data, uint8_t private_data_len)
{
    return reject(id, private_data, private_data_len, 0);
}

EXPORT int rdma_reject_ece(struct rdma_cm_id *id, const void *private_data, uint8_t private_data_len)
{
    return reject(id, private_data, private_data_len, VENDOR_OPTION_NOT_SUPPORTED);
}

/* ---- either side -------------------------------------------------------- */

EXPORT int rdma_notify(struct rdma_cm_id *id, enum ibv_event_type event)
{
    return cm_result(cm_ask(SLUICE_OP_CM_NOTIFY, id, event));
}

EXPORT int rdma_disconnect(struct rdma_cm_id *id)
{
    if (!id->verbs)
        return cm_result(EINVAL);
    if (cm_modify_err(id))
        return -1;
    int error = session_call_handle(SLUICE_OP_CM_DISCONNECT, to_cm_id(id)->handle, NULL);

    return error ? cm_result(error) : cm_complete(id);
}

EXPORT int rdma_set_local_ece(struct rdma_cm_id *id, struct ibv_ece *ece)
{
    if (!id || id->qp || !ece || !ece->vendor_id || ece->comp_mask)
        return cm_result(EINVAL);
    to_cm_id(id)->local_ece = (struct ibv_ece){.vendor_id = ece->vendor_id, .options = ece->options};
    return 0;
}

EXPORT int rdma_get_remote_ece(struct rdma_cm_id *id, struct ibv_ece *ece)
{
    if (!id || id->qp || !ece)
        return cm_result(EINVAL);
    *ece = to_cm_id(id)->remote_ece;
    return 0;
}
