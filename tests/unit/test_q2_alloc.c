/* SPDX-License-Identifier: MIT */
/* Refcounts of every width, the allocator, growth of its structures, and the quarantine. */
#include "tests/unit/q2.h"

static void refcounts_of_every_width(void **state)
{
	uint8_t block[512];
	uint64_t model[4096], rnd = 12345;

	for (unsigned order = 0; order <= 6; order++) {
		uint64_t n = sizeof(block) * 8 >> order;
		uint64_t mask = order == 6 ? UINT64_MAX : (1ULL << (1u << order)) - 1;

		memset(block, 0, sizeof(block));
		memset(model, 0, sizeof(model));
		for (unsigned i = 0; i < 20000; i++) {
			uint64_t at = q2_random(&rnd) % n;

			model[at] = q2_random(&rnd) & mask;
			q2_refcount_store(block, at, order, model[at]);
		}
		for (uint64_t i = 0; i < n; i++)
			assert_int_equal(q2_refcount_load(block, i, order), model[i]);
	}
}

/* As the specification draws them: entry 0 of a byte in its lowest bits, larger ones big-endian. */
static void refcount_layout(void **state)
{
	static const uint8_t bytes[8] = {0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};

	assert_int_equal(q2_refcount_load(bytes, 0, 0), 1);
	assert_int_equal(q2_refcount_load(bytes, 7, 0), 1);
	assert_int_equal(q2_refcount_load(bytes, 1, 2), 8);
	assert_int_equal(q2_refcount_load(bytes, 1, 3), 0x23);
	assert_int_equal(q2_refcount_load(bytes, 1, 4), 0x4567);
	assert_int_equal(q2_refcount_load(bytes, 1, 5), 0x89abcdef);
	assert_int_equal(q2_refcount_load(bytes, 0, 6), 0x8123456789abcdef);
}

struct image {
	struct block_node *file, *n;
	struct q2_image *img;
};

static void image_open(struct image *i, const struct q2_test *t)
{
	i->file = q2_test_mem(q2_test_build(t));
	i->n = q2_test_open(block_node_ref(i->file), t->opts, NULL);
	i->img = q2_image(i->n);
}

static void image_close(struct image *i)
{
	check_int(co_block_node_unref(i->n), 0);
	co_block_node_unref(i->file);
}

static const struct q2_test small[] = {
	{3, 9, 0, false, false, false, MiB, NULL},
	{3, 9, 3, false, false, false, MiB, "refcount-cache-size=1024"},
	{3, 9, 4, false, false, false, MiB, NULL},
	{3, 9, 6, false, false, false, MiB, "refcount-cache-size=1024"},
	{3, 12, 5, false, false, false, MiB, NULL},
	{2, 12, 4, false, false, false, MiB, NULL},
};

/* Leaks on purpose: nothing refers to what is allocated here, so only errors are counted. */
static void allocate_until_tables_grow(const struct q2_test *t)
{
	uint64_t total = 0, rnd = 99, cluster = 1ULL << t->cluster_bits, grown;
	struct image i;

	image_open(&i, t);
	grown = i.img->reftable_entries;
	while (total < 60000 && (i.img->reftable_entries == grown || total < 20000)) {
		uint64_t n = 1 + q2_random(&rnd) % 40, off, got = n, count;
		bool fresh;

		if (q2_random(&rnd) % 2)
			check_int(co_q2_alloc(i.img, n, &off), 0);
		else
			check_int(co_q2_alloc_data(i.img, n, &off, &got, &fresh), 0);
		check(got >= 1 && got <= n && is_aligned(off, cluster) && off);
		for (uint64_t k = 0; k < got; k++) {
			check_int(
				co_q2_refcount_get(i.img, (off >> t->cluster_bits) + k, &count), 0);
			check_int(count, 1);
		}
		total += got;
		if (q2_random(&rnd) % 64 == 0) {
			check_int(co_q2_commit(i.img, true), 0);
			q2_test_structure_of(i.file, false);
		}
	}
	if (t->cluster_bits == 9 && t->order >= 4)
		check(i.img->reftable_entries > grown);
	check_int(co_q2_commit(i.img, true), 0);
	q2_test_structure_of(i.file, false);
	image_close(&i);
}

