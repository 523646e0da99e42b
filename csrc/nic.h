/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's RDMA NIC, one port of it: opened by name through libibverbs, which is loaded when one
 * is asked for, so that a router without needs no library. NICs share no object, and the loss of one leaves
 * the others alone; QP numbers are the node's, so no two of them have the same one (transport/nic_twin.c).
 *
 * What tenants make has its twin on the NIC: a PD for each PD, an MR for each MR
 * that lies in a file (the arena is one), a QP for each QP. Keys and QP numbers that
 * tenants see are the NIC's own, so that a peer without Sluice can use them
 * and nothing is translated on a message's way.
 */
#ifndef SLUICE_NIC_H
#define SLUICE_NIC_H

#include <infiniband/verbs.h>

#include "context.h"
#include "device.h"
#include "node.h"
#include "registration.h"

/* What is called of libibverbs, beside the inlines of verbs.h. */
#define NIC_FUNCTIONS(F)      \
    F(ibv_get_device_list)    \
    F(ibv_free_device_list)   \
    F(ibv_get_device_name)    \
    F(ibv_open_device)        \
    F(ibv_close_device)       \
    F(ibv_query_device)       \
    F(ibv_query_port)         \
    F(_ibv_query_gid_ex)      \
    F(ibv_alloc_pd)           \
    F(ibv_dealloc_pd)         \
    F(ibv_reg_mr_iova2)       \
    F(ibv_dereg_mr)           \
    F(ibv_create_comp_channel) \
    F(ibv_destroy_comp_channel) \
    F(ibv_create_cq)          \
    F(ibv_destroy_cq)         \
    F(ibv_get_cq_event)       \
    F(ibv_ack_cq_events)      \
    F(ibv_create_qp)          \
    F(ibv_modify_qp)          \
    F(ibv_query_qp)           \
    F(ibv_destroy_qp)         \
    F(ibv_create_srq)         \
    F(ibv_destroy_srq)        \
    F(ibv_create_ah)          \
    F(ibv_destroy_ah)         \
    F(ibv_get_async_event)    \
    F(ibv_ack_async_event)

enum {
    NIC_NUMBERS = 1 << 24, /* QP numbers, and indices of keys: 24 bits (IBTA 9.2.1, 10.6.3.3) */
    NIC_KEY_TAG = 8,       /* bits of a key below its index */
    NIC_CQ = 16384,        /* entries of one of the engine's CQs, where the device has that many */
    NIC_FLIGHT = 1 << 20,  /* bytes that wait in the NIC, of all tenants together */
    NIC_CHUNK = 1 << 18,   /* bytes of a WRITE or READ in one request */
    NIC_SHARE = NIC_CHUNK  /* bytes that a tenant may have in the NIC whatever others have there */
};

struct nic_pool;
struct nic_srq;

/*
 * A CQ of the engine's. One for the sends, or the receives, of many QPs, each of which takes as many entries of it as it can
 * have completions, so that none overruns; or one of its own for the receives of an SRQ.
 */
struct nic_cq {
    struct ibv_cq *cq;
    uint32_t entries, taken;
    bool sends;            /* their completions end here, and none of receives */
    bool armed;            /* the next completion writes an event to the channel, */
    bool told;             /* and there was one since the events were last taken */
    struct nic_srq *srq;   /* whose receives end here, or */
    struct nic_pool *pool; /* those for datagrams; else NULL */
    struct list link;
};

