/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine: the router's data path. One worker thread executes the WQEs of
 * all sessions; the control plane (Python, through cffi) makes tenants,
 * sessions and verbs objects with the functions below.
 *
 * Every function may be called from any thread. It runs while the worker stands
 * still between two rounds of work (worker.h), so the engine's state needs no
 * locks. Returns 0 (or a value >= 0 where said) or a negative errno.
 *
 * Python reads this header through cffi as well (SLUICE_CDEF).
 */
#ifndef SLUICE_ENGINE_H
#define SLUICE_ENGINE_H

#ifndef SLUICE_CDEF
#include "abi.h"
#endif

struct sluice_engine;

enum sluice_engine_limits {
    SLUICE_MAX_TENANTS = 4096, /* each counted once for each of its devices */
    SLUICE_MAX_NODES = 4096, /* others that this one ever had to do with */
    SLUICE_MAX_SESSIONS = 16384,
    SLUICE_MAX_GROUPS = 1024,
    SLUICE_MAX_QPS = 262144, /* of the node */
    SLUICE_TENANT_MRS = 262144 /* regions and windows that a tenant may have: a quarter of the node's keys */
};

/* Of what goes between two nodes' engines. The control planes compare them before they connect anything. */
enum sluice_wire_versions {
    SLUICE_TCP_VERSION = 1,  /* transport/tcp_frame.h */
    SLUICE_TRUNK_VERSION = 2 /* transport/trunk.h */
};

/* Index of what is per direction. */
enum sluice_direction {
    SLUICE_EGRESS = 0, /* bytes that leave a tenant's memory: SEND and WRITE it posts, READ it answers */
    SLUICE_INGRESS = 1
};

enum sluice_weights { SLUICE_WEIGHT_DEFAULT = 100, SLUICE_WEIGHT_MAX = 10000 };

/* What may stop a tenant, for a while (rates) or with ENOMEM (counts). */
enum sluice_limit {
    SLUICE_LIMIT_EGRESS = 0, /* ceilings of its own */
    SLUICE_LIMIT_INGRESS,
    SLUICE_LIMIT_OPERATIONS, /* per second */
    SLUICE_LIMIT_VERBS,      /* control verbs per second */
    SLUICE_LIMIT_ENGINE,     /* share of the engine's time */
    SLUICE_LIMIT_PEER,       /* the ceiling of who is at the other end, or for datagrams what its router grants */
    SLUICE_LIMIT_MRS,
    SLUICE_LIMIT_MR_BYTES,
    SLUICE_LIMIT_QPS,
    SLUICE_LIMIT_CQS,
    SLUICE_LIMIT_FILES,   /* the router's open files that its objects are: EMFILE */
    SLUICE_LIMIT_WINDOWS, /* of the engine onto its memory (window.h): an access error */
    SLUICE_LIMIT_OBJECTS, /* PDs, SRQs and AHs: a fair share of what the router keeps (holdings.h) */
    SLUICE_LIMITS
};

/*
 * A part of the device: a tenant's or a group's. Bits per second and bytes, by
 * enum sluice_direction. 0: no guarantee, no ceiling, a burst chosen from the rate.
 * weight: 1 to SLUICE_WEIGHT_MAX; 0: the default. A group's guarantee is what it
 * has beyond those of its tenants.
 */
struct sluice_share {
    uint64_t min_bps[2];
    uint64_t max_bps[2];
    uint64_t burst[2];
    uint64_t weight;
};

/* What a tenant may use. 0: no limit. */
struct sluice_shape {
    struct sluice_share share;
    uint64_t max_operations; /* SEND, WRITE, READ and atomics per second */
    uint64_t max_verbs;      /* control verbs per second */
    uint64_t max_engine_ns;  /* of the engine's time, per second */
    uint64_t max_mr_bytes;
    uint64_t max_mrs;        /* regions and windows */
    uint64_t max_qps;
    uint64_t max_cqs;
    uint32_t group;          /* its number plus 1; 0: none */
    uint32_t wire_only;      /* rates leave traffic within the node out */
};

