/* SPDX-License-Identifier: MIT */
/*
 * The frame of structural operations (snapshots, resize, emptying, repair): alone on the image,
 * past the caches, with the switches that they share.
 *
 * Between co_q2_structure_begin() and _end() the file is all there is: caches are written and
 * empty, no request is in flight, the quarantine is empty. What the operation changes on disk it
 * changes in struct q2_image as well; what follows from that is made anew at the end
 * (co_q2_forget).
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

int q2_structure_writable(const struct q2_image *img, struct error *err)
{
	if (!img->writable)
		return error_set(
			err, -EROFS, "%s: the image is open read-only", img->node->filename);
	if (img->corrupt)
		return error_set(err, -EUCLEAN,
			"%s: the image is marked corrupt; repair it with "
			"qemu-img check -r all",
			img->node->filename);
	return 0;
}

/* Everything that was read from tables which may have changed. */
int co_q2_forget(struct q2_image *img)
{
	int r;

	q2_cache_drop(img, img->l2_cache);
	q2_cache_drop(img, img->ref_cache);
	q2_unpacked_forget(img, 0, UINT64_MAX);
	img->free_hint = 0;
	img->compressed_next = 0;
	if (!img->writable)
		return 0;
	img->data_end = MAX(img->data_end, align_up(block_size(img->file), img->cluster_size));
	r = q2_overlap_refill(img);
	/* Without the guard nothing may be written. */
	if (r < 0)
		img->corrupt = true;
	return r;
}

/* A table of n entries (host order) with its dirty map, in the form that driver.c loads. */
struct table {
	uint64_t *entries;
	uint8_t *dirty;
};

static int table_new(struct q2_image *img, const uint64_t *entries, uint64_t n, struct table *ret)
{
	ret->entries = block_buffer_alloc(img->file, MAX(n * 8, 8ULL));
	ret->dirty = mem_zalloc(MAX(div_up(n, 64), 1ULL));
	if (!ret->entries || !ret->dirty) {
		mem_free(ret->entries);
		mem_free(ret->dirty);
		return -ENOMEM;
	}
	if (n)
		memcpy(ret->entries, entries, n * 8);
	return 0;
}

static void table_install(struct table *t, uint64_t **entries, uint8_t **dirty)
{
	mem_free(*entries);
	mem_free(*dirty);
	*entries = t->entries;
	*dirty = t->dirty;
}

int co_q2_set_l1(struct q2_image *img, const uint64_t *l1, uint32_t n)
{
	struct table t;
	int r = table_new(img, l1, n, &t);

	if (r == 0)
		table_install(&t, &img->l1, &img->l1_dirty);
	return r;
}

int co_q2_set_reftable(struct q2_image *img, const uint64_t *table, uint64_t n)
{
	struct table t;
	int r = table_new(img, table, n, &t);

	if (r < 0)
		return r;
	table_install(&t, &img->reftable, &img->reftable_dirty);
	img->reftable_entries = n;
	return 0;
}

/* Alone on the image, refcounts on disk, DIRTY durable where the operation wants it. */
int co_q2_structure_begin(struct q2_image *img, bool dirty, struct error *err)
{
	int r = co_q2_before_write(img);

	if (r == 0) {
		co_block_drain_begin(img->node);
		r = co_q2_quiesce_begin(img);
		if (r < 0)
			co_block_drain_end(img->node);
	}
	if (r < 0)
		return error_set_errno(
			err, r, "%s: cannot prepare the image for the change", img->node->filename);
	r = dirty ? co_q2_set_dirty(img, true) : 0;
	if (r < 0) {
		co_q2_quiesce_end(img);
		co_block_drain_end(img->node);
		return error_set_errno(
			err, r, "%s: cannot mark the image dirty", img->node->filename);
	}
	return 0;
}

/* A failure in the middle leaves leaks and missing COPIED flags at worst; DIRTY stays, so that the
 * next one to open the image repairs them. */
