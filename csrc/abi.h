/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout that a tenant's shim and the router's engine share: control
 * messages (zmq frames) and everything in shared memory.
 *
 * This header is the only declaration of both. C includes it; Python reads the
 * same text through cffi (router/sluice/engine/build.py), so it holds nothing
 * but fixed-width structs and enums. Numbers that verbs define (states, access
 * flags, work completion statuses, GID types) keep rdma-core's values.
 *
 * Three files carry shared memory, all made by the router and handed to the
 * shim over the descriptor socket:
 *
 *   engine page   one for the node, read-only for tenants: struct sluice_engine_page
 *   segment       one per session, 2^32 bytes, sparse: struct sluice_segment at
 *                 offset 0, then the rings of that session's queues
 *   arena         one per session, 2^47 bytes, sparse: the file offset is the
 *                 application's virtual address (see shim/arena.h)
 *
 * Trust: the engine believes nothing that a tenant can write. It copies a WQE
 * or a command once, checks the copy and uses the copy. Sizes and offsets of
 * rings are kept by the engine itself and only told to the shim.
 *
 * Byte order is the host's; both ends run on one machine.
 */
#ifndef SLUICE_ABI_H
#define SLUICE_ABI_H

#ifndef SLUICE_CDEF
#include <stdint.h>
#endif

enum {
    SLUICE_ABI_VERSION = 7,

    SLUICE_SEGMENT_SHIFT = 32,  /* log2 of a session's segment, bytes */
    SLUICE_ARENA_SHIFT = 47,    /* log2 of the arena, bytes: user addresses */
    SLUICE_WINDOW_SHIFT = 30,   /* log2 of the engine's view into an arena */
    SLUICE_SEGMENT_RINGS = 65536, /* offset of the first ring in a segment */

    SLUICE_SESSION_QPS = 16384, /* QPs per session: bits in the doorbell */
    SLUICE_DOORBELL_WORDS = 256,
    SLUICE_DOORBELL_SUMMARY = 4,
    SLUICE_SESSION_SRQS = 4096, /* per session: bits in the doorbell's second part; handle 0 is none */
    SLUICE_DOORBELL_SRQ_WORDS = 64,
    SLUICE_SESSION_PDS = 4096,
    SLUICE_SESSION_CQS = 65536, /* handles are 1..SLUICE_SESSION_CQS - 1 */
    SLUICE_SESSION_AHS = 65536, /* AHs per session; handles are 1..SLUICE_SESSION_AHS - 1 */
    SLUICE_MAX_SRQN = 65535,    /* an SRQ's number is 16 bits, 0 is nobody's */
    SLUICE_MTU = 4096,          /* bytes: the longest UD message */
    SLUICE_GRH = 40,            /* bytes before the data of a received UD message */
    SLUICE_TENANT_GROUPS = 8192, /* attachments of one tenant's QPs to multicast groups, and as many AHs of groups */
    SLUICE_GROUP_QPS = 240,     /* QPs that one tenant attaches to one group */

    SLUICE_BLOCK = 64,          /* a WQE is 1..8 blocks of one cache line */
    SLUICE_WQE_MAX = 512,       /* bytes */
    SLUICE_WQE_SGES = 2,        /* SGEs that fit beside the header in block 0 */
    SLUICE_MAX_SGE = 29,     /* 32-byte header, 16 of an atomic, 29 SGEs: WQE_MAX */
    SLUICE_MAX_INLINE = 480,    /* bytes: WQE_MAX less the 32-byte header */
    SLUICE_MAX_WR = 32768,      /* per queue */
    SLUICE_MAX_CQE = 1048576,   /* per CQ: 2^20 */
    SLUICE_MAX_GIDS = 32,
    SLUICE_MAX_DEVICES = 16,    /* of a node, and so of a tenant */
    SLUICE_NAME = 64,
    SLUICE_DEVICE_NAME = 16,
    SLUICE_TOKEN = 16
};

/* ---- control channel: zmq frames -------------------------------------- */

/*
 * A request is one frame: a struct sluice_*_request. The answer is one frame
 * that starts with the same op and cookie; status is 0 or a positive errno.
 * A request whose size is not that of its struct ends the session.
 */
