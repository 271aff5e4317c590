/* SPDX-License-Identifier: MIT */
/*
 * Coroutines: code on the I/O path is written straight down and yields where it would block.
 *
 * A coroutine belongs to the ring of the thread that started it and never moves. Functions named
 * co_* (or with _co_ in the name) may yield, so they are called only from coroutines; no lock of
 * pthread kind and no thread-local value is held across such a call. Stacks (128 KiB, guard page)
 * are pooled per thread: keep big buffers off them.
 */
#ifndef DROVER_CO_H
#define DROVER_CO_H

#include "base/base.h"

struct co;
struct ring;

typedef void co_fn(void *arg);

/* Starts fn(arg) on the calling thread's ring; runs it at once, until its first yield, then comes
 * back. Also from inside a coroutine. -ENOMEM when no stack can be had (fn has not run then). */
int co_start(co_fn *fn, void *arg);

/* The running coroutine, NULL outside of any. */
struct co *co_self(void);

/* Suspends the running coroutine until somebody calls co_wake() on it. Every yield is paired with
 * exactly one wake; a wake may come from another thread before the yield has happened. */
void co_yield(void);

/* Makes `co` ready to run on its own ring. From any thread, also outside of coroutines; never runs
 * it inside the call. */
void co_wake(struct co *co);

/* Gives way: other ready coroutines run first. Under the sim engine this is where the seeded
 * scheduler reorders, so drivers without real I/O (mem) call it once per request. */
void co_pause(void);

/*
 * The bridge for code that is not a coroutine: runs fn(arg) in a coroutine on this thread's ring
 * (made with default options when the thread has none), turns the ring until it ends and returns
 * its result. Inside a coroutine it is a plain call. -ENOMEM, or the errors of ring_new().
 */
int co_run(int (*fn)(void *arg), void *arg);

#endif
