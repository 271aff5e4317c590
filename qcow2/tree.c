/* SPDX-License-Identifier: MIT */
/*
 * Changes of refcounts in bulk: what a snapshot operation does to all that an L1 table reaches.
 *
 * The L1 tables in play are added with the change of their references: +1 for a tree that gets
 * another root, -1 for one that loses it. L2 tables are merged by offset, so that a table whose
 * changes cancel out is not even read. The walk over the others adds up a change for every cluster
 * (refs.c); then every refcount block that has changes is read, corrected and written, once.
 *
 * The caller decides about order (I1, I2): RAISE < the new root is written < LOWER. COPIED may be
 * cleared at any time; it is set (I6) by Q2_TREE_COPIED when the refcounts of the window are
 * durable and only where this operation brought them down to 1.
 *
 * When the changes do not fit into memory, windows of clusters are done one after the other, each
 * with a walk of its own.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

#define TREE_MEMORY (256 * MiB)

int q2_tree_init(struct q2_tree *t, struct q2_image *img)
{
	*t = (struct q2_tree){.img = img};
	return q2_refs_init(&t->refs, div_up(block_size(img->file), img->cluster_size),
		img->tree_memory ? img->tree_memory : TREE_MEMORY);
}

void q2_tree_destroy(struct q2_tree *t)
{
	q2_tables_free(&t->tables);
	q2_tables_free(&t->extra);
	q2_refs_destroy(&t->refs);
	mem_free(t->freed);
	t->freed = NULL;
}

static bool inside_file(const struct q2_image *img, uint64_t off)
{
	return is_aligned(off, img->cluster_size) && off < block_size(img->file);
}

int q2_tree_add_l1(struct q2_tree *t, const uint64_t *l1, uint64_t n, int delta, bool active)
{
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < n; i++) {
		uint64_t off = l1[i] & Q2_OFFSET_MASK;

		if (!off)
			continue;
		if (!inside_file(t->img, off))
			return -EUCLEAN;
		r = q2_tables_add(&t->tables, off, i, delta, active);
	}
	q2_tables_merge(&t->tables);
	return r;
}

int q2_tree_add_clusters(struct q2_tree *t, uint64_t off, uint64_t n, int delta)
{
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < n; i++)
		r = q2_tables_add(&t->extra, off + (i << t->img->cluster_bits), 0, delta, 0);
	return r;
}

int q2_tree_add_entry(struct q2_tree *t, uint64_t entry, int delta)
{
	unsigned bits = t->img->cluster_bits;
	uint64_t off = entry & Q2_OFFSET_MASK, len = t->img->cluster_size;

	if (entry & Q2_COMPRESSED) {
		off = q2_compressed_offset(entry, bits);
		len = q2_compressed_bytes(entry, bits);
	} else if (!off) {
		return 0;
	}
	if (!range_inside(off, len, t->refs.clusters << bits))
		return -EUCLEAN;
	return q2_tree_add_clusters(t, align_down(off, t->img->cluster_size),
		((off + len - 1) >> bits) - (off >> bits) + 1, delta);
}

/* --- collecting changes -------------------------------------------------------------------- */

struct collect {
	struct q2_tree *t;
	bool clear_copied;
};

/* Entries from i on with consecutive clusters and the same flags. */
static uint32_t find_run(const uint8_t *data, uint32_t i, uint32_t n, uint64_t first, uint64_t step)
{
	uint32_t k = i + 1;

	while (k < n && load_be64(data + (size_t)k * 8) == first + (k - i) * step)
		k++;
	return k - i;
}

static int add_clusters(
	struct q2_tree *t, struct q2_refs_cursor *cur, uint64_t off, uint64_t len, int64_t delta)
{
	unsigned bits = t->img->cluster_bits;
	uint64_t first = off >> bits, n = ((off + len - 1) >> bits) - first + 1;

	if (first + n > t->refs.clusters)
		return -EUCLEAN;
	if (delta)
		q2_refs_add_run(cur, first, n, delta, false);
	return 0;
}

