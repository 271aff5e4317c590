/* SPDX-License-Identifier: MIT */
/*
 * qemu-img rebase: another backing file, with the same content to be seen (safe mode), or only its
 * name changed in the header (-u).
 *
 * Safe mode: where the overlay holds nothing and the old and the new backing chain differ, what the
 * old one shows is copied into the overlay; all of that is durable before the header names the new
 * file. A crash before leaves the old name and the same content, and the rebase can be run again.
 *
 * Which granules differ is found first, into a dirty bitmap: where both chains say zero, and where
 * the old chain has nothing above a layer that is also the new backing file, nothing is read.
 */
#include "tools/qemu-img/img.h"
#include "base/mem.h"

#define GRANULE (64 * KiB)
#define PIECE   (1 * MiB)

struct rebase_opts {
	struct image_common c;
	const char *backing, *backing_format;
	int backing_cache;
	bool unsafe, compress;
};

struct rebase {
	const struct rebase_opts *o;
	struct block_node *top, *old, *next; /* old, next: NULL without backing file */
	struct block_node *common; /* the layer of old's chain that is next's file; NULL: none */
	struct block_dirty *dirty;
	struct progress progress;
	uint8_t *buf[2]; /* PIECE each */
};

/* --- finding what differs --------------------------------------------------------------------- */

/* What a backing chain shows at [off, off+len): the first part of one kind. Zero beyond its end. */
static int co_look(struct block_node *n, uint64_t off, uint64_t *len, bool *zero)
{
	struct block_extent e;
	int r;

	*zero = true;
	if (!n || off >= block_size(n))
		return 0;
	r = co_block_extent_chain(n, NULL, off, MIN(*len, block_size(n) - off), &e);
	if (r < 0)
		return r;
	*len = MIN(*len, e.len);
	*zero = e.flags & BLOCK_EXTENT_ZERO;
	return 0;
}

/* Marks the granules of [off, off+len) in which the two differ; len <= PIECE. */
static int co_compare_data(struct rebase *rb, uint64_t off, uint64_t len, const bool zero[2])
{
	struct block_node *n[2] = {rb->old, rb->next};

	for (int i = 0; i < 2; i++) {
		int r = zero[i] ? 0 : co_block_pread(n[i], off, rb->buf[i], len);

		if (r < 0)
			return r;
		if (zero[i])
			memset(rb->buf[i], 0, len);
	}
	for (uint64_t at = 0; at < len;) {
		uint64_t part = MIN(GRANULE - (off + at) % GRANULE, len - at);

		if (memcmp(rb->buf[0] + at, rb->buf[1] + at, part) != 0)
			block_dirty_set(rb->dirty, off + at, part);
		at += part;
	}
	return 0;
}

/* [off, off+len) is not in the overlay. */
static int co_mark_hidden(struct rebase *rb, uint64_t off, uint64_t len)
{
	while (len) {
		uint64_t part = len;
		bool zero[2];
		int r;

		r = co_look(rb->old, off, &part, &zero[0]);
		if (r >= 0)
			r = co_look(rb->next, off, &part, &zero[1]);
		if (r < 0)
			return r;
		/* Extents end where a file ends: cut there as well. */
		if (rb->old && off < block_size(rb->old))
			part = MIN(part, block_size(rb->old) - off);
		if (rb->next && off < block_size(rb->next))
			part = MIN(part, block_size(rb->next) - off);
		if (!zero[0] || !zero[1]) {
			part = MIN(part, (uint64_t)PIECE);
			/* Against nothing, all data is copied: the copy finds zeroes by itself. */
			if (!rb->next)
				block_dirty_set(rb->dirty, off, part);
			else
				r = co_compare_data(rb, off, part, zero);
			if (r < 0)
				return r;
		}
		if (rb->progress.job.cancelled)
			return -ECANCELED;
		off += part;
		len -= part;
	}
	return 0;
}

/* Above the common layer the old chain holds nothing at [off, off+*len) (*len is cut to where that
 * is so): both show the same. */
