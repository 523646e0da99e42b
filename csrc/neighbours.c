/* SPDX-License-Identifier: Apache-2.0 */
#include "neighbours.h"

#include <errno.h>
#include <stdlib.h>

#include "qp.h"

enum { WORD = 64 };

struct neighbours {
    uint64_t known[SLUICE_MAX_TENANTS / WORD];
    uint64_t admitted[SLUICE_MAX_TENANTS / WORD];
    bool asked; /* one question at a time */
};

static bool has(const uint64_t *set, uint32_t number)
{
    return set[number / WORD] >> number % WORD & 1;
}

static void put(uint64_t *set, uint32_t number, bool value)
{
    set[number / WORD] = (set[number / WORD] & ~(1ull << number % WORD)) | (uint64_t)value << number % WORD;
}

static bool make(struct tenant *tenant)
{
    if (!tenant->neighbours)
        tenant->neighbours = calloc(1, sizeof(*tenant->neighbours));
    return tenant->neighbours != NULL;
}

enum neighbour neighbour_admission(struct tenant *from, const struct tenant *to)
{
    if (from == to)
        return NEIGHBOUR_ADMITTED;
    if (!make(from))
        return NEIGHBOUR_REFUSED;
    if (has(from->neighbours->known, to->number))
        return has(from->neighbours->admitted, to->number) ? NEIGHBOUR_ADMITTED : NEIGHBOUR_REFUSED;
    if (!from->neighbours->asked) {
        from->neighbours->asked = true;
        engine_ask_neighbour(from->engine, from->number, to->number);
    }
    return NEIGHBOUR_UNKNOWN;
}

int neighbour_admit(struct tenant *from, uint32_t to, bool admitted)
{
    struct list woken;

    if (!make(from))
        return -ENOMEM;
    put(from->neighbours->known, to, true);
    put(from->neighbours->admitted, to, admitted);
    from->neighbours->asked = false;
    list_init(&woken);
    list_splice(&woken, &from->asking);
    while (!list_empty(&woken))
        qp_activate(list_entry(list_take(&woken), struct qp, link));
    return 0;
}

void neighbours_forget(struct sluice_engine *engine, uint32_t number)
{
    for (uint32_t i = 0; i < SLUICE_MAX_TENANTS; i++)
        if (engine->tenants[i] && engine->tenants[i]->neighbours)
            put(engine->tenants[i]->neighbours->known, number, false);
}

void neighbours_free(struct tenant *tenant)
{
    free(tenant->neighbours);
    tenant->neighbours = NULL;
}
