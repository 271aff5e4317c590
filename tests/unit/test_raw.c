/* SPDX-License-Identifier: MIT */
/* raw: windows by offset and size, resizing, odd lengths. The guard of probed images is tested in
 * test_node. */
#include "tests/unit/block.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

CO_TEST(test_window)
{
	struct block_node *n = must_open("driver=raw,offset=1000,size=8k,"
					 "file.driver=mem,file.size=64k",
		RW);
	struct block_node *file = n->child[BLOCK_ROLE_FILE];
	struct block_resize r = {.size = 16384};
	struct error err = ERROR_INIT;
	char c;

	check_int(block_size(n), 8192);
	write_fill(n, 0, 8192, 1);
	check_int(co_block_pread(n, 8192, &c, 1), -EIO);
	check_int(co_block_pwrite(n, 8191, "xy", 2), -EIO);
	check(reads_zero(file, 0, 1000));
	check(reads_zero(file, 1000 + 8192, 1000));
	check_int(co_block_zero(n, 100, 50, 0), 0);
	check(reads_zero(file, 1100, 50));
	check(!reads_zero(file, 1150, 10));
	check_int(co_block_discard(n, 0, 8192, 0), 0);
	check(reads_zero(file, 0, 65536));
	check_int(co_block_resize(n, &r, &err), -ENOTSUP);
	check_int(co_block_node_unref(n), 0);
}

CO_TEST(test_bad_windows)
{
	static const char *const bad[] = {"offset=65537", "size=65537", "offset=512,size=65536",
		"size=1000", "offset=9223372036854775807", "size=9223372036854775807", "offset=-1"};
	struct error err = ERROR_INIT;
	struct block_node *n;
	char text[128];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		snprintf(text, sizeof(text), "driver=raw,%s,file.driver=mem,file.size=64k", bad[i]);
		check_int(try_open(text, RW, &n, &err), -EINVAL);
		check(err.text[0]);
	}
	n = must_open("driver=raw,offset=65536,file.driver=mem,file.size=64k", RW);
	check_int(block_size(n), 0);
	co_block_node_unref(n);
}

CO_TEST(test_resize_behind_offset)
{
	struct block_node *n = must_open("driver=raw,offset=4096,file.driver=mem,file.size=8k", RW);
	struct block_resize r = {.size = 65536};
	struct error err = ERROR_INIT;

	check_int(block_size(n), 4096);
	check_int(co_block_resize(n, &r, &err), 0);
	check_int(block_size(n), 65536);
	check_int(block_size(n->child[BLOCK_ROLE_FILE]), 65536 + 4096);
	r.size = UINT64_MAX - 100;
	check_int(co_block_resize(n, &r, &err), -EFBIG);
	co_block_node_unref(n);
}

/* A format may live in a window of a raw image, and grows it. */
CO_TEST(test_raw_as_store)
{
	struct block_open_opts o = {.flags = RW | BLOCK_OPEN_STORE,
		.perm = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
		.shared = BLOCK_PERM_ALL,
		.trust = &block_trust_local};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct error err = ERROR_INIT;
	struct block_node *n;

	check_int(conf_parse_options(
			  "driver=raw,offset=512,file.driver=mem,file.size=512", NULL, &spec, &err),
		0);
	check_int(co_block_open(spec, &o, &n, &err), 0);
	write_fill(n, 1000, 100, 1);
	check_int(block_size(n), 1100);
	check(reads_fill(n, 1000, 100, 1));
	check(reads_zero(n, 0, 1000));
	check_int(block_size(n->child[BLOCK_ROLE_FILE]), 1612);
	co_block_node_unref(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_window),
		cmocka_unit_test(test_bad_windows),
		cmocka_unit_test(test_resize_behind_offset),
		cmocka_unit_test(test_raw_as_store),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