enum sluice_op {
    SLUICE_OP_HELLO = 1,
    SLUICE_OP_QUERY_DEVICE,
    SLUICE_OP_ALLOC_PD,
    SLUICE_OP_DEALLOC_PD,
    SLUICE_OP_CREATE_CHANNEL,
    SLUICE_OP_DESTROY_CHANNEL,
    SLUICE_OP_CREATE_CQ,
    SLUICE_OP_DESTROY_CQ,
    SLUICE_OP_CREATE_QP,
    SLUICE_OP_MODIFY_QP,
    SLUICE_OP_QUERY_QP,
    SLUICE_OP_DESTROY_QP,
    SLUICE_OP_CREATE_SRQ,
    SLUICE_OP_MODIFY_SRQ,
    SLUICE_OP_QUERY_SRQ,
    SLUICE_OP_DESTROY_SRQ,
    SLUICE_OP_CREATE_AH,
    SLUICE_OP_DESTROY_AH,
    SLUICE_OP_ATTACH_MCAST,
    SLUICE_OP_DETACH_MCAST,
    SLUICE_OP_OPEN_XRCD,
    SLUICE_OP_CLOSE_XRCD,
    SLUICE_OP_OPEN_QP,
    SLUICE_OP_OPEN_CONTEXT, /* the answer comes with a descriptor: its end of the async event channel */
    SLUICE_OP_CLOSE_CONTEXT, /* destroys what was made in it */
    SLUICE_OP_LIST_DEVICES,
    SLUICE_OP_RESIZE_CQ = 32,
    SLUICE_OP_OPEN_MEMORY,
    SLUICE_OP_CLOSE_MEMORY,

    SLUICE_OP_CM_CREATE_CHANNEL = 128, /* rdma_cm */
    SLUICE_OP_CM_DESTROY_CHANNEL,
    SLUICE_OP_CM_GET_EVENT,
    SLUICE_OP_CM_CREATE_ID,
    SLUICE_OP_CM_DESTROY_ID,
    SLUICE_OP_CM_MIGRATE_ID,
    SLUICE_OP_CM_BIND,
    SLUICE_OP_CM_RESOLVE_ADDR,
    SLUICE_OP_CM_RESOLVE_ROUTE,
    SLUICE_OP_CM_QUERY,
    SLUICE_OP_CM_LISTEN,
    SLUICE_OP_CM_CONNECT,
    SLUICE_OP_CM_ACCEPT,
    SLUICE_OP_CM_REJECT,
    SLUICE_OP_CM_DISCONNECT,
    SLUICE_OP_CM_NOTIFY,
    SLUICE_OP_CM_SET_OPTION,
    SLUICE_OP_CM_INIT_QP_ATTR,
    SLUICE_OP_CM_JOIN,
    SLUICE_OP_CM_LEAVE,
    SLUICE_OP_CM_WRITE_EVENT
};

struct sluice_header {
    uint16_t op;     /* enum sluice_op */
    uint16_t size;   /* of the whole frame, bytes */
    int32_t status;  /* answers: 0 or errno */
    uint64_t cookie; /* echoed; matches an answer (and a descriptor) to its request */
};

/*
 * The first thing on the descriptor socket (AF_UNIX SOCK_SEQPACKET), from the
 * router, with three descriptors: engine page, segment, arena; and a fourth,
 * /dev/userfaultfd, where has_userfaultfd is 1.
 * The socket stays open as long as the session lives.
 */
struct sluice_welcome {
    uint32_t abi_version;
    uint32_t session;
    uint8_t token[SLUICE_TOKEN]; /* says on the zmq socket which session speaks */
    uint32_t has_userfaultfd;
    uint32_t reserved;
};

/*
 * Later packets on that socket: one descriptor each, for the request with this
 * cookie. Sent before the zmq answer, so a shim that has the answer finds it.
 */
struct sluice_descriptor {
    uint64_t cookie;
};

struct sluice_hello_request {
    struct sluice_header header;
    uint32_t abi_version;
    uint32_t reserved;
    uint8_t token[SLUICE_TOKEN];
};

struct sluice_hello_reply {
    struct sluice_header header; /* EPROTO: other ABI version; EACCES: bad token */
    uint32_t abi_version;        /* the router's */
    uint32_t session;
};

