/* SPDX-License-Identifier: MIT */
/* qemu-img measure: how large a file a new image would need. */
#include "tools/qemu-img/img.h"

struct measure_opts {
	struct image_common c;
	struct opt_texts options;
	const char *target, *snapshot;
	uint64_t size;
	int output;
};

#define NO_SIZE UINT64_MAX

static const struct measure_opts defaults = {.target = "raw", .size = NO_SIZE};

static void print(const struct measure_opts *o, const struct block_measure *m)
{
	struct json_writer w;

	if (o->output == IMG_HUMAN) {
		printf("required size: %llu\nfully allocated size: %llu\n",
			(unsigned long long)m->required, (unsigned long long)m->fully_allocated);
		if (m->has_bitmaps)
			printf("bitmaps size: %llu\n", (unsigned long long)m->bitmaps);
		return;
	}
	json_begin(&w, stdout, false);
	json_object(&w, NULL);
	if (m->has_bitmaps)
		json_u64(&w, "bitmaps", m->bitmaps);
	json_u64(&w, "required", m->required);
	json_u64(&w, "fully-allocated", m->fully_allocated);
	json_object_end(&w);
	json_end(&w);
}

static int co_measure_target(
	const struct measure_opts *o, struct conf *create, struct block_node *src)
{
	const struct block_driver *d = img_format(o->target);
	struct error err = ERROR_INIT;
	struct block_measure m = {0};
	int r;

	if (!d)
		return 1;
	if (!d->image || !d->image->co_measure)
		r = error_set(
			&err, -ENOTSUP, "Format driver '%s' does not support measuring", d->name);
	else
		r = d->image->co_measure(create, src, src ? block_size(src) : o->size, &m, &err);
	if (r < 0)
		return tool_fail(&err);
	print(o, &m);
	return 0;
}

static int co_measure_file(const struct measure_opts *o, struct conf *create, const char *name)
{
	struct error err = ERROR_INIT;
	struct block_node *n;
	int rc = 0;

	if (co_image_open_common(&o->c, name, 0, &n) < 0)
		return 1;
	if (o->snapshot && co_img_open_snapshot(&n, o->snapshot, &err) < 0)
		rc = tool_fail(&err);
	if (!rc)
		rc = co_measure_target(o, create, n);
	co_image_close(&n, &rc);
	return rc;
}

static int co_measure_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct measure_opts *o = opts;
	_cleanup_(conf_freep) struct conf *create = NULL;
	const char *wrong = NULL;
	int r = img_create_options(&o->options, o->target, &create);

	if (r)
		return r > 0 ? 0 : 1;
	if (nargs && o->size != NO_SIZE)
		wrong = "--size N cannot be used together with a filename.";
	else if (!nargs && o->size == NO_SIZE)
		wrong = "Either --size N or one filename must be specified.";
	else if (!nargs && (o->snapshot || o->c.image_opts || o->c.format))
		wrong = "--image-opts, -f, and -l can only be used with a filename argument.";
	if (wrong) {
		tool_error("%s", wrong);
		return 1;
	}
	return nargs ? co_measure_file(o, create, args[0]) : co_measure_target(o, create, NULL);
}

#define T struct measure_opts
static const struct opt options[] = {
	IMAGE_OPT(T, OPT_TEXT, 'O', "target-format", "FMT", "format of the target (default: raw)",
		target),
	IMAGE_OPT(
		T, OPT_TEXTS, 'o', "options", "K=V,...", "creation options of the target", options),
	IMAGE_OPT(T, OPT_TEXTS, 0, "target-options", "K=V,...", NULL, options),
	IMAGE_OPT_NUM(T, OPT_SIZE, 's', "size", "SIZE", "measure for an empty image of that size",
		size, 0, 0),
	OPTS_SOURCE(T),
	IMAGE_OPT(T, OPT_TEXT, 'l', "snapshot", "SNAPSHOT",
		"measure for that internal snapshot of FILENAME", snapshot),
	OPT_OUTPUT(T, output),
	OPT_SHARE(T),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_measure = {
	.name = "measure",
	.summary = "Calculate file size required for a new image",
	.args = "(--size SIZE | FILENAME)",
	.max_args = 1,
	.opts = options,
	.defaults = &defaults,
	.opts_size = sizeof(struct measure_opts),
	.co_run = co_measure_cmd,
};
