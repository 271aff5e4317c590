/* SPDX-License-Identifier: MIT */
/*
 * A number for every host cluster, for the check and for snapshot operations: references counted,
 * changes of refcounts collected.
 *
 * Two bytes a cluster: a signed 15-bit number and a flag. Clusters come in chunks that exist from
 * the first use; numbers too large for their slot move to a hash table. The chunks in memory are
 * bounded by a budget: when it is used up, the highest chunk gives way and the window [lo, hi) of
 * cluster indices ends there. What lies outside the window is ignored, and the caller makes another
 * pass with the window behind it until everything was seen (q2_refs_next_window()).
 *
 * Workers use a cursor, which holds the lock of one chunk at a time. Lock order: none is taken
 * while another is held, but for the eviction, which takes a chunk's lock inside the directory's;
 * nobody who holds a chunk's lock waits for the directory's.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "qcow2/qcow2.h"

#define CHUNK_BITS  14u
#define CHUNK_SLOTS (1u << CHUNK_BITS)
#define SLOT_MAX    0x3fff
#define SLOT_BIG    Q2_SLOT_BIG
#define NO_CHUNK    UINT64_MAX

struct q2_refs_chunk {
	struct q2_refs_chunk *hash_next;
	struct spin lock;
	uint64_t index; /* cluster index >> CHUNK_BITS; NO_CHUNK: evicted */
	int16_t slot[CHUNK_SLOTS];
};

struct big {
	uint64_t cluster; /* NO_CHUNK: free */
	int64_t value;
};

int q2_refs_init(struct q2_refs *r, uint64_t clusters, uint64_t memory)
{
	*r = (struct q2_refs){.lo = 0, .hi = clusters, .clusters = clusters};
	r->max_chunks = MAX(memory / sizeof(struct q2_refs_chunk), 4ULL);
	r->hash_size = 1024;
	while (r->hash_size < MIN(clusters >> CHUNK_BITS, (uint64_t)r->max_chunks))
		r->hash_size *= 2;
	r->hash = mem_calloc(r->hash_size, sizeof(*r->hash));
	return r->hash ? 0 : -ENOMEM;
}

static void free_chunks(struct q2_refs *r)
{
	for (size_t i = 0; r->hash && i < r->hash_size; i++) {
		while (r->hash[i]) {
			struct q2_refs_chunk *c = r->hash[i];

			r->hash[i] = c->hash_next;
			mem_free(c);
		}
	}
	r->nchunks = 0;
}

void q2_refs_destroy(struct q2_refs *r)
{
	free_chunks(r);
	mem_free(r->hash);
	mem_free(r->big);
	mem_free(r->sorted);
	*r = (struct q2_refs){0};
}

bool q2_refs_next_window(struct q2_refs *r)
{
	if (r->hi >= r->clusters)
		return false;
	free_chunks(r);
	r->nbig = 0;
	for (size_t i = 0; i < r->big_room; i++)
		r->big[i].cluster = NO_CHUNK;
	r->lo = r->hi;
	r->hi = r->clusters;
	return true;
}

void q2_refs_rewind(struct q2_refs *r)
{
	r->hi = 0;
	q2_refs_next_window(r);
	r->lo = 0;
}

/* --- numbers beyond a slot ----------------------------------------------------------------- */

static struct big *big_find(struct big *v, size_t room, uint64_t cluster)
{
	size_t i = (size_t)(cluster * 0x9e3779b97f4a7c15ULL >> 32) & (room - 1);

	while (v[i].cluster != NO_CHUNK && v[i].cluster != cluster)
		i = (i + 1) & (room - 1);
	return &v[i];
}

static int big_grow(struct q2_refs *r)
{
	size_t room = r->big_room ? r->big_room * 2 : 64;
	struct big *v = mem_calloc(room, sizeof(*v));

	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < room; i++)
		v[i].cluster = NO_CHUNK;
	for (size_t i = 0; i < r->big_room; i++)
		if (r->big[i].cluster != NO_CHUNK)
			*big_find(v, room, r->big[i].cluster) = r->big[i];
	mem_free(r->big);
	r->big = v;
	r->big_room = room;
	return 0;
}

/* Adds to a big number, or makes one out of `from`. */
static void big_add(struct q2_refs *r, uint64_t cluster, int64_t from, int64_t n)
{
	struct big *b;

	spin_lock(&r->big_lock);
	if (2 * (r->nbig + 1) > r->big_room && big_grow(r) < 0) {
		r->out_of_memory = true;
	} else {
		b = big_find(r->big, r->big_room, cluster);
		if (b->cluster == NO_CHUNK) {
			*b = (struct big){cluster, from};
			r->nbig++;
		}
		/* Sums of hostile refcounts stay at the end of the range. */
		if (__builtin_add_overflow(b->value, n, &b->value))
			b->value = n < 0 ? INT64_MIN : INT64_MAX;
	}
	spin_unlock(&r->big_lock);
}

