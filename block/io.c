/* SPDX-License-Identifier: MIT */
/*
 * The guarded entry: every request on every node passes here, so that drivers hold no defensive
 * code.
 *
 * Theory of Operation
 *
 * A request is counted in flight (inflight.c), checked against the node's range and rights, and
 * handed to the driver as it is when it fits the driver's alignment and size rules; align.c brings
 * the others into shape. A NULL method passes through to the file child in a filter.
 *
 * What a driver does not offer is made up here: zeroes are written as data, FUA is a flush behind
 * the write, a writethrough node has FUA on everything that changes it, writes of zero bytes become
 * zero requests under detect-zeroes, and discards shrink to whole units.
 *
 * Invariants
 * G1  A driver sees requests inside its node only (beyond the end only as growth of a store, by an
 *     opener with the right to resize), never empty, aligned to its caps, with flags it knows.
 * G2  `size` changes only while the node is drained, but for growth of a store, which only raises
 *     it, after the write that caused it.
 * G3  A flush that reports success covers every write that had completed when it began.
 * G4  Once a flush of a store has failed, none succeeds again (keeps I9).
 */
#include "block/internal.h"

static const char zero_page[ZERO_SPAN] __attribute__((aligned(4096)));

struct iov_slice block_zero_slice(struct iovec iov[ZERO_IOV], uint64_t len)
{
	uint32_t n = 0;
	uint64_t left = len;

	while (left) {
		uint64_t part = MIN(left, ZERO_SPAN);

		iov[n++] = (struct iovec){(void *)(uintptr_t)zero_page, part};
		left -= part;
	}
	return (struct iov_slice){iov, n, 0, len};
}

uint64_t block_size(const struct block_node *n)
{
	return load_relaxed(&n->size);
}

