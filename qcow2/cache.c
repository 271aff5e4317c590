/* SPDX-License-Identifier: MIT */
/*
 * The metadata cache: slices of L2 tables and of refcount blocks within a byte budget.
 *
 * Theory of operation: a cache is an array of at most `max` slices, found by a hash of their host
 * offset and evicted by the clock rule (`used` is set by every hit, cleared by the hand). Memory
 * for slices comes as they are needed. A slice is pinned by `refs`; whoever holds one does not
 * yield, so that a waiter for a slice always gets one, even with the minimum of two. Dirty slices
 * are never evicted: when nothing else is left, L2 slices are committed (commit.c keeps the order)
 * and refcount slices are simply written, which is allowed at any time because increments may come
 * early and decrements are only made when their dereference is durable (I1, I2).
 *
 * Writing works on copies: q2_cache_copy_dirty() takes them under the lock with the slice's
 * generation, co_q2_cache_write() writes them, merging neighbours, and marks those slices clean
 * whose generation is still that of the copy. There is one writer at a time for each cache, or an
 * old copy could land on a newer one: commit_mutex for L2, write_mutex for refcounts.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

#include <stdlib.h>

#define NO_OFFSET   UINT64_MAX
#define MAX_MERGE   64u
#define COPY_BUDGET (8 * MiB)

struct q2_cache {
	struct spin *lock, own_lock;
	struct block_node *file;
	uint32_t slice_size, max, n; /* n: slices that have memory */
	uint32_t ndirty, hand, hash_mask;
	uint64_t cluster_size, dirty_seq; /* dirty_seq: counts slices that became dirty */
	bool is_l2;
	struct q2_slice **slices, **hash;
	struct co_queue waiters; /* for a load to end, or for a slice without holders */
	struct co_mutex write_mutex;
};

int q2_cache_new(struct q2_image *img, uint32_t slice_size, uint32_t nslices, struct spin *lock,
	struct q2_cache **ret)
{
	struct q2_cache *c = mem_zalloc(sizeof(*c));
	uint32_t buckets = 4;

	if (!c)
		return -ENOMEM;
	while (buckets < nslices && buckets < 1u << 20)
		buckets *= 2;
	c->lock = lock ? lock : &c->own_lock;
	c->is_l2 = lock;
	c->file = img->file;
	c->cluster_size = img->cluster_size;
	c->slice_size = slice_size;
	c->max = MAX(nslices, 2u);
	c->hash_mask = buckets - 1;
	c->slices = mem_calloc(c->max, sizeof(*c->slices));
	c->hash = mem_calloc(buckets, sizeof(*c->hash));
	if (!c->slices || !c->hash) {
		q2_cache_free(c);
		return -ENOMEM;
	}
	*ret = c;
	return 0;
}

void q2_cache_free(struct q2_cache *c)
{
	if (!c)
		return;
	for (uint32_t i = 0; i < c->n; i++) {
		mem_free(c->slices[i]->data);
		mem_free(c->slices[i]);
	}
	mem_free(c->slices);
	mem_free(c->hash);
	mem_free(c);
}

struct spin *q2_cache_lock(struct q2_cache *c)
{
	return c->lock;
}

uint32_t q2_cache_slice_size(const struct q2_cache *c)
{
	return c->slice_size;
}

bool q2_cache_is_dirty(const struct q2_cache *c)
{
	return __atomic_load_n(&c->ndirty, __ATOMIC_ACQUIRE);
}

static struct q2_slice **hash_bucket(struct q2_cache *c, uint64_t off)
{
	uint64_t h = off / c->slice_size * 0x9e3779b97f4a7c15ULL;

	return &c->hash[(h >> 40) & c->hash_mask];
}

static struct q2_slice *hash_find(struct q2_cache *c, uint64_t off)
{
	struct q2_slice *s = *hash_bucket(c, off);

	while (s && s->off != off)
		s = s->hash_next;
	return s;
}

static void hash_add(struct q2_cache *c, struct q2_slice *s, uint64_t off)
{
	struct q2_slice **bucket = hash_bucket(c, off);

	s->off = off;
	s->hash_next = *bucket;
	*bucket = s;
}

