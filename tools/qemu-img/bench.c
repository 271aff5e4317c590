/* SPDX-License-Identifier: MIT */
/* qemu-img bench: how fast do sequential requests go through an image. */
#include "tools/qemu-img/img.h"
#include "base/co.h"
#include "base/mem.h"
#include <stdlib.h>
#include <time.h>

struct bench_opts {
	struct image_common c;
	uint64_t count, depth, offset, size, step, pattern, flush_interval;
	bool write, native, no_drain;
	const char *aio;
};

static const struct bench_opts defaults = {.count = 75000, .depth = 64, .size = 4096};

struct bench {
	const struct bench_opts *o;
	struct block_node *n;
	uint64_t next_off, left, step;
	struct co_counter workers;
	struct co_mutex turn; /* who takes the next request, or flushes */
	struct co_counter inflight;
	uint64_t since_flush;
	int error;
};

struct worker {
	struct bench *b;
	uint8_t *buf;
};

static int co_bench_request(struct worker *w, uint64_t off)
{
	const struct bench_opts *o = w->b->o;
	struct iovec store;
	struct iov_slice s = iov_buf(&store, w->buf, o->size);

	return o->write ? co_block_write(w->b->n, off, s, 0) : co_block_read(w->b->n, off, s, 0);
}

/* The next offset; flushes first when it is time to. False: all are taken, or one failed. */
static bool co_next(struct bench *b, uint64_t *off)
{
	const struct bench_opts *o = b->o;
	bool got = false;

	co_mutex_lock(&b->turn);
	if (!b->error && b->left) {
		if (o->flush_interval && b->since_flush == o->flush_interval) {
			int r;

			if (!o->no_drain)
				co_counter_wait_zero(&b->inflight);
			r = co_block_flush(b->n);
			if (r < 0 && !b->error)
				b->error = r;
			b->since_flush = 0;
		}
		*off = b->next_off;
		b->next_off += b->step;
		if (b->next_off >= block_size(b->n) || block_size(b->n) - b->next_off < o->size)
			b->next_off %= block_size(b->n) - o->size + 1;
		b->left--;
		b->since_flush++;
		co_counter_inc(&b->inflight);
		got = true;
	}
	co_mutex_unlock(&b->turn);
	return got;
}

static void work(void *arg)
{
	struct worker *w = arg;
	struct bench *b = w->b;
	uint64_t off;

	while (co_next(b, &off)) {
		int r = co_bench_request(w, off);

		if (r < 0 && !b->error)
			b->error = r;
		co_counter_dec(&b->inflight);
	}
	co_counter_dec(&b->workers);
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int co_run_workers(struct bench *b, struct worker *w, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		w[i].b = b;
		w[i].buf = block_buffer_alloc(b->n, b->o->size);
		if (!w[i].buf)
			return -ENOMEM;
		memset(w[i].buf, (int)b->o->pattern, b->o->size);
	}
	for (uint64_t i = 0; i < n; i++) {
		co_counter_inc(&b->workers);
		if (co_start(work, &w[i]) < 0) {
			co_counter_dec(&b->workers);
			b->error = -ENOMEM;
			break;
		}
	}
	co_counter_wait_zero(&b->workers);
	return b->error;
}

