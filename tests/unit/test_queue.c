/* SPDX-License-Identifier: MIT */
/* The data half of the public API: slots, results, polling, several queues and threads. */
#include "drover.h"
#include "base/base.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define MIB (1024 * 1024)

static char name[] = "/tmp/drover-queue-XXXXXX";
static struct drover_image *img;
static uint32_t engine; /* enum drover_aio of the tests that follow */

static struct drover_image *open_image(void)
{
	struct drover_open_opts opts = DROVER_INIT(struct drover_open_opts);
	struct drover_image *ret = NULL;
	struct drover_error err;

	opts.flags = DROVER_OPEN_RDWR;
	opts.format = "raw";
	if (drover_open(name, &opts, drover_trust(DROVER_TRUST_LOCAL), &ret, &err))
		fail_msg("%s", err.text);
	return ret;
}

static int setup(void **state attr_unused)
{
	int fd = mkstemp(name);

	if (fd < 0 || ftruncate(fd, 16 * MIB))
		return -1;
	close(fd);
	img = open_image();
	return 0;
}

static int teardown(void **state attr_unused)
{
	int r = drover_close(img, NULL);

	unlink(name);
	strcpy(name, "/tmp/drover-queue-XXXXXX");
	return r;
}

static struct drover_queue *new_queue(uint32_t slots)
{
	struct drover_queue_opts opts = DROVER_INIT(struct drover_queue_opts);
	struct drover_queue *q = NULL;

	opts.slots = slots;
	opts.aio = engine;
	assert_int_equal(drover_queue_new(img, &opts, &q, NULL), 0);
	return q;
}

/* Waits for one result and returns it. */
static int one(struct drover_queue *q, void *user)
{
	struct drover_result r = {0};

	assert_int_equal(drover_queue_reap(q, &r, 1, 1, -1), 1);
	assert_ptr_equal(r.user, user);
	return r.result;
}

static void test_options(void **state attr_unused)
{
	struct drover_queue_opts opts = DROVER_INIT(struct drover_queue_opts);
	struct drover_queue *q;

	opts.slots = 5000;
	assert_int_equal(drover_queue_new(img, &opts, &q, NULL), -EINVAL);
	opts.slots = 0;
	opts.aio = 9;
	assert_int_equal(drover_queue_new(img, &opts, &q, NULL), -EINVAL);
	assert_int_equal(drover_queue_new(img, NULL, &q, NULL), 0);
	assert_int_equal(drover_close(img, NULL), -EBUSY);
	drover_queue_free(q);
	drover_queue_free(NULL);
}

static void test_verbs(void **state attr_unused)
{
	struct drover_queue *q = new_queue(8);
	char a[10000], b[10000];
	struct iovec iov[3] = {{b, 1}, {b + 1, 4000}, {b + 4001, 5999}};
	struct iovec out[2] = {{a, 5000}, {a + 5000, 5000}};

	for (size_t i = 0; i < sizeof(a); i++)
		a[i] = (char)(i * 7 + 1);
	drover_slot_writev(drover_queue_get(q), 777, out, 2, 0, a);
	assert_int_equal(one(q, a), 0);
	drover_slot_read(drover_queue_get(q), 777, b, sizeof(b), b);
	assert_int_equal(one(q, b), 0);
	assert_memory_equal(a, b, sizeof(a));
	memset(b, 0, sizeof(b));
	drover_slot_readv(drover_queue_get(q), 777, iov, 3, NULL);
	assert_int_equal(one(q, NULL), 0);
	assert_memory_equal(a, b, sizeof(a));
	drover_slot_zero(drover_queue_get(q), 1000, 5000, DROVER_IO_UNMAP, NULL);
	assert_int_equal(one(q, NULL), 0);
	drover_slot_write(drover_queue_get(q), 0, a, 512, DROVER_IO_FUA, NULL);
	assert_int_equal(one(q, NULL), 0);
	drover_slot_read(drover_queue_get(q), 777, b, sizeof(b), NULL);
	assert_int_equal(one(q, NULL), 0);
	memset(a + 223, 0, 5000);
	assert_memory_equal(a, b, sizeof(a));
	drover_slot_discard(drover_queue_get(q), 8 * MIB, MIB, NULL);
	assert_int_equal(one(q, NULL), 0);
	drover_slot_flush(drover_queue_get(q), NULL);
	assert_int_equal(one(q, NULL), 0);
	drover_queue_free(q);
}

