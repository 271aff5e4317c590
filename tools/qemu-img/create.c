/* SPDX-License-Identifier: MIT */
/* qemu-img create: a new image, empty or on top of a backing file. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"

struct create_opts {
	struct image_common c;
	struct opt_texts options;
	const char *backing, *backing_format;
	bool unsafe;
};

static int set_text(struct conf *opts, const char *key, const char *value)
{
	if (!value)
		return 0;
	return conf_set(opts, key, value);
}

static const char *get_text(struct conf *opts, const char *key)
{
	struct conf *v = conf_has(opts, key) ? conf_get(opts, key) : NULL;

	return v && conf_type(v) == CONF_SCALAR ? conf_text(v) : NULL;
}

/* Opens the backing file, to see that it is there and how big it is. */
static int co_backing_size(const struct create_opts *o, const char *filename, const char *backing,
	const char *format, uint64_t *ret, struct error *err)
{
	_cleanup_free_ char *path = block_path_join(filename, backing);
	/* Only its size is wanted: a guest may well be using it. */
	struct image_name in = {
		.name = path, .format = format, .flags = BLOCK_OPEN_NO_IO | BLOCK_OPEN_FORCE_SHARE};
	struct block_node *n;
	int r;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (img_same_file(path, filename))
		return error_set(err, -EINVAL, "an image cannot be its own backing file");
	r = co_image_open(&o->c, &in, &n, err);
	if (r < 0) {
		error_prefix(err, "the backing file cannot be used (-u leaves it unopened)");
		return r;
	}
	*ret = block_size(n);
	if (!format)
		r = error_set(err, -EINVAL,
			"Backing file specified without backing format: add -F %s, if the detected "
			"format is right",
			n->drv->name);
	co_block_node_unref(n);
	return r;
}

static int co_check_backing(const struct create_opts *o, const char *format, const char *filename,
	struct conf *opts, struct error *err)
{
	const char *backing = get_text(opts, "backing_file"), *fmt = get_text(opts, "backing_fmt");
	char text[24];
	uint64_t size = 0;
	int r;

	if (!backing || !*backing) {
		if (fmt)
			return error_set(err, -EINVAL,
				"Backing format cannot be used without backing file: add -b FILE");
		return 0;
	}
	if (!img_can_back(format))
		return error_set(
			err, -ENOTSUP, "Backing file not supported for file format '%s'", format);
	if (fmt && !block_driver_find(fmt))
		return error_set(err, -EINVAL, "Unknown backing file format '%s'", fmt);
	if (o->unsafe)
		return 0;
	r = co_backing_size(o, filename, backing, fmt, &size, err);
	if (r < 0 || conf_has(opts, "size"))
		return r;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)size);
	return conf_set(opts, "size", text);
}

static int parse_size_argument(const char *arg, struct conf *opts, struct error *err)
{
	uint64_t size;
	char text[24];
	int r = parse_size(arg, &size);

	if (conf_has(opts, "size"))
		return error_set(err, -EINVAL, "The image size must be specified only once");
	if (r == -ERANGE)
		return error_set(err, -EINVAL,
			"Invalid image size specified. Must be between 0 and 9223372036854775807.");
	if (r < 0)
		return error_set(err, -EINVAL, "Invalid image size specified: '%s'.", arg);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)size);
	return conf_set(opts, "size", text);
}

static int co_create_image(const struct create_opts *o, const char *format, const char *name,
	const char *size, struct conf *opts, struct error *err)
{
	const struct block_trust *trust;
	int r;

	if (image_trust(&o->c, &trust) < 0 || image_objects(&o->c) < 0)
		return error_set(err, -EINVAL, "nothing was created");
	if (set_text(opts, "backing_file", o->backing) < 0 ||
		set_text(opts, "backing_fmt", o->backing_format) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	r = size ? parse_size_argument(size, opts, err) : 0;
	if (r >= 0)
		r = co_check_backing(o, format, name, opts, err);
	if (r < 0)
		return r;
	if (!conf_has(opts, "size"))
		return error_set(err, -EINVAL, "Image creation needs a size parameter");
	if (!o->c.quiet)
		img_print_formatting(name, format, opts);
	return co_block_create(format, name, opts, trust, err);
}

static int co_create_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct create_opts *o = opts;
	const char *format = o->c.format ? o->c.format : "raw";
	_cleanup_(conf_freep) struct conf *create = NULL;
	struct error err = ERROR_INIT;
	int r = img_create_options(&o->options, format, &create);

	if (r)
		return r > 0 ? 0 : 1;
	if (!nargs) {
		tool_error("Expecting image file name");
		return 1;
	}
	r = co_create_image(o, format, args[0], nargs > 1 ? args[1] : NULL, create, &err);
	if (r < 0) {
		if (!strstr(err.text, args[0]))
			error_prefix(&err, "%s", args[0]);
		return tool_fail(&err);
	}
	return 0;
}

#define T struct create_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	IMAGE_OPT(T, OPT_TEXT, 'f', "format", "FMT", "format of the new image (default: raw)",
		c.format),
	IMAGE_OPT(T, OPT_TEXTS, 'o', "options", "K=V,...",
		"options of the format; '-o help' lists them", options),
	IMAGE_OPT(T, OPT_TEXT, 'b', "backing", "BACKING_FILENAME",
		"make the image an overlay of that file", backing),
	IMAGE_OPT(T, OPT_TEXT, 'F', "backing-format", "BACKING_FMT",
		"format of the backing file (also -B)", backing_format),
	IMAGE_OPT(T, OPT_TEXT, 'B', NULL, "BACKING_FMT", NULL, backing_format),
	IMAGE_OPT(T, OPT_FLAG, 'u', "backing-unsafe", NULL, "do not open the backing file", unsafe),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_create = {
	.name = "create",
	.summary = "Create and format new image file",
	.args = "FILENAME [SIZE[bkKMGTPE]]",
	.max_args = 2,
	.opts = options,
	.opts_size = sizeof(struct create_opts),
	.co_run = co_create_cmd,
};
