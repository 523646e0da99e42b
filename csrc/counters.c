/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "counters.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "node.h"

enum {
    PAGE = 4096,
    QPS_AT_ONCE = 512, /* one system call for so many slots, which are 64 KiB */
};

#define COUNTERS_MAGIC 0x0100454349554c53ull /* "SLUICE\0\1" */
#define TENANTS_OFFSET ((uint64_t)PAGE)
#define GROUPS_OFFSET (TENANTS_OFFSET + SLUICE_MAX_TENANTS * sizeof(struct sluice_tenant_counters))
#define QPS_OFFSET (GROUPS_OFFSET + SLUICE_MAX_GROUPS * sizeof(struct sluice_group_counters))
#define COUNTERS_SIZE (QPS_OFFSET + SLUICE_MAX_QPS * sizeof(struct sluice_qp_counters))

/* Takes room for these bytes. A file system that can't be asked for it is taken at its word. */
static int reserve(const struct counters *counters, uint64_t offset, uint64_t size)
{
    if (fallocate(counters->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) == 0 || errno == EOPNOTSUPP || errno == ENOSYS)
        return 0;
    return -errno;
}

int counters_open(struct sluice_engine *engine, const char *path)
{
    struct counters *counters = &engine->counters;
    int error = 0;

    counters->fd = path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : memfd_create("sluice-counters", MFD_CLOEXEC);
    if (counters->fd < 0 || ftruncate(counters->fd, (off_t)COUNTERS_SIZE))
        return -errno;
    if ((error = reserve(counters, 0, PAGE)))
        return error;
    void *place = mmap(NULL, COUNTERS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, counters->fd, 0);

    if (place == MAP_FAILED)
        return -errno;
    counters->place = place;
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

void counters_close(struct sluice_engine *engine)
{
    struct counters *counters = &engine->counters;

    if (counters->place)
        munmap(counters->place, COUNTERS_SIZE);
    if (counters->fd >= 0)
        close(counters->fd);
}

static void *row(const struct counters *counters, uint64_t offset, uint64_t size)
{
    if (reserve(counters, offset, size))
        return NULL;
    return memset(counters->place + offset, 0, size);
}

struct sluice_tenant_counters *counters_of_tenant(struct sluice_engine *engine, uint32_t number)
{
    const uint64_t size = sizeof(struct sluice_tenant_counters);

    return row(&engine->counters, TENANTS_OFFSET + number * size, size);
}

struct sluice_group_counters *counters_of_group(struct sluice_engine *engine, uint32_t number)
{
    const uint64_t size = sizeof(struct sluice_group_counters);

    return row(&engine->counters, GROUPS_OFFSET + number * size, size);
}

struct sluice_qp_counters *counters_of_qp(struct sluice_engine *engine, uint32_t slot)
{
    struct counters *counters = &engine->counters;
    const uint64_t size = sizeof(struct sluice_qp_counters);

    /* Slots are first used in their order (struct sluice_engine, qp_free). */
    while (slot >= counters->qps) {
        if (reserve(counters, QPS_OFFSET + counters->qps * size, QPS_AT_ONCE * size))
            return NULL;
        counters->qps += QPS_AT_ONCE;
    }
    if (engine->header->qps <= slot)
        engine->header->qps = slot + 1;
    return memset(counters->place + QPS_OFFSET + slot * size, 0, size);
}
