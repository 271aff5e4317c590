/* SPDX-License-Identifier: MIT */
/* The verify filter: equal nodes pass, a difference is found at the read. */
#include "tests/unit/block.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

CO_TEST(test_verify)
{
	struct error err = ERROR_INIT;
	struct block_resize rs = {.size = 2 * MiB};
	struct block_node *n = must_open("driver=verify,test.driver=raw,test.file.driver=mem,"
					 "test.file.size=1M,raw.driver=raw,raw.file.driver=mem,"
					 "raw.file.size=1M",
		RW);
	char c;

	write_fill(n, 0, 100000, 1);
	check_int(co_block_zero(n, 5000, 20000, BLOCK_IO_UNMAP), 0);
	check_int(co_block_discard(n, 50000, 4096, 0), 0);
	check(reads_fill(n, 0, 5000, 1));
	check(reads_zero(n, 5000, 20000));
	check_int(co_block_resize(n, &rs, &err), 0);
	check_int(block_size(n), 2 * MiB);
	check(reads_zero(n, MiB, MiB));
	check_int(co_block_flush(n), 0);
	/* Somebody else changes one of the two. */
	check_int(co_block_pwrite(n->child[BLOCK_ROLE_FILE], 70000, "!", 1), 0);
	check_int(co_block_pread(n, 69999, &c, 1), 0);
	check_int(co_block_pread(n, 70000, &c, 1), -EIO);
	check_int(co_block_node_unref(n), 0);

	check_int(try_open("driver=verify,test.driver=mem,test.size=1M,raw.driver=mem,raw.size=2M",
			  RW, &n, &err),
		-EINVAL);
	check_int(try_open("driver=verify,test.driver=mem,test.size=1M", RW, &n, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_verify),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
