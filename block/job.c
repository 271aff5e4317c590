/* SPDX-License-Identifier: MIT */
/*
 * Jobs: pause, cancel, rate limit and progress of long work.
 *
 * Theory of Operation
 *
 * The work calls co_block_job_step() before each piece, from any number of rings at once. Cancel
 * is one atomic store, so that a signal handler may do it; for the same reason nothing waits on a
 * queue that cancel would have to wake: whoever sleeps for pause or rate sleeps in short naps and
 * looks again.
 *
 * The rate is kept by virtual time: `rate_next_ns` is the moment at which everything admitted so
 * far will have been paid for. A piece is admitted when that moment has come, and moves it on by
 * its own price. Time not used is kept for at most RATE_BURST_NS, so a pause is not made up for by
 * a flood.
 *
 * Invariants:
 * J1  progress() runs on one thread at a time: whoever calls it has put PROGRESS_BUSY into
 *     progress_next_ns under the lock.
 * J2  `done` only grows, and is counted before progress() is told.
 */
#include "block/block.h"
#include "base/ring.h"

#include <time.h>

#define NAP_NS		     20000000ULL
#define RATE_BURST_NS	     100000000ULL
#define PROGRESS_INTERVAL_NS 50000000ULL
#define PROGRESS_BUSY	     UINT64_MAX

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

void block_job_init(struct block_job *job)
{
	*job = (struct block_job){0};
}

void block_job_cancel(struct block_job *job)
{
	__atomic_store_n(&job->cancelled, true, __ATOMIC_RELEASE);
}

void block_job_pause(struct block_job *job, bool paused)
{
	__atomic_store_n(&job->paused, paused, __ATOMIC_RELEASE);
}

static bool job_cancelled(const struct block_job *job)
{
	return __atomic_load_n(&job->cancelled, __ATOMIC_ACQUIRE);
}

/* What `bytes` cost at `rate`, without overflow for any rate. */
static uint64_t price_ns(uint64_t bytes, uint64_t rate)
{
	return (uint64_t)((unsigned __int128)bytes * 1000000000u / rate);
}

/* Admits the piece and returns 0, or returns how long to wait before asking again. */
static uint64_t rate_admit(struct block_job *job, uint64_t bytes)
{
	uint64_t rate = __atomic_load_n(&job->rate, __ATOMIC_RELAXED);
	uint64_t now, wait = 0;

	if (!rate || !bytes)
		return 0;
	now = now_ns();
	spin_lock(&job->lock);
	if (job->rate_next_ns > now) {
		wait = job->rate_next_ns - now;
	} else {
		if (job->rate_next_ns + RATE_BURST_NS < now)
			job->rate_next_ns = now - (job->rate_next_ns ? RATE_BURST_NS : 0);
		job->rate_next_ns += price_ns(bytes, rate);
	}
	spin_unlock(&job->lock);
	return wait;
}

static void report(struct block_job *job)
{
	uint64_t now;
	bool mine;

	if (!job->progress)
		return;
	now = now_ns();
	spin_lock(&job->lock);
	mine = job->progress_next_ns <= now; /* false also when PROGRESS_BUSY */
	if (mine)
		job->progress_next_ns = PROGRESS_BUSY;
	spin_unlock(&job->lock);
	if (!mine)
		return;
	job->progress(job->arg, job);
	spin_lock(&job->lock);
	job->progress_next_ns = now + PROGRESS_INTERVAL_NS;
	spin_unlock(&job->lock);
}

static int job_step(struct block_job *job, uint64_t bytes, bool paid)
{
	uint64_t wait;

	while (!job_cancelled(job)) {
		if (__atomic_load_n(&job->paused, __ATOMIC_ACQUIRE))
			wait = NAP_NS;
		else
			wait = paid ? rate_admit(job, bytes) : 0;
		if (!wait) {
			__atomic_fetch_add(&job->done, bytes, __ATOMIC_RELAXED);
			report(job);
			return 0;
		}
		report(job);
		co_sleep(MIN(wait, (uint64_t)NAP_NS));
	}
	return -ECANCELED;
}

int co_block_job_step(struct block_job *job, uint64_t bytes)
{
	return job_step(job, bytes, true);
}

int co_block_job_skip(struct block_job *job, uint64_t bytes)
{
	return job_step(job, bytes, false);
}
