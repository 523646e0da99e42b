/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a session, or of one of its contexts: what was made in it is destroyed in turns of its tenant's, some objects in
 * each, as it may be a hundred thousand of them.
 */
#ifndef SLUICE_ENDING_H
#define SLUICE_ENDING_H

#include "node.h"

void ending_init(struct session *session);
/* A region or window of the session's goes by itself. */
void ending_loses(struct session *session, const struct mr *mr);
/* As sluice_context_close. */
int ending_close_context(struct session *session, uint32_t handle);
/*
 * Nothing of the session is read or told any more; it is freed when all is destroyed, which may be at once. Its number is
 * nobody's until then.
 */
void ending_close_session(struct session *session);
/* The same, and returns when it is freed. */
void ending_free_session(struct session *session);

#endif