static void hash_del(struct q2_cache *c, struct q2_slice *s)
{
	struct q2_slice **p;

	if (s->off == NO_OFFSET)
		return;
	for (p = hash_bucket(c, s->off); *p != s;)
		p = &(*p)->hash_next;
	*p = s->hash_next;
	s->off = NO_OFFSET;
}

struct q2_slice *q2_cache_peek(struct q2_cache *c, uint64_t off)
{
	struct q2_slice *s = hash_find(c, off);

	if (unlikely(!s || s->loading))
		return NULL;
	s->used = true;
	return s;
}

void q2_cache_put(struct q2_cache *c, struct q2_slice *s)
{
	spin_lock(c->lock);
	if (!--s->refs)
		co_queue_wake_all(&c->waiters);
	spin_unlock(c->lock);
}

static void set_dirty(struct q2_cache *c, struct q2_slice *s, bool dirty)
{
	if (s->dirty == dirty)
		return;
	s->dirty = dirty;
	if (dirty)
		s->dirty_seq = ++c->dirty_seq;
	__atomic_store_n(&c->ndirty, c->ndirty + (dirty ? 1 : -1), __ATOMIC_RELEASE);
}

void q2_cache_mark_dirty(struct q2_cache *c, struct q2_slice *s)
{
	s->gen++;
	set_dirty(c, s, true);
}

/* A slice nobody holds and that is clean, by the clock rule; out of the hash. NULL: none. */
static struct q2_slice *evict(struct q2_cache *c)
{
	struct q2_slice *last = c->n ? c->slices[c->n - 1] : NULL;

	if (last && last->off == NO_OFFSET && !last->refs && !last->loading)
		return last;
	for (uint32_t i = 0; i < 2 * c->n; i++) {
		struct q2_slice *s = c->slices[c->hand];

		c->hand = c->hand + 1 < c->n ? c->hand + 1 : 0;
		if (s->refs || s->dirty || s->loading)
			continue;
		if (s->used && s->off != NO_OFFSET) {
			s->used = false;
			continue;
		}
		hash_del(c, s);
		return s;
	}
	return NULL;
}

/* Takes memory for one more slice when the budget has room. The lock is dropped meanwhile: the
 * caller looks again. -ENOMEM only when there is no slice at all to go on with. */
static int grow(struct q2_cache *c)
{
	struct q2_slice *s;

	spin_unlock(c->lock);
	s = mem_zalloc(sizeof(*s));
	if (s) {
		s->off = NO_OFFSET;
		s->data = block_buffer_alloc(c->file, c->slice_size);
		if (!s->data) {
			mem_free(s);
			s = NULL;
		}
	}
	spin_lock(c->lock);
	if (!s)
		return -ENOMEM;
	if (c->n < c->max) {
		c->slices[c->n++] = s;
	} else {
		mem_free(s->data);
		mem_free(s);
	}
	return 0;
}

/* No clean slice is free: writes dirty ones, or waits for a holder. The lock is held on both
 * sides, dropped between. */
static int make_room(struct q2_image *img, struct q2_cache *c)
{
	int r = 0;

	if (c->ndirty) {
		spin_unlock(c->lock);
		trace("q2_cache_full", "%s: %s", img->node->filename,
			c->is_l2 ? "L2" : "refcounts");
		r = c->is_l2 ? co_q2_commit(img, false) : co_q2_cache_writeback(img, c);
	} else {
		co_queue_wait(&c->waiters, c->lock);
	}
	spin_lock(c->lock);
	return r;
}

/* Tables end with the file, rounded up to clusters; what lies behind is no table. */
static int load(struct q2_image *img, struct q2_cache *c, struct q2_slice *s, uint64_t off)
{
	uint64_t size = block_size(c->file), n;

	trace("q2_cache_load", "%s: %s slice at %llu", img->node->filename,
		c->is_l2 ? "L2" : "refcount", (unsigned long long)off);
	if (off >= align_up(size, c->cluster_size))
		return co_q2_corrupt(img, "%s slice at %#llx lies beyond the end of the file",
			c->is_l2 ? "L2" : "refcount", (unsigned long long)off);
	co_block_event(c->file, c->is_l2 ? "l2_load" : "refblock_load");
	n = off < size ? MIN(size - off, (uint64_t)c->slice_size) : 0;
	memset(s->data + n, 0, c->slice_size - n);
	return n ? co_block_pread(c->file, off, s->data, n) : 0;
}

