/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything that the engine has, and who owns what:
 *
 *   engine ── tenants ── sessions ── contexts, PDs, channels, CQs, QPs, SRQs, AHs, MRs, memory
 *          │         └── XRC domains, which sessions of one tenant share
 *          ├── devices ── NICs, one of each at most
 *          └── multicast groups
 *
 * A tenant that has several devices is a struct tenant on each of them, metered and shaped there by
 * itself. The first of these stands for the tenant as a whole: sessions are its, and to peers it is who
 * they talk to. A context, and what is made in it, belongs to the one on the context's device.
 *
 * Only the worker touches any of it (see worker.h), so there are no locks.
 */
#ifndef SLUICE_NODE_H
#define SLUICE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"
#include "counters.h"
#include "engine.h"
#include "event_channel.h"
#include "lane.h"
#include "list.h"
#include "shaper.h"
#include "segment.h"
#include "timer.h"
#include "window.h"

struct ah;
struct context;
struct cq;
struct device;
struct fence;
struct gate;
struct group;
struct ibv_pd;
struct mr;
struct nic;
struct neighbours;
struct nic_pool;
struct qp;
struct reach;
struct registration;
struct session;
struct srq;
struct worker;
struct net;
struct stream;
struct trunk;

/* Who is metered: a tenant, a group of them, or a whole device. */
struct account {
    struct entity entity;
    struct lane lanes[DIRECTIONS]; /* other tenants' QPs that wait for its ceiling */
    struct sluice_engine *engine;
    struct device *device;
};

struct tenant_group {
    struct account account;
    uint32_t number;
    uint32_t tenants;
    struct sluice_share share;
    struct sluice_group_counters *counters;
};

/*
 * Work for a tenant that isn't a QP's own sending: what came for it from another node, or is asked of it from there; and
 * what its verbs take of the engine (FLOW_CONTROL).
 */
struct chore {
    struct list link; /* in tenant->chores, or tenant->active[FLOW_CONTROL] */
    /*
     * Does up to so many bytes of it, and says how many; it comes back by itself while there is more. FLOW_CONTROL: does as
     * much as a turn is long, and says how many verbs that were.
     */
    uint32_t (*run)(struct chore *chore, uint32_t bytes);
};

/* holdings.h */
enum holding { HOLDING_QPS, HOLDING_KEYS, HOLDING_CQS, HOLDING_PDS, HOLDING_SRQS, HOLDING_AHS, HOLDINGS };

/* What a NIC is told to pace a QP by; all 0: nothing. */
struct pace {
    uint64_t rate;  /* bits per second */
    uint64_t burst; /* bytes; 0: the NIC's own */
};

struct tenant {
    struct account account;
    struct sluice_engine *engine;
    uint32_t number;
    struct tenant *first; /* the same tenant on its first device: itself, mostly */
    struct tenant *on[SLUICE_MAX_DEVICES]; /* of the first: by the device's number, or NULL */
    uint32_t others;      /* of the first: how many these are, beside itself */
    uint32_t contexts, ending_contexts; /* on this device, of sessions that don't end and of those that do */
    uint64_t incarnation; /* numbers are used again, this isn't */
    uint8_t gid[16];      /* of the first: zeroes until it is known */
    struct sluice_shape shape;
    struct tenant_group *group;        /* or NULL */
    bool limited[DIRECTIONS];   /* a ceiling of its own, its group's or the device's */
    uint32_t chunk[DIRECTIONS]; /* bytes of these at a stretch */
    struct pace pace;           /* of what leaves: where a NIC can pace (transport/nic_pacing.c) */
    bool told_apart;            /* reads from the rest: some rate, on the way up, is of one direction */
    struct list active[FLOWS];  /* QPs with work to do now; FLOW_CONTROL: struct chore */
    struct list chores[DIRECTIONS]; /* struct chore; they take turns with the QPs */
    bool chore_next[DIRECTIONS];
    struct list firsts;         /* claims: its QPs that wait for other tenants' ceilings */
    uint32_t held;              /* of the first: its streams of datagrams that wait for the receiver's grant */
    uint64_t waits_since;       /* ns: since when there are any of either */
    uint32_t message_ns, kib_ns; /* what its last turns cost, averaged */
    uint32_t session_count, ending_sessions; /* all, and of these */
    bool ending; /* removed, while its sessions end */
    struct list in_ending; /* in engine->ending */
    uint32_t windows;     /* of its arenas and files: window.h */
    uint32_t holds[HOLDINGS]; /* of the first: on all its devices */
    uint32_t files;       /* open files of the router: tenant_take_files */
    struct list xrcds;
    uint32_t xrcd_opens, xrc_srqs;
    uint32_t memberships; /* of its QPs in multicast groups */
    uint32_t group_ahs;   /* of the first: AHs that name such a group */
    struct neighbours *neighbours; /* neighbours.h; NULL: nothing was asked */
    struct list asking;            /* its QPs that wait for an answer */
    uint32_t registrations;        /* that threads carry out, on this device: registration.h */
    uint32_t flying;               /* bytes on the device's NIC, posted and not completed */
    struct list grounded;          /* struct nic_qp: its QPs that wait for this, or all tenants' together, to be less */
    struct list in_blocked;        /* in the NIC's blocked */
    struct sluice_tenant_counters *counters;
};

