/* SPDX-License-Identifier: MIT */
/*
 * The threads engine: blocking calls on the worker pool, for where io_uring is refused.
 *
 * Operations run on threads of the blocking pool and come back by co_wake(), as any wake from
 * another thread. Poll goes through an epoll set, in which the eventfd is too; sleeps through a
 * heap whose top bounds the wait. When somebody else's loop polls ring_fd(), a timer descriptor in
 * the same set stands for the heap.
 */
#include "base/runtime.h"
#include "base/mem.h"

#include <assert.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define EVENTS_MAX 64

struct threads {
	struct ring ring;
	int epoll_fd;
	int timer_fd; /* -1 until ring_fd() */
	struct ring_op *timers;
};

static struct threads *threads_of(struct ring *ring)
{
	return container_of(ring, struct threads, ring);
}

static void op_on_worker(struct worker_task *task)
{
	struct ring_op *op = container_of(task, struct ring_op, task);

	op->res = ring_op_call(op);
	co_wake(op->co);
}

static void op_end(struct ring_op *op, int64_t res)
{
	op->res = res;
	co_wake(op->co);
}

/* One descriptor stands in the set once; a second waiter brings a duplicate. */
static bool poll_start(struct threads *t, struct ring_op *op)
{
	struct epoll_event ev = {.events = (uint32_t)op->flags | EPOLLONESHOT, .data.ptr = op};

	op->out_fd = op->fd;
	if (!epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, op->fd, &ev))
		return false;
	if (errno == EPERM) {
		/* A regular file: always ready, as poll(2) has it. */
		op->res = op->flags & (POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM);
		return true;
	}
	if (errno == EEXIST) {
		op->out_fd = fcntl(op->fd, F_DUPFD_CLOEXEC, 0);
		if (op->out_fd >= 0 && !epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, op->out_fd, &ev))
			return false;
	}
	op->res = -errno;
	if (op->out_fd >= 0 && op->out_fd != op->fd)
		close(op->out_fd);
	return true;
}

static void poll_stop(struct threads *t, struct ring_op *op)
{
	epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, op->out_fd, NULL);
	if (op->out_fd != op->fd)
		close(op->out_fd);
}

static bool threads_start(struct ring *ring, struct ring_op *op)
{
	struct threads *t = threads_of(ring);

	switch (op->code) {
	case RING_OP_SLEEP:
		timer_add(&t->timers, op);
		return false;
	case RING_OP_POLL:
		return poll_start(t, op);
	default:
		op->task.run = op_on_worker;
		if (worker_post(WORKER_BLOCKING, &op->task))
			return false;
		op->res = ring_op_call(op);
		return true;
	}
}

static void threads_cancel(struct ring *ring, struct ring_op *op)
{
	struct threads *t = threads_of(ring);

	/* A blocking call cannot be called back: it completes in its own time. */
	if (op->code == RING_OP_SLEEP)
		timer_remove(&t->timers, op);
	else if (op->code == RING_OP_POLL)
		poll_stop(t, op);
	else
		return;
	op_end(op, -ECANCELED);
}

static void run_timers(struct threads *t)
{
	uint64_t now;

	if (!t->timers)
		return;
	now = ring_now();
	while (t->timers && t->timers->off <= now) {
		struct ring_op *op = t->timers;

		timer_remove(&t->timers, op);
		op_end(op, 0);
	}
}

static int64_t bound_wait(struct threads *t, int64_t timeout_ns)
{
	uint64_t now;
	int64_t left;

	if (!t->timers || !timeout_ns)
		return timeout_ns;
	now = ring_now();
	left = t->timers->off > now ? (int64_t)(t->timers->off - now) : 0;
	return timeout_ns < 0 || left < timeout_ns ? left : timeout_ns;
}

