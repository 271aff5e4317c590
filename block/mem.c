/* SPDX-License-Identifier: MIT */
/*
 * mem: a file in memory, for tests, the crash harness and scratch space.
 *
 * Content is an array of pointers to chunks of 4 KiB; NULL chunks are holes. Chunks are counted
 * references: a copy of a content shares them all, and a write to a shared chunk copies it first.
 * A spin lock guards the array for as long as one chunk is copied, so that many rings may use one
 * node.
 */
#include "block/mem.h"
#include "block/internal.h"
#include "base/co.h"

#define CHUNK      4096u
#define CHUNKS_MAX (1ULL << 28) /* 1 TiB of address space: 2 GiB of pointers */

struct chunk {
	uint32_t refs; /* atomic */
	/* Of the data, 0 for zero bytes only; kept, so that a copy of a content is hashed as fast
	 * as it differs. Valid when hashed is set (atomic: chunks are shared between threads). */
	bool hashed;
	uint64_t hash;
	char data[CHUNK];
};

struct mem_content {
	uint64_t size;
	uint64_t nchunks; /* entries in chunks */
	struct chunk **chunks;
};

struct mem_state {
	struct spin lock;
	struct mem_content *content;
};

/* --- content ------------------------------------------------------------------------------- */

static void chunk_put(struct chunk *k)
{
	if (k && __atomic_sub_fetch(&k->refs, 1, __ATOMIC_ACQ_REL) == 0)
		mem_free(k);
}

void mem_content_free(struct mem_content *c)
{
	if (!c)
		return;
	for (uint64_t i = 0; i < c->nchunks; i++)
		chunk_put(c->chunks[i]);
	mem_free(c->chunks);
	mem_free(c);
}

/* Room for the chunks of `size` bytes, growing by half to keep appending cheap. */
static int reserve(struct mem_content *c, uint64_t size)
{
	uint64_t need = div_up(size, CHUNK), room;
	struct chunk **p;

	if (need <= c->nchunks)
		return 0;
	if (need > CHUNKS_MAX)
		return -EFBIG;
	room = MAX(need, c->nchunks + c->nchunks / 2);
	p = mem_realloc(c->chunks, room * sizeof(struct chunk *));
	if (!p)
		return -ENOMEM;
	memset(p + c->nchunks, 0, (room - c->nchunks) * sizeof(struct chunk *));
	c->chunks = p;
	c->nchunks = room;
	return 0;
}

int mem_content_new(uint64_t size, struct mem_content **ret)
{
	struct mem_content *c = mem_zalloc(sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	r = reserve(c, size);
	if (r) {
		mem_content_free(c);
		return r;
	}
	c->size = size;
	*ret = c;
	return 0;
}

int mem_content_dup(const struct mem_content *c, struct mem_content **ret)
{
	struct mem_content *d;
	uint64_t n = div_up(c->size, CHUNK);
	int r = mem_content_new(c->size, &d);

	if (r)
		return r;
	for (uint64_t i = 0; i < n; i++) {
		d->chunks[i] = c->chunks[i];
		if (d->chunks[i])
			__atomic_fetch_add(&d->chunks[i]->refs, 1, __ATOMIC_RELAXED);
	}
	*ret = d;
	return 0;
}

uint64_t mem_content_size(const struct mem_content *c)
{
	return c->size;
}

static size_t in_chunk(uint64_t off, uint64_t left)
{
	return MIN(left, CHUNK - (off & (CHUNK - 1)));
}

void mem_content_read(const struct mem_content *c, uint64_t off, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		size_t part = in_chunk(off, len);
		const struct chunk *k = off / CHUNK < c->nchunks ? c->chunks[off / CHUNK] : NULL;

		/* Chunks beyond the size hold nothing: resize keeps that so. */
		if (k)
			memcpy(p, k->data + (off & (CHUNK - 1)), part);
		else
			memset(p, 0, part);
		p += part;
		off += part;
		len -= part;
	}
}

/* The chunk at off, ours alone. */
static int own_chunk(struct mem_content *c, uint64_t off, struct chunk **ret)
{
	struct chunk **slot = &c->chunks[off / CHUNK], *k = *slot;

	if (!k || __atomic_load_n(&k->refs, __ATOMIC_ACQUIRE) > 1) {
		struct chunk *fresh = mem_alloc(sizeof(*fresh));

		if (!fresh)
			return -ENOMEM;
		fresh->refs = 1;
		fresh->hashed = false;
		if (k)
			memcpy(fresh->data, k->data, CHUNK);
		else
			memset(fresh->data, 0, CHUNK);
		chunk_put(k);
		*slot = k = fresh;
	}
	k->hashed = false;
	*ret = k;
	return 0;
}

