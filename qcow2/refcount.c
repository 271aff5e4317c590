/* SPDX-License-Identifier: MIT */
/*
 * Refcounts: entries of any width in refcount blocks, read and changed through the cache.
 *
 * Theory of operation: all of it runs under alloc_mutex (the _locked functions expect it). A block
 * that the refcount table does not name counts as all zeroes; refcount-grow.c makes it before
 * anything in it may be raised. Changes are made in cached slices and reach the disk at the next
 * commit or eviction: increments may be written at any time, and decrements are only made for
 * clusters whose dereference is durable (free.c), so that no order between slices matters (I1, I2).
 */
#include "base/mem.h"
#include "base/trace.h"
#include "qcow2/qcow2.h"

uint64_t q2_refcount_load(const void *block, uint64_t i, unsigned order)
{
	const uint8_t *p = block;

	switch (order) {
	case 3:
		return p[i];
	case 4:
		return load_be16(p + i * 2);
	case 5:
		return load_be32(p + i * 4);
	case 6:
		return load_be64(p + i * 8);
	}
	/* 1, 2 or 4 bits: the first entry of a byte in its lowest bits. */
	return p[(i << order) >> 3] >> ((i << order) & 7) & ((1u << (1u << order)) - 1);
}

void q2_refcount_store(void *block, uint64_t i, unsigned order, uint64_t value)
{
	uint8_t *p = block;
	unsigned shift, mask;

	switch (order) {
	case 3:
		p[i] = (uint8_t)value;
		return;
	case 4:
		store_be16(p + i * 2, (uint16_t)value);
		return;
	case 5:
		store_be32(p + i * 4, (uint32_t)value);
		return;
	case 6:
		store_be64(p + i * 8, value);
		return;
	}
	shift = (i << order) & 7;
	mask = ((1u << (1u << order)) - 1) << shift;
	p += (i << order) >> 3;
	*p = (uint8_t)((*p & ~mask) | (value << shift & mask));
}

/* --- slices --- */

uint64_t q2_refcounts_per_slice(const struct q2_image *img)
{
	return ((uint64_t)q2_cache_slice_size(img->ref_cache) * 8) >> img->h.refcount_order;
}

/* The slice that counts `cluster`: 0 and *ret (with a reference), 1 when its block does not exist,
 * or a negative errno. *first is the first cluster it counts. */
int co_q2_refcount_slice(
	struct q2_image *img, uint64_t cluster, struct q2_slice **ret, uint64_t *first)
{
	uint64_t per = q2_refcounts_per_slice(img), block = cluster >> img->refblock_bits, off;

	*first = align_down(cluster, per);
	if (block >= img->reftable_entries || !img->reftable[block])
		return 1;
	off = img->reftable[block] & Q2_REFTABLE_MASK;
	if ((img->reftable[block] & Q2_REFTABLE_RESERVED) || !is_aligned(off, img->cluster_size))
		return co_q2_corrupt(img, "refcount table entry %llu is %#llx",
			(unsigned long long)block, (unsigned long long)img->reftable[block]);
	off += (cluster & ((1ULL << img->refblock_bits) - 1)) / per *
		q2_cache_slice_size(img->ref_cache);
	return co_q2_cache_get(img, img->ref_cache, off, ret);
}

int co_q2_refcount_get_locked(struct q2_image *img, uint64_t cluster, uint64_t *ret)
{
	struct q2_slice *s;
	uint64_t first;
	int r = co_q2_refcount_slice(img, cluster, &s, &first);

	if (r < 0)
		return r;
	*ret = 0;
	if (r == 1)
		return 0;
	spin_lock(q2_cache_lock(img->ref_cache));
	*ret = q2_refcount_load(s->data, cluster - first, img->h.refcount_order);
	spin_unlock(q2_cache_lock(img->ref_cache));
	q2_cache_put(img->ref_cache, s);
	return 0;
}

int co_q2_refcount_get(struct q2_image *img, uint64_t cluster, uint64_t *ret)
{
	int r;

	co_mutex_lock(&img->alloc_mutex);
	r = co_q2_refcount_get_locked(img, cluster, ret);
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}

/* Changes up to n counts inside one slice, all or none: under the cache's lock. Returns how many
 * were changed, 0: the first would leave its range. */
static uint64_t slice_add(
	struct q2_image *img, struct q2_slice *s, uint64_t i, uint64_t n, int delta)
{
	unsigned order = img->h.refcount_order;
	uint64_t done;

	for (done = 0; done < n; done++) {
		uint64_t v = q2_refcount_load(s->data, i + done, order);

		if (delta < 0 ? v == 0 : v == img->max_refcount)
			break;
		q2_refcount_store(s->data, i + done, order, v + (uint64_t)(int64_t)delta);
	}
	if (done)
		q2_cache_mark_dirty(img->ref_cache, s);
	return done;
}

static int add_run(struct q2_image *img, uint64_t cluster, uint64_t n, int delta, uint64_t *done)
{
	uint64_t per = q2_refcounts_per_slice(img);

	for (*done = 0; *done < n;) {
		uint64_t first, now, step = MIN(n - *done, per - (cluster + *done) % per);
		struct q2_slice *s;
		int r = co_q2_refcount_slice(img, cluster + *done, &s, &first);

		if (r < 0)
			return r;
		if (r == 1)
			return -ERANGE;
		spin_lock(q2_cache_lock(img->ref_cache));
		now = slice_add(img, s, cluster + *done - first, step, delta);
		spin_unlock(q2_cache_lock(img->ref_cache));
		q2_cache_put(img->ref_cache, s);
		*done += now;
		if (now < step)
			return -ERANGE;
	}
	return 0;
}

