/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "account.h"
#include "ah.h"
#include "clock.h"
#include "context.h"
#include "copy.h"
#include "cq.h"
#include "device.h"
#include "memory.h"
#include "mr.h"
#include "neighbours.h"
#include "net.h"
#include "multicast.h"
#include "nic.h"
#include "node.h"
#include "qp.h"
#include "reach.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"
#include "transport/nic.h"
#include "transport/tcp.h"
#include "transport/trunk.h"
#include "transport/transport.h"
#include "worker.h"
#include "xrc.h"

enum { PAGE = 4096 };

#define COUNTERS_MAGIC 0x0100454349554c53ull /* "SLUICE\0\1" */
#define TENANTS_OFFSET ((uint64_t)PAGE)
#define GROUPS_OFFSET (TENANTS_OFFSET + SLUICE_MAX_TENANTS * sizeof(struct sluice_tenant_counters))
#define QPS_OFFSET (GROUPS_OFFSET + SLUICE_MAX_GROUPS * sizeof(struct sluice_group_counters))
#define COUNTERS_SIZE (QPS_OFFSET + SLUICE_MAX_QPS * sizeof(struct sluice_qp_counters))

/* Sparse: a table of everything there may be costs only what is used of it. */
static void *sparse(size_t size)
{
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return place == MAP_FAILED ? NULL : place;
}

static int open_counters(struct sluice_engine *engine, const char *path)
{
    int fd = path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)
                  : memfd_create("sluice-counters", MFD_CLOEXEC);

    if (fd < 0)
        return -errno;
    void *place = MAP_FAILED;

    if (ftruncate(fd, (off_t)COUNTERS_SIZE) == 0)
        place = mmap(NULL, COUNTERS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = place == MAP_FAILED ? -errno : 0;

    close(fd);
    if (error)
        return error;
    engine->counters = place;
    engine->header = place;
    *engine->header = (struct sluice_counters_header){
        .magic = COUNTERS_MAGIC,
        .tenants_offset = TENANTS_OFFSET,
        .tenant_stride = sizeof(struct sluice_tenant_counters),
        .tenants = SLUICE_MAX_TENANTS,
        .groups_offset = GROUPS_OFFSET,
        .group_stride = sizeof(struct sluice_group_counters),
        .groups = SLUICE_MAX_GROUPS,
        .qps_offset = QPS_OFFSET,
        .qp_stride = sizeof(struct sluice_qp_counters),
    };
    return 0;
}

/*
 * Tenants read this page to learn whether the engine sleeps, and must not be able
 * to write it: they could make it deaf for the others. Our own mapping is made
 * first; the seal then refuses every later writable one, whoever opens the file
 * again through /proc.
 */
