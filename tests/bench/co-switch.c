/* SPDX-License-Identifier: MIT */
/*
 * What the runtime costs: coroutine switches, starts, wakes across rings, and cached 4 KiB reads by
 * engine, hint and depth beside a plain pread loop. Prints a line each; proves nothing.
 *
 * Usage: co-switch [FILE]   (FILE: at least 64 MiB, made when absent)
 */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/sync.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define FILE_SIZE (64 * MiB)

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double cpu(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
		(double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

static void report(const char *what, double n, double seconds, double cpu_seconds)
{
	printf("%-44s %9.1f ns  %9.0f /s  cpu %7.1f ns\n", what, seconds / n * 1e9, n / seconds,
		cpu_seconds / n * 1e9);
}

/* --- switches --- */

static void yielder(void *arg)
{
	for (long n = (long)arg; n; n--)
		co_pause();
}

static void bench_pause(void)
{
	const long n = 5000000;
	double t = now(), c = cpu();

	co_start(yielder, (void *)n);
	co_start(yielder, (void *)n);
	while (ring_turn(ring_self(), 0) > 0)
		;
	/* A pause is a wake, a switch to the ring and one back. */
	report("pause (two switches and the ready list)", 2.0 * (double)n, now() - t, cpu() - c);
}

static void nothing(void *arg)
{
}

static void bench_start(void)
{
	const long n = 5000000;
	double t = now(), c = cpu();

	for (long i = 0; i < n; i++)
		co_start(nothing, NULL);
	report("start and end (pooled stack)", (double)n, now() - t, cpu() - c);
}

/* --- wakes across rings --- */

struct side {
	struct spin lock;
	struct co_queue turn[2];
	unsigned ball;
};

static struct side side;
static const unsigned rallies = 50000;

static int play(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;

	for (unsigned i = 0; i < rallies; i++) {
		spin_lock(&side.lock);
		while (side.ball % 2 != me) {
			co_queue_wait(&side.turn[me], &side.lock);
			spin_lock(&side.lock);
		}
		side.ball++;
		co_queue_wake_one(&side.turn[!me]);
		spin_unlock(&side.lock);
	}
	return 0;
}

static void bench_rings(enum ring_kind kind, const char *what)
{
	struct ring_opts opts = {.kind = kind};
	struct ring_thread *t[2];
	double s = now(), c = cpu();

	side.ball = 0;
	for (uintptr_t i = 0; i < 2; i++)
		ring_thread_start(&opts, play, (void *)i, &t[i]);
	ring_thread_join(t[0]);
	ring_thread_join(t[1]);
	report(what, 2.0 * rallies, now() - s, cpu() - c);
}

/* --- reads --- */

static int fd;
static enum io_hint hint;
static long budget;

static uint64_t random_offset(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (*state >> 33) % (FILE_SIZE / 4096) * 4096;
}

struct reader {
	struct co_counter *running;
	uint64_t state;
};

static void reader(void *arg)
{
	struct reader *r = arg;
	void *buf = mem_aligned(4096, 4096);
	struct iovec v = {buf, 4096};

	while (budget > 0) {
		budget--;
		if (co_preadv_hint(fd, &v, 1, random_offset(&r->state), 0, hint) != 4096)
			abort();
	}
	mem_free(buf);
	co_counter_dec(r->running);
}

static int read_all(void *arg)
{
	unsigned depth = *(unsigned *)arg;
	struct co_counter running = {0};
	struct reader readers[64];

	for (unsigned i = 0; i < depth; i++) {
		readers[i] = (struct reader){&running, i};
		co_counter_inc(&running);
		co_start(reader, &readers[i]);
	}
	co_counter_wait_zero(&running);
	return 0;
}

static void bench_reads(enum ring_kind kind, const char *name)
{
	static const char *const hints[] = {"ring", "inline", "nowait first"};
	struct ring_opts opts = {.kind = kind};
	struct ring *ring;
	char what[100];

	ring_new(&opts, &ring, NULL);
	for (unsigned depth = 1; depth <= 32; depth *= kind == RING_THREADS ? 32 : 16) {
		for (unsigned h = 0; h < (kind == RING_THREADS ? 1 : 3); h++) {
			long n = kind == RING_THREADS ? 30000 : 600000;
			double t = now(), c = cpu();

			hint = (enum io_hint)h;
			budget = n;
			co_run(read_all, &depth);
			snprintf(what, sizeof(what), "4 KiB read, %s, %s, depth %u", name, hints[h],
				depth);
			report(what, (double)n, now() - t, cpu() - c);
		}
	}
	ring_free(ring);
}

static void bench_pread(void)
{
	uint64_t state = 1;
	char *buf = mem_aligned(4096, 4096);
	double t = now(), c = cpu();
	const long n = 600000;

	for (long i = 0; i < n; i++)
		if (pread(fd, buf, 4096, (off_t)random_offset(&state)) != 4096)
			abort();
	report("4 KiB read, pread loop", (double)n, now() - t, cpu() - c);
	mem_free(buf);
}

static int open_file(const char *path)
{
	char *buf = mem_zalloc(MiB);
	off_t size;

	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	size = lseek(fd, 0, SEEK_END);
	for (; size < (off_t)FILE_SIZE; size += (off_t)MiB)
		if (pwrite(fd, buf, MiB, size) != (ssize_t)MiB)
			return -1;
	for (off_t at = 0; at < (off_t)FILE_SIZE; at += (off_t)MiB)
		if (pread(fd, buf, MiB, at) < 0)
			return -1;
	mem_free(buf);
	return 0;
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "/var/tmp/co-switch.dat";
	struct ring *ring;

	if (open_file(path) || ring_get(&ring, NULL)) {
		perror(path);
		return 1;
	}
	bench_pause();
	bench_start();
	ring_free(ring);
	bench_rings(RING_IO_URING, "wake across rings, io_uring (message)");
	bench_rings(RING_THREADS, "wake across rings, threads (eventfd)");
	bench_pread();
	bench_reads(RING_IO_URING, "io_uring");
	bench_pread();
	bench_reads(RING_THREADS, "threads");
	if (argc < 2)
		unlink(path);
	return 0;
}