struct pd {
    struct session *session;
    struct context *context;
    uint32_t handle;
    uint32_t users; /* QPs, SRQs, AHs, MRs and windows */
    struct ibv_pd *nic; /* its twin; NULL: its device has no NIC, or had another when it was made */
    uint32_t *nic_users; /* of the twin: this PD, and registrations that nobody waits for any more */
    uint32_t *nic_keys; /* its device's (device.h); NULL: none of its keys is a NIC's */
    struct nic_pool *pool; /* for datagrams that come by the NIC; NULL: no QP hears any */
    struct list link;
};

struct channel {
    uint32_t handle;
    struct event_channel events;
    struct list late; /* CQs that are to be told of and found no room */
    uint32_t users;
    struct list link;
};

/* What memory regions lie in: memory.h. */
struct memory {
    struct session *session;
    uint32_t kind;   /* enum sluice_memory_kind; 0: the arena */
    uint32_t handle;
    uint32_t users;  /* regions */
    bool writable;
    struct arena view;
    struct reach *reach; /* PROCESS: reach.h */
    struct list link;
};

/* What is being destroyed: ending.h. */
struct ending {
    struct chore chore;
    struct context *context; /* NULL: none, or the session itself, */
    bool is_session;         /* if so */
    uint32_t handle;         /* the context's, from when it was to take turns until that is answered; else 0 */
    uint32_t phase, next;    /* of ending.c: kind of object; handle that is next, or how many of a list were passed over */
};

struct session {
    struct sluice_engine *engine;
    struct tenant *tenant; /* the first */
    uint32_t number;
    uint32_t live; /* place in engine->live */
    bool broken;   /* its shared memory held garbage, or it is to end: nothing of it is read any more */
    struct segment segment;
    struct memory arena;
    uint32_t next_handle; /* starts anywhere: what a forked child has of its parent's session fits nothing of its own */
    uint32_t memory_count;
    uint32_t context_count;
    uint32_t pd_count;
    uint32_t cq_count, mr_count, mw_count;
    struct list contexts, pds, channels, mrs, mws, memories, xrcds;
    struct chore command; /* in tenant->active[FLOW_CONTROL], or a registrar's list, while the mailbox waits */
    struct chore cleaning; /* of its segment's dirty parts */
    struct ending ending;
    bool awaited; /* a verb is told to come again (SLUICE_EVENT_VERB) */
    struct registration *registration; /* on its way, or NULL: the mailbox is answered then */
    struct reach *reach; /* that of its process, where it has such memory; or NULL */
    struct fence *fence; /* under way, or NULL: the mailbox is answered then, */
    struct sluice_command fenced; /* with this */
    struct qp **qps; /* SLUICE_SESSION_QPS, by handle */
    struct srq **srqs; /* SLUICE_SESSION_SRQS, by handle */
    struct ah **ahs;   /* SLUICE_SESSION_AHS, by handle */
    struct cq **cqs;   /* SLUICE_SESSION_CQS, by handle */
    uint32_t ah_count;
    bool asking;     /* where one of them leads: the event waits */
    uint64_t asked;  /* ns: when that was last */
    uint64_t moved;  /* bytes that its tenant had sent and received when it was last judged whether that is much (worker.c) */
    uint32_t qp_hint, srq_hint, ah_hint, cq_hint; /* where to look for a free handle; they start anywhere as well */
};

