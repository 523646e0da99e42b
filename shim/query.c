/* SPDX-License-Identifier: Apache-2.0 */
/* What the device is: man ibv_query_device_ex, ibv_query_port, ibv_query_gid, ibv_query_pkey. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "objects.h"
#include "session.h"

enum { PORTS = 1, PKEY = 0xffff };

static int ask(struct ibv_context *context, struct sluice_device_reply *reply)
{
    struct sluice_handle_request request = {.handle = to_device(context->device)->number};

    return session_call(SLUICE_OP_QUERY_DEVICE, &request, sizeof(request), reply, sizeof(*reply));
}

EXPORT int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    struct sluice_device_reply device;
    int error = ask(context, &device);

    if (error)
        return error;
    *attr = (struct ibv_device_attr){
        .node_guid = device.node_guid,
        .sys_image_guid = device.sys_image_guid,
        .max_mr_size = device.max_mr_size,
        .page_size_cap = device.page_size_cap,
        .vendor_id = device.vendor_id,
        .vendor_part_id = device.vendor_part_id,
        .hw_ver = device.hw_ver,
        .max_qp = (int)device.max_qp,
        .max_qp_wr = (int)device.max_qp_wr,
        .device_cap_flags = IBV_DEVICE_CURR_QP_STATE_MOD | IBV_DEVICE_SYS_IMAGE_GUID |
                            IBV_DEVICE_RC_RNR_NAK_GEN | IBV_DEVICE_MEM_WINDOW | IBV_DEVICE_MEM_WINDOW_TYPE_2B |
                            IBV_DEVICE_MEM_MGT_EXTENSIONS | IBV_DEVICE_XRC | IBV_DEVICE_UD_AV_PORT_ENFORCE,
        .max_sge = (int)device.max_sge,
        .max_sge_rd = (int)device.max_sge,
        .max_cq = (int)device.max_cq,
        .max_cqe = (int)device.max_cqe,
        .max_mr = (int)device.max_mr,
        .max_mw = (int)device.max_mr,
        .max_pd = (int)device.max_pd,
        .max_qp_rd_atom = (int)device.max_qp_rd_atom,
        .max_qp_init_rd_atom = (int)device.max_qp_rd_atom,
        .max_res_rd_atom = (int)(device.max_qp_rd_atom * device.max_qp),
        .atomic_cap = IBV_ATOMIC_HCA,
        .max_srq = (int)device.max_srq,
        .max_srq_wr = (int)device.max_srq_wr,
        .max_srq_sge = (int)device.max_srq_sge,
        .max_ah = (int)device.max_ah,
        .max_mcast_grp = (int)device.max_mcast_grp,
        .max_mcast_qp_attach = (int)device.max_mcast_qp_attach,
        .max_total_mcast_qp_attach = (int)device.max_total_mcast_qp_attach,
        .max_pkeys = 1,
        .phys_port_cnt = PORTS,
    };
    snprintf(attr->fw_ver, sizeof(attr->fw_ver), "%.63s", device.fw_ver);
    return 0;
}

int shim_query_device_ex(struct ibv_context *context, const struct ibv_query_device_ex_input *input,
                         struct ibv_device_attr_ex *attr, size_t attr_size)
{
    struct ibv_device_attr_ex all = {0};

    if ((input && input->comp_mask) || attr_size < sizeof(attr->orig_attr))
        return EINVAL;
    int error = ibv_query_device(context, &all.orig_attr);

    if (error)
        return error;
    /* Completion timestamps are nanoseconds, all bits of them. */
    all.completion_timestamp_mask = UINT64_MAX;
    all.hca_core_clock = 1000000; /* kHz */
    all.phys_port_cnt_ex = PORTS;
    /* Only as much as the caller's header knows. */
    memset(attr, 0, attr_size);
    memcpy(attr, &all, attr_size < sizeof(all) ? attr_size : sizeof(all));
    return 0;
}

int shim_query_rt_values(struct ibv_context *context, struct ibv_values_ex *values)
{
    (void)context;
    if (values->comp_mask & ~(uint32_t)IBV_VALUES_MASK_RAW_CLOCK)
        return EOPNOTSUPP;
    return clock_gettime(CLOCK_MONOTONIC, &values->raw_clock) ? errno : 0;
}

int shim_query_port(struct ibv_context *context, uint8_t port_num, struct ibv_port_attr *attr, size_t attr_size)
{
    struct sluice_device_reply device;
    struct ibv_port_attr all;

    if (port_num != PORTS)
        return EINVAL;
    int error = ask(context, &device);

    if (error)
        return error;
    all = (struct ibv_port_attr){
        .state = device.port_state,
        .max_mtu = IBV_MTU_4096,
        .active_mtu = device.active_mtu,
        .gid_tbl_len = (int)device.gid_count,
        .port_cap_flags = 1u << 16 /* IBV_PORT_CM_SUP */,
        .max_msg_sz = 1u << 31,
        .pkey_tbl_len = 1,
        .max_vl_num = 1,
        .active_width = (uint8_t)device.active_width,
        .active_speed = (uint8_t)device.active_speed,
        .phys_state = 5, /* LinkUp */
        .link_layer = IBV_LINK_LAYER_ETHERNET,
    };
    memset(attr, 0, attr_size);
    memcpy(attr, &all, attr_size < sizeof(all) ? attr_size : sizeof(all));
    return 0;
}

