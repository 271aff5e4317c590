/* SPDX-License-Identifier: MIT */
/*
 * Every I/O and every allocation of a script of requests fails once: no crash, no leak of memory,
 * nothing half-done visible, and the same requests succeed when the fault is gone.
 */
#include "tests/unit/q2.h"

#define SECTORS 512u
#define SIZE    (SECTORS * 512)

struct script {
	const struct q2_test *t;
	struct block_node *mem, *file, *backing, *n;
	uint8_t *now;    /* content when every request so far had succeeded */
	uint8_t *before; /* ... before the first failure that was not made good yet */
	bool *unsure;    /* by sector: a request that covered it failed */
	unsigned failures;
};

struct step {
	enum { WRITE, ZERO, UNMAP, DISCARD, FLUSH, READ } kind;
	unsigned sector, n;
};

static const struct step steps[] = {
	{WRITE, 3, 10},
	{WRITE, 64, 130},
	{READ, 0, 200},
	{FLUSH, 0, 0},
	{ZERO, 70, 64},
	{UNMAP, 128, 32},
	{WRITE, 100, 3},
	{WRITE, 300, 1},
	{DISCARD, 0, 64},
	{WRITE, 8, 8},
	{FLUSH, 0, 0},
	{WRITE, 0, 64},
	{DISCARD, 128, 128},
	{FLUSH, 0, 0},
	{WRITE, 130, 200},
	{READ, 100, 300},
	{WRITE, 500, 12},
	{ZERO, 490, 22},
	{FLUSH, 0, 0},
};

static void script_open(struct script *s, const struct q2_test *t)
{
	struct block_open_opts o = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP, .trust = &block_trust_local};

	*s = (struct script){.t = t};
	s->now = calloc(1, SIZE);
	s->before = calloc(1, SIZE);
	s->unsure = calloc(SECTORS, sizeof(bool));
	if (t->backing) {
		struct mem_content *c;

		fill(s->now, SIZE, 0, 9);
		memcpy(s->before, s->now, SIZE);
		check_int(mem_content_new(SIZE, &c), 0);
		check_int(mem_content_write(c, 0, s->now, SIZE), 0);
		s->backing = q2_test_mem(c);
	}
	s->mem = q2_test_mem(q2_test_build(t));
	check_int(co_block_open_on(&block_fault, block_node_ref(s->mem), NULL, &o, &s->file, NULL),
		0);
	s->n = q2_test_open(block_node_ref(s->file), t->opts, s->backing);
}

static void script_close(struct script *s)
{
	co_block_node_unref(s->n);
	co_block_node_unref(s->file);
	co_block_node_unref(s->mem);
	co_block_node_unref(s->backing);
	free(s->now);
	free(s->before);
	free(s->unsure);
}

static int step_run(struct script *s, const struct step *e, unsigned seed)
{
	uint64_t off = e->sector * 512ULL, len = e->n * 512ULL;
	static uint8_t buf[SIZE];

	switch (e->kind) {
	case WRITE:
		fill(buf, len, off, seed);
		return co_block_pwrite(s->n, off, buf, len);
	case ZERO:
		return co_block_zero(s->n, off, len, 0);
	case UNMAP:
		return co_block_zero(s->n, off, len, BLOCK_IO_UNMAP);
	case DISCARD:
		return co_block_discard(s->n, off, len, 0);
	case FLUSH:
		return co_block_flush(s->n);
	case READ:
		return co_block_pread(s->n, off, buf, len);
	}
	return 0;
}

static void step_model(struct script *s, const struct step *req, unsigned seed, bool failed)
{
	unsigned per = (1u << s->t->cluster_bits) / 512;
	struct step whole = *req, *e = &whole;
	uint64_t off, len;

	if (e->kind == FLUSH || e->kind == READ)
		return;
	if (e->kind == DISCARD) {
		/* Whole clusters only, and none in version 2 on a backing file. */
		e->sector = (req->sector + per - 1) / per * per;
		e->n = (req->sector + req->n) / per * per - e->sector;
		if ((int)e->n <= 0 || (s->t->version < 3 && s->t->backing))
			return;
	}
	off = e->sector * 512ULL;
	len = e->n * 512ULL;
	for (unsigned i = e->sector; i < e->sector + e->n; i++) {
		if (failed && !s->unsure[i])
			memcpy(s->before + i * 512, s->now + i * 512, 512);
		s->unsure[i] = failed || (s->unsure[i] && e->kind == DISCARD);
	}
	if (e->kind == WRITE)
		fill(s->now + off, len, off, seed);
	else
		memset(s->now + off, 0, len);
}

static void content_check(struct script *s, struct block_node *n)
{
	uint8_t buf[512];

	for (unsigned i = 0; i < SECTORS; i++) {
		check_int(co_block_pread(n, i * 512, buf, 512), 0);
		if (!memcmp(buf, s->now + i * 512, 512))
			continue;
		if (s->unsure[i] && !memcmp(buf, s->before + i * 512, 512))
			continue;
		fprintf(stderr, "sector %u holds foreign content\n", i);
		abort();
	}
}

