/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "nic.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "atomic.h"
#include "context.h"
#include "device.h"
#include "net.h"
#include "qp.h"
#include "session.h"
#include "transport/nic.h"
#include "worker.h"

/* ---- the library and the device ------------------------------------------- */

static int load(struct nic *nic)
{
    nic->library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nic->library)
        return -ELIBACC;
#define LOAD(name)                                             \
    *(void **)&nic->call.name = dlsym(nic->library, #name);    \
    if (!nic->call.name)                                       \
        return -ELIBBAD;
    NIC_FUNCTIONS(LOAD)
#undef LOAD
    return 0;
}

static bool is_software(const struct ibv_device *device)
{
    char path[PATH_MAX];

    return realpath(device->ibdev_path, path) && strncmp(path, "/sys/devices/virtual/", 21) == 0;
}

static int open_device(struct nic *nic, const char *name)
{
    struct ibv_device **list = nic->call.ibv_get_device_list(NULL);

    if (!list)
        return -ENODEV;
    int error = -ENODEV;

    for (uint32_t i = 0; list[i]; i++) {
        if (strcmp(nic->call.ibv_get_device_name(list[i]), name) != 0)
            continue;
        nic->context = nic->call.ibv_open_device(list[i]);
        error = nic->context ? 0 : errno ? -errno : -EIO;
        nic->software = is_software(list[i]);
    }
    nic->call.ibv_free_device_list(list);
    return error;
}

static int no_block(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ? -errno : 0;
}

static void *sparse(size_t size)
{
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return place == MAP_FAILED ? NULL : place;
}

static int set_up(struct nic *nic, const char *name, uint32_t port)
{
    int error = load(nic);

    if (error || (error = open_device(nic, name)))
        return error;
    error = nic->call.ibv_query_device(nic->context, &nic->attr);
    if (error)
        return -error;
    nic_learn_pacing(nic);
    if (port == 0 || port > nic->attr.phys_port_cnt)
        return -ENODEV;
    nic->port = (uint8_t)port;
    nic->channel = nic->call.ibv_create_comp_channel(nic->context);
    if (!nic->channel)
        return -errno;
    if ((error = no_block(nic->channel->fd)) || (error = no_block(nic->context->async_fd)))
        return error;
    nic->pd = nic->call.ibv_alloc_pd(nic->context);
    if (!nic->pd)
        return errno ? -errno : -ENOMEM;
    return 0;
}

static void tear_down(struct nic *nic)
{
    while (!list_empty(&nic->cqs)) {
        struct nic_cq *cq = list_entry(list_take(&nic->cqs), struct nic_cq, link);

        nic->call.ibv_destroy_cq(cq->cq);
        free(cq);
    }
    if (nic->channel)
        nic->call.ibv_destroy_comp_channel(nic->channel);
    if (nic->pd)
        nic->call.ibv_dealloc_pd(nic->pd);
    if (nic->context)
        nic->call.ibv_close_device(nic->context);
    if (nic->library)
        dlclose(nic->library);
    free(nic);
}

/* Kept when the NIC goes: what had its keys is still looked for there, and not found. */
static bool take_tables(struct device *device)
{
    struct sluice_engine *engine = device->engine;

    if (!engine->nic_qps)
        engine->nic_qps = sparse(NIC_NUMBERS * sizeof(*engine->nic_qps));
    if (!device->nic_keys)
        device->nic_keys = sparse(NIC_NUMBERS * sizeof(*device->nic_keys));
    return engine->nic_qps && device->nic_keys;
}

void nic_keys_free(struct device *device)
{
    if (device->nic_keys)
        munmap(device->nic_keys, NIC_NUMBERS * sizeof(*device->nic_keys));
}

int sluice_nic_open(struct sluice_engine *engine, uint32_t number, const char *name, uint32_t port)
{
    struct device *device = device_find(engine, number);

    if (!device)
        return -ENODEV;
    struct nic *nic = calloc(1, sizeof(*nic));

    if (!nic)
        return -ENOMEM;
    nic->device = device;
    list_init(&nic->link);
    list_init(&nic->cqs);
    list_init(&nic->blocked);
    list_init(&nic->ending);
    registrar_open(&nic->registrar, engine);
    int error = set_up(nic, name, port);

    if (error) {
        tear_down(nic);
        return error;
    }
    worker_enter(engine);
    if (device->nic)
        error = -EBUSY;
    else if (!take_tables(device))
        error = -ENOMEM;
    else
        error = net_watch(engine, nic->channel->fd);
    if (!error) {
        device->nic = nic;
        list_append(&engine->nics, &nic->link);
        store_relaxed(&engine->page->pins, 1);
    }
    worker_leave(engine);
    if (error)
        tear_down(nic);
    return error;
}

