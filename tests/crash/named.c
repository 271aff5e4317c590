/* SPDX-License-Identifier: MIT */
/*
 * Named crash tests, as TAP: the five defects that the handbook found in QEMU (A-E), and the proof
 * that the harness sees: one planted ordering bug for each invariant I1-I9 must be caught.
 */
#include "base/co.h"
#include "tests/crash/plants.h"
#include <stdio.h>
#include <stdlib.h>

static struct fixture *fixtures;
static unsigned tests, failures;

static void result(bool ok, const char *name, const char *detail)
{
	printf("%sok %u - %s%s%s\n", ok ? "" : "not ", ++tests, name, detail[0] ? ": " : "",
		detail);
	fflush(stdout);
	failures += !ok;
}

/* --- the five defects ---------------------------------------------------------------------- */

static struct op op_at(const struct layout *l, enum op_kind kind, uint64_t cluster, uint64_t n)
{
	return (struct op){.kind = kind, .off = cluster * l->cs, .len = n * l->cs};
}

/* Compressed data overwritten, then other clusters written, none of it flushed: the freed host
 * space must not be used by the others (QEMU: the first cluster reads EIO). */
static void defect_a(const struct layout *l, struct workload *w)
{
	w->ops[w->n++] = op_at(l, OP_OVERWRITE, 2, 1);
	for (unsigned i = 0; i < 3; i++)
		w->ops[w->n++] = op_at(l, OP_ALLOC, i == 2 ? 9 : 4 + i, 1);
	w->ops[w->n++] = op_at(l, OP_OVERWRITE, 6, 1);
	w->ops[w->n++] = op_at(l, OP_COMPRESSED, 3, 1);
}

/* The same after zero+unmap and discard (QEMU: the zeroed cluster reads the other's data). */
static void defect_b(const struct layout *l, struct workload *w)
{
	w->ops[w->n++] = op_at(l, OP_UNMAP, 7, 1);
	w->ops[w->n++] = op_at(l, OP_ALLOC, 9, 1);
	w->ops[w->n++] = op_at(l, OP_UNMAP, 2, 1);
	w->ops[w->n++] = op_at(l, OP_ALLOC, 4, 1);
	w->ops[w->n++] = op_at(l, OP_DISCARD, 0, 1);
	w->ops[w->n++] = op_at(l, OP_COMPRESSED, 5, 1);
}

/* Killed in snapshot apply, then ordinary writes without repair: the snapshot must not change. */
static void defect_c(const struct layout *l, struct workload *w)
{
	w->ops[w->n++] = op_at(l, OP_OVERWRITE, 1, 1);
	w->ops[w->n++] = op_canonical(l, OP_APPLY, 0, 0);
	w->ops[w->n++] = op_at(l, OP_OVERWRITE, 1, 1);
}

/* Shrink: the cut part is whole while the size is the old one. */
static void defect_d(const struct layout *l, struct workload *w)
{
	w->ops[w->n++] = op_at(l, OP_COMPRESSED, 2 * l->l2_clusters - 1, 1);
	w->ops[w->n++] = op_at(l, OP_FLUSH, 0, 0);
	w->ops[w->n++] = op_canonical(l, OP_SHRINK, 1, 0);
	w->ops[w->n++] = op_canonical(l, OP_GROW, 0, 0);
}

/* Rebase to no backing file: no data lost with the name. */
static void defect_e(const struct layout *l, struct workload *w)
{
	w->ops[w->n++] = op_at(l, OP_OVERWRITE, 0, 1);
	w->ops[w->n++] = op_canonical(l, OP_REBASE, 0, 0);
	w->ops[w->n++] = op_at(l, OP_OVERWRITE, 3, 1);
}

