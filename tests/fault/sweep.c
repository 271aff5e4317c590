/* SPDX-License-Identifier: MIT */
/*
 * Fault sweeps, as TAP: the k-th I/O call and the k-th allocation fail, for every k, in every
 * operation. Whatever fails: no crash, nothing that was acknowledged is lost or becomes something
 * else, the image stays sound, and once the fault is gone the same operation works (after a failed
 * flush: after a reopen).
 *
 *   sweep [--config=NAME] [--op=NAME] [--mode=NAME] [--k=N]
 */
#include "base/co.h"
#include "base/mem.h"
#include "tests/crash/judge.h"
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct mode {
	const char *name;
	struct disk_fault fault; /* k filled in */
	bool memory;
};

static const struct mode modes[] = {
	{"EIO", {.what = FAIL_ANY, .error = -EIO}, false},
	{"EIO-torn", {.what = FAIL_WRITE, .error = -EIO, .torn = true}, false},
	{"EIO-forever", {.what = FAIL_ANY, .error = -EIO, .forever = true}, false},
	{"ENOSPC", {.what = FAIL_WRITE | FAIL_ZERO | FAIL_RESIZE, .error = -ENOSPC}, false},
	{"ENOSPC-forever",
		{.what = FAIL_WRITE | FAIL_ZERO | FAIL_RESIZE, .error = -ENOSPC, .forever = true},
		false},
	{"EAGAIN", {.what = FAIL_ANY, .error = -EAGAIN}, false},
	{"memory", {.k = 0}, true},
	{"memory-forever", {.forever = true}, true},
};

static const char *const sweep_configs[] = {
	"v2-512", "v3-512-r1", "v3-512-r16", "v3-4k-r64", "ext-64k-r16"};

static struct {
	const char *config, *op, *mode;
	uint64_t k;
} only;
static unsigned tests, failures;
static uint64_t cases, hits;
static char context[200];
static bool failed;

