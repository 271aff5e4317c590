/* SPDX-License-Identifier: MIT */
/*
 * Creating images: first the file, then the format in it; a file that we made and could not fill
 * goes away again.
 */
#include "block/internal.h"
#include <sys/stat.h>
#include <unistd.h>

/* The protocol driver behind a file name, and the name as that driver takes it. */
static int find_protocol(const char *filename, struct conf **ret_spec,
	const struct block_driver **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct conf *driver;
	int r = block_spec_from_name(filename, NULL, &spec, err);

	if (!r)
		r = block_name_driver(spec, err);
	if (r)
		return r;
	driver = conf_get(spec, "driver");
	*ret = NULL;
	if (driver && conf_type(driver) == CONF_SCALAR)
		*ret = block_driver_find(conf_text(driver));
	if (!*ret || (*ret)->kind != BLOCK_KIND_PROTOCOL || !(*ret)->co_create)
		return error_set(err, -ENOTSUP,
			"Images cannot be created at '%s'; name the file to be made", filename);
	*ret_spec = take(spec);
	return 0;
}

static const char *plain_name(struct conf *spec, const char *filename)
{
	struct conf *c = conf_get(spec, "filename");

	return c ? conf_text(c) : filename;
}

static int co_create_empty(const struct block_driver *proto, const char *name,
	const struct block_trust *trust, struct error *err)
{
	_cleanup_(conf_freep) struct conf *none = conf_new(CONF_OBJECT);
	struct block_create c = {.filename = name, .opts = none, .trust = trust};

	if (!none || conf_set(none, "size", "0"))
		return error_set_errno(err, -ENOMEM, "Could not create '%s'", name);
	return proto->co_create(&c, err);
}

/* Writes the format into the empty file. */
static int co_fill(const struct block_driver *drv, struct conf *spec, const char *name,
	struct conf *opts, const struct block_trust *trust, struct error *err)
{
	struct block_open_opts o = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_STORE | BLOCK_OPEN_UNMAP,
		.perm = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
		.shared = BLOCK_PERM_ALL & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE),
		.trust = trust,
	};
	struct block_create c = {.filename = name, .opts = opts, .trust = trust};
	int r = co_block_open(spec, &o, &c.file, err), r2;

	if (r)
		return r;
	r = drv->co_create(&c, err);
	r2 = co_block_node_unref(c.file);
	if (!r && r2)
		r = error_set_errno(err, r2, "Could not write '%s'", name);
	return r;
}

/* Would the format take these options? Asked before the file is touched: a slip in them must not
 * cost an image that is there already. Measuring parses them as creating does. */
static int co_check_opts(const struct block_driver *drv, struct conf *opts, struct error *err)
{
	_cleanup_(conf_freep) struct conf *copy = opts ? conf_dup(opts) : conf_new(CONF_OBJECT);
	struct block_measure m;
	uint64_t size = 0;
	struct conf *c;

	if (!drv->image || !drv->image->co_measure)
		return 0;
	if (!copy)
		return error_set_errno(err, -ENOMEM, "Could not create the image");
	c = conf_get(copy, "size");
	if (c && conf_type(c) == CONF_SCALAR && parse_size(conf_text(c), &size))
		return error_set(err, -EINVAL, "'%.64s' is not a size", conf_text(c));
	return drv->image->co_measure(copy, NULL, size, &m, err);
}

int co_block_create(const char *format, const char *filename, struct conf *opts,
	const struct block_trust *trust, struct error *err)
{
	const struct block_driver *drv = block_driver_find(format), *proto;
	_cleanup_(conf_freep) struct conf *spec = NULL;
	const char *name;
	bool made;
	int r;

	if (!drv)
		return error_set(err, -EINVAL, "Unknown file format '%.64s'", format);
	if (!drv->co_create)
		return error_set(err, -ENOTSUP,
			"Format driver '%s' does not support image creation", format);
	r = find_protocol(filename, &spec, &proto, err);
	if (r)
		return r;
	name = plain_name(spec, filename);
	if (drv->kind == BLOCK_KIND_PROTOCOL || drv == &block_raw) {
		struct block_create c = {.filename = name, .opts = opts, .trust = trust};

		return (drv == &block_raw ? proto : drv)->co_create(&c, err);
	}
	made = proto->takes_filename && access(name, F_OK) && errno == ENOENT;
	r = co_check_opts(drv, opts, err);
	if (r)
		return r;
	r = co_create_empty(proto, name, trust, err);
	if (!r)
		r = co_fill(drv, spec, name, opts, trust, err);
	if (r && made)
		unlink(name);
	return r;
}
