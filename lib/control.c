/* SPDX-License-Identifier: MIT */
/*
 * The control thread: one ring that runs control calls and jobs, started on first need.
 *
 * Theory of Operation
 *
 * Open images hold the thread; it ends when the last is gone. Tasks are posted to a mailbox that
 * the thread's first coroutine empties, starting a coroutine for each. Their end is told under one
 * lock and condition for all: control calls are rare.
 *
 * A caller with a ring of its own (it has queues) turns that ring while it waits, or its requests,
 * which a drain on the control thread may wait for, would never end.
 *
 * Invariants:
 * K1  A task is touched by the control thread for the last time under `done_lock`, and an owner
 *     that sees `done` has held it too: the task may be gone after that.
 * K2  A waiter's ring is kicked under `done_lock`, for the same reason.
 */
#include "lib/lib.h"
#include "lib/drivers.h"
#include "base/co.h"
#include "base/ring.h"
#include "base/trace.h"

#include <sched.h>
#include <time.h>

static struct {
	pthread_mutex_t lock; /* guards users and thread */
	unsigned users;
	struct ring_thread *thread;
	struct spin mail_lock; /* guards what follows */
	struct list mail;
	struct co_queue reader;
	bool stop;
} control = {.lock = PTHREAD_MUTEX_INITIALIZER, .mail = LIST_INIT(control.mail)};

static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_cond;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void setup(void)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&done_cond, &attr);
	pthread_condattr_destroy(&attr);
	trace_init();
	drivers_init();
}

/* --- on the control thread ----------------------------------------------------------------- */

static void task_end(struct control_task *task, int result)
{
	pthread_mutex_lock(&done_lock);
	task->result = result;
	task->done = true;
	if (task->waiter)
		ring_kick(task->waiter);
	pthread_cond_broadcast(&done_cond);
	pthread_mutex_unlock(&done_lock);
}

static void task_main(void *arg)
{
	struct control_task *task = arg;

	task_end(task, task->fn(task->arg));
}

/* Empties the mailbox until told to stop. The thread ends when the tasks have: their coroutines
 * belong to its ring, which runs until this one returns, so it is told only when nobody is left. */
static int control_main(void *arg attr_unused)
{
	for (;;) {
		struct control_task *task;

		spin_lock(&control.mail_lock);
		task = list_first(&control.mail, struct control_task, link);
		if (task) {
			list_del(&task->link);
		} else if (control.stop) {
			spin_unlock(&control.mail_lock);
			return 0;
		} else {
			co_queue_wait(&control.reader, &control.mail_lock);
			continue;
		}
		spin_unlock(&control.mail_lock);
		if (co_start(task_main, task) < 0)
			task_end(task, -ENOMEM);
	}
}

/* --- for callers --------------------------------------------------------------------------- */

int control_get(struct drover_error *err)
{
	int r = 0;

	pthread_once(&once, setup);
	pthread_mutex_lock(&control.lock);
	if (!control.users) {
		control.stop = false;
		r = ring_thread_start(NULL, control_main, NULL, &control.thread);
	}
	if (!r)
		control.users++;
	pthread_mutex_unlock(&control.lock);
	return r ? lib_error_text(err, r, "The control thread cannot be started; raise the limit "
					  "of processes (ulimit -u)")
		 : 0;
}

void control_put(void)
{
	pthread_mutex_lock(&control.lock);
	if (!--control.users) {
		spin_lock(&control.mail_lock);
		control.stop = true;
		co_queue_wake_all(&control.reader);
		spin_unlock(&control.mail_lock);
		ring_thread_join(control.thread);
	}
	pthread_mutex_unlock(&control.lock);
}

void control_start(struct control_task *task)
{
	task->waiter = NULL;
	task->done = false;
	spin_lock(&control.mail_lock);
	list_add_tail(&control.mail, &task->link);
	co_queue_wake_one(&control.reader);
	spin_unlock(&control.mail_lock);
}

bool control_done(struct control_task *task, int *ret_result)
{
	bool done;

	pthread_mutex_lock(&done_lock);
	done = task->done;
	if (done && ret_result)
		*ret_result = task->result;
	pthread_mutex_unlock(&done_lock);
	return done;
}

static int64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int64_t deadline_of(int64_t timeout_ns)
{
	int64_t now = clock_ns();

	return timeout_ns < 0 || timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

/* Waits by turning our ring: requests of this thread's queues go on. */
static int wait_turning(struct control_task *task, struct ring *ring, int64_t deadline)
{
	int r = 0;

	pthread_mutex_lock(&done_lock);
	task->waiter = ring;
	while (!task->done && !r) {
		int64_t left = deadline == INT64_MAX ? -1 : deadline - clock_ns();

		if (deadline != INT64_MAX && left <= 0) {
			r = -ETIMEDOUT;
			break;
		}
		pthread_mutex_unlock(&done_lock);
		if (ring_turn(ring, left) < 0)
			sched_yield(); /* the task has our stack in its hands: no way out */
		pthread_mutex_lock(&done_lock);
	}
	task->waiter = NULL;
	pthread_mutex_unlock(&done_lock);
	/* Our turns have taken the events of queues whose results nobody has seen yet. */
	ring_kick(ring);
	return r;
}

static int wait_blocking(struct control_task *task, int64_t deadline)
{
	struct timespec ts = {deadline / 1000000000, deadline % 1000000000};
	int r = 0;

	pthread_mutex_lock(&done_lock);
	while (!task->done && !r)
		r = deadline == INT64_MAX
			    ? pthread_cond_wait(&done_cond, &done_lock)
			    : pthread_cond_timedwait(&done_cond, &done_lock, &ts);
	r = task->done ? 0 : -ETIMEDOUT;
	pthread_mutex_unlock(&done_lock);
	return r;
}

int control_wait(struct control_task *task, int64_t timeout_ns)
{
	struct ring *ring = ring_self();
	int64_t deadline = deadline_of(timeout_ns);

	return ring ? wait_turning(task, ring, deadline) : wait_blocking(task, deadline);
}

int control_call(int (*fn)(void *arg), void *arg)
{
	struct control_task task = {.fn = fn, .arg = arg};

	control_start(&task);
	control_wait(&task, -1);
	return task.result;
}
