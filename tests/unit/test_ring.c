/* SPDX-License-Identifier: MIT */
/* Rings: every operation on every engine, many at once, cancelling, polling, ring threads. */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/sync.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static int fd; /* an unnamed file */

static int group_setup(void **state)
{
	const char *dir = getenv("TMPDIR");

	fd = open(dir ? dir : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		fd = memfd_create("test_ring", MFD_CLOEXEC);
	return fd < 0 ? -1 : 0;
}

static enum ring_kind kind;

/* *state is the engine's number. */
static int setup(void **state)
{
	struct ring_opts opts = {.kind = kind, .seed = 1};
	struct ring *ring;

	return ftruncate(fd, 0) || ring_new(&opts, &ring, NULL) ? -1 : 0;
}

static int teardown(void **state)
{
	ring_free(ring_self());
	return 0;
}

static void fill(unsigned char *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (unsigned char)((i * 31 + i / 251 + seed) & 0xff);
}

/* --- plain operations --- */

static int do_read_write(void *arg)
{
	enum { N = 300, SEG = 1000 };
	unsigned char *a = mem_alloc(N * SEG), *b = mem_zalloc(N * SEG);
	struct iovec v[N], one;
	struct iov_slice s = {v, N, 100, N * SEG - 200};

	assert_true(a && b);
	fill(a, N * SEG, 1);
	/* More segments than one call takes, in another order in memory than in the file. */
	for (size_t i = 0; i < N; i++)
		v[i] = (struct iovec){a + (i ^ 1) * SEG, SEG};
	assert_int_equal(co_write_full(fd, s, 5000), 0);
	for (size_t i = 0; i < N; i++)
		v[i].iov_base = b + (i ^ 1) * SEG;
	assert_int_equal(co_read_full(fd, s, 5000), s.len);
	memcpy(b + SEG, a + SEG, 100);
	memcpy(b + (N - 2) * SEG + SEG - 100, a + (N - 2) * SEG + SEG - 100, 100);
	assert_memory_equal(a, b, N * SEG);
	/* Beyond the end of file: as much as there is. */
	assert_int_equal(co_read_full(fd, iov_buf(&one, b, 1000), 5000 + s.len - 10), 10);
	assert_int_equal(co_read_full(fd, iov_buf(&one, b, 1000), 50000000), 0);
	assert_int_equal(co_read_full(fd, iov_buf(&one, b, 0), 0), 0);
	mem_free(a);
	mem_free(b);
	return 0;
}

static void test_read_write_full(void **state)
{
	assert_int_equal(co_run(do_read_write, NULL), 0);
}

static int do_hints(void *arg)
{
	static const enum io_hint hints[] = {IO_RING, IO_INLINE, IO_NOWAIT_FIRST};
	unsigned char a[8192], b[8192];
	struct iovec v;

	for (unsigned i = 0; i < ARRAY_SIZE(hints); i++) {
		/* Many in a row: inline calls give way now and then. */
		for (unsigned k = 0; k < 200; k++) {
			fill(a, sizeof(a), i * 1000 + k);
			assert_int_equal(co_write_full_hint(fd, iov_buf(&v, a, sizeof(a)), k * 100,
						 0, hints[i] == IO_RING ? IO_RING : IO_INLINE),
				0);
			memset(b, 0, sizeof(b));
			assert_int_equal(co_read_full_hint(fd, iov_buf(&v, b, sizeof(b)), k * 100,
						 0, hints[i]),
				sizeof(b));
			assert_memory_equal(a, b, sizeof(a));
		}
	}
	return 0;
}

static void test_hints_read_the_same(void **state)
{
	assert_int_equal(co_run(do_hints, NULL), 0);
}

static int do_errors(void *arg)
{
	unsigned char b[512];
	struct iovec v = {b, sizeof(b)};
	int ro = open("/dev/null", O_RDONLY | O_CLOEXEC);

	assert_int_equal(co_preadv(fd, &v, 1, UINT64_MAX, 0), -EINVAL);
	assert_int_equal(co_pwritev(fd, &v, 1, (uint64_t)INT64_MAX + 1, 0), -EINVAL);
	assert_int_equal(co_read_full(fd, iov_buf(&v, b, 512), INT64_MAX - 100), -EINVAL);
	assert_int_equal(co_preadv(-1, &v, 1, 0, 0), -EBADF);
	assert_int_equal(co_pwritev(ro, &v, 1, 0, 0), -EBADF);
	assert_int_equal(co_fsync(-1, false), -EBADF);
	assert_int_equal(co_ftruncate(-1, 0), -EBADF);
	assert_int_equal(co_ftruncate(fd, UINT64_MAX), -EFBIG);
	assert_int_equal(co_fallocate(fd, 0, INT64_MAX, 2), -EFBIG);
	assert_int_equal(co_copy_file_range(-1, 0, fd, 0, 10), -EBADF);
	assert_int_equal(co_poll(-1, POLLIN), -EBADF);
	close(ro);
	return 0;
}

static void test_errors_come_back(void **state)
{
	assert_int_equal(co_run(do_errors, NULL), 0);
}

static int do_file_ops(void *arg)
{
	unsigned char b[4096];
	struct iovec v;
	ssize_t r;

	assert_int_equal(co_ftruncate(fd, 100000), 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), 100000);
	assert_int_equal(co_fallocate(fd, 0, 0, 200000), 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), 200000);
	fill(b, sizeof(b), 9);
	assert_int_equal(co_write_full(fd, iov_buf(&v, b, sizeof(b)), 0), 0);
	assert_int_equal(co_fsync(fd, true), 0);
	assert_int_equal(co_fsync(fd, false), 0);
	r = co_copy_file_range(fd, 0, fd, 65536, sizeof(b));
	if (r != -EXDEV && r != -EOPNOTSUPP) {
		assert_int_equal(r, sizeof(b));
		memset(b, 0, sizeof(b));
		assert_int_equal(co_read_full(fd, iov_buf(&v, b, sizeof(b)), 65536), sizeof(b));
		assert_int_equal(b[1], (31 + 9) & 0xff);
	}
	assert_int_equal(co_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
	assert_int_equal(co_read_full(fd, iov_buf(&v, b, sizeof(b)), 0), sizeof(b));
	assert_true(mem_is_zero(b, sizeof(b)));
	return 0;
}

