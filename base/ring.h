/* SPDX-License-Identifier: MIT */
/*
 * The ring: one event loop per thread, which runs coroutines and completes their I/O.
 *
 * Three engines behind one interface: io_uring (default), threads (a pool of blocking calls, where
 * io_uring is refused), and sim (one thread, calls made synchronously but completed in an order
 * drawn from a seed, with errors on request: the deterministic test engine).
 *
 * All I/O calls here are co_: they yield the calling coroutine, never block the thread longer than
 * a page-cache copy, and return a byte count or 0, or a negative errno. EINTR and spurious EAGAIN
 * or ECANCELED from the kernel are resumed inside. Single calls may be short; the _full forms
 * resume at the right offset.
 *
 * Fork: before a process has rings there is nothing to mind. A child forked later starts without
 * rings and workers and makes its own on need; it must not touch the parent's, nor be forked from
 * inside a coroutine other than to exec. Under valgrind RING_DEFAULT is the threads engine. On sim,
 * time is virtual (sleeps take none) and single reads and writes are short now and then.
 */
#ifndef DROVER_RING_H
#define DROVER_RING_H

#include "base/error.h"
#include "base/iov.h"

enum ring_kind {
	RING_DEFAULT, /* DROVER_AIO=io_uring|threads, else io_uring where it works, else threads */
	RING_IO_URING,
	RING_THREADS,
	RING_SIM,
};

struct ring_opts {
	enum ring_kind kind;
	unsigned entries; /* submission queue size hint; 0 is 256 */
	uint64_t seed;    /* sim only */
};

struct ring;

/* Makes the calling thread's ring; one thread has at most one (-EBUSY). Used by that thread only,
 * but for co_wake() and ring_kick(). Falls back to threads with a trace line under RING_DEFAULT;
 * fails with a sentence naming memlock, seccomp or the descriptor limit otherwise. */
int ring_new(const struct ring_opts *opts, struct ring **ret, struct error *err);
/* Every coroutine of the ring has ended by now. NULL is fine. */
void ring_free(struct ring *ring);
/* The calling thread's ring, NULL when it has none. */
struct ring *ring_self(void);
/* As ring_self(), made with default options on first need. */
int ring_get(struct ring **ret, struct error *err);
enum ring_kind ring_kind(const struct ring *ring);

/* One turn: submit, collect completions, run what is ready. Waits up to timeout_ns for something
 * to happen (0: not at all, negative: for ever), and not at all when a coroutine is ready. Returns
 * the number of coroutines that ran (0 also after a signal or a ring_kick()), or a negative errno.
 * What coroutines start in a turn that may wait is submitted by the next turn: call it in a loop,
 * or end with a turn of timeout 0. Not from inside a coroutine. */
int ring_turn(struct ring *ring, int64_t timeout_ns);
/* Makes a ring_turn() that waits, on whatever thread, return. Async-signal-safe. */
void ring_kick(struct ring *ring);
/* A descriptor that polls readable when ring_turn(ring, 0) would find work; owned by the ring. From
 * then on every turn submits what it started. -EMFILE and the like when it cannot be made. */
int ring_fd(struct ring *ring);

/* A thread of its own with a ring of its own, running fn(arg) as a coroutine. */
struct ring_thread;
int ring_thread_start(
	const struct ring_opts *opts, int (*fn)(void *arg), void *arg, struct ring_thread **ret);
/* Waits for the thread to end and returns fn's result. Inside a coroutine it yields. */
int ring_thread_join(struct ring_thread *t);

/* --- file I/O; rwf are the RWF_* flags of preadv2(2) --- */
ssize_t co_preadv(int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf);
ssize_t co_pwritev(int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf);
/* Reads until the slice is full or end of file; returns the bytes read. */
ssize_t co_read_full(int fd, struct iov_slice buf, uint64_t off);
/* Writes the whole slice: 0 or negative errno. -EIO when the file takes nothing more. */
int co_write_full(int fd, struct iov_slice buf, uint64_t off);

/*
 * How a read or write is best made; the file driver knows, from the open flags and the file system.
 * The sim engine takes all of them for IO_RING.
 */
enum io_hint {
	IO_RING,	/* asynchronously: O_DIRECT, cold or large buffered I/O */
	IO_INLINE,      /* by a plain call at once: small buffered overwrites; may block for long */
	IO_NOWAIT_FIRST /* RWF_NOWAIT at once, by the ring what would have to wait: small buffered
			 * reads. Where the file knows no RWF_NOWAIT that costs a call: probe. */
};
ssize_t co_preadv_hint(int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf,
	enum io_hint hint);
ssize_t co_pwritev_hint(int fd, const struct iovec *iov, unsigned niov, uint64_t off, int rwf,
	enum io_hint hint);
ssize_t co_read_full_hint(
	int fd, struct iov_slice buf, uint64_t off, int rwf, enum io_hint hint);
int co_write_full_hint(int fd, struct iov_slice buf, uint64_t off, int rwf, enum io_hint hint);

int co_fsync(int fd, bool data_only);
int co_fallocate(int fd, int mode, uint64_t off, uint64_t len);
/* By the worker pool where the kernel has no asynchronous form. */
int co_ftruncate(int fd, uint64_t len);
ssize_t co_copy_file_range(int in, uint64_t in_off, int out, uint64_t out_off, size_t len);
/* Waits for poll(2) events on fd; returns the events that came. */
int co_poll(int fd, unsigned events);
/* Sleeps at least ns nanoseconds of CLOCK_MONOTONIC. -ECANCELED when cancelled by co_cancel(). */
int co_sleep(uint64_t ns);

struct co;
/* Asks the operation `co` (of the same ring) is waiting in to end early with -ECANCELED: sleep and
 * poll always do, file I/O may complete normally all the same. */
void co_cancel(struct co *co);

/* --- sim engine --- */
/* Called before each simulated I/O; a negative return is its result instead. NULL: no errors. */
typedef int ring_sim_fault_fn(void *arg, const char *op, int fd, uint64_t off, size_t len);
void ring_sim_fault(struct ring *ring, ring_sim_fault_fn *fn, void *arg);

#endif
