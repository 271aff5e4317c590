/* SPDX-License-Identifier: MIT */
/*
 * Guest reads, and what lies where for map and convert.
 *
 * A read walks its range by mappings (map.c): runs that are contiguous in the file become one
 * request, zeroes are filled in, holes are read from the backing file as far as that reaches. A
 * range of several pieces reads them side by side (fan.c). The request's epoch token keeps every
 * host cluster it has looked up from being reused (I3).
 */
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

/* How far the backing file shows through: not beyond the overlay's own end, where a larger backing
 * file would come to light after a resize. */
static uint64_t backing_end(const struct q2_image *img)
{
	struct block_node *backing = img->node->child[BLOCK_ROLE_BACKING];

	return backing ? MIN(block_size(backing), block_size(img->node)) : 0;
}

/* Reads from the backing file; zeroes where it ends. */
static int read_backing(struct q2_image *img, uint64_t off, struct iov_slice buf)
{
	return co_block_read_backing(img->node, off, buf);
}

static int read_piece(
	struct q2_image *img, const struct q2_mapping *m, uint64_t off, struct iov_slice buf)
{
	switch (m->kind) {
	case Q2_DATA:
		co_block_event(img->file, "read_aio");
		return co_block_read(img->file, m->host_off, buf, 0);
	case Q2_DATA_COMPRESSED:
		co_block_event(img->file, "read_compressed");
		return co_q2_unpack(img, m->entry, q2_cluster_offset(img, off), buf);
	case Q2_UNALLOCATED:
		co_block_event(img->file, "read_backing_aio");
		return read_backing(img, off, buf);
	case Q2_ZERO_PLAIN:
	case Q2_ZERO_ALLOC:
		break;
	}
	iov_fill(buf, 0);
	return 0;
}

/* Everything behind the first mapping, *m, which ends inside the range. */
static int read_pieces(
	struct q2_image *img, struct q2_mapping *m, uint64_t off, struct iov_slice buf)
{
	struct q2_fan fan = {.img = img, .co_piece = read_piece};
	int r = 0, r2;

	for (;;) {
		co_q2_fan_add(&fan, m, off, iov_cut(buf, 0, m->len));
		off += m->len;
		buf = iov_cut(buf, m->len, buf.len - m->len);
		if (!buf.len || fan.result < 0)
			break;
		r = co_q2_map(img, off, buf.len, m);
		if (r < 0)
			break;
	}
	r2 = co_q2_fan_wait(&fan);
	return r < 0 ? r : r2;
}

int co_q2_read_range(struct q2_image *img, uint64_t off, struct iov_slice buf)
{
	struct q2_mapping m;
	int r = co_q2_map(img, off, buf.len, &m);

	if (r < 0)
		return r;
	if (likely(m.len == buf.len))
		return read_piece(img, &m, off, buf);
	return read_pieces(img, &m, off, buf);
}

int co_q2_read(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	unsigned token = co_q2_request_enter(img);
	int r = co_q2_read_range(img, io->off, io->buf);

	q2_request_leave(img, token);
	trace("q2_read", "%s: %llu bytes at %llu, result %d", n->filename,
		(unsigned long long)io->len, (unsigned long long)io->off, r);
	return r;
}

int co_q2_reads_zero(struct q2_image *img, uint64_t off, uint64_t len, uint64_t *ret)
{
	uint64_t end = backing_end(img);
	struct q2_mapping m;
	int r;

	for (*ret = 0; *ret < len; *ret += m.len) {
		r = co_q2_map(img, off + *ret, len - *ret, &m);
		if (r < 0)
			return r;
		if (m.kind == Q2_DATA || m.kind == Q2_DATA_COMPRESSED)
			break;
		if (m.kind == Q2_UNALLOCATED && off + *ret < end)
			break;
	}
	return 0;
}

static uint32_t extent_flags(const struct q2_image *img, enum q2_kind kind)
{
	switch (kind) {
	case Q2_DATA:
		return BLOCK_EXTENT_DATA | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_MAPPED;
	case Q2_DATA_COMPRESSED:
		return BLOCK_EXTENT_DATA | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_COMPRESSED;
	case Q2_ZERO_ALLOC:
		return BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_MAPPED;
	case Q2_ZERO_PLAIN:
		return BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED;
	case Q2_UNALLOCATED:
		break;
	}
	return img->node->child[BLOCK_ROLE_BACKING] || img->h.backing_name ? 0 : BLOCK_EXTENT_ZERO;
}

/* Runs of compressed clusters are one extent, as people expect of `map`. */
static int extend_compressed(struct q2_image *img, uint64_t off, uint64_t len, uint64_t *done)
{
	while (*done < len) {
		struct q2_mapping m;
		int r = co_q2_map(img, off + *done, len - *done, &m);

		if (r < 0)
			return r;
		if (m.kind != Q2_DATA_COMPRESSED)
			break;
		*done += m.len;
	}
	return 0;
}

static int extent(struct q2_image *img, uint64_t off, uint64_t len, struct block_extent *ret)
{
	struct q2_mapping m;
	int r = co_q2_map(img, off, len, &m);

	if (r < 0)
		return r;
	*ret = (struct block_extent){.len = m.len, .flags = extent_flags(img, m.kind)};
	if (m.kind == Q2_UNALLOCATED && m.host_off)
		ret->flags |= BLOCK_EXTENT_MAPPED;
	if (ret->flags & BLOCK_EXTENT_MAPPED) {
		ret->host_off = m.host_off;
		ret->host = img->file;
	}
	return m.kind == Q2_DATA_COMPRESSED ? extend_compressed(img, off, len, &ret->len) : 0;
}

int co_q2_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	struct q2_image *img = q2_image(n);
	unsigned token = co_q2_request_enter(img);
	int r = extent(img, off, len, ret);

	q2_request_leave(img, token);
	return r;
}
