/* SPDX-License-Identifier: MIT */
/*
 * The allocator: runs of free host clusters.
 *
 * Theory of operation: under alloc_mutex, refcount slices are searched for zeroes from `free_hint`
 * on, below which no cluster is free; a missing refcount block is all free. Requests for data take
 * the first run, shorter than asked for when need be, so that the search never passes over the same
 * clusters twice; tables that must be contiguous take the first run that is long enough. New
 * refcount blocks go right behind the run they are needed for (refcount-grow.c). A result that lies
 * on known metadata means that the refcounts lie: the image is marked corrupt.
 */
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

/* Beyond this no L2 entry can point. */
static uint64_t cluster_limit(const struct q2_image *img)
{
	return (Q2_OFFSET_MASK + 1) >> img->cluster_bits;
}

/* Index of the first zero (or, with !zero, non-zero) refcount in [i, end) of the slice; or end. */
static uint64_t slice_scan(
	const struct q2_slice *s, uint64_t i, uint64_t end, unsigned order, bool zero)
{
	if (order == 4) {
		const uint16_t *p = (const uint16_t *)s->data;

		while (i < end && (p[i] == 0) != zero)
			i++;
		return i;
	}
	while (i < end && (q2_refcount_load(s->data, i, order) == 0) != zero)
		i++;
	return i;
}

/* The first cluster at or after `from` (below `end`) that is free, or not free: *ret, or `end`. */
static int scan(struct q2_image *img, uint64_t from, uint64_t end, bool zero, uint64_t *ret)
{
	uint64_t per = q2_refcounts_per_slice(img);

	while (from < end) {
		uint64_t first, stop = MIN(end, align_down(from, per) + per), hit;
		struct q2_slice *s;
		int r = co_q2_refcount_slice(img, from, &s, &first);

		if (r < 0)
			return r;
		if (r == 1) {
			if (zero)
				break;
			/* Free up to the end of the missing block, or of the table. */
			from = from >> img->refblock_bits >= img->reftable_entries
				? end
				: ((from >> img->refblock_bits) + 1) << img->refblock_bits;
			continue;
		}
		spin_lock(q2_cache_lock(img->ref_cache));
		hit = first +
			slice_scan(s, from - first, stop - first, img->h.refcount_order, zero);
		spin_unlock(q2_cache_lock(img->ref_cache));
		q2_cache_put(img->ref_cache, s);
		from = hit;
		if (hit < stop)
			break;
	}
	*ret = MIN(from, end);
	return 0;
}

/* The first run of at least `min` free clusters at or after `from`; its length is cut at `max`. */
static int find_run(struct q2_image *img, uint64_t from, uint64_t min, uint64_t max, uint64_t *ret,
	uint64_t *len)
{
	for (;;) {
		uint64_t start, end;
		int r = scan(img, from, cluster_limit(img), true, &start);

		if (r == 0 && start + min > cluster_limit(img))
			return -EFBIG;
		if (r == 0)
			r = scan(img, start, MIN(start + max, cluster_limit(img)), false, &end);
		if (r < 0)
			return r;
		if (end - start >= min) {
			*ret = start;
			*len = end - start;
			return 0;
		}
		from = end;
	}
}

/* Makes [start, start + *n) usable: creates refcount blocks behind it. The run found is `len` long;
 * *n shrinks, but not below min, to leave room for them. 1: look elsewhere; 2: the table has grown,
 * look again. */
static int cover(struct q2_image *img, uint64_t start, uint64_t len, uint64_t min, uint64_t *n)
{
	for (;; --*n) {
		uint64_t blocks = q2_refblocks_missing(img, start, *n);

		if (!blocks)
			return 0;
		if (*n + blocks <= len)
			return co_q2_refblocks_new(img, start, *n, blocks);
		if (*n <= min)
			return 1;
	}
}