/* One of the tenant's devices. */
struct sluice_device_entry {
    char name[SLUICE_DEVICE_NAME]; /* "sluice0" */
    uint64_t node_guid;            /* big-endian bytes, as ibv_get_device_guid */
    uint32_t number;               /* below SLUICE_MAX_DEVICES; as long as the tenant has the device, the same */
    uint32_t reserved;
};

/* Answer to LIST_DEVICES: those that the tenant has now. */
struct sluice_devices_reply {
    struct sluice_header header;
    uint32_t count;
    uint32_t reserved;
    struct sluice_device_entry devices[SLUICE_MAX_DEVICES];
};

/*
 * Handles name objects of one session. Those of PDs, channels and CQs are never
 * 0 and not used again soon; a QP's and an SRQ's is its bit in the doorbell.
 *
 * Any request about one object. ALLOC_PD's is the context; QUERY_DEVICE's and OPEN_CONTEXT's the
 * device's number; LIST_DEVICES' 0.
 */
struct sluice_handle_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t reserved;
};

/* Any answer that is a handle, or nothing but a status. */
struct sluice_handle_reply {
    struct sluice_header header;
    uint32_t handle;
    uint32_t reserved;
};

struct sluice_gid {
    uint8_t raw[16];
    uint32_t type; /* enum ibv_gid_type: 1 = RoCE v1, 2 = RoCE v2 */
    uint32_t reserved;
};

/* Answer to QUERY_DEVICE: what differs from device to device. One port. */
struct sluice_device_reply {
    struct sluice_header header;
    char fw_ver[SLUICE_NAME];
    uint64_t node_guid;
    uint64_t sys_image_guid;
    uint64_t max_mr_size;
    uint64_t page_size_cap;
    uint32_t vendor_id;
    uint32_t vendor_part_id;
    uint32_t hw_ver;
    uint32_t max_qp;
    uint32_t max_qp_wr;
    uint32_t max_sge;
    uint32_t max_inline;
    uint32_t max_cq;
    uint32_t max_cqe;
    uint32_t max_mr;
    uint32_t max_pd;
    uint32_t max_qp_rd_atom;
    uint32_t max_srq;
    uint32_t max_srq_wr;
    uint32_t max_srq_sge;
    uint32_t max_ah;
    uint32_t max_mcast_grp;
    uint32_t max_mcast_qp_attach;
    uint32_t max_total_mcast_qp_attach;
    uint32_t reserved0;
    uint32_t port_state; /* enum ibv_port_state */
    uint32_t active_mtu; /* enum ibv_mtu */
    uint32_t active_speed;
    uint32_t active_width;
    uint32_t gid_count;
    uint32_t reserved;
    struct sluice_gid gids[SLUICE_MAX_GIDS];
};

enum sluice_cq_flag {
    SLUICE_CQ_IGNORE_OVERRUN = 1 /* CQEs that find the queue full replace the oldest */
};

struct sluice_create_cq_request {
    struct sluice_header header;
    uint32_t cqe;     /* asked for; the ring gets the next power of two */
    uint32_t channel; /* handle, or 0 */
    uint32_t flags;   /* enum sluice_cq_flag */
    uint32_t context; /* handle: gets its async events */
};

struct sluice_create_cq_reply {
    struct sluice_header header;
    uint32_t handle;
    uint32_t cqe;    /* ring entries: a power of two */
    uint64_t offset; /* of struct sluice_cq_shared in the segment */
    uint64_t ring;   /* of the CQEs */
};

/*
 * The CQEs that wait move to a new ring: each keeps its number, and so gets
 * another slot and turn. Nobody may poll between this request and its answer.
 */
struct sluice_resize_cq_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t cqe;
};

struct sluice_resize_cq_reply {
    struct sluice_header header; /* EINVAL: fewer than are waiting, or more than there may be */
    uint32_t cqe;
    uint32_t reserved;
    uint64_t ring;
};