static int co_same_by_layers(struct rebase *rb, uint64_t off, uint64_t *len, bool *same)
{
	struct block_extent e;
	int r;

	*same = false;
	if (!rb->common)
		return 0;
	if (rb->common == block_skip_filters(rb->old)) {
		*same = true;
		return 0;
	}
	if (off >= block_size(rb->old))
		return 0; /* old shows zeroes, the common layer may show more */
	r = co_block_extent_chain(rb->old, rb->common, off, *len, &e);
	if (r < 0)
		return r;
	*len = MIN(*len, e.len);
	*same = !(e.flags & BLOCK_EXTENT_ALLOCATED);
	return 0;
}

static int co_find_differences(struct rebase *rb)
{
	uint64_t size = block_size(rb->top);

	for (uint64_t off = 0, len; off < size; off += len) {
		struct block_extent e;
		bool same;
		int r = co_block_extent(rb->top, off, size - off, &e);

		if (r < 0)
			return r;
		len = e.len;
		if (e.flags & BLOCK_EXTENT_ALLOCATED)
			continue;
		r = co_same_by_layers(rb, off, &len, &same);
		if (r >= 0 && !same)
			r = co_mark_hidden(rb, off, len);
		if (r < 0)
			return r;
	}
	return 0;
}

/* --- the change ------------------------------------------------------------------------------- */

static int co_copy_differences(struct rebase *rb, struct error *err)
{
	struct block_copy copy = {
		.src = rb->top,
		.dst = rb->top,
		.len = block_size(rb->top),
		.dirty = rb->dirty,
		.min_sparse = 4096,
		.compress = rb->o->compress,
		.job = &rb->progress.job,
	};

	progress_phase(&rb->progress, "copy");
	rb->progress.job.total = block_dirty_count(rb->dirty);
	return copy.len ? co_block_copy(&copy, err) : 0;
}

static int co_open_new_backing(struct rebase *rb, struct error *err)
{
	const struct rebase_opts *o = rb->o;
	_cleanup_free_ char *path = block_path_join(rb->top->filename, o->backing);
	struct image_common c = o->c;
	struct image_name in = {
		.name = path, .format = o->backing_format, .cache = o->backing_cache};
	int r;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (img_same_file(rb->top->filename, path))
		return error_set(
			err, -EINVAL, "'%s' cannot be its own backing file", rb->top->filename);
	/* A layer of the chain that is open already must not keep us from opening it again. */
	c.image_opts = false;
	r = co_image_open(&c, &in, &rb->next, err);
	if (r < 0) {
		error_prefix(err, "Could not open new backing file '%s'", o->backing);
		return r;
	}
	for (struct block_node *n = rb->next; n; n = block_backing(n))
		if (img_same_file(n->filename, rb->top->filename))
			return error_set(err, -EINVAL,
				"'%s' is a backing file of '%s': the chain would be a loop",
				rb->top->filename, o->backing);
	for (struct block_node *n = rb->old; n; n = block_backing(n))
		if (img_same_file(n->filename, rb->next->filename))
			rb->common = block_skip_filters(n);
	return 0;
}

static int co_set_backing(struct rebase *rb, struct error *err)
{
	struct block_node *n = block_skip_filters(rb->top);
	bool none = !*rb->o->backing;
	int r;

	if (!n->drv->image || !n->drv->image->co_set_backing)
		return error_set(err, -ENOTSUP, "'%s' is a %s image, which has no backing file",
			n->filename, n->drv->name);
	r = n->drv->image->co_set_backing(
		n, none ? NULL : rb->o->backing, none ? NULL : rb->o->backing_format, err);
	if (r < 0)
		error_prefix(err, "Could not change the backing file to '%s'", rb->o->backing);
	return r;
}

