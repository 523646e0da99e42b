/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What rdma-core's libraries for one vendor's devices (libmlx5, libmlx4, libefa,
 * libmana) import from libibverbs: its private interface to its drivers. Applications
 * link them beside libibverbs, and they are bound at once when they are loaded, so
 * each name has to be here, under the version IBVERBS_PRIVATE_N of any release
 * (libsluice.map.in). They register themselves, look at a device, see that it isn't
 * theirs, and answer EOPNOTSUPP; nothing else in here is ever called.
 */
#include <errno.h>
#include <stddef.h>

#include "objects.h"

static int refuse(void)
{
    return EOPNOTSUPP;
}

static void *refuse_pointer(void)
{
    errno = EOPNOTSUPP;
    return NULL;
}

static void ignore(void)
{
}

#define REFUSE(name) EXPORT int name(void) __attribute__((alias("refuse")));
#define REFUSE_POINTER(name) EXPORT void *name(void) __attribute__((alias("refuse_pointer")));
#define IGNORE(name) EXPORT void name(void) __attribute__((alias("ignore")));

/* verbs_register_driver_N: what a driver's constructor calls. */
#define REGISTER(n) IGNORE(verbs_register_driver_##n)
#define REGISTER_TEN(n)                                                                                 \
    REGISTER(n##0) REGISTER(n##1) REGISTER(n##2) REGISTER(n##3) REGISTER(n##4) REGISTER(n##5)           \
    REGISTER(n##6) REGISTER(n##7) REGISTER(n##8) REGISTER(n##9)

REGISTER_TEN(1)
REGISTER_TEN(2)
REGISTER_TEN(3)
REGISTER_TEN(4)
REGISTER_TEN(5)
REGISTER_TEN(6)
REGISTER_TEN(7)
REGISTER_TEN(8)
REGISTER_TEN(9)
IGNORE(verbs_register_driver)
IGNORE(ibv_register_driver)
IGNORE(__verbs_log)
IGNORE(verbs_init_cq)
IGNORE(verbs_set_ops)
IGNORE(verbs_uninit_context)
IGNORE(ibv_dmabuf_heap_destroy)
IGNORE(ibv_dmabuf_heap_free)

REFUSE_POINTER(_verbs_init_and_alloc_context)
REFUSE_POINTER(ibv_dmabuf_heap_alloc)
REFUSE_POINTER(ibv_dmabuf_heap_cc_shared_init)
REFUSE_POINTER(ibv_wr_opcode_str)
REFUSE_POINTER(verbs_open_device)

/* A word of data: whether a device that went away is an error. */
EXPORT char verbs_allow_disassociate_destroy;

REFUSE(__ioctl_final_num_attrs)
REFUSE(execute_ioctl)
REFUSE(ibv_cmd_advise_mr)
REFUSE(ibv_cmd_alloc_dm)
REFUSE(ibv_cmd_alloc_dmah)
REFUSE(ibv_cmd_alloc_mw)
REFUSE(ibv_cmd_alloc_pd)
REFUSE(ibv_cmd_attach_mcast)
REFUSE(ibv_cmd_close_xrcd)
REFUSE(ibv_cmd_create_ah)
REFUSE(ibv_cmd_create_comp_cntr)
REFUSE(ibv_cmd_create_counters)
REFUSE(ibv_cmd_create_cq)
REFUSE(ibv_cmd_create_cq_ex)
REFUSE(ibv_cmd_create_cq_ex2)
REFUSE(ibv_cmd_create_flow)
REFUSE(ibv_cmd_create_flow_action_esp)
REFUSE(ibv_cmd_create_qp)
REFUSE(ibv_cmd_create_qp_ex)
REFUSE(ibv_cmd_create_qp_ex2)
REFUSE(ibv_cmd_create_rwq_ind_table)
REFUSE(ibv_cmd_create_srq)
REFUSE(ibv_cmd_create_srq_ex)
REFUSE(ibv_cmd_create_wq)
REFUSE(ibv_cmd_dealloc_mw)
REFUSE(ibv_cmd_dealloc_pd)
REFUSE(ibv_cmd_dereg_mr)
REFUSE(ibv_cmd_destroy_ah)
REFUSE(ibv_cmd_destroy_comp_cntr)
REFUSE(ibv_cmd_destroy_counters)
REFUSE(ibv_cmd_destroy_cq)
REFUSE(ibv_cmd_destroy_flow)
REFUSE(ibv_cmd_destroy_flow_action)
REFUSE(ibv_cmd_destroy_qp)
REFUSE(ibv_cmd_destroy_rwq_ind_table)
REFUSE(ibv_cmd_destroy_srq)
REFUSE(ibv_cmd_destroy_wq)
REFUSE(ibv_cmd_detach_mcast)
REFUSE(ibv_cmd_export_dmabuf_fd)
REFUSE(ibv_cmd_free_dm)
REFUSE(ibv_cmd_free_dmah)
REFUSE(ibv_cmd_get_context)
REFUSE(ibv_cmd_inc_comp_cntr)
REFUSE(ibv_cmd_inc_err_comp_cntr)
REFUSE(ibv_cmd_modify_cq)
REFUSE(ibv_cmd_modify_flow_action_esp)
REFUSE(ibv_cmd_modify_qp)
REFUSE(ibv_cmd_modify_qp_ex)
REFUSE(ibv_cmd_modify_srq)
REFUSE(ibv_cmd_modify_wq)
REFUSE(ibv_cmd_open_qp)
REFUSE(ibv_cmd_open_xrcd)
REFUSE(ibv_cmd_poll_cq)
REFUSE(ibv_cmd_post_recv)
REFUSE(ibv_cmd_post_send)
REFUSE(ibv_cmd_post_srq_recv)
REFUSE(ibv_cmd_qp_attach_comp_cntr)
REFUSE(ibv_cmd_query_comp_cntr_caps)
REFUSE(ibv_cmd_query_context)
REFUSE(ibv_cmd_query_device)
REFUSE(ibv_cmd_query_device_any)
REFUSE(ibv_cmd_query_device_ex)
REFUSE(ibv_cmd_query_mr)
REFUSE(ibv_cmd_query_port)
REFUSE(ibv_cmd_query_port_speed)
REFUSE(ibv_cmd_query_qp)
REFUSE(ibv_cmd_query_srq)
REFUSE(ibv_cmd_read_comp_cntr)
REFUSE(ibv_cmd_read_counters)
REFUSE(ibv_cmd_read_err_comp_cntr)
REFUSE(ibv_cmd_reg_dm_mr)
REFUSE(ibv_cmd_reg_dmabuf_mr)
REFUSE(ibv_cmd_reg_mr)
REFUSE(ibv_cmd_reg_mr_ex)
REFUSE(ibv_cmd_req_notify_cq)
REFUSE(ibv_cmd_rereg_mr)
REFUSE(ibv_cmd_resize_cq)
REFUSE(ibv_cmd_set_comp_cntr)
REFUSE(ibv_cmd_set_err_comp_cntr)
REFUSE(ibv_get_fw_ver)
REFUSE(ibv_read_ibdev_sysfs_file)
