/* SPDX-License-Identifier: Apache-2.0 */
/* The device list and contexts: man ibv_get_device_list, ibv_open_device. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "objects.h"
#include "session.h"
#include "sysfs.h"

/* Each names an interrupt on a real device, and nothing here: applications spread their CQs over several. */
enum { COMP_VECTORS = 8 };

/*
 * By number. A list's pointers stay good after it is freed, as long as a context is open (man
 * ibv_free_device_list); here they always do. What was told once of a device stays.
 */
static struct shim_device devices[SLUICE_MAX_DEVICES];
static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;

static void describe_device(struct shim_device *device, const struct sluice_device_entry *entry)
{
    struct ibv_device *public = &device->device;

    if (public->name[0])
        return;
    public->node_type = IBV_NODE_CA;
    public->transport_type = IBV_TRANSPORT_IB;
    snprintf(public->dev_name, sizeof(public->dev_name), "uverbs%u", entry->number);
    snprintf(public->dev_path, sizeof(public->dev_path), "/sys/class/infiniband_verbs/uverbs%u", entry->number);
    snprintf(public->ibdev_path, sizeof(public->ibdev_path), "/sys/class/infiniband/%.*s", SLUICE_DEVICE_NAME,
             entry->name);
    device->guid = entry->node_guid;
    device->number = entry->number;
    /* Last: a child that was forked meanwhile begins anew. */
    snprintf(public->name, sizeof(public->name), "%.*s", SLUICE_DEVICE_NAME, entry->name);
}

/* Those that the tenant has now, into list, ended by NULL. Returns 0 or errno. */
static int list_devices(struct ibv_device *list[SLUICE_MAX_DEVICES + 1], int *count)
{
    struct sluice_handle_request request = {0};
    struct sluice_devices_reply reply;
    int error = session_open();

    *count = 0;
    if (!error)
        error = session_call(SLUICE_OP_LIST_DEVICES, &request, sizeof(request), &reply, sizeof(reply));
    if (error)
        return error;
    pthread_mutex_lock(&devices_lock);
    for (uint32_t i = 0; i < reply.count && i < SLUICE_MAX_DEVICES; i++) {
        const struct sluice_device_entry *entry = &reply.devices[i];

        if (entry->number >= SLUICE_MAX_DEVICES)
            continue;
        describe_device(&devices[entry->number], entry);
        list[(*count)++] = &devices[entry->number].device;
    }
    pthread_mutex_unlock(&devices_lock);
    return 0;
}

void devices_fork_child(void)
{
    pthread_mutex_init(&devices_lock, NULL);
}

EXPORT struct ibv_device **ibv_get_device_list(int *num_devices)
{
    struct ibv_device **list = calloc(SLUICE_MAX_DEVICES + 1, sizeof(*list));
    int count;

    if (num_devices)
        *num_devices = 0;
    if (!list)
        return NULL;
    int error = list_devices(list, &count);

    if (error) {
        /* As on a host without a device: an empty list. */
        errno = error;
        return list;
    }
    if (num_devices)
        *num_devices = count;
    return list;
}

EXPORT void ibv_free_device_list(struct ibv_device **list)
{
    free(list);
}

EXPORT const char *ibv_get_device_name(struct ibv_device *public)
{
    return public->name;
}

EXPORT __be64 ibv_get_device_guid(struct ibv_device *public)
{
    return to_device(public)->guid;
}

EXPORT int ibv_get_device_index(struct ibv_device *public)
{
    return (int)to_device(public)->number;
}

EXPORT struct ibv_context *ibv_open_device(struct ibv_device *public)
{
    struct sluice_handle_request request = {.handle = to_device(public)->number};
    struct sluice_handle_reply reply;
    int async_fd;
    /* Also in a forked child, with the list that its parent got. */
    int error = session_open();

    if (error) {
        errno = error;
        return NULL;
    }
    struct shim_context *context = calloc(1, sizeof(*context));

    if (!context)
        return NULL;
    error = session_call_fd(SLUICE_OP_OPEN_CONTEXT, &request, sizeof(request), &reply, sizeof(reply), &async_fd);
    if (error) {
        free(context);
        errno = error;
        return NULL;
    }
    context->handle = reply.handle;
    struct verbs_context *verbs = &context->verbs;

    /* What stays NULL the inlines of verbs.h answer with EOPNOTSUPP. */
    verbs->sz = sizeof(*verbs);
    verbs->query_port = shim_query_port;
    verbs->query_rt_values = shim_query_rt_values;
    verbs->query_device_ex = shim_query_device_ex;
    verbs->alloc_td = shim_alloc_td;
    verbs->dealloc_td = shim_dealloc_td;
    verbs->alloc_parent_domain = shim_alloc_parent_domain;
    verbs->create_cq_ex = shim_create_cq_ex;
    verbs->create_qp_ex = shim_create_qp_ex;
    verbs->open_qp = shim_open_qp;
    verbs->create_srq_ex = shim_create_srq_ex;
    verbs->get_srq_num = shim_get_srq_num;
    verbs->open_xrcd = shim_open_xrcd;
    verbs->close_xrcd = shim_close_xrcd;

    struct ibv_context *base = &verbs->context;

    base->device = public;
    base->ops.poll_cq = shim_poll_cq;
    base->ops.req_notify_cq = shim_req_notify_cq;
    base->ops.alloc_mw = shim_alloc_mw;
    base->ops.dealloc_mw = shim_dealloc_mw;
    base->ops.bind_mw = shim_bind_mw;
    base->ops.post_send = shim_post_send;
    base->ops.post_recv = shim_post_recv;
    base->ops.post_srq_recv = shim_post_srq_recv;
    /* Applications duplicate it, pass it on, or mark it; what they ask of it is asked of nothing. */
    base->cmd_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    base->async_fd = async_fd;
    base->num_comp_vectors = COMP_VECTORS;
    pthread_mutex_init(&base->mutex, NULL);
    base->abi_compat = __VERBS_ABI_IS_EXTENDED;
    return base;
}

EXPORT int ibv_close_device(struct ibv_context *public)
{
    struct shim_context *context = to_context(public);

    /* The router destroys what the application has left; a router that is gone has done so. */
    session_call_handle(SLUICE_OP_CLOSE_CONTEXT, context->handle, NULL);
    qps_forget_context(public);
    srqs_forget_context(public);
    cqs_forget_context(public);
    close(public->async_fd);
    if (public->cmd_fd >= 0)
        close(public->cmd_fd);
    free(context);
    return 0;
}

/* ---- sysfs ------------------------------------------------------------- */

EXPORT const char *ibv_get_sysfs_path(void)
{
    return "/sys";
}

EXPORT int ibv_read_sysfs_file(const char *directory, const char *file, char *text, size_t size)
{
    char path[IBV_SYSFS_PATH_MAX], buffer[PATH_MAX];

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, file) >= sizeof(path))
        return -1;
    int fd = open(sysfs_where(AT_FDCWD, path, buffer), O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return -1;
    ssize_t length = read(fd, text, size);

    close(fd);
    if (length > 0) {
        if (text[length - 1] == '\n')
            text[--length] = 0;
        else if ((size_t)length < size)
            text[length] = 0;
        else
            return -1;
    }
    return (int)length;
}