void block_grow(struct block_node *n, uint64_t end)
{
	uint64_t size = load_relaxed(&n->size);

	while (size < end &&
		!__atomic_compare_exchange_n(
			&n->size, &size, end, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
		;
}

#define STAT_ADD(n, what, v)                                                                       \
	__atomic_fetch_add(&inflight_shard((n)->inflight)->stats.what, (v), __ATOMIC_RELAXED)

void block_node_stats(struct block_node *n, struct block_stats *ret)
{
	uint64_t *sum = (uint64_t *)ret;

	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < INFLIGHT_SHARDS; i++) {
		const uint64_t *part = (const uint64_t *)&n->inflight->shards[i].stats;

		for (size_t k = 0; k < sizeof(*ret) / sizeof(*sum); k++)
			sum[k] += load_relaxed(&part[k]);
	}
}

static struct block_node *pass_to(const struct block_node *n)
{
	return n->drv->kind == BLOCK_KIND_FILTER ? n->child[BLOCK_ROLE_FILE] : NULL;
}

static bool writethrough(const struct block_node *n)
{
	return n->opts.cache == BLOCK_CACHE_WRITETHROUGH || n->opts.cache == BLOCK_CACHE_DIRECTSYNC;
}

/* --- reading ------------------------------------------------------------------------------- */

static int co_read_checked(struct block_node *n, struct block_io *io)
{
	uint64_t size = load_relaxed(&n->size);
	struct iov_slice whole = io->buf;

	if (unlikely(!range_inside(io->off, io->len, size))) {
		if (!(n->opts.flags & BLOCK_OPEN_STORE) ||
			!range_inside(io->off, io->len, BLOCK_SIZE_MAX))
			return -EIO;
		io->len = io->off < size ? size - io->off : 0;
		if (!(io->flags & BLOCK_IO_CACHE))
			iov_fill(iov_cut(whole, io->len, whole.len - io->len), 0);
		if (!io->len)
			return 0;
		io->buf = iov_cut(whole, 0, io->len);
	}
	if (unlikely(io->flags & BLOCK_IO_CACHE)) {
		/* Prefetching is a hint, and no driver here has a use for it. */
		return 0;
	}
	if (align_fits(n, io)) {
		if (likely(n->drv->co_read))
			return n->drv->co_read(n, io);
		if (pass_to(n))
			return co_block_read(pass_to(n), io->off, io->buf, io->flags);
		return -ENOTSUP;
	}
	return co_align_read(n, io);
}

int co_block_read(struct block_node *n, uint64_t off, struct iov_slice buf, uint32_t flags)
{
	struct block_io io = {off, buf.len, buf, flags};
	int r;

	if (unlikely(!buf.len))
		return 0;
	co_inflight_begin_read(n->inflight);
	r = co_read_checked(n, &io);
	inflight_end_read(n->inflight);
	STAT_ADD(n, reads, 1);
	STAT_ADD(n, read_bytes, buf.len);
	return r;
}

int co_block_pread(struct block_node *n, uint64_t off, void *buf, size_t len)
{
	struct iovec iov;

	return co_block_read(n, off, iov_buf(&iov, buf, len), 0);
}

/* --- writing ------------------------------------------------------------------------------- */

/* May [off, off+len) be changed by this opener? */
static int check_change(const struct block_node *n, uint64_t off, uint64_t len)
{
	uint64_t size = load_relaxed(&n->size);

	if (unlikely(!(n->opts.flags & BLOCK_OPEN_RDWR)))
		return -EROFS;
	if (likely(range_inside(off, len, size)))
		return 0;
	if (!range_inside(off, len, BLOCK_SIZE_MAX) || !(n->opts.flags & BLOCK_OPEN_STORE))
		return -EIO;
	if (!n->caps.grows)
		return -ENOSPC;
	/* Without the right to resize, only up to the end of the sector that a file of odd length
	 * is rounded up to. */
	if (!(n->opts.perm & BLOCK_PERM_RESIZE) && off + len > align_up(size, 512))
		return -EIO;
	return 0;
}

/* What every change has behind it: size, bitmaps, accounting. */
static void changed(struct block_node *n, uint64_t off, uint64_t len)
{
	if (unlikely(off + len > load_relaxed(&n->size)))
		block_grow(n, off + len);
	if (unlikely(n->inflight->dirty))
		block_dirty_note(n, off, len);
}

static int co_pass_write(struct block_node *n, struct block_io *io)
{
	if (likely(n->drv->co_write))
		return n->drv->co_write(n, io);
	if (pass_to(n))
		return co_block_write(pass_to(n), io->off, io->buf, io->flags);
	return -ENOTSUP;
}

/* A ragged end may go through the host's page cache beside direct I/O: whole pages are kept for it.
 */
#define SERIAL_ALIGN 4096u

static int co_write_once(struct block_node *n, const struct block_io *req)
{
	struct block_inflight *f = n->inflight;
	struct block_io io = *req;
	struct block_tracked t;
	int r;

	if (likely(align_fits(n, &io))) {
		co_inflight_begin_write(f, &t, io.off, io.len);
		r = check_change(n, io.off, io.len);
		if (!r)
			r = co_pass_write(n, &io);
	} else {
		uint64_t unit = MAX(n->caps.align, SERIAL_ALIGN);
		uint64_t start = align_down(io.off, unit);

		/* The ends of blocks are read, changed and written: nobody may write between. */
		if ((io.off | io.len) & (n->caps.align - 1))
			co_inflight_serialize(
				f, &t, start, align_up(io.off + io.len, unit) - start, false);
		else
			co_inflight_begin_write(f, &t, io.off, io.len);
		r = check_change(n, io.off, io.len);
		if (!r)
			r = co_align_write(n, &io);
	}
	if (likely(!r))
		changed(n, req->off, req->len);
	else if (f->dirty) /* some of it may have arrived */
		block_dirty_note(n, req->off, req->len);
	inflight_end_write(f, &t);
	return r;
}

/* Compressed data goes to whole clusters, the last one of the node excepted. */
static int check_compressed(const struct block_node *n, uint64_t off, uint64_t len)
{
	uint64_t cluster = n->caps.cluster;

	if (!(n->caps.write_flags & BLOCK_IO_COMPRESSED))
		return -ENOTSUP;
	if (!is_pow2(cluster) || !is_aligned(off, cluster))
		return -EINVAL;
	return is_aligned(len, cluster) || off + len == load_relaxed(&n->size) ? 0 : -EINVAL;
}

int co_block_write(struct block_node *n, uint64_t off, struct iov_slice buf, uint32_t flags)
{
	struct block_io io = {off, buf.len, buf, flags & n->caps.write_flags};
	bool flush = false;
	int r;

	if (unlikely(!buf.len))
		return n->opts.flags & BLOCK_OPEN_RDWR ? 0 : -EROFS;
	if (unlikely(buf.len > BLOCK_SIZE_MAX || off > BLOCK_SIZE_MAX - buf.len))
		return -EIO;
	if (unlikely(flags & BLOCK_IO_COMPRESSED)) {
		r = check_compressed(n, off, buf.len);
		if (r)
			return r;
	} else if (unlikely(n->opts.detect_zeroes) && iov_is_zero(buf)) {
		return co_block_zero(n, off, buf.len,
			(flags & (BLOCK_IO_FUA | BLOCK_IO_UNCHANGED)) |
				(n->opts.detect_zeroes_unmap ? BLOCK_IO_UNMAP : 0));
	}
	if (unlikely((flags & BLOCK_IO_FUA) || writethrough(n))) {
		io.flags |= n->caps.write_flags & BLOCK_IO_FUA;
		flush = !(io.flags & BLOCK_IO_FUA);
	}
	do
		r = co_write_once(n, &io);
	while (unlikely(r) && !check_change(n, off, buf.len) && co_werror_again(n, r));
	STAT_ADD(n, writes, 1);
	STAT_ADD(n, write_bytes, buf.len);
	if (unlikely(flush) && !r)
		r = co_block_flush(n);
	return r;
}

int co_block_pwrite(struct block_node *n, uint64_t off, const void *buf, size_t len)
{
	struct iovec iov;

	return co_block_write(n, off, iov_buf(&iov, (void *)(uintptr_t)buf, len), 0);
}

/* --- zeroes and discards ------------------------------------------------------------------- */

/* Writes zero bytes; FUA is the caller's. */
static int co_zero_by_write(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags)
{
	struct iovec iov[ZERO_IOV];

	while (len) {
		uint64_t part = MIN(len, ZERO_IOV * ZERO_SPAN - (off & (ZERO_SPAN - 1)));
		struct block_io io = {off, part, block_zero_slice(iov, part),
			flags & n->caps.write_flags & BLOCK_IO_UNCHANGED};
		int r = co_write_once(n, &io);

		if (r)
			return r;
		off += part;
		len -= part;
	}
	return 0;
}

/* One zero request that fits the driver's zero_align. */
static int co_zero_once(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags)
{
	struct block_io io = {off, len, {NULL, 0, 0, 0}, flags & n->caps.zero_flags};
	struct block_tracked t;
	int r;

	co_inflight_begin_write(n->inflight, &t, off, len);
	r = check_change(n, off, len);
	if (!r) {
		if (n->drv->co_zero)
			r = n->drv->co_zero(n, &io);
		else if (pass_to(n))
			r = co_block_zero(pass_to(n), off, len, flags | BLOCK_IO_NO_FALLBACK);
		else
			r = -ENOTSUP;
	}
	if (!r)
		changed(n, off, len);
	else if (r != -ENOTSUP && n->inflight->dirty)
		block_dirty_note(n, off, len);
	inflight_end_write(n->inflight, &t);
	return r;
}

/* The middle that is made of whole units goes to the driver, the ragged ends are written. */
static int co_zero_split(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags)
{
	uint64_t unit = MAX(n->caps.zero_align, n->caps.align);
	uint64_t end = off + len, mid = align_up(off, unit), mid_end = align_down(end, unit);
	int r;

	/* The node's own last unit counts as whole. */
	if (end >= load_relaxed(&n->size) && end > mid)
		mid_end = end;
	if (mid >= mid_end) {
		if (flags & BLOCK_IO_NO_FALLBACK)
			return -ENOTSUP;
		return co_zero_by_write(n, off, len, flags);
	}
	if ((flags & BLOCK_IO_NO_FALLBACK) && (mid != off || mid_end != end))
		return -ENOTSUP;
	if (mid > off) {
		r = co_zero_by_write(n, off, mid - off, flags);
		if (r)
			return r;
	}
	r = co_zero_once(n, mid, mid_end - mid, flags);
	if (r == -ENOTSUP && !(flags & BLOCK_IO_NO_FALLBACK))
		r = co_zero_by_write(n, mid, mid_end - mid, flags);
	if (!r && end > mid_end)
		r = co_zero_by_write(n, mid_end, end - mid_end, flags);
	return r;
}

int co_block_zero(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags)
{
	bool fua = (flags & BLOCK_IO_FUA) || writethrough(n);
	int r;

	if (!(n->opts.flags & BLOCK_OPEN_RDWR))
		return -EROFS;
	if (!len)
		return 0;
	if (!range_inside(off, len, BLOCK_SIZE_MAX))
		return -EIO;
	if (!(n->opts.flags & BLOCK_OPEN_UNMAP))
		flags &= ~(uint32_t)BLOCK_IO_UNMAP;
	/* One flush behind all the pieces is as good as one behind each, and cheaper. */
	flags &= ~(uint32_t)BLOCK_IO_FUA;
	do
		r = co_zero_split(n, off, len, flags);
	while (unlikely(r) && !check_change(n, off, len) && co_werror_again(n, r));
	STAT_ADD(n, zeroes, 1);
	if (!r && fua)
		r = co_block_flush(n);
	return r;
}

int co_block_discard(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags)
{
	uint64_t unit = MAX(n->caps.discard_align, n->caps.align);
	uint64_t end, size = load_relaxed(&n->size);
	struct block_tracked t;
	int r;

	if (!(n->opts.flags & BLOCK_OPEN_RDWR))
		return -EROFS;
	if (!range_inside(off, len, size)) {
		if (!(n->opts.flags & BLOCK_OPEN_STORE) || !range_inside(off, len, BLOCK_SIZE_MAX))
			return -EIO;
		/* The last cluster of a format may reach beyond its file. */
		len = off < size ? size - off : 0;
	}
	if (!(n->opts.flags & BLOCK_OPEN_UNMAP) || !len)
		return 0;
	end = off + len;
	off = align_up(off, unit);
	if (end != size)
		end = align_down(end, unit);
	if (off >= end)
		return 0;

	co_inflight_begin_write(n->inflight, &t, off, end - off);
	/* The node may have grown since: then its old end is no end of a unit any more. */
	if (unlikely(end != load_relaxed(&n->size)))
		end = align_down(end, unit);
	r = off < end ? check_change(n, off, end - off) : -ENOTSUP;
	if (!r) {
		struct block_io io = {off, end - off, {NULL, 0, 0, 0}, 0};

		if (n->drv->co_discard)
			r = n->drv->co_discard(n, &io);
		else if (pass_to(n))
			r = co_block_discard(pass_to(n), off, end - off, 0);
		else
			r = -ENOTSUP;
	}
	if (n->inflight->dirty && r != -ENOTSUP)
		block_dirty_note(n, off, end - off);
	inflight_end_write(n->inflight, &t);
	STAT_ADD(n, discards, 1);
	if (!r && writethrough(n))
		r = co_block_flush(n);
	/* A discard is a wish: a store that cannot keeps the data. */
	return r == -ENOTSUP ? 0 : r;
}

/* --- flush --------------------------------------------------------------------------------- */

static int co_flush_down(struct block_node *n)
{
	static const enum block_role below[] = {BLOCK_ROLE_DATA, BLOCK_ROLE_FILE};
	int r = n->drv->co_flush ? n->drv->co_flush(n) : 0;

	for (size_t i = 0; i < ARRAY_SIZE(below); i++) {
		struct block_node *c = n->child[below[i]];

		if (c && !r)
			r = co_block_flush(c);
	}
	return r;
}

/* One flush of a store at a time. A kernel tells a failed write-back to one of several flushes that
 * wait for it, so a second one could report success over the first one's loss (I9); and most of
 * those who waited for their turn find that the one before covered them. */
static int co_flush_store(struct block_node *n)
{
	struct block_inflight *f = n->inflight;
	uint64_t gen = inflight_write_gen(f), now;
	int r = 0;

	co_mutex_lock(&f->flush_mutex);
	if (load_relaxed(&n->broken_flush)) {
		r = -EIO;
	} else if (!gen || f->flushed_gen < gen) {
		now = inflight_write_gen(f);
		r = co_flush_down(n);
		if (r)
			store_relaxed(&n->broken_flush, true);
		else
			f->flushed_gen = now;
	}
	co_mutex_unlock(&f->flush_mutex);
	return r;
}

int co_block_flush(struct block_node *n)
{
	bool store = n->drv->kind == BLOCK_KIND_PROTOCOL;
	int r;

	if (!(n->opts.flags & BLOCK_OPEN_RDWR))
		return 0;
	if (store && n->opts.cache == BLOCK_CACHE_UNSAFE)
		return 0;
	co_inflight_begin_read(n->inflight);
	STAT_ADD(n, flushes, 1);
	if (store)
		r = co_flush_store(n);
	else
		r = load_relaxed(&n->broken_flush) ? -EIO : co_flush_down(n);
	inflight_end_read(n->inflight);
	return r;
}

/* --- the rest ------------------------------------------------------------------------------ */

static int co_copy_counted(struct block_node *src, uint64_t src_off, struct block_node *dst,
	uint64_t dst_off, uint64_t len)
{
	struct block_tracked t;
	int r;

	/* Waiting for one node while being counted in the other would hold up who drains both. */
	for (;;) {
		co_inflight_begin_write(dst->inflight, &t, dst_off, len);
		if (likely(inflight_try_read(src->inflight)))
			break;
		inflight_end_write(dst->inflight, &t);
		co_inflight_begin_read(src->inflight);
		inflight_end_read(src->inflight);
	}
	r = range_inside(src_off, len, load_relaxed(&src->size)) ? 0 : -EIO;
	if (!r)
		r = check_change(dst, dst_off, len);
	if (!r)
		r = src->drv->co_copy(src, src_off, dst, dst_off, len);
	if (!r)
		changed(dst, dst_off, len);
	else if (dst->inflight->dirty)
		block_dirty_note(dst, dst_off, len);
	inflight_end_write(dst->inflight, &t);
	inflight_end_read(src->inflight);
	return r;
}

int co_block_copy_range(struct block_node *src, uint64_t src_off, struct block_node *dst,
	uint64_t dst_off, uint64_t len)
{
	int r;

	if (!(dst->opts.flags & BLOCK_OPEN_RDWR))
		return -EROFS;
	if (!len)
		return 0;
	if (!src->drv->co_copy || src->drv->co_copy != dst->drv->co_copy)
		return -ENOTSUP;
	if ((src_off | len) & (src->caps.align - 1) || (dst_off | len) & (dst->caps.align - 1))
		return -ENOTSUP;
	r = co_copy_counted(src, src_off, dst, dst_off, len);
	if (r)
		return r;
	STAT_ADD(src, reads, 1);
	STAT_ADD(src, read_bytes, len);
	STAT_ADD(dst, writes, 1);
	STAT_ADD(dst, write_bytes, len);
	return writethrough(dst) ? co_block_flush(dst) : 0;
}

int co_block_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	struct block_node *below = pass_to(n);
	uint64_t old;
	int ret;

	if (!(n->opts.flags & BLOCK_OPEN_RDWR))
		return error_set(err, -EROFS, "'%s' is opened read-only", n->filename);
	if (r->size > BLOCK_SIZE_MAX)
		return error_set(err, -EFBIG, "'%s' cannot be larger than %llu bytes", n->filename,
			(unsigned long long)BLOCK_SIZE_MAX);
	co_block_drain_begin(n);
	old = load_relaxed(&n->size);
	if (r->size < old && !r->shrink)
		ret = error_set(err, -EINVAL,
			"Shrinking '%s' would lose the data beyond the new end; allow it "
			"explicitly",
			n->filename);
	else if (n->drv->co_resize)
		ret = n->drv->co_resize(n, r, err);
	else if (below)
		ret = co_block_resize(below, r, err);
	else
		ret = error_set(
			err, -ENOTSUP, "Driver '%s' cannot resize '%s'", n->drv->name, n->filename);
	if (!ret) {
		/* Formats may have set a size of their own already, rounded to their unit. */
		if (load_relaxed(&n->size) == old)
			__atomic_store_n(&n->size, r->size, __ATOMIC_RELEASE);
		__atomic_fetch_add(&inflight_shard(n->inflight)->write_gen, 1, __ATOMIC_SEQ_CST);
	}
	block_graph_changed();
	co_block_drain_end(n);
	return ret;
}

int co_block_actual_size(struct block_node *n, uint64_t *ret)
{
	if (n->drv->co_actual_size)
		return n->drv->co_actual_size(n, ret);
	if (n->child[BLOCK_ROLE_FILE])
		return co_block_actual_size(n->child[BLOCK_ROLE_FILE], ret);
	return -ENOTSUP;
}