static int collect_l2_table(
	void *arg, const struct q2_table *table, uint8_t *data, struct q2_changed *changed)
{
	struct collect *c = arg;
	const struct q2_image *img = c->t->img;
	struct q2_refs_cursor cur = {.refs = &c->t->refs};
	bool clear = c->clear_copied && table->active;
	bool external = img->h.incompatible & Q2_INCOMPAT_DATA_FILE;
	uint32_t n = 1u << img->l2_bits, size = img->l2_entry_size, run;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < n; i += run) {
		uint64_t entry = load_be64(data + (size_t)i * size), off = entry & Q2_OFFSET_MASK;

		run = 1;
		if (entry & Q2_COMPRESSED) {
			off = q2_compressed_offset(entry, img->cluster_bits);
			r = add_clusters(c->t, &cur, off,
				q2_compressed_bytes(entry, img->cluster_bits), table->refs);
			continue;
		}
		if (!off)
			continue;
		if (!is_aligned(off, img->cluster_size)) {
			r = -EUCLEAN;
			break;
		}
		if (size == 8)
			run = find_run(data, i, n, entry, img->cluster_size);
		if (!external)
			r = add_clusters(
				c->t, &cur, off, (uint64_t)run << img->cluster_bits, table->refs);
		if (clear && entry & Q2_COPIED) {
			for (uint32_t k = i; k < i + run; k++)
				data[(size_t)k * size] &= 0x7f;
			q2_changed_add(changed, i * size, run * size);
		}
	}
	q2_refs_cursor_end(&cur);
	return r;
}

/* Fills refs with the changes of the window. */
static int co_collect(struct q2_tree *t, bool clear_copied)
{
	struct collect c = {t, clear_copied};
	struct q2_walk w = {.fn = collect_l2_table, .write = clear_copied, .arg = &c};
	_cleanup_(q2_tables_free) struct q2_tables todo = {0};
	struct q2_refs_cursor cur = {.refs = &t->refs};
	int r = 0;

	for (size_t i = 0; i < t->extra.n; i++)
		q2_refs_add(&cur, t->extra.v[i].off >> t->img->cluster_bits, t->extra.v[i].refs);
	for (size_t i = 0; r == 0 && i < t->tables.n; i++) {
		const struct q2_table *table = &t->tables.v[i];

		if (table->refs)
			q2_refs_add(&cur, table->off >> t->img->cluster_bits, table->refs);
		/* A table whose changes cancel out is in both trees: nothing below it changes. */
		if (table->refs)
			r = q2_tables_add(
				&todo, table->off, table->index, table->refs, table->active);
	}
	q2_refs_cursor_end(&cur);
	w.tables = todo.v;
	w.n = todo.n;
	if (r == 0)
		r = co_q2_walk(t->img, &w);
	if (r == 0 && t->refs.out_of_memory)
		r = -ENOMEM;
	if (r == 0)
		r = q2_refs_sort(&t->refs);
	t->collected = r == 0;
	return r;
}

/* --- refcount blocks ----------------------------------------------------------------------- */

struct apply {
	struct q2_tree *t;
	enum q2_tree_step step;
};

/* Runs of clusters whose refcount came down to 0: their host space is given back at the end. Giving
 * back is a kindness: what does not fit is left out. */
struct q2_freed {
	struct spin lock;
	size_t n;
	struct run {
		uint64_t first, n;
	} runs[256 * 1024];
};

static void freed_add(struct q2_freed *f, struct run run)
{
	struct run *last;

	if (!f || !run.n)
		return;
	spin_lock(&f->lock);
	last = f->n ? &f->runs[f->n - 1] : NULL;
	if (last && last->first + last->n == run.first)
		last->n += run.n;
	else if (f->n < ARRAY_SIZE(f->runs))
		f->runs[f->n++] = run;
	spin_unlock(&f->lock);
}

/* No request is in flight, the references are durably gone: nobody misses these clusters (I3), but
 * for metadata that a damaged image took for data. (Freed L2 tables count as such to the end.) */
static void co_release_freed(struct q2_tree *t)
{
	struct q2_image *img = t->img;
	uint64_t size = block_size(img->file);

	for (size_t i = 0; t->freed && i < t->freed->n; i++) {
		uint64_t off = t->freed->runs[i].first << img->cluster_bits;
		uint64_t len = t->freed->runs[i].n << img->cluster_bits;

		if (off < size && !q2_overlaps(img, off, len, Q2_OVERLAP_L2))
			co_block_discard(img->file, off, MIN(len, size - off), 0);
	}
	mem_free(t->freed);
	t->freed = NULL;
}