CO_TEST(tables_grow)
{
	for (size_t i = 0; i < ARRAY_SIZE(small); i++)
		allocate_until_tables_grow(&small[i]);
}

CO_TEST(no_cluster_is_given_twice)
{
	uint8_t *taken = calloc(1, 65536);
	uint64_t rnd = 5, off, got;
	struct image i;
	bool fresh;

	image_open(&i, &small[2]);
	for (unsigned k = 0; k < 5000; k++) {
		uint64_t n = 1 + q2_random(&rnd) % 8;

		check_int(co_q2_alloc_data(i.img, n, &off, &got, &fresh), 0);
		for (uint64_t c = off >> 9; c < (off >> 9) + got; c++) {
			check(!taken[c]);
			taken[c] = 1;
		}
		if (q2_random(&rnd) % 3 == 0) {
			co_q2_alloc_undo(i.img, off, got);
			memset(taken + (off >> 9), 0, got);
		}
	}
	free(taken);
	image_close(&i);
}

CO_TEST(allocation_at_a_place)
{
	uint64_t off, got;
	struct image i;

	image_open(&i, &small[5]);
	check_int(co_q2_alloc(i.img, 4, &off), 0);
	check_int(co_q2_alloc_at(i.img, off + 4 * 4096, 8, &got), 0);
	check_int(got, 8);
	check_int(co_q2_alloc_at(i.img, off + 8 * 4096, 8, &got), 0);
	check_int(got, 0);
	co_q2_alloc_undo(i.img, off + 7 * 4096, 2);
	check_int(co_q2_alloc_at(i.img, off + 7 * 4096, 8, &got), 0);
	check_int(got, 2);
	image_close(&i);
}

CO_TEST(widths_are_kept)
{
	uint64_t off, count;
	struct image i;

	image_open(&i, &small[0]); /* 1 bit */
	check_int(co_q2_alloc(i.img, 3, &off), 0);
	check_int(co_q2_refcount_add(i.img, off, 3, 1), -EFBIG);
	check_int(co_q2_refcount_get(i.img, off >> 9, &count), 0);
	check_int(count, 1);
	check_int(co_q2_refcount_add(i.img, off, 3, -1), 0);
	check_int(i.img->corrupt, false);
	check_int(co_q2_refcount_add(i.img, off, 3, -1), -EUCLEAN);
	check_int(i.img->corrupt, true);
	co_block_node_unref(i.n);
	co_block_node_unref(i.file);
}

/* All or none, also when the failing one is in the middle. */
CO_TEST(additions_are_undone)
{
	uint64_t off, count;
	struct image i;

	image_open(&i, &small[0]);
	check_int(co_q2_alloc(i.img, 8, &off), 0);
	check_int(co_q2_refcount_add(i.img, off, 4, -1), 0);
	check_int(co_q2_refcount_add(i.img, off, 8, 1), -EFBIG);
	for (unsigned k = 0; k < 8; k++) {
		check_int(co_q2_refcount_get(i.img, (off >> 9) + k, &count), 0);
		check_int(count, k >= 4);
	}
	image_close(&i);
}

/* A refcount block that says "free" where a table is. */
CO_TEST(lying_refcounts_mark_the_image_corrupt)
{
	struct mem_content *c = q2_test_build(&small[2]);
	uint8_t zero[512] = {0}, bits[8];
	struct image i;
	uint64_t off;

	check_int(mem_content_write(c, 2 * 512, zero, 512), 0);
	i.file = q2_test_mem(c);
	i.n = q2_test_open(block_node_ref(i.file), NULL, NULL);
	i.img = q2_image(i.n);
	check_int(co_q2_alloc(i.img, 1, &off), -EUCLEAN);
	check_int(co_block_pread(i.file, Q2_H_INCOMPATIBLE, bits, 8), 0);
	check_int(load_be64(bits), Q2_INCOMPAT_CORRUPT);
	check_int(co_block_pwrite(i.n, 0, zero, 512), -EUCLEAN);
	co_block_node_unref(i.n);
	co_block_node_unref(i.file);
}

/* --- the quarantine --- */

static uint64_t host_of(struct image *i, uint64_t off)
{
	struct q2_mapping m;

	check_int(co_q2_map(i->img, off, 1, &m), 0);
	return m.host_off;
}

