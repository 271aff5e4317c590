/* SPDX-License-Identifier: MIT */
/*
 * The io_uring engine: operations become submission entries, one system call a turn.
 *
 * Theory of operation
 *
 * An entry's user data is the address of the ring_op on the waiting coroutine's stack, so that a
 * completion costs no look-up. The low bits of other user data tell what it is: the read of the
 * eventfd that is always in flight (other threads and ring_kick() write it), a signal to another
 * ring, or something whose result does not matter.
 *
 * An operation that finds the submission queue full after a submit waits in `backlog`, in order.
 * A completion queue that overflows is kept by the kernel (IORING_FEAT_NODROP is required) and
 * flushed when the reaper sees the overflow flag.
 *
 * Invariants
 * U1 A cancel request is queued behind its target and executed when submitted, in queue order; an
 *    operation that reuses the address is queued behind the cancel request. So a cancel never hits
 *    a later operation.
 * U2 A signal's entry names the target by descriptor only, because the target's memory may be gone
 *    when it fails. A number that was reused takes a completion that means nothing.
 */
#include "base/runtime.h"
#include "base/mem.h"
#include "base/trace.h"

#include <assert.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define UD_TAG_MASK 7u
#define UD_IGNORE   1u /* cancel requests, messages from other rings */
#define UD_EVENT    2u /* the eventfd was read */
#define UD_SIGNAL   3u /* a message we sent; the descriptor is above the tag */

#define RW_MAX (1u << 30) /* one entry's length is 32 bits; results are int */

struct uring {
	struct ring ring;
	struct io_uring u;
	struct list backlog; /* operations without an entry */
	bool event_armed;
	bool relay_stuck; /* see uring_relay_reset() */
	uint64_t event_value;
};

/* Does IORING_OP_MSG_RING reach a ring like ours? Tried once, before a second ring is made. */
static _Atomic bool msg_ring_works;
static _Atomic unsigned rings_made;
/* Ring memory comes and goes by system calls of liburing that ThreadSanitizer does not see. A
 * counter that each ring changes at its end and at its beginning tells it that one comes after the
 * other. */
static _Atomic unsigned ring_memory;

static struct uring *uring_of(struct ring *ring)
{
	return container_of(ring, struct uring, ring);
}

static void uring_reap(struct uring *u);

/* An entry, or NULL when the kernel takes no more before completions are collected. */
static struct io_uring_sqe *uring_entry(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->u);

	if (likely(sqe))
		return sqe;
	/* -EBUSY: completions must be taken first; that only fills the ready list. */
	if (io_uring_submit(&u->u) < 0)
		uring_reap(u);
	return io_uring_get_sqe(&u->u);
}

static unsigned clamp_len(uint64_t len)
{
	return len > RW_MAX ? RW_MAX : (unsigned)len;
}

static void prep_rw(struct io_uring_sqe *sqe, const struct ring_op *op)
{
	bool rd = op->code == RING_OP_READ;

	if (op->niov == 1)
		io_uring_prep_rw(rd ? IORING_OP_READ : IORING_OP_WRITE, sqe, op->fd,
			op->iov->iov_base, clamp_len(op->iov->iov_len), op->off);
	else
		io_uring_prep_rw(rd ? IORING_OP_READV : IORING_OP_WRITEV, sqe, op->fd, op->iov,
			op->niov, op->off);
	sqe->rw_flags = op->flags;
}

static void prep(struct io_uring_sqe *sqe, struct ring_op *op)
{
	struct __kernel_timespec *ts = (struct __kernel_timespec *)op->ts;

	_Static_assert(sizeof(op->ts) == sizeof(*ts), "room for a kernel timespec");
	switch (op->code) {
	case RING_OP_READ:
	case RING_OP_WRITE:
		prep_rw(sqe, op);
		break;
	case RING_OP_FSYNC:
		io_uring_prep_fsync(sqe, op->fd, op->flags ? IORING_FSYNC_DATASYNC : 0);
		break;
	case RING_OP_FALLOCATE:
		io_uring_prep_fallocate(sqe, op->fd, op->flags, (off_t)op->off, (off_t)op->len);
		break;
	case RING_OP_POLL:
		io_uring_prep_poll_add(sqe, op->fd, (unsigned)op->flags);
		break;
	case RING_OP_SLEEP:
		ts->tv_sec = (int64_t)(op->off / 1000000000u);
		ts->tv_nsec = (int64_t)(op->off % 1000000000u);
		io_uring_prep_timeout(sqe, ts, 0, IORING_TIMEOUT_ABS);
		break;
	default:
		assert(false); /* ring-ops.c sends the others to the worker pool */
	}
	io_uring_sqe_set_data(sqe, op);
}

