/* SPDX-License-Identifier: MIT */
/* qemu-img convert: images copied into a new format, or into a target that is there. */
#include "tools/qemu-img/img.h"
#include "tools/qemu-img/concat.h"
#include "base/mem.h"

#define SPARSE_MAX     (16 * MiB)
#define SPARSE_DEFAULT 4096u

struct convert_opts {
	struct image_common c; /* of the sources */
	const char *target_format, *backing, *backing_format, *snapshot;
	struct opt_texts options;
	int target_cache;
	bool target_opts, no_create, target_is_zero, compress, out_of_order, offload, salvage;
	uint64_t sparse, rate, parallel;
};

#define SPARSE_UNSET UINT64_MAX

static const struct convert_opts defaults = {
	.target_format = NULL,
	.target_cache = BLOCK_CACHE_UNSAFE,
	.sparse = SPARSE_UNSET,
};

struct convert {
	const struct convert_opts *o;
	const char *format;            /* of the target */
	struct block_node *src, *base; /* base: borrowed from src's chain */
	struct img_target target;
	struct conf *create;
	struct progress progress;
};

/* --- what was asked for ---------------------------------------------------------------------- */

static const char *check_options(const struct convert_opts *o, unsigned nsrc)
{
	if (o->target_opts && !o->no_create)
		return "--target-image-opts requires use of -n flag";
	if (o->target_is_zero && !o->no_create)
		return "--target-is-zero requires use of -n flag";
	if (o->no_create && o->options.n)
		return "-o has no effect when skipping image creation";
	if (o->no_create && o->backing)
		return "-b has no effect when skipping image creation";
	if (o->offload && o->compress)
		return "Cannot enable copy offloading when -c is used";
	if (o->offload && o->sparse != SPARSE_UNSET)
		return "Cannot enable copy offloading when -S is used";
	if (o->sparse != SPARSE_UNSET && (o->sparse % 512 || o->sparse > SPARSE_MAX))
		return "Invalid buffer size for sparse output specified. Valid sizes are multiples "
		       "of 512 up to 16777216. Select 0 to disable sparse detection (fully "
		       "allocates output).";
	if (o->snapshot && nsrc > 1)
		return "No support for concatenating multiple snapshot";
	return NULL;
}

static const char *create_text(struct conf *create, const char *key)
{
	struct conf *v = conf_has(create, key) ? conf_get(create, key) : NULL;

	return v && conf_type(v) == CONF_SCALAR ? conf_text(v) : NULL;
}

/* -b and -F become creation options; a backing file needs its format. */
static int set_backing(struct convert *cv, unsigned nsrc, struct error *err)
{
	const struct convert_opts *o = cv->o;

	if ((o->backing && conf_set(cv->create, "backing_file", o->backing) < 0) ||
		(o->backing_format && conf_set(cv->create, "backing_fmt", o->backing_format) < 0))
		return error_set(err, -ENOMEM, "out of memory");
	if (!create_text(cv->create, "backing_file")) {
		if (o->backing_format)
			return error_set(err, -EINVAL,
				"Backing format cannot be used without backing file: add -b FILE");
		return 0;
	}
	if (!create_text(cv->create, "backing_fmt"))
		return error_set(err, -EINVAL,
			"Use of backing file requires explicit backing format: add -F FMT");
	if (!img_can_back(cv->format))
		return error_set(err, -ENOTSUP, "Backing file not supported for file format '%s'",
			cv->format);
	if (nsrc > 1)
		return error_set(err, -EINVAL,
			"Having a backing file for the target makes no sense when concatenating "
			"multiple input images");
	return 0;
}

/* --- the source ------------------------------------------------------------------------------ */

static int co_open_sources(struct convert *cv, char *const *names, unsigned n, struct error *err)
{
	_cleanup_free_ struct block_node **src = mem_calloc(n, sizeof(*src));
	unsigned opened = 0;
	int r = src ? 0 : error_set(err, -ENOMEM, "out of memory");

	for (; r >= 0 && opened < n; opened++) {
		struct image_name in = {.name = names[opened],
			.format = cv->o->c.format,
			.opts = cv->o->c.image_opts,
			.cache = cv->o->c.cache};

		r = co_image_open(&cv->o->c, &in, &src[opened], err);
		if (r < 0)
			break;
	}
	if (r >= 0 && cv->o->snapshot)
		r = co_img_open_snapshot(&src[0], cv->o->snapshot, err);
	if (r >= 0 && n > 1)
		r = co_concat_open(src, n, &cv->src, err);
	else if (r >= 0)
		cv->src = src[0];
	if (r < 0)
		while (opened--)
			co_block_node_unref(src[opened]);
	return r;
}

/* Is the target's file one that the source is read from? Writing it would destroy both. */
static bool reads_from(struct block_node *n, const char *name)
{
	if (!n)
		return false;
	if (n->drv->kind == BLOCK_KIND_PROTOCOL)
		return n->filename && img_same_file(n->filename, name);
	for (int role = 0; role < BLOCK_ROLES; role++)
		if (reads_from(n->child[role], name))
			return true;
	return false;
}

