/* SPDX-License-Identifier: Apache-2.0 */
#include "neighbours.h"

#include <errno.h>
#include <stdlib.h>

#include "answers.h"
#include "qp.h"

struct neighbours {
    struct answers answers;
    bool asked; /* one question at a time */
};

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
    enum answer answer = answers_get(&from->neighbours->answers, to->number);

    if (answer != ANSWER_UNKNOWN)
        return answer == ANSWER_YES ? NEIGHBOUR_ADMITTED : NEIGHBOUR_REFUSED;
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
    answers_put(&from->neighbours->answers, to, admitted);
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
            answers_forget(&engine->tenants[i]->neighbours->answers, number);
}

void neighbours_free(struct tenant *tenant)
{
    free(tenant->neighbours);
    tenant->neighbours = NULL;
}
