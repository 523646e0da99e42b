/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A heap whose nodes live in its elements: a leftist tree (Crane 1972), so that
 * entering, leaving from anywhere and taking the least cost log n at worst, and
 * none of them allocates.
 *
 * Keys are compared modulo 2^64: all keys of a heap lie within 2^63 of each other.
 */
#ifndef SLUICE_HEAP_H
#define SLUICE_HEAP_H

#include <stdbool.h>
#include <stdint.h>

struct heap_node {
    uint64_t key;
    struct heap_node *parent, *left, *right;
    uint32_t rank; /* nodes on the way right to where one is missing; 0: in no heap */
};

struct heap {
    struct heap_node *least; /* NULL: empty */
};

#define heap_entry(node, type, member) ((type *)((char *)(node) - offsetof(type, member)))

static inline bool heap_has(const struct heap_node *node)
{
    return node->rank != 0;
}

static inline bool key_before(uint64_t a, uint64_t b)
{
    return (int64_t)(a - b) < 0;
}

/* The node is in no heap. */
void heap_insert(struct heap *heap, struct heap_node *node, uint64_t key);
/* Harmless for a node that is in no heap. */
void heap_remove(struct heap *heap, struct heap_node *node);
/* To where its new key belongs. */
void heap_move(struct heap *heap, struct heap_node *node, uint64_t key);

#endif
