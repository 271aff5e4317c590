/* SPDX-License-Identifier: MIT */
/* In-flight tracking: serialization (N3), drain (N2, N4), and both from many threads at once. */
#include "tests/unit/block.h"

static struct block_inflight *f;
static int order[64];
static unsigned norder;

static void note(int v)
{
	order[norder++] = v;
}

static void settle(void)
{
	for (int i = 0; i < 20; i++)
		co_pause();
}

static bool idle(void)
{
	bool ret = !f->gate && list_empty(&f->tracked);

	for (unsigned i = 0; i < INFLIGHT_SHARDS; i++)
		ret &= !f->shards[i].reads && !f->shards[i].writes;
	return ret;
}

/* --- serialization ------------------------------------------------------------------------- */

struct write_arg {
	uint64_t off, len;
	int id;
	bool go; /* ends when set */
	bool serial;
};

static void co_one_write(void *arg)
{
	struct write_arg *w = arg;
	struct block_tracked t;

	if (w->serial)
		co_inflight_serialize(f, &t, w->off, w->len, false);
	else
		co_inflight_begin_write(f, &t, w->off, w->len);
	note(w->id);
	while (!w->go)
		co_pause();
	if (w->serial)
		inflight_untrack(f, &t);
	else
		inflight_end_write(f, &t);
}

static void start_write(struct write_arg *w)
{
	check_int(co_start(co_one_write, w), 0);
	settle();
}

CO_TEST(test_serialize)
{
	struct write_arg early = {.len = 512, .id = 1}, far = {.off = 8192, .len = 512, .id = 5},
			 serial = {0, 4096, 2, .serial = true},
			 over = {.off = 100, .len = 10, .id = 3},
			 beside = {.off = 4096, .len = 512, .id = 4},
			 second = {2048, 4096, 6, .serial = true};

	check_int(inflight_new(&f), 0);
	norder = 0;
	start_write(&early);
	start_write(&far);
	check_int(norder, 2);
	/* Waits for every write of before: those are not known by range. */
	start_write(&serial);
	check_int(norder, 2);
	start_write(&over);   /* overlaps a serializing request that stands before it */
	start_write(&beside); /* does not */
	check_int(norder, 3);
	check_int(order[2], 4);
	early.go = true;
	settle();
	check_int(norder, 3);
	far.go = true;
	settle();
	check_int(norder, 4);
	check_int(order[3], 2);
	/* Overlaps `serial` and `beside`, both before it. */
	start_write(&second);
	serial.go = true;
	settle();
	check_int(norder, 5);
	check_int(order[4], 3);
	beside.go = true;
	settle();
	check_int(norder, 6);
	check_int(order[5], 6);
	over.go = second.go = true;
	settle();
	check(idle());
	inflight_free(f);
}

/* --- drain --------------------------------------------------------------------------------- */

static struct block_node *node;
static bool drained, finished;

static void co_drainer(void *arg)
{
	co_block_drain_begin(node);
	drained = true;
	settle();
	check(drained);
	co_block_drain_begin(node); /* nests */
	co_block_drain_end(node);
	settle();
	drained = false;
	co_block_drain_end(node);
	finished = true;
}

static void co_late_reader(void *arg)
{
	char c;

	check_int(co_block_pread(node, 0, &c, 1), 0);
	check(!drained);
	note(1);
}

static void co_late_writer(void *arg)
{
	check_int(co_block_pwrite(node, 0, "x", 1), 0);
	check(!drained);
	note(2);
}

CO_TEST(test_drain)
{
	struct block_tracked t;

	norder = 0;
	drained = finished = false;
	node = must_open("driver=mem,size=1M", BLOCK_OPEN_RDWR);
	co_inflight_begin_write(node->inflight, &t, 0, 512);
	check_int(co_start(co_drainer, NULL), 0);
	settle();
	check(!drained);
	/* These come after the drain and wait for its end. */
	check_int(co_start(co_late_reader, NULL), 0);
	check_int(co_start(co_late_writer, NULL), 0);
	settle();
	check_int(norder, 0);
	/* A request of before may still serialize inside itself. */
	inflight_end_write(node->inflight, &t);
	while (!finished)
		co_pause();
	settle();
	check_int(norder, 2);
	co_block_node_unref(node);
}

CO_TEST(test_nested_serialize)
{
	struct block_tracked t;

	drained = finished = false;
	node = must_open("driver=mem,size=1M", BLOCK_OPEN_RDWR);
	co_inflight_begin_read(node->inflight);
	check_int(co_start(co_drainer, NULL), 0);
	settle();
	check(!drained);
	co_inflight_serialize(node->inflight, &t, 0, 4096, true);
	inflight_untrack(node->inflight, &t);
	inflight_end_read(node->inflight);
	while (!finished)
		co_pause();
	co_block_node_unref(node);
}

/* --- copying while both ends are drained ---------------------------------------------------- */

static struct block_node *src, *dst;
static unsigned copies;

static void co_copier(void *arg)
{
	int r;

	for (int i = 0; i < 50; i++) {
		r = co_block_copy_range(src, 0, dst, 0, 4096);
		check(!r || r == -ENOTSUP);
		co_pause();
	}
	copies++;
}

