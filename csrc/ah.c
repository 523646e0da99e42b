/* SPDX-License-Identifier: Apache-2.0 */
#include "ah.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "holdings.h"
#include "multicast.h"
#include "nic.h"
#include "session.h"
#include "transport/nic.h"
#include "transport/stream.h"

/* Between two questions for one AH, and for any of a session. */
enum { AH_ASK_NS = 100000000, SESSION_ASK_NS = 1000000 };

static int take_handle(struct session *session, struct ah *ah)
{
    for (uint32_t i = 0; i < SLUICE_SESSION_AHS; i++) {
        uint32_t handle = (session->ah_hint + i) % SLUICE_SESSION_AHS;

        if (handle == 0 || session->ahs[handle])
            continue;
        /* The longest unused is next, so that a WQE with an old handle is an error and no stray message. */
        session->ah_hint = handle + 1;
        session->ahs[handle] = ah;
        ah->handle = handle;
        return 0;
    }
    return -ENOMEM;
}

void ah_set_peer(struct ah *ah, int32_t peer_tenant)
{
    struct sluice_engine *engine = ah->pd->session->engine;

    ah->peer = SLUICE_MAX_TENANTS;
    if (peer_tenant < 0 || peer_tenant >= SLUICE_MAX_TENANTS || !engine->tenants[peer_tenant])
        return;
    ah->peer = (uint32_t)peer_tenant;
    ah->incarnation = engine->tenants[peer_tenant]->incarnation;
}

int ah_set_trunk(struct ah *ah, struct trunk *trunk)
{
    struct stream *stream = NULL;
    int error = trunk ? stream_get(trunk, ah->pd->session->tenant->number, ah->attr.dgid, &stream) : 0;

    if (error)
        return error;
    if (ah->stream)
        stream_put(ah->stream);
    ah->stream = stream;
    return 0;
}

void ah_ask(struct ah *ah)
{
    struct session *session = ah->pd->session;
    uint64_t now = session->engine->now;

    if (now - ah->asked < AH_ASK_NS || now - session->asked < SESSION_ASK_NS || session->asking)
        return;
    ah->asked = session->asked = now;
    engine_tell_ah(ah);
}

int ah_create(struct session *session, const struct sluice_create_ah_request *request, const uint8_t sgid[16],
              const struct transport *transport, int32_t peer_tenant)
{
    struct sluice_engine *engine = session->engine;
    struct pd *pd = pd_find(session, request->pd);

    if (!pd)
        return -EINVAL;
    if (!holding_take(session->tenant, HOLDING_AHS))
        return -ENOMEM;
    struct ah *ah = calloc(1, sizeof(*ah));

    if (!ah) {
        holding_give(session->tenant, HOLDING_AHS);
        return -ENOMEM;
    }
    ah->pd = pd;
    ah->transport = transport;
    ah->attr = request->attr;
    ah_set_peer(ah, -1);
    memcpy(ah->sgid, sgid, sizeof(ah->sgid));
    int error = take_handle(session, ah);

    if (!error && gid_is_multicast(ah->attr.dgid)) {
        bool room = session->tenant->group_ahs < SLUICE_TENANT_GROUPS;

        ah->group = room ? group_get(engine, ah->attr.dgid) : NULL;
        if (ah->group) {
            session->tenant->group_ahs++;
        } else {
            session->ahs[ah->handle] = NULL;
            error = -ENOMEM;
        }
    } else if (!error) {
        ah_set_peer(ah, peer_tenant);
    }
    if (error) {
        holding_give(session->tenant, HOLDING_AHS);
        free(ah);
        return error;
    }
    pd->users++;
    session->ah_count++;
    return (int)ah->handle;
}

int ah_by_nic(struct ah *ah, const struct device *behind)
{
    struct nic *nic = nic_of_pd(ah->pd);
    struct ibv_ah_attr attr;

    if (!nic || !ah->pd->nic || ah->attr.sgid_index >= nic->gids)
        return -EOPNOTSUPP;
    nic_address(nic, &ah->attr, &attr);
    errno = 0;
    ah->nic = nic->call.ibv_create_ah(ah->pd->nic, &attr);
    if (!ah->nic)
        return errno ? -errno : -ENOMEM;
    ah->behind = behind;
    ah->transport = &transport_nic;
    return 0;
}

void ah_lose_nic(struct ah *ah)
{
    if (ah->nic)
        nic_of_pd(ah->pd)->call.ibv_destroy_ah(ah->nic);
    ah->nic = NULL;
}

static void ah_free(struct session *session, struct ah *ah)
{
    if (ah->group) {
        group_put(ah->group);
        session->tenant->group_ahs--;
    }
    ah_lose_nic(ah);
    ah_set_trunk(ah, NULL);
    ah->pd->users--;
    session->ah_count--;
    session->ahs[ah->handle] = NULL;
    holding_give(session->tenant, HOLDING_AHS);
    free(ah);
}

int ah_destroy(struct session *session, uint32_t handle)
{
    struct ah *ah = ah_find(session, handle);

    if (!ah)
        return -EINVAL;
    ah_free(session, ah);
    return 0;
}
