/* SPDX-License-Identifier: MIT */
/* The oracles O1-O10: what must hold for the state on the disks. */
#ifndef DROVER_TESTS_JUDGE_H
#define DROVER_TESTS_JUDGE_H

#include "tests/crash/refcheck.h"
#include "tests/crash/setup.h"
#include "tests/crash/states.h"

enum violation {
	V_STRUCTURE, /* the four of the independent checker, in its order */
	V_REFCOUNT_LOW,
	V_OVERLAP,
	V_COPIED,
	V_OPEN,         /* O1 */
	V_VIEW,         /* O4-O6 */
	V_RO_WRITES,    /* opening read-only changed the file */
	V_CHECK,        /* O2: the project's own checker does not agree */
	V_QEMU,         /* O3 */
	V_CONTINUE,     /* O8 */
	V_REPAIR,       /* repair failed, or left errors, or lost content (O9 as well) */
	V_REPAIR_AGAIN, /* O10 */
	V_LIVE,         /* no crash at all: the running guest saw something wrong */
	V_REFUSED,      /* an operation failed that should work */
	V_ACCEPTED,     /* an operation worked that should be refused */
	V_CLOSE,
	VIOLATIONS,
};
extern const char *const violation_names[VIOLATIONS];

struct tally {
	uint64_t workloads, states, duplicates, refused;
	uint64_t by_op[OP_KINDS]; /* states in which this was the last operation */
	uint64_t checks, qemu_checks, continued, repairs, repair_crashes;
	uint64_t violations[VIOLATIONS];
};

/* How much of the expensive work is done: one state in so many, 0: none. */
struct judge_opts {
	unsigned check, qemu, cont, repair, compound;
	unsigned cont_ops; /* operations after the crash */
	bool structural;   /* snapshots, resizes ... among them */
};

struct run {
	struct judge_opts j;
	struct states_opts s;
	struct tally t;
	uint64_t rng;
	bool verbose;     /* print the log of every workload */
	bool quiet;       /* count violations, do not print them (planted bugs) */
	unsigned printed; /* violations printed so far */
	char what[512];   /* the workload, for messages and replay */
};

static inline uint64_t tally_violations(const struct tally *t)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < VIOLATIONS; i++)
		n += t->violations[i];
	return n;
}

void run_violation(struct run *r, enum violation v, const struct states *s, const char *fmt, ...)
	attr_printf(4, 5);
/* Judges the state on the disks. It must fit one of the models (1 or 2). */
void co_judge(struct run *r, struct world *w, struct states *s, const struct model *models,
	unsigned nmodels);
/* Everything a repaired, closed image must be; `m` is what it must show. */
bool co_judge_repaired(struct run *r, struct world *w, struct states *s, const struct model *m);

#endif