static void co_defect(const char *name, void (*fill)(const struct layout *, struct workload *),
	bool needs_snapshot)
{
	static struct run run;
	char detail[200];
	uint64_t bad;

	memset(&run, 0, sizeof(run));
	run.s = (struct states_opts){
		.full = 6, .pairs = 16, .randoms = 16, .torn = true, .seed = 1};
	run.j = (struct judge_opts){
		.check = 8, .cont = 4, .repair = 16, .compound = 8, .cont_ops = 20};
	for (unsigned i = 0; i < nconfigs; i++) {
		struct workload w = {.f = &fixtures[i], .all_epochs = true};

		if (needs_snapshot && configs[i].refcount_bits == 1)
			continue;
		fill(&fixtures[i].l, &w);
		co_workload_run(&run, &w);
	}
	bad = tally_violations(&run.t);
	snprintf(detail, sizeof(detail), "%llu states, %llu continued, %llu violations",
		(unsigned long long)run.t.states, (unsigned long long)run.t.continued,
		(unsigned long long)bad);
	result(!bad && run.t.states > 200 && run.t.continued, name, detail);
}

/* --- planted bugs -------------------------------------------------------------------------- */

/* Violations of kind `want` when the plant is applied, with every k below max_k. */
static uint64_t co_plant(void (*fn)(struct plant *, struct event_log *, const uint64_t *,
				 const uint64_t *, unsigned),
	unsigned k, unsigned max_k, const struct fixture *f, const struct op *ops, unsigned n,
	unsigned want)
{
	static struct run run;
	uint64_t found = 0;

	for (; k < max_k; k++) {
		struct plant plant = {.fn = fn, .k = k};
		struct workload w = {.f = f, .n = n, .all_epochs = true, .plant = &plant};

		memset(&run, 0, sizeof(run));
		run.quiet = true;
		run.s = (struct states_opts){.full = 8, .pairs = 16, .randoms = 16, .torn = true};
		memcpy(w.ops, ops, n * sizeof(*ops));
		co_workload_run(&run, &w);
		for (unsigned v = 0; plant.applied && v < VIOLATIONS; v++)
			if (want >> v & 1)
				found += run.t.violations[v];
		if (!plant.applied)
			break;
	}
	return found;
}

#define ALL_K   64u
#define KIND(v) (1u << (v))

static void caught(const char *name, uint64_t n)
{
	char detail[64];

	snprintf(detail, sizeof(detail), "%llu states are found wrong", (unsigned long long)n);
	result(n > 0, name, detail);
}

static void co_plants(const struct fixture *f)
{
	const struct layout *l = &f->l;
	const struct op flush = op_at(l, OP_FLUSH, 0, 0);
	const struct op alloc[] = {op_at(l, OP_ALLOC, 9, 1), flush};
	const struct op table[] = {op_at(l, OP_ALLOC, l->l2_clusters, 1), flush};
	const struct op unmap[] = {op_at(l, OP_UNMAP, 7, 1), flush, flush};
	const struct op over[] = {op_at(l, OP_OVERWRITE, 0, 1), flush};
	const struct op create[] = {op_canonical(l, OP_CREATE, 0, 0)};
	const struct op apply[] = {op_canonical(l, OP_GROW, 1, 0), op_canonical(l, OP_APPLY, 0, 1)};

	caught("I1 planted: reference written before its refcount is durable",
		co_plant(plant_drop_flush, 0, ALL_K, f, alloc, 2, KIND(V_REFCOUNT_LOW)));
	caught("I2 planted: refcount dropped before the dereference is durable",
		co_plant(plant_drop_flushes, 0, ALL_K, f, unmap, 3, KIND(V_REFCOUNT_LOW)));
	caught("I3 planted: cluster reused before the dereference is durable",
		co_plant(plant_reuse, 7, 8, f, unmap, 3, KIND(V_VIEW)));
	caught("I4 planted: L1 entry written before its L2 table is durable",
		co_plant(plant_drop_flush, 0, ALL_K, f, table, 2, KIND(V_STRUCTURE)));
	caught("I5 planted: L2 entry written before the data is durable",
		co_plant(plant_drop_flush, 0, ALL_K, f, alloc, 2, KIND(V_VIEW)));
	caught("I6 planted: COPIED stays on what a snapshot shares",
		co_plant(plant_keep_copied, 0, 1, f, create, 1, KIND(V_COPIED)));
	caught("I7 planted: a mode switch in two writes",
		co_plant(plant_split_header, 0, 1, f, apply, 2,
			KIND(V_STRUCTURE) | KIND(V_OPEN) | KIND(V_VIEW) | KIND(V_OVERLAP)));
	caught("I8 planted: an acknowledged flush without a barrier",
		co_plant(plant_drop_flushes_of, 1, 2, f, over, 2, KIND(V_VIEW)));
}

