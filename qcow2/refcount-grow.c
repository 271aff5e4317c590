/* SPDX-License-Identifier: MIT */
/*
 * Growth of the refcount structures: new refcount blocks, and a larger refcount table.
 *
 * Theory of operation: new blocks are placed right behind the run of clusters they are made for, as
 * many as it takes to count that run and themselves (q2_refblocks_missing). They are written in
 * full, with their own counts where they count themselves, before their entries appear in the
 * refcount table in memory; commit.c puts a barrier between their content and the entries on disk,
 * and another before anything whose safety needs a count in them (I1, I4).
 *
 * A larger table is placed at the first cluster the old one cannot count, which is always free:
 * blocks that count the new area, then the table. One barrier makes them and all refcounts durable,
 * one header write switches (I7), one more barrier, and only then the old table's clusters are
 * free (I2, I3). All of it runs under alloc_mutex.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

static bool block_missing(const struct q2_image *img, uint64_t block)
{
	return block >= img->reftable_entries || !img->reftable[block];
}

static uint64_t missing_in(const struct q2_image *img, uint64_t start, uint64_t n)
{
	uint64_t missing = 0;

	for (uint64_t b = start >> img->refblock_bits; b <= (start + n - 1) >> img->refblock_bits;
		b++)
		missing += block_missing(img, b);
	return missing;
}

uint64_t q2_refblocks_missing(const struct q2_image *img, uint64_t start, uint64_t n)
{
	uint64_t blocks = missing_in(img, start, n), more;

	if (!blocks)
		return 0;
	while ((more = missing_in(img, start, n + blocks)) != blocks)
		blocks = more;
	return blocks;
}

/* Sets the counts of clusters [from, to) to 1 in `data`, the block number `block`. */
static void block_fill(
	const struct q2_image *img, uint8_t *data, uint64_t block, uint64_t from, uint64_t to)
{
	uint64_t first = block << img->refblock_bits, end = first + (1ULL << img->refblock_bits);

	for (uint64_t c = MAX(from, first); c < MIN(to, end); c++)
		q2_refcount_store(data, c - first, img->h.refcount_order, 1);
}

/* Writes the missing blocks of [start, end), one after the other from cluster `at` on, each with
 * counts of 1 for the clusters [used, end); the offset of block b goes into entry[b - base]. */
static int blocks_write(struct q2_image *img, uint64_t *entry, uint64_t base, uint64_t start,
	uint64_t end, uint64_t at, uint64_t used)
{
	_cleanup_free_ uint8_t *data = block_buffer_alloc(img->file, img->cluster_size);

	if (!data)
		return -ENOMEM;
	for (uint64_t b = start >> img->refblock_bits; b <= (end - 1) >> img->refblock_bits; b++) {
		uint64_t off = at << img->cluster_bits;
		int r;

		if (!block_missing(img, b))
			continue;
		memset(data, 0, img->cluster_size);
		block_fill(img, data, b, used, end);
		q2_cache_drop_range(img->ref_cache, off, img->cluster_size);
		co_block_event(img->file, "refblock_alloc_write");
		r = co_block_pwrite(img->file, off, data, img->cluster_size);
		trace("q2_refblock_new", "%s: block %llu at %llu, result %d", img->node->filename,
			(unsigned long long)b, (unsigned long long)off, r);
		if (r < 0)
			return r;
		entry[b - base] = off;
		at++;
	}
	return 0;
}

static int reftable_grow(struct q2_image *img, uint64_t entries);

/* Raises the counts of the new blocks that old blocks count. */
static int count_in_old(struct q2_image *img, uint64_t from, uint64_t to)
{
	int r = 0;

	for (; r == 0 && from < to; from++)
		if (!block_missing(img, from >> img->refblock_bits))
			r = co_q2_refcount_add_locked(img, from << img->cluster_bits, 1, 1);
	return r;
}

static int blocks_install(
	struct q2_image *img, const uint64_t *entry, uint64_t first, uint64_t last)
{
	for (uint64_t b = first; b <= last; b++) {
		int r;

		if (!entry[b - first] || !block_missing(img, b))
			continue;
		r = q2_overlap_add(img, entry[b - first], Q2_OVERLAP_REFBLOCK);
		if (r < 0)
			return r;
		img->reftable[b] = entry[b - first];
		img->reftable_dirty[b / 64] = 1;
		__atomic_store_n(&img->reftable_changed, true, __ATOMIC_RELEASE);
	}
	return 0;
}

int co_q2_refblocks_new(struct q2_image *img, uint64_t start, uint64_t n, uint64_t blocks)
{
	uint64_t at = start + n, end = at + blocks, first = start >> img->refblock_bits;
	uint64_t last = (end - 1) >> img->refblock_bits;
	_cleanup_free_ uint64_t *entry = NULL;
	int r;

	if (last >= img->reftable_entries) {
		r = reftable_grow(img, last + 1);
		return r < 0 ? r : 2;
	}
	if (q2_overlaps(img, at << img->cluster_bits, blocks << img->cluster_bits, Q2_OVERLAP_NONE))
		return co_q2_corrupt(img, "the free clusters at %#llx hold metadata",
			(unsigned long long)at << img->cluster_bits);
	entry = mem_calloc(last + 1 - first, sizeof(*entry));
	if (!entry)
		return -ENOMEM;
	img->data_end = MAX(img->data_end, end << img->cluster_bits);
	r = blocks_write(img, entry, first, start, end, at, at);
	if (r == 0)
		r = count_in_old(img, at, end);
	return r < 0 ? r : blocks_install(img, entry, first, last);
}

