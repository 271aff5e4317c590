/* SPDX-License-Identifier: MIT */
/* aio_read, aio_write, aio_flush: requests that run on while the next command is read. */
#include "tools/qemu-io/io.h"
#include "base/co.h"
#include "base/mem.h"

#define AIO_MAX_VECTORS 32u

struct aio_opts {
	bool machine, fua, invalid, quiet, registered, unmap, verbose, zeroes;
	const char *pattern;
};

/* A request in flight; owns its buffer. */
struct aio {
	struct aio_opts o;
	bool write;
	int pattern; /* -1: none to verify */
	uint64_t off, len;
	struct iovec iov[AIO_MAX_VECTORS];
	struct iov_slice slice;
	uint8_t *buf;
};

static int co_aio_submit(struct aio *a)
{
	uint32_t flags = (a->o.fua ? BLOCK_IO_FUA : 0u) | (a->o.unmap ? BLOCK_IO_UNMAP : 0u);

	if (!a->len)
		return 0;
	if (!a->write)
		return co_block_read(io.node, a->off, a->slice, 0);
	if (a->o.zeroes)
		return co_block_zero(io.node, a->off, a->len, flags);
	return co_block_write(io.node, a->off, a->slice, flags);
}

static void aio_finished(const struct aio *a, int r, uint64_t ns)
{
	struct io_report rep = {.verb = a->write ? "wrote" : "read",
		.off = a->off,
		.asked = a->len,
		.done = a->len,
		.ns = ns,
		.ops = 1,
		.quiet = a->o.quiet,
		.machine = a->o.machine};

	if (r < 0) {
		printf("%s failed: %s\n", a->write ? "aio_write" : "aio_read", errno_text(r));
		return;
	}
	if (!a->write && a->pattern >= 0)
		for (uint64_t i = 0; i < a->len; i++)
			if (a->buf[i] != (uint8_t)a->pattern) {
				printf("Pattern verification failed at offset %llu, %llu bytes\n",
					(unsigned long long)a->off, (unsigned long long)a->len);
				break;
			}
	if (!a->write && a->o.verbose && !a->o.quiet)
		io_buffer_dump(a->buf, a->len, a->off);
	io_report(&rep);
}

static void co_aio_run(void *arg)
{
	struct aio *a = arg;
	uint64_t start = io_now_ns();
	int r = co_aio_submit(a);

	aio_finished(a, r, io_now_ns() - start);
	io_buffer_free(a->buf);
	mem_free(a);
	co_counter_dec(&io.aio);
}

static int parse_lengths(struct aio *a, char *const *args, unsigned n)
{
	if (n > AIO_MAX_VECTORS || (a->o.zeroes && n != 1)) {
		printf("too many lengths\n");
		return -EINVAL;
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t len;

		if (io_parse_length(args[i], INT32_MAX / 512 * 512 - a->len, &len) < 0)
			return -EINVAL;
		a->iov[i].iov_len = len;
		a->len += len;
	}
	return 0;
}

static int aio_prepare(struct aio *a, char *const *args, unsigned nargs)
{
	uint8_t *p;

	if (a->o.pattern && io_parse_pattern(a->o.pattern, &a->pattern) < 0)
		return -EINVAL;
	if (a->write && a->o.unmap && !a->o.zeroes) {
		printf("-u requires -z to be specified\n");
		return -EINVAL;
	}
	if (a->write && a->o.zeroes && a->o.pattern) {
		printf("-z and -P cannot be specified at the same time\n");
		return -EINVAL;
	}
	if (io_parse_offset(args[0], &a->off) < 0 || parse_lengths(a, args + 1, nargs - 1) < 0)
		return -EINVAL;
	if (a->o.zeroes)
		return 0;
	p = a->buf = io_buffer_alloc(a->len, a->pattern >= 0 && a->write ? a->pattern : 0xcd);
	if (!a->buf)
		return -ENOMEM;
	a->slice = (struct iov_slice){a->iov, nargs - 1, 0, a->len};
	for (unsigned i = 0; i + 1 < nargs; i++) {
		a->iov[i].iov_base = p;
		p += a->iov[i].iov_len;
	}
	return 0;
}

