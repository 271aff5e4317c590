/* SPDX-License-Identifier: MIT */
/* Extents of one layer and through chains, against what reading says. */
#include "tests/unit/layer.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

CO_TEST(test_layer)
{
	struct block_node *n = must_open("driver=raw,file.driver=mem,file.size=1M", RW);
	struct block_extent e;

	write_fill(n, 65536, 4096, 1);
	check_int(co_block_extent(n, 0, 4096, &e), 0);
	check_int(e.len, 4096); /* never more than asked for */
	check_int(co_block_extent(n, 0, MiB, &e), 0);
	check_int(e.len, 65536);
	check_int(e.flags, BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_MAPPED);
	check_int(co_block_extent(n, 65536 + 100, MiB, &e), 0);
	check_int(e.len, 3996);
	check_int(e.host_off, 65536 + 100);
	check(e.host == n->child[BLOCK_ROLE_FILE]);
	check_int(co_block_extent(n, 0, 0, &e), -EINVAL);
	check_int(co_block_extent(n, MiB, 1, &e), -EINVAL);
	check_int(co_block_extent(n, UINT64_MAX - 10, 1000, &e), -EINVAL);
	/* A store beyond its end is asked about by formats whose file is short. */
	check_int(co_block_extent(n->child[BLOCK_ROLE_FILE], 2 * MiB, 512, &e), 0);
	check(e.flags & BLOCK_EXTENT_ZERO);
	check_int(co_block_node_unref(n), 0);
}

CO_TEST(test_raw_window)
{
	struct block_node *n = must_open("driver=raw,offset=4096,size=64k,"
					 "file.driver=mem,file.size=1M",
		RW);
	struct block_extent e;

	write_fill(n, 8192, 4096, 1);
	check_int(co_block_extent(n, 0, 65536, &e), 0);
	check_int(e.len, 8192);
	check_int(e.host_off, 4096);
	check_int(co_block_extent(n, 8192, 65536, &e), 0);
	check_int(e.host_off, 4096 + 8192);
	check_int(co_block_extent(n, 12288, 65536, &e), 0);
	check_int(e.len, 65536 - 12288);
	check(e.flags & BLOCK_EXTENT_EOF);
	check_int(co_block_node_unref(n), 0);
}

/* Random layers: the chain's extents tile the disk, and say the truth. */
CO_TEST(test_random_chains)
{
	for (unsigned seed = 1; seed <= 20; seed++) {
		char name[16], below[16];
		struct block_node *n;
		struct block_extent e;

		srand(seed);
		for (int i = 0; i < 4; i++) {
			unsigned sectors = i == 3 ? 64 : 16 + (unsigned)rand() % 64;

			snprintf(name, sizeof(name), "r%d", i);
			snprintf(below, sizeof(below), "r%d", i - 1);
			layer_make(name, i ? below : NULL, "layer", sectors);
			n = must_open(test_path(name), RW);
			for (unsigned k = 0; k < sectors; k++)
				if (rand() % 4 == 0)
					write_fill(n, k * 512, 512, (unsigned)i);
			co_block_node_unref(n);
		}
		n = must_open(test_path("r3"), 0);
		for (uint64_t off = 0; off < 64 * 512; off += e.len) {
			check_int(co_block_extent_chain(n, NULL, off, UINT64_MAX / 2, &e), 0);
			check(e.len && is_aligned(e.len, 512));
			check(!(e.flags & BLOCK_EXTENT_EOF) == (off + e.len < 64 * 512));
			for (uint64_t at = off; at < off + e.len; at += 512) {
				if (e.flags & BLOCK_EXTENT_ZERO)
					check(reads_zero(n, at, 512));
				else
					check(reads_fill(n, at, 512, 3 - e.depth));
			}
		}
		/* Above r1 only: never a sector of r1 or r0 as data. */
		struct block_node *base = block_backing(block_backing(n));

		for (uint64_t off = 0; off < 64 * 512; off += e.len) {
			check_int(co_block_extent_chain(n, base, off, 64 * 512, &e), 0);
			if (e.flags & BLOCK_EXTENT_DATA)
				check(e.depth < 2);
		}
		co_block_node_unref(n);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layer),
		cmocka_unit_test(test_raw_window),
		cmocka_unit_test(test_random_chains),
	};

	return cmocka_run_group_tests(tests, layer_setup, test_teardown);
}
