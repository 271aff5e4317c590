/* SPDX-License-Identifier: MIT */
/* A pairing heap of sleeping operations: the engines without kernel timers wait for its top. */
#include "base/runtime.h"

/* Links: child is the first child, next the next sibling, prev the sibling before or the parent. */
static struct ring_op *heap_meld(struct ring_op *a, struct ring_op *b)
{
	if (!a)
		return b;
	if (!b)
		return a;
	if (b->off < a->off) {
		struct ring_op *t = a;

		a = b;
		b = t;
	}
	b->heap.next = a->heap.child;
	if (b->heap.next)
		b->heap.next->heap.prev = b;
	b->heap.prev = a;
	a->heap.child = b;
	return a;
}

/* Two passes: pairs from the left, then all of them from the right. */
static struct ring_op *heap_merge_children(struct ring_op *first)
{
	struct ring_op *pairs = NULL, *root = NULL;

	while (first) {
		struct ring_op *a = first, *b = a->heap.next, *m;

		first = b ? b->heap.next : NULL;
		a->heap.next = a->heap.prev = NULL;
		if (b)
			b->heap.next = b->heap.prev = NULL;
		m = heap_meld(a, b);
		m->heap.next = pairs;
		pairs = m;
	}
	while (pairs) {
		struct ring_op *m = pairs;

		pairs = m->heap.next;
		m->heap.next = NULL;
		root = heap_meld(root, m);
	}
	return root;
}

void timer_add(struct ring_op **heap, struct ring_op *op)
{
	op->heap.child = op->heap.next = op->heap.prev = NULL;
	*heap = heap_meld(*heap, op);
}

void timer_remove(struct ring_op **heap, struct ring_op *op)
{
	struct ring_op *rest = heap_merge_children(op->heap.child);

	if (op == *heap) {
		*heap = rest;
		return;
	}
	if (op->heap.prev->heap.child == op)
		op->heap.prev->heap.child = op->heap.next;
	else
		op->heap.prev->heap.next = op->heap.next;
	if (op->heap.next)
		op->heap.next->heap.prev = op->heap.prev;
	*heap = heap_meld(*heap, rest);
}
