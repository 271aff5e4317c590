/* SPDX-License-Identifier: MIT */
/* open, close, reopen, length, info: which file the other commands work on. */
#include "tools/qemu-io/io.h"
#include "base/mem.h"
#include <stdlib.h>
#include <unistd.h>

static const struct opt no_opts[] = {{0}};

/* --discard and --detect-zeroes as users write them. */
static int parse_discard(const struct io_open_opts *o, struct image_name *in)
{
	static const struct conf_enum discard[] = {
		{"ignore", 1}, {"off", 1}, {"unmap", 0}, {"on", 0}, {NULL, 0}};
	const struct conf_enum *e = discard;

	if (!o->discard)
		return 0;
	while (e->name && strcmp(e->name, o->discard) != 0)
		e++;
	if (!e->name) {
		tool_error("Invalid discard option: %s (ignore, unmap)", o->discard);
		return -EINVAL;
	}
	in->keep_data = e->value;
	return 0;
}

/* A throw-away qcow2 overlay on *node, in $TMPDIR, unlinked while it is open. */
static int co_add_snapshot(struct block_node **node, const struct block_trust *trust)
{
	const char *dir = getenv("TMPDIR");
	_cleanup_free_ char *path = mem_printf("%s/drover-XXXXXX", dir && *dir ? dir : "/var/tmp");
	_cleanup_(conf_freep) struct conf *opts = conf_new(CONF_OBJECT), *spec = NULL;
	struct block_open_opts oo = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_UNMAP,
		.cache = BLOCK_CACHE_UNSAFE,
		.trust = trust};
	struct error err = ERROR_INIT;
	struct block_node *top;
	char size[24];
	int fd, r = -ENOMEM;

	snprintf(size, sizeof(size), "%llu", (unsigned long long)block_size(*node));
	if (!path || !opts || conf_set(opts, "size", size) < 0)
		return error_set(&err, -ENOMEM, "out of memory"), tool_fail(&err), r;
	fd = mkstemp(path);
	if (fd < 0) {
		tool_error("no temporary file could be made in %s: %s (set TMPDIR)", path,
			errno_text(errno));
		return -errno;
	}
	close(fd);
	r = co_block_create("qcow2", path, opts, trust, &err);
	if (r >= 0)
		r = block_spec_from_name(path, "qcow2", &spec, &err);
	if (r >= 0)
		r = co_block_open(spec, &oo, &top, &err);
	unlink(path);
	if (r >= 0) {
		r = co_block_set_child(top, BLOCK_ROLE_BACKING, block_node_ref(*node));
		if (r < 0)
			co_block_node_unref(top);
	}
	if (r < 0) {
		err.code = r;
		tool_fail(&err);
		return r;
	}
	co_block_node_unref(*node);
	*node = top;
	return 0;
}

/* All -o together; NULL: none, or no memory (*failed). */
static char *join_options(const struct opt_texts *t, bool *failed)
{
	char *all = NULL;

	*failed = false;
	for (unsigned i = 0; i < t->n && !*failed; i++) {
		char *next = all ? mem_printf("%s,%s", all, t->v[i]) : mem_strdup(t->v[i]);

		mem_free(all);
		all = next;
		*failed = !next;
	}
	return all;
}

int co_io_open(const struct io_open_opts *o, const char *name)
{
	bool failed;
	_cleanup_free_ char *more = join_options(&o->more, &failed);
	struct image_name in = {.name = name,
		.format = o->c.format,
		.opts = o->c.image_opts,
		.cache = o->no_cache ? BLOCK_CACHE_NONE : o->c.cache,
		.more_opts = more};
	const struct block_trust *trust;
	struct block_node *node;
	struct error err = ERROR_INIT;
	int r;

	if (!name) { /* everything stands in the options */
		in.name = more ? more : "";
		in.opts = true;
		in.more_opts = NULL;
	}
	if (failed)
		tool_error("out of memory");
	if (failed || image_objects(&o->c) < 0 || image_trust(&o->c, &trust) < 0 ||
		parse_discard(o, &in) < 0)
		return -EINVAL;
	if (!o->read_only && !o->snapshot && !o->c.force_share)
		in.flags |= BLOCK_OPEN_RDWR;
	if (o->copy_on_read)
		in.flags |= BLOCK_OPEN_COPY_ON_READ;
	r = co_image_open(&o->c, &in, &node, &err);
	if (r < 0) {
		error_prefix(&err, "can't open%s%s", name ? " device " : "", name ? name : "");
		tool_fail(&err);
		return r;
	}
	if (o->snapshot) {
		r = co_add_snapshot(&node, trust);
		if (r < 0) {
			co_block_node_unref(node);
			return r;
		}
	}
	io.node = node;
	return 0;
}

void co_io_close(void)
{
	if (!io.node)
		return;
	io_release_breaks();
	co_counter_wait_zero(&io.aio);
	co_image_close(&io.node, &io.code);
}

static int co_open_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct io_open_opts *o = opts;

	if (io.node) {
		printf("file open already, try 'help close'\n");
		return 1;
	}
	if (!nargs && !o->more.n) {
		printf("open needs a path or options: open [-o OPTIONS] [PATH]\n");
		return 1;
	}
	o->c.objects.n = 0;
	o->c.untrusted |= io.common.untrusted;
	o->c.trust_names |= io.common.trust_names;
	return co_io_open(o, nargs ? args[0] : NULL) < 0;
}