static int co_rebase_safe(struct rebase *rb, struct error *err)
{
	uint64_t size = block_size(rb->top);
	int r;

	rb->old = block_backing(rb->top);
	if (*rb->o->backing) {
		r = co_open_new_backing(rb, err);
		if (r < 0)
			return r;
	}
	rb->buf[0] = mem_aligned(4096, PIECE);
	rb->buf[1] = mem_aligned(4096, PIECE);
	r = block_dirty_new(size, MAX(GRANULE, rb->top->caps.cluster), &rb->dirty);
	if (r < 0 || !rb->buf[0] || !rb->buf[1])
		return error_set(err, -ENOMEM, "out of memory");
	r = co_find_differences(rb);
	if (r < 0)
		return error_set_errno(err, r, "the backing files of '%s' could not be compared",
			rb->top->filename);
	r = co_copy_differences(rb, err);
	if (r < 0)
		return r;
	progress_phase(&rb->progress, "flush");
	r = co_block_flush(rb->top);
	if (r < 0)
		return error_set_errno(err, r, "'%s' could not be flushed", rb->top->filename);
	return co_set_backing(rb, err);
}

static const char *check_options(const struct rebase_opts *o)
{
	if (!o->backing && !o->unsafe)
		return "Must specify backing file (-b) or use unsafe mode (-u)";
	if (o->backing && *o->backing && !o->backing_format)
		return "backing format must be specified: add -F FMT";
	if (o->backing_format && !block_driver_find(o->backing_format))
		return "the backing format is not a format that drover knows";
	if (o->unsafe && o->compress)
		return "Cannot use unsafe mode (-u) with -c: nothing is copied";
	return NULL;
}

static int co_rebase(struct rebase *rb, const char *name)
{
	const struct rebase_opts *o = rb->o;
	struct error err = ERROR_INIT;
	int rc = 0, r;

	if (co_image_open_common(&o->c, name,
		    BLOCK_OPEN_RDWR | (o->unsafe ? BLOCK_OPEN_NO_BACKING : 0u), &rb->top) < 0)
		return 1;
	if (progress_begin(&rb->progress, o->c.progress, block_size(rb->top), "compare") < 0) {
		co_image_close(&rb->top, &rc);
		return 1;
	}
	r = o->unsafe ? co_set_backing(rb, &err) : co_rebase_safe(rb, &err);
	progress_end(&rb->progress, r >= 0);
	if (r < 0 && progress_signal())
		error_set(&err, -ECANCELED,
			"rebase was interrupted by a signal; '%s' has its old backing file, and "
			"rebase can be run again",
			name);
	if (r < 0)
		rc = tool_fail(&err);
	block_dirty_free(rb->dirty);
	mem_free(rb->buf[0]);
	mem_free(rb->buf[1]);
	co_block_node_unref(rb->next);
	co_image_close(&rb->top, &rc);
	return rc;
}

static int co_rebase_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct rebase_opts *o = opts;
	const char *wrong = check_options(o);
	_cleanup_free_ struct rebase *rb = mem_zalloc(sizeof(*rb));

	if (wrong || !rb) {
		tool_error("%s", wrong ? wrong : "out of memory");
		return 1;
	}
	if (!o->backing)
		o->backing = ""; /* -u alone: the name goes */
	rb->o = o;
	return co_rebase(rb, args[0]);
}

#define T struct rebase_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPT_PROGRESS(T),
	OPTS_SOURCE(T),
	IMAGE_OPT_ENUM(T, 't', "cache", "CACHE", "cache mode of FILENAME (default: writeback)",
		c.cache, block_cache_names),
	IMAGE_OPT(T, OPT_TEXT, 'b', "backing", "BACKING_FILENAME|\"\"",
		"the new backing file, or none", backing),
	IMAGE_OPT(T, OPT_TEXT, 'F', "backing-format", "BACKING_FMT",
		"format of BACKING_FILENAME (also -B)", backing_format),
	IMAGE_OPT(T, OPT_TEXT, 'B', NULL, "BACKING_FMT", NULL, backing_format),
	IMAGE_OPT_ENUM(T, 'T', "backing-cache", "CACHE",
		"cache mode of the backing files (default: writeback)", backing_cache,
		block_cache_names),
	IMAGE_OPT(T, OPT_FLAG, 'u', "backing-unsafe", NULL,
		"change the name only; what is seen is your business", unsafe),
	IMAGE_OPT(T, OPT_FLAG, 'c', "compress", NULL, "write compressed clusters", compress),
	OPT_SHARE(T),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_rebase = {
	.name = "rebase",
	.summary = "Change backing file of the image",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.opts_size = sizeof(struct rebase_opts),
	.co_run = co_rebase_cmd,
};
