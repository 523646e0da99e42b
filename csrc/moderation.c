/* SPDX-License-Identifier: Apache-2.0 */
#include "moderation.h"

#include "node.h"

/* Hardly anything, for a wake-up; and what makes a nap worth it. */
enum { FEW = 2, ENOUGH = 8 };
/* How many wake-ups before it is tried: of a queue that it was good for, of one that nobody knows, and at most. */
enum { PATIENCE = 4, PATIENCE_FIRST = 32, PATIENCE_MOST = 1 << 16 };
/* Many QPs may be posted to in turn. */
#define SOON_NS (5 * MODERATION_NS)

bool moderation_naps(struct moderation *moderation, const struct sluice_engine *engine, uint32_t head)
{
    uint32_t messages = head - moderation->head;
    bool woken = moderation->parks != engine->header->worker_parks;
    bool soon = engine->now - moderation->since < SOON_NS;

    moderation->head = head;
    moderation->parks = engine->header->worker_parks;
    moderation->since = engine->now;
    /* There is a core to spare: the queue is watched, or the worker sleeps where nobody runs. */
    if (engine->linger) {
        moderation->on = false;
        moderation->alone = 0;
        return false;
    }
    if (moderation->on) {
        moderation->on = messages >= ENOUGH;
        if (moderation->on)
            moderation->patience = PATIENCE;
        else if (messages && moderation->patience < PATIENCE_MOST) /* who posted nothing may not even have had a core */
            moderation->patience *= 2;
        moderation->alone = 0;
        return moderation->on;
    }
    if (!soon || messages > FEW)
        moderation->alone = 0;
    else if (woken)
        moderation->alone++;
    if (!moderation->patience)
        moderation->patience = PATIENCE_FIRST;
    moderation->on = moderation->alone >= moderation->patience;
    return moderation->on;
}