/* I9: after a failed flush of the file no flush of the image succeeds, whatever happens between.
 * `forget` plants the bug: the failure is forgotten. True when a later flush claimed success. */
static int co_later_flush_succeeds(const struct fixture *f, bool forget, bool *ret)
{
	static struct world w;
	struct error err = ERROR_INIT;
	struct op op = op_at(&f->l, OP_OVERWRITE, 0, 1);
	int r;

	*ret = false;
	fixture_load(f, &w);
	r = co_world_open(f->c, BLOCK_OPEN_RDWR, &w.top, &err);
	if (r)
		return r;
	r = co_op_run(&w, &op, 100, &err);
	if (r)
		goto out;
	disk_fault = (struct disk_fault){.k = 1, .what = FAIL_FLUSH, .error = -EIO};
	r = co_block_flush(w.top) ? 0 : -EINVAL;
	disk_fault = (struct disk_fault){0};
	for (unsigned i = 0; i < 4 && !r; i++) {
		struct block_node *n = w.top;

		for (; forget && n; n = n->child[BLOCK_ROLE_FILE])
			n->broken_flush = false;
		if (i % 2)
			co_op_run(&w, &op, 101 + i, &err);
		if (!co_block_flush(w.top))
			*ret = true;
	}
out:
	disk_fault = (struct disk_fault){0};
	co_block_node_unref(take(w.top));
	return r;
}

static void co_i9(const struct fixture *f)
{
	bool claimed = true;
	int r = co_later_flush_succeeds(f, false, &claimed);

	result(!r && !claimed, "I9: no flush succeeds after a failed one", r ? errno_text(r) : "");
	r = co_later_flush_succeeds(f, true, &claimed);
	result(!r && claimed, "I9 planted: a forgotten flush failure is caught",
		r ? errno_text(r) : "");
}

static const struct fixture *fixture_named(const char *name)
{
	for (unsigned i = 0; i < nconfigs; i++)
		if (!strcmp(configs[i].name, name))
			return &fixtures[i];
	return NULL;
}

static int co_main(void *arg)
{
	fixtures = calloc(nconfigs, sizeof(*fixtures));
	world_init();
	for (unsigned i = 0; i < nconfigs; i++) {
		struct error err = ERROR_INIT;
		int r = co_fixture_make(&configs[i], &fixtures[i], &err);

		if (!r)
			continue;
		printf("Bail out! %s: %s\n", configs[i].name, err.text);
		return r;
	}
	co_defect("A: compressed cluster overwritten, its space is not reused early", defect_a,
		false);
	co_defect("B: zeroed and discarded clusters, their space is not reused early", defect_b,
		false);
	co_defect("C: crash in snapshot apply, then writes: snapshots keep their content", defect_c,
		true);
	co_defect("D: crash in shrink: the tail is whole or gone", defect_d, false);
	co_defect("E: crash in rebase: nothing is lost with the backing file", defect_e, false);
	co_plants(fixture_named("v3-512-r16"));
	co_i9(fixture_named("v3-4k-r16"));
	for (unsigned i = 0; i < nconfigs; i++)
		fixture_free(&fixtures[i]);
	free(fixtures);
	return 0;
}

int main(void)
{
	int r = co_run(co_main, NULL);

	disk_free_all();
	printf("1..%u\n", tests);
	return r || failures ? 1 : 0;
}