static void test_errors(void **state attr_unused)
{
	struct drover_queue *q = new_queue(8);
	struct iovec huge[2] = {{NULL, SIZE_MAX}, {NULL, 2}};
	char buf[512];

	drover_slot_read(drover_queue_get(q), 16 * MIB, buf, 512, NULL);
	assert_true(one(q, NULL) < 0);
	drover_slot_write(drover_queue_get(q), UINT64_MAX - 100, buf, 512, 0, NULL);
	assert_true(one(q, NULL) < 0);
	drover_slot_write(drover_queue_get(q), 0, buf, 512, DROVER_IO_UNMAP, NULL);
	assert_int_equal(one(q, NULL), -EINVAL);
	drover_slot_zero(drover_queue_get(q), 0, 512, 1u << 20, NULL);
	assert_int_equal(one(q, NULL), -EINVAL);
	drover_slot_writev(drover_queue_get(q), 0, huge, 2, 0, NULL);
	assert_int_equal(one(q, NULL), -EINVAL);
	drover_slot_readv(drover_queue_get(q), 0, huge, 5000, NULL);
	assert_int_equal(one(q, NULL), -EINVAL);
	drover_queue_free(q);
}

/* Full is NULL; a slot given back or reaped is free again. */
static void test_slots(void **state attr_unused)
{
	struct drover_queue *q = new_queue(4);
	struct drover_slot *s[4];
	struct drover_result r[8];
	char buf[4][512];

	for (unsigned i = 0; i < 4; i++)
		assert_non_null(s[i] = drover_queue_get(q));
	assert_null(drover_queue_get(q));
	drover_slot_put(s[3]);
	assert_non_null(s[3] = drover_queue_get(q));
	assert_int_equal(drover_queue_submit(q), 0);
	assert_int_equal(drover_queue_reap(q, r, 1, 8, -1), 0); /* nothing to wait for */
	for (unsigned i = 0; i < 4; i++)
		drover_slot_read(s[i], i * 512, buf[i], 512, s[i]);
	assert_int_equal(drover_queue_submit(q), 4);
	assert_null(drover_queue_get(q));
	assert_int_equal(drover_queue_reap(q, r, 3, 3, -1), 3);
	for (unsigned i = 0; i < 3; i++)
		assert_non_null(drover_queue_get(q));
	assert_null(drover_queue_get(q));
	assert_int_equal(drover_queue_reap(q, r, 100, 8, -1), 1);
	drover_queue_free(q);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* With nothing in flight a wait is none; with results there, neither. */
static void test_timeout(void **state attr_unused)
{
	struct drover_queue *q = new_queue(4);
	struct drover_result r[4];
	char buf[512];
	double t = now();

	assert_int_equal(drover_queue_reap(q, r, 1, 4, 5000000000), 0);
	drover_slot_read(drover_queue_get(q), 0, buf, 512, NULL);
	assert_int_equal(drover_queue_reap(q, r, 4, 4, 5000000000), 1);
	assert_true(now() - t < 3);
	drover_queue_free(q);
}

static int wait_event(int ep, int timeout_ms)
{
	struct epoll_event ev;
	int r;

	do
		r = epoll_wait(ep, &ev, 1, timeout_ms);
	while (r < 0 && errno == EINTR);
	return r;
}

/* The descriptor tells of results however they came about: at once, later, or during a control
 * call; and is quiet when there is nothing to do. */
static void test_poll(void **state attr_unused)
{
	struct drover_queue *q = new_queue(32);
	int ep = epoll_create1(0), fd = drover_queue_fd(q);
	struct epoll_event ev = {.events = EPOLLIN};
	struct drover_result r[32];
	unsigned quiet = 0;
	char buf[32][4096];

	assert_true(fd >= 0);
	assert_int_equal(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev), 0);
	for (unsigned round = 0; round < 60; round++) {
		unsigned n = round % 32 + 1, got = 0;

		for (unsigned i = 0; i < n; i++) {
			if (round % 3 == 0)
				drover_slot_write(drover_queue_get(q), i * 8192ULL, buf[i], 4096,
					round % 2 ? DROVER_IO_FUA : 0, NULL);
			else if (round % 3 == 1)
				drover_slot_read(
					drover_queue_get(q), i * 4096ULL, buf[i], 4096, NULL);
			else
				drover_slot_flush(drover_queue_get(q), NULL);
		}
		assert_int_equal(drover_queue_submit(q), n);
		if (round % 5 == 0)
			assert_int_equal(drover_image_flush(img, NULL), 0);
		while (got < n) {
			int k;

			if (wait_event(ep, 5000) != 1)
				fail_msg("round %u: %u of %u results and no event", round, got, n);
			k = drover_queue_reap(q, r, 0, 3, 0); /* leaves some behind */
			assert_true(k >= 0);
			got += (unsigned)k;
		}
	}
	/* An event for nothing may be on its way, but it does not come back for ever. */
	for (unsigned i = 0; wait_event(ep, 20) && i < 100; i++) {
		drover_queue_reap(q, r, 0, 32, 0);
		quiet = i;
	}
	assert_true(quiet < 10);
	close(ep);
	drover_queue_free(q);
}

