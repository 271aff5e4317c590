/* SPDX-License-Identifier: MIT */
/*
 * Changing L2 tables: new tables, copies of shared ones, and entries.
 *
 * Theory of operation: whoever changes entries has entered their clusters in inflight.c. First
 * co_q2_l2_table() makes sure that the active L1 entry names a table that only it refers to
 * (COPIED): a new one is written in full, zeroes or the shared table's content, before the L1 entry
 * appears in memory (I4); table_mutex makes sure it happens once. A shared table has no dirty
 * slices, because nothing but this file dirties one, so its content is what the file holds. Then
 * entries are read and stored in cached slices, a run inside one slice at a time.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

static bool table_ready(struct q2_image *img, uint64_t index, uint64_t *entry)
{
	spin_lock(&img->map_lock);
	*entry = index < img->h.l1_size ? img->l1[index] : 0;
	spin_unlock(&img->map_lock);
	return (*entry & Q2_OFFSET_MASK) && (*entry & Q2_COPIED) && q2_l1_entry_valid(img, *entry);
}

/* A table of zeroes, or the content of `old`, at `off`. */
static int table_write(struct q2_image *img, uint64_t old, uint64_t off)
{
	_cleanup_free_ uint8_t *buf = block_buffer_alloc(img->file, img->cluster_size);
	int r;

	if (!buf)
		return -ENOMEM;
	if (!old)
		memset(buf, 0, img->cluster_size);
	else if ((r = co_block_pread(img->file, old, buf, img->cluster_size)) < 0)
		return r;
	q2_cache_drop_range(img->l2_cache, off, img->cluster_size);
	co_block_event(img->file, "l2_alloc_write");
	return co_block_pwrite(img->file, off, buf, img->cluster_size);
}

static void table_link(struct q2_image *img, uint64_t index, uint64_t off)
{
	spin_lock(&img->map_lock);
	img->l1[index] = off | Q2_COPIED;
	img->l1_ndirty += !img->l1_dirty[index / 64];
	img->l1_dirty[index / 64] = 1;
	spin_unlock(&img->map_lock);
}

static int table_new(struct q2_image *img, uint64_t index, uint64_t entry)
{
	uint64_t old = entry & Q2_OFFSET_MASK, off;
	int r;

	if (index >= img->h.l1_size)
		return -EFBIG;
	if (!q2_l1_entry_valid(img, entry))
		return co_q2_corrupt(img, "L1 entry %llu is %#llx", (unsigned long long)index,
			(unsigned long long)entry);
	r = co_q2_alloc(img, 1, &off);
	if (r < 0)
		return r;
	r = table_write(img, old, off);
	if (r == 0)
		r = q2_overlap_add(img, off, Q2_OVERLAP_L2);
	trace("q2_l2_new", "%s: L1 entry %llu, table at %llu, copy of %llu, result %d",
		img->node->filename, (unsigned long long)index, (unsigned long long)off,
		(unsigned long long)old, r);
	if (r < 0) {
		co_q2_alloc_undo(img, off, 1);
		return r;
	}
	table_link(img, index, off);
	if (old) {
		q2_overlap_del(img, old);
		q2_free_clusters(img, old, 1);
	}
	return 0;
}

int co_q2_l2_table(struct q2_image *img, uint64_t off)
{
	uint64_t index = q2_l1_index(img, off), entry;
	int r = 0;

	if (likely(table_ready(img, index, &entry)))
		return 0;
	co_mutex_lock(&img->table_mutex);
	if (!table_ready(img, index, &entry))
		r = table_new(img, index, entry);
	co_mutex_unlock(&img->table_mutex);
	return r;
}

uint64_t q2_l2_run_max(const struct q2_image *img, uint64_t off)
{
	uint64_t per = q2_cache_slice_size(img->l2_cache) / img->l2_entry_size;

	return MIN(per - (q2_l2_index(img, off) & (per - 1)), (uint64_t)Q2_L2_RUN);
}

