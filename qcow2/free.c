/* SPDX-License-Identifier: MIT */
/*
 * The quarantine: host clusters on their way from "no longer referenced" to "free".
 *
 * Theory of operation: a dereference in memory appends a range to the open batch. A commit seals
 * the batch (q2_free_seal) before it copies the dirty tables, so that what it writes contains every
 * dereference of the batch, and ends the request epoch. Then a batch walks through
 *
 *	open -> sealed [q2_free_seal] -> written [q2_free_written, the tables were written]
 *	     -> durable [q2_free_barrier_end: a barrier that began after that returned]
 *	     -> released [co_q2_free_release, once its epoch is over]
 *
 * Only a release touches refcounts: the host space is punched first where that was asked for, while
 * the count still keeps the allocator away, then the count goes down (I2, I3). A commit that fails
 * leaves its batch sealed: the next one covers it. A range that cannot be recorded for want of
 *memory, or whose refcount cannot be changed, is leaked: that is always allowed.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "qcow2/qcow2.h"

struct range {
	uint64_t off, n; /* host bytes, whole clusters */
	bool punch;
};

struct batch {
	struct list node;
	struct range *range;
	size_t n, cap;
	uint64_t epoch;
	uint64_t barrier; /* number of the first barrier that makes it durable */
};

struct q2_free_queue {
	struct spin lock;
	struct batch *open; /* NULL: empty */
	struct list sealed, written, durable;
	uint64_t barriers;       /* begun so far */
	struct co_mutex release; /* before alloc_mutex: one at a time */
};

int q2_free_queue_new(struct q2_free_queue **ret)
{
	struct q2_free_queue *q = mem_zalloc(sizeof(*q));

	if (!q)
		return -ENOMEM;
	list_init(&q->sealed);
	list_init(&q->written);
	list_init(&q->durable);
	*ret = q;
	return 0;
}

static void batch_free(struct batch *b)
{
	if (!b)
		return;
	mem_free(b->range);
	mem_free(b);
}

static void batches_free(struct list *l)
{
	struct batch *b;

	while ((b = list_first(l, struct batch, node))) {
		list_del(&b->node);
		batch_free(b);
	}
}

void q2_free_queue_free(struct q2_free_queue *q)
{
	if (!q)
		return;
	batch_free(q->open);
	batches_free(&q->sealed);
	batches_free(&q->written);
	batches_free(&q->durable);
	mem_free(q);
}

/* --- recording --- */

/* Appends to the open batch when it has room: under the lock. */
static bool append(struct q2_free_queue *q, const struct range *r)
{
	struct batch *b = q->open;
	struct range *last;

	if (!b)
		return false;
	last = b->n ? &b->range[b->n - 1] : NULL;
	if (last && last->punch == r->punch && last->off + last->n == r->off) {
		last->n += r->n;
		return true;
	}
	if (b->n == b->cap)
		return false;
	b->range[b->n++] = *r;
	return true;
}

/* Room for more: a new batch or a longer array, made without the lock. */
static int make_room(struct q2_free_queue *q)
{
	struct batch *fresh = mem_zalloc(sizeof(*fresh));
	struct range *array, *old = NULL;
	size_t cap;

	spin_lock(&q->lock);
	cap = q->open ? q->open->cap * 2 : 64;
	spin_unlock(&q->lock);
	array = mem_alloc(cap * sizeof(*array));
	if (!fresh || !array) {
		mem_free(fresh);
		mem_free(array);
		return -ENOMEM;
	}
	spin_lock(&q->lock);
	if (!q->open) {
		list_init(&fresh->node);
		q->open = take(fresh);
	}
	if (q->open->cap < cap) {
		old = q->open->range;
		if (q->open->n)
			memcpy(array, old, q->open->n * sizeof(*array));
		q->open->range = take(array);
		q->open->cap = cap;
	}
	spin_unlock(&q->lock);
	mem_free(old);
	mem_free(array);
	mem_free(fresh);
	return 0;
}

static int record(struct q2_image *img, uint64_t off, uint64_t bytes, bool punch)
{
	struct q2_free_queue *q = img->frees;
	struct range r = {off, bytes, punch};

	for (;;) {
		bool done;

		spin_lock(&q->lock);
		done = append(q, &r);
		spin_unlock(&q->lock);
		if (done)
			return 0;
		if (make_room(q) < 0) {
			trace("q2_free_leak", "%s: %llu bytes at %llu", img->node->filename,
				(unsigned long long)bytes, (unsigned long long)off);
			return -ENOMEM;
		}
	}
}

int q2_free_clusters(struct q2_image *img, uint64_t off, uint64_t n)
{
	return record(img, off, n << img->cluster_bits, false);
}

int q2_free_clusters_punch(struct q2_image *img, uint64_t off, uint64_t n)
{
	return record(img, off, n << img->cluster_bits, img->pass_discard);
}

