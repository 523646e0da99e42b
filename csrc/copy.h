/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SLUICE_COPY_H
#define SLUICE_COPY_H

#include <stddef.h>

/*
 * Copies length bytes as an RDMA write lands: in increasing address order, the
 * last bytes stored last and with release order, so that an application which
 * polls the last byte finds all others there; an aligned 8-byte word of the
 * destination is stored whole. memcpy promises none of these: glibc's stores the
 * tail before the middle. The ranges must not overlap, or dst be below src.
 *
 * The source may change meanwhile (it is an application's memory): then the
 * destination gets some mix of old and new bytes, as from a NIC.
 */
void copy_ordered(void *dst, const void *src, size_t length);

/* Chooses the widest loop that this processor has. Once, before the first copy. */
void copy_init(void);

#endif
