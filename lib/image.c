/* SPDX-License-Identifier: MIT */
/* Images of the public API: open, close, describe, resize, check, create. */
#include "lib/lib.h"
#include "base/mem.h"
#include "base/trace.h"

#include <stdio.h>

void image_use(struct drover_image *img)
{
	__atomic_fetch_add(&img->users, 1, __ATOMIC_RELAXED);
}

void image_unuse(struct drover_image *img)
{
	__atomic_fetch_sub(&img->users, 1, __ATOMIC_RELEASE);
}

/* --- open and close ------------------------------------------------------------------------ */

struct open_call {
	const char *name;
	const struct drover_open_opts *opts;
	struct drover_image *img;
	struct error err;
};

static const struct {
	uint32_t from, to;
} open_flags[] = {
	{DROVER_OPEN_RDWR, BLOCK_OPEN_RDWR},
	{DROVER_OPEN_NO_BACKING, BLOCK_OPEN_NO_BACKING},
	{DROVER_OPEN_FORCE_SHARE, BLOCK_OPEN_FORCE_SHARE},
	{DROVER_OPEN_UNMAP, BLOCK_OPEN_UNMAP},
	{DROVER_OPEN_CHECK, BLOCK_OPEN_CHECK},
};

static const enum block_cache cache_modes[] = {
	[DROVER_CACHE_WRITEBACK] = BLOCK_CACHE_WRITEBACK,
	[DROVER_CACHE_NONE] = BLOCK_CACHE_NONE,
	[DROVER_CACHE_WRITETHROUGH] = BLOCK_CACHE_WRITETHROUGH,
	[DROVER_CACHE_DIRECTSYNC] = BLOCK_CACHE_DIRECTSYNC,
	[DROVER_CACHE_UNSAFE] = BLOCK_CACHE_UNSAFE,
};

static int spec_of(const struct open_call *call, struct conf **ret, struct error *err)
{
	int r;

	if (!(call->opts->flags & DROVER_OPEN_OPTIONS))
		return block_spec_from_name(call->name, call->opts->format, ret, err);
	r = conf_parse_options(call->name, NULL, ret, err);
	if (!r && call->opts->format)
		r = conf_set(*ret, "driver", call->opts->format);
	return r;
}

static int co_open_snapshot(struct block_node **node, const char *name, struct error *err)
{
	struct block_node *n = block_skip_filters(*node), *snap;
	int r;

	if (!n->drv->snapshot)
		return error_set(err, -ENOTSUP, "The format '%s' of '%s' has no internal snapshots",
			n->drv->name, n->filename ? n->filename : "");
	r = n->drv->snapshot->co_open(n, name, &snap, err);
	if (r)
		return r;
	co_block_node_unref(*node); /* the snapshot's node holds it */
	*node = snap;
	return 0;
}

static int co_open(void *arg)
{
	struct open_call *call = arg;
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts o = {
		.cache = cache_modes[call->opts->cache], .trust = &call->img->trust};
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(open_flags); i++)
		if (call->opts->flags & open_flags[i].from)
			o.flags |= open_flags[i].to;
	r = spec_of(call, &spec, &call->err);
	if (!r)
		r = co_block_open(spec, &o, &call->img->node, &call->err);
	if (!r && call->opts->snapshot) {
		r = co_open_snapshot(&call->img->node, call->opts->snapshot, &call->err);
		if (r)
			co_block_node_unref(call->img->node);
	}
	return r;
}

static int open_opts_in(struct drover_open_opts *ret, const struct drover_open_opts *opts)
{
	uint32_t known = DROVER_OPEN_OPTIONS;
	int r = lib_struct_in(ret, sizeof(*ret), sizeof(*ret), opts);

	for (size_t i = 0; i < ARRAY_SIZE(open_flags); i++)
		known |= open_flags[i].from;
	if (r < 0)
		return r;
	if (ret->flags & ~known || ret->cache >= ARRAY_SIZE(cache_modes) || ret->reserved ||
		(ret->snapshot && ret->flags & DROVER_OPEN_RDWR))
		return -EINVAL;
	return 0;
}

