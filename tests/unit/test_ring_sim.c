/* SPDX-License-Identifier: MIT */
/* The sim engine: one seed is one order, errors on request, resumption after whatever happens. */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/sync.h"
#include "base/worker.h"
#include "tests/unit/unit.h"

#include <sys/mman.h>
#include <unistd.h>

enum { ACTORS = 12, STEPS = 6, EVENTS = ACTORS * STEPS };

static int fd;
static unsigned char events[EVENTS];
static unsigned nevents;
static struct co_counter running;

static int group_setup(void **state)
{
	fd = memfd_create("test_ring_sim", MFD_CLOEXEC);
	return fd < 0 || ftruncate(fd, 65536) ? -1 : 0;
}

static int group_teardown(void **state)
{
	return close(fd);
}

static int nothing(void *arg)
{
	return 0;
}

static void actor(void *arg)
{
	unsigned char me = (unsigned char)(uintptr_t)arg;
	unsigned char b[100] = {0};
	struct iovec v;

	for (unsigned step = 0; step < STEPS; step++) {
		switch ((me + step) % 5) {
		case 0:
			co_write_full(fd, iov_buf(&v, b, sizeof(b)), me * 100);
			break;
		case 1:
			co_pause();
			break;
		case 2:
			co_sleep(1000 * (me % 3));
			break;
		case 3:
			co_fsync(fd, true);
			break;
		default:
			co_offload(nothing, NULL);
		}
		events[nevents++] = me;
	}
	co_counter_dec(&running);
}

static int act(void *arg)
{
	for (uintptr_t i = 0; i < ACTORS; i++) {
		co_counter_inc(&running);
		assert_int_equal(co_start(actor, (void *)i), 0);
	}
	co_counter_wait_zero(&running);
	return 0;
}

static void with_seed(uint64_t seed, ring_sim_fault_fn *fault, void *arg, int (*fn)(void *))
{
	struct ring_opts opts = {.kind = RING_SIM, .seed = seed};
	struct ring *ring;

	assert_int_equal(ring_new(&opts, &ring, NULL), 0);
	ring_sim_fault(ring, fault, arg);
	nevents = 0;
	assert_int_equal(co_run(fn, arg), 0);
	ring_free(ring);
}

static void test_a_seed_is_an_order(void **state)
{
	unsigned char first[EVENTS];
	unsigned different = 0;

	for (uint64_t seed = 0; seed < 50; seed++) {
		with_seed(seed, NULL, NULL, act);
		assert_int_equal(nevents, EVENTS);
		memcpy(first, events, sizeof(first));
		with_seed(seed, NULL, NULL, act);
		assert_memory_equal(first, events, sizeof(first));
		with_seed(seed + 1, NULL, NULL, act);
		different += !!memcmp(first, events, sizeof(first));
	}
	assert_true(different > 40);
}

static unsigned pauses[2];

static void pauser(void *arg)
{
	for (unsigned i = 0; i < 3; i++) {
		events[nevents++] = (unsigned char)(uintptr_t)arg;
		co_pause();
	}
	co_counter_dec(&running);
}

static int two_pausers(void *arg)
{
	for (uintptr_t i = 0; i < 2; i++) {
		co_counter_inc(&running);
		assert_int_equal(co_start(pauser, (void *)i), 0);
	}
	co_counter_wait_zero(&running);
	return 0;
}

/* Ready coroutines are drawn, not run in turn: both take the lead now and then. */
static void test_pauses_reorder(void **state)
{
	for (uint64_t seed = 0; seed < 40; seed++) {
		with_seed(seed, NULL, NULL, two_pausers);
		assert_int_equal(nevents, 6);
		pauses[events[2]]++;
	}
	assert_true(pauses[0] > 5 && pauses[1] > 5);
}

/* --- faults --- */

struct faulty {
	int code;       /* what the k-th call of `op` gives */
	const char *op; /* NULL: any */
	unsigned k, calls;
	int r; /* what came of it */
};

static int kth_fault(void *arg, const char *op, int on, uint64_t off, size_t len)
{
	struct faulty *f = arg;

	assert_int_equal(on, fd);
	if (f->op && strcmp(op, f->op))
		return 0;
	return ++f->calls == f->k ? f->code : 0;
}

static int write_and_read(void *arg)
{
	struct faulty *f = arg;
	unsigned char *a = mem_alloc(50000), *b = mem_zalloc(50000);
	struct iovec v;
	ssize_t n;

	for (unsigned i = 0; i < 50000; i++)
		a[i] = (unsigned char)(i * 7 + f->k + i / 256);
	f->r = co_write_full(fd, iov_buf(&v, a, 50000), 11);
	if (!f->r) {
		n = co_read_full(fd, iov_buf(&v, b, 50000), 11);
		f->r = n < 0 ? (int)n : 0;
		if (!f->r) {
			assert_int_equal(n, 50000);
			assert_memory_equal(a, b, 50000);
		}
	}
	mem_free(a);
	mem_free(b);
	return 0;
}

/* With short transfers thrown in by the engine, interruptions resume at the right offset. */
static void test_interruptions_are_resumed(void **state)
{
	static const int codes[] = {-EINTR, -EAGAIN, -ECANCELED};

	for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
		for (uint64_t seed = 0; seed < 60; seed++) {
			struct faulty f = {.code = codes[i], .k = 1 + seed % 2};

			with_seed(seed, kth_fault, &f, write_and_read);
			assert_int_equal(f.r, 0);
			assert_true(f.calls > 2);
		}
	}
}

static void test_errors_are_reported(void **state)
{
	struct faulty f = {.code = -EIO, .k = 1, .op = "read"};

	with_seed(1, kth_fault, &f, write_and_read);
	assert_int_equal(f.r, -EIO);
	f = (struct faulty){.code = -ENOSPC, .k = 1, .op = "write"};
	with_seed(1, kth_fault, &f, write_and_read);
	assert_int_equal(f.r, -ENOSPC);
}

/* Short transfers do come: without them the tests above would prove little. */
static int count_short(void *arg)
{
	static unsigned char b[8192];
	struct iovec v = {b, sizeof(b)};
	unsigned n = 0;

	for (int i = 0; i < 500; i++) {
		ssize_t r = co_preadv(fd, &v, 1, 0, 0);

		assert_true(r > 0 && r % 512 == 0);
		n += r < 8192;
	}
	assert_true(n > 10 && n < 100);
	return 0;
}

static void test_short_transfers_happen(void **state)
{
	with_seed(3, NULL, NULL, count_short);
}

static int long_sleep(void *arg)
{
	return co_sleep(UINT64_MAX / 4); /* 146 years */
}

static void test_time_is_virtual(void **state)
{
	with_seed(1, NULL, NULL, long_sleep);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_seed_is_an_order),
		cmocka_unit_test(test_pauses_reorder),
		cmocka_unit_test(test_interruptions_are_resumed),
		cmocka_unit_test(test_errors_are_reported),
		cmocka_unit_test(test_short_transfers_happen),
		cmocka_unit_test(test_time_is_virtual),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
