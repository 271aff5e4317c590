/* SPDX-License-Identifier: MIT */
/*
 * Making rings where it is hard: io_uring refused by seccomp, no descriptors, no memory, after a
 * fork. Every case is a child process, because limits and filters cannot be taken back.
 */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/worker.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <poll.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* In children, where cmocka has nothing to say. */
#define CHECK(cond)                                                                                \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                 \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

static void in_child(void (*fn)(void))
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (!pid) {
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static int forty_two(void *arg)
{
	return 42;
}

static int work(void *arg)
{
	int fd = memfd_create("work", MFD_CLOEXEC);
	unsigned char a[4096] = {1, 2, 3}, b[4096];
	struct ring_thread *t;
	struct iovec v;
	int p[2];

	CHECK(fd >= 0 && !pipe2(p, O_CLOEXEC));
	CHECK(!co_write_full(fd, iov_buf(&v, a, sizeof(a)), 100));
	CHECK(!co_fsync(fd, true) && !co_ftruncate(fd, 8192));
	CHECK(co_read_full(fd, iov_buf(&v, b, sizeof(b)), 100) == sizeof(b));
	CHECK(!memcmp(a, b, sizeof(a)));
	CHECK(!co_sleep(1000000));
	CHECK(write(p[1], "x", 1) == 1 && co_poll(p[0], POLLIN) == POLLIN);
	CHECK(co_offload(forty_two, NULL) == 42);
	CHECK(!ring_thread_start(NULL, forty_two, NULL, &t) && ring_thread_join(t) == 42);
	close(fd);
	close(p[0]);
	close(p[1]);
	return 0;
}

static void refuse_io_uring(uint32_t action)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_ALLOW);

	CHECK(f);
	CHECK(!seccomp_rule_add(f, action, SCMP_SYS(io_uring_setup), 0));
	CHECK(!seccomp_load(f));
	seccomp_release(f);
}

static void child_refused(void)
{
	struct ring_opts opts = {.kind = RING_IO_URING};
	struct error err = ERROR_INIT;
	struct ring *ring;

	refuse_io_uring(SCMP_ACT_ERRNO(EPERM));
	CHECK(ring_new(&opts, &ring, &err) == -EPERM);
	CHECK(err.code == -EPERM && strstr(err.text, "seccomp") && strstr(err.text, "DROVER_AIO"));
	setenv("DROVER_AIO", "io_uring", 1); /* what is asked for by name is not replaced */
	CHECK(ring_new(NULL, &ring, &err) == -EPERM);
	unsetenv("DROVER_AIO");
	CHECK(!ring_new(NULL, &ring, &err));
	CHECK(ring_kind(ring) == RING_THREADS);
	CHECK(!co_run(work, NULL));
	ring_free(ring);
}

static void test_seccomp_refuses_io_uring(void **state)
{
	in_child(child_refused);
}

static void child_old_kernel(void)
{
	struct ring_opts opts = {.kind = RING_IO_URING};
	struct error err = ERROR_INIT;
	struct ring *ring;

	refuse_io_uring(SCMP_ACT_ERRNO(ENOSYS));
	CHECK(ring_new(&opts, &ring, &err) == -ENOSYS && strstr(err.text, "kernel"));
	CHECK(!co_run(work, NULL)); /* the ring made on first need */
	CHECK(ring_kind(ring_self()) == RING_THREADS);
}

static void test_kernel_without_io_uring(void **state)
{
	in_child(child_old_kernel);
}

static void child_memlock(void)
{
	struct ring_opts opts = {.kind = RING_IO_URING};
	struct error err = ERROR_INIT;
	struct ring *ring;

	refuse_io_uring(SCMP_ACT_ERRNO(ENOMEM));
	CHECK(ring_new(&opts, &ring, &err) == -ENOMEM && strstr(err.text, "memlock"));
}

static void test_memlock_limit(void **state)
{
	in_child(child_memlock);
}

static void child_no_descriptors(void)
{
	static const enum ring_kind kinds[] = {RING_DEFAULT, RING_IO_URING, RING_THREADS, RING_SIM};
	int top = open("/dev/null", O_RDONLY | O_CLOEXEC);

	/* With none left, and with one: each step of the making fails in turn. */
	close(top);
	for (unsigned i = 0; i < 2 * ARRAY_SIZE(kinds); i++) {
		struct ring_opts opts = {.kind = kinds[i / 2]};
		struct rlimit rl = {(rlim_t)top + i % 2, (rlim_t)top + 100};
		struct error err = ERROR_INIT;
		struct ring *ring;
		int r;

		CHECK(!setrlimit(RLIMIT_NOFILE, &rl));
		r = ring_new(&opts, &ring, &err);
		if (opts.kind == RING_SIM && i % 2) {
			CHECK(!r); /* one is all it needs */
			ring_free(ring);
			continue;
		}
		CHECK(r == -EMFILE && err.code == r && !ring_self());
		CHECK(opts.kind == RING_SIM || strstr(err.text, "ulimit -n"));
	}
	/* Nothing was left open. */
	CHECK(open("/dev/null", O_RDONLY | O_CLOEXEC) == top);
}

static void test_descriptor_limit(void **state)
{
	in_child(child_no_descriptors);
}

static void child_no_memory(void)
{
	static const enum ring_kind kinds[] = {RING_IO_URING, RING_THREADS, RING_SIM};

	for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct ring_opts opts = {.kind = kinds[i]};
		struct error err = ERROR_INIT;
		struct ring *ring;

		mem_fail_at(1, false);
		CHECK(ring_new(&opts, &ring, &err) == -ENOMEM && err.code == -ENOMEM);
		mem_fail_at(0, false);
		CHECK(!ring_new(&opts, &ring, &err));
		ring_free(ring);
	}
}

static void test_no_memory(void **state)
{
	in_child(child_no_memory);
}

static void child_environment(void)
{
	struct error err = ERROR_INIT;
	struct ring *ring;

	setenv("DROVER_AIO", "magic", 1);
	CHECK(ring_new(NULL, &ring, &err) == -EINVAL);
	CHECK(strstr(err.text, "magic") && strstr(err.text, "threads"));
	setenv("DROVER_AIO", "threads", 1);
	CHECK(!ring_new(NULL, &ring, &err) && ring_kind(ring) == RING_THREADS);
	CHECK(ring_new(NULL, &ring, &err) == -EBUSY);
	CHECK(ring_self() == ring);
	CHECK(!co_run(work, NULL));
	ring_free(ring);
	CHECK(!ring_self());
}

static void test_environment_chooses(void **state)
{
	in_child(child_environment);
}

/* A fork before the first ring, and one after: the child makes rings and workers of its own. */
static void child_forks(void)
{
	struct ring *ring;

	CHECK(!ring_get(&ring, NULL));
	in_child(child_environment);
	CHECK(!co_run(work, NULL));
}

static void test_fork(void **state)
{
	in_child(child_forks);
}

int main(void)
{
	/* Emulators have neither io_uring nor seccomp. */
	const struct CMUnitTest native[] = {
		cmocka_unit_test(test_seccomp_refuses_io_uring),
		cmocka_unit_test(test_kernel_without_io_uring),
		cmocka_unit_test(test_memlock_limit),
		cmocka_unit_test(test_descriptor_limit),
		cmocka_unit_test(test_no_memory),
	};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_environment_chooses),
		cmocka_unit_test(test_fork),
	};
	int failed = 0;

	if (!unit_without_uring())
		failed = cmocka_run_group_tests(native, NULL, NULL);
	unsetenv("DROVER_AIO");
	return failed | cmocka_run_group_tests(tests, NULL, NULL);
}
