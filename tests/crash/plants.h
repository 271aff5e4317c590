/* SPDX-License-Identifier: MIT */
/* Ordering bugs, planted into a recorded log as a wrong engine would have written it. */
#ifndef DROVER_TESTS_PLANTS_H
#define DROVER_TESTS_PLANTS_H

#include "tests/crash/workload.h"

/* The k-th flush (from 0) of the whole workload never happened. */
void plant_drop_flush(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n);
/* Neither did the one behind it. */
void plant_drop_flushes(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n);
/* Every flush of operation k never happened. */
void plant_drop_flushes_of(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n);
/* Header sector 0 is written in two pieces, cut in front of the L1 table's offset. */
void plant_split_header(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n);
/* Table entries keep COPIED where the engine cleared it. */
void plant_keep_copied(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n);
/* Right after operation 0 the host cluster that guest cluster k had in the fixture is reused for
 * other data, before anything that dereferences it has become durable. */
void plant_reuse(struct plant *p, struct event_log *log, const uint64_t *start, const uint64_t *end,
	unsigned n);

#endif
