/* SPDX-License-Identifier: MIT */
/* Dirty bitmaps against a plain array, their levels, and setting while others clear and search. */
#include "block/block.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_limits(void **state attr_unused)
{
	struct block_dirty *d;

	assert_int_equal(block_dirty_new(4096, 256, &d), -EINVAL);
	assert_int_equal(block_dirty_new(4096, 3000, &d), -EINVAL);
	assert_int_equal(block_dirty_new(0, 512, &d), 0);
	block_dirty_set(d, 0, 100);
	assert_int_equal(block_dirty_count(d), 0);
	block_dirty_free(d);
	assert_int_equal(block_dirty_new(1ULL << 40, 1u << 31, &d), 0);
	block_dirty_set(d, (1ULL << 40) - 1, 1);
	assert_int_equal(block_dirty_count(d), 1u << 31);
	block_dirty_free(d);
	block_dirty_free(NULL);
}

static bool model_next(const bool *model, uint64_t size, uint64_t off, bool dirty,
	uint64_t *ret_off, uint64_t *ret_len)
{
	uint64_t end;

	while (off < size && model[off / 512] != dirty)
		off = (off / 512 + 1) * 512;
	if (off >= size)
		return false;
	for (end = off; end < size && model[end / 512] == dirty;)
		end = (end / 512 + 1) * 512;
	*ret_off = off;
	*ret_len = MIN(end, size) - off;
	return true;
}

static void check_model(struct block_dirty *d, const bool *model, uint64_t size)
{
	uint64_t bytes = 0;

	for (uint64_t off = 0; off < size; off += 512) {
		assert_int_equal(block_dirty_test(d, off), model[off / 512]);
		bytes += model[off / 512] ? MIN(size - off, 512u) : 0;
	}
	assert_int_equal(block_dirty_count(d), bytes);
	for (unsigned i = 0; i < 40; i++) {
		uint64_t off = (uint64_t)rand() % size, o1 = 0, l1 = 0, o2 = 0, l2 = 0;
		bool dirty = rand() & 1;
		bool found = block_dirty_next(d, off, dirty, &o1, &l1);

		assert_int_equal(found, model_next(model, size, off, dirty, &o2, &l2));
		assert_int_equal(o1, o2);
		assert_int_equal(l1, l2);
	}
}

/* Random ranges, sizes on both sides of a word and of a level. */
static void test_model(void **state attr_unused)
{
	static const uint64_t sizes[] = {1, 511, 512, 513, 64 * 512, 64 * 512 + 1, 63 * 512 + 7,
		65 * 512, 4096 * 512, 4097 * 512 + 99};

	srand(7);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint64_t size = sizes[i], n = (size + 511) / 512;
		bool *model = calloc(n, sizeof(bool));
		struct block_dirty *d;

		assert_int_equal(block_dirty_new(size, 512, &d), 0);
		for (unsigned round = 0; round < 120; round++) {
			uint64_t off = (uint64_t)rand() % size;
			uint64_t len = (uint64_t)rand() % (round % 3 ? 3000 : size) + 1;
			uint64_t end = MIN(off + len, size);

			if (rand() % 2) {
				block_dirty_set(d, off, len);
				for (uint64_t g = off / 512; g * 512 < end; g++)
					model[g] = true;
			} else {
				block_dirty_clear(d, off, len);
				for (uint64_t g = (off + 511) / 512; g < n; g++)
					if ((g + 1) * 512 <= end || end == size)
						model[g] = model[g] && g * 512 >= end;
			}
			check_model(d, model, size);
		}
		block_dirty_free(d);
		free(model);
	}
}

/* One bit in 8 TiB is found without walking 2^27 of them, and no upper bit stays behind. */
static void test_sparse(void **state attr_unused)
{
	uint64_t size = 8ULL << 40, off, len;
	struct block_dirty *d;

	assert_int_equal(block_dirty_new(size, 65536, &d), 0);
	for (unsigned i = 0; i < 100000; i++) {
		uint64_t at = (size / 100001 * (i + 1)) & ~65535ULL;

		block_dirty_set(d, at, 1);
		assert_true(block_dirty_next(d, 0, true, &off, &len));
		assert_int_equal(off, at);
		assert_int_equal(len, 65536);
		block_dirty_clear(d, at, 65536);
		assert_false(block_dirty_next(d, 0, true, &off, &len));
	}
	block_dirty_free(d);
}

#define SETTERS 3
#define ROUNDS	20000u

struct race {
	struct block_dirty *d;
	uint64_t base;
	_Atomic bool stop;
};

static void *setter(void *arg)
{
	struct race *r = arg;

	for (unsigned i = 0; i < ROUNDS; i++)
		block_dirty_set(r->d, r->base + (i * 7919ULL % 4096) * 512, 512);
	return NULL;
}

static void *clearer(void *arg)
{
	struct race *r = arg;
	uint64_t off, len;

	while (!r->stop)
		if (block_dirty_next(r->d, 0, true, &off, &len))
			block_dirty_clear(r->d, off, len);
	return NULL;
}

/* Whatever is set once nobody clears any more is found: no upper bit was lost in the race. */
static void test_race(void **state attr_unused)
{
	struct race r[SETTERS + 1] = {0};
	pthread_t t[SETTERS + 1];
	struct block_dirty *d;
	uint64_t off, len, sum = 0;

	assert_int_equal(block_dirty_new(SETTERS * 4096 * 512ULL, 512, &d), 0);
	for (unsigned i = 0; i <= SETTERS; i++) {
		r[i].d = d;
		r[i].base = i * 4096 * 512ULL;
		assert_int_equal(
			pthread_create(&t[i], NULL, i < SETTERS ? setter : clearer, &r[i]), 0);
	}
	for (unsigned i = 0; i < SETTERS; i++)
		pthread_join(t[i], NULL);
	r[SETTERS].stop = true;
	pthread_join(t[SETTERS], NULL);
	for (off = 0; block_dirty_next(d, off, true, &off, &len); off += len)
		sum += len;
	assert_int_equal(sum, block_dirty_count(d));
	block_dirty_clear(d, 0, SETTERS * 4096 * 512ULL);
	assert_int_equal(block_dirty_count(d), 0);
	assert_false(block_dirty_next(d, 0, true, &off, &len));
	block_dirty_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_sparse),
		cmocka_unit_test(test_race),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
