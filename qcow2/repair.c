/* SPDX-License-Identifier: MIT */
/*
 * Repair: makes refcounts what the references say, and COPIED flags what the refcounts say.
 *
 * In place, a refcount may be set to the number of references at any time: raising it restores I1,
 * lowering it frees what nobody refers to. Where the refcount table or a block is damaged itself,
 * the whole structure is written anew behind the end of the file, where no reference reaches, and
 * switched to by the header; the old one is free then. In both ways nothing that is in use is
 * overwritten, so a crash leaves the image as damaged as before or better, and the next repair goes
 * on from there. COPIED flags come when the refcounts they speak of are durable.
 *
 * Where a table cannot be read nothing is repaired at all: its references are not known, and what
 * looks like a leak may be data.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* --- refcounts in place -------------------------------------------------------------------- */

struct fix {
	struct q2_check *ck;
	uint64_t leaks, errors;
};

static bool wanted(const struct q2_check *ck, int64_t surplus)
{
	return ck->c->repair & (surplus > 0 ? BLOCK_REPAIR_LEAKS : BLOCK_REPAIR_ERRORS);
}

static int fix_refblock(
	void *arg, const struct q2_table *t, uint8_t *data, struct q2_changed *changed)
{
	struct fix *fix = arg;
	struct q2_check *ck = fix->ck;
	const struct q2_image *img = ck->img;
	unsigned order = img->h.refcount_order;
	uint64_t base = t->index << img->refblock_bits, n = 1ULL << img->refblock_bits;
	uint64_t leaks = 0, errors = 0;
	struct q2_refs_cursor cur = {.refs = &ck->refs};

	n = base < ck->clusters ? MIN(n, ck->clusters - base) : 0;
	for (uint64_t i = 0; i < n; i++) {
		int64_t surplus = q2_refs_get(&cur, base + i);
		uint64_t old, want;

		if (!surplus || !wanted(ck, surplus))
			continue;
		old = q2_refcount_load(data, i, order);
		/* refs.c counts from at most INT64_MAX. */
		want = MIN(old, (uint64_t)INT64_MAX) - (uint64_t)surplus;
		if (want > img->max_refcount)
			continue;
		q2_refcount_store(data, i, order, want);
		q2_changed_add(changed, (uint32_t)(i << order >> 3), MAX(1u << order >> 3, 1u));
		q2_refs_clear(&cur, base + i);
		q2_refs_cursor_end(&cur);
		q2_check_message(ck, false, "Repairing cluster %llu refcount=%llu reference=%llu",
			(unsigned long long)(base + i), (unsigned long long)old,
			(unsigned long long)want);
		leaks += surplus > 0;
		errors += surplus < 0;
	}
	q2_refs_cursor_end(&cur);
	pthread_mutex_lock(&ck->lock);
	fix->leaks += leaks;
	fix->errors += errors;
	pthread_mutex_unlock(&ck->lock);
	return 0;
}

/* The blocks that hold refcounts to be fixed in this window. */
static int gather_blocks(struct q2_check *ck, struct q2_tables *ret)
{
	size_t chunk = 0;
	uint64_t cluster = 0, last = UINT64_MAX;
	int64_t surplus;
	int r = q2_refs_sort(&ck->refs);

	for (; r == 0 && q2_refs_next(&ck->refs, &chunk, &cluster, &surplus); cluster++) {
		uint64_t index = cluster >> ck->img->refblock_bits;

		if (index == last || !wanted(ck, surplus) || index >= ck->reftable_entries)
			continue;
		last = index;
		r = q2_tables_add(ret, ck->reftable[index] & Q2_REFTABLE_MASK, index, 1, 0);
	}
	q2_tables_merge(ret);
	return r;
}

int co_q2_repair_refcounts(struct q2_check *ck)
{
	_cleanup_(q2_tables_free) struct q2_tables blocks = {0};
	struct fix fix = {.ck = ck};
	struct q2_walk w = {.write = true, .fn = fix_refblock, .arg = &fix};
	int r = gather_blocks(ck, &blocks);

	w.tables = blocks.v;
	w.n = blocks.n;
	if (r == 0)
		r = co_q2_walk(ck->img, &w);
	if (r < 0)
		return r;
	ck->c->leaks -= fix.leaks;
	ck->c->leaks_fixed += fix.leaks;
	ck->c->corruptions -= fix.errors;
	ck->c->corruptions_fixed += fix.errors;
	ck->refcount_errors -= fix.errors;
	return 0;
}

