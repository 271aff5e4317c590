/* SPDX-License-Identifier: MIT */
/*
 * Random requests on qcow2 images of every shape against a plain buffer, with reopening and an
 * independent count of references; and many coroutines on one image at once.
 */
#include "tests/unit/q2.h"

#define SIZE (1 * MiB + 1536)

struct model {
	const struct q2_test *t;
	struct block_node *file, *backing, *n;
	uint8_t *shadow, *buf;
	uint64_t rnd;
	uint64_t size;
};

static void model_open(struct model *m)
{
	m->n = q2_test_open(block_node_ref(m->file), m->t->opts, m->backing);
}

static void model_start(struct model *m, const struct q2_test *t, uint64_t seed)
{
	*m = (struct model){.t = t, .rnd = seed * 0x9e3779b97f4a7c15ULL + 1, .size = t->size};
	m->shadow = calloc(1, m->size);
	m->buf = malloc(m->size);
	m->file = q2_test_mem(q2_test_build(t));
	if (t->backing) {
		/* Shorter than the overlay, and not ending with a cluster. */
		uint64_t len = m->size * 2 / 3 + 512;
		struct mem_content *c;

		check_int(mem_content_new(len, &c), 0);
		fill(m->shadow, len, 0, 77);
		check_int(mem_content_write(c, 0, m->shadow, len), 0);
		m->backing = q2_test_mem(c);
	}
	model_open(m);
}

static void model_stop(struct model *m)
{
	check_int(co_block_node_unref(m->n), 0);
	q2_test_structure_of(m->file, true);
	co_block_node_unref(m->file);
	co_block_node_unref(m->backing);
	free(m->shadow);
	free(m->buf);
}

static void model_reopen(struct model *m)
{
	check_int(co_block_node_unref(m->n), 0);
	q2_test_structure_of(m->file, true);
	model_open(m);
}

static const char *test_shape(const struct q2_test *t)
{
	static char text[128];

	snprintf(text, sizeof(text), "v%u cluster %u order %u%s%s%s %s", t->version,
		t->cluster_bits, t->order, t->extl2 ? " extl2" : "", t->lazy ? " lazy" : "",
		t->backing ? " backing" : "", t->opts ? t->opts : "");
	return text;
}

static void compare(struct model *m, uint64_t off, uint64_t len, const char *what)
{
	check_int(co_block_pread(m->n, off, m->buf, len), 0);
	for (uint64_t i = 0; i < len; i++)
		if (m->buf[i] != m->shadow[off + i]) {
			fprintf(stderr, "%s: byte %llu is %#x, not %#x (%s)\n", what,
				(unsigned long long)(off + i), m->buf[i], m->shadow[off + i],
				test_shape(m->t));
			abort();
		}
}

/* A discarded byte reads as before or as zero; whole clusters of version 3 read as zero. */
static void discard(struct model *m, uint64_t off, uint64_t len)
{
	uint64_t cluster = 1ULL << m->t->cluster_bits, end = off + len;

	check_int(co_block_discard(m->n, off, len, 0), 0);
	check_int(co_block_pread(m->n, off, m->buf, len), 0);
	for (uint64_t i = off; i < end; i++) {
		uint64_t start = align_down(i, cluster);
		bool whole = start >= off && MIN(start + cluster, m->size) <= end;
		uint8_t now = m->buf[i - off];

		check(now == 0 || now == m->shadow[i]);
		if (whole && (m->t->version >= 3 || !m->t->backing))
			check_int(now, 0);
		m->shadow[i] = now;
	}
}

static void pick(struct model *m, uint64_t *off, uint64_t *len)
{
	uint64_t cluster = 1ULL << m->t->cluster_bits, r = q2_random(&m->rnd);
	uint64_t max = r % 4 == 0 ? m->size
		: r % 4 == 1      ? cluster * 5
		: r % 4 == 2      ? cluster
				  : 2048;

	*off = q2_random(&m->rnd) % m->size;
	*len = 1 + q2_random(&m->rnd) % MIN(max, m->size);
	if (q2_random(&m->rnd) % 2) {
		*off = align_down(*off, cluster);
		*len = align_up(*len, cluster);
	} else if (q2_random(&m->rnd) % 2) {
		*off = align_down(*off, 512);
		*len = align_up(*len, 512);
	}
	*len = MIN(*len, m->size - *off);
}