int drover_open(const char *name, const struct drover_open_opts *opts,
	const struct drover_trust *trust, struct drover_image **ret, struct drover_error *err)
{
	_cleanup_free_ struct drover_image *img = NULL;
	struct drover_open_opts o;
	struct open_call call = {.name = name, .opts = &o};
	struct block_trust t;
	int r;

	if (!name || !ret)
		return lib_error_text(err, -EINVAL, "drover_open() needs a name and a place");
	r = lib_trust_in(&t, trust);
	if (r)
		return lib_error_text(err, r,
			"drover_open() needs a struct drover_trust that this library knows; take "
			"one by drover_trust()");
	r = open_opts_in(&o, opts);
	if (r)
		return lib_error_text(
			err, r, "drover_open() was given options that this library does not know");
	call.img = img = mem_zalloc(sizeof(*img));
	if (!img)
		return lib_error_text(err, -ENOMEM, "Out of memory");
	img->trust = t;
	r = control_get(err);
	if (r)
		return r;
	r = control_call(co_open, &call);
	trace("lib_image_open", "%s flags %#x: %s", name, o.flags, r ? call.err.text : "open");
	if (r) {
		control_put();
		return lib_error(err, r, &call.err);
	}
	*ret = take(img);
	return 0;
}

static int co_close(void *arg)
{
	struct block_node *n = arg;
	int r = 0, r2;

	if (n->opts.flags & BLOCK_OPEN_RDWR)
		r = co_block_flush(n);
	r2 = co_block_node_unref(n);
	return r ? r : r2;
}

int drover_close(struct drover_image *img, struct drover_error *err)
{
	int r;

	if (!img)
		return 0;
	if (__atomic_load_n(&img->users, __ATOMIC_ACQUIRE))
		return lib_error_text(err, -EBUSY, "The image still has queues or jobs");
	r = control_call(co_close, img->node);
	trace("lib_image_close", "%p: %d", (void *)img, r);
	control_put();
	mem_free(img);
	return r ? lib_error_text(err, r,
			   "Closing the image failed: what was written last may be lost")
		 : 0;
}

uint64_t drover_image_size(const struct drover_image *img)
{
	return block_size(img->node);
}

/* --- information --------------------------------------------------------------------------- */

struct info_call {
	struct drover_image *img;
	struct drover_info *info;
	struct error err;
};

static void text_set(char *dst, size_t n, const char *src)
{
	snprintf(dst, n, "%s", src ? src : "");
}

static int co_info(void *arg)
{
	struct info_call *call = arg;
	struct block_node *n = call->img->node, *fmt = block_skip_filters(n);
	struct drover_info *ret = call->info;
	struct block_image_info info = {0};
	int r = 0;

	if (fmt->drv->image && fmt->drv->image->co_info)
		r = fmt->drv->image->co_info(fmt, &info, &call->err);
	if (r < 0)
		return r;
	r = co_block_actual_size(n, &ret->actual_size);
	if (r == -ENOTSUP)
		r = 0; /* a store that cannot tell */
	ret->size = block_size(n);
	ret->cluster_size = info.cluster_size;
	ret->align = n->caps.align;
	text_set(ret->format, sizeof(ret->format), fmt->drv->name);
	text_set(ret->backing_name, sizeof(ret->backing_name), info.backing_name);
	text_set(ret->backing_format, sizeof(ret->backing_format), info.backing_format);
	ret->flags = (n->opts.flags & BLOCK_OPEN_RDWR ? DROVER_INFO_RDWR : 0) |
		     (info.dirty ? DROVER_INFO_DIRTY : 0) |
		     (info.corrupt ? DROVER_INFO_CORRUPT : 0) |
		     (info.encrypted ? DROVER_INFO_ENCRYPTED : 0) |
		     (info.compressed ? DROVER_INFO_COMPRESSED : 0);
	return r;
}