/* --- COPIED -------------------------------------------------------------------------------- */

static void fix_l1_flags(struct q2_check *ck, bool *changed)
{
	struct q2_refs_cursor cur = {.refs = &ck->refs};

	for (uint32_t i = 0; i < ck->img->h.l1_size; i++) {
		uint64_t off = ck->l1[i] & Q2_OFFSET_MASK, cluster = off >> ck->img->cluster_bits;
		bool known, one;

		if (!off || off & (ck->img->cluster_size - 1))
			continue;
		one = q2_refs_flag(&cur, cluster, &known);
		if (cluster >= ck->clusters)
			known = ck->refs.lo == 0;
		if (!known || one == !!(ck->l1[i] & Q2_COPIED) || (one && !ck->may_set_copied))
			continue;
		q2_check_message(ck, false,
			"Repairing OFLAG_COPIED L2 cluster: l1_index=%u "
			"l1_entry=%llx refcount=%lld",
			i, (unsigned long long)ck->l1[i], (long long)q2_refs_get(&cur, cluster));
		ck->l1[i] ^= Q2_COPIED;
		ck->copied_fixed++;
		*changed = true;
	}
	q2_refs_cursor_end(&cur);
}

int co_q2_write_entries(struct q2_image *img, uint64_t off, const uint64_t *entries, uint64_t n)
{
	uint64_t bytes = align_up(n * 8, 512);
	_cleanup_free_ uint8_t *buf = block_buffer_alloc(img->file, bytes);

	if (!buf)
		return -ENOMEM;
	memset(buf, 0, bytes);
	for (uint64_t i = 0; i < n; i++)
		store_be64(buf + i * 8, entries[i]);
	return co_block_pwrite(img->file, off, buf, bytes);
}

int co_q2_repair_copied(struct q2_check *ck)
{
	struct q2_image *img = ck->img;
	bool l1_changed = false;
	int r = co_block_flush(img->file);

	if (r < 0)
		return r;
	ck->fix_copied = true;
	/* With fewer counts than references somewhere, a count of 1 may be one of them. */
	ck->may_set_copied = !ck->refcount_errors;
	ck->highest_used = ck->copied_fixed = 0;
	q2_refs_rewind(&ck->refs);
	do {
		r = co_q2_check_load_refcounts(ck);
		if (r == 0)
			r = co_q2_check_l2_tables(ck);
		if (r == 0)
			fix_l1_flags(ck, &l1_changed);
	} while (r == 0 && q2_refs_next_window(&ck->refs));
	if (r == 0 && l1_changed) {
		r = co_q2_write_entries(img, img->h.l1_offset, ck->l1, img->h.l1_size);
		if (r == 0)
			r = co_q2_set_l1(img, ck->l1, img->h.l1_size);
	}
	if (r == 0)
		r = co_block_flush(img->file);
	if (r < 0)
		return r;
	ck->c->corruptions -= ck->fixable;
	ck->c->corruptions_fixed += ck->fixable + ck->copied_fixed;
	return 0;
}

/* --- the whole structure anew --------------------------------------------------------------- */

struct rebuild {
	struct q2_check *ck;
	uint8_t *used;    /* a bit for every block index with references */
	uint64_t nblocks; /* block indices that the table covers */
	uint64_t start;   /* first cluster of the new structures: the end of the file */
	uint64_t table_clusters, block_clusters;
	uint64_t *table; /* new refcount table, host order */
	uint8_t *buf;    /* a cluster */
};

static bool block_used(const struct rebuild *rb, uint64_t i)
{
	return rb->used[i / 8] >> (i & 7) & 1;
}

/* References by clusters of this window, as negative numbers; the old refcount structures are not
 * counted: they are free when the new ones are in place. */
static int co_count_references(struct q2_check *ck)
{
	int r = co_q2_check_metadata(ck);

	if (r == 0)
		r = co_q2_check_l2_tables(ck);
	if (r == 0 && ck->refs.out_of_memory)
		r = -ENOMEM;
	if (r == 0 && ck->unreadable)
		r = -EIO;
	return r < 0 ? r : q2_refs_sort(&ck->refs);
}

