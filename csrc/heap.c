/* SPDX-License-Identifier: Apache-2.0 */
#include "heap.h"

#include <stddef.h>

static uint32_t rank_of(const struct heap_node *node)
{
    return node ? node->rank : 0;
}

/* The shorter way goes right. */
static void lean_left(struct heap_node *node)
{
    if (rank_of(node->left) < rank_of(node->right)) {
        struct heap_node *left = node->left;

        node->left = node->right;
        node->right = left;
    }
    node->rank = rank_of(node->right) + 1;
}

/* Walks down two right spines, which are log n long. */
static struct heap_node *merge(struct heap_node *a, struct heap_node *b)
{
    if (!a)
        return b;
    if (!b)
        return a;
    if (key_before(b->key, a->key)) {
        struct heap_node *other = a;

        a = b;
        b = other;
    }
    a->right = merge(a->right, b);
    a->right->parent = a;
    lean_left(a);
    return a;
}

void heap_insert(struct heap *heap, struct heap_node *node, uint64_t key)
{
    *node = (struct heap_node){.key = key, .rank = 1};
    heap->least = merge(heap->least, node);
    heap->least->parent = NULL;
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
    if (!heap_has(node))
        return;
    struct heap_node *parent = node->parent, *below = merge(node->left, node->right);

    if (below)
        below->parent = parent;
    node->rank = 0;
    if (!parent) {
        heap->least = below;
        return;
    }
    if (parent->left == node)
        parent->left = below;
    else
        parent->right = below;
    /* Ranks above change for as long as they were made of this one: log n steps. */
    for (uint32_t before; parent; parent = parent->parent) {
        before = parent->rank;
        lean_left(parent);
        if (parent->rank == before)
            break;
    }
}

void heap_move(struct heap *heap, struct heap_node *node, uint64_t key)
{
    heap_remove(heap, node);
    heap_insert(heap, node, key);
}