static bool uring_start(struct ring *ring, struct ring_op *op)
{
	struct uring *u = uring_of(ring);
	struct io_uring_sqe *sqe = NULL;

	op->engine_bits = 0;
	if (likely(list_empty(&u->backlog)))
		sqe = uring_entry(u);
	if (unlikely(!sqe)) {
		op->engine_bits = 1;
		list_add_tail(&u->backlog, &op->link);
		return false;
	}
	prep(sqe, op);
	return false;
}

static void uring_backlog(struct uring *u)
{
	while (!list_empty(&u->backlog)) {
		struct ring_op *op = list_entry(u->backlog.next, struct ring_op, link);
		struct io_uring_sqe *sqe = uring_entry(u);

		if (!sqe)
			return;
		list_del(&op->link);
		op->engine_bits = 0;
		prep(sqe, op);
	}
}

static void uring_done(struct ring_op *op, int64_t res)
{
	op->res = op->code == RING_OP_SLEEP && res == -ETIME ? 0 : res;
	co_wake(op->co);
}

static void uring_cancel(struct ring *ring, struct ring_op *op)
{
	struct uring *u = uring_of(ring);
	struct io_uring_sqe *sqe;

	if (op->engine_bits) {
		list_del(&op->link);
		op->engine_bits = 0;
		uring_done(op, -ECANCELED);
		return;
	}
	sqe = uring_entry(u);
	if (!sqe)
		return; /* the kernel is out of memory: the operation ends in its own time */
	io_uring_prep_cancel(sqe, op, 0); /* keeps U1 */
	io_uring_sqe_set_data64(sqe, UD_IGNORE);
}

/* Other rings' threads call this for `ring`, with their own in `from`. */
static bool uring_signal(struct ring *ring, struct ring *from)
{
	struct uring *u;
	struct io_uring_sqe *sqe;

	if (!from || from->kind != RING_IO_URING || !atomic_load(&msg_ring_works))
		return false;
	u = uring_of(from);
	sqe = uring_entry(u);
	if (!sqe)
		return false;
	io_uring_prep_msg_ring(sqe, uring_of(ring)->u.ring_fd, 0, UD_IGNORE, 0);
	io_uring_sqe_set_data64(
		sqe, (uint64_t)(unsigned)uring_of(ring)->u.ring_fd << 3 | UD_SIGNAL);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	from->urgent = true;
	return true;
}

/* Out of memory is the one failure that leaves the target asleep; keeps U2. */
static void uring_signal_failed(struct uring *u, uint64_t data, int res)
{
	struct io_uring_sqe *sqe;

	if (res != -ENOMEM && res != -EAGAIN)
		return;
	sqe = uring_entry(u);
	if (!sqe)
		return;
	io_uring_prep_msg_ring(sqe, (int)(data >> 3), 0, UD_IGNORE, 0);
	io_uring_sqe_set_data64(sqe, data);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	u->ring.urgent = true;
}

static void uring_complete(struct uring *u, const struct io_uring_cqe *cqe)
{
	uint64_t data = cqe->user_data;

	switch (data & UD_TAG_MASK) {
	case 0:
		u->relay_stuck |= ((struct ring_op *)(uintptr_t)data)->code == RING_OP_POLL;
		uring_done((struct ring_op *)(uintptr_t)data, cqe->res);
		break;
	case UD_EVENT:
		u->event_armed = false;
		u->relay_stuck = true;
		break;
	case UD_SIGNAL:
		if (cqe->res < 0)
			uring_signal_failed(u, data, cqe->res);
		break;
	}
}

