/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices that ids are bound to, by the number that the router gives: one context of each for all its ids, and one PD while an
 * id uses it. An id is on the tenant's first device, unless it goes by the NIC of another one. man rdma_get_devices.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "cm.h"
#include "objects.h"
#include "session.h"

struct device {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_xrcd *xrcd;
    unsigned users;
    uint8_t max_reads;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct device devices[SLUICE_MAX_DEVICES]; /* by number */

static int open_device(struct device *device, struct ibv_device *of)
{
    struct ibv_device_attr attr;

    if (device->context)
        return 0;
    struct ibv_context *opened = ibv_open_device(of);

    if (!opened)
        return cm_result(ENODEV);
    if (ibv_query_device(opened, &attr)) {
        ibv_close_device(opened);
        return cm_result(ENODEV);
    }
    device->max_reads = (uint8_t)(attr.max_qp_rd_atom < UINT8_MAX ? attr.max_qp_rd_atom : UINT8_MAX - 1);
    device->context = opened;
    return 0;
}

static int open_number(uint32_t number)
{
    if (number >= SLUICE_MAX_DEVICES)
        return cm_result(ENODEV);
    if (devices[number].context)
        return 0;
    struct ibv_device **list = ibv_get_device_list(NULL);
    int result = cm_result(ENODEV);

    for (int i = 0; list && list[i]; i++)
        if (to_device(list[i])->number == number)
            result = open_device(&devices[number], list[i]);
    if (list)
        ibv_free_device_list(list);
    return result;
}

static struct device *device_of(const struct ibv_context *context)
{
    for (uint32_t number = 0; number < SLUICE_MAX_DEVICES; number++)
        if (context && devices[number].context == context)
            return &devices[number];
    return NULL;
}

void cm_fork_child(void)
{
    /* All of it is the parent's; its ids are of no use here. */
    pthread_mutex_init(&lock, NULL);
    memset(devices, 0, sizeof(devices));
}

int cm_device_get(struct rdma_cm_id *id, uint32_t number)
{
    pthread_mutex_lock(&lock);
    int result = open_number(number);

    if (!result) {
        struct device *device = &devices[number];

        if (!device->pd)
            device->pd = ibv_alloc_pd(device->context);
        result = device->pd ? 0 : -1;
        if (!result) {
            device->users++;
            id->verbs = device->context;
            id->pd = device->pd;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

void cm_device_put(const struct rdma_cm_id *id)
{
    pthread_mutex_lock(&lock);
    struct device *device = device_of(id->verbs);

    if (device && device->users && !--device->users) {
        /* An application may have left MRs on it; then it stays for the next id. */
        if (device->xrcd && !ibv_close_xrcd(device->xrcd))
            device->xrcd = NULL;
        if (!ibv_dealloc_pd(device->pd))
            device->pd = NULL;
    }
    pthread_mutex_unlock(&lock);
}

struct ibv_xrcd *cm_device_xrcd(const struct rdma_cm_id *id)
{
    pthread_mutex_lock(&lock);
    struct device *device = device_of(id->verbs);

    if (device && !device->xrcd) {
        struct ibv_xrcd_init_attr attr = {
            .comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS,
            .fd = -1,
            .oflags = O_CREAT,
        };

        device->xrcd = ibv_open_xrcd(device->context, &attr);
    }
    struct ibv_xrcd *found = device ? device->xrcd : NULL;

    pthread_mutex_unlock(&lock);
    if (!device)
        cm_result(EINVAL);
    return found;
}

uint8_t cm_device_max_reads(const struct rdma_cm_id *id)
{
    pthread_mutex_lock(&lock);
    const struct device *device = device_of(id->verbs);
    uint8_t found = device ? device->max_reads : 0;

    pthread_mutex_unlock(&lock);
    return found;
}

EXPORT struct ibv_context **rdma_get_devices(int *num_devices)
{
    struct ibv_context **list = NULL;

    if (num_devices)
        *num_devices = 0;
    if (cm_open())
        return NULL;
    pthread_mutex_lock(&lock);
    struct ibv_device **found = ibv_get_device_list(NULL);

    if (found && found[0] && (list = calloc(SLUICE_MAX_DEVICES + 1, sizeof(*list)))) {
        int opened = 0;

        for (int i = 0; found[i]; i++) {
            struct device *device = &devices[to_device(found[i])->number];

            if (!open_device(device, found[i]))
                list[opened++] = device->context;
        }
        if (num_devices)
            *num_devices = opened;
    }
    if (found)
        ibv_free_device_list(found);
    pthread_mutex_unlock(&lock);
    return list;
}

EXPORT void rdma_free_devices(struct ibv_context **list)
{
    free(list);
}
