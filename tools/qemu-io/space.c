/* SPDX-License-Identifier: MIT */
/* flush, discard, truncate, alloc, map: space and durability of the open file. */
#include "tools/qemu-io/io.h"

static const struct opt no_opts[] = {{0}};

static int co_flush_cmd(void *opts, char *const *args, unsigned nargs)
{
	int r = co_block_flush(io.node);

	if (r < 0) {
		printf("flush failed: %s\n", errno_text(r));
		return 1;
	}
	return 0;
}

struct discard_opts {
	bool machine, quiet;
};

static int co_discard_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct discard_opts *o = opts;
	struct io_report rep = {
		.verb = "discard", .ops = 1, .quiet = o->quiet, .machine = o->machine};
	uint64_t start;
	int r;

	if (io_parse_offset(args[0], &rep.off) < 0 ||
		io_parse_length(args[1], INT64_MAX, &rep.asked) < 0)
		return 1;
	start = io_now_ns();
	r = rep.asked ? co_block_discard(io.node, rep.off, rep.asked, 0) : 0;
	rep.ns = io_now_ns() - start;
	if (r < 0) {
		printf("discard failed: %s\n", errno_text(r));
		return 1;
	}
	rep.done = rep.asked;
	io_report(&rep);
	return 0;
}

struct truncate_opts {
	int prealloc;
};

static int co_truncate_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct truncate_opts *o = opts;
	struct block_resize rz = {.prealloc = (enum block_prealloc)o->prealloc, .shrink = true};
	struct error err = ERROR_INIT;

	if (io_parse_offset(args[0], &rz.size) < 0)
		return 1;
	if (co_block_resize(io.node, &rz, &err) < 0)
		return tool_fail(&err);
	return 0;
}

/* Sums what this layer holds of [off, off+len); what lies beyond the end counts as missing. */
static int co_count_allocated(uint64_t off, uint64_t len, uint64_t *ret)
{
	uint64_t end = MIN(off + len, block_size(io.node));

	*ret = 0;
	while (off < end) {
		struct block_extent e;
		int r = co_block_extent(io.node, off, end - off, &e);

		if (r < 0)
			return r;
		if (e.flags & BLOCK_EXTENT_ALLOCATED)
			*ret += e.len;
		off += e.len;
	}
	return 0;
}

static int co_alloc_cmd(void *opts, char *const *args, unsigned nargs)
{
	uint64_t off, len = 512, sum, end;
	int r;

	if (io_parse_offset(args[0], &off) < 0 || (nargs > 1 && io_parse_offset(args[1], &len) < 0))
		return 1;
	if (add_overflow(off, len, &end)) {
		printf("the range ends beyond 2^64\n");
		return 1;
	}
	r = co_count_allocated(off, len, &sum);
	if (r < 0) {
		printf("is_allocated failed: %s\n", errno_text(r));
		return 1;
	}
	printf("%llu/%llu bytes allocated at offset %s\n", (unsigned long long)sum,
		(unsigned long long)len, io_size((double)off).s);
	return 0;
}

static void print_run(uint64_t off, uint64_t len, bool allocated)
{
	if (len)
		printf("%s (0x%llx) bytes %s allocated at offset %s (0x%llx)\n",
			io_size((double)len).s, (unsigned long long)len, allocated ? "   " : "not",
			io_size((double)off).s, (unsigned long long)off);
}

static int co_map_cmd(void *opts, char *const *args, unsigned nargs)
{
	uint64_t size = block_size(io.node), start = 0, off = 0;
	bool allocated = false;

	while (off < size) {
		struct block_extent e;
		int r = co_block_extent(io.node, off, size - off, &e);
		bool now;

		if (r < 0) {
			printf("Failed to get allocation status: %s\n", errno_text(r));
			return 1;
		}
		now = e.flags & BLOCK_EXTENT_ALLOCATED;
		if (now != allocated) {
			print_run(start, off - start, allocated);
			start = off;
			allocated = now;
		}
		off += e.len;
	}
	print_run(start, off - start, allocated);
	return 0;
}

#define DISCARD_FLAG(letter_, help_, field_)                                                       \
	IMAGE_OPT(struct discard_opts, OPT_FLAG, letter_, NULL, NULL, help_, field_)

static const struct opt discard_opts[] = {
	DISCARD_FLAG('C', "report statistics in a machine parsable format", machine),
	DISCARD_FLAG('q', "quiet mode, do not show I/O statistics", quiet),
	{0},
};
static const struct opt truncate_opts[] = {
	IMAGE_OPT_ENUM(struct truncate_opts, 'm', NULL, "MODE",
		"preallocation of the new area: off, metadata, falloc, full", prealloc,
		block_prealloc_names),
	{0},
};

const struct io_command io_flush = {
	.c = {.name = "flush",
		.summary = "flush all in-core file state to disk",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_flush_cmd,
		.inner = true},
	.alias = "f",
};
const struct io_command io_discard = {
	.c = {.name = "discard",
		.summary = "discards a number of bytes at a specified offset",
		.args = "off len",
		.min_args = 2,
		.max_args = 2,
		.opts = discard_opts,
		.opts_size = sizeof(struct discard_opts),
		.co_run = co_discard_cmd,
		.inner = true},
	.alias = "d",
};
const struct io_command io_truncate = {
	.c = {.name = "truncate",
		.summary = "truncates the current file at the given offset",
		.args = "off",
		.min_args = 1,
		.max_args = 1,
		.opts = truncate_opts,
		.opts_size = sizeof(struct truncate_opts),
		.co_run = co_truncate_cmd,
		.inner = true},
	.alias = "t",
};
const struct io_command io_alloc = {
	.c = {.name = "alloc",
		.summary = "checks if offset is allocated in the file",
		.args = "offset [count]",
		.min_args = 1,
		.max_args = 2,
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_alloc_cmd,
		.inner = true},
	.alias = "a",
};
const struct io_command io_map = {
	.c = {.name = "map",
		.summary = "prints the allocated areas of a file",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_map_cmd,
		.inner = true},
};
