/* SPDX-License-Identifier: MIT */
/*
 * The commit: the one place that writes cached metadata, and the barriers.
 *
 * Theory of operation, one commit under commit_mutex:
 *
 *  1. seal the quarantine's open batch: all its dereferences are in the tables in memory;
 *  2. take copies of the dirty L2 slices and L1 sectors, each under map_lock. What they refer to
 *     was written before it was linked, and its refcount was raised (in the cache) before that;
 *  3. write the dirty refcount slices: they contain those refcounts. They may contain more, which
 *     is only a leak, and no decrement whose dereference is not durable (free.c) (I1, I2);
 *  4. new refcount blocks have refcount table entries to be written: barrier, then those (I4);
 *  5. barrier: all that the copies speak for is durable (I1, I4, I5);
 *  6. write the copies. L1 entries and L2 slices may go together, because a new L2 table was
 *     written in full before its L1 entry appeared in memory (I4);
 *  7. the sealed batch is `written`; the next barrier makes its dereferences durable.
 *
 * Copies are bounded (cache.c), so 2 to 6 repeat until everything that was dirty at the start is
 * written. A flush of the guest is a commit with a barrier behind it (I8); with nothing dirty only
 * that barrier is left. A failure leaves slices, sectors and batch as they were, for a retry.
 *
 * Lazy refcounts: while DIRTY is durable nobody trusts refcounts on disk, so step 3 and 4 wait
 * until the image is closed.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

int co_q2_barrier(struct q2_image *img)
{
	uint64_t number = q2_free_barrier_begin(img);
	int r;

	co_block_event(img->file, "flush_to_disk");
	r = co_block_flush(img->file);
	trace("q2_barrier", "%s: result %d", img->node->filename, r);
	if (r == 0)
		q2_free_barrier_end(img, number);
	return r;
}

/* --- L1 and refcount table sectors --- */

struct sectors {
	uint32_t n;
	uint32_t *index; /* sector numbers, ascending; data behind */
	uint8_t *data;   /* 512 bytes each */
};

static void sectors_free(struct sectors *s)
{
	mem_free(s->index);
	mem_free(s->data);
	*s = (struct sectors){0};
}

static int sectors_alloc(struct q2_image *img, struct sectors *s, uint32_t n)
{
	s->index = mem_calloc(n, sizeof(*s->index));
	s->data = block_buffer_alloc(img->file, n * 512ULL);
	if (s->index && s->data)
		return 0;
	sectors_free(s);
	return -ENOMEM;
}

/* One sector of a table in host order, `entries` long, as it stands on disk. */
static void sector_encode(const uint64_t *table, uint64_t entries, uint32_t sector, uint8_t *dst)
{
	uint64_t first = sector * 64ULL;

	memset(dst, 0, 512);
	for (uint64_t i = 0; i < 64 && first + i < entries; i++)
		store_be64(dst + i * 8, table[first + i]);
}

/* Copies dirty sectors and clears their marks; on a failed write the marks are set again. */
static void sectors_take(
	struct sectors *s, uint32_t max, const uint64_t *table, uint64_t entries, uint8_t *dirty)
{
	for (uint32_t i = 0; i < div_up(entries, 64) && s->n < max; i++) {
		if (!dirty[i])
			continue;
		sector_encode(table, entries, i, s->data + s->n * 512ULL);
		s->index[s->n++] = i;
		dirty[i] = 0;
	}
}

/* Neighbouring sectors go in one write. */
static int sectors_write(struct q2_image *img, struct sectors *s, uint64_t table_off)
{
	for (uint32_t i = 0, run; i < s->n; i += run) {
		int r;

		for (run = 1; i + run < s->n && s->index[i + run] == s->index[i] + run;)
			run++;
		co_block_event(
			img->file, table_off == img->h.l1_offset ? "l1_update" : "reftable_update");
		r = co_block_pwrite(img->file, table_off + s->index[i] * 512ULL,
			s->data + i * 512ULL, run * 512ULL);
		trace("q2_table_write", "%s: %u sectors at %llu, result %d", img->node->filename,
			run, (unsigned long long)(table_off + s->index[i] * 512ULL), r);
		if (r < 0)
			return r;
	}
	return 0;
}

/* All that are dirty, or one dirtied since they were counted would push out one that the commit has
 * to write. */
static int l1_take(struct q2_image *img, struct sectors *s)
{
	uint32_t room = 0;

	for (;;) {
		uint32_t n;
		int r;

		spin_lock(&img->map_lock);
		n = img->l1_ndirty;
		if (n <= room) {
			sectors_take(s, n, img->l1, img->h.l1_size, img->l1_dirty);
			img->l1_ndirty -= s->n;
		}
		spin_unlock(&img->map_lock);
		if (n <= room)
			return 0;
		sectors_free(s);
		r = sectors_alloc(img, s, n);
		if (r < 0)
			return r;
		room = n;
	}
}

