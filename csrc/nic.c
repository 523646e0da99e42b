/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "nic.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "mr.h"
#include "net.h"
#include "qp.h"
#include "session.h"
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
    if (port == 0 || port > nic->attr.phys_port_cnt)
        return -ENODEV;
    nic->port = (uint8_t)port;
    nic->channel = nic->call.ibv_create_comp_channel(nic->context);
    if (!nic->channel)
        return -errno;
    if ((error = no_block(nic->channel->fd)) || (error = no_block(nic->context->async_fd)))
        return error;
    nic->qps = sparse(NIC_NUMBERS * sizeof(*nic->qps));
    return nic->qps ? 0 : -ENOMEM;
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
    if (nic->context)
        nic->call.ibv_close_device(nic->context);
    if (nic->qps)
        munmap(nic->qps, NIC_NUMBERS * sizeof(*nic->qps));
    if (nic->library)
        dlclose(nic->library);
    free(nic);
}

int sluice_nic_open(struct sluice_engine *engine, const char *name, uint32_t port)
{
    struct nic *nic = calloc(1, sizeof(*nic));

    if (!nic)
        return -ENOMEM;
    list_init(&nic->cqs);
    list_init(&nic->blocked);
    int error = set_up(nic, name, port);

    if (error) {
        tear_down(nic);
        return error;
    }
    uint32_t *keys = sparse(NIC_NUMBERS * sizeof(*keys));

    worker_enter(engine);
    if (engine->nic || engine->live_count)
        error = -EBUSY;
    else if (!keys)
        error = -ENOMEM;
    else
        error = net_watch(engine, nic->channel->fd);
    if (!error) {
        engine->nic = nic;
        engine->nic_keys = keys;
    }
    worker_leave(engine);
    if (error) {
        if (keys)
            munmap(keys, NIC_NUMBERS * sizeof(*keys));
        tear_down(nic);
    }
    return error;
}

void nic_close(struct sluice_engine *engine)
{
    if (!engine->nic)
        return;
    tear_down(engine->nic);
    munmap(engine->nic_keys, NIC_NUMBERS * sizeof(*engine->nic_keys));
    engine->nic = NULL;
    engine->nic_keys = NULL;
}

/* RoCE v2 over IPv4: the GIDs that are addresses, by which others are found. */
static bool serves(const struct ibv_gid_entry *entry)
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

    return entry->gid_type == IBV_GID_TYPE_ROCE_V2 && memcmp(entry->gid.raw, prefix, sizeof(prefix)) == 0;
}

int sluice_nic_query(struct sluice_engine *engine, struct sluice_nic *out)
{
    struct nic *nic = engine->nic;
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
    for (uint32_t index = 0; index < (uint32_t)port.gid_tbl_len && index < 256; index++) {
        struct ibv_gid_entry entry;

        if (out->gid_count == SLUICE_MAX_GIDS - 1 ||
            nic->call._ibv_query_gid_ex(nic->context, nic->port, index, &entry, 0, sizeof(entry)) || !serves(&entry))
            continue;
        memcpy(out->gids[out->gid_count].raw, entry.gid.raw, 16);
        out->gids[out->gid_count].type = 2; /* SLUICE: RoCE v2 */
        out->indices[out->gid_count++] = (uint8_t)index;
    }
    worker_enter(engine);
    nic->gids = out->gid_count;
    memcpy(nic->gid_index, out->indices, sizeof(nic->gid_index));
    worker_leave(engine);
    return 0;
}

