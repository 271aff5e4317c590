/* SPDX-License-Identifier: MIT */
/* read, readv, write, writev: one synchronous request each. */
#include "tools/qemu-io/io.h"

#define MAX_LENGTH ((uint64_t)INT32_MAX / 512 * 512) /* bytes with a buffer behind them */

struct rw_opts {
	bool vmstate, compressed, machine, fua, no_fallback, pad, quiet, registered, unmap, verbose,
		zeroes;
	const char *pattern, *start, *length, *source;
};

static int fail(const char *verb, int code)
{
	printf("%s failed: %s\n", verb, errno_text(code));
	return 1;
}

/* Compares [start, start+len) of what was read with the byte; says where it went wrong. */
static int verify(const struct rw_opts *o, const uint8_t *buf, uint64_t off, uint64_t done)
{
	uint64_t start = 0, len = done;
	int byte;

	if (io_parse_pattern(o->pattern, &byte) < 0)
		return 1;
	if (o->start && io_parse_offset(o->start, &start) < 0)
		return 1;
	if (start > done || (!o->length && start == done && done)) {
		printf("pattern verification range exceeds end of read data\n");
		return 1;
	}
	len = done - start;
	if (o->length && io_parse_offset(o->length, &len) < 0)
		return 1;
	if (!range_inside(start, len, done)) {
		printf("pattern verification range exceeds end of read data\n");
		return 1;
	}
	for (uint64_t i = start; i < start + len; i++)
		if (buf[i] != (uint8_t)byte) {
			printf("Pattern verification failed at offset %llu, %llu bytes\n",
				(unsigned long long)(off + start), (unsigned long long)len);
			return 1;
		}
	return 0;
}

/* The options of -P -s -l are checked before the request: a typo must not cost an I/O. */
static int check_verify_options(const struct rw_opts *o, uint64_t len)
{
	uint64_t start = 0, n = 0;
	int byte;

	if (!o->pattern) {
		if (o->start || o->length) {
			printf("-s and -l need a pattern: add -P BYTE\n");
			return 1;
		}
		return 0;
	}
	if (io_parse_pattern(o->pattern, &byte) < 0 ||
		(o->start && io_parse_offset(o->start, &start) < 0) ||
		(o->length && io_parse_offset(o->length, &n) < 0))
		return 1;
	if (!range_inside(start, n, len)) {
		printf("pattern verification range exceeds end of read data\n");
		return 1;
	}
	return 0;
}

static int co_vmstate_request(bool write, uint64_t off, struct iov_slice buf)
{
	struct block_node *n = block_skip_filters(io.node);
	const struct block_vmstate_ops *ops = n->drv->vmstate;
	struct block_io req = {.off = off, .len = buf.len, .buf = buf};

	if (!ops)
		return -ENOTSUP;
	return write ? ops->co_write(n, &req) : ops->co_read(n, &req);
}

static int co_read_request(const struct rw_opts *o, uint64_t off, struct iov_slice buf)
{
	if (!buf.len)
		return 0;
	if (o->vmstate)
		return co_vmstate_request(false, off, buf);
	return co_block_read(io.node, off, buf, 0);
}

static int co_do_read(const struct rw_opts *o, uint64_t off, struct iov_slice slice, uint8_t *buf)
{
	struct io_report rep = {.verb = "read",
		.off = off,
		.asked = slice.len,
		.done = slice.len,
		.ops = 1,
		.quiet = o->quiet,
		.machine = o->machine};
	uint64_t start = io_now_ns();
	int r = co_read_request(o, off, slice), bad = 0;

	rep.ns = io_now_ns() - start;
	if (r < 0)
		return fail("read", r);
	if (o->pattern)
		bad = verify(o, buf, off, slice.len);
	if (o->quiet)
		return bad;
	if (o->verbose)
		io_buffer_dump(buf, slice.len, off);
	io_report(&rep);
	return bad;
}

static int co_read_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct rw_opts *o = opts;
	struct iovec store;
	uint64_t off, len;
	uint8_t *buf;
	int rc;

	if (io_parse_offset(args[0], &off) < 0 || io_parse_length(args[1], MAX_LENGTH, &len) < 0)
		return 1;
	if (check_verify_options(o, len))
		return 1;
	buf = io_buffer_alloc(len, 0xab);
	if (!buf)
		return 1;
	rc = co_do_read(o, off, iov_buf(&store, buf, len), buf);
	io_buffer_free(buf);
	return rc;
}