static void l1_untake(struct q2_image *img, struct sectors *s)
{
	spin_lock(&img->map_lock);
	for (uint32_t i = 0; i < s->n; i++) {
		img->l1_ndirty += !img->l1_dirty[s->index[i]];
		img->l1_dirty[s->index[i]] = 1;
	}
	spin_unlock(&img->map_lock);
}

static uint32_t reftable_count_dirty(const struct q2_image *img)
{
	uint32_t n = 0;

	for (uint64_t i = 0; i < div_up(img->reftable_entries, 64); i++)
		n += img->reftable_dirty[i];
	return n;
}

/* Step 4. The table cannot move meanwhile: alloc_mutex. */
static int reftable_write(struct q2_image *img)
{
	struct sectors s = {0};
	uint32_t n;
	int r = 0;

	co_mutex_lock(&img->alloc_mutex);
	n = reftable_count_dirty(img);
	if (n) {
		/* The blocks' own refcounts and content first. */
		r = co_q2_cache_writeback(img, img->ref_cache);
		if (r == 0)
			r = co_q2_barrier(img);
		if (r == 0)
			r = sectors_alloc(img, &s, n);
		if (r == 0) {
			sectors_take(
				&s, n, img->reftable, img->reftable_entries, img->reftable_dirty);
			r = sectors_write(img, &s, img->h.reftable_offset);
			for (uint32_t i = 0; r < 0 && i < s.n; i++)
				img->reftable_dirty[s.index[i]] = 1;
		}
		sectors_free(&s);
	}
	if (r == 0)
		__atomic_store_n(&img->reftable_changed, false, __ATOMIC_RELEASE);
	co_mutex_unlock(&img->alloc_mutex);
	return r;
}

int co_q2_write_refcounts(struct q2_image *img)
{
	int r = co_q2_cache_writeback(img, img->ref_cache);

	if (r == 0 && __atomic_load_n(&img->reftable_changed, __ATOMIC_ACQUIRE))
		r = reftable_write(img);
	return r;
}

/* --- the commit --- */

static bool refcounts_wait(const struct q2_image *img)
{
	return img->lazy_refcounts && __atomic_load_n(&img->dirty_on_disk, __ATOMIC_ACQUIRE);
}

/* Steps 3 to 6 for one bounded set of copies. */
static int commit_round(
	struct q2_image *img, struct q2_copy *copies, uint32_t n, struct sectors *l1)
{
	int r = refcounts_wait(img) ? 0 : co_q2_write_refcounts(img);

	if (r == 0 && (n || l1->n))
		r = co_q2_barrier(img);
	if (r == 0 && n)
		r = co_q2_cache_write(img, img->l2_cache, copies, n);
	if (r == 0)
		r = sectors_write(img, l1, img->h.l1_offset);
	return r;
}

static int commit_rounds(struct q2_image *img)
{
	uint64_t seq = q2_cache_dirty_seq(img->l2_cache);
	struct sectors l1 = {0};
	struct q2_copy *copies;
	uint32_t n;
	int r;

	do {
		r = q2_cache_copy_dirty(img->l2_cache, seq, &copies, &n);
		if (r < 0)
			break;
		r = l1_take(img, &l1);
		if (r == 0)
			r = commit_round(img, copies, n, &l1);
		if (r < 0)
			l1_untake(img, &l1);
		sectors_free(&l1);
		q2_copies_free(copies, n);
	} while (r == 0 && n);
	return r;
}

/* A commit under way has taken marks of what it has not written yet: a flush must not overtake it
 * (I8). `committing` is looked at last, because it is set before marks are taken; it stays set when
 * the commit fails, because the marks come back too late for who has looked at them already. */
static bool anything_dirty(struct q2_image *img)
{
	bool l1;

	spin_lock(&img->map_lock);
	l1 = img->l1_ndirty;
	spin_unlock(&img->map_lock);
	return l1 || q2_cache_is_dirty(img->l2_cache) || q2_cache_is_dirty(img->ref_cache) ||
		__atomic_load_n(&img->reftable_changed, __ATOMIC_ACQUIRE) ||
		q2_free_unsealed(img) || __atomic_load_n(&img->committing, __ATOMIC_ACQUIRE);
}

int co_q2_commit(struct q2_image *img, bool durable)
{
	int r = 0;

	if (anything_dirty(img)) {
		co_mutex_lock(&img->commit_mutex);
		__atomic_store_n(&img->committing, true, __ATOMIC_RELEASE);
		trace("q2_commit_begin", "%s%s", img->node->filename, durable ? ", durable" : "");
		if (__atomic_load_n(&img->corrupt, __ATOMIC_ACQUIRE))
			r = -EUCLEAN;
		q2_free_seal(img);
		if (r == 0)
			r = commit_rounds(img);
		if (r == 0)
			q2_free_written(img);
		trace("q2_commit_end", "%s: result %d", img->node->filename, r);
		__atomic_store_n(&img->committing, r < 0, __ATOMIC_RELEASE);
		co_mutex_unlock(&img->commit_mutex);
	}
	if (r == 0 && durable)
		r = co_q2_barrier(img);
	if (r == 0)
		co_q2_free_release(img);
	return r;
}