int mem_content_write(struct mem_content *c, uint64_t off, const void *buf, size_t len)
{
	const char *p = buf;
	int r = reserve(c, off + len);

	while (!r && len) {
		size_t part = in_chunk(off, len);
		struct chunk *k;

		r = own_chunk(c, off, &k);
		if (r)
			break;
		memcpy(k->data + (off & (CHUNK - 1)), p, part);
		p += part;
		off += part;
		len -= part;
		if (off > c->size)
			c->size = off;
	}
	return r;
}

int mem_content_zero(struct mem_content *c, uint64_t off, uint64_t len)
{
	uint64_t end = MIN(off + len, c->size);

	while (off < end) {
		size_t part = in_chunk(off, end - off);
		struct chunk **slot = &c->chunks[off / CHUNK];
		bool whole = part == CHUNK || (!(off & (CHUNK - 1)) && off + part == c->size);

		if (*slot && whole) {
			chunk_put(*slot);
			*slot = NULL;
		} else if (*slot) {
			struct chunk *k;
			int r = own_chunk(c, off, &k);

			if (r)
				return r;
			memset(k->data + (off & (CHUNK - 1)), 0, part);
		}
		off += part;
	}
	return 0;
}

int mem_content_resize(struct mem_content *c, uint64_t size)
{
	int r = size < c->size ? mem_content_zero(c, size, c->size - size) : reserve(c, size);

	if (!r)
		c->size = size;
	return r;
}

#define HASH_LANES 4

static uint64_t chunk_hash(struct chunk *k)
{
	uint64_t lane[HASH_LANES] = {0}, x = 0;

	if (__atomic_load_n(&k->hashed, __ATOMIC_ACQUIRE))
		return load_relaxed(&k->hash);
	for (size_t j = 0; j < CHUNK; j += 8 * HASH_LANES) {
		for (size_t l = 0; l < HASH_LANES; l++) {
			uint64_t w;

			memcpy(&w, k->data + j + 8 * l, 8);
			lane[l] = (lane[l] ^ w) * 0xff51afd7ed558ccdULL;
			lane[l] ^= lane[l] >> 32;
		}
	}
	for (size_t l = 0; l < HASH_LANES; l++)
		x = (x ^ lane[l]) * 0x9fb21c651e98df25ULL, x ^= x >> 29;
	store_relaxed(&k->hash, x);
	__atomic_store_n(&k->hashed, true, __ATOMIC_RELEASE);
	return x;
}

uint64_t mem_content_hash(const struct mem_content *c)
{
	uint64_t h = 0x9e3779b97f4a7c15ULL ^ c->size;

	for (uint64_t i = 0, n = div_up(c->size, CHUNK); i < n; i++) {
		uint64_t x = c->chunks[i] ? chunk_hash(c->chunks[i]) : 0;

		/* Zero bytes leave x at 0 and count as a hole. */
		if (x)
			h = (h ^ (x + i)) * 0xc4ceb9fe1a85ec53ULL, h ^= h >> 29;
	}
	return h;
}

/* --- the driver ---------------------------------------------------------------------------- */

static const struct conf_key mem_keys[] = {
	{"size", CONF_KEY_SIZE, NULL, 0, INT64_MAX, "size in bytes"},
	{"filename", CONF_KEY_STRING, NULL, 0, 0, "name for messages"},
	{NULL, 0, NULL, 0, 0, NULL},
};

static void mem_fill_caps(struct block_node *n)
{
	n->caps = (struct block_caps){
		.align = 1,
		.buf_align = 1,
		.zero_align = 1,
		.discard_align = 1,
		.zero_flags = BLOCK_IO_UNMAP,
		.zero_init = true,
		.grows = true,
	};
}

static int co_mem_open_node(struct block_node *n, struct conf *opts, struct error *err)
{
	struct mem_state *s = n->priv;
	const char *name;
	uint64_t size = 0;
	int r;

	if ((r = conf_get_u64(opts, mem_keys, "size", &size, err)) ||
		(r = conf_get_string(opts, mem_keys, "filename", &name, err)))
		return r;
	r = mem_content_new(size, &s->content);
	if (r)
		return error_set_errno(err, r, "Could not make a file of %llu bytes in memory",
			(unsigned long long)size);
	n->size = size;
	mem_fill_caps(n);
	return 0;
}

static int co_mem_close(struct block_node *n)
{
	struct mem_state *s = n->priv;

	mem_content_free(s->content);
	return 0;
}

int co_mem_open(struct mem_content *c, const struct block_open_opts *o, struct block_node **ret,
	struct error *err)
{
	struct block_open_opts own = *o;
	struct block_node *n;
	struct mem_state *s;
	int r;