static int start(const struct aio_opts *o, bool write, char *const *args, unsigned nargs)
{
	struct aio *a = mem_zalloc(sizeof(*a));

	if (!a) {
		printf("out of memory\n");
		return 1;
	}
	a->o = *o;
	a->write = write;
	a->pattern = -1;
	if (aio_prepare(a, args, nargs) < 0) {
		io_buffer_free(a->buf);
		mem_free(a);
		return 1;
	}
	a->o.pattern = NULL; /* the text is the command line's */
	if (o->invalid) {
		io_buffer_free(a->buf);
		mem_free(a);
		return 0;
	}
	co_counter_inc(&io.aio);
	if (co_start(co_aio_run, a) < 0) {
		co_counter_dec(&io.aio);
		io_buffer_free(a->buf);
		mem_free(a);
		printf("out of memory\n");
		return 1;
	}
	return 0;
}

static int co_aio_read_cmd(void *opts, char *const *args, unsigned nargs)
{
	return start(opts, false, args, nargs);
}

static int co_aio_write_cmd(void *opts, char *const *args, unsigned nargs)
{
	return start(opts, true, args, nargs);
}

static int co_aio_flush_cmd(void *opts, char *const *args, unsigned nargs)
{
	co_counter_wait_zero(&io.aio);
	return 0;
}

#define FLAG(letter_, help_, field_)                                                               \
	IMAGE_OPT(struct aio_opts, OPT_FLAG, letter_, NULL, NULL, help_, field_)
#define COMMON_ROWS                                                                                \
	FLAG('C', "report statistics in a machine parsable format", machine),                      \
		FLAG('i', "treat request as invalid: it is not submitted", invalid),               \
		FLAG('q', "quiet mode, do not show I/O statistics", quiet),                        \
		FLAG('r', "register I/O buffer", registered),                                      \
		IMAGE_OPT(struct aio_opts, OPT_TEXT, 'P', NULL, "PATTERN",                         \
			"the byte to write, or to expect", pattern)

static const struct opt aio_read_opts[] = {
	COMMON_ROWS,
	FLAG('v', "dump buffer to standard output", verbose),
	{0},
};
static const struct opt aio_write_opts[] = {
	COMMON_ROWS,
	FLAG('f', "use Force Unit Access semantics", fua),
	FLAG('u', "with -z, allow unmapping", unmap),
	FLAG('z', "write zeroes", zeroes),
	{0},
};
static const struct opt no_opts[] = {{0}};

#define AIO_MORE "The command ends at once; aio_flush waits for all requests that are under way."

const struct io_command io_aio_read = {
	.c = {.name = "aio_read",
		.summary = "asynchronously reads a number of bytes",
		.args = "off len [len..]",
		.min_args = 2,
		.max_args = 1 + AIO_MAX_VECTORS,
		.opts = aio_read_opts,
		.opts_size = sizeof(struct aio_opts),
		.co_run = co_aio_read_cmd,
		.inner = true},
	.more = AIO_MORE,
};
const struct io_command io_aio_write = {
	.c = {.name = "aio_write",
		.summary = "asynchronously writes a number of bytes",
		.args = "off len [len..]",
		.min_args = 2,
		.max_args = 1 + AIO_MAX_VECTORS,
		.opts = aio_write_opts,
		.opts_size = sizeof(struct aio_opts),
		.co_run = co_aio_write_cmd,
		.inner = true},
	.more = AIO_MORE,
};
const struct io_command io_aio_flush = {
	.c = {.name = "aio_flush",
		.summary = "completes all outstanding aio requests",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_aio_flush_cmd,
		.inner = true},
};
