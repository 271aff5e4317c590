/* SPDX-License-Identifier: MIT */
/* iovec slices against a flat model, zero detection at every position. */
#include "base/iov.h"
#include "base/mem.h"
#include "tests/unit/unit.h"

#include <stdlib.h>

enum { SIZE = 4096, SEGS = 40 };

static unsigned rnd_state;

static unsigned rnd(unsigned n)
{
	rnd_state = rnd_state * 1103515245u + 12345u;
	return (rnd_state >> 16) % n;
}

/* A buffer in SEGS pieces, some of them empty, and the same bytes in order. */
static unsigned char store[SIZE], flat[SIZE];
static struct iovec segs[SEGS];

static struct iov_slice scatter(unsigned seed)
{
	size_t at = 0;

	rnd_state = seed;
	for (unsigned i = 0; i < SEGS; i++) {
		size_t n = i == SEGS - 1 ? SIZE - at : MIN((size_t)rnd(200), SIZE - at);

		if (rnd(5) == 0 && i != SEGS - 1)
			n = 0;
		segs[i] = (struct iovec){store + at, n};
		at += n;
	}
	for (size_t i = 0; i < SIZE; i++)
		flat[i] = store[i] = (unsigned char)rnd(256);
	return (struct iov_slice){segs, SEGS, 0, SIZE};
}

static void test_cut_and_copy(void **state)
{
	unsigned char out[SIZE];

	for (unsigned seed = 0; seed < 300; seed++) {
		struct iov_slice s = scatter(seed);
		size_t off = 0;

		for (unsigned cut = 0; cut < 5 && s.len; cut++) {
			size_t o = rnd((unsigned)s.len), n = rnd((unsigned)(s.len - o) + 1);

			s = iov_cut(s, o, n);
			off += o;
			assert_int_equal(s.len, n);
			memset(out, 0xee, sizeof(out));
			iov_copy_from(out, s);
			assert_memory_equal(out, flat + off, n);
			assert_true(n == SIZE || out[n] == 0xee);
		}
	}
}

static void test_copy_to_and_fill(void **state)
{
	unsigned char in[SIZE];

	for (unsigned seed = 0; seed < 300; seed++) {
		struct iov_slice s = scatter(seed);
		size_t o = rnd(SIZE), n = rnd((unsigned)(SIZE - o) + 1);

		for (size_t i = 0; i < SIZE; i++)
			in[i] = (unsigned char)rnd(256);
		iov_copy_to(iov_cut(s, o, n), in);
		memcpy(flat + o, in, n);
		assert_memory_equal(store, flat, SIZE);
		o = rnd(SIZE);
		n = rnd((unsigned)(SIZE - o) + 1);
		iov_fill(iov_cut(s, o, n), 0x5a);
		memset(flat + o, 0x5a, n);
		assert_memory_equal(store, flat, SIZE);
	}
}

static void test_export(void **state)
{
	struct iovec out[SEGS];
	size_t covered;

	for (unsigned seed = 0; seed < 300; seed++) {
		struct iov_slice s = scatter(seed);
		size_t o = rnd(SIZE), n = rnd((unsigned)(SIZE - o) + 1), at = o;
		unsigned max = 1 + rnd(SEGS), k;

		s = iov_cut(s, o, n);
		k = iov_export(s, out, max, &covered);
		assert_true(k <= max && covered <= n);
		assert_int_equal(k, MIN(iov_segments(s), max));
		assert_true(covered == n || k == max);
		for (unsigned i = 0; i < k; i++) {
			assert_true(out[i].iov_len > 0);
			assert_ptr_equal(out[i].iov_base, store + at);
			at += out[i].iov_len;
		}
		assert_int_equal(at - o, covered);
	}
}

static void test_flat(void **state)
{
	unsigned char a[64];
	struct iovec v[3] = {{a, 10}, {a + 10, 0}, {a + 10, 20}};
	struct iov_slice s = {v, 3, 0, 30};

	assert_ptr_equal(iov_flat(s), a); /* contiguous over several segments */
	assert_ptr_equal(iov_flat(iov_cut(s, 15, 10)), a + 15);
	v[2].iov_base = a + 11;
	assert_null(iov_flat(s));
	assert_ptr_equal(iov_flat(iov_cut(s, 2, 8)), a + 2);
	assert_ptr_equal(iov_flat(iov_cut(s, 10, 20)), a + 11);
}

static void test_skip_beyond_the_first(void **state)
{
	unsigned char out[8];
	struct iov_slice s = scatter(7);

	s.skip = 3000;
	s.len = 8;
	iov_copy_from(out, s);
	assert_memory_equal(out, flat + 3000, 8);
	assert_int_equal(iov_cut(s, 4, 4).len, 4);
}

static void test_aligned(void **state)
{
	_Alignas(512) static unsigned char a[2048];
	struct iovec v[2] = {{a, 512}, {a + 1024, 1024}};
	struct iov_slice s = {v, 2, 0, 1536};

	assert_true(iov_aligned(s, 512));
	assert_false(iov_aligned(s, 1024));
	assert_false(iov_aligned(iov_cut(s, 1, 511), 512));
	assert_true(iov_aligned(iov_cut(s, 512, 1024), 1024));
	assert_false(iov_aligned(iov_cut(s, 512, 1000), 512));
}

/* One byte anywhere is found, at any alignment and length; bytes around do not matter. */
static void test_zero_detection(void **state)
{
	unsigned char *b = mem_zalloc(2100);

	assert_non_null(b);
	for (size_t start = 0; start < 9; start++) {
		for (size_t n = 0; n < 1100; n += n < 300 ? 1 : 37) {
			memset(b, 0xff, 2100);
			memset(b + start + 1, 0, n);
			assert_true(mem_is_zero(b + start + 1, n));
			for (size_t i = 0; i < n; i += n < 300 ? 7 : 61) {
				b[start + 1 + i] = 0x80;
				assert_false(mem_is_zero(b + start + 1, n));
				b[start + 1 + i] = 0;
			}
			if (n) {
				b[start + n] = 1; /* the last one */
				assert_false(mem_is_zero(b + start + 1, n));
			}
		}
	}
	mem_free(b);
}

static void test_zero_detection_in_slices(void **state)
{
	struct iov_slice s = scatter(3);

	memset(store, 0, SIZE);
	assert_true(iov_is_zero(s));
	for (size_t i = 0; i < SIZE; i += 13) {
		store[i] = 1;
		assert_false(iov_is_zero(s));
		assert_true(iov_is_zero(iov_cut(s, i + 1, SIZE - i - 1)));
		assert_true(iov_is_zero(iov_cut(s, 0, i)));
		store[i] = 0;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_and_copy),
		cmocka_unit_test(test_copy_to_and_fill),
		cmocka_unit_test(test_export),
		cmocka_unit_test(test_flat),
		cmocka_unit_test(test_skip_beyond_the_first),
		cmocka_unit_test(test_aligned),
		cmocka_unit_test(test_zero_detection),
		cmocka_unit_test(test_zero_detection_in_slices),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
