/* SPDX-License-Identifier: MIT */
/* qemu-img map: what lies where, through the backing chain. */
#include "tools/qemu-img/img.h"

struct map_opts {
	struct image_common c;
	uint64_t start, length;
	int output;
};

static const struct map_opts defaults = {.length = UINT64_MAX};

/* A run of extents that print as one. */
struct run {
	uint64_t off;
	struct block_extent e;
	bool valid;
};

#define SHOWN_FLAGS                                                                                \
	(BLOCK_EXTENT_DATA | BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_MAPPED |    \
		BLOCK_EXTENT_COMPRESSED)

static const char *yes_no(uint32_t flag)
{
	return flag ? "true" : "false";
}

/* By hand, not by the JSON writer: this exact form, a line an extent, is what scripts read. */
static void print_json(const struct run *run, bool first)
{
	const struct block_extent *e = &run->e;

	printf("%s{ \"start\": %llu, \"length\": %llu, \"depth\": %u, \"present\": %s, "
	       "\"zero\": %s, \"data\": %s, \"compressed\": %s",
		first ? "[" : ",\n", (unsigned long long)run->off, (unsigned long long)e->len,
		e->depth, yes_no(e->flags & BLOCK_EXTENT_ALLOCATED),
		yes_no(e->flags & BLOCK_EXTENT_ZERO), yes_no(e->flags & BLOCK_EXTENT_DATA),
		yes_no(e->flags & BLOCK_EXTENT_COMPRESSED));
	if (e->flags & BLOCK_EXTENT_MAPPED)
		printf(", \"offset\": %llu", (unsigned long long)e->host_off);
	putchar('}');
}

static int print_human(const struct run *run)
{
	const struct block_extent *e = &run->e;

	if (!(e->flags & BLOCK_EXTENT_DATA))
		return 0;
	if (!(e->flags & BLOCK_EXTENT_MAPPED)) {
		tool_error("File contains external, encrypted or compressed clusters.");
		return 1;
	}
	if (!(e->flags & BLOCK_EXTENT_ZERO))
		printf("%#-16llx%#-16llx%#-16llx%s\n", (unsigned long long)run->off,
			(unsigned long long)e->len, (unsigned long long)e->host_off,
			e->host ? e->host->filename : "");
	return 0;
}

static int print_run(const struct map_opts *o, const struct run *run, bool *first)
{
	bool was_first = *first;

	*first = false;
	if (o->output == IMG_HUMAN)
		return print_human(run);
	print_json(run, was_first);
	return 0;
}

static bool joins(const struct run *run, const struct block_extent *e)
{
	return run->valid && !((run->e.flags ^ e->flags) & SHOWN_FLAGS) &&
		run->e.depth == e->depth &&
		(!(e->flags & BLOCK_EXTENT_MAPPED) ||
			(run->e.host_off + run->e.len == e->host_off && run->e.host == e->host));
}

static int co_map_node(const struct map_opts *o, struct block_node *n)
{
	uint64_t size = block_size(n), off = o->start, end;
	struct run run = {.off = off};
	bool first = true;
	int rc = 0;

	end = o->length < size - MIN(off, size) ? off + o->length : size;
	while (off < end && !rc) {
		struct block_extent e;
		int r = co_block_extent_chain(n, NULL, off, end - off, &e);

		if (r < 0) {
			tool_error("Failed to read image metadata of '%s' at offset %llu: %s",
				n->filename, (unsigned long long)off, errno_text(r));
			return 1;
		}
		if (joins(&run, &e)) {
			run.e.len += e.len;
		} else {
			if (run.valid)
				rc = print_run(o, &run, &first);
			run = (struct run){off, e, true};
		}
		off += e.len;
	}
	/* An empty range is one extent of no length in JSON, as programs expect. */
	if (!rc && (run.valid || o->output == IMG_JSON))
		rc = print_run(o, &run, &first);
	if (o->output == IMG_JSON)
		printf("]\n");
	return rc;
}

static int co_map_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct map_opts *o = opts;
	struct block_node *n;
	int rc;

	if (co_image_open_common(&o->c, args[0], 0, &n) < 0)
		return 1;
	if (o->output == IMG_HUMAN)
		printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
	rc = co_map_node(o, n);
	co_image_close(&n, &rc);
	return rc;
}

#define T struct map_opts
static const struct opt options[] = {
	OPTS_SOURCE(T),
	IMAGE_OPT_NUM(
		T, OPT_SIZE, 's', "start-offset", "OFFSET", "start at that offset", start, 0, 0),
	IMAGE_OPT_NUM(
		T, OPT_SIZE, 'l', "max-length", "LENGTH", "show no more than that", length, 0, 0),
	OPT_OUTPUT(T, output),
	OPT_SHARE(T),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_map = {
	.name = "map",
	.summary = "Dump image metadata",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.defaults = &defaults,
	.opts_size = sizeof(struct map_opts),
	.co_run = co_map_cmd,
};