/*
 * Memory that can't be moved onto the arena (shim/memory.h). The answer is the
 * handle that REG_MR takes; CLOSE_MEMORY (EBUSY while MRs lie in it) ends it.
 *
 *   FILE     a mapping's own file. has_descriptor: it follows on the descriptor
 *            socket, in a struct sluice_descriptor, before this request; else the
 *            router looks for what is mapped at start
 *   PROCESS  the process itself, whatever is mapped there
 *   DMABUF   a dma-buf; has_descriptor
 */
enum sluice_memory_kind {
    SLUICE_MEMORY_FILE = 1,
    SLUICE_MEMORY_PROCESS,
    SLUICE_MEMORY_DMABUF
};

struct sluice_open_memory_request {
    struct sluice_header header;
    uint32_t kind;
    uint32_t has_descriptor;
    uint32_t writable;
    uint32_t reserved;
    uint64_t start; /* FILE without descriptor, PROCESS: a range that is to be registered */
    uint64_t length;
};

struct sluice_qp_cap {
    uint32_t max_send_wr;
    uint32_t max_recv_wr;
    uint32_t max_send_sge;
    uint32_t max_recv_sge;
    uint32_t max_inline_data;
};

struct sluice_create_qp_request {
    struct sluice_header header;
    uint32_t pd;
    uint32_t send_cq;
    uint32_t recv_cq;
    uint32_t qp_type; /* enum ibv_qp_type */
    uint32_t sq_sig_all;
    uint32_t srq;     /* handle, or 0: a receive queue of its own */
    uint32_t xrcd;    /* XRC_RECV: handle; it has neither PD nor CQs */
    struct sluice_qp_cap cap;
    uint32_t reserved;
};

struct sluice_create_qp_reply {
    struct sluice_header header;
    uint32_t handle; /* 0..SLUICE_SESSION_QPS-1: the bit in the doorbell */
    uint32_t qp_num;
    struct sluice_qp_cap cap; /* granted: at least what was asked for */
    uint32_t sq_entries;      /* powers of two; 0: the queue does not exist */
    uint32_t rq_entries;
    uint32_t sq_stride;       /* bytes from one WQE to the next */
    uint32_t rq_stride;
    uint32_t opcodes;         /* bit n: it may send enum ibv_wr_opcode n */
    uint32_t reserved;
    uint64_t offset;          /* of struct sluice_qp_shared in the segment */
    uint64_t sq_offset;
    uint64_t rq_offset;
};

/* Opens an XRC_RECV QP of the domain that another process has made; answered as CREATE_QP. */
struct sluice_open_qp_request {
    struct sluice_header header;
    uint32_t xrcd;
    uint32_t qp_num;
};

struct sluice_create_srq_request {
    struct sluice_header header;
    uint32_t pd;
    uint32_t max_wr;
    uint32_t max_sge;
    uint32_t limit;
    uint32_t xrcd; /* handle, or 0: not for XRC */
    uint32_t cq;   /* handle where xrcd is one: gets the completions */
};

struct sluice_create_srq_reply {
    struct sluice_header header;
    uint32_t handle;  /* 1..SLUICE_SESSION_SRQS-1: the bit in the doorbell */
    uint32_t srq_num; /* how XRC names it, else 0 */
    uint32_t max_wr;  /* granted: ring entries, a power of two */
    uint32_t max_sge;
    uint32_t stride; /* bytes from one WQE to the next */
    uint32_t reserved;
    uint64_t offset; /* of struct sluice_srq_shared in the segment; the ring follows */
};

struct sluice_modify_srq_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t limit;
};

/* Answer to QUERY_SRQ. */
struct sluice_srq_reply {
    struct sluice_header header;
    uint32_t max_wr;
    uint32_t max_sge;
    uint32_t limit; /* 0: not armed */
    uint32_t reserved;
};

/* dev and ino are what fstat says of fd; the router looks for itself where it can. */
struct sluice_open_xrcd_request {
    struct sluice_header header;
    uint64_t dev;
    uint64_t ino;
    int32_t fd;      /* -1: a domain that nobody else finds */
    uint32_t oflags; /* enum sluice_xrcd_flag */
    uint32_t context;
    uint32_t reserved;
};

enum sluice_xrcd_flag {
    SLUICE_XRCD_CREATE = 1,
    SLUICE_XRCD_EXCL = 2
};

