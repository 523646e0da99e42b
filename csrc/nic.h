/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The node's RDMA NIC: opened by name through libibverbs, which is loaded when a
 * device is asked for, so that a router without one needs no library.
 *
 * What tenants make has its twin on the NIC: a PD for each PD, an MR for each MR
 * that lies in a file (the arena is one), a QP for each QP. Keys and QP numbers that
 * tenants see are the NIC's own, so that a peer without Sluice can use them
 * and nothing is translated on a message's way.
 */
#ifndef SLUICE_NIC_H
#define SLUICE_NIC_H

#include <infiniband/verbs.h>

#include "node.h"

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
    NIC_CHUNK = 1 << 18    /* bytes of a WRITE or READ in one request */
};

/*
 * A CQ of the engine's for many QPs. Each takes as many entries of it as it can have
 * completions, so that none overruns.
 */
struct nic_cq {
    struct ibv_cq *cq;
    uint32_t entries, taken;
    struct list link;
};

struct nic {
    void *library;
    struct {
#define NIC_MEMBER(name) __typeof__(name) *name;
        NIC_FUNCTIONS(NIC_MEMBER)
#undef NIC_MEMBER
    } call;
    struct ibv_context *context;
    struct ibv_device_attr attr;
    uint8_t port;
    uint32_t gids;                     /* that tenants see */
    uint8_t gid_index[SLUICE_MAX_GIDS]; /* of each of them in the port's table */
    struct ibv_comp_channel *channel;
    struct list cqs;
    struct qp **qps;  /* NIC_NUMBERS, by number */
    uint64_t tags;    /* of QPs' connections, so far */
    uint32_t flying;  /* bytes posted and not completed */
    struct list blocked; /* struct nic_qp: wait for this to be less */
    uint64_t heard;   /* ns: when the last completion came */
    uint32_t connected; /* QPs */
    bool armed;       /* a completion writes an event to the channel */
    bool woken;       /* the worker slept: the channel may hold events */
};

void nic_close(struct sluice_engine *engine);

/* PD, MR and CQ room: 0 or -errno. All are harmless where there is no NIC. */
int nic_alloc_pd(struct pd *pd);
void nic_dealloc_pd(struct pd *pd);
/* Registers what the region covers, and gives it the NIC's key. A region in a process has none: its own stays. */
int nic_reg_mr(struct mr *mr, uint32_t access);
void nic_dereg_mr(struct mr *mr);
/* Room for so many completions. NULL: errno says why. */
struct nic_cq *nic_take_cq(struct nic *nic, uint32_t completions);
void nic_give_cq(struct nic *nic, struct nic_cq *cq, uint32_t completions);

/* Has completions announced by the channel, for the worker that wants to sleep. False: there are some now. */
bool nic_arm(struct sluice_engine *engine);

/* Handles completions (transport/nic.c). Returns how many. */
uint32_t nic_serve(struct sluice_engine *engine);
/* Whether its completions are worth waiting for awake, where a core is free. */
bool nic_lingers(const struct sluice_engine *engine);

#endif
