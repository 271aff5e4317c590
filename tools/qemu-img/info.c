/* SPDX-License-Identifier: MIT */
/* qemu-img info: what an image is. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"

struct info_opts {
	struct image_common c;
	bool chain, dump;
	int output;
};

/* All that is shown about one node. */
struct facts {
	struct block_node *node;
	struct block_image_info info;
	bool has_info;
	struct block_snapshot *snapshots;
	size_t nsnapshots;
	uint64_t actual;
	bool has_actual;
	char *full_backing; /* owned; NULL: no backing file */
	char *name;         /* owned: what opens this image again */
};

static void facts_destroy(struct facts *f)
{
	img_free_snapshots(f->snapshots, f->nsnapshots);
	mem_free(f->full_backing);
	mem_free(f->name);
}

static void facts_freep(struct facts **f)
{
	if (*f)
		facts_destroy(*f);
	mem_free(*f);
}

/* A window of a file is not what its file name says: it is shown with its options. */
static char *image_name(const struct block_node *n)
{
	if (n->spec && (conf_has(n->spec, "offset") || conf_has(n->spec, "size")))
		return conf_to_json(n->spec);
	return mem_strdup(n->filename);
}

static int co_facts(struct block_node *n, struct facts *f, struct error *err)
{
	int r;

	f->node = n;
	f->name = image_name(n);
	if (!f->name)
		return error_set(err, -ENOMEM, "out of memory");
	f->has_actual = co_block_actual_size(n, &f->actual) >= 0;
	if (n->drv->image && n->drv->image->co_info) {
		r = n->drv->image->co_info(n, &f->info, err);
		if (r < 0)
			return r;
		f->has_info = true;
	}
	if (n->drv->snapshot) {
		r = n->drv->snapshot->co_list(n, &f->snapshots, &f->nsnapshots);
		if (r < 0)
			return error_set_errno(
				err, r, "The snapshots of '%s' could not be read", n->filename);
	}
	if (f->info.backing_name) {
		f->full_backing = block_path_join(n->filename, f->info.backing_name);
		if (!f->full_backing)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

/* A file's length in whole sectors, as it has always been shown. */
static uint64_t length(const struct block_node *n)
{
	return n->drv->kind == BLOCK_KIND_PROTOCOL ? align_up(block_size(n), 512) : block_size(n);
}

/* --- for people --- */

static void print_size(const char *label, uint64_t bytes)
{
	printf("%s: %s (%llu bytes)\n", label, size_short(bytes).s, (unsigned long long)bytes);
}

static void print_backing(const struct facts *f)
{
	const char *name = f->info.backing_name;

	if (!name)
		return;
	printf("backing file: %s", name);
	if (strcmp(name, f->full_backing) != 0)
		printf(" (actual path: %s)", f->full_backing);
	putchar('\n');
	if (f->info.backing_format)
		printf("backing file format: %s\n", f->info.backing_format);
}

/* Child nodes, named by their way from the image: '/file', and filters deeper down. */
static void co_print_children(struct block_node *n, const char *path)
{
	struct block_node *c = n->child[BLOCK_ROLE_FILE];
	_cleanup_free_ char *sub = c ? mem_printf("%s/file", path) : NULL;
	uint64_t actual;

	if (!sub)
		return;
	printf("Child node '%s':\n", sub);
	printf("    filename: %s\n", c->filename);
	printf("    protocol type: %s\n", c->drv->name);
	printf("    file length: %s (%llu bytes)\n", size_short(length(c)).s,
		(unsigned long long)length(c));
	if (co_block_actual_size(c, &actual) >= 0)
		printf("    disk size: %s\n", size_short(actual).s);
	co_print_children(c, sub);
}

static void co_print_facts(const struct facts *f)
{
	printf("image: %s\nfile format: %s\n", f->name, f->node->drv->name);
	print_size("virtual size", block_size(f->node));
	printf("disk size: %s\n", f->has_actual ? size_short(f->actual).s : "unavailable");
	if (f->info.encrypted)
		printf("encrypted: yes\n");
	if (f->info.cluster_size)
		printf("cluster_size: %llu\n", (unsigned long long)f->info.cluster_size);
	if (f->info.dirty)
		printf("cleanly shut down: no\n");
	print_backing(f);
	img_print_snapshots(f->snapshots, f->nsnapshots);
	if (f->has_info)
		image_print_specific(&f->info, "    ");
	co_print_children(f->node, "");
}

/* --- for programs --- */

static void co_json_node(struct json_writer *w, struct block_node *n);

static void co_json_children(struct json_writer *w, struct block_node *n)
{
	struct block_node *c = n->child[BLOCK_ROLE_FILE];

	json_list(w, "children");
	if (c) {
		json_object(w, NULL);
		json_string(w, "name", "file");
		json_object(w, "info");
		co_json_node(w, c);
		json_object_end(w);
		json_object_end(w);
	}
	json_list_end(w);
}

/* A child: the members of ImageInfo that make sense for a store of bytes. */
static void co_json_node(struct json_writer *w, struct block_node *n)
{
	uint64_t actual;

	co_json_children(w, n);
	json_u64(w, "virtual-size", length(n));
	json_string(w, "filename", n->filename);
	json_string(w, "format", n->drv->name);
	if (co_block_actual_size(n, &actual) >= 0)
		json_u64(w, "actual-size", actual);
	if (n->drv->kind == BLOCK_KIND_PROTOCOL)
		image_json_specific(w, n->drv->name, NULL);
	json_bool(w, "dirty-flag", false);
}

static void co_json_facts(struct json_writer *w, const char *key, const struct facts *f)
{
	json_object(w, key);
	co_json_children(w, f->node);
	if (f->info.backing_format)
		json_string(w, "backing-filename-format", f->info.backing_format);
	if (f->nsnapshots)
		img_json_snapshots(w, "snapshots", f->snapshots, f->nsnapshots);
	json_u64(w, "virtual-size", block_size(f->node));
	json_string(w, "filename", f->name);
	if (f->info.cluster_size)
		json_u64(w, "cluster-size", f->info.cluster_size);
	json_string(w, "format", f->node->drv->name);
	if (f->has_actual)
		json_u64(w, "actual-size", f->actual);
	if (f->info.encrypted)
		json_bool(w, "encrypted", true);
	if (f->info.compressed)
		json_bool(w, "compressed", true);
	if (f->info.nitems)
		image_json_specific(w, f->node->drv->name, &f->info);
	if (f->full_backing) {
		json_string(w, "full-backing-filename", f->full_backing);
		json_string(w, "backing-filename", f->info.backing_name);
	}
	json_bool(w, "dirty-flag", f->info.dirty);
	json_object_end(w);
}

/* --- the command --- */

static int co_show(
	const struct info_opts *o, struct block_node *n, struct json_writer *w, bool first)
{
	_cleanup_(facts_freep) struct facts *f = mem_zalloc(sizeof(*f));
	struct error err = ERROR_INIT;

	if (!f)
		error_set(&err, -ENOMEM, "out of memory");
	if (!f || co_facts(n, f, &err) < 0)
		return tool_fail(&err);
	if (o->output == IMG_JSON) {
		co_json_facts(w, NULL, f);
		return 0;
	}
	if (!first)
		putchar('\n');
	co_print_facts(f);
	return 0;
}

static int co_show_chain(const struct info_opts *o, struct block_node *n)
{
	struct json_writer w;
	bool first = true;
	int rc = 0;

	if (o->output == IMG_JSON) {
		json_begin(&w, stdout, false);
		if (o->chain)
			json_list(&w, NULL);
	}
	for (; n && !rc; n = o->chain ? block_backing(n) : NULL) {
		rc = co_show(o, n, &w, first);
		first = false;
	}
	if (o->output == IMG_JSON) {
		if (o->chain)
			json_list_end(&w);
		json_end(&w);
	}
	return rc;
}

static void emit_line(void *arg, const char *line)
{
	puts(line);
}

static int co_dump(struct block_node *n)
{
	struct error err = ERROR_INIT;

	if (!n->drv->image || !n->drv->image->co_dump_metadata) {
		tool_error("'%s' is a %s image, which has no metadata to dump", n->filename,
			n->drv->name);
		return 1;
	}
	if (n->drv->image->co_dump_metadata(n, emit_line, NULL, &err) < 0)
		return tool_fail(&err);
	return 0;
}

static int co_info_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct info_opts *o = opts;
	uint32_t flags = BLOCK_OPEN_NO_IO | (o->chain ? 0u : BLOCK_OPEN_NO_BACKING);
	struct block_node *n;
	int rc;

	if (co_image_open_common(&o->c, args[0], flags, &n) < 0)
		return 1;
	rc = o->dump ? co_dump(n) : co_show_chain(o, n);
	co_image_close(&n, &rc);
	return rc;
}

#define T struct info_opts
static const struct opt options[] = {
	OPTS_SOURCE(T),
	IMAGE_OPT(T, OPT_FLAG, 'b', "backing-chain", NULL,
		"show the backing files below the image as well", chain),
	IMAGE_OPT(T, OPT_FLAG, 0, "dump-metadata", NULL,
		"print header and tables without guest data, for support", dump),
	IMAGE_OPT_ENUM(T, 't', "cache", "CACHE", "cache mode of FILENAME (default: writeback)",
		c.cache, block_cache_names),
	OPT_SHARE(T),
	OPT_OUTPUT(T, output),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_info = {
	.name = "info",
	.summary = "Display information about image",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.opts_size = sizeof(struct info_opts),
	.co_run = co_info_cmd,
};
