/* SPDX-License-Identifier: MIT */
/*
 * Inside of the runtime: what co.c, ring*.c and worker.c share and nobody else includes.
 */
#ifndef DROVER_RUNTIME_H
#define DROVER_RUNTIME_H

#include "base/co.h"
#include "base/list.h"
#include "base/ring.h"

#include <stdatomic.h>

/* --- co.c --- */

/* A stack to switch to. The bounds are known to ASan only once it has been left. */
struct co_ctx {
	void *sp;
	const void *bottom;
	size_t size;
	void *fake_stack; /* ASan */
	void *fiber;      /* TSan */
};

/* Lives at the top of its own stack. */
struct co {
	struct co_ctx ctx;
	struct co *caller; /* who runs again when this one yields; NULL: the ring's thread */
	struct ring *ring;
	struct list ready;     /* ring->ready, or the thread's pool */
	struct co *inbox_next; /* ring->inbox */
	struct ring_op *op;    /* the operation it waits in */
	co_fn *fn;
	void *arg;
	void *map;
	unsigned valgrind_id;
	bool ended;
};

struct co_thread {
	struct ring *ring;
	struct co *cur;
	struct co_ctx main;
	struct co_ctx *left; /* the stack that was switched away from last */
	struct co *pool;     /* ended coroutines, linked by inbox_next */
	unsigned pooled;
};
extern __thread struct co_thread co_thread __attribute__((tls_model("initial-exec")));

/* Runs `co` until it yields or ends. */
void runtime_resume(struct co *co);
/* Gives the calling thread's pooled stacks back to the system. */
void runtime_free_stacks(void);
bool runtime_on_valgrind(void);

/* --- worker.c --- */

struct worker_task {
	void (*run)(struct worker_task *task); /* the task may be gone when it returns */
	struct worker_task *next;
};
enum worker_kind { WORKER_CPU, WORKER_BLOCKING };
/* False: no thread can be had; the caller runs the task itself. */
bool worker_post(enum worker_kind kind, struct worker_task *task);

/* --- ring.c --- */

enum ring_opcode {
	RING_OP_READ,
	RING_OP_WRITE,
	RING_OP_FSYNC,
	RING_OP_FALLOCATE,
	RING_OP_FTRUNCATE,
	RING_OP_COPY_RANGE,
	RING_OP_POLL,
	RING_OP_SLEEP,
};

/* One operation, on the stack of the coroutine that waits for it. */
struct ring_op {
	struct co *co;
	struct list link;        /* an engine's list of waiting operations */
	struct worker_task task; /* threads engine */
	const struct iovec *iov;
	uint64_t off, len; /* sleep: off is the absolute deadline in ns */
	uint64_t out_off;
	int64_t res;
	int64_t ts[2]; /* io_uring: the deadline as struct __kernel_timespec */
	int fd, out_fd;
	int flags; /* RWF_*, fallocate mode, poll events, fsync: data only */
	unsigned niov;
	uint8_t code;
	bool cancelled;      /* co_cancel() asked */
	uint8_t engine_bits; /* the engine's own */
	struct {
		struct ring_op *child, *next, *prev;
	} heap; /* timer.c */
};

struct ring_engine {
	/* Starts op; true: it is complete already and op->res is set, no wake follows. */
	bool (*start)(struct ring *ring, struct ring_op *op);
	void (*cancel)(struct ring *ring, struct ring_op *op);
	/* Submits what piled up, waits up to timeout_ns unless something has completed, collects
	 * completions by co_wake(). The sleeping flag is handled by ring_may_sleep(). */
	int (*wait)(struct ring *ring, int64_t timeout_ns);
	/* Submits only. */
	void (*submit)(struct ring *ring);
	/* From another thread: makes wait() return. `from` is the caller's ring, in a turn, or
	 * NULL. NULL member: by the eventfd. */
	bool (*signal)(struct ring *ring, struct ring *from);
	int (*poll_fd)(struct ring *ring);
	void (*destroy)(struct ring *ring);
};

enum ring_sleep {
	RING_AWAKE,
	RING_WAITS,  /* in the engine: by the eventfd, or from ring to ring */
	RING_POLLED, /* outside of a turn, somebody polls ring_fd() */
};

struct ring {
	const struct ring_engine *engine;
	enum ring_kind kind;
	struct list ready; /* coroutines to run, in order */
	unsigned coroutines;
	unsigned inline_calls; /* since this ring last gave way, see ring-ops.c */
	bool turning;          /* inside ring_turn() */
	bool urgent;           /* signals to other rings wait to be submitted */
	bool fd_exposed;       /* somebody polls ring_fd() */
	bool automatic;        /* made by ring_get(): freed at thread exit */
	int event_fd;          /* ends a wait of the engine */
	uint64_t rng;          /* sim */

	/* What other threads touch. */
	_Atomic(struct co *) inbox __attribute__((aligned(64)));
	_Atomic uint32_t sleeping; /* enum ring_sleep: how the thread wants to be told */
	_Atomic int notify_fd;     /* makes ring_fd() readable; often the eventfd */
	_Atomic uint32_t wakers;   /* threads inside ring_post(): the ring may not go away */
};

int ring_uring_new(const struct ring_opts *opts, struct ring **ret, struct error *err);
int ring_threads_new(const struct ring_opts *opts, struct ring **ret, struct error *err);
int ring_sim_new(const struct ring_opts *opts, struct ring **ret, struct error *err);

/* From another thread: hands over `co`, which runs on `ring`. */
void ring_post(struct ring *ring, struct co *co);
/* Before a wait: false when there is work and waiting would lose it. */
bool ring_may_sleep(struct ring *ring, enum ring_sleep how);
void ring_awake(struct ring *ring);
/* Somebody outside of a turn made work: ring_fd() has to poll readable. */
void ring_note_work(struct ring *ring);
/* Writes the eventfd; async-signal-safe. */
void ring_ring_bell(int event_fd);
/* The next coroutine to run, taken off the ready list. */
struct co *ring_sim_pick(struct ring *ring);
uint64_t ring_sim_clock(struct ring *ring);
static inline uint64_t ring_random(struct ring *ring)
{
	/* splitmix64: any seed gives a full-period sequence. */
	uint64_t z = (ring->rng += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* --- ring-ops.c --- */

/* Makes the blocking system call of an operation and returns its result. Not for sleeps. */
int64_t ring_op_call(const struct ring_op *op);
const char *ring_op_name(const struct ring_op *op);
uint64_t ring_now(void); /* CLOCK_MONOTONIC in ns */

/* --- timer.c: a pairing heap of sleeping operations, by deadline --- */
void timer_add(struct ring_op **heap, struct ring_op *op);
void timer_remove(struct ring_op **heap, struct ring_op *op);

#endif
