/* SPDX-License-Identifier: MIT */
/*
 * Compressed copies: clusters are encoded on the ring that read them, get their place in the image
 * in guest order, and are stored in parallel.
 *
 * Each unit is whole clusters of the target. Its worker reads it, encodes cluster by cluster into
 * one packed buffer (a cluster that does not shrink stays where it was read to, and goes plain),
 * waits for its turn, reserves space for all of them at once, lets the next unit have its turn and
 * stores. Units are cut by extents alone and every reservation is made in turn, so the image's
 * bytes do not depend on the number of workers or rings.
 *
 * Encoding is done on the ring's own thread, which exists for this copy alone: there is nobody to
 * hold up but workers that would wait for the same core.
 */
#include "block/copy.h"
#include "base/mem.h"

/* The range of a unit that does not fill a cluster of the target: only at both ends of a copy. */
static bool is_partial(const struct copy_state *st, uint64_t off, uint64_t len)
{
	uint64_t cluster = st->scan.granule;

	return len < cluster || !is_aligned(copy_target_off(st, off), cluster);
}

int copy_compress_setup(struct copy_state *st, struct error *err)
{
	struct block_copy *c = st->c;
	unsigned nitems;

	st->packer = block_skip_filters(c->dst);
	st->ops = st->packer->drv->compress;
	if (!st->ops || !is_pow2(st->packer->caps.cluster))
		return error_set(err, -ENOTSUP,
			"Compression is not supported by the format '%s'; leave it out or choose "
			"qcow2",
			st->packer->drv->name);
	nitems = (unsigned)(st->piece / st->scan.granule) + 1;
	st->encoders = mem_calloc(st->threads, sizeof(*st->encoders));
	if (!st->encoders)
		return error_set(err, -ENOMEM, "Out of memory for compression");
	for (unsigned i = 0; i < st->nworkers; i++) {
		struct copy_worker *w = &st->workers[i];

		w->items = mem_calloc(nitems, sizeof(*w->items));
		w->packed = mem_alloc(st->piece + st->scan.granule);
		if (!w->items || !w->packed)
			return error_set(err, -ENOMEM, "Out of memory for compression");
	}
	return 0;
}

void copy_compress_cleanup(struct copy_state *st)
{
	for (unsigned i = 0; st->workers && i < st->nworkers; i++) {
		mem_free(st->workers[i].items);
		mem_free(st->workers[i].packed);
	}
	for (unsigned t = 0; st->encoders && t < st->threads; t++)
		if (st->encoders[t])
			st->ops->free_state(st->encoders[t]);
	mem_free(st->encoders);
}

/* The state of the ring that `member` runs on; made at first need, by that ring. */
static void *encoder_of(struct copy_state *st, unsigned member)
{
	void **e = &st->encoders[member % st->threads];

	if (!*e)
		*e = st->ops->new_state(st->packer);
	return *e;
}

/* What one unit turns into. */
struct packing {
	struct copy_state *st;
	struct copy_worker *w;
	void *encoder;
	unsigned nitems;
	uint8_t *out; /* free space in w->packed */
};

static int pack_cluster(struct packing *p, uint64_t to, const uint8_t *data)
{
	struct block_packed *item = &p->w->items[p->nitems];
	uint32_t len = 0;
	int r = p->st->ops->encode(p->st->packer, p->encoder, data, p->out, &len);

	if (r < 0)
		return copy_fail(p->st, r, p->st->c->dst, to);
	*item = (struct block_packed){.off = to};
	if (r > 0) {
		item->data = data;
		item->len = (uint32_t)p->st->scan.granule;
	} else {
		item->data = p->out;
		item->len = len;
		item->compressed = true;
		p->out += len;
	}
	p->nitems++;
	return 0;
}

/* Calls fn for every cluster of every data segment, with its bytes. */
static int each_cluster(struct copy_state *st, struct copy_worker *w,
	int (*fn)(void *arg, uint64_t off, uint8_t *data, uint64_t len), void *arg)
{
	uint64_t cluster = st->scan.granule;
	uint8_t *buf = w->buf;
	int r = 0;

	for (unsigned i = 0; i < w->unit.nsegs; i++) {
		struct copy_segment *seg = &w->unit.seg[i];

		if (seg->kind != COPY_DATA)
			continue;
		for (uint64_t n, pos = 0; pos < seg->len && !r; pos += n, buf += n) {
			uint64_t to = copy_target_off(st, seg->off + pos);

			n = MIN(cluster - (to & (cluster - 1)), seg->len - pos);
			r = fn(arg, seg->off + pos, buf, n);
		}
	}
	return r;
}