static uint64_t count_of(struct image *i, uint64_t host)
{
	uint64_t count;

	check_int(co_q2_refcount_get(i->img, host >> i->img->cluster_bits, &count), 0);
	return count;
}

CO_TEST(discarded_clusters_wait_for_the_flush)
{
	uint8_t buf[4096] = "x";
	struct image i;
	uint64_t old;

	image_open(&i, &small[4]);
	check_int(co_block_pwrite(i.n, 0, buf, 4096), 0);
	check_int(co_block_flush(i.n), 0);
	old = host_of(&i, 0);
	check_int(co_block_discard(i.n, 0, 4096, 0), 0);
	check_int(count_of(&i, old), 1);
	check_int(co_block_pwrite(i.n, 8192, buf, 4096), 0);
	check(host_of(&i, 8192) != old);
	check(!reads_zero(i.file, old, 4096)); /* not punched yet */
	check_int(co_block_flush(i.n), 0);
	check_int(count_of(&i, old), 0);
	check(reads_zero(i.file, old, 4096));
	check_int(co_block_pwrite(i.n, 16384, buf, 4096), 0);
	check_int(host_of(&i, 16384), old);
	image_close(&i);
}

/* A request that began before the discard keeps the cluster from being reused. */
CO_TEST(requests_in_flight_keep_clusters)
{
	uint8_t buf[4096] = "x";
	struct image i;
	unsigned token;
	uint64_t old;

	image_open(&i, &small[4]);
	check_int(co_block_pwrite(i.n, 0, buf, 4096), 0);
	old = host_of(&i, 0);
	token = co_q2_request_enter(i.img);
	check_int(co_block_discard(i.n, 0, 4096, 0), 0);
	for (unsigned k = 0; k < 5; k++) {
		check_int(co_q2_commit(i.img, true), 0);
		check_int(count_of(&i, old), 1);
	}
	q2_request_leave(i.img, token);
	check_int(co_q2_commit(i.img, true), 0);
	check_int(count_of(&i, old), 0);
	image_close(&i);
}

CO_TEST(quiescing_empties_everything)
{
	uint8_t buf[4096] = "x";
	struct image i;

	image_open(&i, &small[4]);
	for (unsigned k = 0; k < 64; k++)
		check_int(co_block_pwrite(i.n, k * 4096ULL, buf, 4096), 0);
	check_int(co_block_discard(i.n, 0, 128 * KiB, 0), 0);
	check_int(co_q2_quiesce_begin(i.img), 0);
	check(!q2_free_pending(i.img));
	check(!q2_cache_is_dirty(i.img->l2_cache));
	co_q2_quiesce_end(i.img);
	check_int(co_block_pread(i.n, 128 * KiB, buf, 4096), 0);
	check_int(buf[0], 'x');
	image_close(&i);
}

/* A store that cannot grow: what the quarantine holds is found when the space runs out. */
CO_TEST(full_store_reuses_the_quarantine)
{
	struct block_node *file = q2_test_mem(q2_test_build(&small[4])), *n;
	uint8_t buf[4096] = "x";

	n = q2_test_open(block_node_ref(file), NULL, NULL);
	for (unsigned k = 0; k < 100; k++)
		check_int(co_block_pwrite(n, k * 4096ULL, buf, 4096), 0);
	check_int(co_block_flush(n), 0);
	file->caps.grows = false;
	check_int(co_block_pwrite(n, 200 * 4096ULL, buf, 4096), -ENOSPC);
	check_int(co_block_discard(n, 0, 10 * 4096, 0), 0);
	for (unsigned k = 200; k < 210; k++)
		check_int(co_block_pwrite(n, k * 4096ULL, buf, 4096), 0);
	file->caps.grows = true;
	check_int(co_block_node_unref(n), 0);
	q2_test_structure_of(file, true);
	co_block_node_unref(file);
}

static uint64_t features_of(struct block_node *file)
{
	uint8_t bits[8];

	check_int(co_block_pread(file, Q2_H_INCOMPATIBLE, bits, 8), 0);
	return load_be64(bits);
}

