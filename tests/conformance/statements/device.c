/* SPDX-License-Identifier: Apache-2.0 */
/* What a device says of itself. */
#include <endian.h>

#include "suite.h"

TEST(limits_make_sense, SOLO, "ibv_query_device gives limits that allow to work", "man ibv_query_device")
{
    const struct ibv_device_attr *attr = &e->device;

    CHECK(attr->max_qp > 0 && attr->max_qp_wr > 0 && attr->max_sge > 0 && attr->max_cq > 0 && attr->max_cqe > 0 &&
          attr->max_mr > 0 && attr->max_pd > 0 && attr->max_mr_size > 0);
    CHECK(attr->phys_port_cnt >= 1);
    CHECK(attr->page_size_cap & 4096);
    CHECK(attr->max_qp_rd_atom >= 1 && attr->max_qp_init_rd_atom >= 1);
    CHECK(attr->max_res_rd_atom >= attr->max_qp_rd_atom);
    CHECK(memchr(attr->fw_ver, 0, sizeof(attr->fw_ver)));
    CHECK(attr->max_pkeys >= 1);
}

TEST(guid, SOLO, "ibv_get_device_guid gives the node_guid of ibv_query_device", "man ibv_get_device_guid")
{
    CHECK(ibv_get_device_guid(e->context->device) == e->device.node_guid);
    CHECK(e->device.node_guid != 0);
}

TEST(names, SOLO, "a device is an InfiniBand-type adapter with a name", "man ibv_get_device_list; struct ibv_device")
{
    const struct ibv_device *device = e->context->device;

    CHECK(device->node_type == IBV_NODE_CA && device->transport_type == IBV_TRANSPORT_IB);
    CHECK(ibv_get_device_name(e->context->device)[0]);
    CHECK(e->context->num_comp_vectors >= 1 && e->context->async_fd >= 0);
}

TEST(extended_query_agrees, SOLO, "ibv_query_device_ex gives what ibv_query_device gives", "man ibv_query_device_ex")
{
    struct ibv_device_attr_ex attr;

    memset(&attr, 0xff, sizeof(attr));
    DO(ibv_query_device_ex(e->context, NULL, &attr));
    EQUAL(attr.orig_attr.max_qp, e->device.max_qp);
    EQUAL(attr.orig_attr.max_sge, e->device.max_sge);
    EQUAL(attr.orig_attr.max_cqe, e->device.max_cqe);
    EQUAL(attr.orig_attr.device_cap_flags, e->device.device_cap_flags);
    CHECK(attr.orig_attr.node_guid == e->device.node_guid);
}

TEST(port, SOLO, "the port is active, with an MTU up to its maximum and a speed and width", "man ibv_query_port")
{
    const struct ibv_port_attr *port = &e->port;

    EQUAL(port->state, IBV_PORT_ACTIVE);
    CHECK(port->active_mtu >= IBV_MTU_256 && port->active_mtu <= port->max_mtu && port->max_mtu <= IBV_MTU_4096);
    EQUAL(port->link_layer, IBV_LINK_LAYER_ETHERNET);
    CHECK(port->gid_tbl_len >= 1 && port->pkey_tbl_len >= 1);
    CHECK(port->max_msg_sz >= 1 << 20);
    CHECK(port->active_speed && port->active_width);
}

TEST(port_out_of_range, SOLO, "a port that there isn't is refused: EINVAL", "man ibv_query_port")
{
    struct ibv_port_attr attr;

    REFUSED(ibv_query_port(e->context, 0, &attr), EINVAL);
    REFUSED(ibv_query_port(e->context, (uint8_t)(e->device.phys_port_cnt + 1), &attr), EINVAL);
}

TEST(gids, SOLO, "every GID in use can be queried with its type; its interface is named", "man ibv_query_gid, ibv_query_gid_ex, ibv_query_gid_table")
{
    int used = 0;
    struct ibv_gid_entry table[64];

    for (int i = 0; i < e->port.gid_tbl_len && i < 256; i++) {
        struct ibv_gid_entry entry;
        union ibv_gid gid;

        if (ibv_query_gid_ex(e->context, 1, (uint32_t)i, &entry, 0)) {
            CHECK(errno == ENODATA);
            continue;
        }
        used++;
        DO(ibv_query_gid(e->context, 1, i, &gid));
        CHECK(memcmp(&gid, &entry.gid, sizeof(gid)) == 0);
        EQUAL(entry.gid_index, i);
        EQUAL(entry.port_num, 1);
        CHECK(entry.gid_type <= IBV_GID_TYPE_ROCE_V2);
    }
    CHECK(used > 0);
    ssize_t count = ibv_query_gid_table(e->context, table, 64, 0);

    EQUAL(count, used);
}

TEST(gid_out_of_range, SOLO, "a GID index beyond the table is refused", "man ibv_query_gid: -1")
{
    union ibv_gid gid;
    struct ibv_gid_entry entry;

    EQUAL(ibv_query_gid(e->context, 1, e->port.gid_tbl_len, &gid), -1);
    EQUAL(ibv_query_gid(e->context, 1, -1, &gid), -1);
    EQUAL(ibv_query_gid(e->context, 7, 0, &gid), -1);
    CHECK(ibv_query_gid_ex(e->context, 1, (uint32_t)e->port.gid_tbl_len, &entry, 0) != 0);
}

TEST(vendor, SOLO, "a device says whose it is, were it nobody's", "rdma-core: tests/test_device.py")
{
    CHECK(e->device.vendor_id != 0);
}

TEST(pkeys, SOLO, "the P_Key table has the default key, whose index can be found", "man ibv_query_pkey, ibv_get_pkey_index; IBTA 10.9.1.2")
{
    uint16_t pkey;

    DO(ibv_query_pkey(e->context, 1, 0, &pkey));
    EQUAL(pkey, 0xffff);
    EQUAL(ibv_get_pkey_index(e->context, 1, pkey), 0);
    EQUAL(ibv_query_pkey(e->context, 1, e->port.pkey_tbl_len, &pkey), -1);
    EQUAL(ibv_query_pkey(e->context, 9, 0, &pkey), -1);
}

TEST(real_time, SOLO, "ibv_query_rt_values_ex gives the device's clock, or says that it has none", "man ibv_query_rt_values_ex")
{
    struct ibv_values_ex values = {.comp_mask = IBV_VALUES_MASK_RAW_CLOCK};
    int error = ibv_query_rt_values_ex(e->context, &values);

    if (lacking(error))
        SKIP("ibv_query_rt_values_ex: %s", strerror(error));
    EQUAL(error, 0);
    CHECK(values.comp_mask & IBV_VALUES_MASK_RAW_CLOCK);
}