static int epoll_ns(int fd, struct epoll_event *ev, int64_t ns)
{
	struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
	int64_t ms;
	int r;

	if (ns <= 0)
		return epoll_wait(fd, ev, EVENTS_MAX, ns < 0 ? -1 : 0);
	r = epoll_pwait2(fd, ev, EVENTS_MAX, &ts, NULL);
	if (r >= 0 || (errno != ENOSYS && errno != EPERM))
		return r;
	/* Rounded up: a sleep may be longer, never shorter. */
	ms = (int64_t)div_up((uint64_t)ns, 1000000);
	return epoll_wait(fd, ev, EVENTS_MAX, (int)MIN(ms, (int64_t)INT32_MAX));
}

static void clear_counter(int fd)
{
	uint64_t v;

	while (read(fd, &v, sizeof(v)) < 0 && errno == EINTR)
		;
}

static void take_event(struct threads *t, const struct epoll_event *ev)
{
	struct ring_op *op = ev->data.ptr;

	if (ev->data.ptr == t) {
		clear_counter(t->ring.event_fd);
	} else if (ev->data.ptr == &t->timer_fd) {
		clear_counter(t->timer_fd);
	} else {
		poll_stop(t, op);
		op_end(op, ev->events);
	}
}

static int threads_wait(struct ring *ring, int64_t timeout_ns)
{
	struct threads *t = threads_of(ring);
	struct epoll_event ev[EVENTS_MAX];
	int64_t ns = bound_wait(t, timeout_ns);
	int n, saved = 0;

	if (ns && !ring_may_sleep(ring, RING_WAITS))
		ns = 0;
	n = epoll_ns(t->epoll_fd, ev, ns);
	if (n < 0)
		saved = errno;
	ring_awake(ring);
	for (int i = 0; i < n; i++)
		take_event(t, &ev[i]);
	run_timers(t);
	return saved && saved != EINTR ? -saved : 0;
}

/* Arms the timer descriptor for whoever polls ring_fd(). */
static void threads_submit(struct ring *ring)
{
	struct threads *t = threads_of(ring);
	struct itimerspec it = {0};

	if (t->timer_fd < 0)
		return;
	if (t->timers) {
		uint64_t at = MAX(t->timers->off, (uint64_t)1);

		it.it_value.tv_sec = (time_t)(at / 1000000000u);
		it.it_value.tv_nsec = (long)(at % 1000000000u);
	}
	timerfd_settime(t->timer_fd, TFD_TIMER_ABSTIME, &it, NULL);
}

static int threads_poll_fd(struct ring *ring)
{
	struct threads *t = threads_of(ring);
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &t->timer_fd};

	if (t->timer_fd < 0) {
		t->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		if (t->timer_fd >= 0)
			epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->timer_fd, &ev);
	}
	return t->epoll_fd;
}

static void threads_destroy(struct ring *ring)
{
	struct threads *t = threads_of(ring);

	if (t->timer_fd >= 0)
		close(t->timer_fd);
	if (t->epoll_fd >= 0)
		close(t->epoll_fd);
	if (ring->event_fd >= 0)
		close(ring->event_fd);
	mem_free(t);
}

static const struct ring_engine threads_engine = {
	.start = threads_start,
	.cancel = threads_cancel,
	.wait = threads_wait,
	.submit = threads_submit,
	.poll_fd = threads_poll_fd,
	.destroy = threads_destroy,
};

int ring_threads_new(const struct ring_opts *opts, struct ring **ret, struct error *err)
{
	struct threads *t = mem_aligned(64, align_up(sizeof(*t), 64));
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = t};
	int r;

	if (!t)
		return error_set(err, -ENOMEM, "no memory for the event loop");
	*t = (struct threads){.ring = {.engine = &threads_engine, .kind = RING_THREADS},
		.epoll_fd = -1,
		.timer_fd = -1};
	t->ring.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->ring.event_fd >= 0)
		t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (t->epoll_fd < 0 || epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->ring.event_fd, &ev)) {
		r = -errno;
		threads_destroy(&t->ring);
		if (r == -EMFILE || r == -ENFILE)
			return error_set(err, r,
				"the event loop cannot be made: the limit of open files is "
				"reached; raise it (ulimit -n)");
		return error_set_errno(err, r, "the event loop cannot be made");
	}
	*ret = &t->ring;
	return 0;
}
