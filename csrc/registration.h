/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registering memory on the NIC, away from the worker: the kernel pins page by page, which takes it some 100 us for a
 * mebibyte. A range beyond REGISTRATION_AT_ONCE has a thread of its own for the time, of which a tenant has a few on each device;
 * the session's mailbox is answered when it is done.
 */
#ifndef SLUICE_REGISTRATION_H
#define SLUICE_REGISTRATION_H

#include <pthread.h>

#include "mr.h"

enum { REGISTRATION_AT_ONCE = 1 << 18, REGISTRATION_THREADS = 4 /* of a tenant */ };

struct ibv_mr;
struct nic;

/* What is to be pinned: a part of a file, under addresses of the application's, for a PD. */
struct pin {
    struct nic *nic;
    struct ibv_pd *pd;
    int fd;
    bool read_only;
    uint64_t address, length, iova;
    uint32_t access;
};

/* Of one NIC: threads' work on its way, and what is done. */
struct registrar {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct list done;
    uint32_t running, rung;
    struct list waiting; /* sessions, by command: their tenants have as many threads as they may */
    struct sluice_engine_page *page;
};

struct registration {
    struct list link;
    struct session *session; /* NULL: abandoned */
    struct tenant *tenant;   /* on the NIC's device */
    struct mr *mr;
    struct pd *pd;           /* that the region is to be of */
    bool again;              /* ibv_rereg_mr; then before is what the region was, and its memory has us as a user */
    struct mr before;
    struct sluice_command command;
    struct pin pin;
    struct ibv_mr *twin;
    int error;
    struct ibv_pd *twin_pd;  /* abandoned: that of the PD it was for, which it uses, */
    uint32_t *twin_users;    /* as one of these */
};

enum registered { REGISTERED_NOW, REGISTERED_LATER, REGISTERED_WAITS };

void registrar_open(struct registrar *registrar, struct sluice_engine *engine);
/* Waits for all threads, and answers. */
void registrar_wait(struct nic *nic);
void registrar_close(struct nic *nic);
/* Answers the mailboxes of what is done. */
void registrar_collect(struct nic *nic);

/* Pins: 0 or -errno. In any thread. */
int registration_pin(const struct pin *pin, struct ibv_mr **twin);

/*
 * A region that is placed and granted gets its twin on the NIC, or goes without one, and its key. before: what it was, NULL: it is
 * new. NOW: *error is 0 or -errno. LATER: the mailbox will be answered. WAITS: nothing was done, as the tenant has too
 * many on their way.
 */
enum registered registration_begin(struct mr *mr, struct pd *pd, uint32_t access, const struct mr *before,
                                   const struct sluice_command *command, int *error);

/* The session is to end, or the region's context: what is on its way is nobody's. */
void registration_abandon(struct session *session);

#endif