int co_q2_structure_end(struct q2_image *img, int result, struct error *err, const char *what)
{
	int r = co_q2_forget(img);

	if (result == 0)
		result = r;
	if (result == 0 && img->dirty_on_disk)
		result = co_q2_set_dirty(img, false);
	co_q2_quiesce_end(img);
	co_block_drain_end(img->node);
	if (result == 0 || (err && err->code))
		return result;
	if (result == -EFBIG)
		return error_set(err, result,
			"%s: cannot %s: a cluster would be referenced more "
			"often than refcounts of %u bits can say",
			img->node->filename, what, img->refcount_bits);
	if (result == -EUCLEAN)
		return error_set(err, result,
			"%s: cannot %s: the image is corrupt; look at it with "
			"qemu-img check",
			img->node->filename, what);
	return error_set_errno(err, result, "%s: cannot %s", img->node->filename, what);
}

uint64_t q2_clusters_for(const struct q2_image *img, uint64_t bytes)
{
	return div_up(bytes, img->cluster_size);
}

/* Clusters for tables, their refcounts durable; *off is 0 for 0 bytes. */
int co_q2_alloc_table(struct q2_image *img, uint64_t bytes, uint64_t *off)
{
	int r;

	*off = 0;
	if (!bytes)
		return 0;
	r = co_q2_alloc(img, q2_clusters_for(img, bytes), off);
	/* Refcounts themselves: with lazy refcounts a commit leaves them in the cache. */
	if (r == 0)
		r = co_q2_write_refcounts(img);
	if (r == 0)
		r = co_q2_barrier(img);
	if (r == 0)
		q2_cache_drop(img, img->ref_cache);
	return r;
}

/* H[size, L1]. Memory is taken before the switch: behind it nothing may fail but the disk. */
int co_q2_switch_l1(
	struct q2_image *img, uint64_t off, const uint64_t *l1, uint32_t entries, uint64_t size)
{
	struct q2_header *h = &img->h;
	uint64_t old_size = h->size, old_off = h->l1_offset;
	uint32_t old_entries = h->l1_size;
	struct table t;
	int r = table_new(img, l1, entries, &t);

	if (r < 0)
		return r;
	h->size = size;
	h->l1_offset = off;
	h->l1_size = entries;
	r = co_q2_header_switch(img);
	if (r == 0) {
		table_install(&t, &img->l1, &img->l1_dirty);
		return 0;
	}
	h->size = old_size;
	h->l1_offset = old_off;
	h->l1_size = old_entries;
	mem_free(t.entries);
	mem_free(t.dirty);
	return r;
}

/* --- the end of the file ------------------------------------------------------------------- */

/* The first cluster behind all that have a refcount. */
static int co_find_end(struct q2_image *img, uint64_t *ret)
{
	_cleanup_free_ uint8_t *block = block_buffer_alloc(img->file, img->cluster_size);
	uint64_t per_block = 1ULL << img->refblock_bits;

	if (!block)
		return -ENOMEM;
	*ret = 0;
	for (uint64_t i = img->reftable_entries; i-- > 0;) {
		uint64_t off = img->reftable[i] & Q2_REFTABLE_MASK;
		int r;

		if (!off)
			continue;
		r = co_block_pread(img->file, off, block, img->cluster_size);
		if (r < 0)
			return r;
		for (uint64_t k = per_block; k-- > 0;) {
			if (!q2_refcount_load(block, k, img->h.refcount_order))
				continue;
			*ret = (i << img->refblock_bits) + k + 1;
			return 0;
		}
	}
	return 0;
}

int co_q2_trim_file(struct q2_image *img)
{
	struct block_resize rs = {.shrink = true};
	uint64_t end;
	int r;

	if (!img->file->caps.grows)
		return 0;
	/* The refcounts that let go of the end are durable before it goes. */
	r = co_block_flush(img->file);
	if (r == 0)
		r = co_find_end(img, &end);
	if (r < 0)
		return r;
	rs.size = end << img->cluster_bits;
	/* A file that keeps its length holds nothing more at its end: no reason to fail. */
	if (end && rs.size < block_size(img->file))
		co_block_resize(img->file, &rs, NULL);
	return 0;
}
