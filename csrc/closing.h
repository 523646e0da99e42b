/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving back a tenant's memory, in a thread: the router is often the last that has its file open, as its process is gone,
 * and so the kernel frees page by page what a tenant has registered, some 100 ms for a GiB. So long nobody else's messages wait.
 */
#ifndef SLUICE_CLOSING_H
#define SLUICE_CLOSING_H

#include <stddef.h>
#include <stdint.h>

#include "list.h"

/* Part of what knows what there is to give back. */
struct closing {
    struct list link;
    uint32_t tenant; /* its number */
    void (*run)(struct closing *closing); /* once, in a thread; it is run's then */
};

/* Has it run, after those before. At once, where there can be no thread. */
void closing_send(struct closing *closing);

/* How many of a tenant's haven't run: their files are open still. Of one that was removed they count for the next of its number. */
uint32_t closing_count(uint32_t tenant);

/* Returns when all have run. */
void closing_wait(void);

/* Takes the pages of a mapping out of this process's page tables, so that others may map and fault meanwhile. */
void closing_unmap_pages(void *start, size_t size);

#endif
