/* SPDX-License-Identifier: MIT */
/*
 * copy-on-read: a filter over an image with a backing file that keeps what it has read from below.
 *
 * Between reading a range from the backing chain and writing it into the image no guest write may
 * come in, or it would be overwritten with old data: the read serializes against writes of its own
 * node (inflight.c) on whole clusters. Whether a range is allocated is asked again under that
 * serialization, so a write that came first is seen.
 */
#include "block/internal.h"

#define COPY_MAX MiB

static struct block_node *below(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_FILE];
}

static int co_cor_open(struct block_node *n, struct conf *opts, struct error *err)
{
	if (!(below(n)->opts.flags & BLOCK_OPEN_RDWR))
		return error_set(err, -EROFS,
			"copy-on-read needs to write into '%s', which is opened read-only",
			n->filename);
	return 0;
}

/* Copies [off, off+len) into the image where it is not allocated there; whole clusters. */
static int co_copy_up(struct block_node *n, uint64_t off, uint64_t len, void *buf)
{
	while (len) {
		struct block_extent e;
		struct iovec iov;
		int r = co_block_extent(below(n), off, len, &e);

		if (r)
			return r;
		if (!(e.flags & BLOCK_EXTENT_ALLOCATED)) {
			e.len = MIN(e.len, COPY_MAX);
			r = co_block_pread(below(n), off, buf, e.len);
			if (!r && mem_is_zero(buf, e.len))
				r = co_block_zero(below(n), off, e.len, BLOCK_IO_UNCHANGED);
			else if (!r)
				r = co_block_write(below(n), off, iov_buf(&iov, buf, e.len),
					BLOCK_IO_UNCHANGED);
			if (r)
				return r;
		}
		off += e.len;
		len -= e.len;
	}
	return 0;
}

/* Copying up is a convenience: without room or memory for it the guest still gets its data. */
static void co_try_copy_up(struct block_node *n, uint64_t off, uint64_t len)
{
	uint64_t cluster = is_pow2(n->caps.cluster) ? n->caps.cluster : 65536;
	uint64_t start = align_down(off, cluster);
	uint64_t end = MIN(align_up(off + len, cluster), block_size(n));
	_cleanup_free_ void *buf = block_buffer_alloc(n, MIN(COPY_MAX, end - start));
	struct block_tracked t;

	if (!buf)
		return;
	co_inflight_serialize(n->inflight, &t, start, end - start, true);
	co_copy_up(n, start, end - start, buf);
	inflight_untrack(n->inflight, &t);
}

static int co_cor_read(struct block_node *n, struct block_io *io)
{
	uint64_t off = io->off, end = io->off + io->len;

	while (off < end) {
		struct block_extent e;
		int r = co_block_extent(below(n), off, end - off, &e);

		if (r)
			return r;
		if (!(e.flags & BLOCK_EXTENT_ALLOCATED))
			co_try_copy_up(n, off, e.len);
		off += e.len;
	}
	return co_block_read(below(n), io->off, io->buf, io->flags);
}

const struct block_driver block_copy_on_read = {
	.name = "copy-on-read",
	.kind = BLOCK_KIND_FILTER,
	.co_open = co_cor_open,
	.co_read = co_cor_read,
};
