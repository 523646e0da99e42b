/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device that ids are bound to, the tenant's first: one context for all, and one PD while an id uses it. All
 * its devices have the tenant's address, which is what ids go by. man rdma_get_devices.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "cm.h"
#include "objects.h"
#include "session.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ibv_context *context;
static struct ibv_context *others[SLUICE_MAX_DEVICES]; /* by number, once somebody asked for all */
static struct ibv_pd *pd;
static struct ibv_xrcd *xrcd;
static unsigned users;
static uint8_t max_reads;

static int open_context(void)
{
    struct ibv_device_attr attr;
    int count;

    if (context)
        return 0;
    struct ibv_device **list = ibv_get_device_list(&count);
    struct ibv_context *opened = list && count ? ibv_open_device(list[0]) : NULL;

    if (list)
        ibv_free_device_list(list);
    if (!opened)
        return cm_result(ENODEV);
    if (ibv_query_device(opened, &attr)) {
        ibv_close_device(opened);
        return cm_result(ENODEV);
    }
    max_reads = (uint8_t)(attr.max_qp_rd_atom < UINT8_MAX ? attr.max_qp_rd_atom : UINT8_MAX - 1);
    context = opened;
    return 0;
}

void cm_fork_child(void)
{
    /* All of it is the parent's; its ids are of no use here. */
    pthread_mutex_init(&lock, NULL);
    context = NULL;
    memset(others, 0, sizeof(others));
    pd = NULL;
    xrcd = NULL;
    users = 0;
}

int cm_device_get(struct rdma_cm_id *id)
{
    pthread_mutex_lock(&lock);
    int result = open_context();

    if (!result && !pd) {
        pd = ibv_alloc_pd(context);
        result = pd ? 0 : -1;
    }
    if (!result) {
        users++;
        id->verbs = context;
        id->pd = pd;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

void cm_device_put(void)
{
    pthread_mutex_lock(&lock);
    if (users && !--users) {
        /* An application may have left MRs on it; then it stays for the next id. */
        if (xrcd && !ibv_close_xrcd(xrcd))
            xrcd = NULL;
        if (!ibv_dealloc_pd(pd))
            pd = NULL;
    }
    pthread_mutex_unlock(&lock);
}

struct ibv_xrcd *cm_device_xrcd(void)
{
    pthread_mutex_lock(&lock);
    if (!xrcd && !open_context()) {
        struct ibv_xrcd_init_attr attr = {
            .comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS,
            .fd = -1,
            .oflags = O_CREAT,
        };

        xrcd = ibv_open_xrcd(context, &attr);
    }
    struct ibv_xrcd *found = xrcd;

    pthread_mutex_unlock(&lock);
    return found;
}

uint8_t cm_device_max_reads(void)
{
    return max_reads;
}

/* The context of each device into list, the first device's first. Returns how many. */
static int open_all(struct ibv_context *list[SLUICE_MAX_DEVICES])
{
    int count, opened = 0;
    struct ibv_device **devices = ibv_get_device_list(&count);

    for (int i = 0; devices && i < count; i++) {
        uint32_t number = to_device(devices[i])->number;
        struct ibv_context **place = devices[i] == context->device ? &context : &others[number];

        if (!*place)
            *place = ibv_open_device(devices[i]);
        if (*place)
            list[opened++] = *place;
    }
    if (devices)
        ibv_free_device_list(devices);
    return opened;
}

EXPORT struct ibv_context **rdma_get_devices(int *num_devices)
{
    struct ibv_context **list = NULL;

    if (num_devices)
        *num_devices = 0;
    if (cm_open())
        return NULL;
    pthread_mutex_lock(&lock);
    if (!open_context()) {
        list = calloc(SLUICE_MAX_DEVICES + 1, sizeof(*list));
        if (list) {
            int count = open_all(list);

            if (num_devices)
                *num_devices = count;
        }
    }
    pthread_mutex_unlock(&lock);
    return list;
}

EXPORT void rdma_free_devices(struct ibv_context **list)
{
    free(list);
}