/*
 * The counters file: 64-bit words that any tool can map. Page 0 holds struct
 * sluice_counters_header; tenant t is at tenants_offset + t * tenant_stride, group g
 * at groups_offset + g * group_stride, QP slot q at qps_offset + q * qp_stride. Only
 * the engine writes.
 */
struct sluice_counters_header {
    uint64_t magic; /* "SLUICE\0\1" as a little-endian word */
    uint64_t tenants_offset;
    uint64_t tenant_stride;
    uint64_t tenants;
    uint64_t qps_offset;
    uint64_t qp_stride;
    uint64_t qps; /* slots in use so far: none beyond has ever been written */
    uint64_t worker_loops;
    uint64_t worker_parks;
    uint64_t worker_busy_ns;
    uint64_t groups_offset;
    uint64_t group_stride;
    uint64_t groups;
};

struct sluice_tenant_counters {
    uint64_t tx_bytes;      /* payload this tenant sent: SEND, WRITE, READ answered */
    uint64_t rx_bytes;      /* payload it received: SEND, WRITE, READ asked for */
    uint64_t tx_messages;   /* SEND and WRITE messages it sent */
    uint64_t rx_messages;   /* SEND and WRITE messages it received */
    uint64_t reads;         /* READ operations it asked for */
    uint64_t atomics;       /* atomic operations it asked for */
    uint64_t completions;   /* CQEs written to it */
    uint64_t errors;        /* of these, with a status other than success and flush */
    uint64_t throttled_ns[13]; /* by enum sluice_limit: time in which work waited for it */
    uint64_t refused[13];   /* by enum sluice_limit: verbs that failed for it */
    uint64_t last_refused;  /* enum sluice_limit of the latest, plus 1; 0: none yet */
    uint64_t engine_ns;     /* of the engine's time that its work took */
    uint64_t verbs;         /* control verbs that the engine carried out for it */
    uint64_t rnr_naks;      /* its messages that found no receive posted */
    uint64_t qps;           /* objects now */
    uint64_t cqs;
    uint64_t mrs;
    uint64_t mr_bytes;
    uint64_t sessions;
    uint64_t mws;
    uint64_t drops;         /* its UC and UD messages that nobody took; of a group's, those beyond its ceiling */
    uint64_t min_bps[2];    /* in force, by enum sluice_direction; 0: none */
    uint64_t max_bps[2];
    uint64_t device;        /* its number */
};

struct sluice_group_counters {
    uint64_t throttled_ns[13]; /* by enum sluice_limit */
    uint64_t tenants;       /* now */
    uint64_t min_bps[2];    /* beyond its tenants' */
    uint64_t max_bps[2];
};

struct sluice_qp_counters {
    uint64_t qp_num; /* 0: slot free */
    uint64_t tenant;
    uint64_t session;
    uint64_t state;  /* enum ibv_qp_state */
    uint64_t peer_qp_num;
    uint64_t tx_bytes;
    uint64_t rx_bytes;
    uint64_t tx_messages;
    uint64_t rx_messages;
    uint64_t reads;
    uint64_t atomics;
    uint64_t errors;
    uint64_t drops; /* UC and UD: of its messages, those that nobody took; of a group's, those beyond a ceiling */
    uint64_t reserved[3];
};

/* What the engine tells the control plane. */
enum sluice_engine_event_kind {
    SLUICE_EVENT_SESSION_BROKEN = 1, /* garbage in its shared memory; its QPs are stopped already */
    SLUICE_EVENT_QP_DISCONNECTED,    /* its connection to another node broke: make another (sluice_qp_connect) */
    SLUICE_EVENT_TRUNK_DISCONNECTED, /* the same of a trunk (sluice_trunk_connect) */
    SLUICE_EVENT_AH_UNRESOLVED,      /* it is used, and leads nowhere: say where to, if that is known by now (sluice_ah_lead) */
    SLUICE_EVENT_NEIGHBOUR,          /* may this tenant send datagrams to that one? answer with sluice_neighbour_admit */
    SLUICE_EVENT_VERB,               /* of this session: what was -EINPROGRESS is done, ask again */
    SLUICE_EVENT_MEMBER              /* may this tenant hear what that GID sends to groups? answer with sluice_gate_admit */
};