/* --- the copy -------------------------------------------------------------------------------- */

static int co_open_target(struct convert *cv, const char *name, struct error *err)
{
	const struct convert_opts *o = cv->o;
	uint64_t size = block_size(cv->src);
	char text[24];
	int r;

	cv->target = (struct img_target){.common = &o->c,
		.name = name,
		.format = o->target_opts   ? NULL
			: o->target_format ? o->target_format
					   : "raw",
		.opts = o->target_opts,
		.no_create = o->no_create,
		.cache = o->target_cache,
		.create = cv->create};
	if (!o->target_opts && reads_from(cv->src, name))
		return error_set(err, -EINVAL,
			"'%s' is what is being read: converting needs another file", name);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)size);
	if (!o->no_create && !conf_has(cv->create, "size") &&
		conf_set(cv->create, "size", text) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	r = co_target_open(&cv->target, err);
	if (r < 0)
		return r;
	if (block_size(cv->target.node) < size)
		return error_set(err, -EFBIG,
			"output file is smaller than input file: '%s' has %llu of %llu bytes", name,
			(unsigned long long)block_size(cv->target.node), (unsigned long long)size);
	if (o->compress && !cv->target.node->drv->compress)
		return error_set(err, -ENOTSUP, "Compression not supported for this file format");
	return 0;
}

/* With a backing file for the target, what the source shares with it need not be copied: the layer
 * of the source that is this very file, or else, as its content is promised to be the same, the
 * source's own backing file. */
static void find_base(struct convert *cv)
{
	const char *backing = create_text(cv->create, "backing_file");
	struct block_node *below = cv->target.node ? block_backing(cv->target.node) : NULL;

	if (!backing || !below)
		return;
	cv->base = co_img_find_backing(cv->src, below->filename);
	if (!cv->base)
		cv->base = block_backing(cv->src);
}

static int co_copy(struct convert *cv, struct error *err)
{
	const struct convert_opts *o = cv->o;
	struct block_node *dst = cv->target.node;
	bool backing = block_backing(dst) != NULL;
	const struct block_trust *trust = cv->src->opts.trust;
	struct block_copy copy = {
		.src = cv->src,
		.dst = dst,
		.base = cv->base,
		.len = block_size(cv->src),
		.depth = (uint32_t)o->parallel,
		.min_sparse = o->sparse == SPARSE_UNSET ? SPARSE_DEFAULT : o->sparse,
		.full_alloc = o->sparse == 0,
		.dst_is_zero = o->target_is_zero ||
			(!o->no_create && !backing && dst->caps.zero_init),
		.dst_has_backing = backing && cv->base,
		.in_order = !o->out_of_order,
		.compress = o->compress,
		.offload = o->offload,
		.salvage = o->salvage,
		.refuse_amplified = trust->refuse_amplification,
		.job = &cv->progress.job,
	};
	int r;

	if (!copy.len)
		return 0;
	r = co_block_copy(&copy, err);
	if (r >= 0 && copy.salvaged)
		tool_warn("%llu bytes of '%s' could not be read and are zeroes now",
			(unsigned long long)copy.salvaged, cv->src->filename);
	return r;
}

static int co_convert(struct convert *cv, char *const *names, unsigned nsrc, struct error *err)
{
	int r = set_backing(cv, nsrc, err);

	if (r >= 0)
		r = co_open_sources(cv, names, nsrc, err);
	if (r >= 0 &&
		progress_begin(&cv->progress, cv->o->c.progress, block_size(cv->src), "convert") <
			0)
		r = error_set(err, -EINVAL, "nothing was converted");
	if (r >= 0)
		r = co_open_target(cv, names[nsrc], err);
	if (r < 0)
		return r;
	cv->progress.job.rate = cv->o->rate;
	find_base(cv);
	r = co_copy(cv, err);
	if (r >= 0) {
		progress_phase(&cv->progress, "finish");
		r = co_target_finish(&cv->target, err);
	}
	return r;
}

static int co_convert_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct convert_opts *o = opts;
	const char *wrong = check_options(o, nargs ? nargs - 1 : 0);
	_cleanup_free_ struct convert *cv = mem_zalloc(sizeof(*cv));
	struct error err = ERROR_INIT;
	char left[512];
	int r;

	if (wrong || !cv) {
		tool_error("%s", wrong ? wrong : "out of memory");
		return 1;
	}
	cv->o = o;
	cv->format = o->target_format ? o->target_format : "raw";
	r = img_create_options(&o->options, cv->format, &cv->create);
	if (r)
		return r > 0 ? 0 : 1;
	if (nargs < 2) {
		tool_error("Must specify image file name");
		conf_free(cv->create);
		return 1;
	}
	r = image_objects(&o->c) < 0 ? error_set(&err, -EINVAL, "nothing was converted")
				     : co_convert(cv, args, nargs - 1, &err);
	if (cv->src && cv->progress.start_ns)
		progress_end(&cv->progress, r >= 0);
	co_target_abandon(&cv->target, left, sizeof(left));
	co_block_node_unref(cv->src);
	conf_free(cv->create);
	if (r >= 0)
		return 0;
	if (progress_signal())
		error_set(&err, -ECANCELED, "convert was interrupted by a signal");
	if (left[0])
		tool_error("%s; %s", err.text, left);
	else
		tool_fail(&err);
	return 1;
}