void nic_close(struct device *device)
{
    struct nic *nic = device->nic;

    if (!nic)
        return;
    registrar_close(nic);
    list_remove(&nic->link);
    while (!list_empty(&nic->blocked))
        list_take(&nic->blocked);
    tear_down(nic);
    device->nic = NULL;
    store_relaxed(&device->engine->page->pins, !list_empty(&device->engine->nics));
}

static struct nic *find(struct sluice_engine *engine, uint32_t number)
{
    struct device *device = device_find(engine, number);

    return device ? device->nic : NULL;
}

/*
 * GIDs of RoCE v2 are addresses, by which others are found. Who takes the first that there is means IPv4; and a link-local one
 * leads no further than its link.
 */
enum gid_kind { GID_IPV4, GID_IPV6, GID_LINK_LOCAL, GID_KINDS };

static enum gid_kind kind_of(const struct ibv_gid_entry *entry)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    const uint8_t *raw = entry->gid.raw;

    if (entry->gid_type != IBV_GID_TYPE_ROCE_V2)
        return GID_KINDS;
    if (memcmp(raw, mapped, sizeof(mapped)) == 0)
        return GID_IPV4;
    return raw[0] == 0xfe && raw[1] >> 6 == 2 ? GID_LINK_LOCAL : GID_IPV6;
}

/* Those of a kind, behind those that are there. */
static void list_gids(struct nic *nic, enum gid_kind kind, int table, struct sluice_nic *out)
{
    for (uint32_t index = 0; index < (uint32_t)table && index <= UINT8_MAX; index++) {
        struct ibv_gid_entry entry;

        if (out->gid_count == SLUICE_MAX_GIDS - 1) /* the last is the tenant's own */
            return;
        if (nic->call._ibv_query_gid_ex(nic->context, nic->port, index, &entry, 0, sizeof(entry)) ||
            kind_of(&entry) != kind)
            continue;
        memcpy(out->gids[out->gid_count].raw, entry.gid.raw, 16);
        out->gids[out->gid_count].type = 2; /* SLUICE: RoCE v2 */
        out->interfaces[out->gid_count] = entry.ndev_ifindex;
        out->indices[out->gid_count++] = (uint8_t)index;
    }
}

int sluice_nic_query(struct sluice_engine *engine, uint32_t device, struct sluice_nic *out)
{
    struct nic *nic = find(engine, device);
    struct ibv_port_attr port = {0};

    if (!nic)
        return -ENODEV;
    int error = (nic->call.ibv_query_port)(nic->context, nic->port, (void *)&port);

    if (error)
        return -error;
    *out = (struct sluice_nic){
        .node_guid = nic->attr.node_guid,
        .vendor_id = nic->attr.vendor_id,
        .vendor_part_id = nic->attr.vendor_part_id,
        .hw_ver = nic->attr.hw_ver,
        .max_qp = (uint32_t)nic->attr.max_qp,
        .max_qp_wr = (uint32_t)nic->attr.max_qp_wr,
        .max_sge = (uint32_t)nic->attr.max_sge,
        .max_cqe = (uint32_t)nic->attr.max_cqe,
        .max_mr = (uint32_t)nic->attr.max_mr,
        .max_pd = (uint32_t)nic->attr.max_pd,
        .max_ah = (uint32_t)nic->attr.max_ah,
        .max_srq = (uint32_t)nic->attr.max_srq,
        .max_srq_wr = (uint32_t)nic->attr.max_srq_wr,
        .max_srq_sge = (uint32_t)nic->attr.max_srq_sge,
        .max_qp_rd_atom = (uint32_t)nic->attr.max_qp_rd_atom,
        .max_mr_size = nic->attr.max_mr_size,
        .port_state = port.state,
        .active_mtu = port.active_mtu,
        .active_speed = port.active_speed,
        .active_width = port.active_width,
    };
    memcpy(out->fw_ver, nic->attr.fw_ver, sizeof(out->fw_ver) - 1);
    for (enum gid_kind kind = 0; kind < GID_KINDS; kind++)
        list_gids(nic, kind, port.gid_tbl_len, out);
    worker_enter(engine);
    nic->gids = out->gid_count;
    nic->mtu = 128u << port.active_mtu;
    memcpy(nic->gid_index, out->indices, sizeof(nic->gid_index));
    worker_leave(engine);
    return 0;
}