struct sluice_engine_event {
    uint32_t kind;
    uint32_t session;
    uint32_t qp; /* handle: QP_DISCONNECTED */
    uint32_t trunk; /* TRUNK_DISCONNECTED; MEMBER: by which the sender's datagrams come, UINT32_MAX: it is of this node */
    uint32_t ah; /* handle: AH_UNRESOLVED */
    uint8_t gid[16]; /* which it was made for; MEMBER: the sender's */
    uint32_t tenant, peer; /* numbers: NEIGHBOUR; MEMBER: tenant */
    char reason[84];
};

struct sluice_session_files {
    int engine_page; /* owned by the engine: dup before closing */
    int segment;     /* these two are the caller's to close */
    int arena;
};

enum sluice_transport_kind {
    SLUICE_TRANSPORT_NONE = 0,
    SLUICE_TRANSPORT_LOCAL,
    SLUICE_TRANSPORT_TCP,
    SLUICE_TRANSPORT_NIC
};

/*
 * counters_path: where the counters file is made (truncated if it is there), or
 * NULL for none. *out is the engine, its worker running.
 */
int sluice_engine_open(const char *counters_path, struct sluice_engine **out);

/* Ends all sessions, stops the worker, frees everything. */
void sluice_engine_close(struct sluice_engine *engine);

/*
 * For the thread of the control plane: from now on it takes a smaller part of a core
 * than an application, in short slices, so that it still answers within milliseconds.
 * Threads that it starts afterwards do likewise.
 */
void sluice_engine_yield_cores(void);

/* An eventfd that is readable while events wait. Owned by the engine. */
int sluice_engine_event_fd(struct sluice_engine *engine);

/* 1: *event is the oldest waiting event; 0: none waits. */
int sluice_engine_next_event(struct sluice_engine *engine, struct sluice_engine_event *event);

/* A device's RDMA NIC, one port of it. */
struct sluice_nic {
    char fw_ver[SLUICE_NAME];
    uint64_t node_guid; /* big-endian bytes, as ibv_get_device_guid */
    uint64_t max_mr_size;
    uint32_t vendor_id, vendor_part_id, hw_ver;
    uint32_t max_qp, max_qp_wr, max_sge, max_cqe, max_mr, max_pd, max_ah;
    uint32_t max_srq, max_srq_wr, max_srq_sge, max_qp_rd_atom;
    uint32_t port_state, active_mtu, active_speed, active_width; /* as struct ibv_port_attr */
    uint32_t gid_count;
    struct sluice_gid gids[SLUICE_MAX_GIDS]; /* those that tenants can use: RoCE v2; IPv4, then IPv6, link-local ones last */
    uint8_t indices[SLUICE_MAX_GIDS];        /* of these in the port's table */
    uint32_t interfaces[SLUICE_MAX_GIDS];    /* of the host's, by index, that have these addresses; 0: unknown */
};

/*
 * Opens the NIC behind a device (sluice_device_add). What was made before has no part in it, nor what is made on other devices.
 * port: from 1. -ELIBACC: libibverbs can't be loaded, -ELIBBAD: it is older than 1.11, -ENODEV: no such device, NIC or port,
 * -EBUSY: there is one.
 */
int sluice_nic_open(struct sluice_engine *engine, uint32_t device, const char *name, uint32_t port);
/*
 * The NIC is gone, or is to go: QPs that have a part of it go to the error state, what was posted completes. Another may
 * be opened after that, for what is made then. Not while somebody is in sluice_nic_reach.
 */
void sluice_nic_close(struct sluice_engine *engine, uint32_t device);
/* What it is now; QPs use the GIDs that were told last. -ENODEV: none is open. */
int sluice_nic_query(struct sluice_engine *engine, uint32_t device, struct sluice_nic *out);
/* Readable while there are async events. */
int sluice_nic_async_fd(struct sluice_engine *engine, uint32_t device);
/* 1: *event_type (enum ibv_event_type) is the oldest of its port; those of QPs are passed on already. 0: there is none. */
int sluice_nic_next_event(struct sluice_engine *engine, uint32_t device, uint32_t *event_type);

