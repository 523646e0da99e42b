/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a device is known not to do what a statement says. The test runs all the
 * same and its failure is printed with the reason, but doesn't count.
 */
#include <fnmatch.h>

#include "suite.h"

static const struct deviation deviations[] = {
    /* Linux 6.1 and rdma-core 44, where nothing else is said. */
    {"rxe", "arguments.qp_without_cqs", false, "libibverbs itself reads from a CQ that isn't there"},
    {"rxe", "arguments.modify_srq_unknown_mask", false, "ignores attributes that it doesn't know"},
    {"rxe", "arguments.send_of_nothing_known", false, "takes any opcode, and completes it with an error"},
    {"rxe", "completions.overrun", false, "a CQ that overruns tells so, but leaves its QPs as they are"},
    {"rxe", "datagrams.controlled_qkey", false, "a Q_Key with its top bit set is sent as it is"},
    {"rxe", "datagrams.longer_than_the_mtu", false, "drops such a datagram at its sender and completes it with success"},
    {"rxe", "datagrams.multicast", false, "multicast isn't looped back to the sender's own host"},
    {"rxe", "datagrams.sqe", false, "has no SQE: any failing send leads to ERR, with LOC_QP_OP_ERR"},
    {"rxe", "unreliable.local_error", false, "has no SQE: any failing send leads to ERR, with LOC_QP_OP_ERR"},
    {"rxe", "errors.access_error_event", false, "no asynchronous event at a responder that refuses"},
    {"rxe", "events.names_the_qp", false, "no asynchronous event at a responder that refuses"},
    {"rxe", "events.destroy_waits_for_ack", false, "no asynchronous event at a responder that refuses"},
    {"rxe", "events.communication_established", false, "never tells COMM_EST"},
    {"rxe", "errors.unknown_lkey", false, "LOC_QP_OP_ERR for a key that can't be used"},
    {"rxe", "errors.local_key_of_another_pd", false, "LOC_QP_OP_ERR for a key that can't be used"},
    {"rxe", "errors.receive_into_read_only", false, "LOC_QP_OP_ERR for a receive that can't be written"},
    {"rxe", "errors.receive_too_short", false, "the requester gets REM_OP_ERR"},
    {"rxe", "errors.flush_in_order", false, "LOC_QP_OP_ERR for a key that can't be used"},
    {"rxe", "extended.sge_list", false, "counts only the first SGE of ibv_wr_set_sge_list"},
    {"rxe", "extended.inline_data*", false, "inline data of ibv_wr_* is lost"},
    /* Where completions come one by one: ibv_end_poll after the ibv_next_poll that found none steps over one that is to come. */
    {"rxe", "extended.start_poll", false, "ibv_end_poll takes a completion more after ibv_next_poll said ENOENT"},
    {"rxe", "qp_states.uc_optional", false, "never finds a UC send queue drained"},
    {"rxe", "qp_states.values_out_of_range", false, "takes any max_dest_rd_atomic"},
    {"rxe", "qp_states.pkey_index_out_of_range", false, "takes any P_Key index"},
    {"rxe", "qp_states.posted_in_error_is_flushed", false, "at times doesn't look at what is posted in ERR"},
    {"rxe", "qp_states.sqd_holds_sends", false, "doesn't look at its send queue when it is back in RTS"},
    {"rxe", "regions.zero_based", false, "takes ZERO_BASED and ignores it"},
    {"rxe", "shared_receives.last_wqe", false, "never tells LAST_WQE_REACHED"},
    {"rxe", "windows.type_1_opens", false, "checks the bounds of the region, not those of the window"},
    {"rxe", "windows.type_2_opens", false, "checks the bounds of the region, not those of the window"},
    {"rxe", "windows.remote_invalidate", false, "a receive doesn't tell WITH_INV"},
    /* Tenants whose QPs are the NIC's: what the router hears of a receive is struct ibv_wc. */
    {"rxe-nic", "completions.solicited_only", false, "the NIC's completion doesn't tell whether it was solicited"},
    {NULL, NULL, false, NULL},
};

const struct deviation *deviation_of(const char *device, const char *test)
{
    for (const struct deviation *one = deviations; one->test; one++)
        if (strncmp(device, one->device, strlen(one->device)) == 0 && fnmatch(one->test, test, 0) == 0)
            return one;
    return NULL;
}
