/* SPDX-License-Identifier: MIT */
/*
 * In-memory dirty bitmaps: which granules of a node have changed.
 *
 * Theory of Operation
 *
 * Level 0 has one bit a granule. Each bit of level k+1 says whether a 64-bit word of level k has
 * any bit set, up to a level of one word; so finding the next dirty granule of an almost clean
 * bitmap of any size touches a few words. Setting is lock-free, because it is on the write path
 * of every ring; clearing and searching share a lock.
 *
 * A bitmap attached to a node hangs in the node's list. block/io.c calls block_dirty_note()
 * after each change.
 *
 * Invariants:
 * D1  A set bit of level k has its word's bit set in level k+1, whenever no clear is running.
 *     set: writes its bit, then looks at the upper bit; clear: takes the upper bit away, then
 *     looks at the word again. All of it is sequentially consistent, so one of the two sees the
 *     other and puts the upper bit (back).
 * D2  Searching holds the lock that clearing holds, so it never sees D1 broken.
 * D3  `granules` is the number of bits set in level 0.
 */
#include "block/internal.h"
#include "base/mem.h"

#define LEVELS_MAX 11 /* 64^11 > 2^64 */

/* Hangs a bitmap into the list of a node. */
struct block_dirty_link {
	struct block_dirty_link *next;
};

struct block_dirty {
	struct block_dirty_link link;
	uint64_t size;
	unsigned shift; /* log2 of the granularity */
	unsigned levels;
	uint64_t nbits;
	uint64_t granules;  /* atomic */
	struct spin lock;   /* clear and search */
	uint64_t *level[LEVELS_MAX];
};