static int64_t big_get(struct q2_refs *r, uint64_t cluster)
{
	int64_t value = 0;

	spin_lock(&r->big_lock);
	if (r->big_room) {
		struct big *b = big_find(r->big, r->big_room, cluster);

		value = b->cluster == cluster ? b->value : 0;
	}
	spin_unlock(&r->big_lock);
	return value;
}

/* --- chunks -------------------------------------------------------------------------------- */

static struct q2_refs_chunk **bucket(struct q2_refs *r, uint64_t index)
{
	return &r->hash[(index * 0x9e3779b97f4a7c15ULL >> 32) & (r->hash_size - 1)];
}

/* The window ends before chunk `index`. Cursors look at hi without the lock. */
static void lower_hi(struct q2_refs *r, uint64_t index)
{
	__atomic_store_n(&r->hi, MIN(r->hi, index << CHUNK_BITS), __ATOMIC_RELAXED);
}

/* The highest chunk gives way, unless `index` is higher still. Under r->lock. */
static struct q2_refs_chunk *evict_highest(struct q2_refs *r, uint64_t index)
{
	struct q2_refs_chunk *top = NULL, **p;

	for (size_t i = 0; i < r->hash_size; i++)
		for (struct q2_refs_chunk *c = r->hash[i]; c; c = c->hash_next)
			if (!top || c->index > top->index)
				top = c;
	if (!top || top->index < index) {
		lower_hi(r, index);
		return NULL;
	}
	lower_hi(r, top->index);
	for (p = bucket(r, top->index); *p != top; p = &(*p)->hash_next)
		;
	*p = top->hash_next;
	spin_lock(&top->lock);
	top->index = NO_CHUNK;
	memset(top->slot, 0, sizeof(top->slot));
	spin_unlock(&top->lock);
	return top;
}

static struct q2_refs_chunk *find_chunk(struct q2_refs *r, uint64_t index, bool create)
{
	struct q2_refs_chunk *c;

	for (c = *bucket(r, index); c; c = c->hash_next)
		if (c->index == index)
			return c;
	if (!create)
		return NULL;
	if (r->nchunks < r->max_chunks) {
		c = mem_zalloc(sizeof(*c));
		if (c)
			r->nchunks++;
		else if (r->nchunks < 4)
			r->out_of_memory = true;
		else
			r->max_chunks = r->nchunks;
	}
	if (!c && !r->out_of_memory)
		c = evict_highest(r, index);
	if (!c)
		return NULL;
	spin_lock(&c->lock); /* a cursor that came too late may be looking at it */
	c->index = index;
	spin_unlock(&c->lock);
	c->hash_next = *bucket(r, index);
	*bucket(r, index) = c;
	return c;
}

/* Makes the cursor hold the chunk of `cluster`; false when it lies outside the window. */
static bool cursor_seek(struct q2_refs_cursor *cur, uint64_t cluster, bool create)
{
	struct q2_refs *r = cur->refs;
	uint64_t index = cluster >> CHUNK_BITS;

	for (;;) {
		struct q2_refs_chunk *c = NULL;

		if (cur->chunk && cur->chunk->index == index)
			return true;
		q2_refs_cursor_end(cur);
		spin_lock(&r->lock);
		if (cluster >= r->lo && cluster < r->hi)
			c = find_chunk(r, index, create);
		spin_unlock(&r->lock);
		if (!c)
			return false;
		spin_lock(&c->lock);
		cur->chunk = c;
	}
}

void q2_refs_cursor_end(struct q2_refs_cursor *cur)
{
	if (cur->chunk)
		spin_unlock(&cur->chunk->lock);
	cur->chunk = NULL;
}

static void slot_add(struct q2_refs *r, uint64_t cluster, int16_t *slot, int64_t n)
{
	int64_t v = *slot >> 1;

	if (v == SLOT_BIG) {
		big_add(r, cluster, 0, n);
	} else if (n >= -2 * SLOT_MAX && n <= 2 * SLOT_MAX && v + n >= -SLOT_MAX &&
		v + n <= SLOT_MAX) {
		*slot = (int16_t)((v + n) * 2 | (*slot & 1));
	} else {
		big_add(r, cluster, v, n);
		*slot = (int16_t)(SLOT_BIG * 2 | (*slot & 1));
	}
}

void q2_refs_add(struct q2_refs_cursor *cur, uint64_t cluster, int64_t n)
{
	if (cursor_seek(cur, cluster, true))
		slot_add(cur->refs, cluster, &cur->chunk->slot[cluster & (CHUNK_SLOTS - 1)], n);
}

void q2_refs_set_flag(struct q2_refs_cursor *cur, uint64_t cluster, bool flag)
{
	int16_t *slot;

	if (!cursor_seek(cur, cluster, flag))
		return;
	slot = &cur->chunk->slot[cluster & (CHUNK_SLOTS - 1)];
	*slot = (int16_t)((*slot & ~1) | flag);
}

bool q2_refs_flag(struct q2_refs_cursor *cur, uint64_t cluster, bool *ret_known)
{
	uint64_t lo = cur->refs->lo, hi = __atomic_load_n(&cur->refs->hi, __ATOMIC_RELAXED);

	if (cursor_seek(cur, cluster, false)) {
		*ret_known = true;
		return cur->chunk->slot[cluster & (CHUNK_SLOTS - 1)] & 1;
	}
	*ret_known = cluster >= lo && cluster < hi;
	return false;
}