static void test_file_operations(void **state)
{
	assert_int_equal(co_run(do_file_ops, NULL), 0);
}

/* --- many at once --- */

static struct co_counter flying;

static void one_of_many(void *arg)
{
	uint64_t i = (uint64_t)(uintptr_t)arg;
	unsigned char a[512], b[512];
	struct iovec v;

	fill(a, sizeof(a), (unsigned)i);
	assert_int_equal(co_write_full(fd, iov_buf(&v, a, sizeof(a)), i * 512), 0);
	assert_int_equal(co_sleep(1000 * (i % 10)), 0);
	assert_int_equal(co_read_full(fd, iov_buf(&v, b, sizeof(b)), i * 512), sizeof(b));
	assert_memory_equal(a, b, sizeof(a));
	co_counter_dec(&flying);
}

static int do_many(void *arg)
{
	for (uintptr_t i = 0; i < 700; i++) {
		co_counter_inc(&flying);
		assert_int_equal(co_start(one_of_many, (void *)i), 0);
	}
	co_counter_wait_zero(&flying);
	return 0;
}

static void test_more_than_the_queue_holds(void **state)
{
	struct ring_opts opts = {.kind = kind, .entries = 4, .seed = 1};
	struct ring *ring;

	ring_free(ring_self());
	assert_int_equal(ring_new(&opts, &ring, NULL), 0);
	assert_int_equal(co_run(do_many, NULL), 0);
}

/* --- sleeping and cancelling --- */

static unsigned char wake_order[8];
static unsigned woken;

static void sleeper(void *arg)
{
	unsigned ms = (unsigned)(uintptr_t)arg;

	assert_int_equal(co_sleep(ms * 1000000ULL), 0);
	wake_order[woken++] = (unsigned char)ms;
	co_counter_dec(&flying);
}

static int do_sleep(void *arg)
{
	static const unsigned char ms[] = {40, 1, 60, 20, 80};
	static const unsigned char sorted[] = {1, 20, 40, 60, 80};

	woken = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(ms); i++) {
		co_counter_inc(&flying);
		assert_int_equal(co_start(sleeper, (void *)(uintptr_t)ms[i]), 0);
	}
	co_counter_wait_zero(&flying);
	assert_memory_equal(wake_order, sorted, sizeof(sorted));
	return co_sleep(0);
}

static void test_sleepers_wake_in_order(void **state)
{
	assert_int_equal(co_run(do_sleep, NULL), 0);
}

struct waiting {
	struct co *co;
	int fd, r;
	bool poll;
};

static void wait_forever(void *arg)
{
	struct waiting *w = arg;

	w->co = co_self();
	w->r = w->poll ? co_poll(w->fd, POLLIN) : co_sleep(UINT64_MAX);
	co_counter_dec(&flying);
}