/* Lengths from args into iov over one buffer; *ret_buf is to be freed. */
static int make_vector(char *const *args, unsigned n, int pattern, struct iovec *iov,
	struct iov_slice *ret, uint8_t **ret_buf)
{
	uint64_t total = 0;
	uint8_t *buf;

	for (unsigned i = 0; i < n; i++) {
		uint64_t len;

		if (io_parse_length(args[i], MAX_LENGTH - total, &len) < 0)
			return 1;
		iov[i].iov_len = len;
		total += len;
	}
	buf = io_buffer_alloc(total, pattern);
	if (!buf)
		return 1;
	*ret = (struct iov_slice){iov, n, 0, total};
	*ret_buf = buf;
	for (unsigned i = 0; i < n; i++) {
		iov[i].iov_base = buf;
		buf += iov[i].iov_len;
	}
	return 0;
}

static int co_readv_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct rw_opts *o = opts;
	struct iovec iov[32];
	struct iov_slice slice;
	uint8_t *buf;
	uint64_t off;
	int rc;

	if (io_parse_offset(args[0], &off) < 0 ||
		make_vector(args + 1, nargs - 1, 0xab, iov, &slice, &buf))
		return 1;
	rc = check_verify_options(o, slice.len);
	if (!rc)
		rc = co_do_read(o, off, slice, buf);
	io_buffer_free(buf);
	return rc;
}

static uint32_t write_flags(const struct rw_opts *o)
{
	return (o->fua ? BLOCK_IO_FUA : 0u) | (o->compressed ? BLOCK_IO_COMPRESSED : 0u) |
		(o->unmap ? BLOCK_IO_UNMAP : 0u) | (o->no_fallback ? BLOCK_IO_NO_FALLBACK : 0u);
}

static int co_write_request(
	const struct rw_opts *o, uint64_t off, uint64_t len, struct iov_slice slice)
{
	if (!len)
		return 0;
	if (o->zeroes)
		return co_block_zero(io.node, off, len, write_flags(o));
	if (o->vmstate)
		return co_vmstate_request(true, off, slice);
	return co_block_write(io.node, off, slice, write_flags(o));
}

static int co_do_write(const struct rw_opts *o, uint64_t off, uint64_t len, struct iov_slice slice)
{
	struct io_report rep = {.verb = "wrote",
		.off = off,
		.asked = len,
		.done = len,
		.ops = 1,
		.quiet = o->quiet,
		.machine = o->machine};
	uint64_t start = io_now_ns();
	int r = co_write_request(o, off, len, slice);

	rep.ns = io_now_ns() - start;
	if (r < 0)
		return fail("write", r);
	io_report(&rep);
	return 0;
}

static int check_write_options(const struct rw_opts *o)
{
	const char *wrong = NULL;

	if (o->vmstate && o->compressed)
		wrong = "-b and -c cannot be specified at the same time";
	else if (o->vmstate && o->zeroes)
		wrong = "-b and -z cannot be specified at the same time";
	else if (o->compressed && o->zeroes)
		wrong = "-c and -z cannot be specified at the same time";
	else if (o->fua && (o->vmstate || o->compressed))
		wrong = "-f and -b or -c cannot be specified at the same time";
	else if (o->no_fallback && !o->zeroes)
		wrong = "-n requires -z to be specified";
	else if (o->unmap && !o->zeroes)
		wrong = "-u requires -z to be specified";
	else if (o->zeroes + !!o->pattern + !!o->source > 1)
		wrong = "Only one of -z, -P, and -s can be specified at the same time";
	if (wrong)
		printf("%s\n", wrong);
	return wrong ? 1 : 0;
}

static int co_write_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct rw_opts *o = opts;
	struct iovec store;
	uint64_t off, len, max = o->zeroes ? INT64_MAX : MAX_LENGTH;
	int pattern = 0xcd, rc;
	void *buf;

	if (check_write_options(o) || (o->pattern && io_parse_pattern(o->pattern, &pattern) < 0) ||
		io_parse_offset(args[0], &off) < 0 || io_parse_length(args[1], max, &len) < 0)
		return 1;
	if (o->zeroes)
		return co_do_write(o, off, len, (struct iov_slice){0});
	buf = io_buffer_alloc(len, pattern);
	if (!buf)
		return 1;
	rc = o->source && io_buffer_fill_from(buf, len, o->source) < 0;
	if (!rc)
		rc = co_do_write(o, off, len, iov_buf(&store, buf, len));
	io_buffer_free(buf);
	return rc;
}

