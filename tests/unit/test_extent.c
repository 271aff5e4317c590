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

/* --- the memory of chain.c ------------------------------------------------------------------ */

#define SECTORS 1024u

/* Layers h0 (the base) to h4, each with random sectors; h2 is short. */
static struct block_node *random_chain(unsigned seed, const char *options)
{
	char name[16], below[16], text[640];

	srand(seed);
	for (int i = 0; i < 5; i++) {
		unsigned sectors = i == 2 ? SECTORS / 2 + 3 : SECTORS;
		struct block_node *n;

		snprintf(name, sizeof(name), "h%d", i);
		snprintf(below, sizeof(below), "h%d", i - 1);
		layer_make(name, i ? below : NULL, "layer", sectors);
		n = must_open(test_path(name), RW);
		for (unsigned k = 0; k < sectors;) {
			unsigned run = 1 + (unsigned)rand() % (rand() % 4 ? 300 : 3);

			run = MIN(run, sectors - k);
			if (rand() % 4 == 0)
				write_fill(n, k * 512, run * 512, (unsigned)i);
			k += run;
		}
		co_block_node_unref(n);
	}
	snprintf(text, sizeof(text), "driver=layer,file.filename=%s/h4%s", test_dir, options);
	return must_open(text, RW);
}

/* Sector by sector through extents, which remember nothing. */
static void expect_chain(struct block_node *n, char *want)
{
	for (unsigned k = 0; k < SECTORS; k++) {
		struct block_extent e;

		check_int(co_block_extent_chain(n, NULL, k * 512, 512, &e), 0);
		if (e.flags & BLOCK_EXTENT_ZERO)
			memset(want + k * 512, 0, 512);
		else
			fill(want + k * 512, 512, k * 512, 4 - e.depth);
	}
}

static void read_randomly(struct block_node *n, const char *want, unsigned seed, int rounds)
{
	char *buf = malloc(SECTORS * 512);

	for (int i = 0; i < rounds; i++) {
		uint64_t off = (uint64_t)(rand_r(&seed) % SECTORS) * 512;
		uint64_t len = 512 +
			(uint64_t)(rand_r(&seed) % (rand_r(&seed) % 3 ? 16 : 400)) * 512;

		len = MIN(len, SECTORS * 512 - off);
		memset(buf, 0xee, len);
		check_int(co_block_pread(n, off, buf, len), 0);
		check(!memcmp(buf, want + off, len));
	}
	free(buf);
}

CO_TEST(test_chain_memory)
{
	char *want = malloc(SECTORS * 512);

	for (unsigned seed = 1; seed <= 5; seed++) {
		struct block_node *n = random_chain(seed, ""), *base;
		struct error err = ERROR_INIT;
		struct block_open_opts o;

		expect_chain(n, want);
		read_randomly(n, want, seed, 300);
		check(node_of(n)->chain);
		/* The base becomes writable and changes: what was remembered is void. */
		base = block_backing(block_backing(block_backing(block_backing(n))));
		o = base->opts;
		o.flags |= BLOCK_OPEN_RDWR;
		check_int(co_block_reopen(base, &o, &err), 0);
		write_fill(base, 0, 64 * 512, 0);
		expect_chain(n, want);
		read_randomly(n, want, seed, 300);
		o.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
		check_int(co_block_reopen(base, &o, &err), 0);
		read_randomly(n, want, seed, 300);
		/* So does the chain itself. */
		co_block_drain_begin(n);
		check_int(co_block_set_child(
				  block_backing(block_backing(n)), BLOCK_ROLE_BACKING, NULL),
			0);
		co_block_drain_end(n);
		expect_chain(n, want);
		read_randomly(n, want, seed, 300);
		check_int(co_block_node_unref(n), 0);
	}
	free(want);
}

/* A filter between the layers sees what is read below it. */
CO_TEST(test_chain_with_filter)
{
	char *want = malloc(SECTORS * 512);
	char options[400];
	struct block_node *n;

	snprintf(options, sizeof(options),
		",backing.driver=throttle,backing.iops-total=1000000000,"
		"backing.file.driver=layer,backing.file.file.filename=%s/h3",
		test_dir);
	n = random_chain(7, options);
	check(n->child[BLOCK_ROLE_BACKING]->drv == &block_throttle);
	expect_chain(n, want);
	read_randomly(n, want, 7, 200);
	check_int(co_block_node_unref(n), 0);
	free(want);
}

struct reader {
	struct block_node *n;
	const char *want;
	unsigned seed;
};

static int co_reader(void *arg)
{
	struct reader *r = arg;

	read_randomly(r->n, r->want, r->seed, 500);
	return 0;
}

CO_TEST(test_chain_threads)
{
	char *want = malloc(SECTORS * 512);
	struct block_node *n = random_chain(9, "");
	struct ring_thread *threads[4];
	struct reader r[4];

	expect_chain(n, want);
	for (unsigned i = 0; i < 4; i++) {
		r[i] = (struct reader){n, want, i + 1};
		check_int(ring_thread_start(NULL, co_reader, &r[i], &threads[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		check_int(ring_thread_join(threads[i]), 0);
	check_int(co_block_node_unref(n), 0);
	free(want);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layer),
		cmocka_unit_test(test_raw_window),
		cmocka_unit_test(test_random_chains),
		cmocka_unit_test(test_chain_memory),
		cmocka_unit_test(test_chain_with_filter),
		cmocka_unit_test(test_chain_threads),
	};

	return cmocka_run_group_tests(tests, layer_setup, test_teardown);
}