static bool step_takes(enum q2_tree_step step, int64_t delta)
{
	switch (step) {
	case Q2_TREE_RAISE:
		return delta > 0;
	case Q2_TREE_LOWER:
	case Q2_TREE_COPIED:
		return delta < 0;
	default:
		return delta != 0;
	}
}

/* The refcount of slot i of a block changes by delta. */
static int change_refcount(const struct apply *a, uint8_t *data, uint64_t i, int64_t delta,
	int16_t *slot, struct q2_changed *changed, bool *freed)
{
	const struct q2_image *img = a->t->img;
	unsigned order = img->h.refcount_order;
	uint64_t old = q2_refcount_load(data, i, order), value = old + (uint64_t)delta;

	if (delta < 0 && old < (uint64_t)-delta)
		return -EUCLEAN;
	if (delta > 0 && (value < old || value > img->max_refcount))
		return -EFBIG;
	if (a->step == Q2_TREE_VERIFY)
		return 0;
	q2_refcount_store(data, i, order, value);
	q2_changed_add(changed, (uint32_t)(i << order >> 3), MAX(1u << order >> 3, 1u));
	*slot = (int16_t)((*slot & ~1) | (value == 1));
	*freed = !value;
	return 0;
}

static int apply_refblock(
	void *arg, const struct q2_table *table, uint8_t *data, struct q2_changed *changed)
{
	struct apply *a = arg;
	const struct q2_image *img = a->t->img;
	uint64_t base = table->index << img->refblock_bits, n = 1ULL << img->refblock_bits;
	struct q2_refs_cursor cur = {.refs = &a->t->refs};
	struct run run = {0};
	int r = 0;

	for (uint64_t i = 0, k; r == 0 && i < n; i += k) {
		int16_t *slot;

		k = q2_refs_slots(&cur, base + i, n - i, false, &slot);
		for (uint64_t j = 0; slot && r == 0 && j < k; j++) {
			int64_t delta = slot[j] >> 1;
			bool freed = false;

			if (!delta)
				continue;
			if (delta == Q2_SLOT_BIG)
				delta = q2_refs_get(&cur, base + i + j);
			if (step_takes(a->step, delta))
				r = change_refcount(
					a, data, i + j, delta, &slot[j], changed, &freed);
			if (freed && run.first + run.n != base + i + j) {
				freed_add(a->t->freed, run);
				run = (struct run){base + i + j, 0};
			}
			run.n += freed;
		}
	}
	freed_add(a->t->freed, run);
	q2_refs_cursor_end(&cur);
	return r;
}

/* The blocks that count clusters with changes. A change where there is no block is corruption. */
static int gather_blocks(struct q2_tree *t, struct q2_tables *ret)
{
	const struct q2_image *img = t->img;
	uint64_t first, n, last = UINT64_MAX;
	size_t chunk = 0;

	while (q2_refs_next_chunk(&t->refs, &chunk, &first, &n)) {
		for (uint64_t i = first >> img->refblock_bits;
			i <= (first + n - 1) >> img->refblock_bits; i++) {
			uint64_t off = i < img->reftable_entries ? img->reftable[i] : 0;
			int r;

			if (i == last)
				continue;
			last = i;
			off &= Q2_REFTABLE_MASK;
			if (!off)
				continue;
			if (!inside_file(img, off))
				return -EUCLEAN;
			r = q2_tables_add(ret, off, i, 1, 0);
			if (r < 0)
				return r;
		}
	}
	q2_tables_merge(ret);
	return 0;
}

static int changes_without_block(struct q2_tree *t)
{
	const struct q2_image *img = t->img;
	struct q2_refs_cursor cur = {.refs = &t->refs};
	uint64_t first, n;
	size_t chunk = 0;
	int r = 0;

	while (r == 0 && q2_refs_next_chunk(&t->refs, &chunk, &first, &n)) {
		for (uint64_t c = first; r == 0 && c < first + n; c++) {
			uint64_t i = c >> img->refblock_bits, end = (i + 1) << img->refblock_bits;

			if (i < img->reftable_entries && img->reftable[i]) {
				c = MIN(end, first + n) - 1;
				continue;
			}
			if (q2_refs_get(&cur, c))
				r = -EUCLEAN;
		}
	}
	q2_refs_cursor_end(&cur);
	return r;
}