static int do_cancel(void *arg)
{
	struct waiting w[6];
	int p[2];

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
			w[i] = (struct waiting){.fd = p[0], .poll = i % 2};
			co_counter_inc(&flying);
			assert_int_equal(co_start(wait_forever, &w[i]), 0);
			if (i == 3 && round)
				assert_int_equal(co_sleep(1000), 0);
		}
		for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
			co_cancel(w[i].co);
			co_cancel(w[i].co); /* twice is once */
		}
		co_counter_wait_zero(&flying);
		for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
			assert_int_equal(w[i].r, -ECANCELED);
	}
	/* What waits in nothing is left alone, and later operations do not suffer. */
	co_cancel(co_self());
	assert_int_equal(co_sleep(1000), 0);
	close(p[0]);
	close(p[1]);
	return 0;
}

static void test_cancel_sleep_and_poll(void **state)
{
	assert_int_equal(co_run(do_cancel, NULL), 0);
}

static int do_poll(void *arg)
{
	struct waiting w[3];
	int p[2];

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
		w[i] = (struct waiting){.fd = p[0], .poll = true};
		co_counter_inc(&flying);
		assert_int_equal(co_start(wait_forever, &w[i]), 0);
	}
	assert_int_equal(co_poll(p[1], POLLOUT), POLLOUT);
	assert_int_equal(write(p[1], "x", 1), 1);
	co_counter_wait_zero(&flying);
	for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
		assert_int_equal(w[i].r, POLLIN);
	close(p[1]);
	assert_int_equal(co_poll(p[0], POLLIN), POLLIN | POLLHUP);
	close(p[0]);
	/* A regular file is always ready. */
	assert_int_equal(co_poll(fd, POLLIN), POLLIN);
	return 0;
}

static void test_poll(void **state)
{
	assert_int_equal(co_run(do_poll, NULL), 0);
}

/* --- turns --- */

static void *kick_thread(void *arg)
{
	ring_kick(arg);
	return NULL;
}

static void test_kick_ends_a_turn(void **state)
{
	struct ring *ring = ring_self();
	pthread_t t;

	for (int i = 0; i < 50; i++) {
		assert_int_equal(pthread_create(&t, NULL, kick_thread, ring), 0);
		assert_int_equal(ring_turn(ring, -1), 0);
		pthread_join(t, NULL);
	}
	assert_int_equal(ring_turn(ring, 1000), 0); /* nothing to do */
	/* Before the turn, and when the descriptor is in use. */
	ring_kick(ring);
	assert_int_equal(ring_turn(ring, -1), 0);
	assert_true(ring_fd(ring) >= 0);
	assert_true(ring_turn(ring, 0) >= 0);
	ring_kick(ring);
	assert_int_equal(ring_turn(ring, -1), 0);
	for (int i = 0; i < 50; i++) {
		assert_int_equal(pthread_create(&t, NULL, kick_thread, ring), 0);
		assert_int_equal(ring_turn(ring, -1), 0);
		pthread_join(t, NULL);
	}
}

static struct ring *signalled;

static void on_signal(int sig)
{
	ring_kick(signalled);
}

static void test_kick_from_a_signal_handler(void **state)
{
	struct sigaction sa = {.sa_handler = on_signal}, old;

	signalled = ring_self();
	sigaction(SIGUSR1, &sa, &old);
	raise(SIGUSR1);
	assert_int_equal(ring_turn(signalled, -1), 0);
	sigaction(SIGUSR1, &old, NULL);
}

static void touch_file(void *arg)
{
	unsigned char b[512] = {1};
	struct iovec v;

	assert_int_equal(co_write_full(fd, iov_buf(&v, b, sizeof(b)), 0), 0);
	assert_int_equal(co_sleep(2000000), 0);
	assert_int_equal(co_read_full(fd, iov_buf(&v, b, sizeof(b)), 0), sizeof(b));
	*(int *)arg = 1;
}

static struct co *sleeping_co;

static void wait_for_wake(void *arg)
{
	sleeping_co = co_self();
	co_yield ();
	*(int *)arg = 1;
}

static void *wake_thread(void *arg)
{
	co_wake(sleeping_co);
	return NULL;
}

/* Somebody else's loop: polls the descriptor, turns without waiting. */
static void loop_until(int *done)
{
	struct pollfd p = {.fd = ring_fd(ring_self()), .events = POLLIN};

	while (!*done) {
		assert_int_equal(poll(&p, 1, 10000), 1);
		assert_true(ring_turn(ring_self(), 0) >= 0);
	}
}

