/* SPDX-License-Identifier: MIT */
/* Worker pools: results come back, work runs beside the ring, many tasks, blocking ones too. */
#include "base/co.h"
#include "base/ring.h"
#include "base/sync.h"
#include "base/worker.h"
#include "tests/unit/unit.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

static struct co_counter running;

static int square(void *arg)
{
	int v = *(int *)arg;

	return v * v;
}

static int which_thread(void *arg)
{
	*(pthread_t *)arg = pthread_self();
	assert_null(co_self());
	return 0;
}

static int do_offload(void *arg)
{
	pthread_t t = pthread_self();
	int v = 12;

	assert_int_equal(co_offload(square, &v), 144);
	assert_int_equal(co_offload_blocking(square, &v), 144);
	co_offload(which_thread, &t);
	assert_false(pthread_equal(t, pthread_self()));
	return 0;
}

static void test_results_come_back(void **state)
{
	int v = 5;

	assert_int_equal(co_run(do_offload, NULL), 0);
	/* Outside of coroutines it blocks. */
	assert_int_equal(co_offload(square, &v), 25);
	assert_int_equal(co_offload_blocking(square, &v), 25);
	ring_free(ring_self());
}

struct sum {
	int v, r;
};

static void one(void *arg)
{
	struct sum *s = arg;

	s->r = s->v % 2 ? co_offload(square, &s->v) : co_offload_blocking(square, &s->v);
	co_counter_dec(&running);
}

static int do_many(void *arg)
{
	static struct sum sums[500];

	for (int i = 0; i < 500; i++) {
		sums[i] = (struct sum){i, -1};
		co_counter_inc(&running);
		assert_int_equal(co_start(one, &sums[i]), 0);
	}
	co_counter_wait_zero(&running);
	for (int i = 0; i < 500; i++)
		assert_int_equal(sums[i].r, i * i);
	return 0;
}

static void test_many(void **state)
{
	static const enum ring_kind kinds[] = {RING_IO_URING, RING_THREADS, RING_SIM};

	for (unsigned i = unit_without_uring(); i < ARRAY_SIZE(kinds); i++) {
		struct ring_opts opts = {.kind = kinds[i]};
		struct ring *ring;

		assert_int_equal(ring_new(&opts, &ring, NULL), 0);
		assert_int_equal(co_run(do_many, NULL), 0);
		ring_free(ring);
	}
}

/* More blocked calls than cores: they must not stand in the way of computation, or of another. */
static int go[2];

static int blocked(void *arg)
{
	char c;

	return read(go[0], &c, 1) == 1 ? 0 : -errno;
}

static void blocker(void *arg)
{
	assert_int_equal(co_offload_blocking(blocked, NULL), 0);
	co_counter_dec(&running);
}

static int do_blocked(void *arg)
{
	int v = 3, n = (int)worker_count() + 4;

	assert_int_equal(pipe(go), 0);
	for (int i = 0; i < n; i++) {
		co_counter_inc(&running);
		assert_int_equal(co_start(blocker, NULL), 0);
	}
	assert_int_equal(co_offload(square, &v), 9);
	assert_int_equal(co_offload_blocking(square, &v), 9);
	for (int i = 0; i < n; i++)
		assert_int_equal(write(go[1], "x", 1), 1);
	co_counter_wait_zero(&running);
	close(go[0]);
	close(go[1]);
	return 0;
}

static void test_blocked_calls_hold_up_nobody(void **state)
{
	assert_int_equal(co_run(do_blocked, NULL), 0);
	ring_free(ring_self());
}

static int signals_blocked(void *arg)
{
	sigset_t set;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	return sigismember(&set, SIGTERM) && sigismember(&set, SIGUSR1);
}

static int do_signals(void *arg)
{
	assert_int_equal(co_offload(signals_blocked, NULL), 1);
	assert_int_equal(co_offload_blocking(signals_blocked, NULL), 1);
	assert_int_equal(signals_blocked(NULL), 0);
	return 0;
}

static void test_workers_take_no_signals(void **state)
{
	assert_int_equal(co_run(do_signals, NULL), 0);
	ring_free(ring_self());
}

static void test_count_follows_affinity(void **state)
{
	cpu_set_t set;

	assert_true(worker_count() >= 1);
	assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
	assert_true(worker_count() <= (unsigned)CPU_COUNT(&set));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_results_come_back),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_blocked_calls_hold_up_nobody),
		cmocka_unit_test(test_workers_take_no_signals),
		cmocka_unit_test(test_count_follows_affinity),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
