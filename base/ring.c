/* SPDX-License-Identifier: MIT */
/*
 * The ring: turns, ready list, wake-ups from other threads, and the choice of an engine.
 *
 * Theory of operation
 *
 * A turn has two halves: the engine submits what coroutines prepared and collects completions
 * (waiting only when no coroutine is ready), then the ready coroutines run, which prepares the next
 * batch. So a loop of waiting turns costs one system call a turn. What a turn's second half
 * prepared is submitted by the next turn; turns that do not wait submit it themselves, because
 * their caller may not come back soon.
 *
 * Other threads push coroutines on the inbox, a lock-free stack that the ring takes as a whole and
 * reverses. They signal only a ring that said it may sleep: by IORING_OP_MSG_RING from a thread
 * whose own ring is in a turn, by the eventfd otherwise.
 *
 * Invariants
 * R1 The ring sets `sleeping`, then looks into the inbox; a waker pushes, then looks at `sleeping`.
 *    Both orders are sequentially consistent, so one of the two sees the other.
 * R2 A waker counts itself in `wakers` while the coroutine is not yet on the inbox; ring_free()
 *    waits until nobody is counted, because the woken coroutine may end the ring at once.
 */
#include "base/runtime.h"
#include "base/mem.h"
#include "base/trace.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Coroutines run in one turn before I/O gets its chance again. */
#define RING_RUN_MAX 256u

static pthread_once_t ring_once = PTHREAD_ONCE_INIT;
static pthread_key_t ring_key;
static bool ring_key_valid;

/* A thread that ends takes the ring along that was made for it unasked. */
static void ring_thread_exit(void *p)
{
	struct ring *ring = p;

	if (ring == co_thread.ring && ring->automatic && !ring->coroutines)
		ring_free(ring);
}

/* The child of a fork has the parent's memory but not its kernel rings: it starts without one. */
static void ring_forked(void)
{
	co_thread.ring = NULL;
	if (ring_key_valid)
		pthread_setspecific(ring_key, NULL);
}

static void ring_setup_once(void)
{
	ring_key_valid = !pthread_key_create(&ring_key, ring_thread_exit);
	pthread_atfork(NULL, NULL, ring_forked);
}

static int ring_new_default(const struct ring_opts *opts, struct ring **ret, struct error *err)
{
	const char *aio = getenv("DROVER_AIO");
	struct error refused = ERROR_INIT;
	int r;

	if (aio && !strcmp(aio, "threads"))
		return ring_threads_new(opts, ret, err);
	if (aio && !strcmp(aio, "io_uring"))
		return ring_uring_new(opts, ret, err);
	if (aio && *aio)
		return error_set(err, -EINVAL,
			"DROVER_AIO is '%s'; set it to io_uring or threads, or unset it", aio);
	/* It runs one thread at a time and does not know that io_uring_enter() waits for others. */
	if (runtime_on_valgrind())
		return ring_threads_new(opts, ret, err);
	r = ring_uring_new(opts, ret, &refused);
	/* Out of descriptors or memory, the threads engine would not get far either. */
	if (!r || r == -EMFILE || r == -ENFILE) {
		if (r)
			error_set(err, r, "%s", refused.text);
		return r;
	}
	trace("ring_uring_refused", "%s; using the threads engine", refused.text);
	return ring_threads_new(opts, ret, err);
}

int ring_new(const struct ring_opts *opts, struct ring **ret, struct error *err)
{
	static const struct ring_opts defaults;
	struct ring *ring;
	int r = -EINVAL;

	if (!opts)
		opts = &defaults;
	pthread_once(&ring_once, ring_setup_once);
	if (co_thread.ring)
		return error_set(err, -EBUSY, "this thread has a ring already");
	switch (opts->kind) {
	case RING_DEFAULT:
		r = ring_new_default(opts, &ring, err);
		break;
	case RING_IO_URING:
		r = ring_uring_new(opts, &ring, err);
		break;
	case RING_THREADS:
		r = ring_threads_new(opts, &ring, err);
		break;
	case RING_SIM:
		r = ring_sim_new(opts, &ring, err);
		break;
	}
	if (r)
		return r;
	list_init(&ring->ready);
	atomic_init(&ring->notify_fd, ring->event_fd);
	co_thread.ring = ring;
	*ret = ring;
	return 0;
}

void ring_free(struct ring *ring)
{
	if (!ring)
		return;
	assert(ring == co_thread.ring && !co_thread.cur && !ring->coroutines);
	while (atomic_load(&ring->wakers))
		sched_yield();
	ring->engine->destroy(ring);
	co_thread.ring = NULL;
	if (ring_key_valid)
		pthread_setspecific(ring_key, NULL);
	runtime_free_stacks();
}

struct ring *ring_self(void)
{
	return co_thread.ring;
}

int ring_get(struct ring **ret, struct error *err)
{
	struct ring *ring = co_thread.ring;
	int r;

	if (!ring) {
		r = ring_new(NULL, &ring, err);
		if (r)
			return r;
		ring->automatic = true;
		if (ring_key_valid)
			pthread_setspecific(ring_key, ring);
	}
	*ret = ring;
	return 0;
}

enum ring_kind ring_kind(const struct ring *ring)
{
	return ring->kind;
}

