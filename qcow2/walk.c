/* SPDX-License-Identifier: MIT */
/*
 * Bulk access to tables: runs a function over many L2 tables or refcount blocks.
 *
 * Structural operations and the check read every table once, in the order of the file and in large
 * pieces. A few coroutines each take a batch of tables, read it (tables that lie side by side in
 * one request), hand it to the worker pool, and write back what the function changed. They go past
 * the caches, so the image is quiesced. The order of the calls is undefined and they run in
 * parallel.
 */
#include <stdlib.h>

#include "base/co.h"
#include "base/mem.h"
#include "base/worker.h"
#include "qcow2/qcow2.h"

#define BATCH_BYTES (1 * MiB)
#define MAX_CREW    8u

struct walk_state {
	struct q2_image *img;
	const struct q2_walk *w;
	struct spin lock;
	size_t next; /* first table that nobody took */
	size_t done;
	int result; /* first error */
	struct co_counter running;
};

struct batch {
	struct walk_state *st;
	const struct q2_table *tables;
	size_t n;
	uint8_t *buf;
	struct q2_changed *changed; /* by table */
	int *read_error;            /* by table */
};

static void walk_fail(struct walk_state *st, int error)
{
	spin_lock(&st->lock);
	if (st->result == 0)
		st->result = error;
	spin_unlock(&st->lock);
}

static bool take_batch(struct walk_state *st, size_t max, struct batch *b)
{
	bool got;

	spin_lock(&st->lock);
	got = st->result == 0 && st->next < st->w->n;
	if (got) {
		b->tables = st->w->tables + st->next;
		b->n = MIN(max, st->w->n - st->next);
		st->next += b->n;
	}
	spin_unlock(&st->lock);
	return got;
}

/* Tables [i, end) lie side by side in the file. */
static size_t contiguous(const struct batch *b, size_t i, uint64_t cluster)
{
	size_t end = i + 1;

	while (end < b->n && b->tables[end].off == b->tables[end - 1].off + cluster)
		end++;
	return end;
}

/* Reads what the file has of a range; a last cluster may be cut short and is zero behind. */
static int co_read_padded(struct q2_image *img, uint64_t off, uint8_t *buf, uint64_t len)
{
	uint64_t size = block_size(img->file), have = off < size ? MIN(len, size - off) : 0;

	memset(buf + have, 0, len - have);
	return have ? co_block_pread(img->file, off, buf, have) : 0;
}

static int co_read_batch(struct batch *b)
{
	struct q2_image *img = b->st->img;
	uint64_t cluster = img->cluster_size;

	for (size_t i = 0, end; i < b->n; i = end) {
		int r;

		end = contiguous(b, i, cluster);
		r = co_read_padded(
			img, b->tables[i].off, b->buf + i * cluster, (end - i) * cluster);
		if (r < 0 && !b->st->w->read_error)
			return r;
		for (size_t k = i; k < end; k++)
			b->read_error[k] = r;
	}
	return 0;
}

/* On a worker. */
static int process_batch(void *arg)
{
	struct batch *b = arg;
	const struct q2_walk *w = b->st->w;
	uint64_t cluster = b->st->img->cluster_size;
	int r = 0;

	for (size_t i = 0; r >= 0 && i < b->n; i++) {
		b->changed[i] = (struct q2_changed){UINT32_MAX, 0};
		if (b->read_error[i] < 0)
			r = w->read_error(w->arg, &b->tables[i], b->read_error[i]);
		else
			r = w->fn(w->arg, &b->tables[i], b->buf + i * cluster, &b->changed[i]);
	}
	return r < 0 ? r : 0;
}

