/* SPDX-License-Identifier: MIT */
/*
 * Reading through backing chains at a cost that does not grow with their length.
 *
 * Theory of Operation
 *
 * An overlay that has nothing at an offset asks its backing file, which may ask the next one, and
 * so on. Done by recursion that costs a stack frame and a metadata lookup a layer. Here the layer
 * that answers is looked for in a loop, and remembered: the layers below an overlay that is in use
 * do not change, so what was found stays true.
 *
 * The memory is a table of 64-bit entries, each written and read at once: for a granule of 64 KiB,
 * "all of it comes from layer k", "all of it reads as zeroes", or "mixed", in which case granules
 * of 4 KiB inside it are asked the same. What is mixed even there is looked for at every read.
 *
 * A chain with a filter or a writable layer in it is left to recursion, which sees everything.
 *
 * Invariants
 * C1  An entry is believed only while `gen` equals the graph's generation, which goes up with every
 *     change of a child, of a mode or of a size.
 * C2  Layers are borrowed: whoever replaces a child has drained every node above it that is read
 *     through, so nobody is between the table and the layer.
 * C3  A layer is read only where it is allocated, so reading it goes no deeper.
 */
#include "block/internal.h"

#define BIG        (64 * KiB)
#define SMALL      (4 * KiB)
#define HALF       32768u /* entries a granule size; power of two */
#define LAYERS_MAX 60000u

enum { UNKNOWN, MIXED, ZEROES, FIRST_LAYER };

struct block_chain {
	uint64_t gen; /* atomic */
	struct spin lock;
	bool usable;
	uint32_t nlayers;
	struct block_node **layers;
	/* atomic: (granule number / HALF) << 16 | what; first half BIG, second half SMALL */
	uint64_t entries[2 * HALF];
};

static uint64_t graph_gen = 1;

void block_graph_changed(void)
{
	__atomic_fetch_add(&graph_gen, 1, __ATOMIC_SEQ_CST);
}

void block_chain_free(struct block_chain *c)
{
	if (!c)
		return;
	mem_free(c->layers);
	mem_free(c);
}

/* Takes up the layers below n; the lock is held. Leaves `usable` false where the chain is one for
 * recursion. */
static void chain_take_layers(struct block_chain *c, struct block_node *n)
{
	struct block_node *l, **layers;
	uint32_t count = 0;

	c->usable = false;
	for (l = n->child[BLOCK_ROLE_BACKING]; l; l = l->child[BLOCK_ROLE_BACKING]) {
		if (l->drv->kind == BLOCK_KIND_FILTER || (l->opts.flags & BLOCK_OPEN_RDWR))
			return;
		count++;
	}
	if (count > LAYERS_MAX)
		return;
	layers = mem_realloc(c->layers, count * sizeof(struct block_node *));
	if (!layers)
		return;
	c->layers = layers;
	c->nlayers = 0;
	for (l = n->child[BLOCK_ROLE_BACKING]; l; l = l->child[BLOCK_ROLE_BACKING])
		layers[c->nlayers++] = l;
	c->usable = true;
}

static struct block_chain *chain_get(struct block_node *n)
{
	struct block_chain **slot = &node_of(n)->chain;
	struct block_chain *c = __atomic_load_n(slot, __ATOMIC_ACQUIRE), *none = NULL;
	uint64_t gen = __atomic_load_n(&graph_gen, __ATOMIC_SEQ_CST);

