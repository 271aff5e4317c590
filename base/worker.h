/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: one thread a core (started on first need, process-wide), for CPU work that
 * would hold up a ring, and for system calls that have no asynchronous form.
 */
#ifndef DROVER_WORKER_H
#define DROVER_WORKER_H

#include "base/base.h"

/* Runs fn(arg) on a worker and yields meanwhile; returns fn's result. Outside of coroutines it
 * blocks. Where no thread can be started, fn runs in place. */
int co_offload(int (*fn)(void *arg), void *arg);
/* As co_offload() on threads that may block in system calls for long; not counted against the
 * cores. */
int co_offload_blocking(int (*fn)(void *arg), void *arg);
/* Workers the pool has or will have: the CPUs this process may run on (affinity and cgroup quota
 * counted), at least 1. */
unsigned worker_count(void);

#endif
