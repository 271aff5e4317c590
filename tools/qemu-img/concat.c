/* SPDX-License-Identifier: MIT */
/* Several sources as one: a read-only node that shows its sources one behind the other. */
#include "tools/qemu-img/concat.h"
#include "base/mem.h"

struct concat_state {
	struct block_node **src; /* owned array of references */
	uint64_t *start;         /* n + 1 offsets; the last is the size */
	unsigned n;
};

/* The source that holds off; off lies inside the node. */
static unsigned find(const struct concat_state *s, uint64_t off)
{
	unsigned lo = 0, hi = s->n - 1;

	while (lo < hi) {
		unsigned mid = (lo + hi + 1) / 2;

		if (s->start[mid] <= off)
			lo = mid;
		else
			hi = mid - 1;
	}
	return lo;
}

static int co_concat_read(struct block_node *n, struct block_io *io)
{
	const struct concat_state *s = n->priv;
	uint64_t done = 0;

	for (unsigned i = find(s, io->off); done < io->len; i++) {
		uint64_t off = io->off + done, part = MIN(io->len - done, s->start[i + 1] - off);
		int r;

		if (!part)
			continue; /* an empty source */
		r = co_block_read(s->src[i], off - s->start[i], iov_cut(io->buf, done, part), 0);
		if (r < 0)
			return r;
		done += part;
	}
	return 0;
}

static int co_concat_extent(
	struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	const struct concat_state *s = n->priv;
	unsigned i = find(s, off);
	int r;

	r = co_block_extent_chain(
		s->src[i], NULL, off - s->start[i], MIN(len, s->start[i + 1] - off), ret);
	ret->flags |= BLOCK_EXTENT_ALLOCATED; /* there is nothing below this node */
	return r;
}

static int co_concat_close(struct block_node *n)
{
	struct concat_state *s = n->priv;

	for (unsigned i = 0; i < s->n; i++)
		co_block_node_unref(s->src[i]);
	mem_free(s->src);
	mem_free(s->start);
	return 0;
}

static const struct block_driver concat_driver = {
	.name = "concat",
	.kind = BLOCK_KIND_PROTOCOL,
	.node_size = sizeof(struct concat_state),
	.co_close = co_concat_close,
	.co_read = co_concat_read,
	.co_extent = co_concat_extent,
};

int co_concat_open(struct block_node **src, unsigned n, struct block_node **ret, struct error *err)
{
	struct block_open_opts o = {.trust = src[0]->opts.trust};
	struct concat_state st = {.n = n};
	struct block_node *node;
	int r;

	st.src = mem_calloc(n, sizeof(*st.src));
	st.start = mem_calloc(n + 1, sizeof(*st.start));
	r = st.src && st.start ? 0 : error_set(err, -ENOMEM, "out of memory");
	for (unsigned i = 0; !r && i < n; i++) {
		st.src[i] = src[i];
		if (add_overflow(st.start[i], block_size(src[i]), &st.start[i + 1]) ||
			st.start[i + 1] > INT64_MAX)
			r = error_set(err, -EFBIG, "the sources together are above 8 EiB");
	}
	if (!r)
		r = co_block_open_on(&concat_driver, NULL, NULL, &o, &node, err);
	if (r) {
		mem_free(st.src);
		mem_free(st.start);
		return r;
	}
	*(struct concat_state *)node->priv = st;
	node->size = st.start[n];
	*ret = node;
	return 0;
}