static int co_apply_refblocks(struct q2_tree *t, enum q2_tree_step step)
{
	_cleanup_(q2_tables_free) struct q2_tables blocks = {0};
	struct apply a = {t, step};
	struct q2_walk w = {.fn = apply_refblock, .write = step != Q2_TREE_VERIFY, .arg = &a};
	int r = changes_without_block(t);

	if (r == 0)
		r = gather_blocks(t, &blocks);
	w.tables = blocks.v;
	w.n = blocks.n;
	return r < 0 ? r : co_q2_walk(t->img, &w);
}

/* --- COPIED -------------------------------------------------------------------------------- */

static int set_l2_copied(
	void *arg, const struct q2_table *table, uint8_t *data, struct q2_changed *changed)
{
	struct q2_tree *t = arg;
	const struct q2_image *img = t->img;
	struct q2_refs_cursor cur = {.refs = &t->refs};
	uint32_t n = 1u << img->l2_bits, size = img->l2_entry_size, run;

	for (uint32_t i = 0; i < n; i += run) {
		uint64_t entry = load_be64(data + (size_t)i * size), off = entry & Q2_OFFSET_MASK;

		run = 1;
		if (entry & (Q2_COMPRESSED | Q2_COPIED) || !off)
			continue;
		if (size == 8)
			run = find_run(data, i, n, entry, img->cluster_size);
		for (uint64_t k = 0, got; k < run; k += got) {
			int16_t *slot;

			got = q2_refs_slots(
				&cur, (off >> img->cluster_bits) + k, run - k, false, &slot);
			for (uint64_t j = 0; slot && j < got; j++) {
				if (!(slot[j] & 1))
					continue;
				data[(i + k + j) * size] |= 0x80;
				q2_changed_add(changed, (uint32_t)(i + k + j) * size, 8);
			}
		}
	}
	q2_refs_cursor_end(&cur);
	return 0;
}

/* In L1 and L2 tables that are marked active. The refcounts are durable. */
static int co_set_copied(struct q2_tree *t)
{
	struct q2_image *img = t->img;
	struct q2_walk w = {.fn = set_l2_copied, .write = true, .arg = t};
	_cleanup_(q2_tables_free) struct q2_tables active = {0};
	struct q2_refs_cursor cur = {.refs = &t->refs};
	bool changed = false;
	int r = 0;

	for (uint32_t i = 0; i < img->h.l1_size; i++) {
		bool known;

		if (!(img->l1[i] & Q2_OFFSET_MASK) || img->l1[i] & Q2_COPIED ||
			!q2_refs_flag(
				&cur, (img->l1[i] & Q2_OFFSET_MASK) >> img->cluster_bits, &known))
			continue;
		img->l1[i] |= Q2_COPIED;
		changed = true;
	}
	q2_refs_cursor_end(&cur);
	for (size_t i = 0; r == 0 && i < t->tables.n; i++)
		if (t->tables.v[i].active)
			r = q2_tables_add(&active, t->tables.v[i].off, t->tables.v[i].index, 0, 1);
	w.tables = active.v;
	w.n = active.n;
	if (r == 0)
		r = co_q2_walk(img, &w);
	if (r == 0 && changed)
		r = co_q2_write_entries(img, img->h.l1_offset, img->l1, img->h.l1_size);
	return r;
}

/* --- windows ------------------------------------------------------------------------------- */

static int co_apply_window(struct q2_tree *t, enum q2_tree_step step)
{
	int r = co_apply_refblocks(t, step);

	if (r < 0 || step != Q2_TREE_COPIED)
		return r;
	r = co_block_flush(t->img->file);
	return r < 0 ? r : co_set_copied(t);
}

int co_q2_tree_apply(struct q2_tree *t, enum q2_tree_step step, bool clear_copied)
{
	bool whole = t->refs.lo == 0 && t->refs.hi == t->refs.clusters;
	int r = 0;

	if ((step == Q2_TREE_LOWER || step == Q2_TREE_COPIED) && t->img->pass_discard)
		t->freed = mem_zalloc(sizeof(*t->freed));
	if (whole && t->collected && !clear_copied) {
		r = co_apply_window(t, step);
	} else {
		q2_refs_rewind(&t->refs);
		do {
			r = co_collect(t, clear_copied);
			clear_copied = false;
			if (r == 0)
				r = co_apply_window(t, step);
		} while (r == 0 && q2_refs_next_window(&t->refs));
	}
	if (r == 0)
		co_release_freed(t);
	return r;
}
