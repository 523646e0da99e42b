/* SPDX-License-Identifier: Apache-2.0 */
/* What is mapped where: asked of the kernel, which alone knows (proc(5), /proc/pid/maps). */
#ifndef SLUICE_SHIM_MAPPING_H
#define SLUICE_SHIM_MAPPING_H

#include <stdbool.h>
#include <stdint.h>

struct mapping {
    uint64_t start, end;
    uint64_t offset;       /* in the file */
    uint64_t inode;        /* 0: anonymous */
    uint32_t dev_major, dev_minor;
    bool readable, writable, executable, shared;
};

/* 0 or errno. */
int mapping_open(void);
void mapping_close(void);

/*
 * In a forked child: that of its own address space, in the place of its parent's. Not a word of memory is written. 0 or
 * errno.
 */
int mapping_renew(void);

/* The mapping that covers address, or the next one above. False: there is none. */
bool mapping_find(uint64_t address, struct mapping *mapping);

/* Visits all mappings from below, until visit says false. */
void mapping_each(bool (*visit)(const struct mapping *mapping, void *context), void *context);

#endif
