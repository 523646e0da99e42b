/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands behind the objects that applications hold. Each begins with the
 * public structure of <infiniband/verbs.h>, whose fields applications read
 * directly, so a pointer to the one is a pointer to the other.
 */
#ifndef SLUICE_SHIM_OBJECTS_H
#define SLUICE_SHIM_OBJECTS_H

#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "abi.h"

#define EXPORT __attribute__((visibility("default")))

/* A lock that costs one exchange where nobody else wants it; held for some 100 ns. */
struct spinlock {
    atomic_flag taken;
};

void spinlock_wait(struct spinlock *lock);

static inline void spinlock_lock(struct spinlock *lock)
{
    if (atomic_flag_test_and_set_explicit(&lock->taken, memory_order_acquire))
        spinlock_wait(lock);
}

static inline void spinlock_unlock(struct spinlock *lock)
{
    atomic_flag_clear_explicit(&lock->taken, memory_order_release);
}

struct shim_device {
    struct ibv_device device;
    uint64_t guid;
    uint32_t number; /* by which the router knows it */
};

/* The verbs_context with all operations of the header that we were built with. */
struct shim_context {
    uint32_t handle;
    atomic_bool failed; /* the application was told that the device is gone */
    struct verbs_context verbs; /* its last member is the ibv_context that the application holds */
};

struct shim_pd {
    struct ibv_pd pd;
    uint32_t handle;        /* a parent domain has its PD's */
    struct shim_pd *parent; /* the PD that a parent domain refers to, else NULL */
    atomic_uint domains;    /* parent domains that refer to this */
};

struct shim_channel {
    struct ibv_comp_channel channel;
    uint32_t handle;
    int users; /* CQs; guarded by objects_lock */
};

struct shim_mr {
    struct ibv_mr mr;
    uint32_t pd; /* handle: a parent domain that it was made with may be gone */
    unsigned access;
    uint32_t memory; /* handle; 0: the arena */
    uint64_t iova;
};

struct shim_mw {
    struct ibv_mw mw;
    uint32_t pd; /* handle */
};

struct shim_cq {
    struct ibv_cq_ex cq; /* its first members are those of ibv_cq */
    struct shim_cq *next;
    uint32_t handle;
    uint32_t entries;
    uint32_t consumer;
    uint32_t wc_flags;
    struct sluice_cq_shared *shared;
    struct sluice_cqe *ring;
    struct sluice_cqe *current; /* between start_poll and end_poll */
    uint32_t empty;      /* polls that found nothing, cq_is_lost */
    bool unlocked;       /* the application said that one thread uses it */
    bool ignore_overrun;
    struct spinlock lock;
    uint32_t comp_events_given, async_events_given; /* read by the application; guarded by events_lock */
};

struct shim_queue {
    struct sluice_queue_shared *shared;
    uint8_t *ring;
    uint32_t entries;
    uint32_t stride;
    uint32_t limit;    /* WRs that may be outstanding */
    uint32_t max_sge;
    uint32_t producer; /* posted */
    uint32_t tail;     /* free again; written under the CQ's lock */
    struct spinlock lock;
};

struct shim_qp {
    union {
        struct ibv_qp qp;
        struct ibv_qp_ex ex;
    } base;
    struct shim_qp *next;
    uint32_t handle;
    bool extended;    /* made with send_ops_flags */
    bool sq_sig_all;
    uint32_t max_inline;
    struct sluice_qp_shared *shared;
    struct shim_queue sq, rq;
    /* ibv_wr_*: the WQE being built, and how many are */
    struct sluice_wqe *building;
    uint32_t built;
    int build_error;
    uint32_t async_events_given;
    struct ibv_qp_init_attr init;
    uint32_t opcodes; /* bit n: it may send enum ibv_wr_opcode n */
};

struct shim_srq {
    struct ibv_srq srq;
    struct shim_srq *next;
    uint32_t handle;
    uint32_t number; /* XRC, else 0 */
    struct ibv_cq *cq; /* XRC, else NULL */
    struct sluice_srq_shared *shared;
    struct shim_queue queue; /* tail is what the engine's consumer was last */
    uint32_t async_events_given;
};

struct shim_xrcd {
    struct ibv_xrcd xrcd;
    uint32_t handle;
};

static inline void cq_lock(struct shim_cq *cq)
{
    if (!cq->unlocked)
        spinlock_lock(&cq->lock);
}

static inline void cq_unlock(struct shim_cq *cq)
{
    if (!cq->unlocked)
        spinlock_unlock(&cq->lock);
}

static inline struct shim_context *to_context(struct ibv_context *context)
{
    return (struct shim_context *)((char *)context - offsetof(struct shim_context, verbs.context));
}

static inline struct shim_device *to_device(struct ibv_device *device)
{
    return (struct shim_device *)device;
}

static inline struct shim_cq *to_cq(struct ibv_cq *cq)
{
    return (struct shim_cq *)cq;
}

static inline struct shim_qp *to_qp(struct ibv_qp *qp)
{
    return (struct shim_qp *)qp;
}

/* QPs by handle, so that polling can free their slots; NULL where there is none. */
extern struct shim_qp *qps[SLUICE_SESSION_QPS];

/* The objects of a context that is closed: they are in no list any more, and the application's pointers lead nowhere. */
void qps_forget_context(struct ibv_context *context);
void cqs_forget_context(struct ibv_context *context);
void srqs_forget_context(struct ibv_context *context);

/* Guards the lists and tables of objects, not the data path. */
extern pthread_mutex_t objects_lock;

