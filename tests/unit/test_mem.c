/* SPDX-License-Identifier: MIT */
/* Files in memory: content against a plain array, shared chunks, hashes, failing allocations. */
#include "tests/unit/block.h"

#define MAX_SIZE 100000

static void test_random_content(void **state)
{
	for (unsigned seed = 0; seed < 20; seed++) {
		char *shadow = calloc(1, MAX_SIZE), *buf = malloc(MAX_SIZE);
		struct mem_content *c;
		size_t size = 5000;

		srand(seed);
		assert_int_equal(mem_content_new(size, &c), 0);
		for (int i = 0; i < 500; i++) {
			size_t off = (size_t)rand() % MAX_SIZE;
			size_t len = (size_t)rand() % MIN(MAX_SIZE - off, (size_t)20000);

			switch (rand() % 5) {
			case 0:
			case 1:
				fill(buf, len, off, (unsigned)i);
				assert_int_equal(mem_content_write(c, off, buf, len), 0);
				memcpy(shadow + off, buf, len);
				size = len ? MAX(size, off + len) : size;
				break;
			case 2:
				assert_int_equal(mem_content_zero(c, off, len), 0);
				memset(shadow + off, 0, len);
				break;
			case 3:
				assert_int_equal(mem_content_resize(c, off), 0);
				if (off < size)
					memset(shadow + off, 0, size - off);
				size = off;
				break;
			default:
				mem_content_read(c, off, buf, len);
				assert_memory_equal(buf, shadow + off, len);
			}
			assert_int_equal(mem_content_size(c), size);
		}
		mem_content_read(c, 0, buf, MAX_SIZE);
		assert_memory_equal(buf, shadow, MAX_SIZE);
		mem_content_free(c);
		free(shadow);
		free(buf);
	}
}

static void test_sharing(void **state)
{
	struct mem_content *a, *b;
	char buf[10000], other[10000];

	fill(buf, sizeof(buf), 0, 1);
	assert_int_equal(mem_content_new(0, &a), 0);
	assert_int_equal(mem_content_write(a, 0, buf, sizeof(buf)), 0);
	assert_int_equal(mem_content_dup(a, &b), 0);
	assert_int_equal(mem_content_hash(a), mem_content_hash(b));
	assert_int_equal(mem_content_write(b, 5000, "changed", 7), 0);
	assert_int_not_equal(mem_content_hash(a), mem_content_hash(b));
	mem_content_read(a, 0, other, sizeof(other));
	assert_memory_equal(buf, other, sizeof(buf));
	mem_content_free(a);
	mem_content_read(b, 0, other, sizeof(other));
	assert_memory_equal(other + 5000, "changed", 7);
	assert_memory_equal(other, buf, 5000);
	/* Written zeroes and holes are the same content. */
	assert_int_equal(mem_content_dup(b, &a), 0);
	assert_int_equal(mem_content_zero(a, 0, 8192), 0);
	memset(buf, 0, sizeof(buf));
	assert_int_equal(mem_content_write(b, 0, buf, 8192), 0);
	assert_int_equal(mem_content_hash(a), mem_content_hash(b));
	assert_int_equal(mem_content_resize(a, 9999), 0);
	assert_int_not_equal(mem_content_hash(a), mem_content_hash(b));
	mem_content_free(a);
	mem_content_free(b);
	mem_content_free(NULL);
}

static void test_too_large(void **state)
{
	struct mem_content *c;
	char byte = 1;

	assert_int_equal(mem_content_new(UINT64_MAX / 2, &c), -EFBIG);
	assert_int_equal(mem_content_new(0, &c), 0);
	assert_int_equal(mem_content_write(c, 1ULL << 60, &byte, 1), -EFBIG);
	assert_int_equal(mem_content_size(c), 0);
	mem_content_free(c);
}

static void test_no_memory(void **state)
{
	char buf[20000], got[20000];

	fill(buf, sizeof(buf), 0, 1);
	for (uint64_t k = 1;; k++) {
		struct mem_content *c, *d = NULL;
		int r;

		assert_int_equal(mem_content_new(0, &c), 0);
		mem_fail_at(k, true);
		r = mem_content_write(c, 0, buf, sizeof(buf));
		if (!r)
			r = mem_content_dup(c, &d);
		if (!r)
			r = mem_content_write(d, 100, buf, 10000);
		mem_fail_at(0, false);
		assert_true(!r || r == -ENOMEM);
		if (mem_content_size(c) == sizeof(buf)) {
			mem_content_read(c, 0, got, sizeof(got));
			assert_memory_equal(got, buf, sizeof(buf));
		}
		mem_content_free(c);
		mem_content_free(d);
		if (!r)
			break;
	}
}

CO_TEST(test_node)
{
	struct block_open_opts o = {.flags = BLOCK_OPEN_RDWR, .trust = &block_trust_local};
	struct error err = ERROR_INIT;
	struct mem_content *c, *snap;
	struct block_node *n;
	char buf[100];

	check_int(mem_content_new(1000, &c), 0);
	check_int(mem_content_write(c, 0, "hello", 5), 0);
	check_int(co_mem_open(c, &o, &n, &err), 0);
	check_int(block_size(n), 1000);
	check_int(co_block_pread(n, 0, buf, 5), 0);
	check(!memcmp(buf, "hello", 5));
	check_int(mem_node_snapshot(n, &snap), 0);
	check_int(co_block_pwrite(n, 0, "later", 5), 0);
	mem_content_read(snap, 0, buf, 5);
	check(!memcmp(buf, "hello", 5));
	check_int(co_block_node_unref(n), 0);
	mem_content_free(snap);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_content),
		cmocka_unit_test(test_sharing),
		cmocka_unit_test(test_too_large),
		cmocka_unit_test(test_no_memory),
		cmocka_unit_test(test_node),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