static int open_page(struct sluice_engine *engine)
{
    engine->page_fd = memfd_create("sluice-engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (engine->page_fd < 0 || ftruncate(engine->page_fd, PAGE))
        return -errno;
    void *place = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, engine->page_fd, 0);

    if (place == MAP_FAILED)
        return -errno;
    engine->page = place;
    engine->page->abi_version = SLUICE_ABI_VERSION;
    if (fcntl(engine->page_fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -errno;
    return 0;
}

int sluice_engine_open(const char *counters_path, struct sluice_engine **out)
{
    struct sluice_engine *engine = calloc(1, sizeof(*engine));
    int error = -ENOMEM;

    if (!engine)
        return -ENOMEM;
    engine->page_fd = engine->events.fd = -1;
    engine->now = clock_now();
    list_init(&engine->watched);
    list_init(&engine->notify);
    engine->tenants = sparse(SLUICE_MAX_TENANTS * sizeof(*engine->tenants));
    engine->tenant_groups = sparse(SLUICE_MAX_GROUPS * sizeof(*engine->tenant_groups));
    engine->sessions = sparse(SLUICE_MAX_SESSIONS * sizeof(*engine->sessions));
    engine->live = sparse(SLUICE_MAX_SESSIONS * sizeof(*engine->live));
    engine->qps = sparse(SLUICE_MAX_QPS * sizeof(*engine->qps));
    engine->qp_generations = sparse(SLUICE_MAX_QPS);
    engine->qp_free = sparse(SLUICE_MAX_QPS * sizeof(*engine->qp_free));
    engine->srqs = sparse((SLUICE_MAX_SRQN + 1) * sizeof(*engine->srqs));
    engine->groups = sparse(GROUP_BUCKETS * sizeof(*engine->groups));
    engine->trunks = sparse(SLUICE_MAX_NODES * sizeof(*engine->trunks));
    engine->mrs = sparse(MR_MAX * sizeof(*engine->mrs));
    engine->events.ring = sparse(ENGINE_EVENTS * sizeof(*engine->events.ring));
    if (!engine->tenants || !engine->sessions || !engine->live || !engine->qps || !engine->qp_generations ||
        !engine->qp_free || !engine->srqs || !engine->groups || !engine->tenant_groups || !engine->trunks || !engine->mrs || !engine->events.ring)
        goto fail;
    for (uint32_t slot = 0; slot < SLUICE_MAX_QPS; slot++)
        engine->qp_free[slot] = slot;
    for (uint32_t i = 0; i < GROUP_BUCKETS; i++)
        list_init(&engine->groups[i]);
    engine->qp_free_count = SLUICE_MAX_QPS;
    engine->mr_used = 1; /* entry 0 ends the list of free ones, and key 0 is nobody's */
    if (getrandom(&engine->random, sizeof(engine->random), 0) != sizeof(engine->random)) {
        error = -errno;
        goto fail;
    }
    engine->random |= 1;
    engine->events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->events.fd < 0) {
        error = -errno;
        goto fail;
    }
    copy_init();
    if ((error = device_add(engine)) || (error = windows_open()) || (error = net_open(engine)) ||
        (error = open_counters(engine, counters_path)) || (error = open_page(engine)) || (error = port_open(engine)) ||
        (error = worker_start(engine)))
        goto fail;
    *out = engine;
    return 0;

fail:
    sluice_engine_close(engine);
    return error;
}

uint64_t engine_random(struct sluice_engine *engine)
{
    /* xorshift64, Marsaglia 2003; seeded from getrandom */
    uint64_t x = engine->random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return engine->random = x;
}

static void unmap(void *place, size_t size)
{
    if (place)
        munmap(place, size);
}

void sluice_engine_close(struct sluice_engine *engine)
{
    worker_stop(engine);
    while (engine->live_count)
        session_free(engine->live[0]);
    /* Further devices before the first. */
    for (uint32_t i = 0; engine->tenants && i < SLUICE_MAX_TENANTS; i++)
        if (engine->tenants[i] && engine->tenants[i]->first != engine->tenants[i])
            tenant_free(engine->tenants[i]);
    for (uint32_t i = 0; engine->tenants && i < SLUICE_MAX_TENANTS; i++)
        if (engine->tenants[i])
            tenant_free(engine->tenants[i]);
    for (uint32_t i = 0; engine->tenant_groups && i < SLUICE_MAX_GROUPS; i++)
        if (engine->tenant_groups[i])
            tenant_group_free(engine->tenant_groups[i]);
    while (engine->device_count)
        device_free(engine->devices[--engine->device_count]);
    nic_close(engine);
    port_close(engine);
    trunks_free(engine);
    net_close(engine);
    timers_free(&engine->timers);
    unmap(engine->tenants, SLUICE_MAX_TENANTS * sizeof(*engine->tenants));
    unmap(engine->tenant_groups, SLUICE_MAX_GROUPS * sizeof(*engine->tenant_groups));
    unmap(engine->sessions, SLUICE_MAX_SESSIONS * sizeof(*engine->sessions));
    unmap(engine->live, SLUICE_MAX_SESSIONS * sizeof(*engine->live));
    unmap(engine->qps, SLUICE_MAX_QPS * sizeof(*engine->qps));
    unmap(engine->qp_generations, SLUICE_MAX_QPS);
    unmap(engine->qp_free, SLUICE_MAX_QPS * sizeof(*engine->qp_free));
    unmap(engine->srqs, (SLUICE_MAX_SRQN + 1) * sizeof(*engine->srqs));
    unmap(engine->groups, GROUP_BUCKETS * sizeof(*engine->groups));
    unmap(engine->nic_keys, NIC_NUMBERS * sizeof(*engine->nic_keys));
    unmap(engine->trunks, SLUICE_MAX_NODES * sizeof(*engine->trunks));
    unmap(engine->mrs, MR_MAX * sizeof(*engine->mrs));
    unmap(engine->events.ring, ENGINE_EVENTS * sizeof(*engine->events.ring));
    unmap(engine->counters, COUNTERS_SIZE);
    unmap(engine->page, PAGE);
    if (engine->page_fd >= 0)
        close(engine->page_fd);
    if (engine->events.fd >= 0)
        close(engine->events.fd);
    free(engine);
}

/* ---- events ------------------------------------------------------------ */

int sluice_engine_event_fd(struct sluice_engine *engine)
{
    return engine->events.fd;
}

int sluice_engine_next_event(struct sluice_engine *engine, struct sluice_engine_event *event)
{
    int found = 0;

    worker_enter(engine);
    if (engine->events.count) {
        *event = engine->events.ring[engine->events.head];
        engine->events.head = (engine->events.head + 1) % ENGINE_EVENTS;
        engine->events.count--;
        found = 1;
        if (event->kind == SLUICE_EVENT_AH_UNRESOLVED && engine->sessions[event->session])
            engine->sessions[event->session]->asking = false;
    } else {
        eventfd_t ignored;

        /* Emptied while nobody can add one. */
        if (eventfd_read(engine->events.fd, &ignored))
            found = 0;
    }
    worker_leave(engine);
    return found;
}

/* ---- tenants ----------------------------------------------------------- */

static struct tenant *find_tenant(struct sluice_engine *engine, uint32_t number)
{
    return number < SLUICE_MAX_TENANTS ? engine->tenants[number] : NULL;
}

static struct device *find_device(struct sluice_engine *engine, uint32_t number)
{
    return number < engine->device_count ? engine->devices[number] : NULL;
}

int sluice_tenant_add(struct sluice_engine *engine, uint32_t number, int32_t of, const struct sluice_shape *shape)
{
    worker_enter(engine);
    struct device *device = find_device(engine, number);
    struct tenant *first = of < 0 ? NULL : find_tenant(engine, (uint32_t)of);
    int result = -EINVAL;

    if (!device)
        result = -ENODEV;
    else if (of < 0 || (first && first->first == first))
        result = tenant_add(device, first, shape);
    worker_leave(engine);
    return result;
}

int sluice_tenant_address(struct sluice_engine *engine, uint32_t number, const uint8_t *gid)
{
    worker_enter(engine);
    struct tenant *tenant = find_tenant(engine, number);

    if (tenant)
        memcpy(tenant->gid, gid, sizeof(tenant->gid));
    worker_leave(engine);
    return tenant ? 0 : -EINVAL;
}

int sluice_neighbour_admit(struct sluice_engine *engine, uint32_t number, uint32_t peer, int admitted)
{
    worker_enter(engine);
    struct tenant *tenant = find_tenant(engine, number);
    int result = tenant && peer < SLUICE_MAX_TENANTS ? neighbour_admit(tenant, peer, admitted) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_tenant_remove(struct sluice_engine *engine, uint32_t number)
{
    int result = -EINVAL;

    worker_enter(engine);
    struct tenant *tenant = find_tenant(engine, number);

    if (tenant) {
        result = tenant->session_count || tenant->others || tenant->contexts ? -EBUSY : 0;
        if (result == 0)
            tenant_free(tenant);
    }
    worker_leave(engine);
    return result;
}

int sluice_tenant_shape(struct sluice_engine *engine, uint32_t number, const struct sluice_shape *shape)
{
    worker_enter(engine);
    struct tenant *tenant = find_tenant(engine, number);
    int result = tenant ? tenant_shape(tenant, shape) : -EINVAL;

    worker_leave(engine);
    return result;
}

int64_t sluice_tenant_verb(struct sluice_engine *engine, uint32_t number)
{
    int64_t wait = 0;

    worker_enter(engine);
    struct tenant *tenant = find_tenant(engine, number);

    if (tenant)
        wait = tenant_take_verb(tenant);
    worker_leave(engine);
    return tenant ? wait : -EINVAL;
}

/* ---- groups and devices ------------------------------------------------ */

int sluice_group_add(struct sluice_engine *engine, uint32_t number, const struct sluice_share *share)
{
    worker_enter(engine);
    struct device *device = find_device(engine, number);
    int result = device ? tenant_group_add(device, share) : -ENODEV;

    worker_leave(engine);
    return result;
}

static struct tenant_group *find_group(struct sluice_engine *engine, uint32_t number)
{
    return number < SLUICE_MAX_GROUPS ? engine->tenant_groups[number] : NULL;
}

int sluice_group_remove(struct sluice_engine *engine, uint32_t number)
{
    worker_enter(engine);
    struct tenant_group *group = find_group(engine, number);
    int result = !group ? -EINVAL : group->tenants ? -EBUSY : 0;

    if (result == 0)
        tenant_group_free(group);
    worker_leave(engine);
    return result;
}

int sluice_group_shape(struct sluice_engine *engine, uint32_t number, const struct sluice_share *share)
{
    worker_enter(engine);
    struct tenant_group *group = find_group(engine, number);

    if (group)
        tenant_group_shape(group, share);
    worker_leave(engine);
    return group ? 0 : -EINVAL;
}

int sluice_device_add(struct sluice_engine *engine)
{
    worker_enter(engine);
    int result = device_add(engine);

    worker_leave(engine);
    return result;
}

int sluice_nic_assign(struct sluice_engine *engine, uint32_t number)
{
    worker_enter(engine);
    struct device *device = find_device(engine, number);

    for (uint32_t i = 0; device && i < engine->device_count; i++)
        engine->devices[i]->has_nic = engine->devices[i] == device;
    worker_leave(engine);
    return device ? 0 : -ENODEV;
}

int sluice_device_shape(struct sluice_engine *engine, uint32_t number, uint64_t capacity_bps, uint32_t wire)
{
    if (capacity_bps == 0)
        return -EINVAL;
    worker_enter(engine);
    struct device *device = find_device(engine, number);

    if (device)
        device_set(device, capacity_bps, wire != 0);
    worker_leave(engine);
    return device ? 0 : -ENODEV;
}

uint64_t sluice_measure_copy(void)
{
    enum { SIZE = 64 << 20, CHUNK = 1 << 16, SLICES = 10, SLICE_NS = 5000000 };
    uint8_t *place = sparse(2 * (size_t)SIZE);
    uint64_t offset = 0, best = 0;

    if (!place)
        return 0;
    copy_init();
    memset(place, 1, 2 * (size_t)SIZE);
    /* The best of some slices: others that run on the core now won't always. */
    for (uint32_t slice = 0; slice < SLICES; slice++) {
        uint64_t bytes = 0, start = clock_now(), now = start;

        while (now - start < SLICE_NS) {
            copy_ordered(place + SIZE + offset, place + offset, CHUNK);
            bytes += CHUNK;
            offset = (offset + CHUNK) % SIZE;
            now = clock_now();
        }
        uint64_t rate = (uint64_t)((unsigned __int128)bytes * 8 * NS_PER_SECOND / (now - start));

        if (rate > best)
            best = rate;
    }
    unmap(place, 2 * (size_t)SIZE);
    return best;
}

/* ---- sessions and their objects ---------------------------------------- */

int sluice_session_open(struct sluice_engine *engine, uint32_t number, struct sluice_session_files *files)
{
    worker_enter(engine);
    struct tenant *tenant = find_tenant(engine, number);
    int result = tenant && tenant->first == tenant ? session_open(tenant, files) : -EINVAL;

    worker_leave(engine);
    return result;
}

/* Enters, and leaves again where there is no such session. */
static struct session *enter_session(struct sluice_engine *engine, uint32_t number)
{
    worker_enter(engine);
    struct session *session = number < SLUICE_MAX_SESSIONS ? engine->sessions[number] : NULL;

    if (!session)
        worker_leave(engine);
    return session;
}

/* The same for one of its QPs. */
static struct qp *enter_qp(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);
    struct qp *qp = session && handle < SLUICE_SESSION_QPS ? session->qps[handle] : NULL;

    if (session && !qp)
        worker_leave(engine);
    return qp;
}

int sluice_session_close(struct sluice_engine *engine, uint32_t number)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    session_free(session);
    worker_leave(engine);
    return 0;
}