static int co_find_used_blocks(struct rebuild *rb, struct error *err)
{
	struct q2_check *ck = rb->ck;
	int r;

	q2_refs_rewind(&ck->refs);
	do {
		size_t chunk = 0;
		uint64_t cluster = 0;
		int64_t n;

		r = co_count_references(ck);
		for (; r == 0 && q2_refs_next(&ck->refs, &chunk, &cluster, &n); cluster++) {
			uint64_t i = cluster >> ck->img->refblock_bits;

			rb->used[i / 8] |= (uint8_t)(1u << (i & 7));
			if ((uint64_t)-n > ck->img->max_refcount)
				return error_set(err, -EFBIG,
					"%s: cluster %llu is referenced %lld "
					"times, more than refcounts of %u bits can say; convert "
					"the "
					"image into a new one",
					ck->img->node->filename, (unsigned long long)cluster,
					(long long)-n, ck->img->refcount_bits);
		}
	} while (r == 0 && q2_refs_next_window(&ck->refs));
	return r;
}

/* Where everything goes: table, then blocks in order, and the blocks count themselves. */
static int plan(struct rebuild *rb, struct error *err)
{
	const struct q2_image *img = rb->ck->img;
	uint64_t pos, entries;

	rb->table_clusters = 1;
	for (;;) {
		uint64_t end = rb->start + rb->table_clusters + rb->block_clusters, count = 0;

		entries = ((end - 1) >> img->refblock_bits) + 1;
		if (entries > rb->nblocks)
			entries = rb->nblocks; /* cannot be: nblocks has room for all */
		for (uint64_t i = rb->start >> img->refblock_bits; i < entries; i++)
			rb->used[i / 8] |= (uint8_t)(1u << (i & 7));
		for (uint64_t i = 0; i < entries; i++)
			count += block_used(rb, i);
		if (count == rb->block_clusters &&
			div_up(entries * 8, img->cluster_size) <= rb->table_clusters)
			break;
		rb->block_clusters = MAX(rb->block_clusters, count);
		rb->table_clusters = MAX(
			rb->table_clusters, div_up(entries * 8, img->cluster_size));
	}
	if (rb->table_clusters << img->cluster_bits > Q2_MAX_REFTABLE_BYTES)
		return error_set(err, -EFBIG,
			"%s: the file is too long for a refcount table of "
			"%llu MiB; convert the image into a new one",
			img->node->filename, Q2_MAX_REFTABLE_BYTES / MiB);
	rb->table = mem_calloc(rb->table_clusters << (img->cluster_bits - 3), 8);
	if (!rb->table)
		return -ENOMEM;
	pos = rb->start + rb->table_clusters;
	for (uint64_t i = 0; i < entries; i++)
		if (block_used(rb, i))
			rb->table[i] = pos++ << img->cluster_bits;
	return 0;
}

/* The refcounts of clusters [from, to), all in block `index`, into the file. In whole bytes, for
 * windows begin and end at multiples of many clusters. */
static int co_write_counts(struct rebuild *rb, uint64_t index, uint64_t from, uint64_t to)
{
	struct q2_check *ck = rb->ck;
	const struct q2_image *img = ck->img;
	unsigned order = img->h.refcount_order;
	uint64_t base = index << img->refblock_bits;
	uint64_t first = align_down((from - base) << order >> 3, 512);
	uint64_t end = align_up(((to - base) << order >> 3) + 1, 512);
	struct q2_refs_cursor cur = {.refs = &ck->refs};
	int r;

	end = MIN(end, img->cluster_size);
	r = co_block_pread(img->file, rb->table[index] + first, rb->buf + first, end - first);
	if (r < 0)
		return r;
	for (uint64_t c = from; c < to; c++) {
		int64_t n = q2_refs_get(&cur, c);

		if (n)
			q2_refcount_store(rb->buf, c - base, order, (uint64_t)-n);
	}
	q2_refs_cursor_end(&cur);
	return co_block_pwrite(img->file, rb->table[index] + first, rb->buf + first, end - first);
}

static int co_write_window(struct rebuild *rb)
{
	struct q2_check *ck = rb->ck;
	uint64_t per_block = 1ULL << ck->img->refblock_bits;
	uint64_t hi = MIN(ck->refs.hi, ck->clusters);
	int r = 0;

	for (uint64_t i = ck->refs.lo >> ck->img->refblock_bits;
		r == 0 && i < rb->nblocks && i * per_block < hi; i++) {
		uint64_t from = MAX(i * per_block, ck->refs.lo);

		if (block_used(rb, i))
			r = co_write_counts(rb, i, from, MIN((i + 1) * per_block, hi));
	}
	return r;
}

