/* SPDX-License-Identifier: MIT */
/*
 * Extents: what lies where, of one layer and through a backing chain.
 */
#include "block/internal.h"

struct block_node *block_skip_filters(struct block_node *n)
{
	while (n && n->drv->kind == BLOCK_KIND_FILTER)
		n = n->child[BLOCK_ROLE_FILE];
	return n;
}

struct block_node *block_backing(struct block_node *n)
{
	n = block_skip_filters(n);
	return n ? n->child[BLOCK_ROLE_BACKING] : NULL;
}

/* One layer, inside the node, counted in flight. */
static int co_extent_layer(
	struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	if (n->drv->co_extent)
		return n->drv->co_extent(n, off, len, ret);
	if (n->drv->kind == BLOCK_KIND_FILTER)
		return co_block_extent(n->child[BLOCK_ROLE_FILE], off, len, ret);
	*ret = (struct block_extent){
		.len = len, .flags = BLOCK_EXTENT_DATA | BLOCK_EXTENT_ALLOCATED};
	return 0;
}

int co_block_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	struct block_extent e = {0};
	uint64_t size;
	int r = 0;

	co_inflight_begin_read(n->inflight);
	size = block_size(n);
	if (!len || !range_inside(off, len, BLOCK_SIZE_MAX)) {
		r = -EINVAL;
	} else if (off >= size) {
		/* A format asks about its store beyond a short end. */
		if (n->opts.flags & BLOCK_OPEN_STORE)
			e = (struct block_extent){.len = len,
				.flags = BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED |
					BLOCK_EXTENT_EOF};
		else
			r = -EINVAL;
	} else {
		r = co_extent_layer(n, off, MIN(len, size - off), &e);
		if (!r && off + e.len >= size)
			e.flags |= BLOCK_EXTENT_EOF;
		else
			e.flags &= ~(uint32_t)BLOCK_EXTENT_EOF;
	}
	inflight_end_read(n->inflight);
	if (!r)
		*ret = e;
	return r;
}

/* What a short layer below n leaves open is zeroes. They belong to n, which shows them; where only
 * the difference to a base below counts, they hide what the base may have there. */
static struct block_extent beyond_short_layer(uint64_t len, bool has_base)
{
	return (struct block_extent){
		.len = len, .flags = BLOCK_EXTENT_ZERO | (has_base ? BLOCK_EXTENT_ALLOCATED : 0)};
}

int co_block_extent_chain(struct block_node *n, struct block_node *base, uint64_t off, uint64_t len,
	struct block_extent *ret)
{
	uint64_t top_size = block_size(n);
	struct block_extent e;
	uint32_t depth = 0;

	if (!len || off >= top_size)
		return -EINVAL;
	len = MIN(len, top_size - off);
	n = block_skip_filters(n);
	base = block_skip_filters(base);
	for (;;) {
		struct block_node *below = block_backing(n);
		uint64_t size = block_size(n);
		int r = co_block_extent(n, off, MIN(len, size - off), &e);

		if (r)
			return r;
		if (e.flags & BLOCK_EXTENT_ALLOCATED)
			break;
		below = block_skip_filters(below);
		if (!below) {
			e.flags |= BLOCK_EXTENT_ZERO;
			break;
		}
		if (below == base)
			break;
		len = e.len;
		if (off >= block_size(below)) {
			e = beyond_short_layer(len, base != NULL);
			break;
		}
		len = MIN(len, block_size(below) - off);
		n = below;
		depth++;
	}
	e.depth = depth;
	if (off + e.len >= top_size)
		e.flags |= BLOCK_EXTENT_EOF;
	else
		e.flags &= ~(uint32_t)BLOCK_EXTENT_EOF;
	*ret = e;
	return 0;
}