struct sluice_ah_attr {
    uint8_t dgid[16];
    uint32_t flow_label;
    uint32_t sgid_index;
    uint32_t hop_limit;
    uint32_t traffic_class;
    uint32_t dlid;
    uint32_t sl;
    uint32_t src_path_bits;
    uint32_t static_rate;
    uint32_t is_global;
    uint32_t port_num;
};

struct sluice_create_ah_request {
    struct sluice_header header;
    uint32_t pd;
    uint32_t reserved;
    struct sluice_ah_attr attr;
};

/* ATTACH_MCAST and DETACH_MCAST. */
struct sluice_mcast_request {
    struct sluice_header header;
    uint32_t handle; /* QP */
    uint32_t reserved;
    uint8_t gid[16];
};

/* struct ibv_qp_attr less the alternate path, which RoCE doesn't have. */
struct sluice_qp_attr {
    uint32_t qp_state; /* enum ibv_qp_state */
    uint32_t cur_qp_state;
    uint32_t path_mtu;
    uint32_t path_mig_state;
    uint32_t qkey;
    uint32_t rq_psn;
    uint32_t sq_psn;
    uint32_t dest_qp_num;
    uint32_t qp_access_flags;
    uint32_t pkey_index;
    uint32_t en_sqd_async_notify;
    uint32_t sq_draining;
    uint32_t max_rd_atomic;
    uint32_t max_dest_rd_atomic;
    uint32_t min_rnr_timer;
    uint32_t port_num;
    uint32_t timeout;
    uint32_t retry_cnt;
    uint32_t rnr_retry;
    uint32_t rate_limit;
    struct sluice_qp_cap cap;
    struct sluice_ah_attr ah;
};

struct sluice_modify_qp_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t attr_mask; /* enum ibv_qp_attr_mask */
    struct sluice_qp_attr attr;
};

/* Answer to MODIFY_QP and QUERY_QP: the attributes as they are now. */
struct sluice_qp_reply {
    struct sluice_header header;
    struct sluice_qp_attr attr;
};

/* ---- control channel: rdma_cm ------------------------------------------- */

/*
 * An event channel is a socket that holds one byte for each event that waits in the
 * router; whoever has read a byte asks for the event (GET_EVENT: EAGAIN where another
 * thread was faster, or the event's id was destroyed meanwhile). Destroying
 * a channel destroys the ids that are on it.
 *
 * uid is the shim's own name for an id or a multicast membership: it comes back in events.
 * An id that a connection request made gets its uid with ACCEPT and has no events before.
 */
enum {
    SLUICE_CM_PRIVATE_DATA = 196, /* bytes: a reply's, the most that a message of the CM carries */
    SLUICE_CM_REJECT_DATA = 148,
    SLUICE_CM_OPTION = 8
};

struct sluice_cm_addr {
    uint16_t family; /* AF_INET, AF_INET6; 0: none */
    uint16_t port;   /* big-endian */
    uint32_t scope_id;
    uint8_t addr[16]; /* AF_INET: the first four */
};

/* What an id knows of its two ends. */
struct sluice_cm_route {
    struct sluice_cm_addr src;
    struct sluice_cm_addr dst;
    uint8_t sgid[16];
    uint8_t dgid[16];
    uint32_t bound; /* 1 + the number of the device that it is bound to; 0: to none */
    uint32_t paths; /* 1: its route is resolved */
    uint32_t traffic_class;
    uint32_t packet_life_time; /* 4.096 us * 2^n */
};

/* struct rdma_conn_param, with what it needs for QPs that the application made. */
struct sluice_cm_param {
    uint32_t qp_num;
    uint32_t qkey;
    uint8_t srq;
    uint8_t responder_resources;
    uint8_t initiator_depth;
    uint8_t flow_control;
    uint8_t retry_count;
    uint8_t rnr_retry_count;
    uint8_t private_data_len;
    uint8_t valid; /* ACCEPT: 0 on the connecting side, which only says that it is ready */
    uint32_t ece_vendor;
    uint32_t ece_options;
    uint8_t private_data[SLUICE_CM_PRIVATE_DATA];
};

