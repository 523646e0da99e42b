/* SPDX-License-Identifier: Apache-2.0 */
/* What the control plane has said about tenants of this node, by their numbers: yes, no, or nothing yet. */
#ifndef SLUICE_ANSWERS_H
#define SLUICE_ANSWERS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

enum answer { ANSWER_UNKNOWN, ANSWER_YES, ANSWER_NO };

enum { ANSWERS_WORD = 64, ANSWERS_WORDS = SLUICE_MAX_TENANTS / ANSWERS_WORD };

struct answers {
    uint64_t known[ANSWERS_WORDS];
    uint64_t yes[ANSWERS_WORDS];
};

static inline enum answer answers_get(const struct answers *answers, uint32_t tenant)
{
    uint32_t word = tenant / ANSWERS_WORD, bit = tenant % ANSWERS_WORD;

    if (!(answers->known[word] >> bit & 1))
        return ANSWER_UNKNOWN;
    return answers->yes[word] >> bit & 1 ? ANSWER_YES : ANSWER_NO;
}

static inline void answers_put(struct answers *answers, uint32_t tenant, bool yes)
{
    uint64_t bit = 1ull << tenant % ANSWERS_WORD, *word = &answers->yes[tenant / ANSWERS_WORD];

    answers->known[tenant / ANSWERS_WORD] |= bit;
    *word = yes ? *word | bit : *word & ~bit;
}

/* The number may be another tenant's from now on. */
static inline void answers_forget(struct answers *answers, uint32_t tenant)
{
    answers->known[tenant / ANSWERS_WORD] &= ~(1ull << tenant % ANSWERS_WORD);
}

#endif