int sluice_session_async_event(struct sluice_engine *engine, uint32_t number, uint32_t device, uint32_t event_type,
                               uint32_t element)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    for (struct list *link = session->contexts.next; link != &session->contexts; link = link->next) {
        const struct context *context = list_entry(link, struct context, link);

        if (context->tenant->account.device->number == device)
            context_event(context, event_type, element);
    }
    worker_leave_for(engine, session->tenant);
    return 0;
}

int sluice_context_open(struct sluice_engine *engine, uint32_t number, uint32_t device, int *read_fd)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = context_open(session, device, read_fd);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_context_close(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = context_close(session, handle);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_pd_alloc(struct sluice_engine *engine, uint32_t number, uint32_t context)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = pd_alloc(session, context);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_pd_dealloc(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = pd_dealloc(session, handle);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_channel_create(struct sluice_engine *engine, uint32_t number, int *read_fd)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = channel_create(session, read_fd);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_channel_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = channel_destroy(session, handle);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_cq_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_cq_request *request,
                     struct sluice_create_cq_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = cq_create(session, request, reply);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_cq_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct cq *cq = cq_find(session, handle);
    int result = !cq ? -EINVAL : cq->users ? -EBUSY : 0;

    if (result == 0)
        cq_free(cq);
    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_cq_resize(struct sluice_engine *engine, uint32_t number, const struct sluice_resize_cq_request *request,
                     struct sluice_resize_cq_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct cq *cq = cq_find(session, request->handle);
    int result = cq ? cq_resize(cq, request, reply) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_memory_open_file(struct sluice_engine *engine, uint32_t number, int fd, int writable)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = memory_open_file(session, fd, writable);

    worker_leave(engine);
    return result;
}

int sluice_memory_open_process(struct sluice_engine *engine, uint32_t number, int fd)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = memory_open_process(session, fd);

    worker_leave(engine);
    return result;
}

int sluice_memory_close(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = memory_close(session, handle);

    worker_leave(engine);
    return result;
}

int sluice_qp_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_qp_request *request,
                     struct sluice_create_qp_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = session->broken ? -EIO : qp_create(session, request, reply);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_qp_open(struct sluice_engine *engine, uint32_t number, const struct sluice_open_qp_request *request,
                   struct sluice_create_qp_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = session->broken ? -EIO : qp_open(session, request, reply);

    worker_leave(engine);
    return result;
}

int sluice_qp_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    struct tenant *tenant = qp->tenant;
    int result = qp_close(engine->sessions[number], handle);

    worker_leave_for(engine, tenant);
    return result;
}

