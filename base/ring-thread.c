/* SPDX-License-Identifier: MIT */
/* Ring threads: a thread with a ring of its own that runs one function as a coroutine. */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/worker.h"

#include <pthread.h>
#include <signal.h>

struct ring_thread {
	pthread_t thread;
	struct ring_opts opts;
	int (*fn)(void *arg);
	void *arg;
	int r;
};

static void *ring_thread_main(void *arg)
{
	struct ring_thread *t = arg;
	struct ring *ring;

	t->r = ring_new(&t->opts, &ring, NULL);
	if (t->r)
		return NULL;
	t->r = co_run(t->fn, t->arg);
	ring_free(ring);
	return NULL;
}

int ring_thread_start(
	const struct ring_opts *opts, int (*fn)(void *arg), void *arg, struct ring_thread **ret)
{
	struct ring_thread *t = mem_zalloc(sizeof(*t));
	sigset_t all, old;
	int r;

	if (!t)
		return -ENOMEM;
	if (opts)
		t->opts = *opts;
	t->fn = fn;
	t->arg = arg;
	/* The program's signal handlers run on its own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t->thread, NULL, ring_thread_main, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		mem_free(t);
		return -r;
	}
	*ret = t;
	return 0;
}

static int join_blocking(void *arg)
{
	struct ring_thread *t = arg;

	return -pthread_join(t->thread, NULL);
}

int ring_thread_join(struct ring_thread *t)
{
	int r;

	/* On a thread that may block; without a coroutine, that is the caller. */
	r = co_offload_blocking(join_blocking, t);
	if (!r)
		r = t->r;
	mem_free(t);
	return r;
}
