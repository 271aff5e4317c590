/* SPDX-License-Identifier: MIT */
/* Allocation: what callers rely on, and the hook that makes the k-th one fail. */
#include "base/mem.h"
#include "tests/unit/unit.h"

static int teardown(void **state)
{
	mem_fail_at(0, false);
	return 0;
}

static int setup(void **state)
{
	return teardown(state);
}

static void test_allocations(void **state)
{
	_cleanup_free_ unsigned char *a = mem_alloc(0), *z = mem_zalloc(1000);
	_cleanup_free_ char *s = mem_strdup("abc"), *n = mem_strndup("abcdef", 4);
	_cleanup_free_ char *f = mem_printf("%d-%s", 42, "x");
	_cleanup_free_ void *big = mem_aligned(4096, 100);

	assert_true(a && z && s && n && f && big);
	a[0] = 1; /* zero bytes are one */
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(z[i], 0);
	assert_string_equal(s, "abc");
	assert_string_equal(n, "abcd");
	assert_string_equal(f, "42-x");
	assert_int_equal((uintptr_t)big % 4096, 0);
	mem_free(NULL);
}

static void test_strndup_stops_at_the_end(void **state)
{
	const char raw[] = {'a', 'b', 'c'};
	_cleanup_free_ char *s = mem_strndup(raw, 3);
	_cleanup_free_ char *t = mem_strndup("ab", 100);

	assert_string_equal(s, "abc");
	assert_string_equal(t, "ab");
}

static void test_calloc_overflow(void **state)
{
	volatile size_t half = SIZE_MAX / 2;

	assert_null(mem_calloc(half, 3));
	assert_null(mem_calloc(3, half));
}

static void test_realloc_keeps_on_failure(void **state)
{
	_cleanup_free_ char *p = mem_strdup("keep");

	mem_fail_at(1, false);
	assert_null(mem_realloc(p, 1000));
	assert_string_equal(p, "keep");
	p = mem_realloc(p, 1000);
	assert_string_equal(p, "keep");
}

/* How many of ten allocations fail, as a bit mask. */
static unsigned ten(void)
{
	unsigned failed = 0;

	for (unsigned i = 0; i < 10; i++) {
		void *p = mem_alloc(8);

		failed |= !p ? 1u << i : 0;
		mem_free(p);
	}
	return failed;
}

static void test_kth_fails(void **state)
{
	mem_fail_at(1, false);
	assert_int_equal(ten(), 1);
	assert_int_equal(mem_fail_at(4, false), 10);
	assert_int_equal(ten(), 1 << 3);
	mem_fail_at(4, true);
	assert_int_equal(ten(), 0x3f8);
	mem_fail_at(0, true);
	assert_int_equal(ten(), 0);
	assert_int_equal(mem_fail_at(0, false), 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		unit_test_fixture(test_allocations),
		unit_test_fixture(test_strndup_stops_at_the_end),
		unit_test_fixture(test_calloc_overflow),
		unit_test_fixture(test_realloc_keeps_on_failure),
		unit_test_fixture(test_kth_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