/* The slice for guest offset `off` with a reference, and the entry's place in it; 1: no table. */
static int slice_get(struct q2_image *img, uint64_t off, struct q2_slice **ret, uint8_t **entry)
{
	uint32_t size = q2_cache_slice_size(img->l2_cache);
	uint64_t index = q2_l1_index(img, off), l1;
	int r;

	spin_lock(&img->map_lock);
	l1 = index < img->h.l1_size ? img->l1[index] : 0;
	spin_unlock(&img->map_lock);
	if (!(l1 & Q2_OFFSET_MASK))
		return 1;
	if (!q2_l1_entry_valid(img, l1))
		return co_q2_corrupt(img, "L1 entry %llu is %#llx", (unsigned long long)index,
			(unsigned long long)l1);
	r = co_q2_cache_get(
		img, img->l2_cache, q2_l2_slice_offset(img, l1 & Q2_OFFSET_MASK, off), ret);
	if (r == 0)
		*entry = (*ret)->data + (q2_l2_index(img, off) * img->l2_entry_size & (size - 1));
	return r;
}

int co_q2_l2_load(struct q2_image *img, uint64_t off, uint64_t n, struct q2_l2_entry *ret)
{
	struct q2_slice *s;
	uint8_t *p;
	int r = slice_get(img, off, &s, &p);

	if (r == 1) {
		memset(ret, 0, n * sizeof(*ret));
		return 0;
	}
	if (r < 0)
		return r;
	spin_lock(&img->map_lock);
	for (uint64_t i = 0; i < n; i++, p += img->l2_entry_size) {
		ret[i].entry = load_be64(p);
		ret[i].bitmap = img->extl2 ? load_be64(p + 8) : 0;
	}
	spin_unlock(&img->map_lock);
	q2_cache_put(img->l2_cache, s);
	/* What they refer to will be written, or freed and punched. */
	for (uint64_t i = 0; i < n; i++)
		if (unlikely(!q2_l2_entry_valid(img, ret[i].entry, ret[i].bitmap)))
			return co_q2_corrupt(img,
				"table entry %#llx for guest offset %#llx makes no sense",
				(unsigned long long)ret[i].entry,
				(unsigned long long)off + (i << img->cluster_bits));
	return 0;
}

int co_q2_l2_store(struct q2_image *img, uint64_t off, uint64_t n, const struct q2_l2_entry *e)
{
	struct q2_slice *s;
	uint8_t *p;
	int r = slice_get(img, off, &s, &p);

	if (r)
		return r < 0 ? r : -EIO;
	spin_lock(&img->map_lock);
	for (uint64_t i = 0; i < n; i++, p += img->l2_entry_size) {
		store_be64(p, e[i].entry);
		if (img->extl2)
			store_be64(p + 8, e[i].bitmap);
	}
	q2_cache_mark_dirty(img->l2_cache, s);
	spin_unlock(&img->map_lock);
	q2_cache_put(img->l2_cache, s);
	trace("q2_l2_store", "%s: %llu entries from guest offset %llu, first %#llx",
		img->node->filename, (unsigned long long)n, (unsigned long long)off,
		(unsigned long long)e[0].entry);
	return 0;
}

int co_q2_link(struct q2_image *img, const uint64_t *off, const uint64_t *entry, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct q2_l2_entry old, now = {entry[i], 0};
		struct q2_alloc_range range;
		int r;

		if (img->extl2 && !(entry[i] & Q2_COMPRESSED))
			now.bitmap = UINT32_MAX;
		co_q2_alloc_enter(img, &range, off[i], 1);
		r = co_q2_l2_table(img, off[i]);
		if (r == 0)
			r = co_q2_l2_load(img, off[i], 1, &old);
		if (r == 0)
			r = co_q2_l2_store(img, off[i], 1, &now);
		q2_alloc_leave(img, &range);
		if (r < 0)
			return r;
		q2_free_entry(img, old.entry);
	}
	return 0;
}