int drover_image_info(struct drover_image *img, struct drover_info *ret, struct drover_error *err)
{
	struct drover_info info = {0};
	struct info_call call = {.img = img, .info = &info};
	int r = control_call(co_info, &call);

	if (r)
		return lib_error(err, r, &call.err);
	r = lib_struct_out(ret, &info, sizeof(info), sizeof(info));
	return r ? lib_error_text(err, r, "struct drover_info is too short") : 0;
}

struct extents_call {
	struct drover_image *img;
	uint64_t off, len;
	struct drover_extent *ret;
	uint32_t max, n;
};

static const struct {
	uint32_t from, to;
} extent_flags[] = {
	{BLOCK_EXTENT_DATA, DROVER_EXTENT_DATA},
	{BLOCK_EXTENT_ZERO, DROVER_EXTENT_ZERO},
	{BLOCK_EXTENT_ALLOCATED, DROVER_EXTENT_ALLOCATED},
	{BLOCK_EXTENT_MAPPED, DROVER_EXTENT_MAPPED},
	{BLOCK_EXTENT_COMPRESSED, DROVER_EXTENT_COMPRESSED},
};

static bool extents_join(struct drover_extent *a, const struct drover_extent *b)
{
	if (a->flags != b->flags || a->depth != b->depth)
		return false;
	if (a->flags & DROVER_EXTENT_COMPRESSED)
		return false;
	if (a->flags & DROVER_EXTENT_MAPPED && a->host_off + a->len != b->host_off)
		return false;
	a->len += b->len;
	return true;
}

static int co_extents(void *arg)
{
	struct extents_call *c = arg;

	while (c->len) {
		struct block_extent e;
		struct drover_extent x = {.off = c->off};
		int r = co_block_extent_chain(c->img->node, NULL, c->off, c->len, &e);

		if (r < 0)
			return r;
		x.len = e.len;
		x.depth = e.depth;
		for (size_t i = 0; i < ARRAY_SIZE(extent_flags); i++)
			if (e.flags & extent_flags[i].from)
				x.flags |= extent_flags[i].to;
		if (x.flags & DROVER_EXTENT_MAPPED)
			x.host_off = e.host_off;
		if (!c->n || !extents_join(&c->ret[c->n - 1], &x)) {
			if (c->n == c->max)
				return 0;
			c->ret[c->n++] = x;
		}
		c->off += e.len;
		c->len -= e.len;
	}
	return 0;
}

int drover_image_extents(struct drover_image *img, uint64_t off, uint64_t len,
	struct drover_extent *ret, uint32_t max, uint32_t *ret_n, struct drover_error *err)
{
	struct extents_call call = {.img = img, .off = off, .len = len, .ret = ret, .max = max};
	int r;

	if (!range_inside(off, len, block_size(img->node)))
		return lib_error_text(err, -EINVAL, "The range lies beyond the end of the image");
	r = control_call(co_extents, &call);
	if (r)
		return lib_error_text(err, r, errno_text(r));
	*ret_n = call.n;
	return 0;
}

/* --- changes ------------------------------------------------------------------------------- */

struct resize_call {
	struct drover_image *img;
	struct block_resize resize;
	struct error err;
};

static int co_resize(void *arg)
{
	struct resize_call *call = arg;

	return co_block_resize(call->img->node, &call->resize, &call->err);
}

int drover_image_resize(struct drover_image *img, uint64_t size, enum drover_prealloc prealloc,
	uint32_t flags, struct drover_error *err)
{
	static const enum block_prealloc modes[] = {
		[DROVER_PREALLOC_OFF] = BLOCK_PREALLOC_OFF,
		[DROVER_PREALLOC_METADATA] = BLOCK_PREALLOC_METADATA,
		[DROVER_PREALLOC_FALLOC] = BLOCK_PREALLOC_FALLOC,
		[DROVER_PREALLOC_FULL] = BLOCK_PREALLOC_FULL,
	};
	struct resize_call call = {.img = img};
	int r;

	if ((unsigned)prealloc >= ARRAY_SIZE(modes) || flags & ~DROVER_RESIZE_SHRINK)
		return lib_error_text(err, -EINVAL, "Unknown preallocation mode or flag");
	if (size < block_size(img->node) && !(flags & DROVER_RESIZE_SHRINK))
		return lib_error_text(err, -EINVAL,
			"The new size is smaller; data would be lost: say DROVER_RESIZE_SHRINK");
	call.resize = (struct block_resize){.size = size,
		.prealloc = modes[prealloc],
		.shrink = flags & DROVER_RESIZE_SHRINK};
	r = control_call(co_resize, &call);
	return r ? lib_error(err, r, &call.err) : 0;
}

