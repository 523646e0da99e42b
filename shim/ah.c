/* SPDX-License-Identifier: Apache-2.0 */
/* Address handles: man ibv_create_ah, ibv_init_ah_from_wc, ibv_create_ah_from_wc. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <stdlib.h>
#include <string.h>

#include "objects.h"
#include "session.h"

void ah_attr_to_abi(struct sluice_ah_attr *to, const struct ibv_ah_attr *from)
{
    *to = (struct sluice_ah_attr){
        .flow_label = from->grh.flow_label,
        .sgid_index = from->grh.sgid_index,
        .hop_limit = from->grh.hop_limit,
        .traffic_class = from->grh.traffic_class,
        .dlid = from->dlid,
        .sl = from->sl,
        .src_path_bits = from->src_path_bits,
        .static_rate = from->static_rate,
        .is_global = from->is_global,
        .port_num = from->port_num,
    };
    memcpy(to->dgid, from->grh.dgid.raw, sizeof(to->dgid));
}

void ah_attr_from_abi(struct ibv_ah_attr *to, const struct sluice_ah_attr *from)
{
    *to = (struct ibv_ah_attr){
        .grh = {
            .flow_label = from->flow_label,
            .sgid_index = (uint8_t)from->sgid_index,
            .hop_limit = (uint8_t)from->hop_limit,
            .traffic_class = (uint8_t)from->traffic_class,
        },
        .dlid = (uint16_t)from->dlid,
        .sl = (uint8_t)from->sl,
        .src_path_bits = (uint8_t)from->src_path_bits,
        .static_rate = (uint8_t)from->static_rate,
        .is_global = (uint8_t)from->is_global,
        .port_num = (uint8_t)from->port_num,
    };
    memcpy(to->grh.dgid.raw, from->dgid, sizeof(from->dgid));
}

EXPORT struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
    struct sluice_create_ah_request request = {.pd = ((struct shim_pd *)pd)->handle};
    struct sluice_handle_reply reply;
    struct ibv_ah *ah = calloc(1, sizeof(*ah));

    if (!ah)
        return NULL;
    ah_attr_to_abi(&request.attr, attr);
    int error = session_call(SLUICE_OP_CREATE_AH, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        free(ah);
        errno = error;
        return NULL;
    }
    *ah = (struct ibv_ah){.context = pd->context, .pd = pd, .handle = reply.handle};
    return ah;
}

EXPORT int ibv_destroy_ah(struct ibv_ah *ah)
{
    int error = session_call_handle(SLUICE_OP_DESTROY_AH, ah->handle, NULL);

    if (!error)
        free(ah);
    return error;
}

/* ---- the sender of a received message ---------------------------------- */

/* The header in the GRH's last 20 bytes, where it is one of IPv4 (RoCE v2). */
static bool has_ipv4(const struct ibv_grh *grh, struct iphdr *header)
{
    uint16_t words[10];
    uint32_t sum = 0;

    memcpy(header, (const uint8_t *)grh + sizeof(*grh) - sizeof(*header), sizeof(*header));
    if (ntohl(grh->version_tclass_flow) >> 28 != 6)
        return header->version == 4;
    /* The bytes before an IPv4 header are undefined: it is one where its checksum fits. */
    memcpy(words, header, sizeof(words));
    for (int i = 0; i < 10; i++)
        sum += words[i];
    sum = (sum & 0xffff) + (sum >> 16);
    return header->ihl == 5 && (uint16_t)(sum + (sum >> 16)) == 0xffff;
}

static int find_gid(struct ibv_context *context, uint8_t port_num, const union ibv_gid *gid)
{
    union ibv_gid own;

    for (int index = 0; ibv_query_gid(context, port_num, index, &own) == 0; index++)
        if (memcmp(own.raw, gid->raw, sizeof(own.raw)) == 0)
            return index;
    return -1;
}