int sluice_nic_async_fd(struct sluice_engine *engine)
{
    return engine->nic ? engine->nic->context->async_fd : -ENODEV;
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

int sluice_nic_next_event(struct sluice_engine *engine, uint32_t *event_type)
{
    struct nic *nic = engine->nic;
    struct ibv_async_event event;
    uint32_t number = 0;
    bool of_qp = false;

    if (!nic || nic->call.ibv_get_async_event(nic->context, &event))
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

/* ---- objects -------------------------------------------------------------- */

int nic_alloc_pd(struct pd *pd)
{
    struct nic *nic = pd->session->engine->nic;

    if (!nic)
        return 0;
    pd->nic = nic->call.ibv_alloc_pd(nic->context);
    return pd->nic ? 0 : -ENOMEM;
}

void nic_dealloc_pd(struct pd *pd)
{
    if (pd->nic)
        pd->session->engine->nic->call.ibv_dealloc_pd(pd->nic);
    pd->nic = NULL;
}

/* Maps the file's part that holds [address, address + length), in whole pages of the file system's. */
static uint8_t *map_file(const struct memory *memory, uint64_t address, uint64_t length, uint8_t **map, size_t *size)
{
    struct stat status;

    if (fstat(memory->view.fd, &status))
        return NULL;
    uint64_t page = status.st_blksize > 4096 ? (uint64_t)status.st_blksize : 4096;
    uint64_t start = address & ~(page - 1), end = (address + length + page - 1) & ~(page - 1);

    *size = end - start;
    *map = mmap(NULL, *size, memory->view.read_only ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                memory->view.fd, (off_t)start);
    return *map == MAP_FAILED ? NULL : *map + (address - start);
}

int nic_reg_mr(struct mr *mr, uint32_t access)
{
    struct sluice_engine *engine = mr->pd->session->engine;
    struct nic *nic = engine->nic;
    uint8_t *map;
    size_t size;

    if (!nic || mr->memory->kind == SLUICE_MEMORY_PROCESS)
        return 0;
    /* Its pages stay with the NIC; the mapping is needed only to name them. */
    uint8_t *place = map_file(mr->memory, mr->iova + mr->offset, mr->length, &map, &size);

    if (!place)
        return -errno;
    errno = 0;
    struct ibv_mr *twin = nic->call.ibv_reg_mr_iova2(mr->pd->nic, place, mr->length, mr->iova,
                                                     access & ~(uint32_t)IBV_ACCESS_ZERO_BASED);
    int error = twin ? 0 : errno ? -errno : -ENOMEM;

    munmap(map, size);
    if (error)
        return error;
    /* One key for both uses, as all devices known have it; else peers could not be told of it. */
    if ((twin->rkey && twin->rkey != twin->lkey) || engine->nic_keys[twin->lkey >> NIC_KEY_TAG]) {
        nic->call.ibv_dereg_mr(twin);
        return -EOPNOTSUPP;
    }
    mr->nic = twin;
    mr->key = twin->lkey;
    engine->nic_keys[mr->key >> NIC_KEY_TAG] = (uint32_t)(mr - engine->mrs);
    return 0;
}

void nic_dereg_mr(struct mr *mr)
{
    struct sluice_engine *engine = mr->pd->session->engine;

    if (!mr->nic)
        return;
    engine->nic_keys[mr->nic->lkey >> NIC_KEY_TAG] = 0;
    engine->nic->call.ibv_dereg_mr(mr->nic);
    mr->nic = NULL;
}

struct nic_cq *nic_take_cq(struct nic *nic, uint32_t completions)
{
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        if (completions <= cq->entries - cq->taken) {
            cq->taken += completions;
            return cq;
        }
    }
    uint32_t entries = completions > NIC_CQ ? completions : NIC_CQ;

    if (entries > (uint32_t)nic->attr.max_cqe)
        entries = (uint32_t)nic->attr.max_cqe;
    if (completions > entries) {
        errno = EINVAL;
        return NULL;
    }
    struct nic_cq *cq = calloc(1, sizeof(*cq));

    if (!cq) {
        errno = ENOMEM;
        return NULL;
    }
    cq->cq = nic->call.ibv_create_cq(nic->context, (int)entries, NULL, nic->channel, 0);
    if (!cq->cq) {
        free(cq);
        return NULL;
    }
    cq->entries = entries;
    cq->taken = completions;
    list_init(&cq->link);
    list_append(&nic->cqs, &cq->link);
    nic->armed = false;
    return cq;
}

void nic_give_cq(struct nic *nic, struct nic_cq *cq, uint32_t completions)
{
    cq->taken -= completions;
    if (cq->taken)
        return;
    list_remove(&cq->link);
    nic->call.ibv_destroy_cq(cq->cq);
    free(cq);
}

bool nic_arm(struct sluice_engine *engine)
{
    struct nic *nic = engine->nic;

    if (list_empty(&nic->cqs) || nic->armed)
        return true;
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next)
        if (ibv_req_notify_cq(list_entry(link, struct nic_cq, link)->cq, 0))
            return false;
    nic->armed = true;
    return nic_serve(engine) == 0;
}