/* min <= clusters taken <= max, refcount 1 each. */
static int alloc_run(struct q2_image *img, uint64_t min, uint64_t max, uint64_t *off, uint64_t *got)
{
	uint64_t from = img->free_hint, start, len, n;
	int r;

	for (;;) {
		/* Room for the blocks a run of this length may need, with some reserve. */
		r = find_run(
			img, from, min, max + 8 + (max >> (img->refblock_bits - 2)), &start, &len);
		if (r < 0)
			return r;
		if (min == 1 && from == img->free_hint)
			img->free_hint = from = start;
		n = MIN(len, max);
		r = cover(img, start, len, min, &n);
		if (r < 0)
			return r;
		if (r == 0)
			break;
		from = r == 1 ? start + len : from;
	}
	if (q2_overlaps(img, start << img->cluster_bits, n << img->cluster_bits, Q2_OVERLAP_NONE))
		return co_q2_corrupt(img, "the free clusters at %#llx hold metadata",
			(unsigned long long)start << img->cluster_bits);
	r = co_q2_refcount_add_locked(img, start << img->cluster_bits, n, 1);
	if (r < 0)
		return r;
	if (start == img->free_hint)
		img->free_hint = start + n;
	*off = start << img->cluster_bits;
	*got = n;
	return 0;
}

/* Nothing was ever written at or behind the old data_end: such clusters read as zeroes already. */
static bool take_fresh(struct q2_image *img, uint64_t off, uint64_t n)
{
	bool fresh = off >= img->data_end;

	img->data_end = MAX(img->data_end, off + (n << img->cluster_bits));
	return fresh;
}

/* Lazy refcounts: the bit that says "do not trust them" is durable before they can be wrong. */
static int mark_lazy(struct q2_image *img)
{
	if (likely(!img->lazy_refcounts || __atomic_load_n(&img->dirty_on_disk, __ATOMIC_ACQUIRE)))
		return 0;
	return co_q2_set_dirty(img, true);
}

int co_q2_alloc_data(struct q2_image *img, uint64_t n, uint64_t *ret, uint64_t *got, bool *fresh)
{
	int r = mark_lazy(img);

	if (r < 0)
		return r;
	co_block_event(img->file, "cluster_alloc");
	co_mutex_lock(&img->alloc_mutex);
	r = alloc_run(img, 1, n, ret, got);
	if (r == 0)
		*fresh = take_fresh(img, *ret, *got);
	co_mutex_unlock(&img->alloc_mutex);
	trace("q2_alloc", "%s: %llu clusters wanted, result %d: %llu at %llu", img->node->filename,
		(unsigned long long)n, r, r ? 0 : (unsigned long long)*got,
		r ? 0 : (unsigned long long)*ret);
	return r;
}

int co_q2_alloc(struct q2_image *img, uint64_t n, uint64_t *ret)
{
	uint64_t got;
	int r = mark_lazy(img);

	if (r < 0)
		return r;
	co_mutex_lock(&img->alloc_mutex);
	r = alloc_run(img, n, n, ret, &got);
	if (r == 0)
		take_fresh(img, *ret, n);
	co_mutex_unlock(&img->alloc_mutex);
	trace("q2_alloc", "%s: %llu contiguous clusters, result %d: at %llu", img->node->filename,
		(unsigned long long)n, r, r ? 0 : (unsigned long long)*ret);
	return r;
}

static int alloc_at(struct q2_image *img, uint64_t at, uint64_t n, uint64_t *got)
{
	uint64_t start = at >> img->cluster_bits, end;
	int r;

	*got = 0;
	if (start + n > cluster_limit(img))
		return 0;
	r = scan(img, start, start + n, false, &end);
	if (r < 0 || end == start)
		return r;
	/* Only what existing blocks count: a caller that wants more allocates anywhere. */
	for (n = end - start; n && q2_refblocks_missing(img, start, n);)
		n--;
	if (!n)
		return 0;
	if (q2_overlaps(img, at, n << img->cluster_bits, Q2_OVERLAP_NONE))
		return co_q2_corrupt(
			img, "the free clusters at %#llx hold metadata", (unsigned long long)at);
	r = co_q2_refcount_add_locked(img, at, n, 1);
	if (r < 0)
		return r;
	if (start == img->free_hint)
		img->free_hint = start + n;
	take_fresh(img, at, n);
	*got = n;
	return 0;
}

int co_q2_alloc_at(struct q2_image *img, uint64_t at, uint64_t n, uint64_t *got)
{
	int r = mark_lazy(img);

	if (r < 0)
		return r;
	co_mutex_lock(&img->alloc_mutex);
	r = alloc_at(img, at, n, got);
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}

void co_q2_alloc_undo(struct q2_image *img, uint64_t off, uint64_t n)
{
	int r = co_q2_refcount_add(img, off, n, -1);

	trace("q2_alloc_undo", "%s: %llu clusters at %llu, result %d", img->node->filename,
		(unsigned long long)n, (unsigned long long)off, r);
}
