/* SPDX-License-Identifier: MIT */
/*
 * The check command: compares the refcounts on disk with the references there are.
 *
 * Theory of Operation. For every cluster of the file there is one number in memory (refs.c), which
 * starts as its refcount and loses one for each reference found; what is not zero in the end is a
 * leak (more) or an error (less). A flag beside it says whether the refcount is 1, which is where
 * COPIED has to be set. Each pass over the image
 *
 *	loads the refcount blocks	[load_refcounts]
 *	counts metadata			[check-meta.c]
 *	counts what L2 tables refer to	[check-l2.c]
 *	compares			[compare_window]
 *
 * and covers as many clusters as the memory budget has room for; more passes do the rest. Every L2
 * table is read once a pass, however many snapshots share it, in the order of the file and by
 * several workers. What does not concern refcounts is reported in the first pass only.
 *
 * Repair comes after it (repair.c): refcounts are corrected in place window by window, or the whole
 * structure is rebuilt when it is damaged itself; then COPIED flags; then DIRTY and CORRUPT are
 * cleared. Each step is durable before the next.
 *
 * The image is quiesced meanwhile: nothing of it is in caches, so that the file is all there is.
 */
#include <stdarg.h>
#include <stdio.h>

#include "base/mem.h"
#include "qcow2/qcow2.h"

#define DEFAULT_MEMORY (256 * MiB)

/* --- messages ------------------------------------------------------------------------------ */

static void attr_printf(3, 0)
	vmessage(struct q2_check *ck, bool is_error, const char *fmt, va_list ap)
{
	char line[320];

	if (!ck->c->message)
		return;
	vsnprintf(line, sizeof(line), fmt, ap);
	pthread_mutex_lock(&ck->lock);
	ck->c->message(ck->c->arg, is_error, line);
	pthread_mutex_unlock(&ck->lock);
}

void q2_check_message(struct q2_check *ck, bool is_error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vmessage(ck, is_error, fmt, ap);
	va_end(ap);
}

void q2_check_error(struct q2_check *ck, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vmessage(ck, true, fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&ck->lock);
	ck->c->corruptions++;
	pthread_mutex_unlock(&ck->lock);
}

void q2_check_refcount_error(struct q2_check *ck, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vmessage(ck, true, fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&ck->lock);
	ck->c->corruptions++;
	ck->refcount_errors++;
	pthread_mutex_unlock(&ck->lock);
}

/* --- refcounts on disk --------------------------------------------------------------------- */

static int load_refblock(
	void *arg, const struct q2_table *t, uint8_t *data, struct q2_changed *changed)
{
	struct q2_check *ck = arg;
	unsigned order = ck->img->h.refcount_order;
	uint64_t n = 1ULL << ck->img->refblock_bits, base = t->index << ck->img->refblock_bits;
	struct q2_refs_cursor cur = {.refs = &ck->refs};
	uint64_t highest = 0;

	if (base >= ck->clusters)
		return 0;
	n = MIN(n, ck->clusters - base);
	for (uint64_t i = 0, k; i < n; i = k) {
		uint64_t value = q2_refcount_load(data, i, order);

		for (k = i + 1; k < n && q2_refcount_load(data, k, order) == value; k++)
			;
		if (!value)
			continue;
		q2_refs_load_run(&cur, base + i, k - i, value);
		highest = base + k;
	}
	q2_refs_cursor_end(&cur);
	pthread_mutex_lock(&ck->lock);
	ck->highest_used = MAX(ck->highest_used, highest);
	pthread_mutex_unlock(&ck->lock);
	return 0;
}

static int refblock_unreadable(void *arg, const struct q2_table *t, int error)
{
	struct q2_check *ck = arg;
	bool report;

	pthread_mutex_lock(&ck->lock);
	report = ck->first_pass || !ck->unreadable;
	ck->c->check_errors += report;
	ck->unreadable = true;
	pthread_mutex_unlock(&ck->lock);
	if (report)
		q2_check_message(ck, true,
			"ERROR: cannot read refcount block %llu at offset 0x%llx: %s",
			(unsigned long long)t->index, (unsigned long long)t->off,
			errno_text(error));
	return 0;
}

