/* SPDX-License-Identifier: MIT */
/*
 * qemu-img commit: what an overlay holds goes down into a backing file.
 *
 * The order is what makes it safe: the base grows if it must, takes all data and is flushed; only
 * then is the overlay emptied. A crash before that leaves both readable as they were for the
 * overlay's reader, and the commit can be run again.
 */
#include "tools/qemu-img/img.h"

struct commit_opts {
	struct image_common c;
	const char *base;
	bool keep; /* -d: the overlay is not emptied */
	uint64_t rate;
};

static int co_make_writable(struct block_node *base, struct error *err)
{
	struct block_open_opts o = base->opts;
	int r;

	if (o.flags & BLOCK_OPEN_RDWR)
		return 0;
	o.flags |= BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP;
	o.perm = o.shared = 0;
	r = co_block_reopen(base, &o, err);
	if (r < 0)
		error_prefix(err, "the backing file '%s' cannot be written", base->filename);
	return r;
}

/* The base becomes as large as the overlay. What its own backing file holds there must not shine
 * through: the overlay showed zeroes. */
static int co_grow_base(struct block_node *base, uint64_t size, struct error *err)
{
	struct block_node *below = block_backing(base);
	struct block_resize rz = {.size = size};
	uint64_t old = block_size(base), end;
	int r;

	if (old >= size)
		return 0;
	r = co_block_resize(base, &rz, err);
	if (r < 0) {
		error_prefix(err, "the backing file '%s' could not be enlarged", base->filename);
		return r;
	}
	end = below ? MIN(block_size(below), size) : 0;
	if (end <= old)
		return 0;
	r = co_block_zero(base, old, end - old, BLOCK_IO_UNMAP);
	return r < 0 ? error_set_errno(err, r, "'%s' could not be zeroed from %llu on",
			       base->filename, (unsigned long long)old)
		     : 0;
}

static int co_copy_down(const struct commit_opts *o, struct block_node *top,
	struct block_node *base, struct progress *p, struct error *err)
{
	struct block_copy copy = {
		.src = top,
		.dst = base,
		.base = base,
		.len = block_size(top),
		.min_sparse = 4096,
		.dst_has_backing = true, /* what no layer above base holds stays as it is */
		.job = &p->job,
	};
	int r;

	p->job.rate = o->rate;
	if (copy.len) {
		r = co_block_copy(&copy, err);
		if (r < 0)
			return r;
	}
	progress_phase(p, "flush");
	r = co_block_flush(base);
	if (r < 0)
		return error_set_errno(err, r, "'%s' could not be flushed", base->filename);
	return 0;
}

static int co_empty(struct block_node *top, struct error *err)
{
	struct block_node *n = block_skip_filters(top);

	if (!n->drv->image || !n->drv->image->co_make_empty)
		return error_set(err, -ENOTSUP,
			"'%s' cannot be emptied (%s); all its data is in the backing file, -d "
			"leaves it as it is",
			n->filename, n->drv->name);
	return n->drv->image->co_make_empty(n, err);
}

static int co_commit_node(
	const struct commit_opts *o, struct block_node *top, struct progress *p, struct error *err)
{
	struct block_node *base = block_backing(top);
	bool empty = !o->keep && !o->base;
	int r;

	if (!base)
		return error_set(err, -ENOTSUP, "Image does not have a backing file");
	if (o->base)
		base = co_img_find_backing(top, o->base);
	if (!base)
		return error_set(err, -ENOENT, "Did not find '%s' in the backing chain of '%s'",
			o->base, top->filename);
	if ((r = co_make_writable(base, err)) < 0 ||
		(r = co_grow_base(base, block_size(top), err)) < 0 ||
		(r = co_copy_down(o, top, base, p, err)) < 0)
		return r;
	return empty ? co_empty(top, err) : 0;
}

static int co_commit_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct commit_opts *o = opts;
	struct error err = ERROR_INIT;
	struct block_node *top;
	struct progress p;
	int rc = 0, r;

	if (co_image_open_common(&o->c, args[0], BLOCK_OPEN_RDWR, &top) < 0)
		return 1;
	if (progress_begin(&p, o->c.progress, block_size(top), "commit") < 0) {
		co_block_node_unref(top);
		return 1;
	}
	r = co_commit_node(o, top, &p, &err);
	progress_end(&p, r >= 0);
	if (r < 0 && progress_signal())
		error_set(&err, -ECANCELED,
			"commit was interrupted by a signal; '%s' is as it was, and commit can be "
			"run again",
			args[0]);
	if (r < 0)
		rc = tool_fail(&err);
	co_image_close(&top, &rc);
	if (!rc && !o->c.quiet)
		printf("Image committed.\n");
	return rc;
}

#define T struct commit_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPT_PROGRESS(T),
	OPTS_SOURCE(T),
	IMAGE_OPT_ENUM(T, 't', "cache", "CACHE", "cache mode (default: writeback)", c.cache,
		block_cache_names),
	IMAGE_OPT(T, OPT_FLAG, 'd', "drop", NULL, "do not empty FILENAME at the end", keep),
	IMAGE_OPT(T, OPT_TEXT, 'b', "base", "BASE_IMG",
		"commit down to that layer of the chain (implies -d)", base),
	IMAGE_OPT_NUM(T, OPT_SIZE, 'r', "rate", "RATE", "bytes a second (default: no limit)", rate,
		1, INT64_MAX),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_commit = {
	.name = "commit",
	.summary = "Commit image to its backing file",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.opts_size = sizeof(struct commit_opts),
	.co_run = co_commit_cmd,
};
