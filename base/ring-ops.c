/* SPDX-License-Identifier: MIT */
/* Operations: the co_ I/O calls, their resumption after short counts and passing errors. */
#include "base/runtime.h"
#include "base/worker.h"

#include <assert.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

/* A coroutine whose calls never wait gives the others a turn after so many. */
#define INLINE_MAX 64u

uint64_t ring_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t ring_clock(struct ring *ring)
{
	return ring->kind == RING_SIM ? ring_sim_clock(ring) : ring_now();
}

const char *ring_op_name(const struct ring_op *op)
{
	static const char *const names[] = {
		[RING_OP_READ] = "read",
		[RING_OP_WRITE] = "write",
		[RING_OP_FSYNC] = "fsync",
		[RING_OP_FALLOCATE] = "fallocate",
		[RING_OP_FTRUNCATE] = "ftruncate",
		[RING_OP_COPY_RANGE] = "copy_file_range",
		[RING_OP_POLL] = "poll",
		[RING_OP_SLEEP] = "sleep",
	};

	return names[op->code];
}

static int64_t call_poll(const struct ring_op *op)
{
	struct pollfd p = {.fd = op->fd, .events = (short)op->flags};
	int r = poll(&p, 1, -1);

	return r < 0 ? r : p.revents;
}

static int64_t call(const struct ring_op *op)
{
	loff_t in = (loff_t)op->off, out = (loff_t)op->out_off;

	switch (op->code) {
	case RING_OP_READ:
		return preadv2(op->fd, op->iov, (int)op->niov, in, op->flags);
	case RING_OP_WRITE:
		return pwritev2(op->fd, op->iov, (int)op->niov, in, op->flags);
	case RING_OP_FSYNC:
		return op->flags ? fdatasync(op->fd) : fsync(op->fd);
	case RING_OP_FALLOCATE:
		return fallocate(op->fd, op->flags, in, (off_t)op->len);
	case RING_OP_FTRUNCATE:
		return ftruncate(op->fd, (off_t)op->len);
	case RING_OP_COPY_RANGE:
		return copy_file_range(op->fd, &in, op->out_fd, &out, op->len, 0);
	case RING_OP_POLL:
		return call_poll(op);
	default:
		assert(false);
		return 0;
	}
}

int64_t ring_op_call(const struct ring_op *op)
{
	int64_t r = call(op);

	return r < 0 ? -errno : r;
}

static void co_op_once(struct ring *ring, struct ring_op *op)
{
	op->co->op = op;
	if (!ring->engine->start(ring, op))
		co_yield ();
	op->co->op = NULL;
}

/* After EAGAIN: others run first, and a descriptor in non-blocking mode is waited for. */
static void co_op_await(struct ring *ring, struct ring_op *op)
{
	bool rd = op->code == RING_OP_READ;
	struct ring_op wait = {
		.code = RING_OP_POLL, .co = op->co, .fd = op->fd, .flags = rd ? POLLIN : POLLOUT};

	co_pause();
	if (!rd && op->code != RING_OP_WRITE)
		return;
	co_op_once(ring, &wait);
	op->cancelled |= wait.cancelled;
}

/* Runs one operation to its end. EINTR, EAGAIN and an ECANCELED that nobody asked for start it
 * again: nothing has been transferred then. */
static int64_t co_op_run(struct ring_op *op)
{
	struct co *co = co_self();
	struct ring *ring;

	assert(co);
	ring = co->ring;
	op->co = co;
	ring->inline_calls = 0;
	for (;;) {
		co_op_once(ring, op);
		if (op->res == -ECANCELED && op->cancelled)
			return -ECANCELED;
		if (likely(op->res != -EINTR && op->res != -EAGAIN && op->res != -ECANCELED))
			return op->res;
		/* With RWF_NOWAIT "try again" is the answer. */
		if (op->res == -EAGAIN && (op->flags & RWF_NOWAIT) && op->code <= RING_OP_WRITE)
			return op->res;
		if (op->res == -EAGAIN)
			co_op_await(ring, op);
		if (op->cancelled)
			return -ECANCELED;
	}
}

void co_cancel(struct co *co)
{
	struct ring_op *op = co->op;

	assert(co->ring == co_thread.ring);
	if (!op || op->cancelled)
		return;
	op->cancelled = true;
	co->ring->engine->cancel(co->ring, op);
}

/* --- calls that the worker pool makes on the io_uring engine --- */

static int call_on_worker(void *arg)
{
	struct ring_op *op = arg;

	do
		op->res = ring_op_call(op);
	while (op->res == -EINTR);
	return 0;
}

static int64_t co_op_offload(struct ring_op *op)
{
	if (co_self()->ring->kind != RING_IO_URING)
		return co_op_run(op);
	co_offload_blocking(call_on_worker, op);
	return op->res;
}

/* --- reads and writes --- */

static bool hint_inline(const struct ring *ring, enum io_hint hint)
{
	/* The sim engine draws the order of everything: nothing may pass it by. */
	return hint != IO_RING && ring->kind != RING_SIM;
}

/* Inline calls do not yield by themselves. */
static void co_inline_fairness(struct ring *ring)
{
	if (++ring->inline_calls < INLINE_MAX)
		return;
	ring->inline_calls = 0;
	co_pause();
}

static ssize_t op_inline(struct ring_op *op, int extra_flags)
{
	struct ring_op now = *op;
	ssize_t r;

	now.flags |= extra_flags;
	do
		r = ring_op_call(&now);
	while (r == -EINTR);
	return r;
}

