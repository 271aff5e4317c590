/* SPDX-License-Identifier: MIT */
/*
 * Compressed writing: packs encoded clusters tightly into host clusters and links them.
 *
 * A batch of clusters goes through two steps. co_reserve lays it out: all its compressed clusters
 * lie byte to byte in one contiguous host range, so that they are one write; plain clusters (that
 * did not shrink) get whole host clusters. co_store writes the data and then links it (I5). A range
 * starts where the one before ended, rounded up to 512 bytes, and its last sector is padded: no
 * sector ever holds bytes of two batches, so that no write touches a sector with committed bytes of
 * another cluster. After a reopen a new host cluster is begun. Where refcounts are too narrow for
 * many clusters in one, every compressed cluster is a range of its own.
 *
 * Refcounts: a host cluster has one reference for every compressed cluster that touches it. The
 * first host cluster of a range may be shared with the batch before; its count is raised only while
 * it still is that cluster (co_q2_refcount_join), else it was freed meanwhile and a new range is
 * begun. The width of the refcounts bounds how many may share a cluster.
 *
 * A ticket holds a request token, so that structural operations wait until the batch is linked.
 */
#include "base/mem.h"
#include "base/worker.h"
#include "qcow2/qcow2.h"

#define PACK_ALIGN      512u
#define MAX_RANGE_ITEMS 512u /* of one range, and segments of one write */

struct ticket {
	unsigned token, n;
	uint64_t entry[]; /* by item; 0: zero cluster, or not reserved yet */
};

/* --- codec states -------------------------------------------------------------------------- */

static void *new_state(struct block_node *n)
{
	struct q2_image *img = q2_image(n);

	return q2_encoder_new(
		img->h.compression_type, img->compression_level, (uint32_t)img->cluster_size);
}

static void free_state(void *state)
{
	q2_encoder_free(state);
}

static int encode(struct block_node *n, void *state, const void *src, void *dst, uint32_t *ret_len)
{
	return q2_encode(state, src, dst, ret_len);
}

/* --- reservation --------------------------------------------------------------------------- */

/* How many of the compressed items touch each host cluster of a range that begins at `start`?
 * touches[] has room for range_clusters() items. */
static void count_touches(const struct q2_image *img, uint64_t start,
	const struct block_packed *items, unsigned n, uint32_t *touches)
{
	uint64_t first = start >> img->cluster_bits, at = start;

	for (unsigned i = 0; i < n; i++) {
		if (!items[i].compressed || items[i].zero)
			continue;
		for (uint64_t c = at >> img->cluster_bits;
			c <= (at + items[i].len - 1) >> img->cluster_bits; c++)
			touches[c - first]++;
		at += items[i].len;
	}
}

static uint64_t range_clusters(const struct q2_image *img, uint64_t start, uint64_t bytes)
{
	return ((start + bytes - 1) >> img->cluster_bits) - (start >> img->cluster_bits) + 1;
}

/* Raises the counts of freshly allocated clusters (which have 1) to `touches`. */
static int co_raise_new(struct q2_image *img, uint64_t off, const uint32_t *touches, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		int r = 0;

		if (touches[i] > 1)
			r = co_q2_refcount_raise(
				img, off + (i << img->cluster_bits), touches[i] - 1);
		if (r < 0) {
			while (i-- > 0)
				for (uint32_t k = 1; k < touches[i]; k++)
					q2_free_clusters(img, off + (i << img->cluster_bits), 1);
			return r;
		}
	}
	return 0;
}

/* Goes on in the host cluster where the last range ended. 0: done; 1: not possible. */
static int co_reserve_shared(
	struct q2_image *img, uint64_t start, uint64_t n, const uint32_t *touches)
{
	uint64_t first = align_down(start, img->cluster_size), got = 0;
	int r = co_q2_refcount_join(img, first, touches[0]);

	if (r == -ENOENT || r == -EFBIG)
		return 1;
	if (r < 0 || n == 1)
		return r;
	r = co_q2_alloc_at(img, first + img->cluster_size, n - 1, &got);
	if (r == 0 && got == n - 1)
		r = co_raise_new(img, first + img->cluster_size, touches + 1, got);
	else if (r == 0)
		r = 1;
	if (r != 0) {
		if (got)
			q2_free_clusters(img, first + img->cluster_size, got);
		for (uint32_t k = 0; k < touches[0]; k++)
			q2_free_clusters(img, first, 1);
	}
	return r == -EFBIG ? 1 : r;
}