/* A control call on the queue's own thread: requests in flight go on, none is lost. */
static void test_control_meanwhile(void **state attr_unused)
{
	struct drover_queue *q = new_queue(64), *q2;
	struct drover_result r[64];
	static char buf[64][65536];
	unsigned n = 0;

	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 60; i++)
			drover_slot_write(drover_queue_get(q), i * 65536ULL, buf[i], 65536, 0,
				NULL);
		drover_queue_submit(q);
		/* Drains: would wait for ever if our requests did not go on. */
		assert_int_equal(drover_image_resize(img, (16 + round % 2) * MIB,
					 DROVER_PREALLOC_OFF, DROVER_RESIZE_SHRINK, NULL),
			0);
		n = 0;
		while (n < 60) {
			int k = drover_queue_reap(q, r, 1, 64, -1);

			assert_true(k > 0);
			n += (unsigned)k;
		}
	}
	/* A second queue on the thread shares the ring. */
	q2 = new_queue(2);
	drover_slot_read(drover_queue_get(q2), 0, buf[0], 512, q2);
	drover_slot_read(drover_queue_get(q), 0, buf[1], 512, q);
	drover_queue_submit(q2);
	assert_int_equal(one(q, q), 0);
	assert_int_equal(one(q2, q2), 0);
	drover_queue_free(q);
	drover_slot_read(drover_queue_get(q2), 0, buf[0], 512, q2);
	drover_queue_free(q2); /* with one in flight, or done and not reaped */
}

static void *hammer(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg, pending = 0;
	uint64_t base = seed * 2ULL * MIB;
	struct drover_queue *q = new_queue(16);
	struct drover_result r[16];
	static __thread char buf[16][4096], back[4096];
	static __thread uint64_t at[16];

	for (unsigned round = 0; round < 40; round++) {
		for (unsigned i = 0; i < 16; i++) {
			at[i] = base + (rand_r(&seed) % 31 * 16 + i) * 4096ULL;
			memset(buf[i], rand_r(&seed), 4096);
			drover_slot_write(drover_queue_get(q), at[i], buf[i], 4096, 0, NULL);
			pending++;
		}
		while (pending) {
			int k = drover_queue_reap(q, r, 1, 16, -1);

			for (int i = 0; i < k; i++)
				assert_int_equal(r[i].result, 0);
			pending -= (unsigned)k;
		}
		for (unsigned i = 0; i < 16; i++) {
			drover_slot_read(drover_queue_get(q), at[i], back, 4096, NULL);
			assert_int_equal(one(q, NULL), 0);
			assert_memory_equal(back, buf[i], 4096);
		}
	}
	drover_queue_free(q);
	return NULL;
}

static void test_threads(void **state attr_unused)
{
	pthread_t t[4];

	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, hammer, (void *)(i + 1)), 0);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_verbs),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_slots),
		cmocka_unit_test(test_timeout),
		cmocka_unit_test(test_poll),
		cmocka_unit_test(test_control_meanwhile),
		cmocka_unit_test(test_threads),
	};
	int r = cmocka_run_group_tests_name("default engine", tests, setup, teardown);

	engine = DROVER_AIO_THREADS;
	return r + cmocka_run_group_tests_name("threads engine", tests, setup, teardown);
}