struct sluice_cm_create_id_request {
    struct sluice_header header;
    uint64_t uid;
    uint32_t channel;
    uint32_t port_space; /* enum rdma_port_space */
    uint32_t qp_type;    /* enum ibv_qp_type */
    uint32_t reserved;
};

/* BIND (src alone), RESOLVE_ADDR. */
struct sluice_cm_address_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t timeout_ms;
    struct sluice_cm_addr src;
    struct sluice_cm_addr dst;
};

/* Requests with one number: MIGRATE_ID (channel), LISTEN (backlog), NOTIFY (event), INIT_QP_ATTR (state),
 * RESOLVE_ROUTE (timeout, ms). */
struct sluice_cm_value_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t value;
};

/* CONNECT, ACCEPT. */
struct sluice_cm_param_request {
    struct sluice_header header;
    uint64_t uid;
    uint32_t handle;
    uint32_t reserved;
    struct sluice_cm_param param;
};

struct sluice_cm_reject_request {
    struct sluice_header header;
    uint32_t handle;
    uint8_t reason; /* 0: consumer defined */
    uint8_t private_data_len;
    uint8_t reserved[2];
    uint8_t private_data[SLUICE_CM_REJECT_DATA];
};

struct sluice_cm_option_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t level;
    uint32_t optname;
    uint32_t optlen; /* up to SLUICE_CM_OPTION bytes */
    uint8_t optval[SLUICE_CM_OPTION];
};

struct sluice_cm_join_request {
    struct sluice_header header;
    uint64_t uid;
    uint32_t handle;
    uint32_t join_flags; /* enum rdma_cm_mc_join_flags */
    struct sluice_cm_addr addr;
};

/* The id gets an event of its own making; arg comes back as its first 8 bytes of private data. */
struct sluice_cm_write_event_request {
    struct sluice_header header;
    uint32_t handle;
    uint32_t event; /* enum rdma_cm_event_type: ADDRINFO_RESOLVED, ADDRINFO_ERROR, USER */
    int32_t event_status;
    uint32_t reserved;
    uint64_t arg;
};

/*
 * DESTROY_ID, MIGRATE_ID, LEAVE: how many events GET_EVENT has given out; the shim waits until all are acknowledged.
 * surplus: bytes in the (old) channel whose events are no more, as far as the shim finds them there.
 */
struct sluice_cm_events_reply {
    struct sluice_header header;
    uint32_t events;
    uint32_t surplus;
};

/* BIND, QUERY, LISTEN. */
struct sluice_cm_route_reply {
    struct sluice_header header;
    struct sluice_cm_route route;
};

struct sluice_cm_qp_attr_reply {
    struct sluice_header header;
    uint32_t attr_mask;
    uint32_t reserved;
    struct sluice_qp_attr attr;
};

struct sluice_cm_event_reply {
    struct sluice_header header;
    uint64_t uid;
    uint32_t handle; /* CONNECT_REQUEST: the new id; uid is the listening one's */
    uint32_t event;  /* enum rdma_cm_event_type */
    int32_t event_status;
    uint32_t reserved;
    struct sluice_cm_param param;
    struct sluice_ah_attr ah; /* UD */
    struct sluice_cm_route route;
};

/* ---- engine page: one per node, tenants map it read-only --------------- */

struct sluice_engine_page {
    /*
     * 1 while the engine sleeps on this word (futex, shared), or is about to.
     * Who posts work makes it visible first, then a full fence, then reads this
     * word, and wakes the engine for as long as the word is 1 and the wake-up
     * reached nobody: tenants can't write the word, so the engine may still
     * have been on its way to sleep.
     */
    uint32_t parked;
    uint32_t abi_version;
    uint32_t pins; /* 1: there is a NIC, for which registered memory is pinned: it must have been touched */
    uint32_t core; /* on which it went to sleep last, and one; 0: not known */
    uint32_t reserved[12];
};

/* ---- segment: one per session ------------------------------------------ */

/*
 * Registering memory is hot in many applications, and deregistering must not
 * race with a copy; so the engine itself does both, on this one mailbox. The
 * shim serialises its callers.
 */