	if (unlikely(!c)) {
		c = mem_zalloc(sizeof(*c));
		if (!c)
			return NULL;
		if (!__atomic_compare_exchange_n(
			    slot, &none, c, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			mem_free(c);
			c = none;
		}
	}
	if (unlikely(__atomic_load_n(&c->gen, __ATOMIC_ACQUIRE) != gen)) {
		spin_lock(&c->lock);
		if (c->gen != gen) {
			for (uint32_t i = 0; i < 2 * HALF; i++)
				store_relaxed(&c->entries[i], 0);
			chain_take_layers(c, n);
			__atomic_store_n(&c->gen, gen, __ATOMIC_RELEASE);
		}
		spin_unlock(&c->lock);
	}
	return c->usable ? c : NULL;
}

static uint64_t *chain_entry(struct block_chain *c, uint64_t off, uint64_t granule)
{
	return &c->entries[(granule == BIG ? 0 : HALF) + (off / granule & (HALF - 1))];
}

static uint32_t chain_recall(struct block_chain *c, uint64_t off, uint64_t granule)
{
	uint64_t e = load_relaxed(chain_entry(c, off, granule));

	return e >> 16 == off / granule / HALF ? (uint32_t)(e & 0xffff) : UNKNOWN;
}

/* What [off, off+len) of the first layer resolves to, as far as it is one thing: *ret_len. */
static int co_chain_walk(
	struct block_chain *c, uint64_t off, uint64_t len, uint64_t *ret_len, uint32_t *ret)
{
	for (uint32_t k = 0; k < c->nlayers; k++) {
		uint64_t size = block_size(c->layers[k]);
		struct block_extent e;
		int r;

		if (off >= size)
			break; /* a short layer reads as zeroes beyond its end */
		len = MIN(len, size - off);
		r = co_block_extent(c->layers[k], off, len, &e);
		if (r)
			return r;
		len = e.len;
		if (e.flags & BLOCK_EXTENT_ALLOCATED) {
			*ret_len = len;
			*ret = e.flags & BLOCK_EXTENT_ZERO ? ZEROES : FIRST_LAYER + k;
			return 0;
		}
	}
	*ret_len = len;
	*ret = ZEROES;
	return 0;
}

/* What the granule around off is, from memory or by walking; `size` is that of the first layer. */
static int co_chain_granule(
	struct block_chain *c, uint64_t off, uint64_t granule, uint64_t size, uint32_t *ret)
{
	uint64_t start = align_down(off, granule), end = MIN(start + granule, size), found;
	int r;

	*ret = chain_recall(c, off, granule);
	if (likely(*ret != UNKNOWN))
		return 0;
	r = co_chain_walk(c, start, end - start, &found, ret);
	if (r)
		return r;
	if (found < end - start)
		*ret = MIXED;
	store_relaxed(chain_entry(c, off, granule), off / granule / HALF << 16 | *ret);
	return 0;
}

/* Who answers at off, and for how many bytes. */
static int co_chain_find(struct block_chain *c, uint64_t off, uint64_t len, uint64_t size,
	uint64_t *ret_len, uint32_t *ret)
{
	uint64_t granule = BIG;
	int r = co_chain_granule(c, off, granule, size, ret);

	if (!r && *ret == MIXED) {
		granule = SMALL;
		r = co_chain_granule(c, off, granule, size, ret);
	}
	if (r)
		return r;
	if (*ret == MIXED)
		return co_chain_walk(c, off, len, ret_len, ret);
	*ret_len = MIN(len, align_down(off, granule) + granule - off);
	return 0;
}

static int co_read_found(struct block_chain *c, uint32_t what, uint64_t off, struct iov_slice buf)
{
	if (what == ZEROES) {
		iov_fill(buf, 0);
		return 0;
	}
	return co_block_read(c->layers[what - FIRST_LAYER], off, buf, 0);
}

int co_block_read_backing(struct block_node *n, uint64_t off, struct iov_slice buf)
{
	struct block_node *b = n->child[BLOCK_ROLE_BACKING];
	uint64_t size = b ? MIN(block_size(b), block_size(n)) : 0;
	uint64_t left = off < size ? MIN((uint64_t)buf.len, size - off) : 0;
	struct block_chain *c;

	if (left < buf.len)
		iov_fill(iov_cut(buf, left, buf.len - left), 0);
	buf = iov_cut(buf, 0, left);
	if (!left)
		return 0;
	if (!b->child[BLOCK_ROLE_BACKING] || !(c = chain_get(n)))
		return co_block_read(b, off, buf, 0);
	while (buf.len) {
		uint64_t len, more;
		uint32_t what, next;
		int r = co_chain_find(c, off, buf.len, size, &len, &what);

		/* Granules with the same answer are one request. */
		while (!r && len < buf.len) {
			r = co_chain_find(c, off + len, buf.len - len, size, &more, &next);
			if (r || next != what)
				break;
			len += more;
		}
		if (!r)
			r = co_read_found(c, what, off, iov_cut(buf, 0, len));
		if (r)
			return r;
		off += len;
		buf = iov_cut(buf, len, buf.len - len);
	}
	return 0;
}