static int co_writev_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct rw_opts *o = opts;
	struct iovec iov[32];
	struct iov_slice slice;
	uint8_t *buf;
	uint64_t off;
	int pattern = 0xcd, rc;

	if ((o->pattern && io_parse_pattern(o->pattern, &pattern) < 0) ||
		io_parse_offset(args[0], &off) < 0 ||
		make_vector(args + 1, nargs - 1, pattern, iov, &slice, &buf))
		return 1;
	rc = co_do_write(o, off, slice.len, slice);
	io_buffer_free(buf);
	return rc;
}

#define FLAG(letter_, help_, field_)                                                               \
	IMAGE_OPT(struct rw_opts, OPT_FLAG, letter_, NULL, NULL, help_, field_)
#define TEXT(letter_, arg_, help_, field_)                                                         \
	IMAGE_OPT(struct rw_opts, OPT_TEXT, letter_, NULL, arg_, help_, field_)
#define FLAGS_ALL                                                                                  \
	FLAG('C', "report statistics in a machine parsable format", machine),                      \
		FLAG('q', "quiet mode, do not show I/O statistics", quiet),                        \
		FLAG('r', "register I/O buffer", registered)

static const struct opt read_opts[] = {
	FLAG('b', "read from the VM state rather than the virtual disk", vmstate),
	FLAG('p', "ignored for backwards compatibility", pad),
	FLAG('v', "dump buffer to standard output", verbose),
	TEXT('P', "PATTERN", "use a pattern to verify read data", pattern),
	TEXT('s', "OFF", "start offset for pattern verification (only with -P)", start),
	TEXT('l', "LEN", "length for pattern verification (only with -P)", length),
	FLAGS_ALL,
	{0},
};
static const struct opt write_opts[] = {
	FLAG('b', "write to the VM state rather than the virtual disk", vmstate),
	FLAG('c', "write compressed data", compressed),
	FLAG('f', "use Force Unit Access semantics", fua),
	FLAG('n', "with -z, don't allow slow fallback", no_fallback),
	FLAG('p', "ignored for backwards compatibility", pad),
	FLAG('u', "with -z, allow unmapping", unmap),
	FLAG('z', "write zeroes", zeroes),
	TEXT('P', "PATTERN", "use different pattern to fill file", pattern),
	TEXT('s', "FILE", "use a pattern file to fill the write buffer", source),
	FLAGS_ALL,
	{0},
};

#define RW_COMMAND(name_, summary_, args_, max_, opts_, run_)                                      \
	{                                                                                          \
		.name = name_, .summary = summary_, .args = args_, .min_args = 2,                  \
		.max_args = max_, .opts = opts_, .opts_size = sizeof(struct rw_opts),              \
		.co_run = run_, .inner = true                                                      \
	}

const struct io_command io_read = {
	.c = RW_COMMAND("read", "reads a number of bytes at a specified offset", "off len", 2,
		read_opts, co_read_cmd),
	.alias = "r",
	.more = "'read -v 512 1k' dumps 1 kilobyte read from 512 bytes into the file.",
};
const struct io_command io_readv = {
	.c = RW_COMMAND("readv", "reads a number of bytes at a specified offset", "off len [len..]",
		33, read_opts, co_readv_cmd),
	.more = "'readv -v 512 1k 1k' reads 2 kilobytes into two buffers and dumps them.",
};
const struct io_command io_write = {
	.c = RW_COMMAND("write", "writes a number of bytes at a specified offset", "off len", 2,
		write_opts, co_write_cmd),
	.alias = "w",
	.more = "'write 512 1k' writes 1 kilobyte of the byte 0xcd at 512 bytes into the file.",
};
const struct io_command io_writev = {
	.c = RW_COMMAND("writev", "writes a number of bytes at a specified offset",
		"off len [len..]", 33, write_opts, co_writev_cmd),
	.more = "'writev 512 1k 1k' writes 2 kilobytes out of two buffers.",
};