struct nic {
    struct device *device; /* that it is behind */
    struct list link;      /* in engine->nics */
    void *library;
    struct {
#define NIC_MEMBER(name) __typeof__(name) *name;
        NIC_FUNCTIONS(NIC_MEMBER)
#undef NIC_MEMBER
    } call;
    struct ibv_context *context;
    struct ibv_pd *pd; /* the engine's own */
    struct ibv_device_attr attr;
    uint8_t port;
    uint32_t gids;                     /* that tenants see */
    uint8_t gid_index[SLUICE_MAX_GIDS]; /* of each of them in the port's table */
    uint32_t mtu;                      /* bytes: the longest datagram */
    struct ibv_packet_pacing_caps pacing; /* kbit/s; supported_qpts 0: it can't */
    struct ibv_comp_channel *channel;
    struct list cqs;
    uint64_t tags;    /* of QPs' connections, so far */
    uint64_t flying;  /* bytes posted and not completed */
    struct list blocked; /* struct tenant: have QPs that wait for this to be less */
    struct registrar registrar;
    struct list ending;  /* struct nic_qp: have all back, but what may be in a CQ of their SRQ's */
    uint32_t polling;    /* completions are being handled */
    bool lost;           /* the device is gone */
    bool software;       /* its kernel module carries the bytes in the time of who posts: soft RoCE, soft iWARP */
    uint64_t heard;   /* ns: when the last completion came */
    uint32_t connected; /* QPs */
    uint32_t outstanding; /* QPs that have sends in the NIC */
    bool woken;       /* the worker slept, and the channel may hold an event */
};

/* The one behind what the PD is of, or NULL. */
static inline struct nic *nic_of_pd(const struct pd *pd)
{
    return pd->context->tenant->account.device->nic;
}

/* Of a device that may have one. All that tenants had there is gone (nic_loss.c). */
void nic_close(struct device *device);
/* No PD of the device is left. */
void nic_keys_free(struct device *device);

/* A PD's twin: 0 or -errno. Harmless where its device has no NIC. */
int nic_alloc_pd(struct pd *pd);
void nic_dealloc_pd(struct pd *pd);
/* One of a twin's users goes; the last one deallocates it. */
void nic_leave_pd(struct nic *nic, struct ibv_pd *twin, uint32_t *users);

/*
 * Regions and windows (nic_mr.c), which have the NIC's key where they have a twin. A region's is made by
 * registration.h, and becomes the region's instead of one that it had: 0, or -errno and the new one is no more.
 */
int nic_adopt_mr(struct mr *mr, struct ibv_mr *twin);
void nic_dereg_mr(struct mr *mr);
/* 0 or -errno. A device without windows leaves the window to QPs of this node. */
int nic_alloc_mw(struct mr *window);
void nic_dealloc_mw(struct mr *window);

/* Room for so many completions, of sends or of receives. NULL: errno says why. */
struct nic_cq *nic_take_cq(struct nic *nic, uint32_t completions, bool sends);
void nic_give_cq(struct nic *nic, struct nic_cq *cq, uint32_t completions);
/* One for receives that nobody shares; give it back with all its entries. */
struct nic_cq *nic_make_cq(struct nic *nic, uint32_t completions);

/*
 * Of all NICs. Has completions announced by channels, for the worker that wants to sleep: receives always, sends where there are
 * any, since each announcement is a wake-up, also of who is awake already and has polled the completion. False: there are some now.
 */
bool nic_arm(struct sluice_engine *engine);
/* Whether a CQ was made since, which nothing tells of: the worker that sleeps is to be woken, and arms it. */
bool nic_unarmed(const struct sluice_engine *engine);
/* What the worker has just posted may be done already, or was refused: handles that. Returns how many completions there were. */
uint32_t nic_serve_sends(struct sluice_engine *engine);
/* The worker slept, and channels may hold an event. */
void nic_woken(struct sluice_engine *engine);
/* Whether the worker's time is that of a NIC in software, which has had something to carry of late. */
bool nic_carries(const struct sluice_engine *engine);
/* Whether a registration is done. */
bool nic_rung(const struct sluice_engine *engine);

/* Of all NICs: handles completions (transport/nic_completion.c). Returns how many. */
uint32_t nic_serve(struct sluice_engine *engine);
/* Handles what a CQ holds now. Returns how many. */
uint32_t nic_poll_cq(struct nic *nic, struct nic_cq *cq);
/* Whether completions of any are worth waiting for awake, where a core is free. */
bool nic_lingers(const struct sluice_engine *engine);

#endif