int sluice_qp_attach(struct sluice_engine *engine, uint32_t number, uint32_t handle, const uint8_t *gid)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = multicast_attach(qp, gid);

    worker_leave(engine);
    return result;
}

int sluice_qp_detach(struct sluice_engine *engine, uint32_t number, uint32_t handle, const uint8_t *gid)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = multicast_detach(qp, gid);

    worker_leave(engine);
    return result;
}

int sluice_pd_device(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    const struct pd *pd = pd_find(session, handle);
    int device = pd ? (int)pd->context->tenant->account.device->number : -EINVAL;

    worker_leave(engine);
    return device;
}

int sluice_qp_device(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int device = (int)qp->tenant->account.device->number;

    worker_leave(engine);
    return device;
}

int sluice_qp_type(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int type = (int)qp->type;

    worker_leave(engine);
    return type;
}

int sluice_srq_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_srq_request *request,
                      struct sluice_create_srq_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = session->broken ? -EIO : srq_create(session, request, reply);

    worker_leave(engine);
    return result;
}

/* Enters, and leaves again where there is no such SRQ. */
static struct srq *enter_srq(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);
    struct srq *srq = session ? srq_find(session, handle) : NULL;

    if (session && !srq)
        worker_leave(engine);
    return srq;
}

int sluice_srq_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct srq *srq = enter_srq(engine, number, handle);

    if (!srq)
        return -EINVAL;
    int result = srq->users ? -EBUSY : 0;

    if (result == 0)
        srq_free(srq);
    worker_leave(engine);
    return result;
}

