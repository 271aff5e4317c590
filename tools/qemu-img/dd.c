/* SPDX-License-Identifier: MIT */
/* qemu-img dd: a part of an image, in blocks, into a new one. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"

struct dd_opts {
	struct image_common c;
	const char *target_format, *snapshot;
	bool no_create;
};

static const struct dd_opts defaults = {.target_format = "raw"};

/* The operands, name=value. */
struct operands {
	const char *in, *out;
	uint64_t bs, count, skip, osize;
};

#define UNSET UINT64_MAX

static const struct {
	const char *name;
	size_t at;
	uint64_t min, max;
} numbers[] = {
	{"bs=", offsetof(struct operands, bs), 1, INT32_MAX},
	{"count=", offsetof(struct operands, count), 0, INT64_MAX},
	{"skip=", offsetof(struct operands, skip), 0, INT64_MAX},
	{"osize=", offsetof(struct operands, osize), 0, INT64_MAX},
};

static int parse_operand(const char *arg, struct operands *op)
{
	if (!strncmp(arg, "if=", 3)) {
		op->in = arg + 3;
		return 0;
	}
	if (!strncmp(arg, "of=", 3)) {
		op->out = arg + 3;
		return 0;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
		size_t len = strlen(numbers[i].name);
		uint64_t v;

		if (strncmp(arg, numbers[i].name, len) != 0)
			continue;
		if (parse_size(arg + len, &v) < 0) {
			tool_error("Invalid %.*s specified: '%s'.", (int)len - 1, arg, arg + len);
			return -EINVAL;
		}
		if (v < numbers[i].min || v > numbers[i].max) {
			tool_error("Invalid %.*s specified. Must be between %llu and %llu.",
				(int)len - 1, arg, (unsigned long long)numbers[i].min,
				(unsigned long long)numbers[i].max);
			return -EINVAL;
		}
		*(uint64_t *)((char *)op + numbers[i].at) = v;
		return 0;
	}
	tool_error("unrecognized operand '%s'", arg);
	return -EINVAL;
}

/* Which bytes of the input: from skip blocks on, count blocks, no further than its end. */
static void choose_range(const struct operands *op, uint64_t size, uint64_t *off, uint64_t *len)
{
	uint64_t want;

	if (mul_overflow(op->skip, op->bs, off) || *off > size)
		*off = size;
	*len = size - *off;
	if (op->count != UNSET && !mul_overflow(op->count, op->bs, &want))
		*len = MIN(*len, want);
}

static int co_dd(const struct dd_opts *o, const struct operands *op, struct block_node *src,
	struct img_target *t, struct progress *p, struct error *err)
{
	struct block_copy copy = {.src = src, .min_sparse = 4096, .in_order = true, .job = &p->job};
	char text[24];
	int r;

	choose_range(op, block_size(src), &copy.src_off, &copy.len);
	if (op->skip && !copy.len && op->skip > block_size(src) / op->bs)
		tool_warn("%s: cannot skip to specified offset", op->in);
	p->job.total = copy.len;
	snprintf(text, sizeof(text), "%llu",
		(unsigned long long)(op->osize == UNSET ? copy.len : op->osize));
	if (conf_set(t->create, "size", text) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (img_same_file(op->in, op->out))
		return error_set(err, -EINVAL, "'%s' is input and output at once", op->in);
	r = co_target_open(t, err);
	if (r < 0)
		return r;
	if (block_size(t->node) < copy.len)
		return error_set(
			err, -ENOSPC, "'%s' is smaller than what is to be copied", op->out);
	copy.dst = t->node;
	copy.dst_is_zero = !o->no_create && t->node->caps.zero_init;
	r = copy.len ? co_block_copy(&copy, err) : 0;
	return r < 0 ? r : co_target_finish(t, err);
}

static int co_dd_images(const struct dd_opts *o, const struct operands *op)
{
	_cleanup_(conf_freep) struct conf *create = conf_new(CONF_OBJECT);
	struct img_target t = {.common = &o->c,
		.name = op->out,
		.format = o->target_format,
		.no_create = o->no_create,
		.cache = BLOCK_CACHE_WRITEBACK,
		.create = create};
	struct error err = ERROR_INIT;
	struct block_node *src = NULL;
	struct progress p;
	char left[512];
	int r = 0;

	if (!create || !img_format(o->target_format))
		return 1;
	if (co_image_open_common(&o->c, op->in, 0, &src) < 0)
		return 1;
	if (o->snapshot)
		r = co_img_open_snapshot(&src, o->snapshot, &err);
	if (r >= 0 && progress_begin(&p, o->c.progress, 0, "copy") < 0)
		r = error_set(&err, -EINVAL, "nothing was copied");
	if (r >= 0) {
		r = co_dd(o, op, src, &t, &p, &err);
		progress_end(&p, r >= 0);
	}
	co_target_abandon(&t, left, sizeof(left));
	co_block_node_unref(src);
	if (r >= 0)
		return 0;
	if (progress_signal())
		error_set(&err, -ECANCELED, "dd was interrupted by a signal");
	if (left[0])
		tool_error("%s; %s", err.text, left);
	else
		tool_fail(&err);
	return 1;
}

static int co_dd_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct operands op = {.bs = 512, .count = UNSET, .osize = UNSET};

	for (unsigned i = 0; i < nargs; i++)
		if (parse_operand(args[i], &op) < 0)
			return 1;
	if (!op.in || !op.out) {
		tool_error("Must specify both input and output files");
		return 1;
	}
	return co_dd_images(opts, &op);
}

#define T struct dd_opts
static const struct opt options[] = {
	OPT_PROGRESS(T),
	OPTS_SOURCE(T),
	IMAGE_OPT(T, OPT_TEXT, 'O', "output-format", "OUTPUT_FMT",
		"format of the output (default: raw)", target_format),
	IMAGE_OPT(
		T, OPT_FLAG, 'n', "no-create", NULL, "write into an output that exists", no_create),
	IMAGE_OPT(
		T, OPT_TEXT, 'l', "snapshot", "SNAPSHOT", "read that internal snapshot", snapshot),
	OPT_SHARE(T),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_dd = {
	.name = "dd",
	.summary = "Copy input to output with optional format conversion",
	.args = "[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] [osize=SIZE] if=INPUT of=OUTPUT",
	.max_args = UINT32_MAX,
	.opts = options,
	.defaults = &defaults,
	.opts_size = sizeof(struct dd_opts),
	.co_run = co_dd_cmd,
};
