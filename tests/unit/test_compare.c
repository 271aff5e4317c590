/* SPDX-License-Identifier: MIT */
/* Comparing: the exact first difference for any timing, what is read, sizes, strictness, errors. */
#include "tests/unit/store.h"

#define MIB (1024 * 1024)

struct fixture {
	struct store a, b;
	struct block_compare c;
	struct block_job job;
	struct error err;
	int result;
	bool failed_is_b;
};

static void setup(struct fixture *f, uint64_t a, uint64_t b)
{
	*f = (struct fixture){0};
	store_init(&f->a, a);
	store_init(&f->b, b);
	block_job_init(&f->job);
	f->c.job = &f->job;
}

static void teardown(struct fixture *f)
{
	store_free(&f->a);
	store_free(&f->b);
}

static int co_do_compare(void *arg)
{
	struct fixture *f = arg;

	f->c.a = store_co_node(&f->a);
	f->c.b = store_co_node(&f->b);
	f->result = co_block_compare(&f->c, &f->err);
	f->failed_is_b = f->c.failed == f->c.b;
	co_block_node_unref(f->c.a);
	co_block_node_unref(f->c.b);
	return 0;
}

static void compare(struct fixture *f, enum ring_kind kind, uint64_t seed)
{
	store_run(kind, seed, co_do_compare, f);
}

/* Same content, told differently: zeroes as data here and as holes there. */
static void test_same(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 20 * MIB + 100, 20 * MIB + 100);
	store_set(&f.a, 0, 5 * 256, STORE_DATA, 1);
	store_set(&f.b, 0, 5 * 256, STORE_DATA, 1);
	store_set(&f.a, 1500, 600, STORE_ZERO, 0);
	store_set(&f.b, 1500, 600, STORE_UNALLOCATED, 0);
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 0);
	assert_int_equal(f.job.done, f.a.size);
	assert_int_equal(f.a.hole_reads + f.b.hole_reads, 0);
	assert_int_equal(f.a.read_bytes, f.a.size - 600 * STORE_BLOCK);
	teardown(&f);
}

/* Differences at random places, many at once: the first sector is told. */
static void test_first(void **state attr_unused)
{
	srand(3);
	for (unsigned i = 0; i < 120; i++) {
		uint64_t size = 1 + (uint64_t)rand() % (24 * MIB), first = UINT64_MAX;
		struct fixture f;

		setup(&f, size, size);
		for (uint64_t b = 0, n; b < size / STORE_BLOCK; b += n) {
			n = MIN((uint64_t)rand() % 500 + 1, size / STORE_BLOCK - b);
			store_set(&f.a, b, n, rand() % 3, i);
			memcpy(f.b.data + b * STORE_BLOCK, f.a.data + b * STORE_BLOCK,
				n * STORE_BLOCK);
			memcpy(f.b.kind + b, f.a.kind + b, n);
		}
		for (unsigned k = 0; k < i % 5; k++) {
			uint64_t at = (uint64_t)rand() % size;

			f.b.data[at] ^= 0x40;
			f.b.kind[at / STORE_BLOCK] = STORE_DATA;
			first = MIN(first, at);
		}
		if (first != UINT64_MAX && f.a.data[first] == f.b.data[first])
			first = UINT64_MAX; /* flipped twice: leave this round */
		compare(&f, i % 2 ? RING_DEFAULT : RING_SIM, i);
		if (first != UINT64_MAX) {
			assert_int_equal(f.result, 1);
			assert_int_equal(f.c.diff_off, first & ~511ULL);
			assert_false(f.c.diff_alloc);
		} else if (i % 5 == 0) {
			assert_int_equal(f.result, 0);
		}
		teardown(&f);
	}
}

static void test_sizes(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 6 * MIB, 9 * MIB);
	store_set(&f.a, 0, 6 * 256, STORE_DATA, 1);
	store_set(&f.b, 0, 6 * 256, STORE_DATA, 1);
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 0); /* the tail is zero */
	f.b.data[7 * MIB + 1000] = 1;
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 1);
	assert_int_equal(f.c.diff_off, 7 * MIB + 512);
	teardown(&f);
	setup(&f, 0, 0);
	compare(&f, RING_SIM, 1);
	assert_int_equal(f.result, 0);
	teardown(&f);
}

static void test_strict(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 6 * MIB, 6 * MIB);
	store_set(&f.a, 600, 10, STORE_ZERO, 0);
	store_set(&f.b, 600, 10, STORE_UNALLOCATED, 0);
	f.c.strict = true;
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 1);
	assert_true(f.c.diff_alloc);
	assert_int_equal(f.c.diff_off, 600 * STORE_BLOCK);
	f.a.data[5000] = 1; /* content differs before that */
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 1);
	assert_false(f.c.diff_alloc);
	assert_int_equal(f.c.diff_off, 4608);
	teardown(&f);
}

static void test_error(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 16 * MIB, 16 * MIB);
	f.b.fail_read_off = 9 * MIB;
	f.b.fail_read_len = 1;
	f.b.data[15 * MIB] = 1; /* not reached */
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, -EIO);
	assert_true(f.failed_is_b);
	assert_non_null(strstr(f.err.text, "9437184"));
	f.a.data[2 * MIB] = 1; /* comes first */
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 1);
	assert_int_equal(f.c.diff_off, 2 * MIB);
	block_job_cancel(&f.job);
	compare(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, -ECANCELED);
	teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same),
		cmocka_unit_test(test_first),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_strict),
		cmocka_unit_test(test_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