static int free_entry(struct q2_image *img, uint64_t entry, bool punch)
{
	uint64_t off, end;

	if (entry & Q2_COMPRESSED) {
		off = q2_compressed_offset(entry, img->cluster_bits);
		end = off + q2_compressed_bytes(entry, img->cluster_bits);
		off = align_down(off, img->cluster_size);
		/* One reference for each cluster the bytes touch; clusters that two entries share
		 * appear in two ranges. */
		return record(img, off, align_up(end, img->cluster_size) - off, punch);
	}
	off = entry & Q2_OFFSET_MASK;
	return off ? record(img, off, img->cluster_size, punch) : 0;
}

int q2_free_entry(struct q2_image *img, uint64_t entry)
{
	return free_entry(img, entry, false);
}

int q2_free_entry_punch(struct q2_image *img, uint64_t entry)
{
	return free_entry(img, entry, img->pass_discard);
}

bool q2_free_pending(struct q2_image *img)
{
	struct q2_free_queue *q = img->frees;
	bool ret;

	spin_lock(&q->lock);
	ret = q->open || !list_empty(&q->sealed) || !list_empty(&q->written) ||
		!list_empty(&q->durable);
	spin_unlock(&q->lock);
	return ret;
}

bool q2_free_unsealed(struct q2_image *img)
{
	struct q2_free_queue *q = img->frees;
	bool ret;

	spin_lock(&q->lock);
	ret = q->open;
	spin_unlock(&q->lock);
	return ret;
}

/* --- the way of a batch; commit_mutex is held for seal and written --- */

void q2_free_seal(struct q2_image *img)
{
	struct q2_free_queue *q = img->frees;
	struct batch *b;

	spin_lock(&q->lock);
	b = take(q->open);
	if (b)
		list_add_tail(&q->sealed, &b->node);
	spin_unlock(&q->lock);
	/* After the batch was closed: a request of a later epoch sees the new mappings. */
	if (b)
		b->epoch = q2_epoch_advance(img);
}

void q2_free_written(struct q2_image *img)
{
	struct q2_free_queue *q = img->frees;
	struct batch *b;

	spin_lock(&q->lock);
	list_for_each(b, &q->sealed, node) b->barrier = q->barriers + 1;
	list_splice_tail(&q->written, &q->sealed);
	spin_unlock(&q->lock);
}

uint64_t q2_free_barrier_begin(struct q2_image *img)
{
	uint64_t number;

	spin_lock(&img->frees->lock);
	number = ++img->frees->barriers;
	spin_unlock(&img->frees->lock);
	return number;
}

void q2_free_barrier_end(struct q2_image *img, uint64_t number)
{
	struct q2_free_queue *q = img->frees;
	struct batch *b, *tmp;

	spin_lock(&q->lock);
	list_for_each_safe(b, tmp, &q->written, node)
	{
		if (b->barrier > number)
			continue;
		list_del(&b->node);
		list_add_tail(&q->durable, &b->node);
	}
	spin_unlock(&q->lock);
}

/* --- release --- */

/* The next durable batch whose requests have all ended. */
static struct batch *releasable(struct q2_image *img)
{
	struct q2_free_queue *q = img->frees;
	uint64_t oldest = q2_epoch_oldest(img);
	struct batch *b, *ret = NULL;

	spin_lock(&q->lock);
	list_for_each(b, &q->durable, node)
	{
		if (b->epoch >= oldest)
			continue;
		ret = b;
		list_del(&ret->node);
		break;
	}
	spin_unlock(&q->lock);
	return ret;
}

static void release_batch(struct q2_image *img, struct batch *b)
{
	for (size_t i = 0; i < b->n; i++) {
		struct range *r = &b->range[i];
		int ret = co_q2_release(img, r->off, r->n >> img->cluster_bits, r->punch);

		trace("q2_free_release", "%s: %llu bytes at %llu%s, result %d", img->node->filename,
			(unsigned long long)r->n, (unsigned long long)r->off,
			r->punch ? ", punched" : "", ret);
	}
}

static void release_all(struct q2_image *img)
{
	struct batch *b;

	while (!__atomic_load_n(&img->corrupt, __ATOMIC_ACQUIRE) && (b = releasable(img))) {
		release_batch(img, b);
		batch_free(b);
	}
}

void co_q2_free_release(struct q2_image *img)
{
	/* Somebody else is at it: what becomes releasable meanwhile waits for the next time. */
	if (!co_mutex_trylock(&img->frees->release))
		return;
	release_all(img);
	co_mutex_unlock(&img->frees->release);
}

int co_q2_free_drain(struct q2_image *img)
{
	struct q2_free_queue *q = img->frees;
	uint64_t epoch = 0;
	struct batch *b;
	int r = co_q2_commit(img, true);

	if (r < 0)
		return r;
	spin_lock(&q->lock);
	list_for_each(b, &q->durable, node) epoch = MAX(epoch, b->epoch + 1);
	spin_unlock(&q->lock);
	if (epoch)
		co_q2_epoch_wait(img, epoch - 1);
	co_mutex_lock(&q->release);
	release_all(img);
	co_mutex_unlock(&q->release);
	return 0;
}
