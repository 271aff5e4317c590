/* SPDX-License-Identifier: MIT */
/*
 * Allocating requests in flight: two that would change the L2 entry of one cluster run one after
 * the other.
 *
 * Theory of operation: a request that is going to change L2 entries (allocating write, zero,
 * discard, linking of compressed clusters) enters its cluster-aligned guest range here before it
 * looks at the entries, and leaves when they are linked. Who meets an overlapping range waits; what
 * it knew about the mapping before is then stale, so the rule is: enter, then look. Writes in place
 * change no entry and do not come here.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

struct q2_allocs {
	struct spin lock;
	struct list ranges;
	struct co_queue waiters;
};

int q2_allocs_new(struct q2_allocs **ret)
{
	struct q2_allocs *a = mem_zalloc(sizeof(*a));

	if (!a)
		return -ENOMEM;
	list_init(&a->ranges);
	*ret = a;
	return 0;
}

void q2_allocs_free(struct q2_allocs *a)
{
	mem_free(a);
}

static bool busy(struct q2_allocs *a, const struct q2_alloc_range *r)
{
	struct q2_alloc_range *other;

	list_for_each(other, &a->ranges,
		node) if (r->start < other->end && other->start < r->end) return true;
	return false;
}

void co_q2_alloc_enter(struct q2_image *img, struct q2_alloc_range *r, uint64_t off, uint64_t len)
{
	struct q2_allocs *a = img->allocs;

	r->start = align_down(off, img->cluster_size);
	r->end = align_up(off + len, img->cluster_size);
	spin_lock(&a->lock);
	while (busy(a, r)) {
		co_queue_wait(&a->waiters, &a->lock);
		spin_lock(&a->lock);
	}
	list_add_tail(&a->ranges, &r->node);
	spin_unlock(&a->lock);
}

void q2_alloc_leave(struct q2_image *img, struct q2_alloc_range *r)
{
	struct q2_allocs *a = img->allocs;

	spin_lock(&a->lock);
	list_del(&r->node);
	co_queue_wake_all(&a->waiters);
	spin_unlock(&a->lock);
}