static int co_bench_node(const struct bench_opts *o, struct block_node *n)
{
	uint64_t depth = MIN(o->depth, o->count);
	_cleanup_free_ struct worker *w = mem_calloc(depth, sizeof(*w));
	struct bench b = {.o = o,
		.n = n,
		.next_off = o->offset,
		.left = o->count,
		.step = o->step ? o->step : o->size};
	double start;
	int r;

	if (!range_inside(o->offset, o->size, block_size(n))) {
		tool_error("the first request ends beyond the image, which has %llu bytes",
			(unsigned long long)block_size(n));
		return 1;
	}
	printf("Sending %llu %s requests, %llu bytes each, %llu in parallel (starting at offset "
	       "%llu, step size %llu)\n",
		(unsigned long long)o->count, o->write ? "write" : "read",
		(unsigned long long)o->size, (unsigned long long)o->depth,
		(unsigned long long)o->offset, (unsigned long long)b.step);
	if (o->flush_interval)
		printf("Sending flush every %llu requests\n",
			(unsigned long long)o->flush_interval);
	fflush(stdout);
	start = seconds();
	r = w || !depth ? co_run_workers(&b, w, depth) : -ENOMEM;
	start = seconds() - start;
	for (uint64_t i = 0; w && i < depth; i++)
		mem_free(w[i].buf);
	if (r < 0) {
		tool_error("Failed request: %s", errno_text(r));
		return 1;
	}
	printf("Run completed in %3.3f seconds.\n", start);
	return 0;
}

static const char *check_options(const struct bench_opts *o)
{
	if (o->flush_interval && !o->write)
		return "--flush-interval is only available in write tests";
	if (o->flush_interval && o->flush_interval < o->depth)
		return "Flush interval can't be smaller than depth";
	return NULL;
}

static int co_bench_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct bench_opts *o = opts;
	const char *wrong = check_options(o);
	struct block_node *n;
	int rc;

	if (wrong) {
		tool_error("%s", wrong);
		return 1;
	}
	if (co_image_open_common(&o->c, args[0], o->write ? BLOCK_OPEN_RDWR : 0, &n) < 0)
		return 1;
	rc = co_bench_node(o, n);
	co_image_close(&n, &rc);
	return rc;
}

static int prepare(void *opts)
{
	const struct bench_opts *o = opts;

	return image_set_engine(o->aio, o->native) < 0;
}

#define T struct bench_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPTS_SOURCE(T),
	IMAGE_OPT_ENUM(T, 't', "cache", "CACHE", "cache mode (default: writeback)", c.cache,
		block_cache_names),
	IMAGE_OPT_NUM(T, OPT_NUMBER, 'c', "count", "COUNT", "number of requests (default: 75000)",
		count, 0, UINT32_MAX),
	IMAGE_OPT_NUM(T, OPT_SIZE, 's', "buffer-size", "SIZE", "bytes of each (default: 4k)", size,
		1, INT32_MAX),
	IMAGE_OPT_NUM(T, OPT_NUMBER, 'd', "depth", "DEPTH", "requests in flight (default: 64)",
		depth, 1, 65536),
	IMAGE_OPT_NUM(
		T, OPT_SIZE, 'o', "offset", "OFFSET", "of the first request", offset, 0, INT64_MAX),
	IMAGE_OPT_NUM(T, OPT_SIZE, 'S', "step-size", "SIZE",
		"from one request to the next (default: their size)", step, 0, INT32_MAX),
	IMAGE_OPT(T, OPT_TEXT, 'i', "aio", "AIO", "I/O engine: io_uring, threads or native", aio),
	IMAGE_OPT(T, OPT_FLAG, 'n', "native", NULL, "another name for -i threads", native),
	IMAGE_OPT(T, OPT_FLAG, 'w', "write", NULL, "write instead of reading", write),
	IMAGE_OPT_NUM(T, OPT_NUMBER, 0, "pattern", "BYTE", "the byte to write (default: 0)",
		pattern, 0, 255),
	IMAGE_OPT_NUM(T, OPT_NUMBER, 0, "flush-interval", "N", "flush after every N requests",
		flush_interval, 1, INT32_MAX),
	IMAGE_OPT(T, OPT_FLAG, 0, "no-drain", NULL,
		"do not wait for requests in flight before a flush", no_drain),
	OPT_SHARE(T),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_bench = {
	.name = "bench",
	.summary = "Run simple image benchmark",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.defaults = &defaults,
	.opts_size = sizeof(struct bench_opts),
	.prepare = prepare,
	.co_run = co_bench_cmd,
};