static int co_close_cmd(void *opts, char *const *args, unsigned nargs)
{
	int before = io.code;

	io.code = 0;
	co_io_close();
	before |= io.code;
	io.code = before;
	return 0;
}

struct reopen_opts {
	bool read_only, writable;
	int cache;
	struct opt_texts more;
};

static int co_reopen_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct reopen_opts *o = opts;
	struct block_open_opts oo = io.node->opts;
	struct error err = ERROR_INIT;

	if (o->read_only && o->writable) {
		printf("Only one -r/-w option can be given\n");
		return 1;
	}
	if (o->more.n) {
		printf("reopen: driver options cannot be changed while a file is open: close it "
		       "and "
		       "open it with -o\n");
		return 1;
	}
	if (o->read_only)
		oo.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
	if (o->writable)
		oo.flags |= BLOCK_OPEN_RDWR;
	if (o->cache >= 0)
		oo.cache = (enum block_cache)o->cache;
	if (co_block_reopen(io.node, &oo, &err) < 0)
		return tool_fail(&err);
	return 0;
}

static int co_length_cmd(void *opts, char *const *args, unsigned nargs)
{
	printf("%s\n", io_size((double)block_size(io.node)).s);
	return 0;
}

static int co_info_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct block_node *n = block_skip_filters(io.node);
	_cleanup_free_ struct block_image_info *info = mem_zalloc(sizeof(*info));
	struct error err = ERROR_INIT;

	printf("format name: %s\n", n->drv->name);
	if (!info || !n->drv->image || !n->drv->image->co_info)
		return info ? 0 : 1;
	if (n->drv->image->co_info(n, info, &err) < 0)
		return tool_fail(&err);
	if (info->cluster_size)
		printf("cluster size: %s\n", io_size((double)info->cluster_size).s);
	image_print_specific(info, "    ");
	return 0;
}

#define OPEN_FLAG(letter_, name_, help_, field_)                                                   \
	IMAGE_OPT(struct io_open_opts, OPT_FLAG, letter_, name_, NULL, help_, field_)
#define OPEN_TEXT(letter_, name_, arg_, help_, field_)                                             \
	IMAGE_OPT(struct io_open_opts, OPT_TEXT, letter_, name_, arg_, help_, field_)

static const struct opt open_opts[] = {
	OPEN_FLAG('r', NULL, "open file read-only", read_only),
	OPEN_FLAG('s', NULL, "use a temporary overlay", snapshot),
	OPEN_FLAG('C', NULL, "use copy-on-read", copy_on_read),
	OPEN_FLAG('n', NULL, "disable host cache, short for -t none", no_cache),
	OPEN_FLAG('U', NULL, "force shared permissions", c.force_share),
	OPEN_FLAG('k', NULL, "ignored: the engine is chosen when qemu-io starts", native),
	OPEN_TEXT('i', NULL, "MODE", "ignored: the engine is chosen when qemu-io starts", aio),
	OPEN_TEXT('d', NULL, "MODE", "discard: ignore or unmap", discard),
	OPEN_TEXT('f', NULL, "FMT", "format of the file", c.format),
	IMAGE_OPT_ENUM(
		struct io_open_opts, 't', NULL, "CACHE", "cache mode", c.cache, block_cache_names),
	IMAGE_OPT(struct io_open_opts, OPT_TEXTS, 'o', NULL, "OPTIONS",
		"options to be given to the block driver", more),
	{0},
};
static const struct reopen_opts reopen_defaults = {.cache = -1};
static const struct opt reopen_opts[] = {
	IMAGE_OPT(struct reopen_opts, OPT_FLAG, 'r', NULL, NULL, "reopen the image read-only",
		read_only),
	IMAGE_OPT(struct reopen_opts, OPT_FLAG, 'w', NULL, NULL, "reopen the image read-write",
		writable),
	IMAGE_OPT_ENUM(struct reopen_opts, 'c', NULL, "CACHE", "change the cache mode", cache,
		block_cache_names),
	IMAGE_OPT(
		struct reopen_opts, OPT_TEXTS, 'o', NULL, "OPTIONS", "change driver options", more),
	{0},
};

const struct io_command io_open = {
	.c = {.name = "open",
		.summary = "open the file specified by path",
		.args = "[path]",
		.max_args = 1,
		.opts = open_opts,
		.opts_size = sizeof(struct io_open_opts),
		.co_run = co_open_cmd,
		.inner = true},
	.alias = "o",
	.more = "'open -n -o driver=raw /tmp/data' opens a raw file read-write, uncached.",
	.needs_no_file = true,
};
const struct io_command io_close = {
	.c = {.name = "close",
		.summary = "close the current open file",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_close_cmd,
		.inner = true},
	.alias = "c",
};
const struct io_command io_reopen = {
	.c = {.name = "reopen",
		.summary = "reopens an image with new options",
		.args = "",
		.opts = reopen_opts,
		.defaults = &reopen_defaults,
		.opts_size = sizeof(struct reopen_opts),
		.co_run = co_reopen_cmd,
		.inner = true},
};
const struct io_command io_length = {
	.c = {.name = "length",
		.summary = "gets the length of the current file",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_length_cmd,
		.inner = true},
	.alias = "l",
};
const struct io_command io_info = {
	.c = {.name = "info",
		.summary = "prints information about the current file",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_info_cmd,
		.inner = true},
	.alias = "i",
};