int sluice_nic_reach(struct sluice_engine *engine, uint32_t device, uint32_t gid_index, const uint8_t *dgid)
{
    struct nic *nic = find(engine, device);
    struct sluice_ah_attr to = {.is_global = 1, .sgid_index = gid_index, .port_num = 1};
    struct ibv_ah_attr attr;

    if (!nic || gid_index >= nic->gids)
        return -EINVAL;
    memcpy(to.dgid, dgid, sizeof(to.dgid));
    nic_address(nic, &to, &attr);
    errno = 0;
    struct ibv_ah *ah = nic->call.ibv_create_ah(nic->pd, &attr);

    if (!ah)
        return errno ? -errno : -EHOSTUNREACH;
    nic->call.ibv_destroy_ah(ah);
    return 0;
}

int sluice_nic_async_fd(struct sluice_engine *engine, uint32_t device)
{
    struct nic *nic = find(engine, device);

    return nic ? nic->context->async_fd : -ENODEV;
}

static void tell_qp(struct sluice_engine *engine, uint32_t number, uint32_t type)
{
    struct qp *qp = qp_lookup(engine, number);

    /* That the last receive is taken the engine says itself, after the last completion. */
    if (!qp || qp->session->broken || type == IBV_EVENT_QP_LAST_WQE_REACHED)
        return;
    if (type == IBV_EVENT_COMM_EST)
        qp_establish(qp);
    else if (type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_REQ_ERR || type == IBV_EVENT_QP_ACCESS_ERR)
        qp_fatal(qp, type);
    else
        qp_async_event(qp, type);
}

/* The oldest that isn't of another port. False: there is none. */
static bool take_event(struct nic *nic, struct ibv_async_event *event)
{
    while (nic->call.ibv_get_async_event(nic->context, event) == 0) {
        switch (event->event_type) {
        case IBV_EVENT_PORT_ACTIVE:
        case IBV_EVENT_PORT_ERR:
        case IBV_EVENT_LID_CHANGE:
        case IBV_EVENT_PKEY_CHANGE:
        case IBV_EVENT_SM_CHANGE:
        case IBV_EVENT_CLIENT_REREGISTER:
        case IBV_EVENT_GID_CHANGE:
            if (event->element.port_num == nic->port)
                return true;
            nic->call.ibv_ack_async_event(event);
            break;
        default:
            return true;
        }
    }
    return false;
}

int sluice_nic_next_event(struct sluice_engine *engine, uint32_t device, uint32_t *event_type)
{
    struct nic *nic = find(engine, device);
    struct ibv_async_event event;
    uint32_t number = 0;
    bool of_qp = false;

    if (!nic || !take_event(nic, &event))
        return 0;
    switch (event.event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
        of_qp = true;
        number = event.element.qp->qp_num;
        break;
    default:
        break;
    }
    *event_type = event.event_type;
    /* Before the engine is entered: who destroys the QP waits for this with the engine in hand. */
    nic->call.ibv_ack_async_event(&event);
    if (of_qp) {
        worker_enter(engine);
        tell_qp(engine, number, *event_type);
        worker_leave(engine);
    }
    return 1;
}

/* ---- protection domains -------------------------------------------------------------- */

int nic_alloc_pd(struct pd *pd)
{
    struct nic *nic = nic_of_pd(pd);

    if (!nic)
        return 0;
    pd->nic_keys = nic->device->nic_keys;
    pd->nic_users = malloc(sizeof(*pd->nic_users));
    if (!pd->nic_users)
        return -ENOMEM;
    *pd->nic_users = 1;
    pd->nic = nic->call.ibv_alloc_pd(nic->context);
    if (pd->nic)
        return 0;
    free(pd->nic_users);
    return -ENOMEM;
}

void nic_leave_pd(struct nic *nic, struct ibv_pd *twin, uint32_t *users)
{
    if (--*users)
        return;
    nic->call.ibv_dealloc_pd(twin);
    free(users);
}

void nic_dealloc_pd(struct pd *pd)
{
    if (pd->nic)
        nic_leave_pd(nic_of_pd(pd), pd->nic, pd->nic_users);
    pd->nic = NULL;
}