static void test_ring_fd_polls_readable(void **state)
{
	int done = 0;
	pthread_t t;

	assert_int_equal(co_start(touch_file, &done), 0);
	loop_until(&done);
	/* Started after the descriptor is known. */
	done = 0;
	assert_int_equal(co_start(touch_file, &done), 0);
	loop_until(&done);
	/* Woken on this thread, outside of a turn. */
	done = 0;
	assert_int_equal(co_start(wait_for_wake, &done), 0);
	while (ring_turn(ring_self(), 0) > 0)
		;
	co_wake(sleeping_co);
	loop_until(&done);
	assert_int_equal(co_run(do_read_write, NULL), 0);
	assert_int_equal(co_run(do_sleep, NULL), 0);
	assert_int_equal(co_run(do_poll, NULL), 0);
	assert_int_equal(co_run(do_cancel, NULL), 0);
	if (kind == RING_SIM)
		return;
	for (int i = 0; i < 50; i++) {
		done = 0;
		assert_int_equal(co_start(wait_for_wake, &done), 0);
		assert_true(ring_turn(ring_self(), 0) >= 0);
		assert_int_equal(pthread_create(&t, NULL, wake_thread, NULL), 0);
		loop_until(&done);
		pthread_join(t, NULL);
	}
}

/* --- ring threads --- */

static int on_ring_thread(void *arg)
{
	struct ring *mine = ring_self();

	assert_ptr_not_equal(mine, arg);
	assert_int_equal(ring_kind(mine), kind);
	assert_int_equal(co_sleep(1000), 0);
	return 17;
}

static int do_join_inside(void *arg)
{
	struct ring_opts opts = {.kind = kind};
	struct ring_thread *t;

	assert_int_equal(ring_thread_start(&opts, on_ring_thread, ring_self(), &t), 0);
	return ring_thread_join(t);
}

static void test_ring_thread(void **state)
{
	struct ring_opts opts = {.kind = kind};
	struct ring_thread *t;

	assert_int_equal(ring_thread_start(&opts, on_ring_thread, ring_self(), &t), 0);
	assert_int_equal(ring_thread_join(t), 17);
	assert_int_equal(co_run(do_join_inside, NULL), 17);
}

/* Two rings wake each other: the one sleeps while the other runs. */
struct rally {
	struct co_mutex lock;
	struct spin spin;
	struct co_queue turn_of[2];
	unsigned ball, count[2];
};

struct player {
	struct rally *rally;
	unsigned me;
};

static int play(void *arg)
{
	struct player *p = arg;
	struct rally *r = p->rally;

	for (unsigned i = 0; i < 3000; i++) {
		spin_lock(&r->spin);
		while (r->ball % 2 != p->me) {
			co_queue_wait(&r->turn_of[p->me], &r->spin);
			spin_lock(&r->spin);
		}
		r->ball++;
		r->count[p->me]++;
		co_queue_wake_one(&r->turn_of[!p->me]);
		spin_unlock(&r->spin);
	}
	return 0;
}

static void test_rings_wake_each_other(void **state)
{
	struct ring_opts opts = {.kind = kind};
	struct rally rally = {0};
	struct player a = {&rally, 0}, b = {&rally, 1};
	struct ring_thread *t;

	if (kind == RING_SIM)
		return; /* wakes on its own thread only */
	assert_int_equal(ring_thread_start(&opts, play, &a, &t), 0);
	assert_int_equal(co_run(play, &b), 0);
	assert_int_equal(ring_thread_join(t), 0);
	assert_int_equal(rally.count[0], 3000);
	assert_int_equal(rally.count[1], 3000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		unit_test_fixture(test_read_write_full),
		unit_test_fixture(test_hints_read_the_same),
		unit_test_fixture(test_errors_come_back),
		unit_test_fixture(test_file_operations),
		unit_test_fixture(test_more_than_the_queue_holds),
		unit_test_fixture(test_sleepers_wake_in_order),
		unit_test_fixture(test_cancel_sleep_and_poll),
		unit_test_fixture(test_poll),
		unit_test_fixture(test_kick_ends_a_turn),
		unit_test_fixture(test_kick_from_a_signal_handler),
		unit_test_fixture(test_ring_fd_polls_readable),
		unit_test_fixture(test_ring_thread),
		unit_test_fixture(test_rings_wake_each_other),
	};
	static const enum ring_kind kinds[] = {RING_IO_URING, RING_THREADS, RING_SIM};
	static const char *const names[] = {"io_uring", "threads", "sim"};
	int failed = 0;

	for (unsigned i = unit_without_uring(); i < ARRAY_SIZE(kinds); i++) {
		kind = kinds[i];
		failed |= cmocka_run_group_tests_name(names[i], tests, group_setup, NULL);
		close(fd);
	}
	return failed;
}