/*
 * A session breaks once, has one verb under way, and asks one question at a time, as a tenant and the gate do; a QP and a
 * trunk have one connection at a time: more can't wait.
 */
enum { ENGINE_EVENTS = 3 * SLUICE_MAX_SESSIONS + SLUICE_MAX_QPS + SLUICE_MAX_NODES + SLUICE_MAX_TENANTS + 1 };

struct sluice_engine {
    struct worker *worker;
    struct net *net;    /* sockets of the tcp transport */
    struct trunk **trunks; /* SLUICE_MAX_NODES */
    struct list nics;   /* struct nic, of some devices */
    struct qp **nic_qps; /* NIC_NUMBERS, by number: QPs that have it from a NIC; or NULL */
    uint64_t now; /* ns; read once a round of work */
    bool delivered; /* something, to an application, since the worker last looked for an answer */
    uint64_t commanded; /* ns; when the last command of a mailbox was carried out */
    uint64_t linger; /* ns for which an empty send queue is watched; 0: no core to spare */

    struct sluice_engine_page *page;
    int page_fd;

    struct tenant **tenants;  /* SLUICE_MAX_TENANTS */
    struct session **sessions; /* SLUICE_MAX_SESSIONS */
    struct session **live;    /* the sessions there are, dense */
    uint32_t live_count;
    struct list watched;      /* QPs whose empty send queue is looked at for a while */
    struct device *devices[SLUICE_MAX_DEVICES];
    uint32_t device_count;
    struct tenant_group **tenant_groups;    /* SLUICE_MAX_GROUPS */

    struct qp **qps;          /* SLUICE_MAX_QPS, by slot */
    uint8_t *qp_generations;
    uint32_t *qp_free;        /* ring of free slots: the longest unused is next */
    uint32_t qp_free_head, qp_free_count;

    struct srq **srqs;        /* SLUICE_MAX_SRQN + 1: those for XRC, by number */
    uint32_t srq_hint;
    struct list *groups;      /* GROUP_BUCKETS; see multicast.h */
    struct gate *gate;        /* gate.h; NULL: what is sent to groups comes to all of their members */
    uint64_t incarnations;    /* of tenants, so far */
    uint32_t held[HOLDINGS];  /* by all tenants */

    struct mr *mrs;           /* MR_MAX, by index, windows too; see mr.h */
    uint32_t mr_free;         /* first of the list of free entries */
    uint32_t mr_used;         /* entries beyond have never been used */
    uint64_t random;

    struct timers timers;
    struct list ending;       /* tenants that were removed, and have sessions that end */
    struct list notify;       /* CQs with CQEs that nobody was told of yet */

    struct port *port;        /* reach.h */

    struct counters counters;
    struct sluice_counters_header *header;

    struct {
        struct sluice_engine_event *ring;
        uint32_t head, count;
        int fd;
    } events;
};

/* Not for secrets that outlive a guess: the low bits are the weakest. */
uint64_t engine_random(struct sluice_engine *engine);

/* Ends what a session may do, and tells the control plane why; it closes the session then. */
void session_break(struct session *session, const char *reason);

/* Tells the control plane of a QP: enum sluice_engine_event_kind. */
void engine_tell_qp(struct qp *qp, uint32_t kind);
/* A verb of the session's that was -EINPROGRESS may be asked again. */
void engine_tell_verb(struct session *session);
/* An AH leads nowhere. */
void engine_tell_ah(struct ah *ah);
/* May this tenant send datagrams to that one (neighbours.h)? */
void engine_ask_neighbour(struct sluice_engine *engine, uint32_t from, uint32_t to);
/* May this tenant hear what the sender with this GID, of this node or by this trunk, sends to groups (gate.h)? */
void engine_ask_member(struct sluice_engine *engine, const uint8_t sender[16], int32_t trunk, uint32_t tenant);
/* A trunk's connection broke. */
void engine_tell_trunk(struct sluice_engine *engine, uint32_t number);

#endif