/*
 * Has the kernel find the way to a GID by the NIC, which may take it a second or more: not under the worker's eyes, and so
 * before an address handle or a connection is made. gid_index: of those that were told last. -errno: there is none.
 */
int sluice_nic_reach(struct sluice_engine *engine, uint32_t device, uint32_t gid_index, const uint8_t *dgid);

/*
 * A tenant on a device. of: the number of the same tenant on its first device, which stands for the
 * tenant as a whole; -1: this is the first. Returns its number, which is its slot in the counters file.
 * -EAGAIN: too many; -EEXIST: it has this device; -ENODEV: there is no such device.
 */
int sluice_tenant_add(struct sluice_engine *engine, uint32_t device, int32_t of, const struct sluice_shape *shape);
/* The GID (16 bytes) of a tenant as a whole: datagrams from other nodes name it. */
int sluice_tenant_address(struct sluice_engine *engine, uint32_t tenant, const uint8_t *gid);
/* The answer to SLUICE_EVENT_NEIGHBOUR, or another one later, of tenants as wholes. -EINVAL: no such tenant. */
int sluice_neighbour_admit(struct sluice_engine *engine, uint32_t tenant, uint32_t peer, int admitted);
/*
 * From now on multicast datagrams, of this node and others, come only to those of this node's tenants of which
 * SLUICE_EVENT_MEMBER was answered with yes. -ENOMEM.
 */
int sluice_gate_close(struct sluice_engine *engine);
/* The answer to SLUICE_EVENT_MEMBER, its trunk as it was there (-1: of this node), of a tenant as a whole; what waits for it goes on. -EINVAL: no such number; -ENOMEM. */
int sluice_gate_admit(struct sluice_engine *engine, const uint8_t *sender, int32_t trunk, uint32_t tenant, int admitted);
/* The answers about a sender may be others by now, those about all where it is NULL: they are asked for again. */
void sluice_gate_forget(struct sluice_engine *engine, const uint8_t *sender);
/* -EBUSY while it has sessions (but for such as were closed), further devices, or contexts on this one. */
int sluice_tenant_remove(struct sluice_engine *engine, uint32_t tenant);
/* -EINVAL: no such tenant, or no such group. */
int sluice_tenant_shape(struct sluice_engine *engine, uint32_t tenant, const struct sluice_shape *shape);
/*
 * A control verb that the control plane is about to carry out. Returns 0, or the
 * nanoseconds (at most a second) to wait before asking again: its rate is used up.
 */
int64_t sluice_tenant_verb(struct sluice_engine *engine, uint32_t tenant);

/* A group of tenants on a device. Returns its number. -EAGAIN: too many; -ENODEV: there is no such device. */
int sluice_group_add(struct sluice_engine *engine, uint32_t device, const struct sluice_share *share);
/* -EBUSY while it has tenants. */
int sluice_group_remove(struct sluice_engine *engine, uint32_t group);
int sluice_group_shape(struct sluice_engine *engine, uint32_t group, const struct sluice_share *share);

/* A further device, for good; device 0 is there from the start. Returns its number. -EAGAIN: too many. */
int sluice_device_add(struct sluice_engine *engine);
/*
 * A device's rate in each direction, bits per second. Guarantees are shares of what all devices have
 * together. wire: all traffic of the device together keeps to it as well. Set it before guarantees.
 */
int sluice_device_shape(struct sluice_engine *engine, uint32_t device, uint64_t capacity_bps, uint32_t wire);

/* Bits per second that one thread of this machine copies between cold memory, measured for 50 ms. */
uint64_t sluice_measure_copy(void);

/* Returns the session's number. */
int sluice_session_open(struct sluice_engine *engine, uint32_t tenant, struct sluice_session_files *files);
/* Destroys all it has, in turns of its tenant's where that is much; peers' next messages find nobody. */
int sluice_session_close(struct sluice_engine *engine, uint32_t session);