/* --- other threads --- */

void ring_ring_bell(int event_fd)
{
	uint64_t one = 1;
	int saved = errno;

	while (write(event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	errno = saved;
}

static void ring_signal(struct ring *ring, enum ring_sleep how)
{
	struct ring *from = co_thread.ring;

	if (how == RING_POLLED) {
		ring_note_work(ring);
		return;
	}
	if (from && !from->turning)
		from = NULL;
	if (!ring->engine->signal || !ring->engine->signal(ring, from))
		ring_ring_bell(ring->event_fd);
}

void ring_post(struct ring *ring, struct co *co)
{
	enum ring_sleep how;
	struct co *head;

	atomic_fetch_add(&ring->wakers, 1); /* R2 */
	head = atomic_load_explicit(&ring->inbox, memory_order_relaxed);
	do
		co->inbox_next = head;
	while (!atomic_compare_exchange_weak(&ring->inbox, &head, co));
	how = atomic_exchange(&ring->sleeping, RING_AWAKE); /* R1 */
	if (how != RING_AWAKE)
		ring_signal(ring, how);
	atomic_fetch_sub(&ring->wakers, 1);
}

void ring_kick(struct ring *ring)
{
	ring_ring_bell(atomic_load(&ring->notify_fd));
}

bool ring_may_sleep(struct ring *ring, enum ring_sleep how)
{
	if (!list_empty(&ring->ready))
		return false;
	atomic_store(&ring->sleeping, how);
	if (!atomic_load(&ring->inbox))
		return true;
	atomic_store(&ring->sleeping, RING_AWAKE);
	return false;
}

void ring_awake(struct ring *ring)
{
	if (atomic_load_explicit(&ring->sleeping, memory_order_relaxed))
		atomic_store(&ring->sleeping, RING_AWAKE);
}

void ring_note_work(struct ring *ring)
{
	ring_ring_bell(atomic_load(&ring->notify_fd));
}

static void ring_drain_inbox(struct ring *ring)
{
	struct co *co, *next, *head = NULL;

	if (!atomic_load_explicit(&ring->inbox, memory_order_relaxed))
		return;
	/* Last in is first out: reverse, to wake in the order of arrival. */
	for (co = atomic_exchange(&ring->inbox, NULL); co; co = next) {
		next = co->inbox_next;
		co->inbox_next = head;
		head = co;
	}
	for (co = head; co; co = next) {
		next = co->inbox_next;
		list_add_tail(&ring->ready, &co->ready);
	}
}

/* --- turns --- */

static struct co *ring_pick(struct ring *ring)
{
	struct co *co;

	if (unlikely(ring->kind == RING_SIM))
		return ring_sim_pick(ring);
	co = list_entry(ring->ready.next, struct co, ready);
	list_del(&co->ready);
	return co;
}

static int ring_run_ready(struct ring *ring)
{
	unsigned n = 0;

	while (n < RING_RUN_MAX && !list_empty(&ring->ready)) {
		runtime_resume(ring_pick(ring));
		n++;
	}
	return (int)n;
}

static int turn(struct ring *ring, int64_t timeout_ns)
{
	int r;

	assert(ring == co_thread.ring && !co_thread.cur);
	ring->turning = true;
	ring_drain_inbox(ring);
	r = ring->engine->wait(ring, list_empty(&ring->ready) ? timeout_ns : 0);
	ring_awake(ring);
	if (r >= 0) {
		ring_drain_inbox(ring);
		r = ring_run_ready(ring);
	}
	ring->turning = false;
	return r;
}

/* When no turn follows at once: submits what is prepared; from here on other threads must signal
 * the descriptor that somebody else's loop polls. */
static void turns_over(struct ring *ring)
{
	ring->engine->submit(ring);
	if (ring->fd_exposed && !ring_may_sleep(ring, RING_POLLED))
		ring_note_work(ring);
}

int ring_turn(struct ring *ring, int64_t timeout_ns)
{
	int r = turn(ring, timeout_ns);

	if (timeout_ns == 0 || ring->fd_exposed || ring->urgent)
		turns_over(ring);
	return r;
}

int ring_fd(struct ring *ring)
{
	int fd = ring->engine->poll_fd(ring);

	if (fd >= 0 && !ring->fd_exposed) {
		ring->fd_exposed = true;
		turns_over(ring);
	}
	return fd;
}

struct co_run {
	int (*fn)(void *arg);
	void *arg;
	int r;
	bool done;
};

static void co_run_entry(void *arg)
{
	struct co_run *run = arg;

	run->r = run->fn(run->arg);
	run->done = true;
}

int co_run(int (*fn)(void *arg), void *arg)
{
	struct co_run run = {.fn = fn, .arg = arg};
	struct ring *ring;
	int r;

	if (co_self())
		return fn(arg);
	r = ring_get(&ring, NULL);
	if (r)
		return r;
	r = co_start(co_run_entry, &run);
	if (r)
		return r;
	while (!run.done) {
		/* The coroutine has our stack in its hands: a failing turn cannot end the wait. */
		r = turn(ring, -1);
		if (r < 0) {
			trace("ring_turn_failed", "%s", errno_text(r));
			sched_yield();
		}
	}
	turns_over(ring);
	return run.r;
}