int sluice_srq_set_limit(struct sluice_engine *engine, uint32_t number, uint32_t handle, uint32_t limit)
{
    struct srq *srq = enter_srq(engine, number, handle);

    if (!srq)
        return -EINVAL;
    int result = srq_set_limit(srq, limit);

    worker_leave(engine);
    return result;
}

int sluice_srq_query(struct sluice_engine *engine, uint32_t number, uint32_t handle, struct sluice_srq_reply *reply)
{
    struct srq *srq = enter_srq(engine, number, handle);

    if (!srq)
        return -EINVAL;
    reply->max_wr = srq->queue.entries;
    reply->max_sge = srq->max_sge;
    reply->limit = srq->limit;
    worker_leave(engine);
    return 0;
}

int sluice_ah_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_ah_request *request,
                     const uint8_t *sgid, int32_t peer_tenant)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = ah_create(session, request, sgid, &transport_local, peer_tenant);

    worker_leave(engine);
    return result;
}

int sluice_ah_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = ah_destroy(session, handle);

    worker_leave(engine);
    return result;
}

int sluice_ah_sever(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct ah *ah = ah_find(session, handle);

    if (ah) {
        ah->severed = true;
        ah->peer = SLUICE_MAX_TENANTS;
        ah->trunk = NULL;
    }
    worker_leave(engine);
    return ah ? 0 : -EINVAL;
}

