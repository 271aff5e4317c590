/* SPDX-License-Identifier: MIT */
/* Runs a sequence of operations on the engine, records it, and judges its crash states. */
#ifndef DROVER_TESTS_WORKLOAD_H
#define DROVER_TESTS_WORKLOAD_H

#include "tests/crash/judge.h"

#define MAX_OPS 8u

/* Changes the recorded log as a buggy engine would have written it (planted bugs). The steps'
 * clocks are given: start[i] to end[i] is operation i, and start[n] begins the close. */
struct plant {
	void (*fn)(struct plant *p, struct event_log *log, const uint64_t *start,
		const uint64_t *end, unsigned n);
	unsigned k;           /* which one, for plants that come in numbers */
	const uint8_t *image; /* disk 0 before the workload */
	uint64_t image_size;
	bool applied; /* out: there was something to change */
};

struct workload {
	const struct fixture *f;
	struct op ops[MAX_OPS];
	unsigned n;
	bool all_epochs;     /* not only those that end after the last operation began */
	struct plant *plant; /* NULL: none */
	uint64_t seed;       /* of a random workload, for replay; 0: canonical operations */
};

/* Violations are counted in r. */
void co_workload_run(struct run *r, const struct workload *w);

#endif