static void step(struct model *m)
{
	uint64_t off, len, r = q2_random(&m->rnd) % 100;

	pick(m, &off, &len);
	if (r < 40) {
		fill(m->shadow + off, len, off, (unsigned)q2_random(&m->rnd));
		check_int(co_block_pwrite(m->n, off, m->shadow + off, len), 0);
	} else if (r < 65) {
		compare(m, off, len, "read");
	} else if (r < 78) {
		uint32_t flags = r % 2 ? BLOCK_IO_UNMAP : 0;

		check_int(co_block_zero(m->n, off, len, flags), 0);
		memset(m->shadow + off, 0, len);
	} else if (r < 90) {
		discard(m, off, len);
	} else if (r < 97) {
		check_int(co_block_flush(m->n), 0);
		if (!m->t->lazy) /* its refcounts are late on purpose */
			q2_test_structure_of(m->file, false);
	} else {
		model_reopen(m);
	}
}

static void run_model(const struct q2_test *t, uint64_t seed, unsigned steps)
{
	struct model m;

	model_start(&m, t, seed);
	for (unsigned i = 0; i < steps; i++)
		step(&m);
	compare(&m, 0, m.size, "at the end");
	model_reopen(&m);
	compare(&m, 0, m.size, "after reopening");
	model_stop(&m);
}

static const struct q2_test shapes[] = {
	{3, 16, 4, false, false, false, SIZE, NULL},
	{3, 16, 4, false, false, true, SIZE, NULL},
	{2, 16, 4, false, false, false, SIZE, NULL},
	{2, 12, 4, false, false, true, SIZE, NULL},
	{3, 9, 4, false, false, false, SIZE, NULL},
	{3, 9, 6, false, false, true, SIZE, NULL},
	{3, 9, 0, false, false, true, SIZE, "l2-cache-size=1024,refcount-cache-size=1024"},
	{2, 9, 4, false, false, true, SIZE, "l2-cache-size=1024,refcount-cache-size=1024"},
	{3, 10, 1, false, false, false, SIZE, NULL},
	{3, 12, 2, false, false, true, SIZE, NULL},
	{3, 12, 3, false, false, false, SIZE, "discard-no-unref=on"},
	{3, 12, 5, false, false, true, SIZE, "l2-cache-entry-size=512,l2-cache-size=1024"},
	{3, 12, 4, false, true, true, SIZE, NULL},
	{3, 14, 4, true, false, false, SIZE, NULL},
	{3, 14, 4, true, false, true, SIZE, NULL},
	{3, 16, 4, true, false, true, 2 * SIZE, "discard-no-unref=on"},
	{3, 16, 0, true, false, true, 2 * SIZE, "l2-cache-size=1,refcount-cache-size=1"},
	{3, 21, 4, false, false, true, 6 * MiB + 512, NULL},
};

CO_TEST(random_requests)
{
	unsigned seeds = q2_test_seeds(1);

	for (unsigned seed = 1; seed <= seeds; seed++)
		for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
			run_model(&shapes[i], seed * 100 + i, 250);
}

/* --- many at once --- */

#define WORKERS 12u

struct worker {
	struct model *m;
	unsigned index;
	uint64_t rnd;
	struct co_counter *running;
};

/* Worker i owns the sectors i, i + WORKERS, ...: all share every cluster, none shares a byte. */
static void worker_step(struct worker *w)
{
	struct model *m = w->m;
	uint64_t sectors = m->size / 512 / WORKERS;
	uint64_t off = (q2_random(&w->rnd) % sectors * WORKERS + w->index) * 512;
	uint8_t buf[512];

	switch (q2_random(&w->rnd) % 8) {
	case 0:
		check_int(co_block_pread(m->n, off, buf, 512), 0);
		if (memcmp(buf, m->shadow + off, 512)) {
			fprintf(stderr, "worker %u: sector %llu starts with %#x, not %#x (%s)\n",
				w->index, (unsigned long long)off / 512, buf[0], m->shadow[off],
				test_shape(m->t));
			abort();
		}
		break;
	case 1:
		memset(m->shadow + off, 0, 512);
		check_int(co_block_zero(m->n, off, 512, w->rnd % 2 ? BLOCK_IO_UNMAP : 0), 0);
		break;
	case 2:
		if (q2_random(&w->rnd) % 8 == 0)
			check_int(co_block_flush(m->n), 0);
		break;
	default:
		fill(m->shadow + off, 512, off, (unsigned)w->rnd);
		check_int(co_block_pwrite(m->n, off, m->shadow + off, 512), 0);
	}
}

