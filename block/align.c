/* SPDX-License-Identifier: MIT */
/*
 * Alignment: requests that a driver would not take as they are become some that it does, by cutting
 * and by bounce buffers; partly covered blocks are read, changed and written back.
 *
 * A write comes here holding its serialization over the blocks it touches (inflight.c), so what is
 * read at its ends is still true when it is written. The last block of a node may be a partial one:
 * requests then end at the node's end, and the driver copes.
 */
#include "block/internal.h"

#define BOUNCE_MAX MiB

void *block_buffer_alloc(const struct block_node *n, size_t len)
{
	size_t align = MAX(n->caps.buf_align, (uint32_t)64);

	/* Children may ask for more than the node itself, which passes buffers down. */
	for (const struct block_node *c = n->child[BLOCK_ROLE_FILE]; c;
		c = c->child[BLOCK_ROLE_FILE])
		align = MAX(align, (size_t)c->caps.buf_align);
	return mem_aligned(align, len ? len : 1);
}

static int co_raw_read(struct block_node *n, uint64_t off, struct iov_slice buf, uint32_t flags)
{
	struct block_io io = {off, buf.len, buf, flags};

	if (n->drv->co_read)
		return n->drv->co_read(n, &io);
	if (n->drv->kind == BLOCK_KIND_FILTER)
		return co_block_read(n->child[BLOCK_ROLE_FILE], off, buf, flags);
	return -ENOTSUP;
}

static int co_raw_write(struct block_node *n, uint64_t off, struct iov_slice buf, uint32_t flags)
{
	struct block_io io = {off, buf.len, buf, flags};

	if (n->drv->co_write)
		return n->drv->co_write(n, &io);
	if (n->drv->kind == BLOCK_KIND_FILTER)
		return co_block_write(n->child[BLOCK_ROLE_FILE], off, buf, flags);
	return -ENOTSUP;
}

/* Bytes at the front of `buf`, which starts at an aligned offset, that may go to the driver
 * without a bounce buffer; 0: none. */
static uint64_t direct_part(const struct block_node *n, struct iov_slice buf, uint64_t len)
{
	const struct block_caps *c = &n->caps;
	struct iov_slice s;

	if (c->max_io)
		len = MIN(len, align_down(c->max_io, c->align));
	if (c->max_iov) {
		struct iovec seg[64];
		size_t covered;

		iov_export(buf, seg, MIN(c->max_iov, (uint32_t)ARRAY_SIZE(seg)), &covered);
		len = MIN(len, (uint64_t)covered);
	}
	s = iov_cut(buf, 0, len);
	if (len < buf.len)
		len = align_down(len, c->align);
	s = iov_cut(buf, 0, len);
	if (c->buf_align > 1 && !iov_aligned(s, c->buf_align))
		return 0;
	return len;
}

/* Where an aligned request that must cover `end` ends: at a block, or at the end of the node. */
static uint64_t block_end(const struct block_node *n, uint64_t end)
{
	uint64_t size = block_size(n), up = align_up(end, n->caps.align);

	return up > size ? MAX(size, end) : up;
}

static uint64_t bounce_len(const struct block_node *n, const struct block_io *io)
{
	uint64_t span = io->len + 2ULL * n->caps.align;
	uint64_t max = MAX(BOUNCE_MAX, (uint64_t)n->caps.align * 2);

	if (n->caps.max_io)
		max = MIN(max, align_down(n->caps.max_io, n->caps.align));
	return MIN(align_up(span, n->caps.align), max);
}

int co_align_read(struct block_node *n, struct block_io *io)
{
	_cleanup_free_ void *bounce = NULL;
	uint64_t align = n->caps.align, done = 0, room = bounce_len(n, io);

	while (done < io->len) {
		uint64_t off = io->off + done, left = io->len - done, start, end, part;
		struct iov_slice rest = iov_cut(io->buf, done, left);
		struct iovec iov;
		int r;

		part = 0;
		if (is_aligned(off, align)) {
			uint64_t whole = align_down(left, align);

			if (off + left == block_size(n))
				whole = left;
			part = whole ? direct_part(n, rest, whole) : 0;
		}
		if (part) {
			r = co_raw_read(n, off, iov_cut(rest, 0, part), io->flags);
		} else {
			if (!bounce && !(bounce = block_buffer_alloc(n, room)))
				return -ENOMEM;
			start = align_down(off, align);
			end = MIN(block_end(n, off + left), start + room);
			part = MIN(left, end - off);
			r = co_raw_read(n, start, iov_buf(&iov, bounce, end - start), io->flags);
			if (!r)
				iov_copy_to(iov_cut(rest, 0, part), (char *)bounce + (off - start));
		}
		if (r)
			return r;
		done += part;
	}
	return 0;
}

/* Fills the parts of the bounce buffer for [start, end) that the write of [off, off+len) leaves
 * alone with what is on the node. */
static int co_fill_ends(struct block_node *n, char *bounce, uint64_t start, uint64_t end,
	uint64_t off, uint64_t len)
{
	uint64_t align = n->caps.align, size = block_size(n);
	uint64_t last = align_down(off + len, align), have;
	struct iovec iov;
	int r;

	if (off > start) {
		have = start < size ? MIN(start + align, size) - start : 0;
		have = MIN(have, end - start);
		if (have) {
			r = co_raw_read(n, start, iov_buf(&iov, bounce, have), 0);
			if (r)
				return r;
		}
		if (have < off - start)
			memset(bounce + have, 0, off - start - have);
	}
	if (off + len < end && (last > start || off == start)) {
		char *at = bounce + (last - start);

		have = last < size ? MIN(end, size) - last : 0;
		if (have)
			return co_raw_read(n, last, iov_buf(&iov, at, have), 0);
	}
	return 0;
}

int co_align_write(struct block_node *n, struct block_io *io)
{
	_cleanup_free_ void *bounce = NULL;
	uint64_t align = n->caps.align, done = 0, room = bounce_len(n, io);

	while (done < io->len) {
		uint64_t off = io->off + done, left = io->len - done, start, end, part;
		struct iov_slice rest = iov_cut(io->buf, done, left);
		struct iovec iov;
		int r;

		part = 0;
		if (is_aligned(off, align)) {
			uint64_t whole = align_down(left, align);

			if (off + left >= block_size(n))
				whole = left;
			part = whole ? direct_part(n, rest, whole) : 0;
		}
		if (part) {
			r = co_raw_write(n, off, iov_cut(rest, 0, part), io->flags);
		} else {
			if (!bounce && !(bounce = block_buffer_alloc(n, room)))
				return -ENOMEM;
			start = align_down(off, align);
			end = MIN(block_end(n, off + left), start + room);
			part = MIN(left, end - off);
			r = co_fill_ends(n, bounce, start, end, off, part);
			if (r)
				return r;
			iov_copy_from((char *)bounce + (off - start), iov_cut(rest, 0, part));
			r = co_raw_write(n, start, iov_buf(&iov, bounce, end - start), io->flags);
		}
		if (r)
			return r;
		done += part;
		/* Growth by one piece is what the next one reads against. */
		if (off + part > block_size(n))
			block_grow(n, off + part);
	}
	return 0;
}