enum sluice_command_op {
    SLUICE_COMMAND_REG_MR = 1,
    SLUICE_COMMAND_DEREG_MR, /* EBUSY: windows are bound to it */
    SLUICE_COMMAND_REREG_MR,
    SLUICE_COMMAND_ALLOC_MW,
    SLUICE_COMMAND_DEALLOC_MW,
    /* Answered when all is done that a thread had to do in memory of the process (SLUICE_MEMORY_PROCESS): after what ends a use of it
     * otherwise than by a completion, as a QP's reset does. Routers that don't know it say EINVAL. */
    SLUICE_COMMAND_FENCE
};

enum sluice_command_state {
    SLUICE_COMMAND_IDLE = 0,
    SLUICE_COMMAND_POSTED, /* by the shim */
    SLUICE_COMMAND_DONE    /* by the engine, which then wakes the word */
};

struct sluice_command {
    uint32_t state;  /* futex word */
    uint32_t op;
    uint32_t pd;     /* its own, on whose device the key is; REREG_MR with a new one: that */
    uint32_t access; /* REG_MR, REREG_MR: enum ibv_access_flags */
    uint64_t addr;   /* REG_MR, REREG_MR: the application's address; in a FILE the offset */
    uint64_t length; /* REG_MR, REREG_MR: bytes */
    uint64_t iova;   /* REG_MR, REREG_MR: the address that WRs use */
    uint32_t key;    /* REG_MR, ALLOC_MW: out, lkey and rkey; REREG_MR: in and out; others: in */
    int32_t status;  /* out: 0 or errno */
    uint32_t sleeping; /* the shim waits on state with a futex */
    uint32_t memory; /* REG_MR, REREG_MR: 0 is the arena; else a handle of OPEN_MEMORY */
    uint32_t flags;  /* REREG_MR: enum ibv_rereg_mr_flags; ALLOC_MW: enum ibv_mw_type */
    uint32_t reserved;
};

/*
 * Doorbell: bit n of words says that QP n has something new; bit w of summary
 * says that words[w] is not 0. The shim sets words before summary, the engine
 * clears summary before words. srq_summary and srq_words are the same for SRQs.
 * command is 1 while the mailbox is POSTED.
 */
struct sluice_segment {
    uint64_t summary[SLUICE_DOORBELL_SUMMARY];
    uint64_t srq_summary;
    uint32_t command_rung;
    uint32_t give_way; /* engine: 1: who polls in vain gives way to others on its core */
    uint32_t core;     /* shim: where who rang last for a QP ran, plus 1; 0: it doesn't say */
    uint32_t reserved[3];
    struct sluice_command command;
    uint64_t words[SLUICE_DOORBELL_WORDS];
    uint64_t srq_words[SLUICE_DOORBELL_SRQ_WORDS];
};

/*
 * A send queue or receive queue. Indices count WRs and run free (modulo 2^32);
 * the slot of WR i is i & (entries - 1). A slot is free again when the CQE that
 * covers it has been polled, so the shim needs no consumer index of the engine's.
 *
 * armed: the engine has seen everything up to producer and won't look again
 * until it is told. Who raises producer does so with release, then a full
 * fence, then exchanges armed with 0, and rings the doorbell if it was 1.
 */
struct sluice_queue_shared {
    uint32_t producer;     /* shim */
    uint32_t reserved0[15];
    uint32_t armed;        /* engine sets, shim takes */
    uint32_t reserved1[15];
};

struct sluice_qp_shared {
    struct sluice_queue_shared sq;
    struct sluice_queue_shared rq;
    uint32_t state;  /* engine: enum ibv_qp_state, so that posting can refuse */
    uint32_t prompt; /* engine: not 0: posting a receive returns when taken has passed it */
    uint32_t taken;  /* engine: as rq.producer: those before it are where messages look for them */
    uint32_t reserved[13];
};

/*
 * A shared receive queue: WQEs as in a receive queue, taken in the order in which
 * they were posted, whichever QP's message takes them. The engine copies a WQE
 * when it takes it, so a slot is free again when consumer has passed it: no list
 * of free slots is needed for receives that complete out of order.
 */
struct sluice_srq_shared {
    struct sluice_queue_shared queue;
    uint32_t consumer; /* engine: WRs taken, running free */
    uint32_t reserved[15];
};

