/* SPDX-License-Identifier: MIT */
/*
 * The worker pools: as many threads as cores for computation, and as many as needed (up to a
 * limit) for system calls that block.
 *
 * A task lives on the stack of whoever waits for it. Threads are started when more tasks wait than
 * threads are idle; those for blocking calls end after some seconds of idleness. They are detached
 * and take no signals, so that the program's handlers run on its own threads.
 */
#include "base/worker.h"
#include "base/runtime.h"

#include <assert.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BLOCKING_MAX 64u
#define IDLE_SECONDS 10
#define CPUS_MAX     4096
#define WORKER_STACK (1 * MiB)

struct worker_pool {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct worker_task *head, **tail;
	unsigned queued, idle, threads, max;
	bool expires; /* idle threads end */
};

static struct worker_pool pools[2];
static unsigned cpus;
static pthread_once_t pools_once = PTHREAD_ONCE_INIT;

/* --- how many --- */

static unsigned count_affinity(void)
{
	cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
	size_t size = CPU_ALLOC_SIZE(CPUS_MAX);
	int n = 0;

	if (set && !sched_getaffinity(0, size, set))
		n = CPU_COUNT_S(size, set);
	CPU_FREE(set);
	return n > 0 ? (unsigned)n : 1;
}

/* "max 100000" or "150000 100000": quota and period in microseconds. */
static unsigned quota_of(const char *dir)
{
	char path[PATH_MAX + 64];
	unsigned long long quota, period;
	unsigned n = UINT_MAX;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cpu.max", dir);
	f = fopen(path, "re");
	if (!f)
		return n;
	if (fscanf(f, "%llu %llu", &quota, &period) == 2 && period)
		n = (unsigned)MIN(MAX(div_up(quota, period), 1u), (uint64_t)CPUS_MAX);
	fclose(f);
	return n;
}

/* The tightest cgroup v2 quota on the way from this process's group up. */
static unsigned count_quota(void)
{
	char line[PATH_MAX + 8], *dir = NULL, *slash;
	unsigned n = UINT_MAX;
	FILE *f = fopen("/proc/self/cgroup", "re");

	if (!f)
		return n;
	while (!dir && fgets(line, sizeof(line), f))
		if (!strncmp(line, "0::/", 4))
			dir = line + 3;
	fclose(f);
	if (!dir)
		return n;
	dir[strcspn(dir, "\n")] = '\0';
	for (;;) {
		n = MIN(n, quota_of(dir));
		slash = strrchr(dir, '/');
		if (!slash)
			return n;
		*slash = '\0';
	}
}

static void pool_init(struct worker_pool *p, unsigned max, bool expires)
{
	pthread_condattr_t attr;

	*p = (struct worker_pool){.max = max, .expires = expires};
	p->tail = &p->head;
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->more, &attr);
	pthread_condattr_destroy(&attr);
}

/* Also in the child of a fork, where no worker lives on. */
static void pools_reset(void)
{
	pool_init(&pools[WORKER_CPU], cpus, false);
	pool_init(&pools[WORKER_BLOCKING], BLOCKING_MAX, true);
}

static void pools_init(void)
{
	cpus = MIN(count_affinity(), count_quota());
	pools_reset();
	pthread_atfork(NULL, NULL, pools_reset);
}

unsigned worker_count(void)
{
	pthread_once(&pools_once, pools_init);
	return cpus;
}

/* --- threads --- */

/* Waits for a task; NULL: the thread ends. Called and left with the lock held. */
static struct worker_task *pool_take(struct worker_pool *p)
{
	struct worker_task *t;
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_SECONDS;
	p->idle++;
	while (!p->head && r != ETIMEDOUT)
		r = p->expires ? pthread_cond_timedwait(&p->more, &p->lock, &until)
			       : pthread_cond_wait(&p->more, &p->lock);
	p->idle--;
	t = p->head;
	if (!t)
		return NULL;
	p->head = t->next;
	if (!p->head)
		p->tail = &p->head;
	p->queued--;
	return t;
}

static void *worker_main(void *arg)
{
	struct worker_pool *p = arg;
	struct worker_task *t;

	pthread_mutex_lock(&p->lock);
	while ((t = pool_take(p))) {
		pthread_mutex_unlock(&p->lock);
		t->run(t);
		pthread_mutex_lock(&p->lock);
	}
	p->threads--;
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static bool thread_start(struct worker_pool *p)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t thread;
	int r;

	if (pthread_attr_init(&attr))
		return false;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&thread, &attr, worker_main, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return !r;
}

bool worker_post(enum worker_kind kind, struct worker_task *task)
{
	struct worker_pool *p = &pools[kind];

	pthread_once(&pools_once, pools_init);
	pthread_mutex_lock(&p->lock);
	if (p->queued >= p->idle && p->threads < p->max && thread_start(p))
		p->threads++;
	if (!p->threads) {
		pthread_mutex_unlock(&p->lock);
		return false;
	}
	task->next = NULL;
	*p->tail = task;
	p->tail = &task->next;
	p->queued++;
	pthread_cond_signal(&p->more);
	pthread_mutex_unlock(&p->lock);
	return true;
}

/* --- for coroutines --- */

struct offload {
	struct worker_task task;
	int (*fn)(void *arg);
	void *arg;
	struct co *co;
	int r;
};

static void offload_run(struct worker_task *task)
{
	struct offload *o = container_of(task, struct offload, task);

	o->r = o->fn(o->arg);
	co_wake(o->co);
}

static int co_offload_to(enum worker_kind kind, int (*fn)(void *arg), void *arg)
{
	struct co *co = co_self();
	struct offload o = {.task.run = offload_run, .fn = fn, .arg = arg, .co = co};

	if (!co)
		return fn(arg);
	/* One thread, and an order drawn from the seed. */
	if (co->ring->kind == RING_SIM) {
		int r = fn(arg);

		co_pause();
		return r;
	}
	if (!worker_post(kind, &o.task))
		return fn(arg);
	co_yield ();
	return o.r;
}

int co_offload(int (*fn)(void *arg), void *arg)
{
	return co_offload_to(WORKER_CPU, fn, arg);
}

int co_offload_blocking(int (*fn)(void *arg), void *arg)
{
	return co_offload_to(WORKER_BLOCKING, fn, arg);
}