int co_q2_refcount_add_locked(struct q2_image *img, uint64_t off, uint64_t n, int delta)
{
	uint64_t cluster = off >> img->cluster_bits, done, undone;
	int r = add_run(img, cluster, n, delta, &done);

	if (r == 0) {
		if (delta < 0 && cluster < img->free_hint)
			img->free_hint = cluster;
		return 0;
	}
	trace("q2_refcount_add", "%s: cluster %llu, %+d: result %d", img->node->filename,
		(unsigned long long)(cluster + done), delta, r);
	/* All or nothing: the caller goes on as if it had not asked. */
	if (done)
		(void)add_run(img, cluster, done, -delta, &undone);
	if (r != -ERANGE)
		return r;
	if (delta > 0 && (cluster + done) >> img->refblock_bits < img->reftable_entries &&
		img->reftable[(cluster + done) >> img->refblock_bits])
		return -EFBIG;
	return co_q2_corrupt(img, "the refcount of cluster %#llx is too low",
		(unsigned long long)(cluster + done) << img->cluster_bits);
}

int co_q2_refcount_add(struct q2_image *img, uint64_t off, uint64_t n, int delta)
{
	int r;

	co_mutex_lock(&img->alloc_mutex);
	r = co_q2_refcount_add_locked(img, off, n, delta);
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}

/* Adds n to one count that is not zero: under the cache's lock. */
static int slice_raise(struct q2_image *img, struct q2_slice *s, uint64_t i, uint64_t n)
{
	uint64_t v = q2_refcount_load(s->data, i, img->h.refcount_order);

	if (!v)
		return -ENOENT;
	if (n > img->max_refcount - v)
		return -EFBIG;
	q2_refcount_store(s->data, i, img->h.refcount_order, v + n);
	q2_cache_mark_dirty(img->ref_cache, s);
	return 0;
}

static int raise_locked(struct q2_image *img, uint64_t off, uint64_t n)
{
	uint64_t cluster = off >> img->cluster_bits, first;
	struct q2_slice *s;
	int r;

	/* On its way out of the quarantine: its last reference is gone. */
	if (ranges_overlap(off, 1, img->punch_off, img->punch_len))
		return -ENOENT;
	r = co_q2_refcount_slice(img, cluster, &s, &first);
	if (r)
		return r < 0 ? r : -ENOENT;
	spin_lock(q2_cache_lock(img->ref_cache));
	r = slice_raise(img, s, cluster - first, n);
	spin_unlock(q2_cache_lock(img->ref_cache));
	q2_cache_put(img->ref_cache, s);
	return r;
}

int co_q2_refcount_raise(struct q2_image *img, uint64_t off, uint64_t n)
{
	int r;

	co_mutex_lock(&img->alloc_mutex);
	r = raise_locked(img, off, n);
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}

int co_q2_refcount_join(struct q2_image *img, uint64_t off, uint64_t n)
{
	int r = -ENOENT;

	co_mutex_lock(&img->alloc_mutex);
	if (img->compressed_next)
		r = raise_locked(img, off, n);
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}

/* --- release from the quarantine --- */

#define RELEASE_RUN 4096u /* clusters: locks are held for a bounded time */

/* How many of the n clusters from `cluster` have a refcount of exactly 1 (only == true), or another
 * one, in a row from the first on. */
static int count_run(struct q2_image *img, uint64_t cluster, uint64_t n, bool *only, uint64_t *ret)
{
	uint64_t v;
	int r = co_q2_refcount_get_locked(img, cluster, &v);

	if (r < 0)
		return r;
	*only = v == 1;
	for (*ret = 1; *ret < MIN(n, (uint64_t)RELEASE_RUN); ++*ret) {
		r = co_q2_refcount_get_locked(img, cluster + *ret, &v);
		if (r < 0)
			return r;
		if ((v == 1) != *only)
			break;
	}
	return 0;
}

/* The last reference goes: no compressed cluster may be appended to it any more. */
static void retire_compressed(struct q2_image *img, uint64_t off, uint64_t len)
{
	if (img->compressed_next > off && img->compressed_next <= off + len)
		img->compressed_next = 0;
}

int co_q2_release(struct q2_image *img, uint64_t off, uint64_t n, bool punch)
{
	int r = 0;

	co_mutex_lock(&img->alloc_mutex);
	for (uint64_t done = 0, run = n; r == 0 && done < n; done += run) {
		uint64_t at = off + (done << img->cluster_bits), bytes;
		bool last = true;

		r = count_run(img, at >> img->cluster_bits, n - done, &last, &run);
		if (r < 0)
			break;
		bytes = run << img->cluster_bits;
		/* A table that lies about what it refers to must not take metadata along. */
		if (last && q2_overlaps(img, at, bytes, Q2_OVERLAP_NONE)) {
			r = co_q2_corrupt(
				img, "metadata at %#llx was used for data", (unsigned long long)at);
			break;
		}
		if (last) {
			retire_compressed(img, at, bytes);
			q2_unpacked_forget(img, at, bytes);
		}
		if (last && punch) {
			/* The count of 1 keeps the allocator away, punch_off those who would join
			 * the cluster; without the mutex others go on. */
			img->punch_off = at;
			img->punch_len = bytes;
			co_mutex_unlock(&img->alloc_mutex);
			(void)co_block_discard(img->file, at, bytes, 0);
			co_mutex_lock(&img->alloc_mutex);
			img->punch_len = 0;
		}
		r = co_q2_refcount_add_locked(img, at, run, -1);
	}
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}
