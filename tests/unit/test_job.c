/* SPDX-License-Identifier: MIT */
/* Jobs: the rate is kept, progress is throttled and serialized, pause and cancel are obeyed. */
#include "block/block.h"
#include "base/co.h"
#include "base/ring.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

struct work {
	struct block_job job;
	unsigned steps;
	uint64_t bytes;
	bool holes;
	unsigned reports;
	int inside; /* atomic */
	int result;
};

static int co_steps(void *arg)
{
	struct work *w = arg;

	for (unsigned i = 0; i < w->steps; i++) {
		int r = w->holes ? co_block_job_skip(&w->job, w->bytes)
				 : co_block_job_step(&w->job, w->bytes);

		if (r)
			return r;
	}
	return 0;
}

static void test_rate(void **state attr_unused)
{
	struct work w = {.steps = 31, .bytes = 100000};
	double t;

	block_job_init(&w.job);
	w.job.rate = 10000000; /* 31 x 10 ms; the last is not waited for */
	t = now();
	assert_int_equal(co_run(co_steps, &w), 0);
	t = now() - t;
	assert_true(t >= 0.29 && t < 3);
	assert_int_equal(w.job.done, 3100000);
	/* Holes are counted and cost nothing. */
	w.holes = true;
	t = now();
	assert_int_equal(co_run(co_steps, &w), 0);
	assert_true(now() - t < 0.29);
	assert_int_equal(w.job.done, 6200000);
}

static void report(void *arg, const struct block_job *job)
{
	struct work *w = arg;

	assert_int_equal(__atomic_fetch_add(&w->inside, 1, __ATOMIC_SEQ_CST), 0);
	w->reports++;
	assert_true(__atomic_load_n(&job->done, __ATOMIC_RELAXED) > 0);
	usleep(2000);
	__atomic_fetch_sub(&w->inside, 1, __ATOMIC_SEQ_CST);
}

static void *worker(void *arg)
{
	struct work *w = arg;
	double end = now() + 0.3;

	while (now() < end)
		co_run(co_steps, w);
	return NULL;
}

static void test_progress(void **state attr_unused)
{
	struct work w = {.steps = 1, .bytes = 1};
	pthread_t t[3];

	block_job_init(&w.job);
	w.job.progress = report;
	w.job.arg = &w;
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&t[i], NULL, worker, &w), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	assert_true(w.reports >= 2 && w.reports <= 8);
}

static void *controller(void *arg)
{
	struct work *w = arg;

	usleep(60000);
	block_job_pause(&w->job, false);
	usleep(60000);
	block_job_cancel(&w->job);
	return NULL;
}

/* Paused, nothing passes; resumed, it runs until cancelled, which also ends a wait for the rate. */
static void test_pause_cancel(void **state attr_unused)
{
	struct work w = {.steps = 1000, .bytes = 1000000};
	double t = now();
	pthread_t c;

	block_job_init(&w.job);
	w.job.rate = 1;
	block_job_pause(&w.job, true);
	assert_int_equal(pthread_create(&c, NULL, controller, &w), 0);
	assert_int_equal(co_run(co_steps, &w), -ECANCELED);
	assert_true(now() - t >= 0.11 && now() - t < 5);
	assert_int_equal(w.job.done, 1000000); /* one was admitted */
	pthread_join(c, NULL);
	assert_int_equal(co_run(co_steps, &w), -ECANCELED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_progress),
		cmocka_unit_test(test_pause_cancel),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