/* Wire opcodes of send WQEs: rdma-core's enum ibv_wr_opcode. */
enum sluice_wqe_flag {
    SLUICE_WQE_SIGNALED = 1,
    SLUICE_WQE_SOLICITED = 2,
    SLUICE_WQE_FENCE = 4,
    SLUICE_WQE_INLINE = 8
};

struct sluice_sge {
    uint64_t addr;
    uint32_t length;
    uint32_t lkey;
};

/*
 * A send WQE: this header, then what the opcode needs:
 *   inline      inline_length bytes right behind the header
 *   atomic      struct sluice_atomic, then num_sge SGEs
 *   BIND_MW     struct sluice_bind; rkey is the window's new key, remote_addr the
 *               first byte's address in the MR, imm_data the MR's lkey
 *   LOCAL_INV   nothing; imm_data is the key
 *   else        num_sge SGEs
 */
struct sluice_wqe {
    uint8_t opcode; /* enum ibv_wr_opcode */
    uint8_t flags;  /* enum sluice_wqe_flag */
    uint16_t num_sge;
    uint16_t inline_length;
    uint16_t remote_srqn; /* XRC_SEND */
    uint64_t wr_id;
    union {
        uint64_t remote_addr;
        struct {
            uint32_t ah; /* UD: handle */
            uint32_t remote_qpn;
        };
    };
    union {
        uint32_t rkey;
        uint32_t remote_qkey; /* UD */
    };
    uint32_t imm_data; /* big-endian as given, or the rkey to invalidate */
};

struct sluice_atomic {
    uint64_t compare_add;
    uint64_t swap;
};

struct sluice_bind {
    uint64_t length; /* bytes; 0: the window is unbound */
    uint32_t access; /* enum ibv_access_flags */
    uint32_t reserved;
};

struct sluice_recv_wqe {
    uint64_t wr_id;
    uint32_t num_sge;
    uint32_t reserved;
    /* SGEs follow */
};

enum sluice_cqe_queue {
    SLUICE_CQE_SEND = 0,
    SLUICE_CQE_RECEIVE = 1,
    SLUICE_CQE_SRQ = 2 /* tail is the SRQ's handle; the QP may be another process's */
};

/*
 * A CQE is one cache line. turn is stored last, with release: entry i (running
 * free) is there when turn == (i / entries) + 1, modulo 2^32.
 */
struct sluice_cqe {
    uint64_t wr_id;
    uint32_t status;   /* enum ibv_wc_status */
    uint32_t opcode;   /* enum ibv_wc_opcode */
    uint32_t vendor_err;
    uint32_t byte_len;
    uint32_t imm_data; /* or the key that was invalidated */
    uint32_t wc_flags; /* enum ibv_wc_flags */
    uint32_t qp_num;
    uint32_t src_qp;
    uint32_t qp;       /* handle of the QP */
    uint32_t tail;     /* WRs of the queue that are free now, running count */
    uint64_t timestamp; /* CLOCK_MONOTONIC, ns */
    uint32_t queue;    /* enum sluice_cqe_queue: whose WR it was, and whose tail */
    uint32_t turn;
};

enum sluice_cq_arm {
    SLUICE_CQ_UNARMED = 0,
    SLUICE_CQ_ARM_NEXT = 1,
    SLUICE_CQ_ARM_SOLICITED = 2
};

struct sluice_cq_shared {
    uint32_t consumer; /* shim: entries polled, running free */
    uint32_t reserved0[15];
    /*
     * Shim sets enum sluice_cq_arm, then a full fence, then polls once more;
     * the engine stores CQEs, then a full fence, then takes it and writes one
     * struct sluice_comp_event to the channel. armed_at: consumer when it was
     * armed; CQEs polled before make no event.
     */
    uint32_t arm;
    uint32_t armed_at;
    uint32_t reserved1[14];
};

/* What the router sends to a completion channel. */
struct sluice_comp_event {
    uint32_t cq; /* handle */
    uint32_t reserved;
};

/* What the router sends of async events of a context. */
struct sluice_async_event {
    uint32_t event_type; /* enum ibv_event_type */
    uint32_t element;    /* the QP's number, the CQ's or SRQ's handle, or the port's number */
};

#endif