/* Fills the empty slice `s`, which nobody can find but as `loading`. */
static int load_into(struct q2_image *img, struct q2_cache *c, struct q2_slice *s, uint64_t off,
	struct q2_slice **ret)
{
	int r;

	s->loading = s->used = true;
	s->refs = 1;
	hash_add(c, s, off);
	spin_unlock(c->lock);
	r = load(img, c, s, off);
	spin_lock(c->lock);
	s->loading = false;
	if (r < 0) {
		s->refs = 0;
		hash_del(c, s);
	}
	co_queue_wake_all(&c->waiters);
	spin_unlock(c->lock);
	if (r == 0)
		*ret = s;
	return r;
}

int co_q2_cache_get(struct q2_image *img, struct q2_cache *c, uint64_t off, struct q2_slice **ret)
{
	bool no_memory = false;
	int r;

	spin_lock(c->lock);
	for (;;) {
		struct q2_slice *s = hash_find(c, off);

		if (s && !s->loading) {
			s->refs++;
			s->used = true;
			spin_unlock(c->lock);
			*ret = s;
			return 0;
		}
		if (s) {
			co_queue_wait(&c->waiters, c->lock);
			spin_lock(c->lock);
			continue;
		}
		if (c->n < c->max && !no_memory) {
			uint32_t before = c->n;

			no_memory = grow(c) < 0;
			if (no_memory && !c->n)
				break;
			if (hash_find(c, off) || c->n == before)
				continue;
		}
		s = evict(c);
		if (s)
			return load_into(img, c, s, off, ret);
		r = make_room(img, c);
		if (r < 0) {
			spin_unlock(c->lock);
			return r;
		}
	}
	spin_unlock(c->lock);
	return -ENOMEM;
}

void q2_cache_drop_range(struct q2_cache *c, uint64_t off, uint64_t len)
{
	spin_lock(c->lock);
	for (uint64_t at = align_down(off, c->slice_size); at < off + len; at += c->slice_size) {
		struct q2_slice *s = hash_find(c, at);

		if (!s || s->loading)
			continue;
		set_dirty(c, s, false);
		hash_del(c, s);
	}
	spin_unlock(c->lock);
}

void q2_cache_drop(struct q2_image *img, struct q2_cache *c)
{
	spin_lock(c->lock);
	for (uint32_t i = 0; i < c->n; i++)
		if (!c->slices[i]->refs && !c->slices[i]->dirty)
			hash_del(c, c->slices[i]);
	spin_unlock(c->lock);
}

/* --- writing --- */

static int copy_compare(const void *a, const void *b)
{
	uint64_t x = ((const struct q2_copy *)a)->off, y = ((const struct q2_copy *)b)->off;

	return x < y ? -1 : x > y;
}

uint64_t q2_cache_dirty_seq(struct q2_cache *c)
{
	uint64_t seq;

	spin_lock(c->lock);
	seq = c->dirty_seq;
	spin_unlock(c->lock);
	return seq;
}

