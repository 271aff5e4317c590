/* SPDX-License-Identifier: MIT */
/* Crews: a number of coroutines spread over rings of their own, waited for together. */
#include "block/copy.h"
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/worker.h"

struct crew {
	unsigned threads, n;
	int (*fn)(void *arg, unsigned i);
	void *arg;
	int result; /* atomic: the first failure */
};

/* The members of one ring. */
struct crew_ring {
	struct crew *crew;
	unsigned index;
	struct co_counter running;
	struct ring_thread *thread;
	bool ran;
};

struct crew_member {
	struct crew_ring *ring;
	unsigned i;
};

static void member_run(struct crew *crew, unsigned i)
{
	int r = crew->fn(crew->arg, i), none = 0;

	if (r < 0)
		__atomic_compare_exchange_n(
			&crew->result, &none, r, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void member_main(void *arg)
{
	struct crew_member m = *(struct crew_member *)arg; /* arg is gone after the first yield */

	member_run(m.ring->crew, m.i);
	co_counter_dec(&m.ring->running);
}

/* Runs all members of one ring: the first in place, the others beside it. A member that cannot be
 * started is made up for by the ones that run. */
static int ring_main(void *arg)
{
	struct crew_ring *ring = arg;
	struct crew *crew = ring->crew;

	ring->ran = true;
	for (unsigned i = ring->index + crew->threads; i < crew->n; i += crew->threads) {
		struct crew_member m = {ring, i};

		co_counter_inc(&ring->running);
		if (co_start(member_main, &m) < 0) {
			co_counter_dec(&ring->running);
			break;
		}
	}
	member_run(crew, ring->index);
	co_counter_wait_zero(&ring->running);
	return 0;
}

unsigned block_crew_threads(unsigned threads, unsigned n)
{
	struct ring *ring = ring_self();

	if (ring && ring_kind(ring) == RING_SIM)
		return 1;
	if (!threads)
		threads = worker_count();
	return MAX(MIN(threads, n), 1u);
}

int co_block_crew_run(unsigned threads, unsigned n, int (*fn)(void *arg, unsigned i), void *arg)
{
	struct crew crew = {.n = n, .fn = fn, .arg = arg};
	_cleanup_free_ struct crew_ring *rings = NULL;
	struct ring_opts opts = {0};

	crew.threads = block_crew_threads(MAX(threads, 1u), n);
	rings = mem_calloc(crew.threads, sizeof(*rings));
	if (!rings)
		return -ENOMEM;
	for (unsigned t = 0; t < crew.threads; t++)
		rings[t] = (struct crew_ring){.crew = &crew, .index = t};
	if (crew.threads > 1) {
		opts.kind = ring_kind(ring_self());
		for (unsigned t = 0; t < crew.threads; t++)
			if (ring_thread_start(&opts, ring_main, &rings[t], &rings[t].thread) < 0)
				rings[t].thread = NULL;
	}
	for (unsigned t = 0; t < crew.threads; t++)
		if (rings[t].thread)
			ring_thread_join(rings[t].thread);
	/* Groups whose ring could not be made run here, one after another. */
	for (unsigned t = 0; t < crew.threads; t++)
		if (!rings[t].ran)
			ring_main(&rings[t]);
	return crew.result;
}