int co_q2_check_load_refcounts(struct q2_check *ck)
{
	struct q2_walk w = {
		.tables = ck->refblocks.v,
		.n = ck->refblocks.n,
		.fn = load_refblock,
		.read_error = refblock_unreadable,
		.arg = ck,
	};

	return co_q2_walk(ck->img, &w);
}

/* The block that the table lists for index i, 0 when that makes no sense. */
static uint64_t refblock_offset(const struct q2_check *ck, uint64_t i)
{
	uint64_t off = i < ck->reftable_entries ? ck->reftable[i] & Q2_REFTABLE_MASK : 0;

	return off & (ck->img->cluster_size - 1) || off >= ck->file_size ? 0 : off;
}

int co_q2_check_refcount(struct q2_check *ck, uint64_t cluster, uint64_t *ret)
{
	struct q2_image *img = ck->img;
	uint64_t index = cluster >> img->refblock_bits, off = refblock_offset(ck, index);
	uint64_t have;
	int r;

	*ret = 0;
	if (!off)
		return 0;
	if (!ck->block && !(ck->block = block_buffer_alloc(img->file, img->cluster_size)))
		return -ENOMEM;
	if (ck->block_index != index) {
		have = MIN(img->cluster_size, ck->file_size - off);
		memset(ck->block + have, 0, img->cluster_size - have);
		ck->block_index = UINT64_MAX;
		r = co_block_pread(img->file, off, ck->block, have);
		if (r < 0)
			return r;
		ck->block_index = index;
	}
	*ret = q2_refcount_load(
		ck->block, cluster & ((1ULL << img->refblock_bits) - 1), img->h.refcount_order);
	return 0;
}

/* --- comparison ---------------------------------------------------------------------------- */

static int co_report_cluster(struct q2_check *ck, uint64_t cluster, int64_t surplus)
{
	uint64_t refcount;
	int r = co_q2_check_refcount(ck, cluster, &refcount);

	if (r < 0)
		return r;
	if (surplus > 0) {
		q2_check_message(ck, false, "Leaked cluster %llu refcount=%llu reference=%llu",
			(unsigned long long)cluster, (unsigned long long)refcount,
			(unsigned long long)(refcount - (uint64_t)surplus));
		ck->c->leaks++;
		return 0;
	}
	q2_check_refcount_error(ck, "ERROR cluster %llu refcount=%llu reference=%llu",
		(unsigned long long)cluster, (unsigned long long)refcount,
		(unsigned long long)(refcount - (uint64_t)surplus));
	if (!refblock_offset(ck, cluster >> ck->img->refblock_bits))
		ck->bad_structure = true;
	return 0;
}

static int co_compare_window(struct q2_check *ck)
{
	size_t chunk = 0;
	uint64_t cluster = 0;
	int64_t surplus;
	int r = q2_refs_sort(&ck->refs);

	ck->block_index = UINT64_MAX;
	for (; r == 0 && q2_refs_next(&ck->refs, &chunk, &cluster, &surplus); cluster++)
		r = co_report_cluster(ck, cluster, surplus);
	return r;
}

/* COPIED in the active L1 table: set just where the L2 table's refcount is 1. */
static void check_l1_copied(struct q2_check *ck)
{
	struct q2_refs_cursor cur = {.refs = &ck->refs};

	for (uint32_t i = 0; i < ck->img->h.l1_size; i++) {
		uint64_t off = ck->l1[i] & Q2_OFFSET_MASK;
		bool known, one;

		if (!off || off & (ck->img->cluster_size - 1))
			continue;
		one = q2_refs_flag(&cur, off >> ck->img->cluster_bits, &known);
		if (off >= ck->file_size)
			known = ck->refs.lo == 0;
		if (!known || one == !!(ck->l1[i] & Q2_COPIED))
			continue;
		ck->copied_wrong++;
		if (ck->ncopied_errors < Q2_MAX_COPIED_ERRORS)
			ck->copied_errors[ck->ncopied_errors++] = (struct q2_copied_error){
				ck->l1[i], off >> ck->img->cluster_bits, i, true};
	}
	q2_refs_cursor_end(&cur);
}