/* Finds room for the compressed items [0, n) of `bytes` in all. Under compress_mutex. */
static int co_reserve_range(struct q2_image *img, const struct block_packed *items, unsigned n,
	uint64_t bytes, uint64_t *ret_start)
{
	uint64_t max = range_clusters(img, img->cluster_size - 1, bytes);
	_cleanup_free_ uint32_t *touches = mem_calloc(max, sizeof(*touches));
	uint64_t next = align_up(img->compressed_next, PACK_ALIGN), count;
	int r = 1;

	if (!touches)
		return -ENOMEM;
	if (next & (img->cluster_size - 1)) {
		count_touches(img, next, items, n, touches);
		r = co_reserve_shared(img, next, range_clusters(img, next, bytes), touches);
	}
	if (r == 1) {
		memset(touches, 0, max * sizeof(*touches));
		count = range_clusters(img, 0, bytes);
		r = co_q2_alloc(img, count, &next);
		if (r < 0)
			return r;
		count_touches(img, next, items, n, touches);
		/* A descriptor has fewer bits for the offset than an entry. */
		if (next + bytes > 1ULL << (62 - (img->cluster_bits - 8)))
			r = -EFBIG;
		else
			r = co_raise_new(img, next, touches, count);
		if (r < 0)
			q2_free_clusters(img, next, count);
	}
	if (r < 0)
		return r;
	img->compressed_next = next + bytes;
	*ret_start = next;
	return 0;
}

static void release(struct q2_image *img, uint64_t *entry, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (entry[i])
			q2_free_entry(img, entry[i]);
	memset(entry, 0, n * sizeof(*entry));
}

/* Plain clusters side by side, each with a reference of its own. */
static int co_reserve_plain(
	struct q2_image *img, const struct block_packed *items, unsigned n, uint64_t *entry)
{
	uint64_t plain = 0, off = 0;
	int r;

	for (unsigned i = 0; i < n; i++)
		plain += !items[i].zero && !items[i].compressed;
	if (!plain)
		return 0;
	r = co_q2_alloc(img, plain, &off);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < n; i++) {
		if (items[i].zero || items[i].compressed)
			continue;
		entry[i] = off | Q2_COPIED;
		off += img->cluster_size;
	}
	return 0;
}

static int co_reserve_compressed(
	struct q2_image *img, const struct block_packed *items, unsigned n, uint64_t *entry)
{
	uint64_t bytes = 0, at = 0;
	int r;

	for (unsigned i = 0; i < n; i++)
		if (!items[i].zero && items[i].compressed)
			bytes += items[i].len;
	if (!bytes)
		return 0;
	r = co_reserve_range(img, items, n, bytes, &at);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < n; i++) {
		if (items[i].zero || !items[i].compressed)
			continue;
		entry[i] = q2_compressed_entry(at, items[i].len, img->cluster_bits);
		at += items[i].len;
	}
	return 0;
}

/* The L2 tables that linking will need, now and in guest order: where they lie must not depend on
 * which batch is stored first, or the bytes of the image would. */
static int co_reserve_tables(struct q2_image *img, const struct block_packed *items, unsigned n)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < n; i++)
		if (!items[i].zero || block_backing(img->node))
			r = co_q2_l2_table(img, items[i].off);
	return r;
}

static int co_reserve_items(
	struct q2_image *img, const struct block_packed *items, unsigned n, uint64_t *entry)
{
	unsigned step = img->max_refcount >= UINT16_MAX ? MAX_RANGE_ITEMS : 1;
	int r = co_reserve_tables(img, items, n);

	if (r == 0)
		r = co_reserve_plain(img, items, n, entry);
	for (unsigned i = 0; r == 0 && i < n; i += step)
		r = co_reserve_compressed(img, items + i, MIN(step, n - i), entry + i);
	if (r < 0)
		release(img, entry, n);
	return r;
}

static int co_reserve(
	struct block_node *n, const struct block_packed *items, unsigned nitems, void **ret)
{
	struct q2_image *img = q2_image(n);
	struct ticket *t = mem_zalloc(sizeof(*t) + nitems * sizeof(t->entry[0]));
	int r;