#define T struct convert_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPT_PROGRESS(T),
	IMAGE_OPT(T, OPT_TEXT, 'f', "source-format", "SRC_FMT",
		"format of SRC_FILENAME (default: probed)", c.format),
	IMAGE_OPT(T, OPT_TEXT, 0, "format", "SRC_FMT", NULL, c.format),
	IMAGE_OPT(T, OPT_FLAG, 0, "image-opts", NULL,
		"SRC_FILENAME is an option string (also --source-image-opts)", c.image_opts),
	IMAGE_OPT(T, OPT_FLAG, 0, "source-image-opts", NULL, NULL, c.image_opts),
	IMAGE_OPT(T, OPT_TEXT, 'l', "source-snapshot", "SNAPSHOT",
		"convert that internal snapshot: id, name, or snapshot.id=ID,snapshot.name=NAME",
		snapshot),
	IMAGE_OPT(T, OPT_TEXT, 0, "snapshot", "SNAPSHOT", NULL, snapshot),
	IMAGE_OPT_ENUM(T, 'T', "source-cache", "SRC_CACHE",
		"cache mode of the source (default: writeback)", c.cache, block_cache_names),
	IMAGE_OPT(T, OPT_TEXT, 'O', "target-format", "TGT_FMT",
		"format of the target (default: raw)", target_format),
	IMAGE_OPT(T, OPT_FLAG, 0, "target-image-opts", NULL,
		"TGT_FILENAME is an option string (needs -n)", target_opts),
	IMAGE_OPT(T, OPT_TEXTS, 'o', "target-options", "K=V,...",
		"options of the target's format; '-o help' lists them", options),
	IMAGE_OPT(T, OPT_TEXTS, 0, "options", "K=V,...", NULL, options),
	IMAGE_OPT(T, OPT_FLAG, 'c', "compress", NULL, "write compressed clusters", compress),
	IMAGE_OPT_ENUM(T, 't', "target-cache", "TGT_CACHE",
		"cache mode of the target (default: unsafe)", target_cache, block_cache_names),
	IMAGE_OPT(T, OPT_TEXT, 'b', "backing", "BACKING_FILENAME",
		"make the target an overlay of that file, which has the content of the source's "
		"own backing file (also -B)",
		backing),
	IMAGE_OPT(T, OPT_TEXT, 'B', NULL, "BACKING_FILENAME", NULL, backing),
	IMAGE_OPT(T, OPT_TEXT, 'F', "backing-format", "BACKING_FMT", "format of BACKING_FILENAME",
		backing_format),
	IMAGE_OPT(
		T, OPT_FLAG, 'n', "no-create", NULL, "write into a target that exists", no_create),
	IMAGE_OPT(T, OPT_FLAG, 0, "target-is-zero", NULL,
		"the existing target reads as zeroes (needs -n)", target_is_zero),
	IMAGE_OPT_NUM(T, OPT_SIZE, 'S', "sparse-size", "SPARSE_SIZE",
		"zero runs of at least that size become holes (default: 4k; 0: none, everything "
		"is allocated)",
		sparse, 0, 0),
	OPT_SHARE(T),
	IMAGE_OPT_NUM(T, OPT_SIZE, 'r', "rate", "RATE", "bytes a second (default: no limit)", rate,
		1, INT64_MAX),
	IMAGE_OPT_NUM(T, OPT_NUMBER, 'm', "parallel", "N",
		"pieces in flight (default: by the number of CPUs)", parallel, 1, 65536),
	IMAGE_OPT(T, OPT_FLAG, 'W', "oob-writes", NULL,
		"write in any order, which is faster on devices", out_of_order),
	IMAGE_OPT(T, OPT_FLAG, 'C', "copy-range-offloading", NULL,
		"let the kernel copy where it can", offload),
	IMAGE_OPT(T, OPT_FLAG, 0, "salvage", NULL, "what cannot be read becomes zeroes", salvage),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_convert = {
	.name = "convert",
	.summary = "Copy one image to another with optional format conversion",
	.args = "SRC_FILENAME [SRC_FILENAME2...] TGT_FILENAME",
	.max_args = UINT32_MAX,
	.opts = options,
	.defaults = &defaults,
	.opts_size = sizeof(struct convert_opts),
	.co_run = co_convert_cmd,
};
