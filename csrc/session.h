/* SPDX-License-Identifier: Apache-2.0 */
/* A session: one process of a tenant, its segment, its arena and all its verbs objects. */
#ifndef SLUICE_SESSION_H
#define SLUICE_SESSION_H

#include "node.h"

/* Returns the session's number or a negative errno. */
int session_open(struct tenant *tenant, struct sluice_session_files *files);
/* All that it had is destroyed (ending.h). */
void session_free(struct session *session);

/* Looks at the doorbell, and rings what it names; a command waits for its tenant's turn. */
void session_poll(struct session *session);

/* Writes what is out of it into the mailbox, and wakes who waits for that. */
void session_answer(struct session *session, const struct sluice_command *command);
/* The same once nothing is under way any more into memory of the session's process that the command has revoked (fence.h). */
void session_answer_fenced(struct session *session, const struct sluice_command *command);
/* The command waits for its tenant's turn. */
void session_queue_command(struct session *session);

/* Rings for a QP as its shim would: in the next round, after others have had theirs. */
void session_ring_again(struct session *session, uint32_t qp);

/*
 * A part of its segment. -EINPROGRESS: not before what was given back is clean again; engine_tell_verb says when. Else as
 * segment_take.
 */
/* What a verb was told to wait for is done: it may come again. */
void session_goes_on(struct session *session);
int64_t session_take_part(struct session *session, uint64_t size);
void session_give_part(struct session *session, uint64_t offset, uint64_t size);

/* Whether there is something for session_poll. */
bool session_rung(const struct session *session);

/* Return the handle or a negative errno. */
int pd_alloc(struct session *session, uint32_t context);
struct pd *pd_find(struct session *session, uint32_t handle);
int pd_dealloc(struct session *session, uint32_t handle);
/* -EBUSY. */
int pd_free(struct pd *pd);
int channel_create(struct session *session, int *read_fd);
int channel_destroy(struct session *session, uint32_t handle);

#endif