	if (!t)
		return -ENOMEM;
	r = co_q2_before_write(img);
	if (r < 0) {
		mem_free(t);
		return r;
	}
	t->n = nitems;
	t->token = co_q2_request_enter(img);
	co_mutex_lock(&img->compress_mutex);
	r = co_reserve_items(img, items, nitems, t->entry);
	co_mutex_unlock(&img->compress_mutex);
	if (r < 0) {
		q2_request_leave(img, t->token);
		mem_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

/* --- storing ------------------------------------------------------------------------------- */

/* Host offset of what an entry made above refers to. */
static uint64_t entry_offset(const struct q2_image *img, uint64_t entry)
{
	return entry & Q2_COMPRESSED ? q2_compressed_offset(entry, img->cluster_bits)
				     : entry & Q2_OFFSET_MASK;
}

static uint32_t item_bytes(const struct q2_image *img, const struct block_packed *item)
{
	return item->compressed ? item->len : (uint32_t)img->cluster_size;
}

/* Writes the items from i on that lie one behind the other on the host; *end is behind them. */
static int co_write_run(struct q2_image *img, const struct block_packed *items, unsigned n,
	const uint64_t *entry, unsigned i, struct iovec *iov, unsigned *end)
{
	static const uint8_t padding[PACK_ALIGN];
	bool compressed = items[i].compressed;
	uint64_t off = entry_offset(img, entry[i]), len = 0;
	unsigned niov = 0;

	for (; i < n; i++) {
		if (items[i].zero)
			continue;
		if (items[i].compressed != compressed || entry_offset(img, entry[i]) != off + len)
			break;
		iov[niov].iov_base = (void *)items[i].data;
		iov[niov++].iov_len = item_bytes(img, &items[i]);
		len += item_bytes(img, &items[i]);
	}
	*end = i;
	if (len & (PACK_ALIGN - 1)) {
		iov[niov].iov_base = (void *)padding;
		iov[niov++].iov_len = PACK_ALIGN - (len & (PACK_ALIGN - 1));
		len = align_up(len, PACK_ALIGN);
	}
	return co_block_write(
		img->file, off, (struct iov_slice){iov, niov, 0, len}, BLOCK_IO_FRESH);
}

/* Compressed items first, then plain ones: each kind lies in runs of its own. */
static int co_write_data(
	struct q2_image *img, const struct block_packed *items, unsigned n, const uint64_t *entry)
{
	_cleanup_free_ struct iovec *iov = mem_calloc(MAX_RANGE_ITEMS + 1, sizeof(*iov));
	_cleanup_free_ struct block_packed *kind = mem_calloc(n, sizeof(*kind));
	int r = 0;

	if (!iov || !kind)
		return -ENOMEM;
	for (int compressed = 0; compressed <= 1; compressed++) {
		memcpy(kind, items, n * sizeof(*kind));
		for (unsigned i = 0; i < n; i++)
			kind[i].zero |= kind[i].compressed != compressed;
		for (unsigned i = 0; r == 0 && i < n;) {
			if (kind[i].zero)
				i++;
			else
				r = co_write_run(img, kind, n, entry, i, iov, &i);
		}
	}
	return r;
}

/* Links what was written (I5: after the data). */
static int co_link_items(
	struct q2_image *img, const struct block_packed *items, unsigned n, const uint64_t *entry)
{
	_cleanup_free_ uint64_t *off = mem_calloc(n, 2 * sizeof(*off));
	uint64_t *linked;
	unsigned count = 0;

	if (!off)
		return -ENOMEM;
	linked = off + n;
	for (unsigned i = 0; i < n; i++) {
		if (items[i].zero)
			continue;
		off[count] = items[i].off;
		linked[count++] = entry[i];
	}
	return count ? co_q2_link(img, off, linked, count) : 0;
}

static int co_zero_items(struct block_node *node, const struct block_packed *items, unsigned n)
{
	uint64_t cluster = q2_image(node)->cluster_size;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < n; i++) {
		struct block_io io = {.off = items[i].off, .flags = BLOCK_IO_UNMAP};

		if (!items[i].zero)
			continue;
		io.len = MIN(cluster, node->size - io.off);
		r = co_q2_zero(node, &io);
	}
	return r;
}

/* When linking fails part of the way, what was linked is not known: the rest stays as a leak. */
static int co_store(
	struct block_node *n, const struct block_packed *items, unsigned nitems, void *ticket)
{
	struct q2_image *img = q2_image(n);
	struct ticket *t = ticket;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < nitems; i += MAX_RANGE_ITEMS)
		r = co_write_data(img, items + i, MIN(MAX_RANGE_ITEMS, nitems - i), t->entry + i);
	if (r == 0)
		r = co_link_items(img, items, nitems, t->entry);
	else
		release(img, t->entry, nitems);
	q2_request_leave(img, t->token);
	mem_free(t);
	/* Requests of their own: inside the token a waiting quiesce would block them. */
	return r < 0 ? r : co_zero_items(n, items, nitems);
}