/* --- the table --- */

struct grow {
	uint64_t base;    /* first cluster of the new area */
	uint64_t blocks;  /* new refcount blocks there */
	uint64_t table;   /* clusters of the new table, behind them */
	uint64_t entries; /* of the new table */
	uint64_t *entry;  /* its content, host order */
};

/* How large it all gets: the area must be counted by its own blocks. */
static int grow_plan(const struct q2_image *img, struct grow *g, uint64_t entries)
{
	uint64_t per_cluster = img->cluster_size / 8, end;

	g->base = img->reftable_entries << img->refblock_bits;
	g->entries = MAX(entries, img->reftable_entries * 2);
	g->entries = MIN(g->entries, MAX(Q2_MAX_REFTABLE_BYTES / 8, per_cluster));
	for (;;) {
		g->table = div_up(g->entries, per_cluster);
		g->entries = g->table * per_cluster;
		for (g->blocks = 0;;) {
			uint64_t more;

			end = g->base + g->blocks + g->table;
			more = ((end - 1) >> img->refblock_bits) - img->reftable_entries + 1;
			if (more <= g->blocks)
				break;
			g->blocks = more;
		}
		if (img->reftable_entries + g->blocks <= g->entries)
			break;
		g->entries = img->reftable_entries + g->blocks;
	}
	if (g->entries < entries || g->entries * 8 > MAX(Q2_MAX_REFTABLE_BYTES, img->cluster_size))
		return -EFBIG;
	return 0;
}

static int grow_write(struct q2_image *img, struct grow *g)
{
	uint64_t end = g->base + g->blocks + g->table, bytes = g->table << img->cluster_bits;
	_cleanup_free_ uint8_t *buf = block_buffer_alloc(img->file, bytes);
	int r;

	if (!buf)
		return -ENOMEM;
	/* Nothing counts this area, but tables of a damaged image may lie there. */
	if (q2_overlaps(img, g->base << img->cluster_bits, (end - g->base) << img->cluster_bits,
		    Q2_OVERLAP_REFBLOCK))
		return co_q2_corrupt(img, "the free clusters at %#llx hold metadata",
			(unsigned long long)g->base << img->cluster_bits);
	img->data_end = MAX(img->data_end, end << img->cluster_bits);
	r = blocks_write(img, g->entry, 0, g->base, end, g->base, g->base);
	if (r < 0)
		return r;
	for (uint64_t i = 0; i < g->entries; i++)
		store_be64(buf + i * 8, g->entry[i]);
	return co_block_pwrite(img->file, (g->base + g->blocks) << img->cluster_bits, buf, bytes);
}

/* The header names the new table, durably; on failure the old one stays in force. */
static int grow_switch(struct q2_image *img, struct grow *g)
{
	uint64_t old_off = img->h.reftable_offset;
	uint32_t old_clusters = img->h.reftable_clusters;
	int r = co_q2_cache_writeback(img, img->ref_cache);

	/* Durable before the header fields change: whoever finds a corruption meanwhile writes them
	 * (I4). */
	if (r == 0)
		r = co_block_flush(img->file);
	if (r < 0)
		return r;
	co_mutex_lock(&img->header_mutex);
	img->h.reftable_offset = (g->base + g->blocks) << img->cluster_bits;
	img->h.reftable_clusters = (uint32_t)g->table;
	co_mutex_unlock(&img->header_mutex);
	r = co_q2_header_switch(img);
	if (r < 0) {
		img->h.reftable_offset = old_off;
		img->h.reftable_clusters = old_clusters;
		/* Which of the two the disk holds is unknown: both are valid, but what is written
		 * to one is missing in the other. */
		(void)co_q2_header_write(img);
	}
	return r;
}

static int grow_overlap(struct q2_image *img, const struct grow *g)
{
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < g->blocks; i++)
		r = q2_overlap_add(img, (g->base + i) << img->cluster_bits, Q2_OVERLAP_REFBLOCK);
	return r;
}

static int reftable_grow(struct q2_image *img, uint64_t entries)
{
	uint64_t old_off = img->h.reftable_offset, old_clusters = img->h.reftable_clusters;
	struct grow g = {0};
	uint8_t *dirty = NULL;
	int r = grow_plan(img, &g, entries);

	if (r < 0)
		return r;
	g.entry = mem_calloc(g.entries, sizeof(*g.entry));
	dirty = mem_calloc(div_up(g.entries, 64), 1);
	if (!g.entry || !dirty) {
		r = -ENOMEM;
	} else {
		memcpy(g.entry, img->reftable, img->reftable_entries * sizeof(*g.entry));
		r = grow_write(img, &g);
	}
	if (r == 0)
		r = grow_overlap(img, &g);
	if (r == 0)
		r = grow_switch(img, &g);
	trace("q2_reftable_grow", "%s: %llu to %llu entries, result %d", img->node->filename,
		(unsigned long long)img->reftable_entries, (unsigned long long)g.entries, r);
	if (r < 0) {
		mem_free(g.entry);
		mem_free(dirty);
		return r;
	}
	mem_free(img->reftable);
	mem_free(img->reftable_dirty);
	img->reftable = g.entry;
	img->reftable_dirty = dirty;
	img->reftable_entries = g.entries;
	__atomic_store_n(&img->reftable_changed, false, __ATOMIC_RELEASE);
	(void)co_q2_refcount_add_locked(img, old_off, old_clusters, -1);
	return 0;
}