/*
 * A verb that takes longer than a turn is carried out in turns of its tenant's: it returns -EINPROGRESS, and is to be called
 * again, with the same arguments, after SLUICE_EVENT_VERB. Nothing else is asked of the session meanwhile, but its end.
 */

/* Return the handle. context: whose async events are those of what is made with it. -ENODEV: the tenant hasn't this device. */
int sluice_context_open(struct sluice_engine *engine, uint32_t session, uint32_t device, int *read_fd);
int sluice_pd_alloc(struct sluice_engine *engine, uint32_t session, uint32_t context);
int sluice_channel_create(struct sluice_engine *engine, uint32_t session, int *read_fd);
int sluice_cq_create(struct sluice_engine *engine, uint32_t session,
                     const struct sluice_create_cq_request *request, struct sluice_create_cq_reply *reply);
/* -EINPROGRESS: what waits in it is being copied. */
int sluice_cq_resize(struct sluice_engine *engine, uint32_t session,
                     const struct sluice_resize_cq_request *request, struct sluice_resize_cq_reply *reply);
/* fd: a mapping's file, or /proc/PID/mem (csrc/memory.h); the engine's where a handle is returned. */
int sluice_memory_open_file(struct sluice_engine *engine, uint32_t session, int fd, int writable);
int sluice_memory_open_process(struct sluice_engine *engine, uint32_t session, int fd);
int sluice_qp_create(struct sluice_engine *engine, uint32_t session,
                     const struct sluice_create_qp_request *request, struct sluice_create_qp_reply *reply);
int sluice_qp_open(struct sluice_engine *engine, uint32_t session,
                   const struct sluice_open_qp_request *request, struct sluice_create_qp_reply *reply);
int sluice_srq_create(struct sluice_engine *engine, uint32_t session,
                      const struct sluice_create_srq_request *request, struct sluice_create_srq_reply *reply);
/* peer_tenant: who has the destination GID; -1: nobody, or it is a multicast GID. */
int sluice_ah_create(struct sluice_engine *engine, uint32_t session, const struct sluice_create_ah_request *request,
                     const uint8_t *sgid, int32_t peer_tenant);
/*
 * dev and ino are used where has_inode is not 0; flags: enum sluice_xrcd_flag.
 * -EAGAIN: no such domain, and it isn't to be created.
 */
int sluice_xrcd_open(struct sluice_engine *engine, uint32_t session, uint32_t context, int has_inode, uint64_t dev,
                     uint64_t ino, uint32_t flags);

/* Destroys what was made in it; what only others use stays. -EINPROGRESS. */
int sluice_context_close(struct sluice_engine *engine, uint32_t session, uint32_t handle);

