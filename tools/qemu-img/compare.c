/* SPDX-License-Identifier: MIT */
/* qemu-img compare: do two images hold the same. */
#include "tools/qemu-img/img.h"

/* Exit codes that scripts know. */
enum { COMPARE_SAME, COMPARE_DIFFERENT, COMPARE_OPEN, COMPARE_ALLOCATION, COMPARE_READ };

struct compare_opts {
	struct image_common c;
	const char *format2;
	bool strict;
	int output;
};

/* What came out, in words for both kinds of output. */
struct verdict {
	const char *reason; /* NULL: same */
	bool size_mismatch;
	uint64_t off;
};

static void print_human(const struct verdict *v, const struct block_compare *c)
{
	/* Of no interest before the end of the shorter image is reached. */
	if (v->size_mismatch && (!v->reason || v->off >= MIN(block_size(c->a), block_size(c->b))))
		printf("Warning: Image size mismatch!\n");
	if (!v->reason)
		printf("Images are identical.\n");
	else if (!strcmp(v->reason, "size"))
		printf("Strict mode: Image size mismatch!\n");
	else if (!strcmp(v->reason, "allocation"))
		printf("Strict mode: Offset %llu block status mismatch!\n",
			(unsigned long long)v->off);
	else
		printf("Content mismatch at offset %llu!\n", (unsigned long long)v->off);
}

static void print_json(const struct verdict *v, const struct block_compare *c)
{
	struct json_writer w;

	json_begin(&w, stdout, false);
	json_object(&w, NULL);
	json_bool(&w, "identical", !v->reason);
	json_bool(&w, "size-mismatch", v->size_mismatch);
	if (v->reason) {
		json_string(&w, "reason", v->reason);
		if (strcmp(v->reason, "size") != 0)
			json_u64(&w, "offset", v->off);
	}
	json_string(&w, "filename", c->a->filename);
	json_string(&w, "filename2", c->b->filename);
	json_object_end(&w);
	json_end(&w);
}

static int co_compare_nodes(const struct compare_opts *o, struct block_compare *c)
{
	struct verdict v = {.size_mismatch = block_size(c->a) != block_size(c->b)};
	struct error err = ERROR_INIT;
	struct progress p;
	int r = 0;

	if (v.size_mismatch && o->strict) {
		v.reason = "size";
	} else {
		if (progress_begin(&p, o->c.progress, 0, "compare") < 0)
			return COMPARE_OPEN;
		c->job = &p.job;
		r = co_block_compare(c, &err);
		progress_end(&p, r == 0);
		if (r > 0)
			v.reason = c->diff_alloc ? "allocation" : "content";
		v.off = c->diff_off;
	}
	if (r < 0) {
		if (progress_signal())
			tool_error("compare was interrupted");
		else
			tool_fail(&err);
		return COMPARE_READ;
	}
	if (o->output == IMG_JSON)
		print_json(&v, c);
	else if (!o->c.quiet)
		print_human(&v, c);
	return v.reason ? COMPARE_DIFFERENT : COMPARE_SAME;
}

static int co_compare_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct compare_opts *o = opts;
	struct image_common second = o->c;
	struct block_compare c = {.strict = o->strict};
	int rc;

	second.format = o->format2;
	if (co_image_open_common(&o->c, args[0], 0, &c.a) < 0)
		return COMPARE_OPEN;
	if (co_image_open_common(&second, args[1], 0, &c.b) < 0)
		rc = COMPARE_OPEN;
	else
		rc = co_compare_nodes(o, &c);
	co_block_node_unref(c.b);
	co_block_node_unref(c.a);
	return rc;
}

#define T struct compare_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPT_PROGRESS(T),
	IMAGE_OPT(T, OPT_TEXT, 'f', "a-format", "FMT", "format of FILENAME1 (default: probed)",
		c.format),
	IMAGE_OPT(T, OPT_TEXT, 0, "format", "FMT", NULL, c.format),
	IMAGE_OPT(T, OPT_TEXT, 'F', "b-format", "FMT", "format of FILENAME2 (default: probed)",
		format2),
	IMAGE_OPT(
		T, OPT_FLAG, 0, "image-opts", NULL, "both names are option strings", c.image_opts),
	IMAGE_OPT(T, OPT_FLAG, 's', "strict", NULL,
		"sizes and allocation have to be the same as well", strict),
	IMAGE_OPT_ENUM(T, 'T', "cache", "CACHE", "cache mode of both (default: writeback)", c.cache,
		block_cache_names),
	OPT_SHARE(T),
	OPT_OUTPUT(T, output),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_compare = {
	.name = "compare",
	.summary = "Check if two images have the same contents",
	.args = "FILENAME1 FILENAME2",
	.wrong_args = "Expecting two image file names",
	.min_args = 2,
	.max_args = 2,
	.opts = options,
	.opts_size = sizeof(struct compare_opts),
	.co_run = co_compare_cmd,
};