	if (!own.perm) {
		own.perm = BLOCK_PERM_READ;
		if (own.flags & BLOCK_OPEN_RDWR)
			own.perm |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
		own.shared = BLOCK_PERM_ALL;
		own.flags |= BLOCK_OPEN_STORE;
	}
	r = co_block_open_on(&block_mem, NULL, NULL, &own, &n, err);
	if (r) {
		mem_content_free(c);
		return r;
	}
	s = n->priv;
	mem_content_free(s->content);
	s->content = c;
	n->size = c->size;
	*ret = n;
	return 0;
}

int mem_node_snapshot(struct block_node *n, struct mem_content **ret)
{
	struct mem_state *s = n->priv;
	int r;

	spin_lock(&s->lock);
	r = mem_content_dup(s->content, ret);
	spin_unlock(&s->lock);
	return r;
}

/* Moves a request's data chunk by chunk, each under the lock. */
static int mem_move(struct mem_state *s, struct block_io *io, bool write)
{
	uint64_t done = 0;
	int r = 0;

	while (!r && done < io->len) {
		struct iovec v;
		size_t covered;
		struct iov_slice rest = iov_cut(io->buf, done, io->len - done);
		size_t part;

		if (!iov_export(rest, &v, 1, &covered))
			break;
		part = in_chunk(io->off + done, covered);
		spin_lock(&s->lock);
		if (write)
			r = mem_content_write(s->content, io->off + done, v.iov_base, part);
		else
			mem_content_read(s->content, io->off + done, v.iov_base, part);
		spin_unlock(&s->lock);
		done += part;
	}
	return r;
}

static int co_mem_read(struct block_node *n, struct block_io *io)
{
	co_pause();
	return mem_move(n->priv, io, false);
}

static int co_mem_write(struct block_node *n, struct block_io *io)
{
	co_pause();
	return mem_move(n->priv, io, true);
}

static int co_mem_zero(struct block_node *n, struct block_io *io)
{
	struct mem_state *s = n->priv;
	int r = 0;

	co_pause();
	spin_lock(&s->lock);
	if (io->off + io->len > s->content->size)
		r = mem_content_resize(s->content, io->off + io->len);
	if (!r)
		r = mem_content_zero(s->content, io->off, io->len);
	spin_unlock(&s->lock);
	return r;
}

static int co_mem_discard(struct block_node *n, struct block_io *io)
{
	struct mem_state *s = n->priv;
	int r;

	co_pause();
	spin_lock(&s->lock);
	r = mem_content_zero(s->content, io->off, io->len);
	spin_unlock(&s->lock);
	return r;
}

static int co_mem_flush(struct block_node *n)
{
	co_pause();
	return 0;
}

static int co_mem_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	struct mem_state *s = n->priv;
	int ret;

	co_pause();
	spin_lock(&s->lock);
	ret = mem_content_resize(s->content, r->size);
	spin_unlock(&s->lock);
	return ret ? error_set_errno(err, ret, "Could not resize '%s'", n->filename) : 0;
}

static int co_mem_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	struct mem_state *s = n->priv;
	const struct mem_content *c = s->content;
	uint64_t end = off + len, at;
	bool data;

	spin_lock(&s->lock);
	data = off / CHUNK < c->nchunks && c->chunks[off / CHUNK];
	for (at = align_down(off, CHUNK) + CHUNK; at < end; at += CHUNK)
		if ((at / CHUNK < c->nchunks && c->chunks[at / CHUNK]) != data)
			break;
	spin_unlock(&s->lock);
	*ret = (struct block_extent){
		.len = MIN(at, end) - off,
		.flags = (data ? BLOCK_EXTENT_DATA : BLOCK_EXTENT_ZERO) | BLOCK_EXTENT_ALLOCATED |
			BLOCK_EXTENT_MAPPED,
		.host_off = off,
		.host = n,
	};
	return 0;
}

static int co_mem_actual_size(struct block_node *n, uint64_t *ret)
{
	struct mem_state *s = n->priv;
	uint64_t used = 0;

	spin_lock(&s->lock);
	for (uint64_t i = 0; i < s->content->nchunks; i++)
		used += s->content->chunks[i] ? CHUNK : 0;
	spin_unlock(&s->lock);
	*ret = used;
	return 0;
}

const struct block_driver block_mem = {
	.name = "mem",
	.kind = BLOCK_KIND_PROTOCOL,
	.node_size = sizeof(struct mem_state),
	.open_keys = mem_keys,
	.co_open = co_mem_open_node,
	.co_close = co_mem_close,
	.co_read = co_mem_read,
	.co_write = co_mem_write,
	.co_zero = co_mem_zero,
	.co_discard = co_mem_discard,
	.co_flush = co_mem_flush,
	.co_resize = co_mem_resize,
	.co_extent = co_mem_extent,
	.co_actual_size = co_mem_actual_size,
};
