/* SPDX-License-Identifier: MIT */
/* qemu-img resize: another virtual size. */
#include "tools/qemu-img/img.h"

struct resize_opts {
	struct image_common c;
	bool shrink;
	int prealloc;
};

/* "+SIZE", "-SIZE" or "SIZE", from the size there is. */
static int parse_new_size(const char *text, uint64_t old, uint64_t *ret, struct error *err)
{
	char sign = *text == '+' || *text == '-' ? *text++ : 0;
	uint64_t v;

	if (parse_size(text, &v) < 0)
		return error_set(err, -EINVAL,
			"'%s' is not a size: give [+-]NUMBER with a suffix of k, M, G, T, P or E",
			text);
	if (sign == '-' && v > old)
		return error_set(err, -EINVAL,
			"New image size must be positive: the image has %llu bytes",
			(unsigned long long)old);
	if (sign == '+' && (add_overflow(old, v, &v) || v > INT64_MAX))
		return error_set(err, -EFBIG, "the new size would be above 8 EiB");
	*ret = sign == '-' ? old - v : v;
	return 0;
}

static int co_resize_node(
	const struct resize_opts *o, struct block_node *n, const char *size, struct error *err)
{
	uint64_t old = block_size(n);
	struct block_resize rz = {
		.prealloc = (enum block_prealloc)o->prealloc, .shrink = o->shrink};
	int r = parse_new_size(size, old, &rz.size, err);

	if (r < 0)
		return r;
	if (rz.size < old && !o->shrink)
		return error_set(err, -EINVAL,
			"Use the --shrink option to perform a shrink operation: all data beyond "
			"the new end will be lost");
	if (rz.size < old && rz.prealloc != BLOCK_PREALLOC_OFF)
		return error_set(err, -EINVAL, "Preallocation can only be used for growing images");
	return co_block_resize(n, &rz, err);
}

static int co_resize_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct resize_opts *o = opts;
	struct error err = ERROR_INIT;
	struct block_node *n;
	int rc = 0;

	if (co_image_open_common(&o->c, args[0], BLOCK_OPEN_RDWR, &n) < 0)
		return 1;
	if (co_resize_node(o, n, args[1], &err) < 0)
		rc = tool_fail(&err);
	co_image_close(&n, &rc);
	if (!rc && !o->c.quiet)
		printf("Image resized.\n");
	return rc;
}

#define T struct resize_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPTS_SOURCE(T),
	IMAGE_OPT(T, OPT_FLAG, 0, "shrink", NULL,
		"allow the new size to be smaller; what lies beyond is lost", shrink),
	IMAGE_OPT_ENUM(T, 0, "preallocation", "MODE",
		"preallocation of the new area: off, metadata, falloc, full", prealloc,
		block_prealloc_names),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_resize = {
	.name = "resize",
	.summary = "Resize the image to the new size",
	.args = "FILENAME [+-]SIZE[bkKMGTPE]",
	.wrong_args = "Expecting image file name and size",
	.min_args = 2,
	.max_args = 2,
	.opts = options,
	.opts_size = sizeof(struct resize_opts),
	.co_run = co_resize_cmd,
};