int block_dirty_new(uint64_t size, uint32_t granularity, struct block_dirty **ret)
{
	struct block_dirty *d;
	uint64_t n;

	if (!is_pow2(granularity) || granularity < 512)
		return -EINVAL;
	d = mem_zalloc(sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->size = size;
	d->shift = log2_u64(granularity);
	d->nbits = MAX(div_up(size, granularity), (uint64_t)1);
	for (n = d->nbits;; n = div_up(n, 64)) {
		d->level[d->levels] = mem_calloc(div_up(n, 64), sizeof(uint64_t));
		if (!d->level[d->levels]) {
			block_dirty_free(d);
			return -ENOMEM;
		}
		d->levels++;
		if (n <= 64)
			break;
	}
	*ret = d;
	return 0;
}

void block_dirty_free(struct block_dirty *d)
{
	if (!d)
		return;
	for (unsigned k = 0; k < d->levels; k++)
		mem_free(d->level[k]);
	mem_free(d);
}

static uint64_t word_load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

/* Keeps D1 after bits of word `w` of level 0 were set. */
static void mark_up(struct block_dirty *d, uint64_t w)
{
	for (unsigned k = 1; k < d->levels; k++, w /= 64) {
		uint64_t *p = &d->level[k][w / 64], m = 1ULL << (w % 64);

		if (word_load(p) & m)
			return;
		__atomic_fetch_or(p, m, __ATOMIC_SEQ_CST);
	}
}

/* As mark_up() without the short cut: the levels above may have been cleared meanwhile. */
static void mark_up_all(struct block_dirty *d, uint64_t w)
{
	for (unsigned k = 1; k < d->levels; k++, w /= 64)
		__atomic_fetch_or(&d->level[k][w / 64], 1ULL << (w % 64), __ATOMIC_SEQ_CST);
}

/* Keeps D1 after word `w` of level 0 became zero. */
static void clear_up(struct block_dirty *d, uint64_t w)
{
	uint64_t word = w;

	for (unsigned k = 1; k < d->levels; k++, w /= 64) {
		uint64_t m = 1ULL << (w % 64);
		bool rest = __atomic_and_fetch(&d->level[k][w / 64], ~m, __ATOMIC_SEQ_CST) != 0;

		if (word_load(&d->level[k - 1][w])) {
			mark_up_all(d, word);
			return;
		}
		if (rest)
			return;
	}
}

/* The bits of [first, last] that lie in word w. */
static uint64_t word_mask(uint64_t w, uint64_t first, uint64_t last)
{
	uint64_t m = ~0ULL;

	if (w == first / 64)
		m &= ~0ULL << (first % 64);
	if (w == last / 64)
		m &= ~0ULL >> (63 - last % 64);
	return m;
}

void block_dirty_set(struct block_dirty *d, uint64_t off, uint64_t len)
{
	uint64_t first, last;

	if (off >= d->size || !len)
		return;
	len = MIN(len, d->size - off);
	first = off >> d->shift;
	last = (off + len - 1) >> d->shift;
	for (uint64_t w = first / 64; w <= last / 64; w++) {
		uint64_t m = word_mask(w, first, last);
		uint64_t old = __atomic_fetch_or(&d->level[0][w], m, __ATOMIC_SEQ_CST);

		if (m & ~old)
			__atomic_fetch_add(&d->granules, (uint64_t)__builtin_popcountll(m & ~old),
				__ATOMIC_RELAXED);
		mark_up(d, w);
	}
}

void block_dirty_clear(struct block_dirty *d, uint64_t off, uint64_t len)
{
	uint64_t end, first, last;

	if (off >= d->size || !len)
		return;
	len = MIN(len, d->size - off);
	/* Whole granules only, but the last one may be cut short by the end of the node. */
	first = div_up(off, 1ULL << d->shift);
	end = off + len == d->size ? d->nbits : (off + len) >> d->shift;
	if (first >= end)
		return;
	last = end - 1;
	spin_lock(&d->lock);
	for (uint64_t w = first / 64; w <= last / 64; w++) {
		uint64_t m = word_mask(w, first, last), old;

		if (!word_load(&d->level[0][w]))
			continue;
		old = __atomic_fetch_and(&d->level[0][w], ~m, __ATOMIC_SEQ_CST);
		if (m & old)
			__atomic_fetch_sub(&d->granules, (uint64_t)__builtin_popcountll(m & old),
				__ATOMIC_RELAXED);
		if (!(old & ~m))
			clear_up(d, w);
	}
	spin_unlock(&d->lock);
}

bool block_dirty_test(const struct block_dirty *d, uint64_t off)
{
	uint64_t bit = off >> d->shift;

	return off < d->size && (word_load(&d->level[0][bit / 64]) >> (bit % 64) & 1);
}

uint64_t block_dirty_count(const struct block_dirty *d)
{
	uint64_t bytes = __atomic_load_n(&d->granules, __ATOMIC_RELAXED) << d->shift;
	uint64_t short_by = (d->nbits << d->shift) - d->size;

	if (short_by && d->size && block_dirty_test(d, d->size - 1))
		bytes -= short_by;
	return bytes;
}

/* First set bit of level k at or after `bit`; d->nbits or more when there is none. */
static uint64_t next_set(const struct block_dirty *d, unsigned k, uint64_t bit, uint64_t nbits)
{
	uint64_t w = bit / 64, v;

	if (bit >= nbits)
		return UINT64_MAX;
	v = word_load(&d->level[k][w]) & (~0ULL << (bit % 64));
	if (v)
		return w * 64 + (unsigned)__builtin_ctzll(v);
	if (k + 1 == d->levels)
		return UINT64_MAX;
	/* Upper levels may lag behind a set that is still running: skip words that are empty. */
	for (;;) {
		w = next_set(d, k + 1, w + 1, div_up(nbits, 64));
		if (w == UINT64_MAX)
			return UINT64_MAX;
		v = word_load(&d->level[k][w]);
		if (v)
			return w * 64 + (unsigned)__builtin_ctzll(v);
	}
}

static uint64_t next_clear(const struct block_dirty *d, uint64_t bit)
{
	for (uint64_t w = bit / 64; w < div_up(d->nbits, 64); w++) {
		uint64_t v = ~word_load(&d->level[0][w]);

		if (w == bit / 64)
			v &= ~0ULL << (bit % 64);
		if (v)
			return w * 64 + (unsigned)__builtin_ctzll(v);
	}
	return UINT64_MAX;
}

bool block_dirty_next(const struct block_dirty *cd, uint64_t off, bool dirty, uint64_t *ret_off,
	uint64_t *ret_len)
{
	struct block_dirty *d = (struct block_dirty *)cd; /* the lock is no part of the value */
	uint64_t from = off >> d->shift, first, end = 0, byte_end;

	if (off >= d->size)
		return false;
	spin_lock(&d->lock);
	first = dirty ? next_set(d, 0, from, d->nbits) : next_clear(d, from);
	if (first < d->nbits)
		end = dirty ? next_clear(d, first) : next_set(d, 0, first, d->nbits);
	spin_unlock(&d->lock);
	if (first >= d->nbits)
		return false;
	byte_end = end >= d->nbits ? d->size : end << d->shift;
	*ret_off = MAX(off, first << d->shift);
	*ret_len = byte_end - *ret_off;
	return true;
}

int block_dirty_attach(struct block_node *n, struct block_dirty *d)
{
	struct block_inflight *f = n->inflight;

	if (d->size != n->size)
		return -EINVAL;
	spin_lock(&f->lock);
	d->link.next = f->dirty;
	__atomic_store_n(&f->dirty, &d->link, __ATOMIC_RELEASE);
	spin_unlock(&f->lock);
	return 0;
}

void block_dirty_detach(struct block_node *n, struct block_dirty *d)
{
	struct block_inflight *f = n->inflight;

	spin_lock(&f->lock);
	for (struct block_dirty_link **p = &f->dirty; *p; p = &(*p)->next) {
		if (*p == &d->link) {
			__atomic_store_n(p, d->link.next, __ATOMIC_RELEASE);
			break;
		}
	}
	spin_unlock(&f->lock);
}

void block_dirty_note(struct block_node *n, uint64_t off, uint64_t len)
{
	struct block_inflight *f = n->inflight;

	spin_lock(&f->lock);
	for (struct block_dirty_link *l = f->dirty; l; l = l->next)
		block_dirty_set(container_of(l, struct block_dirty, link), off, len);
	spin_unlock(&f->lock);
}