/* CQs and SRQs by handle, QPs by number; objects_lock is held. */
struct shim_cq *cq_by_handle(uint32_t handle);
struct shim_qp *qp_by_number(uint32_t qp_num);
struct shim_srq *srq_by_handle(uint32_t handle);

/* Drops the CQEs of a QP that is reset: what it does next has the same number, and nobody could tell them apart. */
void cq_forget_qp(struct shim_cq *cq, uint32_t qp_num);
/*
 * Keeps those of a QP that is destroyed, to be polled, as a kernel's own device does (rdma-core: providers/rxe). IBTA
 * leaves it open, and most NICs' drivers drop them; libfabric's ofi_rxm destroys a QP before it reads its last messages.
 */
void cq_orphan_qp(struct shim_cq *cq, uint32_t qp_num);

/* Blocks until all events that were read about an object are acknowledged. */
void events_wait(const uint32_t *given, const uint32_t *acked);
void events_given(uint32_t *counter);
void events_acked(uint32_t *counter, uint32_t count);

/* Around fork: a child has none of its parent's objects. */
void events_fork_prepare(void);
void events_fork_parent(void);
void events_fork_child(void);
void cqs_fork_child(void);
void srqs_fork_child(void);

/* Fast verbs, which the context's operations point to. */
int shim_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr);
int shim_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);
int shim_poll_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc);
int shim_req_notify_cq(struct ibv_cq *cq, int solicited_only);

struct ibv_mw *shim_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type);
int shim_dealloc_mw(struct ibv_mw *mw);
int shim_bind_mw(struct ibv_qp *qp, struct ibv_mw *mw, struct ibv_mw_bind *bind);

int shim_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);

/*
 * Makes what is posted visible to the engine; the queue's lock is held. True: the
 * engine waits for the doorbell.
 */
bool queue_publish(struct shim_queue *queue);
/* The slot of a WR. */
static inline uint8_t *queue_slot(const struct shim_queue *queue, uint32_t index)
{
    return queue->ring + (uint64_t)(index & (queue->entries - 1)) * queue->stride;
}
/* EINVAL: more SGEs than the queue's WRs may have. */
int queue_write_receive(struct shim_queue *queue, const struct ibv_recv_wr *wr);

/* The number of an XRC SRQ as a WQE has it; 0, which nobody has, for one that can't be. */
static inline uint16_t xrc_number(uint32_t remote_srqn)
{
    return remote_srqn > SLUICE_MAX_SRQN ? 0 : (uint16_t)remote_srqn;
}

/* Fills in the ibv_wr_* functions. */
void wr_init(struct shim_qp *qp);
/* Fills in the ibv_start_poll functions. */
void cq_ex_init(struct shim_cq *cq, uint32_t wc_flags);
/* Takes the next CQE where there is one, or NULL; the CQ's lock is held. */
struct sluice_cqe *cq_next(struct shim_cq *cq);

/* After a poll that found nothing: whether nothing will come any more, since the router is gone. */
bool cq_is_lost(struct shim_cq *cq);

/*
 * After a poll that found nothing, without the lock: who spins for large messages keeps no core from the worker that
 * moves them, where there are fewer cores than threads that want one.
 */
void cq_give_way(const struct shim_cq *cq);

void ah_attr_to_abi(struct sluice_ah_attr *to, const struct ibv_ah_attr *from);
void ah_attr_from_abi(struct ibv_ah_attr *to, const struct sluice_ah_attr *from);

/*
 * A datagram's service level. RoCE has none, and devices tell in its place which header
 * lies in front of the data: bit 3 for UDP, 2 for IPv4. UCX looks for the destination
 * accordingly. An address of the node's tenants is an IPv4 address.
 */
static inline uint8_t cqe_sl(const struct sluice_cqe *cqe)
{
    return cqe->wc_flags & IBV_WC_GRH ? 8 | 2 : 0;
}

/* Operations of struct verbs_context. */
struct ibv_td *shim_alloc_td(struct ibv_context *context, struct ibv_td_init_attr *attr);
int shim_dealloc_td(struct ibv_td *td);
struct ibv_pd *shim_alloc_parent_domain(struct ibv_context *context, struct ibv_parent_domain_init_attr *attr);
struct ibv_cq_ex *shim_create_cq_ex(struct ibv_context *context, struct ibv_cq_init_attr_ex *attr);
struct ibv_qp *shim_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr);
struct ibv_qp *shim_open_qp(struct ibv_context *context, struct ibv_qp_open_attr *attr);
struct ibv_srq *shim_create_srq_ex(struct ibv_context *context, struct ibv_srq_init_attr_ex *attr);
int shim_get_srq_num(struct ibv_srq *srq, uint32_t *srq_num);
struct ibv_xrcd *shim_open_xrcd(struct ibv_context *context, struct ibv_xrcd_init_attr *attr);
int shim_close_xrcd(struct ibv_xrcd *xrcd);
int shim_query_device_ex(struct ibv_context *context, const struct ibv_query_device_ex_input *input,
                         struct ibv_device_attr_ex *attr, size_t attr_size);
int shim_query_port(struct ibv_context *context, uint8_t port_num, struct ibv_port_attr *attr, size_t attr_size);
int shim_query_rt_values(struct ibv_context *context, struct ibv_values_ex *values);

/* In a forked child: nobody holds the lock of the device list there. */
void devices_fork_child(void);
/* In a forked child: rdma_cm begins anew (cm_device.c). */
void cm_fork_child(void);

#endif