static int co_flush(void *arg)
{
	return co_block_flush(arg);
}

int drover_image_flush(struct drover_image *img, struct drover_error *err)
{
	int r = control_call(co_flush, img->node);

	return r ? lib_error_text(err, r, errno_text(r)) : 0;
}

struct check_call {
	struct drover_image *img;
	struct block_check check;
	struct error err;
};

static int co_check(void *arg)
{
	struct check_call *call = arg;
	struct block_node *n = block_skip_filters(call->img->node);

	if (!n->drv->check)
		return error_set(&call->err, -ENOTSUP,
			"The format '%s' does not support checks", n->drv->name);
	return n->drv->check->co_check(n, &call->check, &call->err);
}

int drover_image_check(
	struct drover_image *img, struct drover_check *check, struct drover_error *err)
{
	struct check_call call = {.img = img};
	struct drover_check c;
	int r = lib_struct_in(&c, sizeof(c), sizeof(c), check);

	if (r || !check || c.flags & ~(DROVER_CHECK_REPAIR_LEAKS | DROVER_CHECK_REPAIR_ERRORS))
		return lib_error_text(err, r ? r : -EINVAL,
			"drover_image_check() needs a struct drover_check that this library knows");
	call.check.memory = c.memory;
	if (c.flags & DROVER_CHECK_REPAIR_LEAKS)
		call.check.repair |= BLOCK_REPAIR_LEAKS;
	if (c.flags & DROVER_CHECK_REPAIR_ERRORS)
		call.check.repair |= BLOCK_REPAIR_ERRORS;
	r = control_call(co_check, &call);
	if (r)
		return lib_error(err, r, &call.err);
	c.corruptions = call.check.corruptions;
	c.leaks = call.check.leaks;
	c.check_errors = call.check.check_errors;
	c.corruptions_fixed = call.check.corruptions_fixed;
	c.leaks_fixed = call.check.leaks_fixed;
	c.image_end = call.check.image_end;
	c.total_clusters = call.check.total_clusters;
	c.allocated_clusters = call.check.allocated_clusters;
	c.compressed_clusters = call.check.compressed_clusters;
	c.fragmented_clusters = call.check.fragmented_clusters;
	return lib_struct_out(check, &c, sizeof(c), sizeof(c));
}

struct create_call {
	const char *format, *name;
	struct conf *opts;
	struct block_trust trust;
	struct error err;
};

static int co_create(void *arg)
{
	struct create_call *c = arg;

	return co_block_create(c->format, c->name, c->opts, &c->trust, &c->err);
}

int drover_create(const char *format, const char *name, uint64_t size, const char *options,
	const struct drover_trust *trust, struct drover_error *err)
{
	_cleanup_(conf_freep) struct conf *opts = NULL;
	struct create_call call = {.format = format, .name = name};
	char text[32];
	int r;

	if (!format || !name)
		return lib_error_text(err, -EINVAL, "drover_create() needs a format and a name");
	r = lib_trust_in(&call.trust, trust);
	if (r)
		return lib_error_text(err, r, "drover_create() needs a struct drover_trust");
	r = conf_parse_options(options ? options : "", NULL, &opts, &call.err);
	if (r)
		return lib_error(err, r, &call.err);
	if (size || !conf_has(opts, "backing_file")) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)size);
		r = conf_set(opts, "size", text);
	}
	call.opts = opts;
	if (!r)
		r = control_get(err);
	if (r)
		return r;
	r = control_call(co_create, &call);
	control_put();
	return r ? lib_error(err, r, &call.err) : 0;
}