/* One reference for each cluster of the new structures, in blocks that may be written already. */
static int co_write_own_counts(struct rebuild *rb)
{
	const struct q2_image *img = rb->ck->img;
	uint64_t end = rb->start + rb->table_clusters + rb->block_clusters;

	for (uint64_t c = rb->start; c < end;) {
		uint64_t index = c >> img->refblock_bits, base = index << img->refblock_bits;
		int r = co_block_pread(img->file, rb->table[index], rb->buf, img->cluster_size);

		for (; c < end && c >> img->refblock_bits == index; c++)
			q2_refcount_store(rb->buf, c - base, img->h.refcount_order, 1);
		if (r == 0)
			r = co_block_pwrite(
				img->file, rb->table[index], rb->buf, img->cluster_size);
		if (r < 0)
			return r;
	}
	return 0;
}

static int co_write_structures(struct rebuild *rb)
{
	struct q2_check *ck = rb->ck;
	struct q2_image *img = ck->img;
	uint64_t bytes = (rb->table_clusters + rb->block_clusters) << img->cluster_bits;
	int r = co_block_zero(img->file, rb->start << img->cluster_bits, bytes, 0);

	q2_refs_rewind(&ck->refs);
	if (r < 0)
		return r;
	do {
		r = co_count_references(ck);
		if (r == 0)
			r = co_write_window(rb);
	} while (r == 0 && q2_refs_next_window(&ck->refs));
	if (r == 0)
		r = co_write_own_counts(rb);
	if (r == 0)
		r = co_q2_write_entries(img, rb->start << img->cluster_bits, rb->table,
			rb->table_clusters << (img->cluster_bits - 3));
	return r;
}

/* H[reftable], and what the check knows about the structure from then on. */
static int co_switch(struct rebuild *rb)
{
	struct q2_check *ck = rb->ck;
	struct q2_image *img = ck->img;
	uint64_t old_off = img->h.reftable_offset;
	uint32_t old_clusters = img->h.reftable_clusters;
	int r;

	img->h.reftable_offset = rb->start << img->cluster_bits;
	img->h.reftable_clusters = (uint32_t)rb->table_clusters;
	r = co_q2_header_switch(img);
	if (r < 0) {
		/* The table in memory is the old one. */
		img->h.reftable_offset = old_off;
		img->h.reftable_clusters = old_clusters;
		return r;
	}
	mem_free(ck->reftable);
	ck->reftable = take(rb->table);
	ck->reftable_entries = rb->table_clusters << (img->cluster_bits - 3);
	ck->file_size = block_size(img->file);
	ck->clusters = div_up(ck->file_size, img->cluster_size);
	ck->refblocks.n = 0;
	for (uint64_t i = 0; r == 0 && i < ck->reftable_entries; i++)
		if (ck->reftable[i])
			r = q2_tables_add(&ck->refblocks, ck->reftable[i], i, 1, 0);
	q2_tables_merge(&ck->refblocks);
	ck->refs.clusters = ck->clusters;
	if (r == 0)
		r = co_q2_set_reftable(img, ck->reftable, ck->reftable_entries);
	/* With the old table in memory nothing may be written. */
	if (r < 0)
		img->corrupt = true;
	return r;
}

static int co_rebuild(struct rebuild *rb, struct error *err)
{
	struct q2_check *ck = rb->ck;
	struct q2_image *img = ck->img;
	int r;

	rb->start = ck->clusters;
	/* The new structures take at most one part in a few hundred of what they count. */
	rb->nblocks = ((ck->clusters + ck->clusters / 8 + (1u << 20)) >> img->refblock_bits) + 2;
	rb->used = mem_zalloc(rb->nblocks / 8 + 1);
	rb->buf = block_buffer_alloc(img->file, img->cluster_size);
	if (!rb->used || !rb->buf)
		return -ENOMEM;
	q2_check_message(ck, false, "Rebuilding refcount structure");
	ck->counting = true;
	r = co_find_used_blocks(rb, err);
	if (r == 0)
		r = plan(rb, err);
	if (r == 0)
		r = co_write_structures(rb);
	ck->counting = false;
	return r < 0 ? r : co_switch(rb);
}

int co_q2_repair_rebuild(struct q2_check *ck, struct error *err)
{
	struct rebuild rb = {.ck = ck};
	int r = co_rebuild(&rb, err);

	mem_free(rb.used);
	mem_free(rb.buf);
	mem_free(rb.table);
	if (r < 0)
		return r;
	ck->bad_structure = false;
	ck->c->leaks_fixed += ck->c->leaks;
	ck->c->leaks = 0;
	ck->c->corruptions -= ck->refcount_errors;
	ck->c->corruptions_fixed += ck->refcount_errors;
	ck->refcount_errors = 0;
	return 0;
}