/* The exported function is from before the structure grew: it may fill only the old part. */
#undef ibv_query_port
EXPORT int ibv_query_port(struct ibv_context *context, uint8_t port_num, struct _compat_ibv_port_attr *attr)
{
    return shim_query_port(context, port_num, (struct ibv_port_attr *)attr,
                           offsetof(struct ibv_port_attr, port_cap_flags2));
}

/* Newer than the headers: the speed of all lanes together, in units of 100 Mb/s. */
int ibv_query_port_speed(struct ibv_context *context, uint32_t port_num, uint64_t *port_speed);

EXPORT int ibv_query_port_speed(struct ibv_context *context, uint32_t port_num, uint64_t *port_speed)
{
    static const uint16_t lane[] = {25, 50, 100, 100, 140, 250, 500, 1000, 2000}; /* by bit of active_speed */
    static const uint8_t lanes[] = {1, 4, 8, 12, 2};                              /* by bit of active_width */
    struct ibv_port_attr port;
    int error = port_num > UINT8_MAX ? EINVAL : shim_query_port(context, (uint8_t)port_num, &port, sizeof(port));

    if (error)
        return error;
    size_t speed = (size_t)__builtin_ctz(port.active_speed | 1u << 8);
    size_t width = (size_t)__builtin_ctz(port.active_width | 1u << 4);

    *port_speed = (uint64_t)lane[speed] * lanes[width];
    return 0;
}

EXPORT int ibv_query_gid(struct ibv_context *context, uint8_t port_num, int index, union ibv_gid *gid)
{
    struct sluice_device_reply device;

    int error = port_num != PORTS || index < 0 ? EINVAL : ask(context, &device);

    if (!error && (uint32_t)index >= device.gid_count)
        error = EINVAL;
    if (error) {
        errno = error;
        return -1;
    }
    memcpy(gid->raw, device.gids[index].raw, sizeof(gid->raw));
    return 0;
}

static void fill_entry(struct ibv_gid_entry *entry, size_t entry_size, const struct sluice_gid *gid, uint32_t index)
{
    struct ibv_gid_entry all = {
        .gid_index = index,
        .port_num = PORTS,
        .gid_type = gid->type,
    };

    memcpy(all.gid.raw, gid->raw, sizeof(all.gid.raw));
    memcpy(entry, &all, entry_size < sizeof(all) ? entry_size : sizeof(all));
}

EXPORT int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port_num, uint32_t gid_index,
                             struct ibv_gid_entry *entry, uint32_t flags, size_t entry_size)
{
    struct sluice_device_reply device;

    if (port_num != PORTS || flags)
        return EINVAL;
    int error = ask(context, &device);

    if (error)
        return error;
    if (gid_index >= device.gid_count)
        return EINVAL;
    fill_entry(entry, entry_size, &device.gids[gid_index], gid_index);
    return 0;
}

EXPORT ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries, size_t max_entries,
                                    uint32_t flags, size_t entry_size)
{
    struct sluice_device_reply device;

    if (flags)
        return -EINVAL;
    int error = ask(context, &device);

    if (error)
        return -error;
    if (device.gid_count > max_entries)
        return -EINVAL;
    for (uint32_t i = 0; i < device.gid_count; i++)
        fill_entry((struct ibv_gid_entry *)((char *)entries + i * entry_size), entry_size, &device.gids[i], i);
    return (ssize_t)device.gid_count;
}

/* Private in rdma-core, but its own ibv_devinfo calls it: 0 = IB or RoCE v1, 1 = RoCE v2. */
EXPORT int ibv_query_gid_type(struct ibv_context *context, uint8_t port_num, unsigned int index, unsigned int *type)
{
    struct ibv_gid_entry entry;
    int error = _ibv_query_gid_ex(context, port_num, index, &entry, 0, sizeof(entry));

    if (error) {
        errno = error;
        return -1;
    }
    *type = entry.gid_type == IBV_GID_TYPE_ROCE_V2 ? 1 : 0;
    return 0;
}

EXPORT int ibv_query_pkey(struct ibv_context *context, uint8_t port_num, int index, __be16 *pkey)
{
    (void)context;
    if (port_num != PORTS || index != 0) {
        errno = EINVAL;
        return -1;
    }
    *pkey = htons(PKEY);
    return 0;
}

EXPORT int ibv_get_pkey_index(struct ibv_context *context, uint8_t port_num, __be16 pkey)
{
    (void)context;
    if (port_num != PORTS || pkey != htons(PKEY)) {
        errno = EINVAL;
        return -1;
    }
    return 0;
}