static void map_ipv4(union ibv_gid *gid, uint32_t address)
{
    memset(gid->raw, 0, sizeof(gid->raw));
    gid->raw[10] = gid->raw[11] = 0xff;
    memcpy(gid->raw + 12, &address, sizeof(address));
}

EXPORT int ibv_init_ah_from_wc(struct ibv_context *context, uint8_t port_num, struct ibv_wc *wc, struct ibv_grh *grh,
                               struct ibv_ah_attr *attr)
{
    struct iphdr header;
    union ibv_gid own;
    int index = 0;

    memset(attr, 0, sizeof(*attr));
    attr->dlid = wc->slid;
    attr->sl = wc->sl;
    attr->src_path_bits = wc->dlid_path_bits;
    attr->port_num = port_num;
    if (!(wc->wc_flags & IBV_WC_GRH))
        return 0;
    attr->is_global = 1;
    if (has_ipv4(grh, &header)) {
        map_ipv4(&own, header.daddr);
        map_ipv4(&attr->grh.dgid, header.saddr);
        attr->grh.hop_limit = header.ttl;
        attr->grh.traffic_class = header.tos;
        /* What came to a group is answered from the first GID. */
        if (!IN_MULTICAST(ntohl(header.daddr)))
            index = find_gid(context, port_num, &own);
    } else if (ntohl(grh->version_tclass_flow) >> 28 == 6) {
        uint32_t words = ntohl(grh->version_tclass_flow);

        attr->grh.dgid = grh->sgid;
        attr->grh.hop_limit = grh->hop_limit;
        attr->grh.traffic_class = (uint8_t)(words >> 20);
        attr->grh.flow_label = words & 0xfffff;
        if (grh->dgid.raw[0] != 0xff)
            index = find_gid(context, port_num, &grh->dgid);
    } else {
        errno = EPROTONOSUPPORT;
        return -1;
    }
    if (index < 0) {
        errno = EINVAL;
        return -1;
    }
    attr->grh.sgid_index = (uint8_t)index;
    return 0;
}

EXPORT struct ibv_ah *ibv_create_ah_from_wc(struct ibv_pd *pd, struct ibv_wc *wc, struct ibv_grh *grh,
                                            uint8_t port_num)
{
    struct ibv_ah_attr attr;

    return ibv_init_ah_from_wc(pd->context, port_num, wc, grh, &attr) ? NULL : ibv_create_ah(pd, &attr);
}

/*
 * Where a frame to this address would go. There are no frames: addresses on the link are made of those of the network,
 * as the device's GUID is (router/sluice/device/virtual.py). vid: no VLAN. 0 or a negative errno.
 */
EXPORT int ibv_resolve_eth_l2_from_gid(struct ibv_context *context, struct ibv_ah_attr *attr, uint8_t mac[6],
                                       uint16_t *vid)
{
    const uint8_t *gid = attr->grh.dgid.raw;
    const uint32_t *words = (const uint32_t *)(const void *)attr->grh.dgid.raw;
    bool mapped = !words[0] && !words[1] && words[2] == htonl(0xffff);
    union ibv_gid own;
    int error = ibv_query_gid(context, attr->port_num, attr->grh.sgid_index, &own);

    if (error)
        return error;
    if (!words[0] && !words[1] && !words[2] && !words[3])
        return -EINVAL;
    memcpy(mac + 2, gid + 12, 4);
    if (mapped && IN_MULTICAST(ntohl(words[3])))
        memcpy(mac, (const uint8_t[]){0x01, 0x00, 0x5e, gid[13] & 0x7f}, 4); /* RFC 1112, 6.4 */
    else if (gid[0] == 0xff)
        memcpy(mac, (const uint8_t[]){0x33, 0x33}, 2); /* RFC 2464, 7 */
    else
        memcpy(mac, (const uint8_t[]){0x02, 0x53}, 2);
    if (vid)
        *vid = 0xffff;
    return 0;
}