int q2_cache_copy_dirty(struct q2_cache *c, uint64_t seq, struct q2_copy **ret, uint32_t *ret_n)
{
	uint32_t n = 0, want = __atomic_load_n(&c->ndirty, __ATOMIC_ACQUIRE);
	struct q2_copy *copies;
	uint8_t *data;

	*ret = NULL;
	*ret_n = 0;
	want = MIN(want, (uint32_t)MAX(COPY_BUDGET / c->slice_size, 2ULL));
	if (!want)
		return 0;
	data = block_buffer_alloc(
		c->file, (size_t)want * (c->slice_size + sizeof(struct q2_copy)) + 64);
	if (!data)
		return -ENOMEM;
	/* The array stands behind the data, so that the data keeps its alignment. */
	copies = (struct q2_copy *)(data + align_up((uint64_t)want * c->slice_size, 16));
	spin_lock(c->lock);
	for (uint32_t i = 0; i < c->n && n < want; i++) {
		struct q2_slice *s = c->slices[i];

		if (!s->dirty || s->dirty_seq > seq)
			continue;
		copies[n] = (struct q2_copy){s, s->off, s->gen, data + (size_t)n * c->slice_size};
		memcpy(copies[n].data, s->data, c->slice_size);
		n++;
		/* The lock is short: others get through between two slices, which keep their
		 * places in the array. */
		spin_unlock(c->lock);
		spin_lock(c->lock);
	}
	spin_unlock(c->lock);
	qsort(copies, n, sizeof(*copies), copy_compare);
	if (n)
		*ret = copies;
	else
		mem_free(data);
	*ret_n = n;
	return 0;
}

void q2_copies_free(struct q2_copy *copies, uint32_t n)
{
	uint8_t *data = NULL;

	for (uint32_t i = 0; i < n; i++)
		if (!data || copies[i].data < data)
			data = copies[i].data;
	mem_free(data);
}

static void mark_clean(struct q2_cache *c, const struct q2_copy *copies, uint32_t n)
{
	spin_lock(c->lock);
	for (uint32_t i = 0; i < n; i++) {
		struct q2_slice *s = copies[i].slice;

		if (s->off != copies[i].off || !s->dirty)
			continue;
		/* What changed since the copy counts as dirtied after it. */
		if (s->gen == copies[i].gen)
			set_dirty(c, s, false);
		else
			s->dirty_seq = ++c->dirty_seq;
	}
	co_queue_wake_all(&c->waiters);
	spin_unlock(c->lock);
}

/* Copies that are neighbours on disk, in one request. */
static int write_run(
	struct q2_image *img, struct q2_cache *c, const struct q2_copy *copies, uint32_t n)
{
	struct iovec iov[MAX_MERGE];
	struct iov_slice buf = {iov, n, 0, (size_t)n * c->slice_size};
	int r;

	for (uint32_t i = 0; i < n; i++)
		iov[i] = (struct iovec){copies[i].data, c->slice_size};
	co_block_event(c->file, c->is_l2 ? "l2_update" : "refblock_update");
	r = co_block_write(c->file, copies[0].off, buf, 0);
	trace("q2_cache_write", "%s: %s at %llu, %zu bytes, result %d", img->node->filename,
		c->is_l2 ? "L2" : "refcounts", (unsigned long long)copies[0].off, buf.len, r);
	if (r == 0)
		mark_clean(c, copies, n);
	return r;
}

int co_q2_cache_write(struct q2_image *img, struct q2_cache *c, struct q2_copy *copies, uint32_t n)
{
	for (uint32_t i = 0, run; i < n; i += run) {
		int r = 0;

		for (run = 1; i + run < n && run < MAX_MERGE; run++)
			if (copies[i + run].off != copies[i].off + (uint64_t)run * c->slice_size)
				break;
		for (uint32_t j = 0; j < run && r == 0; j++)
			r = co_q2_overlap_check(img, copies[i + j].off, c->slice_size,
				c->is_l2 ? Q2_OVERLAP_L2 : Q2_OVERLAP_REFBLOCK);
		if (r == 0)
			r = write_run(img, c, copies + i, run);
		if (r < 0)
			return r;
	}
	return 0;
}

int co_q2_cache_writeback(struct q2_image *img, struct q2_cache *c)
{
	struct q2_copy *copies;
	uint64_t seq;
	uint32_t n;
	int r;

	co_mutex_lock(&c->write_mutex);
	/* Not before: a writer that is done moves what changed meanwhile behind it. */
	seq = q2_cache_dirty_seq(c);
	do {
		r = q2_cache_copy_dirty(c, seq, &copies, &n);
		if (r == 0 && n) {
			r = co_q2_cache_write(img, c, copies, n);
			q2_copies_free(copies, n);
		}
	} while (r == 0 && n);
	co_mutex_unlock(&c->write_mutex);
	return r;
}
