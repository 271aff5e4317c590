/* SPDX-License-Identifier: MIT */
/* qemu-img map: what lies where, through the backing chain. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"

#include <string.h>

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

static char *put_text(char *p, const char *text)
{
	size_t len = strlen(text);

	memcpy(p, text, len);
	return p + len;
}

static char *put_number(char *p, const char *name, uint64_t v)
{
	char digits[20];
	unsigned n = sizeof(digits);

	do
		digits[--n] = (char)('0' + v % 10);
	while (v /= 10);
	p = put_text(p, name);
	memcpy(p, digits + n, sizeof(digits) - n);
	return p + sizeof(digits) - n;
}

#define JSON_LINE 256u /* all names, four numbers of at most 20 digits: under 200 */

/* By hand, not by the JSON writer: this exact form, a line an extent, is what scripts read. And not
 * by printf, which took most of the time of mapping a scattered image. */
static void print_json(const struct run *run, bool first)
{
	const struct block_extent *e = &run->e;
	char line[JSON_LINE], *p = put_text(line, first ? "[" : ",\n");

	p = put_number(p, "{ \"start\": ", run->off);
	p = put_number(p, ", \"length\": ", e->len);
	p = put_number(p, ", \"depth\": ", e->depth);
	p = put_text(put_text(p, ", \"present\": "), yes_no(e->flags & BLOCK_EXTENT_ALLOCATED));
	p = put_text(put_text(p, ", \"zero\": "), yes_no(e->flags & BLOCK_EXTENT_ZERO));
	p = put_text(put_text(p, ", \"data\": "), yes_no(e->flags & BLOCK_EXTENT_DATA));
	p = put_text(put_text(p, ", \"compressed\": "), yes_no(e->flags & BLOCK_EXTENT_COMPRESSED));
	if (e->flags & BLOCK_EXTENT_MAPPED)
		p = put_number(p, ", \"offset\": ", e->host_off);
	p = put_text(p, "}");
	fwrite(line, 1, (size_t)(p - line), stdout);
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

/*
 * Preallocated images: their clusters are in use although the file may have holes there. Asking the
 * file about every extent would cost, so an image is looked at this closely only when a tenth of it
 * or more is not on the disk, which is what the reference does too.
 */
struct layer {
	struct block_node *node;
	bool asked, sparse;
	uint64_t start, end; /* the file's extent that was asked for last */
	bool zero;
};

static bool co_is_sparse(struct layer *l)
{
	struct block_node *file = l->node->child[BLOCK_ROLE_FILE];
	uint64_t cluster = l->node->caps.cluster, actual;

	if (!l->asked) {
		l->asked = true;
		l->sparse = file && cluster && co_block_actual_size(file, &actual) >= 0 &&
			actual / cluster * 10 / 9 <= div_up(block_size(file), cluster);
	}
	return l->sparse;
}

static int co_look_for_holes(struct layer *l, struct block_extent *e)
{
	const uint32_t kind = BLOCK_EXTENT_DATA | BLOCK_EXTENT_ZERO | BLOCK_EXTENT_MAPPED;
	struct block_extent below;
	int r;

	if ((e->flags & kind) != (BLOCK_EXTENT_DATA | BLOCK_EXTENT_MAPPED) || !co_is_sparse(l) ||
		e->host != l->node->child[BLOCK_ROLE_FILE])
		return 0;
	if (e->host_off < l->start || e->host_off >= l->end) {
		uint64_t size = block_size(e->host);

		if (e->host_off < size) {
			r = co_block_extent(e->host, e->host_off, size - e->host_off, &below);
			if (r < 0)
				return r;
		} else {
			below = (struct block_extent){.len = e->len, .flags = BLOCK_EXTENT_ZERO};
		}
		l->start = e->host_off;
		l->end = e->host_off + below.len;
		l->zero = below.flags & BLOCK_EXTENT_ZERO;
	}
	e->len = MIN(e->len, l->end - e->host_off);
	if (l->zero)
		e->flags |= BLOCK_EXTENT_ZERO;
	return 0;
}

/* The layers from n down; *ret_n of them. NULL: no memory. */
static struct layer *find_layers(struct block_node *n, uint32_t *ret_n)
{
	struct layer *layers;
	uint32_t count = 0;

	for (struct block_node *b = block_skip_filters(n); b; b = block_backing(b))
		count++;
	layers = mem_calloc(count, sizeof(*layers));
	*ret_n = count;
	count = 0;
	for (struct block_node *b = block_skip_filters(n); b && layers; b = block_backing(b))
		layers[count++].node = b;
	return layers;
}

static int co_map_node(const struct map_opts *o, struct block_node *n)
{
	uint64_t size = block_size(n), off = o->start, end;
	uint32_t nlayers;
	_cleanup_free_ struct layer *layers = find_layers(n, &nlayers);
	struct run run = {.off = off};
	bool first = true;
	int rc = 0;

	if (!layers) {
		tool_error("out of memory");
		return 1;
	}
	end = o->length < size - MIN(off, size) ? off + o->length : size;
	while (off < end && !rc) {
		struct block_extent e;
		int r = co_block_extent_chain(n, NULL, off, end - off, &e);

		if (r >= 0 && e.depth < nlayers)
			r = co_look_for_holes(&layers[e.depth], &e);
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
