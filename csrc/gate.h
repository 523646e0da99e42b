/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose datagrams to multicast groups come to which of this node's tenants. A group says nothing of who is in it, so no
 * address handle can be judged: each pair of a sender, by its GID and of any node, and a tenant that is a member is, when
 * there is a datagram for it for the first time. Of another node's the control plane is told by which trunk it came: a router
 * speaks for its own node's tenants only. The control plane's gate is asked, its answer kept until it is to be
 * forgotten, and the datagram waits meanwhile. Where the control plane has no gate there is none here, and nobody is asked.
 */
#ifndef SLUICE_GATE_H
#define SLUICE_GATE_H

#include "answers.h"
#include "node.h"

struct sender;

/*
 * What is known of a sender of this node (trunk -1), or one that another node's router names; NULL: there is no gate, or no
 * memory. Good until another one is looked for.
 */
struct sender *gate_find(struct sluice_engine *engine, const uint8_t gid[16], int32_t trunk);
/* UNKNOWN: it is being asked. Tenants are meant as wholes. */
enum answer gate_answer(struct sluice_engine *engine, const struct sender *sender, const struct tenant *tenant);
/* Where QPs wait for an answer; datagrams of other nodes wait in their trunks. */
struct list *gate_line(struct sluice_engine *engine);

/* The other side of sluice_gate_close and its neighbours in engine.h. */
int gate_close(struct sluice_engine *engine);
int gate_admit(struct sluice_engine *engine, const uint8_t sender[16], int32_t trunk, uint32_t tenant, bool admitted);
void gate_forget(struct sluice_engine *engine, const uint8_t sender[16]);
/* A tenant is no more: its number may be another's. */
void gate_forget_tenant(struct sluice_engine *engine, uint32_t number);
void gate_free(struct sluice_engine *engine);

#endif