static void script_run(struct script *s)
{
	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
		int r = step_run(s, &steps[i], i + 1);

		s->failures += r < 0;
		step_model(s, &steps[i], i + 1, r < 0);
	}
}

/* With the fault gone: what failed can be done again, and all of it survives. */
static void script_finish(struct script *s)
{
	struct mem_content *c;
	struct block_node *n;

	content_check(s, s->n);
	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
		if (steps[i].kind == FLUSH)
			continue;
		check_int(step_run(s, &steps[i], i + 1), 0);
		step_model(s, &steps[i], i + 1, false);
	}
	memset(s->unsure, 0, SECTORS);
	content_check(s, s->n);
	check_int(co_block_node_unref(take(s->n)), 0);
	check_int(mem_node_snapshot(s->mem, &c), 0);
	q2_test_structure(c, false);
	n = q2_test_open(q2_test_mem(c), s->t->opts, s->backing);
	content_check(s, n);
	check_int(co_block_node_unref(n), 0);
}

static const struct q2_test shapes[] = {
	{3, 9, 4, false, false, false, SIZE, NULL},
	{3, 9, 6, false, false, true, SIZE, "l2-cache-size=1024,refcount-cache-size=1024"},
	{2, 9, 0 + 4, false, false, true, SIZE, "l2-cache-size=1024"},
	{3, 12, 4, false, true, false, SIZE, NULL},
	{3, 14, 4, true, false, true, SIZE, NULL},
	{3, 16, 1, false, false, true, SIZE, NULL},
};

static unsigned io_fault(const struct q2_test *t, uint64_t k, int error, uint32_t ops)
{
	struct fault_rule rule = {.ops = ops, .at = k, .error = error};
	unsigned failures;
	struct script s;

	script_open(&s, t);
	check_int(fault_add(s.file, &rule), 0);
	script_run(&s);
	fault_clear(s.file);
	failures = s.failures;
	script_finish(&s);
	script_close(&s);
	return failures;
}

/* Not flushes: a store whose flush failed once never flushes again (I9), so nothing can be retried.
 */
CO_TEST(every_io_fails_once)
{
	static const int errors[] = {-EIO, -ENOSPC};
	uint32_t ops = FAULT_READ | FAULT_WRITE | FAULT_ZERO | FAULT_DISCARD;
	unsigned failed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		for (size_t e = 0; e < ARRAY_SIZE(errors); e++) {
			struct script s;
			uint64_t calls;

			script_open(&s, &shapes[i]);
			script_run(&s);
			calls = fault_calls(s.file, ops);
			script_close(&s);
			for (uint64_t k = 1; k <= calls; k += 1 + k / 40)
				failed += io_fault(&shapes[i], k, errors[e], ops);
		}
	check(failed > 100);
}

/* I9, and the rest goes on: reads and the structure stay right. */
CO_TEST(every_flush_fails_once)
{
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		for (uint64_t k = 1; k < 30; k++) {
			struct fault_rule rule = {.ops = FAULT_FLUSH, .at = k, .error = -EIO};
			struct mem_content *c;
			struct script s;

			script_open(&s, &shapes[i]);
			check_int(fault_add(s.file, &rule), 0);
			script_run(&s);
			fault_clear(s.file);
			content_check(&s, s.n);
			co_block_node_unref(take(s.n));
			check_int(mem_node_snapshot(s.mem, &c), 0);
			if (!shapes[i].lazy)
				q2_test_structure(c, false);
			mem_content_free(c);
			script_close(&s);
		}
}

CO_TEST(every_allocation_fails_once)
{
	unsigned failed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		for (uint64_t k = 1; k < 400; k += 1 + k / 20) {
			struct script s;

			script_open(&s, &shapes[i]);
			mem_fail_at(k, false);
			script_run(&s);
			mem_fail_at(0, false);
			failed += s.failures;
			script_finish(&s);
			script_close(&s);
		}
	check(failed > 50);
}

/* Opening under want of memory: an error, never a crash, and everything is given back. */
CO_TEST(every_allocation_of_open_fails)
{
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		for (uint64_t k = 1; k < 60; k++) {
			struct block_node *file = q2_test_mem(q2_test_build(&shapes[i])), *n = NULL;
			struct error err = ERROR_INIT;
			int r;

			mem_fail_at(k, false);
			r = q2_test_try_open(file, NULL, BLOCK_OPEN_RDWR, NULL, &n, &err);
			mem_fail_at(0, false);
			check(r == 0 || (r == -ENOMEM && *err.text));
			if (r == 0)
				check_int(co_block_node_unref(n), 0);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_io_fails_once),
		cmocka_unit_test(every_flush_fails_once),
		cmocka_unit_test(every_allocation_fails_once),
		cmocka_unit_test(every_allocation_of_open_fails),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