static bool uring_kernel_holds(struct uring *u)
{
	return IO_URING_READ_ONCE(*u->u.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

/* Takes one completion off the queue first: completing it may submit, which may reap again. */
static bool uring_next(struct uring *u, struct io_uring_cqe *ret)
{
	struct io_uring_cqe *cqe;
	unsigned head;

	io_uring_for_each_cqe(&u->u, head, cqe)
	{
		*ret = (struct io_uring_cqe){
			.user_data = cqe->user_data, .res = cqe->res, .flags = cqe->flags};
		io_uring_cq_advance(&u->u, 1);
		return true;
	}
	return false;
}

/*
 * A completion caused by a write to an eventfd (a poll, or an early kick) reaches the registered
 * eventfd by a detour, because the kernel does not nest them; some kernels (seen on 6.18) take that
 * detour only once per registration. So we register again after each, and look again for what came
 * between.
 */
static void uring_relay_reset(struct uring *u)
{
	u->relay_stuck = false;
	if (!u->ring.fd_exposed)
		return;
	io_uring_unregister_eventfd(&u->u);
	if (io_uring_register_eventfd(&u->u, u->ring.notify_fd))
		trace("ring_fd_lost", "the eventfd could not be registered again");
}

static void uring_reap(struct uring *u)
{
	struct io_uring_cqe cqe;

	for (;;) {
		while (uring_next(u, &cqe))
			uring_complete(u, &cqe);
		if (u->relay_stuck)
			uring_relay_reset(u);
		if (io_uring_cq_ready(&u->u))
			continue;
		if (!uring_kernel_holds(u) || io_uring_get_events(&u->u) < 0 ||
			!io_uring_cq_ready(&u->u))
			return;
	}
}

static void uring_arm_event(struct uring *u)
{
	struct io_uring_sqe *sqe;

	if (u->event_armed)
		return;
	sqe = uring_entry(u);
	if (!sqe)
		return;
	io_uring_prep_read(sqe, u->ring.event_fd, &u->event_value, sizeof(u->event_value), 0);
	io_uring_sqe_set_data64(sqe, UD_EVENT);
	u->event_armed = true;
}

/* Submission errors that pass: the next turn tries again. */
static int uring_submit_result(int r)
{
	if (r == -EAGAIN || r == -ENOMEM)
		sched_yield();
	if (r == -EINTR || r == -EBUSY || r == -EAGAIN || r == -ENOMEM || r == -ETIME)
		return 0;
	return r < 0 ? r : 0;
}

static int uring_poll(struct uring *u)
{
	if (io_uring_sq_ready(&u->u))
		return io_uring_submit_and_get_events(&u->u);
	if (uring_kernel_holds(u))
		return io_uring_get_events(&u->u);
	return 0;
}

static int uring_sleep(struct uring *u, int64_t timeout_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
	struct io_uring_cqe *cqe;

	return io_uring_submit_and_wait_timeout(&u->u, &cqe, 1, timeout_ns < 0 ? NULL : &ts, NULL);
}

/* Clears the bell before completions are looked for, so that a later one rings it again. True: it
 * had rung, perhaps by ring_kick(). */
static bool uring_take_notice(struct ring *ring)
{
	uint64_t v;

	return read(ring->notify_fd, &v, sizeof(v)) > 0;
}

/*
 * Once ring_fd() is known, waiting is polling that descriptor, as the somebody else does: a write
 * to our eventfd would ring it too, through the kernel and late, when all is quiet again.
 */
static int uring_wait_exposed(struct uring *u, int64_t timeout_ns)
{
	struct ring *ring = &u->ring;
	struct timespec ts = {
		.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
	struct pollfd p = {.fd = ring->notify_fd, .events = POLLIN};
	int r;

	if (uring_take_notice(ring))
		timeout_ns = 0;
	r = uring_poll(u);
	uring_reap(u);
	if (r < 0 || !timeout_ns || !list_empty(&u->backlog) || !ring_may_sleep(ring, RING_POLLED))
		return r;
	ppoll(&p, 1, timeout_ns < 0 ? NULL : &ts, NULL);
	ring_awake(ring);
	uring_take_notice(ring);
	r = uring_poll(u);
	uring_reap(u);
	return r;
}

static int uring_wait(struct ring *ring, int64_t timeout_ns)
{
	struct uring *u = uring_of(ring);
	int r;

	uring_arm_event(u);
	uring_backlog(u);
	if (ring->fd_exposed) {
		r = uring_wait_exposed(u, timeout_ns);
	} else if (timeout_ns && list_empty(&u->backlog) && !io_uring_cq_ready(&u->u) &&
		ring_may_sleep(ring, RING_WAITS)) {
		r = uring_sleep(u, timeout_ns);
		ring_awake(ring);
	} else {
		r = uring_poll(u);
	}
	ring->urgent = false;
	uring_reap(u);
	return uring_submit_result(r);
}

static void uring_submit(struct ring *ring)
{
	struct uring *u = uring_of(ring);

	uring_arm_event(u);
	if (io_uring_sq_ready(&u->u))
		io_uring_submit(&u->u);
	ring->urgent = false;
}

/* Not the io_uring descriptor itself: with deferred task work, polling that misses completions on
 * some kernels (seen on 6.18 with timeouts). A registered eventfd is told of every one. */
static int uring_poll_fd(struct ring *ring)
{
	struct uring *u = uring_of(ring);
	int fd;

	if (ring->fd_exposed)
		return ring->notify_fd;
	/* Not zero: what has completed before the registration is not announced. */
	fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (io_uring_register_eventfd(&u->u, fd)) {
		close(fd);
		return -ENOTSUP;
	}
	atomic_store(&ring->notify_fd, fd);
	return fd;
}

static void uring_destroy(struct ring *ring)
{
	struct uring *u = uring_of(ring);

	atomic_fetch_add(&ring_memory, 1);
	io_uring_queue_exit(&u->u);
	if (ring->notify_fd != ring->event_fd)
		close(ring->notify_fd);
	close(ring->event_fd);
	mem_free(u);
}

static const struct ring_engine uring_engine = {
	.start = uring_start,
	.cancel = uring_cancel,
	.wait = uring_wait,
	.submit = uring_submit,
	.signal = uring_signal,
	.poll_fd = uring_poll_fd,
	.destroy = uring_destroy,
};

/* --- set-up --- */

/* From the fastest (Linux 6.1) to what every kernel takes. */
static const unsigned uring_setups[] = {
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	0,
};

static int uring_setup(struct io_uring *u, unsigned entries)
{
	int r = -EINVAL;

	for (size_t i = 0; i < ARRAY_SIZE(uring_setups); i++) {
		struct io_uring_params p = {
			.flags = uring_setups[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
			.cq_entries = entries * 4,
		};

		r = io_uring_queue_init_params(entries, u, &p);
		if (r == -EINVAL)
			continue; /* an older kernel that does not know a flag */
		if (r)
			return r;
		if (!(p.features & IORING_FEAT_NODROP) || !(p.features & IORING_FEAT_EXT_ARG)) {
			io_uring_queue_exit(u);
			return -ENOSYS;
		}
		return 0;
	}
	return r;
}

static bool msg_ring_try(struct io_uring *from, struct io_uring *to)
{
	struct __kernel_timespec ts = {.tv_sec = 1};
	struct io_uring_sqe *sqe = io_uring_get_sqe(from);
	struct io_uring_cqe *cqe;
	bool ok;

	io_uring_prep_msg_ring(sqe, to->ring_fd, 0, UD_IGNORE, 0);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	if (io_uring_submit(from) != 1)
		return false;
	if (!io_uring_peek_cqe(from, &cqe))
		return false; /* only a failure leaves a completion here */
	if (io_uring_wait_cqe_timeout(to, &cqe, &ts))
		return false;
	ok = cqe->user_data == UD_IGNORE;
	io_uring_cqe_seen(to, cqe);
	return ok;
}

static void msg_ring_probe(void)
{
	struct io_uring a, b;

	if (uring_setup(&a, 4))
		return;
	if (!uring_setup(&b, 4)) {
		atomic_store(&msg_ring_works, msg_ring_try(&a, &b));
		io_uring_queue_exit(&b);
	}
	io_uring_queue_exit(&a);
}

static int uring_error(struct error *err, int r)
{
	switch (r) {
	case -ENOMEM:
		return error_set(err, r,
			"io_uring is refused: it may not lock enough memory; raise the memlock "
			"limit "
			"(ulimit -l) or set DROVER_AIO=threads");
	case -EPERM:
	case -EACCES:
		return error_set(err, r,
			"io_uring is refused by a seccomp filter or by kernel.io_uring_disabled; "
			"allow io_uring_setup or set DROVER_AIO=threads");
	case -EMFILE:
	case -ENFILE:
		return error_set(err, r,
			"the event loop cannot be made: the limit of open files is reached; raise "
			"it "
			"(ulimit -n)");
	case -ENOSYS:
		return error_set(err, r,
			"this kernel has no io_uring, or one older than Linux 5.11; set "
			"DROVER_AIO=threads");
	default:
		return error_set_errno(err, r, "io_uring cannot be set up");
	}
}

int ring_uring_new(const struct ring_opts *opts, struct ring **ret, struct error *err)
{
	static pthread_once_t probe_once = PTHREAD_ONCE_INIT;
	struct uring *u = mem_aligned(64, align_up(sizeof(*u), 64));
	int r;

	if (!u)
		return error_set(err, -ENOMEM, "no memory for the event loop");
	*u = (struct uring){.ring = {.engine = &uring_engine, .kind = RING_IO_URING}};
	list_init(&u->backlog);
	u->ring.event_fd = eventfd(0, EFD_CLOEXEC);
	if (u->ring.event_fd < 0) {
		r = -errno;
		mem_free(u);
		return uring_error(err, r);
	}
	r = uring_setup(&u->u, opts->entries ? opts->entries : 256);
	if (r) {
		close(u->ring.event_fd);
		mem_free(u);
		return uring_error(err, r);
	}
	atomic_fetch_add(&ring_memory, 1);
	io_uring_register_ring_fd(&u->u); /* faster where it works */
	if (atomic_fetch_add(&rings_made, 1) == 1)
		pthread_once(&probe_once, msg_ring_probe);
	*ret = &u->ring;
	return 0;
}