/* Writes the changed sectors; changed ranges that touch go in one request. */
static int co_write_batch(struct batch *b)
{
	struct q2_image *img = b->st->img;
	uint64_t cluster = img->cluster_size;

	for (size_t i = 0; i < b->n;) {
		uint64_t from, to, at = i * cluster;
		size_t first = i;
		int r;

		if (b->changed[i].from >= b->changed[i].to) {
			i++;
			continue;
		}
		from = align_down(b->changed[i].from, 512);
		to = align_up(b->changed[i].to, 512);
		while (to == (i + 1 - first) * cluster && i + 1 < b->n &&
			b->tables[i + 1].off == b->tables[i].off + cluster &&
			b->changed[i + 1].from < 512) {
			i++;
			to = (i - first) * cluster + align_up(b->changed[i].to, 512);
		}
		i++;
		r = co_block_pwrite(
			img->file, b->tables[first].off + from, b->buf + at + from, to - from);
		if (r < 0)
			return r;
	}
	return 0;
}

static int co_walk_batches(struct walk_state *st)
{
	struct q2_image *img = st->img;
	size_t max = MAX(BATCH_BYTES >> img->cluster_bits, 1ULL);
	_cleanup_free_ uint8_t *buf = block_buffer_alloc(img->file, max * img->cluster_size);
	_cleanup_free_ struct q2_changed *changed = mem_calloc(max, sizeof(*changed));
	_cleanup_free_ int *read_error = mem_calloc(max, sizeof(*read_error));
	struct batch b = {.st = st, .buf = buf, .changed = changed, .read_error = read_error};
	int r = 0;

	if (!buf || !changed || !read_error)
		return -ENOMEM;
	while (r == 0 && take_batch(st, max, &b)) {
		r = co_read_batch(&b);
		if (r == 0)
			r = co_offload(process_batch, &b);
		if (r == 0 && st->w->write)
			r = co_write_batch(&b);
		spin_lock(&st->lock);
		st->done += b.n;
		spin_unlock(&st->lock);
		if (st->w->progress)
			st->w->progress(st->w->arg, st->done);
	}
	return r;
}

static void co_crew_member(void *arg)
{
	struct walk_state *st = arg;
	int r = co_walk_batches(st);

	/* Without memory for a helper the others do the work. */
	if (r < 0 && (r != -ENOMEM || st->w->write))
		walk_fail(st, r);
	co_counter_dec(&st->running);
}

int co_q2_walk(struct q2_image *img, const struct q2_walk *w)
{
	struct walk_state st = {.img = img, .w = w};
	size_t batches = w->n / MAX(BATCH_BYTES >> img->cluster_bits, 1ULL) + 1;
	int r;

	if (!w->n)
		return 0;
	for (size_t i = 1; i < MIN(batches, (size_t)MAX_CREW); i++) {
		co_counter_inc(&st.running);
		if (co_start(co_crew_member, &st) < 0) {
			co_counter_dec(&st.running);
			break;
		}
	}
	r = co_walk_batches(&st);
	if (r < 0)
		walk_fail(&st, r);
	co_counter_wait_zero(&st.running);
	return st.result;
}

/* --- lists of tables ----------------------------------------------------------------------- */

void q2_tables_free(struct q2_tables *t)
{
	mem_free(t->v);
	*t = (struct q2_tables){0};
}

int q2_tables_add(struct q2_tables *t, uint64_t off, uint64_t index, int64_t refs, int64_t active)
{
	if (t->n == t->room) {
		size_t room = t->room ? t->room * 2 : 64;
		struct q2_table *v = mem_realloc(t->v, room * sizeof(*v));

		if (!v)
			return -ENOMEM;
		t->v = v;
		t->room = room;
	}
	t->v[t->n++] = (struct q2_table){off, index, refs, active};
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct q2_table *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

/* One entry for every offset, with the sums of the reference counts. */
void q2_tables_merge(struct q2_tables *t)
{
	size_t out = 0;

	if (t->n)
		qsort(t->v, t->n, sizeof(*t->v), by_offset);
	for (size_t i = 0; i < t->n; i++) {
		if (out && t->v[out - 1].off == t->v[i].off) {
			t->v[out - 1].refs += t->v[i].refs;
			t->v[out - 1].active += t->v[i].active;
		} else {
			t->v[out++] = t->v[i];
		}
	}
	t->n = out;
}