static void co_both_drained(void)
{
	char text[256];

	for (int i = 0; i < 2; i++) {
		FILE *file = fopen(test_path(i ? "dst" : "src"), "w");

		check(file && !ftruncate(fileno(file), 65536) && !fclose(file));
		snprintf(text, sizeof(text), "driver=file,filename=%s",
			test_path(i ? "dst" : "src"));
		*(i ? &dst : &src) = must_open(text, BLOCK_OPEN_RDWR);
	}
	copies = 0;
	for (int i = 0; i < 4; i++)
		check_int(co_start(co_copier, NULL), 0);
	while (copies < 4) {
		struct block_node *first = rand() % 2 ? src : dst;

		co_block_drain_begin(first);
		co_pause();
		co_block_drain_begin(first == src ? dst : src);
		co_pause();
		co_block_drain_end(src);
		co_block_drain_end(dst);
		co_pause();
	}
	co_block_node_unref(src);
	co_block_node_unref(dst);
}

/* Hangs when a copy waits for one node while it is counted in the other. */
static void test_copy_and_drain(void **state)
{
	for (uint64_t seed = 1; seed <= 10; seed++) {
		struct ring_opts o = {.kind = RING_SIM, .seed = seed};
		void (*fn)(void) = co_both_drained;
		struct error err = ERROR_INIT;
		struct ring *ring;

		assert_int_equal(ring_new(&o, &ring, &err), 0);
		assert_int_equal(co_run(test_in_co, &fn), 0);
		ring_free(ring);
	}
}

/* --- many threads -------------------------------------------------------------------------- */

#define THREADS 4
#define ROUNDS  10000

static unsigned char cells[16]; /* who holds the cell exclusively, by serialization */
static uint32_t drains_on, inside;

static void stress_write(unsigned *seed, bool serial)
{
	unsigned cell = (unsigned)rand_r(seed) % 16, n = 1 + (unsigned)rand_r(seed) % 3;
	struct block_tracked t;

	n = MIN(n, 16 - cell);
	if (serial)
		co_inflight_serialize(f, &t, cell * 512, n * 512, false);
	else
		co_inflight_begin_write(f, &t, cell * 512, n * 512);
	__atomic_fetch_add(&inside, 1, __ATOMIC_SEQ_CST);
	check(!__atomic_load_n(&drains_on, __ATOMIC_SEQ_CST));
	for (unsigned i = cell; i < cell + n; i++) {
		unsigned char was = __atomic_fetch_add(
			&cells[i], serial ? 100 : 1, __ATOMIC_SEQ_CST);

		check(serial ? !was : was < 100);
	}
	co_pause();
	for (unsigned i = cell; i < cell + n; i++)
		__atomic_fetch_sub(&cells[i], serial ? 100 : 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_sub(&inside, 1, __ATOMIC_SEQ_CST);
	if (serial)
		inflight_untrack(f, &t);
	else
		inflight_end_write(f, &t);
}

static void stress_read(void)
{
	co_inflight_begin_read(f);
	__atomic_fetch_add(&inside, 1, __ATOMIC_SEQ_CST);
	check(!__atomic_load_n(&drains_on, __ATOMIC_SEQ_CST));
	co_pause();
	__atomic_fetch_sub(&inside, 1, __ATOMIC_SEQ_CST);
	inflight_end_read(f);
}

struct stress_co {
	unsigned seed;
	struct co_counter *done;
};

static void co_stress(void *arg)
{
	struct stress_co *c = arg;

	for (int i = 0; i < ROUNDS; i++) {
		unsigned what = (unsigned)rand_r(&c->seed) % 64;

		if (what == 0) {
			struct block_node fake = {.inflight = f};

			co_block_drain_begin(&fake);
			check(!__atomic_load_n(&inside, __ATOMIC_SEQ_CST));
			__atomic_fetch_add(&drains_on, 1, __ATOMIC_SEQ_CST);
			co_pause();
			__atomic_fetch_sub(&drains_on, 1, __ATOMIC_SEQ_CST);
			co_block_drain_end(&fake);
		} else if (what < 30) {
			stress_read();
		} else {
			stress_write(&c->seed, what < 36);
		}
	}
	co_counter_dec(c->done);
}

static int co_stress_thread(void *arg)
{
	struct co_counter done = {0};
	struct stress_co c[4];

	for (unsigned i = 0; i < 4; i++) {
		c[i] = (struct stress_co){(unsigned)(uintptr_t)arg * 10 + i, &done};
		co_counter_inc(&done);
		check_int(co_start(co_stress, &c[i]), 0);
	}
	co_counter_wait_zero(&done);
	return 0;
}

CO_TEST(test_threads)
{
	struct ring_thread *threads[THREADS];

	check_int(inflight_new(&f), 0);
	for (unsigned i = 0; i < THREADS; i++)
		check_int(ring_thread_start(
				  NULL, co_stress_thread, (void *)(uintptr_t)(i + 1), &threads[i]),
			0);
	for (unsigned i = 0; i < THREADS; i++)
		check_int(ring_thread_join(threads[i]), 0);
	check(idle());
	inflight_free(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copy_and_drain),
		cmocka_unit_test(test_serialize),
		cmocka_unit_test(test_drain),
		cmocka_unit_test(test_nested_serialize),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