int sluice_ah_lead(struct sluice_engine *engine, uint32_t number, uint32_t handle, int32_t peer_tenant, int32_t trunk)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct ah *ah = ah_find(session, handle);
    bool fits = ah && !ah->group && (trunk < 0 || trunk_find(engine, (uint32_t)trunk));

    if (fits) {
        ah->trunk = trunk < 0 ? NULL : trunk_find(engine, (uint32_t)trunk);
        ah->transport = ah->trunk ? &transport_tcp : &transport_local;
        ah_set_peer(ah, peer_tenant);
    }
    worker_leave(engine);
    return fits ? 0 : -EINVAL;
}

int sluice_ah_by_nic(struct sluice_engine *engine, uint32_t number, uint32_t handle, int own_node)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct ah *ah = ah_find(session, handle);
    int result = ah && !ah->group ? ah_by_nic(ah, own_node) : -EINVAL;

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_trunk_open(struct sluice_engine *engine)
{
    worker_enter(engine);
    int result = trunk_open(engine);

    worker_leave(engine);
    return result;
}

int sluice_trunk_connect(struct sluice_engine *engine, uint32_t number, int fd)
{
    worker_enter(engine);
    struct trunk *trunk = trunk_find(engine, number);
    int result = trunk ? trunk_connect(trunk, fd) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_trunk_accept(struct sluice_engine *engine, uint32_t number, int fd)
{
    worker_enter(engine);
    struct trunk *trunk = trunk_find(engine, number);
    int result = trunk ? trunk_accept(trunk, fd) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_xrcd_open(struct sluice_engine *engine, uint32_t number, uint32_t context, int has_inode, uint64_t dev,
                     uint64_t ino, uint32_t flags)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = xrcd_open(session, context, has_inode, dev, ino, flags & SLUICE_XRCD_CREATE,
                           flags & SLUICE_XRCD_EXCL);

    worker_leave(engine);
    return result;
}

int sluice_xrcd_close(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = xrcd_close(session, handle);

    worker_leave(engine);
    return result;
}

int sluice_qp_modify(struct sluice_engine *engine, uint32_t number, uint32_t handle,
                     const struct sluice_qp_attr *attr, uint32_t attr_mask, uint32_t transport, int32_t peer_tenant,
                     struct sluice_qp_attr *now)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    /* Who is on no node is looked for here, and not found. */
    const struct transport *over = &transport_local;
    int result = -EOPNOTSUPP;

    if (transport == SLUICE_TRANSPORT_NIC || (qp->type == IBV_QPT_UD && qp->twin))
        over = &transport_nic;
    else if (transport == SLUICE_TRANSPORT_TCP)
        over = &transport_tcp;
    if (over != &transport_nic || qp->twin)
        result = qp_modify(qp, attr, attr_mask, over,
                           transport == SLUICE_TRANSPORT_LOCAL ? peer_tenant : -1);

    *now = qp->attr;
    worker_leave_for(engine, qp->tenant);
    return result;
}

