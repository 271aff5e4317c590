/* SPDX-License-Identifier: MIT */
/*
 * From a log of changes to the states a crash may leave.
 *
 * Between two completed flushes the disk may hold any subset of the changes that no flush covers
 * yet, and of a write of several sectors any of them. A moment just before each completed flush
 * (and the end of the log) is one *epoch end*: there the set of uncovered changes is largest and
 * the demands are strictest. States are built on `disks[]` by copying back what differs.
 */
#ifndef DROVER_TESTS_STATES_H
#define DROVER_TESTS_STATES_H

#include "tests/crash/disk.h"

struct states_opts {
	unsigned full;    /* up to so many uncovered changes: every subset */
	unsigned pairs;   /* above: every pair, up to so many changes */
	unsigned randoms; /* above: random subsets */
	bool torn;
	unsigned max; /* states an epoch at most */
	uint64_t seed;
	uint64_t only; /* not 0: only the state with this key (replay) */
};

/* One chosen subset, on the disks now. */
struct state {
	uint64_t clock; /* the latest moment of the crash: the end of the epoch */
	uint64_t key;   /* content and model: identifies the state within its workload */
	unsigned epoch;
	uint64_t nvolatile, nincluded;
	int64_t torn_event; /* index in the log, -1: none */
	uint64_t torn_from, torn_to;
};

struct states {
	struct states_opts o;
	struct event_log log; /* owned */
	struct disk durable[DISKS];
	bool *covered; /* by a flush: already in durable */
	uint64_t hash; /* of durable */
	uint64_t rng;
	struct state cur;
	/* of the current epoch */
	size_t *vol;
	bool *inc;
	size_t nvol;
	unsigned emitted;
	uint64_t *keys; /* those seen, open addressing */
	size_t nkeys, keys_cap;
	uint64_t found, duplicates;
};

/* What distinguishes equal contents at different times: the demands on them. */
typedef uint64_t states_demand_fn(void *arg, uint64_t clock);
/* Judges the state on the disks; negative stops the enumeration. */
typedef int co_states_fn(void *arg, struct states *s);

/* Takes over disk_log. The disks' contents before the log's first event are given by `image`. */
void states_init(struct states *s, const struct states_opts *o, uint8_t *const image[DISKS],
	const uint64_t size[DISKS]);
void states_free(struct states *s);
/* Every state whose epoch ends after `from`. */
int co_states_each(
	struct states *s, uint64_t from, states_demand_fn *demand, co_states_fn *fn, void *arg);
/* Puts the current state on the disks again, after the judge has changed them. */
void states_restore(struct states *s);
/* Prints which changes are in the current state. */
void states_explain(const struct states *s);

#endif
