/* SPDX-License-Identifier: MIT */
/* qemu-img check: is the metadata of an image consistent; and repair. */
#include "tools/qemu-img/img.h"

/* Exit codes that scripts know. */
enum { CHECK_OK, CHECK_FAILED, CHECK_CORRUPT, CHECK_LEAKS, CHECK_UNSUPPORTED = 63 };

static const struct conf_enum repairs[] = {
	{"leaks", BLOCK_REPAIR_LEAKS},
	{"all", BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS},
	{NULL, 0},
};

struct check_opts {
	struct image_common c;
	int repair, output;
	uint64_t memory;
};

static void on_message(void *arg, bool is_error, const char *line)
{
	fprintf(stderr, "%s\n", line);
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
	progress_update(arg, done, total);
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? (double)part * 100.0 / (double)whole : 0.0;
}

static void print_human(const struct block_check *c)
{
	if (!c->corruptions && !c->leaks && !c->check_errors)
		printf("No errors were found on the image.\n");
	if (c->corruptions)
		printf("\n%llu errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
			(unsigned long long)c->corruptions);
	if (c->leaks)
		printf("\n%llu leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n",
			(unsigned long long)c->leaks);
	if (c->check_errors)
		printf("\n%llu internal errors have occurred during the check.\n",
			(unsigned long long)c->check_errors);
	if (c->total_clusters && c->allocated_clusters)
		printf("%llu/%llu = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed "
		       "clusters\n",
			(unsigned long long)c->allocated_clusters,
			(unsigned long long)c->total_clusters,
			percent(c->allocated_clusters, c->total_clusters),
			percent(c->fragmented_clusters, c->allocated_clusters),
			percent(c->compressed_clusters, c->allocated_clusters));
	if (c->image_end)
		printf("Image end offset: %llu\n", (unsigned long long)c->image_end);
}

static void json_count(struct json_writer *w, const char *key, uint64_t v)
{
	if (v)
		json_u64(w, key, v);
}

static void print_json(const struct block_check *c, const char *filename, const char *format)
{
	struct json_writer w;

	json_begin(&w, stdout, false);
	json_object(&w, NULL);
	json_count(&w, "image-end-offset", c->image_end);
	json_count(&w, "compressed-clusters", c->compressed_clusters);
	json_count(&w, "total-clusters", c->total_clusters);
	json_count(&w, "corruptions-fixed", c->corruptions_fixed);
	json_count(&w, "corruptions", c->corruptions);
	json_u64(&w, "check-errors", c->check_errors);
	json_count(&w, "leaks", c->leaks);
	json_count(&w, "leaks-fixed", c->leaks_fixed);
	json_count(&w, "allocated-clusters", c->allocated_clusters);
	json_string(&w, "filename", filename);
	json_string(&w, "format", format);
	json_count(&w, "fragmented-clusters", c->fragmented_clusters);
	json_object_end(&w);
	json_end(&w);
}

static int co_check_once(const struct check_opts *o, struct block_node *n, uint32_t repair,
	struct block_check *c, struct error *err)
{
	struct progress p;
	int r;

	if (progress_watch(&p, o->c.progress, 0, repair ? "repair" : "check") < 0)
		return error_set(err, -EINVAL, "the image was not checked");
	*c = (struct block_check){.repair = repair, .memory = o->memory, .message = on_message};
	if (o->c.progress) {
		c->progress = on_progress;
		c->arg = &p;
	}
	r = n->drv->check->co_check(n, c, err);
	progress_end(&p, r >= 0);
	return r;
}

/* After a repair the image is checked again: what counts is its state now. */
static int co_check_and_repair(
	const struct check_opts *o, struct block_node *n, struct block_check *c, struct error *err)
{
	uint64_t corruptions, leaks;
	int r = co_check_once(o, n, (uint32_t)o->repair, c, err);

	if (r < 0 || (!c->corruptions_fixed && !c->leaks_fixed))
		return r;
	corruptions = c->corruptions_fixed;
	leaks = c->leaks_fixed;
	if (o->output == IMG_HUMAN && !o->c.quiet)
		printf("The following inconsistencies were found and repaired:\n\n"
		       "    %llu leaked clusters\n    %llu corruptions\n\n"
		       "Double checking the fixed image now...\n",
			(unsigned long long)leaks, (unsigned long long)corruptions);
	r = co_check_once(o, n, 0, c, err);
	c->corruptions_fixed = corruptions;
	c->leaks_fixed = leaks;
	return r;
}

static int co_check_node(const struct check_opts *o, struct block_node *n, const char *name)
{
	struct error err = ERROR_INIT;
	struct block_check c;
	int r;

	if (!n->drv->check) {
		tool_error("This image format does not support checks");
		return CHECK_UNSUPPORTED;
	}
	r = co_check_and_repair(o, n, &c, &err);
	if (r < 0) {
		error_prefix(&err, "Check failed");
		tool_fail(&err);
		return CHECK_FAILED;
	}
	if (o->output == IMG_JSON)
		print_json(&c, name, n->drv->name);
	else if (!o->c.quiet)
		print_human(&c);
	if (c.check_errors)
		return CHECK_FAILED;
	return c.corruptions ? CHECK_CORRUPT : c.leaks ? CHECK_LEAKS : CHECK_OK;
}

static int co_check_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct check_opts *o = opts;
	uint32_t flags = BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_NO_IO;
	struct block_node *n;
	int rc;

	if (o->repair)
		flags = BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_RDWR;
	if (co_image_open_common(&o->c, args[0], flags, &n) < 0)
		return CHECK_FAILED;
	rc = co_check_node(o, n, args[0]);
	co_image_close(&n, &rc);
	return rc;
}

#define T struct check_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPTS_SOURCE(T),
	IMAGE_OPT_ENUM(T, 'T', "cache", "CACHE_MODE", "cache mode (default: writeback)", c.cache,
		block_cache_names),
	OPT_SHARE(T),
	OPT_OUTPUT(T, output),
	IMAGE_OPT_ENUM(T, 'r', "repair", "leaks|all",
		"repair leaked clusters only, or all that can be repaired", repair, repairs),
	IMAGE_OPT_NUM(T, OPT_SIZE, 0, "memory", "SIZE",
		"memory the check may use; above it, it works in several passes (default: 256M)",
		memory, 1 * MiB, 1ULL << 40),
	OPT_PROGRESS(T),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_check = {
	.name = "check",
	.summary = "Check basic image integrity",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.opts_size = sizeof(struct check_opts),
	.co_run = co_check_cmd,
};