int sluice_qp_connect(struct sluice_engine *engine, uint32_t number, uint32_t handle, int fd)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = tcp_attach(qp, fd);

    worker_leave(engine);
    return result;
}

int sluice_qp_tenant(struct sluice_engine *engine, uint32_t qp_num)
{
    worker_enter(engine);
    const struct qp *qp = qp_lookup(engine, qp_num);
    int result = qp && !qp->session->broken ? (int)qp->tenant->first->number : -ENOENT;

    worker_leave(engine);
    return result;
}

int sluice_qp_shares_receives(struct sluice_engine *engine, uint32_t number, uint32_t handle, uint32_t peer_num)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    const struct qp *peer = qp_lookup(engine, peer_num);
    int result = peer && qp->twin && peer->twin && (qp->srq || peer->srq);

    worker_leave(engine);
    return result;
}

int sluice_qp_holder(struct sluice_engine *engine, uint32_t qp_num, uint32_t *session, uint32_t *handle)
{
    worker_enter(engine);
    const struct qp *qp = qp_lookup(engine, qp_num);
    int result = qp ? 0 : -ENOENT;

    if (qp) {
        *session = qp->session->number;
        *handle = qp->handle;
    }
    worker_leave(engine);
    return result;
}

int sluice_qp_number(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = (int)qp->qp_num;

    worker_leave(engine);
    return result;
}

int sluice_qp_fail(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    qp_fatal(qp, IBV_EVENT_QP_FATAL);
    worker_leave(engine);
    return 0;
}

int sluice_qp_query(struct sluice_engine *engine, uint32_t number, uint32_t handle, struct sluice_qp_attr *now)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    nic_qp_check(qp);
    *now = qp->attr;
    now->qp_state = now->cur_qp_state = qp->state;
    now->sq_draining = qp->state == 4 /* IBV_QPS_SQD */ && (qp->message.active || qp->completed != qp->sq.head);
    worker_leave_for(engine, qp->tenant);
    return 0;
}