int64_t q2_refs_get(struct q2_refs_cursor *cur, uint64_t cluster)
{
	int64_t v;

	if (!cursor_seek(cur, cluster, false))
		return 0;
	v = cur->chunk->slot[cluster & (CHUNK_SLOTS - 1)] >> 1;
	return v == SLOT_BIG ? big_get(cur->refs, cluster) : v;
}

void q2_refs_clear(struct q2_refs_cursor *cur, uint64_t cluster)
{
	int64_t v = q2_refs_get(cur, cluster);

	if (v)
		q2_refs_add(cur, cluster, -v);
}

/* --- runs ---------------------------------------------------------------------------------- */

uint64_t q2_refs_slots(
	struct q2_refs_cursor *cur, uint64_t cluster, uint64_t n, bool create, int16_t **ret)
{
	uint64_t first = cluster & (CHUNK_SLOTS - 1), room = CHUNK_SLOTS - first;

	*ret = cursor_seek(cur, cluster, create) ? &cur->chunk->slot[first] : NULL;
	return MIN(n, room);
}

/* May every slot take a change of a few references without leaving its range? */
static bool run_is_small(const int16_t *slot, uint64_t n)
{
	int16_t outside = 0;

	for (uint64_t i = 0; i < n; i++)
		outside |= (int16_t)((slot[i] > 0x7000) | (slot[i] < -0x7000));
	return !outside;
}

void q2_refs_load_run(struct q2_refs_cursor *cur, uint64_t cluster, uint64_t n, uint64_t value)
{
	int64_t add = (int64_t)MIN(value, (uint64_t)INT64_MAX);

	for (uint64_t k; n; cluster += k, n -= k) {
		int16_t *slot;

		k = q2_refs_slots(cur, cluster, n, true, &slot);
		for (uint64_t i = 0; slot && i < k; i++) {
			slot_add(cur->refs, cluster + i, &slot[i], add);
			slot[i] = (int16_t)((slot[i] & ~1) | (value == 1));
		}
	}
}

bool q2_refs_add_run(
	struct q2_refs_cursor *cur, uint64_t cluster, uint64_t n, int64_t add, bool expect_flag)
{
	bool all_as_expected = true;

	for (uint64_t k; n; cluster += k, n -= k) {
		int16_t *slot, same = expect_flag ? 1 : 0, differ = 0;

		k = q2_refs_slots(cur, cluster, n, true, &slot);
		if (!slot)
			continue;
		for (uint64_t i = 0; i < k; i++)
			differ |= (int16_t)((slot[i] & 1) ^ same);
		if (add >= -64 && add <= 64 && run_is_small(slot, k)) {
			int16_t two = (int16_t)(add * 2);

			for (uint64_t i = 0; i < k; i++)
				slot[i] = (int16_t)(slot[i] + two);
		} else {
			for (uint64_t i = 0; i < k; i++)
				slot_add(cur->refs, cluster + i, &slot[i], add);
		}
		all_as_expected &= !differ;
	}
	return all_as_expected;
}

/* --- iteration ----------------------------------------------------------------------------- */

static int by_index(const void *a, const void *b)
{
	const struct q2_refs_chunk *const *x = a, *const *y = b;

	return (*x)->index < (*y)->index ? -1 : (*x)->index > (*y)->index;
}

int q2_refs_sort(struct q2_refs *r)
{
	size_t n = 0;

	mem_free(r->sorted);
	r->sorted = mem_calloc(MAX(r->nchunks, (size_t)1), sizeof(*r->sorted));
	r->nsorted = 0;
	if (!r->sorted)
		return -ENOMEM;
	for (size_t i = 0; i < r->hash_size; i++)
		for (struct q2_refs_chunk *c = r->hash[i]; c; c = c->hash_next)
			r->sorted[n++] = c;
	r->nsorted = n;
	if (n)
		qsort(r->sorted, n, sizeof(*r->sorted), by_index);
	return 0;
}

bool q2_refs_next_chunk(const struct q2_refs *r, size_t *chunk, uint64_t *first, uint64_t *n)
{
	if (*chunk >= r->nsorted)
		return false;
	*first = r->sorted[*chunk]->index << CHUNK_BITS;
	*n = CHUNK_SLOTS;
	++*chunk;
	return true;
}

bool q2_refs_next(struct q2_refs *r, size_t *chunk, uint64_t *cluster, int64_t *value)
{
	uint64_t at = *cluster;

	for (; *chunk < r->nsorted; ++*chunk) {
		const struct q2_refs_chunk *c = r->sorted[*chunk];
		uint64_t first = c->index << CHUNK_BITS;

		for (uint64_t i = at > first ? at - first : 0; i < CHUNK_SLOTS; i++) {
			int64_t v = c->slot[i] >> 1;

			if (v == 0)
				continue;
			if (v == SLOT_BIG)
				v = big_get(r, first + i);
			*value = v;
			*cluster = first + i;
			return true;
		}
	}
	return false;
}