static int co_report_copied(struct q2_check *ck)
{
	ck->block_index = UINT64_MAX;
	for (uint32_t i = 0; i < ck->ncopied_errors; i++) {
		const struct q2_copied_error *e = &ck->copied_errors[i];
		uint64_t refcount;
		int r = co_q2_check_refcount(ck, e->cluster, &refcount);

		if (r < 0)
			return r;
		if (e->l1)
			q2_check_message(ck, true,
				"ERROR OFLAG_COPIED L2 cluster: l1_index=%llu "
				"l1_entry=%llx refcount=%llu",
				(unsigned long long)e->l1_index, (unsigned long long)e->entry,
				(unsigned long long)refcount);
		else
			q2_check_message(ck, true,
				"ERROR OFLAG_COPIED data cluster: "
				"l2_entry=%llx refcount=%llu",
				(unsigned long long)e->entry, (unsigned long long)refcount);
	}
	if (ck->copied_wrong > ck->ncopied_errors)
		q2_check_message(ck, true, "ERROR OFLAG_COPIED is wrong in %llu more entries",
			(unsigned long long)(ck->copied_wrong - ck->ncopied_errors));
	ck->c->corruptions += ck->copied_wrong;
	return 0;
}

/* --- passes -------------------------------------------------------------------------------- */

void q2_check_progress(void *arg, size_t tables)
{
	struct q2_check *ck = arg;
	uint64_t lo = ck->refs.lo, hi = MIN(ck->refs.hi, ck->clusters);
	double part = ck->l2.n ? (double)tables / (double)ck->l2.n : 1;

	if (ck->c->progress && !ck->fix_copied && !ck->counting)
		ck->c->progress(ck->c->arg,
			(lo + (uint64_t)((double)(hi - lo) * part)) << ck->img->cluster_bits,
			MAX(ck->clusters, 1ULL) << ck->img->cluster_bits);
}

static int co_check_pass(struct q2_check *ck)
{
	int r = co_q2_check_load_refcounts(ck);

	q2_check_progress(ck, 0);
	if (r == 0)
		r = co_q2_check_metadata(ck);
	if (r == 0)
		r = co_q2_check_l2_tables(ck);
	if (r == 0)
		check_l1_copied(ck);
	if (r == 0 && ck->refs.out_of_memory)
		r = -ENOMEM;
	if (r == 0)
		r = co_compare_window(ck);
	/* With a table unread, what seems unused may be in use: nothing is changed. */
	if (r == 0 && ck->c->repair && !ck->bad_structure && !ck->unreadable)
		r = co_q2_repair_refcounts(ck);
	ck->first_pass = false;
	return r;
}

/* Clears what says that the image may be wrong, once it is not. */
static int co_clear_marks(struct q2_check *ck)
{
	struct q2_image *img = ck->img;
	uint64_t marks = Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT;
	int r;

	if (ck->c->corruptions || ck->c->check_errors || !(img->h.incompatible & marks))
		return 0;
	img->h.incompatible &= ~marks;
	r = co_q2_header_switch(img);
	if (r < 0)
		return r;
	img->dirty_on_disk = false;
	img->corrupt = false;
	return 0;
}

static int co_repair(struct q2_check *ck, struct error *err)
{
	int r = 0;

	if (ck->unreadable)
		return 0;
	if (ck->bad_structure && ck->c->repair & BLOCK_REPAIR_ERRORS)
		r = co_q2_repair_rebuild(ck, err);
	else if (ck->bad_structure)
		return error_set(err, -EIO,
			"%s: the refcount structures are damaged; -r leaks cannot "
			"repair that, -r all can",
			ck->img->node->filename);
	if (r == 0 &&
		(ck->copied_wrong || ck->fixable || ck->c->corruptions_fixed || ck->c->leaks_fixed))
		r = co_q2_repair_copied(ck);
	if (r == 0)
		r = co_clear_marks(ck);
	return r;
}