static ssize_t co_op_rw(struct ring_op *op, enum io_hint hint)
{
	struct ring *ring = co_self()->ring;
	ssize_t r;

	/* -1 would mean the file position. */
	if (op->off > INT64_MAX)
		return -EINVAL;
	if (hint_inline(ring, hint)) {
		r = op_inline(op, hint == IO_NOWAIT_FIRST ? RWF_NOWAIT : 0);
		if (r >= 0 || (r != -EAGAIN && r != -EOPNOTSUPP)) {
			co_inline_fairness(ring);
			return r;
		}
	}
	return co_op_run(op);
}

ssize_t co_preadv_hint(
	int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf, enum io_hint hint)
{
	struct ring_op op = {
		.code = RING_OP_READ, .fd = fd, .iov = iov, .niov = niov, .off = off, .flags = rwf};

	return co_op_rw(&op, hint);
}

ssize_t co_pwritev_hint(
	int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf, enum io_hint hint)
{
	struct ring_op op = {.code = RING_OP_WRITE,
		.fd = fd,
		.iov = iov,
		.niov = niov,
		.off = off,
		.flags = rwf};

	return co_op_rw(&op, hint);
}

ssize_t co_preadv(int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf)
{
	return co_preadv_hint(fd, iov, niov, off, rwf, IO_RING);
}

ssize_t co_pwritev(int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf)
{
	return co_pwritev_hint(fd, iov, niov, off, rwf, IO_RING);
}

/* The first segments of a window, on the coroutine's stack: a longer list goes in several calls. */
#define STACK_IOV 64u

/* Transfers from `done` on until the window is full, the file gives or takes no more, or an
 * error. Returns the bytes transferred or the error. */
static ssize_t co_rw_full(
	uint8_t code, int fd, struct iov_slice buf, uint64_t off, int rwf, enum io_hint hint)
{
	struct iovec iov[STACK_IOV];
	size_t done = 0;

	if (!range_inside(off, buf.len, INT64_MAX))
		return -EINVAL;
	while (done < buf.len) {
		struct iov_slice rest = iov_cut(buf, done, buf.len - done);
		struct ring_op op = {
			.code = code, .fd = fd, .iov = iov, .off = off + done, .flags = rwf};
		size_t covered;
		ssize_t r;

		op.niov = iov_export(rest, iov, STACK_IOV, &covered);
		r = co_op_rw(&op, hint);
		if (r < 0)
			return r;
		if (!r)
			break;
		done += (size_t)r;
		/* The page cache had a part of it: the rest has to wait for the disk. */
		if (hint == IO_NOWAIT_FIRST && (size_t)r < covered)
			hint = IO_RING;
	}
	return (ssize_t)done;
}

ssize_t co_read_full_hint(int fd, struct iov_slice buf, uint64_t off, int rwf, enum io_hint hint)
{
	return co_rw_full(RING_OP_READ, fd, buf, off, rwf, hint);
}

int co_write_full_hint(int fd, struct iov_slice buf, uint64_t off, int rwf, enum io_hint hint)
{
	ssize_t r = co_rw_full(RING_OP_WRITE, fd, buf, off, rwf, hint);

	if (r < 0)
		return (int)r;
	return (size_t)r == buf.len ? 0 : -EIO;
}

ssize_t co_read_full(int fd, struct iov_slice buf, uint64_t off)
{
	return co_read_full_hint(fd, buf, off, 0, IO_RING);
}

int co_write_full(int fd, struct iov_slice buf, uint64_t off)
{
	return co_write_full_hint(fd, buf, off, 0, IO_RING);
}

/* --- the rest --- */

int co_fsync(int fd, bool data_only)
{
	struct ring_op op = {.code = RING_OP_FSYNC, .fd = fd, .flags = data_only};

	return (int)co_op_run(&op);
}

int co_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	struct ring_op op = {
		.code = RING_OP_FALLOCATE, .fd = fd, .flags = mode, .off = off, .len = len};

	if (!range_inside(off, len, INT64_MAX))
		return -EFBIG;
	return (int)co_op_run(&op);
}

int co_ftruncate(int fd, uint64_t len)
{
	struct ring_op op = {.code = RING_OP_FTRUNCATE, .fd = fd, .len = len};

	if (len > INT64_MAX)
		return -EFBIG;
	return (int)co_op_offload(&op);
}

ssize_t co_copy_file_range(int in, uint64_t in_off, int out, uint64_t out_off, size_t len)
{
	struct ring_op op = {.code = RING_OP_COPY_RANGE,
		.fd = in,
		.off = in_off,
		.out_fd = out,
		.out_off = out_off,
		.len = MIN(len, (size_t)GiB)};

	if (!range_inside(in_off, op.len, INT64_MAX) || !range_inside(out_off, op.len, INT64_MAX))
		return -EINVAL;
	return co_op_offload(&op);
}

int co_poll(int fd, unsigned events)
{
	struct ring_op op = {.code = RING_OP_POLL, .fd = fd, .flags = (int)events};

	return (int)co_op_run(&op);
}

int co_sleep(uint64_t ns)
{
	struct ring_op op = {.code = RING_OP_SLEEP};

	if (__builtin_add_overflow(ring_clock(co_self()->ring), ns, &op.off) || op.off > INT64_MAX)
		op.off = INT64_MAX;
	return (int)co_op_run(&op);
}