/* -EBUSY while something uses the object; -EINVAL where there is none. */
int sluice_pd_dealloc(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_channel_destroy(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_memory_close(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_cq_destroy(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_qp_destroy(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_srq_destroy(struct sluice_engine *engine, uint32_t session, uint32_t handle);
/*
 * Where what is sent goes from now on: to a tenant of this node (trunk -1), or by the trunk of the node where the
 * destination is (peer_tenant -1). -ENOMEM: the tenant sends to 255 tenants of that node.
 */
int sluice_ah_lead(struct sluice_engine *engine, uint32_t session, uint32_t handle, int32_t peer_tenant, int32_t trunk);
/*
 * The NIC finds its GID. behind: it is that of this device's NIC, so that this node's tenants are there as well; -1: of none. -EOPNOTSUPP: there
 * is none, or none when the PD was made; -errno of the device's.
 */
int sluice_ah_by_nic(struct sluice_engine *engine, uint32_t session, uint32_t handle, int32_t behind);
int sluice_ah_destroy(struct sluice_engine *engine, uint32_t session, uint32_t handle);
/* What is sent there is lost from now on. */
int sluice_ah_sever(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_xrcd_close(struct sluice_engine *engine, uint32_t session, uint32_t handle);

int sluice_srq_set_limit(struct sluice_engine *engine, uint32_t session, uint32_t handle, uint32_t limit);
int sluice_srq_query(struct sluice_engine *engine, uint32_t session, uint32_t handle, struct sluice_srq_reply *reply);

/* gid: 16 bytes. -EINVAL: not a UD QP, not a multicast GID, or (detach) not attached. */
int sluice_qp_attach(struct sluice_engine *engine, uint32_t session, uint32_t handle, const uint8_t *gid);
int sluice_qp_detach(struct sluice_engine *engine, uint32_t session, uint32_t handle, const uint8_t *gid);

/*
 * Applies attributes that the control plane has checked against the state
 * table (router/sluice/control/qp_state.py). At RTR, transport says how bytes
 * travel and peer_tenant who the destination GID belongs to (-1: nobody, then
 * messages run into the retry limit); over the nic transport it is the device whose NIC has that GID (-1: none of
 * the node's, or no QP of the node is meant). *now gets all attributes after the change.
 */
int sluice_qp_modify(struct sluice_engine *engine, uint32_t session, uint32_t handle,
                     const struct sluice_qp_attr *attr, uint32_t attr_mask,
                     uint32_t transport, int32_t peer_tenant, struct sluice_qp_attr *now);
/*
 * fd: a TCP connection to the router of the QP's peer, which knows for which of its QPs it is. Taken
 * over where the result is 0. -ENOTCONN: the QP is in no state, or of no transport, to have one.
 */
int sluice_qp_connect(struct sluice_engine *engine, uint32_t session, uint32_t handle, int fd);

/*
 * A way for datagrams to and from another node (csrc/transport/trunk.h), for good. Returns its number;
 * -ENOMEM; -EAGAIN: there are SLUICE_MAX_NODES.
 */
int sluice_trunk_open(struct sluice_engine *engine);
/* fd: a TCP connection to (connect) or from (accept) that node's router. Taken over where the result is 0. */
int sluice_trunk_connect(struct sluice_engine *engine, uint32_t trunk, int fd);
int sluice_trunk_accept(struct sluice_engine *engine, uint32_t trunk, int fd);
/* The number of the tenant as a whole whose QP has this number behind the GID of the device's NIC. -ENOENT: nobody's. */
int sluice_qp_tenant(struct sluice_engine *engine, uint32_t qp_num, uint32_t device);
/*
 * 1: the QP and this node's QP with that number are joined by the NIC that both are on, where they name each other by its GID, since one
 * of them has an SRQ (csrc/nic_srq.h). 0: by the engine, as all others.
 */
int sluice_qp_shares_receives(struct sluice_engine *engine, uint32_t session, uint32_t handle, uint32_t peer_num);
/* Under which handle of which session it is now: of an XRC_RECV QP that outlives its maker, one that shares it. -ENOENT. */
int sluice_qp_holder(struct sluice_engine *engine, uint32_t qp_num, uint32_t *session, uint32_t *handle);
/*
 * Whether completions of receives that a tenant's QP had when it was first asked still wait to be polled: 1 or 0. first: that
 * is now, and *mark is set to where they end.
 */
int sluice_qp_unread(struct sluice_engine *engine, uint32_t tenant, uint32_t qp_num, int first, uint32_t *mark);
/* Its number. */
int sluice_qp_number(struct sluice_engine *engine, uint32_t session, uint32_t handle);
/* To the error state, with IBV_EVENT_QP_FATAL for the application: its connection was taken from it. */
int sluice_qp_fail(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_qp_query(struct sluice_engine *engine, uint32_t session, uint32_t handle,
                    struct sluice_qp_attr *now);
/* The number of the device that a QP or a PD is of. */
int sluice_qp_device(struct sluice_engine *engine, uint32_t session, uint32_t handle);
int sluice_pd_device(struct sluice_engine *engine, uint32_t session, uint32_t handle);
/* Its enum ibv_qp_type. */
int sluice_qp_type(struct sluice_engine *engine, uint32_t session, uint32_t handle);

/* Writes an async event (enum ibv_event_type) to all contexts of the session that are on the device. */
int sluice_session_async_event(struct sluice_engine *engine, uint32_t session, uint32_t device,
                               uint32_t event_type, uint32_t element);

#endif