/* DIRTY is on disk before the first allocation is, and gone after a clean close. */
/* Two guest clusters, the first one's L2 entry replaced by hand. */
static void image_with_entry(struct image *i, uint64_t (*entry)(uint64_t old), uint64_t *other)
{
	uint8_t buf[8192], be[8];
	uint64_t table;

	memset(buf, 'x', sizeof(buf));
	image_open(i, &small[4]);
	check_int(co_block_pwrite(i->n, 0, buf, sizeof(buf)), 0);
	*other = host_of(i, 4096);
	check_int(co_block_node_unref(i->n), 0);
	check_int(co_block_pread(i->file, 3 * 4096, be, 8), 0);
	table = load_be64(be) & Q2_OFFSET_MASK;
	check_int(co_block_pread(i->file, table, be, 8), 0);
	store_be64(be, entry(load_be64(be)));
	check_int(co_block_pwrite(i->file, table, be, 8), 0);
	i->n = q2_test_open(block_node_ref(i->file), NULL, NULL);
	i->img = q2_image(i->n);
}

static uint64_t unaligned_entry(uint64_t old)
{
	return old + 512;
}

static uint64_t entry_of_l1(uint64_t old)
{
	return 3 * 4096 | Q2_COPIED;
}

/* Discarding what a damaged entry refers to takes nothing from others: neither the next cluster nor
 * a table. */
CO_TEST(damaged_entries_free_nothing)
{
	uint8_t buf[4096];
	uint64_t other;
	struct image i;

	image_with_entry(&i, unaligned_entry, &other);
	check_int(co_block_discard(i.n, 0, 4096, 0), -EUCLEAN);
	check_int(co_block_node_unref(i.n), -EUCLEAN);
	check_int(co_block_pread(i.file, other, buf, 4096), 0);
	check_int(buf[0], 'x');
	co_block_node_unref(i.file);

	image_with_entry(&i, entry_of_l1, &other);
	check_int(co_block_discard(i.n, 0, 4096, 0), 0);
	(void)co_block_flush(i.n);
	check(i.img->corrupt);
	check_int(count_of(&i, 3 * 4096), 1);
	check(!reads_zero(i.file, 3 * 4096, 4096));
	check_int(co_block_node_unref(i.n), -EUCLEAN);
	co_block_node_unref(i.file);
}

CO_TEST(lazy_refcounts)
{
	static const struct q2_test lazy = {3, 12, 4, false, true, false, MiB, NULL};
	uint8_t buf[4096] = "x";
	struct mem_content *crashed;
	struct block_node *file, *n;
	struct image i;

	image_open(&i, &lazy);
	check_int(features_of(i.file), 0);
	check_int(co_block_pwrite(i.n, 0, buf, 4096), 0);
	check_int(features_of(i.file), Q2_INCOMPAT_DIRTY);
	check_int(co_block_flush(i.n), 0);
	check_int(mem_node_snapshot(i.file, &crashed), 0);
	check_int(co_block_node_unref(i.n), 0);
	check_int(features_of(i.file), 0);
	q2_test_structure_of(i.file, true);
	co_block_node_unref(i.file);

	/* The lost refcounts are counted again at the next open for writing. */
	file = q2_test_mem(crashed);
	n = q2_test_open(block_node_ref(file), NULL, NULL);
	check_int(co_block_pread(n, 0, buf, 4096), 0);
	check_int(buf[0], 'x');
	check_int(co_block_node_unref(n), 0);
	check_int(features_of(file), 0);
	q2_test_structure_of(file, true);
	co_block_node_unref(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refcounts_of_every_width),
		cmocka_unit_test(refcount_layout),
		cmocka_unit_test(tables_grow),
		cmocka_unit_test(no_cluster_is_given_twice),
		cmocka_unit_test(allocation_at_a_place),
		cmocka_unit_test(widths_are_kept),
		cmocka_unit_test(additions_are_undone),
		cmocka_unit_test(lying_refcounts_mark_the_image_corrupt),
		cmocka_unit_test(discarded_clusters_wait_for_the_flush),
		cmocka_unit_test(requests_in_flight_keep_clusters),
		cmocka_unit_test(quiescing_empties_everything),
		cmocka_unit_test(full_store_reuses_the_quarantine),
		cmocka_unit_test(damaged_entries_free_nothing),
		cmocka_unit_test(lazy_refcounts),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
