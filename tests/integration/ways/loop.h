/* SPDX-License-Identifier: Apache-2.0 */
/* One process with two QPs that are connected to each other, for programs in other languages (Loop.java, loop.go). */
#ifndef SLUICE_TEST_LOOP_H
#define SLUICE_TEST_LOOP_H

#include <stddef.h>
#include <stdint.h>

/* Opens the device and registers the memory. Ends the program where something fails. */
struct loop *loop_open(void *memory, size_t length);
/* Copies length bytes of the memory, from offset `from` to offset `to`, by an RDMA WRITE. Returns when it is complete. */
void loop_write(struct loop *loop, size_t from, size_t to, uint32_t length);
void loop_close(struct loop *loop);

#endif