static void abandon(struct block_node *n, void *ticket)
{
	struct q2_image *img = q2_image(n);
	struct ticket *t = ticket;

	release(img, t->entry, t->n);
	q2_request_leave(img, t->token);
	mem_free(t);
}

const struct block_compress_ops q2_compress_ops = {
	.encode = encode,
	.new_state = new_state,
	.free_state = free_state,
	.co_reserve = co_reserve,
	.co_store = co_store,
	.abandon = abandon,
};

/* --- guest writes with BLOCK_IO_COMPRESSED -------------------------------------------------- */

#define WRITE_BATCH 16u /* clusters encoded in one go */

struct encode_job {
	struct q2_image *img;
	struct block_packed *items;
	unsigned n;
	const uint8_t *src;
	uint8_t *dst;
};

/* On a worker: every cluster of the batch. */
static int encode_batch(void *arg)
{
	struct encode_job *j = arg;
	uint32_t size = (uint32_t)j->img->cluster_size;
	struct q2_encoder *e = q2_encoder_new(
		j->img->h.compression_type, j->img->compression_level, size);
	int r = e ? 0 : -ENOMEM;

	for (unsigned i = 0; r >= 0 && i < j->n; i++) {
		const uint8_t *src = j->src + (size_t)i * size;
		struct block_packed *it = &j->items[i];

		it->zero = mem_is_zero(src, size);
		if (it->zero)
			continue;
		it->data = j->dst + (size_t)i * size;
		r = q2_encode(e, src, (void *)it->data, &it->len);
		it->compressed = r == 0;
		if (r == 1) {
			it->data = src;
			it->len = size;
		}
	}
	q2_encoder_free(e);
	return r < 0 ? r : 0;
}

static int co_write_batch(struct block_node *n, uint64_t off, struct iov_slice data, uint8_t *buf)
{
	struct q2_image *img = q2_image(n);
	struct block_packed items[WRITE_BATCH] = {0};
	struct encode_job j = {.img = img, .items = items, .src = buf};
	void *ticket;
	int r;

	j.n = (unsigned)div_up(data.len, img->cluster_size);
	j.dst = buf + WRITE_BATCH * img->cluster_size;
	iov_copy_from(buf, data);
	/* Only the last cluster of an image may be short. */
	memset(buf + data.len, 0, j.n * img->cluster_size - data.len);
	for (unsigned i = 0; i < j.n; i++)
		items[i].off = off + i * img->cluster_size;
	r = co_offload(encode_batch, &j);
	if (r == 0)
		r = co_reserve(n, items, j.n, &ticket);
	return r < 0 ? r : co_store(n, items, j.n, ticket);
}

int co_q2_write_compressed(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	uint64_t batch = WRITE_BATCH * img->cluster_size;
	_cleanup_free_ uint8_t *buf = NULL;

	if (q2_cluster_offset(img, io->off) ||
		(q2_cluster_offset(img, io->len) && io->off + io->len != n->size))
		return -EINVAL;
	buf = block_buffer_alloc(img->file, 2 * batch);
	if (!buf)
		return -ENOMEM;
	for (uint64_t done = 0; done < io->len;) {
		uint64_t len = MIN(batch, io->len - done);
		int r = co_write_batch(n, io->off + done, iov_cut(io->buf, done, len), buf);

		if (r < 0)
			return r;
		done += len;
	}
	return 0;
}
