/* SPDX-License-Identifier: MIT */
/*
 * raw: the bytes of the file child as they are, or a window of it by `offset` and `size`.
 *
 * A disk has whole sectors: a file of odd length shows zeroes up to the next multiple of 512.
 *
 * Where the format was only guessed (BLOCK_OPEN_PROBED), the guest must not be able to turn the
 * image into another format by what it writes: the next one to open it would follow the guest's
 * header. So a write that would leave another format's magic at the start is refused.
 */
#include "block/internal.h"

struct raw_state {
	uint64_t offset;
	bool fixed; /* a size was given */
};

static const struct conf_key raw_keys[] = {
	{"offset", CONF_KEY_SIZE, NULL, 0, INT64_MAX, "where the disk starts in the file"},
	{"size", CONF_KEY_SIZE, NULL, 0, INT64_MAX,
		"virtual size; default: to the end of the file"},
	{NULL, 0, NULL, 0, 0, NULL},
};

static struct block_node *below(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_FILE];
}

static int co_raw_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct raw_state *s = n->priv;
	uint64_t file = block_size(below(n)), size = UINT64_MAX;
	int r;

	if ((r = conf_get_u64(opts, raw_keys, "offset", &s->offset, err)) ||
		(r = conf_get_u64(opts, raw_keys, "size", &size, err)))
		return r;
	s->fixed = size != UINT64_MAX;
	if (s->offset > file)
		return error_set(err, -EINVAL,
			"Offset (%llu) cannot be greater than size of the containing file (%llu)",
			(unsigned long long)s->offset, (unsigned long long)file);
	if (s->fixed && !range_inside(s->offset, size, file))
		return error_set(err, -EINVAL,
			"The sum of offset (%llu) and size (%llu) has to be smaller or equal to "
			"the "
			"actual size of the containing file (%llu)",
			(unsigned long long)s->offset, (unsigned long long)size,
			(unsigned long long)file);
	if (s->fixed && !is_aligned(size, 512))
		return error_set(err, -EINVAL, "Specified size is not multiple of 512");
	n->size = s->fixed ? size : align_up(file - s->offset, 512);
	n->caps = below(n)->caps;
	n->caps.align = n->caps.buf_align = 1; /* the child aligns */
	n->caps.max_io = n->caps.max_iov = 0;
	n->caps.grows = n->caps.grows && !s->fixed;
	if (!is_aligned(s->offset, n->caps.zero_align))
		n->caps.zero_align = 1;
	if (!is_aligned(s->offset, n->caps.discard_align))
		n->caps.discard_align = 1;
	return 0;
}

/* Would the start of the disk look like a format's after this write? */
static int co_check_head(struct block_node *n, const struct block_io *io)
{
	char head[BLOCK_PROBE_LEN];
	size_t len = MIN((uint64_t)sizeof(head), block_size(n));
	size_t part = io->off < len ? MIN(io->len, len - io->off) : 0;
	int r;

	if (!part)
		return 0;
	if (part < len) {
		r = co_block_pread(below(n), ((struct raw_state *)n->priv)->offset, head, len);
		if (r)
			return r;
	}
	iov_copy_from(head + io->off, iov_cut(io->buf, 0, part));
	return block_probe(head, len) || block_foreign(head, len) ? -EPERM : 0;
}

static int co_raw_read(struct block_node *n, struct block_io *io)
{
	const struct raw_state *s = n->priv;

	return co_block_read(below(n), io->off + s->offset, io->buf, io->flags);
}

static int co_raw_write(struct block_node *n, struct block_io *io)
{
	const struct raw_state *s = n->priv;

	if (unlikely(io->off < BLOCK_PROBE_LEN && (n->opts.flags & BLOCK_OPEN_PROBED))) {
		int r = co_check_head(n, io);

		if (r)
			return r;
	}
	return co_block_write(below(n), io->off + s->offset, io->buf, io->flags);
}

static int co_raw_zero(struct block_node *n, struct block_io *io)
{
	const struct raw_state *s = n->priv;

	return co_block_zero(
		below(n), io->off + s->offset, io->len, io->flags | BLOCK_IO_NO_FALLBACK);
}

static int co_raw_discard(struct block_node *n, struct block_io *io)
{
	const struct raw_state *s = n->priv;
	uint64_t off = io->off + s->offset, size = block_size(below(n));

	if (off >= size)
		return 0;
	return co_block_discard(below(n), off, MIN(io->len, size - off), io->flags);
}

static int co_raw_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	const struct raw_state *s = n->priv;
	int r = co_block_extent(below(n), off + s->offset, len, ret);

	if (!r)
		ret->flags |= BLOCK_EXTENT_ALLOCATED;
	return r;
}

static int co_raw_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	const struct raw_state *s = n->priv;
	struct block_resize sub = *r;
	int ret;

	if (s->fixed)
		return error_set(err, -ENOTSUP,
			"'%s' has its size given by the 'size' option and cannot be resized",
			n->filename);
	if (add_overflow(r->size, s->offset, &sub.size))
		return error_set(err, -EFBIG, "'%s': the size is too large", n->filename);
	ret = co_block_resize(below(n), &sub, err);
	if (!ret)
		__atomic_store_n(&n->size, align_up(r->size, 512), __ATOMIC_RELEASE);
	return ret;
}

/* The file is all there is to create. */
static int co_raw_create(const struct block_create *c, struct error *err)
{
	return block_file.co_create(c, err);
}

static int co_raw_copy(struct block_node *src, uint64_t src_off, struct block_node *dst,
	uint64_t dst_off, uint64_t len)
{
	const struct raw_state *s = src->priv, *d = dst->priv;

	if (dst->opts.flags & BLOCK_OPEN_PROBED)
		return -ENOTSUP; /* the data must be looked at */
	return co_block_copy_range(
		below(src), src_off + s->offset, below(dst), dst_off + d->offset, len);
}

static int co_raw_measure(struct conf *opts, struct block_node *src, uint64_t size,
	struct block_measure *ret, struct error *err)
{
	size = align_up(MIN(src ? block_size(src) : size, BLOCK_SIZE_MAX), 512);
	*ret = (struct block_measure){.required = size, .fully_allocated = size};
	return 0;
}

static const struct block_image_ops raw_image_ops = {.co_measure = co_raw_measure};

const struct block_driver block_raw = {
	.name = "raw",
	.kind = BLOCK_KIND_FORMAT,
	.node_size = sizeof(struct raw_state),
	.open_keys = raw_keys,
	.co_open = co_raw_open,
	.co_create = co_raw_create,
	.co_resize = co_raw_resize,
	.co_read = co_raw_read,
	.co_write = co_raw_write,
	.co_zero = co_raw_zero,
	.co_discard = co_raw_discard,
	.co_extent = co_raw_extent,
	.co_copy = co_raw_copy,
	.image = &raw_image_ops,
};