static void co_worker(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < 150; i++) {
		worker_step(w);
		co_pause();
	}
	co_counter_dec(w->running);
}

static void run_concurrent(const struct q2_test *t, uint64_t seed)
{
	struct co_counter running = {0};
	struct worker w[WORKERS];
	struct model m;

	model_start(&m, t, seed);
	for (unsigned i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){&m, i, seed * 77 + i + 1, &running};
		co_counter_inc(&running);
		check_int(co_start(co_worker, &w[i]), 0);
	}
	co_counter_wait_zero(&running);
	compare(&m, 0, m.size, "all workers");
	model_reopen(&m);
	compare(&m, 0, m.size, "after reopening");
	model_stop(&m);
}

CO_TEST(concurrent_requests)
{
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		run_concurrent(&shapes[i], i + 1);
}

/* --- on many threads --- */

static int co_thread(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < 400; i++)
		worker_step(w);
	return 0;
}

static void run_threads(const struct q2_test *t, uint64_t seed)
{
	struct ring_thread *thread[4];
	struct worker w[4];
	struct model m;

	model_start(&m, t, seed);
	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct worker){&m, i, seed * 77 + i + 1, NULL};
		check_int(ring_thread_start(NULL, co_thread, &w[i], &thread[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		check_int(ring_thread_join(thread[i]), 0);
	compare(&m, 0, m.size, "all threads");
	model_stop(&m);
}

/* Takes and deletes snapshots under the feet of the others. */
static int co_snapshots(void *arg)
{
	struct model *m = ((struct worker *)arg)->m;
	const struct block_snapshot_ops *ops = m->n->drv->snapshot;
	struct block_snapshot s = {.name = (char *)"s", .icount = UINT64_MAX};
	struct error err = ERROR_INIT;

	for (unsigned i = 0; i < 12; i++) {
		int r = ops->co_create(m->n, &s, &err);

		if (r == 0)
			r = ops->co_delete(m->n, "s", &err);
		if (r < 0) {
			fprintf(stderr, "snapshot: %s (%s)\n", err.text, test_shape(m->t));
			abort();
		}
		check_int(co_q2_quiesce_begin(q2_image(m->n)), 0);
		co_pause();
		co_q2_quiesce_end(q2_image(m->n));
	}
	return 0;
}

static void run_snapshots(const struct q2_test *t, uint64_t seed)
{
	struct ring_thread *thread[4];
	struct worker w[4];
	struct model m;

	model_start(&m, t, seed);
	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct worker){&m, i, seed * 77 + i + 1, NULL};
		check_int(ring_thread_start(
				  NULL, i ? co_thread : co_snapshots, &w[i], &thread[i]),
			0);
	}
	for (unsigned i = 0; i < 4; i++)
		check_int(ring_thread_join(thread[i]), 0);
	compare(&m, 0, m.size, "under snapshots");
	model_stop(&m);
}

CO_TEST(requests_under_snapshots)
{
	unsigned seeds = q2_test_seeds(1);

	for (unsigned seed = 0; seed < seeds; seed++)
		for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
			if (shapes[i].order >= 2)
				run_snapshots(&shapes[i], seed * 100 + i + 1);
}

CO_TEST(requests_on_threads)
{
	unsigned seeds = q2_test_seeds(1);

	for (unsigned seed = 0; seed < seeds; seed++)
		for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
			run_threads(&shapes[i], seed * 100 + i + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_requests),
		cmocka_unit_test(concurrent_requests),
		cmocka_unit_test(requests_on_threads),
		cmocka_unit_test(requests_under_snapshots),
	};

	cmocka_set_test_filter(getenv("TEST_FILTER"));
	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