static void check_destroy(struct q2_check *ck)
{
	q2_refs_destroy(&ck->refs);
	q2_tables_free(&ck->l2);
	q2_tables_free(&ck->refblocks);
	mem_free(ck->l1);
	mem_free(ck->reftable);
	mem_free(ck->copied_errors);
	mem_free(ck->block);
	pthread_mutex_destroy(&ck->lock);
}

static int co_check_quiesced(struct q2_check *ck, struct error *err)
{
	struct q2_image *img = ck->img;
	int r;

	ck->file_size = block_size(img->file);
	ck->clusters = div_up(ck->file_size, img->cluster_size);
	ck->copied_errors = mem_calloc(Q2_MAX_COPIED_ERRORS, sizeof(*ck->copied_errors));
	if (!ck->copied_errors)
		return -ENOMEM;
	r = q2_refs_init(&ck->refs, ck->clusters, ck->c->memory ? ck->c->memory : DEFAULT_MEMORY);
	if (r == 0)
		r = co_q2_check_gather(ck, err);
	if (r < 0)
		return r;
	do {
		r = co_check_pass(ck);
	} while (r == 0 && q2_refs_next_window(&ck->refs));
	/* When repairing, flags are judged by the corrected refcounts. */
	if (r == 0)
		r = ck->c->repair ? co_repair(ck, err) : co_report_copied(ck);
	ck->c->image_end = ck->highest_used << img->cluster_bits;
	ck->c->total_clusters = div_up(img->h.size, img->cluster_size);
	return r;
}

static void reset_results(struct block_check *c)
{
	c->corruptions = c->leaks = c->check_errors = c->corruptions_fixed = c->leaks_fixed = 0;
	c->image_end = c->total_clusters = c->allocated_clusters = 0;
	c->compressed_clusters = c->fragmented_clusters = 0;
}

int co_q2_check_image(struct q2_image *img, struct block_check *c, struct error *err)
{
	struct q2_check ck = {.img = img, .c = c, .first_pass = true, .block_index = UINT64_MAX};
	struct error why = ERROR_INIT;
	int r;

	reset_results(c);
	pthread_mutex_init(&ck.lock, NULL);
	r = co_check_quiesced(&ck, &why);
	check_destroy(&ck);
	if (r < 0 && why.code)
		return error_set(err, r, "%s", why.text);
	return r < 0 ? error_set_errno(
			       err, r, "%s: the check could not be finished", img->node->filename)
		     : 0;
}

static int co_check(struct block_node *n, struct block_check *c, struct error *err)
{
	struct q2_image *img = q2_image(n);
	int r;

	if (c->repair && !img->writable)
		return error_set(err, -EROFS,
			"%s: the image is open read-only and cannot be "
			"repaired",
			n->filename);
	r = co_q2_quiesce_begin(img);
	if (r < 0)
		return error_set_errno(
			err, r, "%s: cannot write out the metadata caches", n->filename);
	r = co_q2_check_image(img, c, err);
	if (c->repair) {
		int r2 = co_q2_forget(img);

		if (r == 0 && r2 < 0)
			r = error_set(err, r2, "%s: out of memory", n->filename);
	}
	co_q2_quiesce_end(img);
	return r;
}

const struct block_check_ops q2_check_ops = {
	.co_check = co_check,
};

int co_q2_check_dirty(struct q2_image *img, struct error *err)
{
	struct block_check c = {.repair = BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS};
	int r = co_q2_check_image(img, &c, err);

	if (r < 0)
		return r;
	if (c.corruptions || c.check_errors)
		return error_set(err, -EUCLEAN,
			"%s: the image was not closed cleanly and has %llu "
			"errors that need a look; run: qemu-img check -r all",
			img->node->filename, (unsigned long long)(c.corruptions + c.check_errors));
	return 0;
}