static void attr_printf(1, 2) wrong(const char *fmt, ...)
{
	va_list ap;

	failed = true;
	if (failures > 20)
		return;
	printf("# %s: ", context);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

static void arm(const struct mode *m, uint64_t k)
{
	if (m->memory) {
		mem_fail_at(k, m->fault.forever);
	} else {
		disk_fault = m->fault;
		disk_fault.k = k;
		disk_fault.calls = 0;
	}
}

/* Was there a k-th call at all? */
static bool disarm(const struct mode *m, uint64_t k)
{
	uint64_t calls = disk_fault.calls;

	disk_fault = (struct disk_fault){0};
	if (m->memory)
		calls = mem_fail_at(0, false);
	return calls >= k;
}

/* Cell by cell: what was, or what the operation makes. */
static void either(struct view *v, const struct view *after, const struct layout *l)
{
	for (unsigned i = 0; i < l->ncells; i++)
		for (unsigned k = 0; k < after->c[i].ncur; k++) {
			struct cell *c = &v->c[i];
			unsigned j = 0;

			while (j < c->ncur && c->cur[j] != after->c[i].cur[k])
				j++;
			if (j == c->ncur && c->ncur < ARRAY_SIZE(c->cur))
				c->cur[c->ncur++] = after->c[i].cur[k];
			for (j = 0; j < c->nall && c->all[j] != after->c[i].cur[k];)
				j++;
			if (j == c->nall && c->nall < ARRAY_SIZE(c->all))
				c->all[c->nall++] = after->c[i].cur[k];
		}
}

struct sweep {
	const struct fixture *f;
	struct world w;
	struct model before, after, mixed;
	struct seen seen;
};
static struct sweep s; /* too big for a stack */

/* The models that fit a failed operation: untouched, done, or (data, commit) something between. */
static const struct model *fits(const struct op *op, bool live, char *text, size_t n)
{
	if (model_match(&s.before, &s.w.l, &s.seen, live, text, n))
		return &s.before;
	if (model_match(&s.after, &s.w.l, &s.seen, live, text, n))
		return &s.after;
	if (op->kind >= OP_CREATE && op->kind != OP_COMMIT && op->kind != OP_REBASE)
		return NULL;
	s.mixed = s.before;
	either(&s.mixed.top, &s.after.top, &s.w.l);
	either(&s.mixed.base, &s.after.base, &s.w.l);
	for (unsigned i = 0; i < MAX_SNAPS; i++)
		either(&s.mixed.snap[i].v, &s.after.snap[i].v, &s.w.l);
	/* A commit may have grown the base already, a rebase may have been made. */
	s.mixed.base.size = s.seen.base.size;
	s.mixed.has_backing = s.seen.has_backing;
	return model_match(&s.mixed, &s.w.l, &s.seen, live, text, n) ? &s.mixed : NULL;
}

static bool co_see(struct block_node *n)
{
	struct error err = ERROR_INIT;
	int r = co_world_see(&s.w, n, &s.seen, &err);

	if (r)
		wrong("reading: %s", err.text);
	return !r;
}

/* After the fault: the running guest, then the retry. False when nothing more can be said. */
static bool co_after_fault(const struct op *op, int r, uint32_t version, bool flush_broken)
{
	struct error err = ERROR_INIT;
	const struct model *m;
	char text[200];

	/* Opening a snapshot writes out the caches, which needs flushes. */
	if (flush_broken)
		return false;
	if (!co_see(s.w.top))
		return false;
	if (!r) {
		if (!model_match(&s.after, &s.w.l, &s.seen, true, text, sizeof(text)))
			wrong("the operation succeeded, but %s", text);
		return !failed;
	}
	m = fits(op, true, text, sizeof(text));
	if (!m) {
		wrong("after the failed operation: %s", text);
		return false;
	}
	/* Done although it failed (after its switch): doing it again may be senseless. */
	if (m == &s.after && op->kind >= OP_CREATE) {
		s.before = s.after;
		return true;
	}
	r = co_op_run(&s.w, op, version, &err);
	if (r && !(m != &s.before && (op->kind == OP_REBASE || op->kind == OP_COMMIT))) {
		wrong("the retry fails: %s", err.text[0] ? err.text : errno_text(r));
		return false;
	}
	if (co_see(s.w.top) && !model_match(&s.after, &s.w.l, &s.seen, true, text, sizeof(text)))
		wrong("after the retry: %s", text);
	return !failed;
}

/* The file as it is left: sound, and with everything acknowledged. */
static void co_after_close(const struct op *op, bool durable, const struct model *last)
{
	struct error err = ERROR_INIT;
	struct block_node *n = NULL;
	struct refcheck rc;
	char text[200];
	int r;

	for (unsigned d = 0; d < DISKS; d++) {
		refcheck(disks[d].data, disks[d].size, &rc);
		if (refcheck_errors(&rc))
			wrong("disk %u: %s", d, rc.text);
	}
	r = co_world_open(s.w.c, 0, &n, &err);
	if (r) {
		wrong("reopen: %s", err.text);
		return;
	}
	if (co_see(n)) {
		if (durable && !model_match(last, &s.w.l, &s.seen, true, text, sizeof(text)))
			wrong("after the reopen: %s", text);
		else if (!durable && !fits(op, false, text, sizeof(text)))
			wrong("after the reopen: %s", text);
	}
	co_block_node_unref(n);
}

/* Has a flush of the base failed? Only a commit flushes it. */
static bool base_broken(struct block_node *top)
{
	struct block_node *base = block_backing(top);

	return base && (base->broken_flush || base->child[BLOCK_ROLE_FILE]->broken_flush);
}

/* One fault. Returns whether it was hit. */
static bool co_case(const struct fixture *f, const struct op *op, const struct mode *m, uint64_t k)
{
	struct op first = op_canonical(&f->l, OP_ALLOC, 1, 0);
	struct error err = ERROR_INIT;
	bool hit, flush_broken, durable;
	int r, rf;

	fixture_load(f, &s.w);
	s.w.c = f->c;
	r = co_world_open(f->c, BLOCK_OPEN_RDWR, &s.w.top, &err);
	if (!r)
		r = co_op_run(&s.w, &first, 50, &err);
	if (r) {
		wrong("cannot start: %s", err.text);
		co_block_node_unref(take(s.w.top));
		return false;
	}
	op_predict(&first, &s.w.l, 50, &s.w.m);
	s.before = s.after = s.w.m;
	op_predict(op, &s.w.l, 51, &s.after);

	arm(m, k);
	r = co_op_run(&s.w, op, 51, &err);
	rf = co_block_flush(s.w.top);
	hit = disarm(m, k);
	cases++;
	hits += hit;
	/* A flush that failed once never works again on this open; nor does what needs one. */
	flush_broken = rf && co_block_flush(s.w.top);
	flush_broken |= base_broken(s.w.top);
	if (flush_broken && m->memory)
		wrong("flush does not recover from a lack of memory");
	durable = false;
	if (co_after_fault(op, r, 51, flush_broken)) {
		durable = !co_block_flush(s.w.top);
		if (!durable && !flush_broken)
			wrong("the flush after the fault fails");
	}
	r = co_block_node_unref(take(s.w.top));
	if (r && !flush_broken && !failed)
		wrong("close: %s", errno_text(r));
	if (!failed)
		co_after_close(op, durable, &s.after);
	return hit;
}

/* Opening with the k-th read or allocation failing: an error or success, nothing else. */
static bool co_open_case(const struct fixture *f, const struct mode *m, uint64_t k)
{
	struct error err = ERROR_INIT;
	bool hit;
	int r;

	fixture_load(f, &s.w);
	arm(m, k);
	r = co_world_open(f->c, BLOCK_OPEN_RDWR, &s.w.top, &err);
	hit = disarm(m, k);
	cases++;
	hits += hit;
	if (r && !err.text[0])
		wrong("the open fails without a sentence");
	if (!r)
		co_block_node_unref(take(s.w.top));
	err = ERROR_INIT;
	r = co_world_open(f->c, BLOCK_OPEN_RDWR, &s.w.top, &err);
	if (r)
		wrong("the second open fails: %s", err.text);
	else
		co_block_node_unref(take(s.w.top));
	s.before = s.after = f->m;
	co_after_close(&(struct op){.kind = OP_FLUSH}, true, &f->m);
	return hit;
}

static void co_sweep(
	const struct fixture *f, const struct op *op, const char *name, const struct mode *m)
{
	uint64_t k = only.k ? only.k : 1;
	bool hit = true;

	while (hit && k < 3000) {
		snprintf(context, sizeof(context), "--config=%s --op=%s --mode=%s --k=%llu",
			f->c->name, name, m->name, (unsigned long long)k);
		failed = false;
		hit = op ? co_case(f, op, m, k) : co_open_case(f, m, k);
		failures += failed;
		k++;
		if (only.k)
			break;
	}
}

static void co_operation(const struct fixture *f, enum op_kind kind)
{
	unsigned before = failures;
	uint64_t had = hits;

	for (unsigned v = 0; v < (kind < OP_KINDS ? op_variants[kind] : 1); v++) {
		struct op op = {0};

		if (kind < OP_KINDS) {
			op = op_canonical(&f->l, kind, v, 0);
			if (op_must_fail(&op, f->c, &f->m))
				continue;
		}
		for (unsigned i = 0; i < ARRAY_SIZE(modes); i++)
			if (!only.mode || !strcmp(only.mode, modes[i].name))
				co_sweep(f, kind < OP_KINDS ? &op : NULL,
					kind < OP_KINDS ? op_names[kind] : "open", &modes[i]);
	}
	if (hits == had)
		return;
	printf("%sok %u - %s: every failing call of %s: %llu faults\n",
		failures == before ? "" : "not ", ++tests, f->c->name,
		kind < OP_KINDS ? op_names[kind] : "open", (unsigned long long)(hits - had));
	fflush(stdout);
}

static int co_main(void *arg)
{
	static struct fixture f;

	world_init();
	for (unsigned i = 0; i < nconfigs; i++) {
		struct error err = ERROR_INIT;
		bool wanted = false;

		for (unsigned j = 0; j < ARRAY_SIZE(sweep_configs); j++)
			wanted |= !strcmp(configs[i].name, sweep_configs[j]);
		if (only.config ? strcmp(only.config, configs[i].name) != 0 : !wanted)
			continue;
		if (co_fixture_make(&configs[i], &f, &err)) {
			printf("Bail out! %s: %s\n", configs[i].name, err.text);
			return -EINVAL;
		}
		for (unsigned kind = 0; kind <= OP_KINDS; kind++)
			if (!only.op || !strcmp(only.op, kind < OP_KINDS ? op_names[kind] : "open"))
				co_operation(&f, kind);
		fixture_free(&f);
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"config", 1, NULL, 'c'}, {"op", 1, NULL, 'o'},
		{"mode", 1, NULL, 'm'}, {"k", 1, NULL, 'k'}, {NULL, 0, NULL, 0}};
	int c, r;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			only.config = optarg;
			break;
		case 'o':
			only.op = optarg;
			break;
		case 'm':
			only.mode = optarg;
			break;
		case 'k':
			only.k = strtoull(optarg, NULL, 0);
			break;
		default:
			return 2;
		}
	}
	r = co_run(co_main, NULL);
	disk_free_all();
	printf("# %llu cases, %llu faults hit, %u wrong\n1..%u\n", (unsigned long long)cases,
		(unsigned long long)hits, failures, tests);
	return r || failures ? 1 : 0;
}