/* A last cluster cut short by the end of the target is as good as whole: the rest is zero. */
static bool ends_target(const struct copy_state *st, uint64_t off, uint64_t len)
{
	uint64_t to = copy_target_off(st, off);

	return is_aligned(to, st->scan.granule) && to + len == block_size(st->c->dst);
}

static int encode_cluster(void *arg, uint64_t off, uint8_t *data, uint64_t len)
{
	struct packing *p = arg;
	struct copy_state *st = p->st;

	if (st->detect && mem_is_zero(data, len))
		return 0; /* written as zeroes, in turn */
	if (is_partial(st, off, len)) {
		if (!ends_target(st, off, len))
			return 0; /* written plain, in turn */
		memset(data + len, 0, st->scan.granule - len); /* nothing comes behind it */
	}
	return pack_cluster(p, copy_target_off(st, off), data);
}

/* What takes no part in the reservation: zero clusters and partial ones. */
static int co_write_cluster(void *arg, uint64_t off, uint8_t *data, uint64_t len)
{
	struct copy_state *st = arg;

	if (st->detect && mem_is_zero(data, len))
		return co_copy_zero(st, off, len);
	if (is_partial(st, off, len) && !ends_target(st, off, len))
		return co_copy_write(st, off, data, len);
	return 0;
}

static int co_read_data(struct copy_state *st, struct copy_worker *w)
{
	uint8_t *buf = w->buf;
	int r = 0;

	for (unsigned i = 0; i < w->unit.nsegs && !r; i++) {
		if (w->unit.seg[i].kind != COPY_DATA)
			continue;
		r = co_copy_read(st, w->unit.seg[i].off, buf, w->unit.seg[i].len);
		buf += w->unit.seg[i].len;
	}
	return r;
}

/* All of the unit that has to happen in turn. */
static int co_reserve_unit(struct packing *p, void **ticket)
{
	struct copy_state *st = p->st;
	struct copy_worker *w = p->w;
	int r = 0;

	for (unsigned i = 0; i < w->unit.nsegs && !r; i++)
		if (w->unit.seg[i].kind == COPY_ZERO)
			r = co_copy_zero(st, w->unit.seg[i].off, w->unit.seg[i].len);
	if (!r)
		r = each_cluster(st, w, co_write_cluster, st);
	if (r < 0 || !p->nitems)
		return r;
	r = st->ops->co_reserve(st->packer, w->items, p->nitems, ticket);
	return r < 0 ? copy_fail(st, r, st->c->dst, w->items[0].off) : r;
}

int co_copy_compress_unit(struct copy_state *st, unsigned member)
{
	struct copy_worker *w = &st->workers[member];
	struct packing p = {.st = st, .w = w, .out = w->packed};
	void *ticket = NULL;
	int r;

	r = co_read_data(st, w);
	if (!r) {
		p.encoder = encoder_of(st, member);
		if (!p.encoder)
			r = copy_fail(st, -ENOMEM, st->c->dst, w->unit.off);
	}
	if (!r)
		r = each_cluster(st, w, encode_cluster, &p);
	co_copy_order_wait(&st->order, w->unit.seq);
	if (!r && !copy_failed(st))
		r = co_reserve_unit(&p, &ticket);
	copy_order_pass(&st->order, w->unit.seq);
	if (r < 0 || !p.nitems || copy_failed(st)) {
		if (ticket)
			st->ops->abandon(st->packer, ticket);
		return r;
	}
	r = st->ops->co_store(st->packer, w->items, p.nitems, ticket);
	if (r < 0)
		return copy_fail(st, r, st->c->dst, w->items[0].off);
	for (unsigned i = 0; i < p.nitems; i++)
		__atomic_fetch_add(&st->c->bytes_written, w->items[i].len, __ATOMIC_RELAXED);
	return 0;
}
