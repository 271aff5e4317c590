/* SPDX-License-Identifier: MIT */
/* The check and its repairs: every kind of damage found, counted, worded and put right. */
#include "tests/unit/q2ops.h"

#define CLUSTER 65536ULL

/* An image of 4 MiB with 16 clusters of data: header 0, refcount table 1, block 2, L1 3, L2 4, data
 * from 5 on. */
static struct block_node *damaged_base(const char *more)
{
	struct block_node *file, *n;
	char opts[100];

	snprintf(opts, sizeof(opts), "size=4M%s", more);
	file = create_mem(opts);
	n = open_image(file, NULL);
	write_fill(n, 0, 1 * MiB, 1);
	close_image(n);
	check_clean(file);
	return file;
}

static uint64_t l1_of(struct block_node *f)
{
	return file_be64(f, Q2_H_L1_OFFSET);
}

static uint64_t l2_of(struct block_node *f)
{
	return file_be64(f, l1_of(f)) & Q2_OFFSET_MASK;
}

static uint64_t reftable_of(struct block_node *f)
{
	return file_be64(f, Q2_H_REFTABLE_OFFSET);
}

static uint64_t refblock_of(struct block_node *f)
{
	return file_be64(f, reftable_of(f));
}

static uint64_t cluster_of_entry(struct block_node *f, unsigned i)
{
	return (file_be64(f, l2_of(f) + 8 * i) & Q2_OFFSET_MASK) / CLUSTER;
}

static void damage_leak(struct block_node *f)
{
	poke_be16(f, refblock_of(f) + 2 * cluster_of_entry(f, 3), 2);
}

static void damage_refcount_zero(struct block_node *f)
{
	poke_be16(f, refblock_of(f) + 2 * cluster_of_entry(f, 0), 0);
}

static void damage_double(struct block_node *f)
{
	poke_be64(f, l2_of(f) + 8, file_be64(f, l2_of(f)));
}

static void damage_l2_copied(struct block_node *f)
{
	poke_be64(f, l2_of(f), file_be64(f, l2_of(f)) & ~Q2_COPIED);
}

static void damage_l1_copied(struct block_node *f)
{
	poke_be64(f, l1_of(f), file_be64(f, l1_of(f)) & ~Q2_COPIED);
}

static void damage_unaligned(struct block_node *f)
{
	poke_be64(f, l2_of(f), file_be64(f, l2_of(f)) | 0x200);
}

static void damage_reserved(struct block_node *f)
{
	poke_be64(f, l2_of(f), file_be64(f, l2_of(f)) | 1ULL << 58);
}

static void damage_beyond(struct block_node *f)
{
	poke_be64(f, l2_of(f), Q2_COPIED | 0x10000000);
}

static void damage_l1_reserved(struct block_node *f)
{
	poke_be64(f, l1_of(f), file_be64(f, l1_of(f)) | 1);
}

static void damage_l1_unaligned(struct block_node *f)
{
	poke_be64(f, l1_of(f), file_be64(f, l1_of(f)) | 0x200);
}

static void damage_reftable_beyond(struct block_node *f)
{
	poke_be64(f, reftable_of(f) + 8, 0x10000000);
}

static void damage_reftable_zero(struct block_node *f)
{
	poke_be64(f, reftable_of(f), 0);
}

static void damage_reftable_unaligned(struct block_node *f)
{
	poke_be64(f, reftable_of(f), file_be64(f, reftable_of(f)) | 0x200);
}

static void damage_reftable_twice(struct block_node *f)
{
	poke_be64(f, reftable_of(f) + 8, file_be64(f, reftable_of(f)));
}

static void damage_refblock_count(struct block_node *f)
{
	poke_be16(f, refblock_of(f) + 2 * (refblock_of(f) / CLUSTER), 0);
}

static void damage_header_referenced(struct block_node *f)
{
	poke_be64(f, l2_of(f), Q2_COPIED | reftable_of(f));
}

static const struct damage {
	const char *name;
	void (*make)(struct block_node *f);
	unsigned errors, leaks; /* as the known tool counts */
	const char *says;
	bool leaks_cures, all_cures; /* is the image clean after -r leaks, -r all? */
	bool leaks_refused;
} damages[] = {
	{"leak", damage_leak, 1, 1, "Leaked cluster 8 refcount=2 reference=1\n", true, true, false},
	{"refcount 0", damage_refcount_zero, 2, 0,
		"ERROR cluster 5 refcount=0 reference=1\n"
		"ERROR OFLAG_COPIED data cluster: l2_entry=8000000000050000 refcount=0\n",
		false, true, false},
	{"two references", damage_double, 1, 1,
		"ERROR cluster 5 refcount=1 reference=2\n"
		"Leaked cluster 6 refcount=1 reference=0\n",
		false, true, false},
	{"COPIED in L2", damage_l2_copied, 1, 0,
		"ERROR OFLAG_COPIED data cluster: l2_entry=50000 refcount=1\n", true, true, false},
	{"COPIED in L1", damage_l1_copied, 1, 0,
		"ERROR OFLAG_COPIED L2 cluster: l1_index=0 "
		"l1_entry=40000 refcount=1\n",
		true, true, false},
	{"unaligned", damage_unaligned, 2, 0,
		"ERROR offset=50200: Data cluster is not properly "
		"aligned; L2 entry corrupted.\nERROR cluster 6 refcount=1 reference=2\n",
		false, false, false},
	{"reserved bits", damage_reserved, 1, 0,
		"ERROR found l2 entry with reserved bits set: "
		"8400000000050000\n",
		false, false, false},
	{"beyond the end", damage_beyond, 2, 1,
		"ERROR: counting reference for region exceeding the "
		"end of the file by one cluster or more: offset 0x10000000 size 0x10000\n",
		false, false, false},
	{"L1 reserved bits", damage_l1_reserved, 1, 0,
		"ERROR found L1 entry with reserved bits set: "
		"8000000000040001\n",
		false, false, false},
	{"L1 unaligned", damage_l1_unaligned, 1, 17,
		"ERROR l2_offset=40200: Table is not cluster "
		"aligned; L1 entry corrupted\n",
		false, false, false},
	{"block beyond the end", damage_reftable_beyond, 1, 0,
		"ERROR refcount block 1 is outside image\n", false, true, true},
	{"no block", damage_reftable_zero, 37, 0, "ERROR cluster 0 refcount=0 reference=1\n", false,
		true, true},
	{"block unaligned", damage_reftable_unaligned, 38, 0,
		"ERROR refcount block 0 is not "
		"cluster aligned; refcount table entry corrupted\n",
		false, true, true},
	{"block twice", damage_reftable_twice, 2, 0, "ERROR cluster 2 refcount=1 reference=2\n",
		false, true, true},
	{"block without count", damage_refblock_count, 1, 0,
		"ERROR cluster 2 refcount=0 reference=1\n", false, true, true},
	{"metadata as data", damage_header_referenced, 1, 1,
		"ERROR cluster 1 refcount=1 reference=2\nLeaked cluster 5 refcount=1 reference=0\n",
		false, true, false},
};

static int try_repair(struct block_node *file, uint32_t repair, struct block_check *ret)
{
	struct block_node *n;
	int r;

	*ret = (struct block_check){.repair = repair};
	check_int(
		q2_test_try_open(block_node_ref(file), NULL, RW | BLOCK_OPEN_CHECK, NULL, &n, NULL),
		0);
	r = q2_check_ops.co_check(n, ret, NULL);
	co_block_node_unref(n);
	return r;
}

static void expect_cured(struct block_node *file, const struct damage *d, bool cured)
{
	struct block_check c = check_file(file, 0, 0, NULL);

	if (cured == !(c.corruptions || c.leaks))
		return;
	fprintf(stderr, "%s: %llu errors, %llu leaks after the repair\n", d->name,
		(unsigned long long)c.corruptions, (unsigned long long)c.leaks);
	abort();
}

CO_TEST(damage)
{
	for (unsigned i = 0; i < ARRAY_SIZE(damages); i++) {
		const struct damage *d = &damages[i];
		struct check_lines lines;
		struct block_check c, again;

		for (unsigned mode = 0; mode < 3; mode++) {
			struct block_node *file = damaged_base("");

			d->make(file);
			if (mode == 0) {
				c = check_file(file, 0, 0, &lines);
				if (c.corruptions != d->errors || c.leaks != d->leaks ||
					!strstr(lines.text, d->says)) {
					fprintf(stderr, "%s: %llu errors, %llu leaks:\n%s", d->name,
						(unsigned long long)c.corruptions,
						(unsigned long long)c.leaks, lines.text);
					abort();
				}
			} else if (mode == 1) {
				int r = try_repair(file, BLOCK_REPAIR_LEAKS, &c);

				check_int(r, d->leaks_refused ? -EIO : 0);
				expect_cured(file, d, d->leaks_cures);
			} else {
				check_int(try_repair(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS,
						  &c),
					0);
				expect_cured(file, d, d->all_cures);
				check_int(c.corruptions == 0, d->all_cures);
				check_int(c.leaks, 0);
				/* A second repair finds nothing that it could do. */
				check_int(try_repair(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS,
						  &again),
					0);
				check_int(again.corruptions_fixed + again.leaks_fixed, 0);
			}
			close_image(file);
		}
	}
}

/* With memory for a few chunks only, many passes find the same. */
CO_TEST(many_passes)
{
	struct block_node *file = create_mem("size=64M,cluster_size=512,preallocation=metadata");
	uint64_t block5 = file_be64(file, reftable_of(file) + 8 * 5);
	uint64_t block500 = file_be64(file, reftable_of(file) + 8 * 500);
	struct block_check one, many;
	struct check_lines a, b;

	poke_be16(file, block5 + 2 * 7, 2);
	poke_be16(file, block500 + 2 * 9, 0);
	one = check_file(file, 0, 0, &a);
	many = check_file(file, 0, 1, &b);
	check(one.leaks == 1 && one.corruptions >= 2);
	check_int(many.leaks, one.leaks);
	check_int(many.corruptions, one.corruptions);
	check_int(many.allocated_clusters, one.allocated_clusters);
	check_int(many.fragmented_clusters, one.fragmented_clusters);
	check_int(many.image_end, one.image_end);
	check_int(strlen(a.text), strlen(b.text)); /* the order may differ */
	many = check_file(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, 1, NULL);
	check_int(many.corruptions + many.leaks, 0);
	check_clean(file);

	/* The same for a structure that must be built anew. */
	poke_be64(file, reftable_of(file) + 8 * 3, 0);
	many = check_file(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, 1, NULL);
	check_int(many.corruptions + many.leaks, 0);
	check_clean(file);
	close_image(file);
}

/* Every refcount width, rebuilt from nothing; the data is still there. */
CO_TEST(rebuild_widths)
{
	static const char *const widths[] = {"1", "2", "4", "8", "16", "32", "64"};

	for (unsigned i = 0; i < ARRAY_SIZE(widths); i++) {
		struct block_node *file, *n;
		char opts[80];
		uint64_t entries;

		snprintf(
			opts, sizeof(opts), "size=1M,cluster_size=512,refcount_bits=%s", widths[i]);
		file = create_mem(opts);
		n = open_image(file, NULL);
		write_fill(n, 0, 300000, i);
		write_fill(n, 900000, 100000, i);
		close_image(n);
		entries = 512 / 8;
		for (uint64_t k = 0; k < entries; k++)
			poke_be64(file, reftable_of(file) + 8 * k, 0);
		check_file(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, 0, NULL);
		check_clean(file);
		n = open_image(file, NULL);
		check(reads_fill(n, 0, 300000, i) && reads_fill(n, 900000, 100000, i));
		write_fill(n, 400000, 50000, i);
		close_image(n);
		check_clean(file);
		close_image(file);
	}
}

/* Fragments and compressed clusters are counted as the known tool does. */
CO_TEST(statistics)
{
	struct block_node *file = create_mem("size=2G"), *n = open_image(file, NULL);
	struct block_check c;

	write_fill(n, 0, 4 * CLUSTER, 1);
	write_fill(n, 1 * GiB, CLUSTER, 1);
	write_fill(n, 4 * CLUSTER, CLUSTER, 1);
	close_image(n);
	c = check_file(file, 0, 0, NULL);
	check_int(c.total_clusters, 32768);
	check_int(c.allocated_clusters, 6);
	check_int(c.fragmented_clusters, 1);
	check_int(c.compressed_clusters, 0);
	check_int(c.image_end, block_size(file));
	close_image(file);
}

/* DIRTY: opening for writing repairs; CORRUPT: only repair clears it. */
CO_TEST(marks)
{
	struct block_node *file = damaged_base(",lazy_refcounts=on"), *n;

	damage_refcount_zero(file);
	poke_be64(file, Q2_H_INCOMPATIBLE, Q2_INCOMPAT_DIRTY);
	n = open_image(file, NULL);
	check(reads_fill(n, 0, 1 * MiB, 1));
	close_image(n);
	check_int(file_be64(file, Q2_H_INCOMPATIBLE), 0);
	check_clean(file);

	poke_be64(file, Q2_H_INCOMPATIBLE, Q2_INCOMPAT_CORRUPT);
	check(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, NULL) < 0);
	check_file(file, 0, 0, NULL);
	check_int(file_be64(file, Q2_H_INCOMPATIBLE), Q2_INCOMPAT_CORRUPT);
	check_file(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, 0, NULL);
	check_int(file_be64(file, Q2_H_INCOMPATIBLE), 0);
	close_image(file);
}

/* All L1 entries list one L2 table, whose entries are one cluster: 2^30 references in a small file
 * take no longer than the file is large. */
CO_TEST(amplified)
{
	struct block_node *file = create_mem("size=64T"), *n;
	uint64_t entries = 64 * TiB / (CLUSTER * 8192), l2, data;
	uint8_t *table = malloc(entries * 8);
	struct block_check c;

	n = open_image(file, NULL);
	write_fill(n, 0, CLUSTER, 1);
	close_image(n);
	l2 = l2_of(file);
	data = file_be64(file, l2);
	for (unsigned i = 0; i < 8192; i++)
		poke_be64(file, l2 + 8 * i, data);
	for (uint64_t i = 0; i < entries; i++)
		store_be64(table + 8 * i, l2 | Q2_COPIED);
	check_int(co_block_pwrite(file, l1_of(file), table, entries * 8), 0);
	free(table);
	c = check_file(file, 0, 0, NULL);
	check_int(c.corruptions, 2);
	check_int(c.allocated_clusters, entries * 8192);
	close_image(file);
}

/* A read that fails is told apart from damage. */
CO_TEST(unreadable)
{
	struct block_node *inner = damaged_base(""), *file;
	struct block_check c = {0};
	struct block_node *n;

	file = NULL;
	check_int(co_block_open_on(&block_fault, block_node_ref(inner), NULL,
			  &(struct block_open_opts){.flags = RW, .trust = &block_trust_local},
			  &file, NULL),
		0);
	for (uint64_t k = 1; k < 40; k++) {
		struct fault_rule rule = {.ops = FAULT_READ, .at = k, .error = -EIO};
		int r;

		check_int(q2_test_try_open(
				  block_node_ref(file), NULL, BLOCK_OPEN_CHECK, NULL, &n, NULL),
			0);
		check_int(fault_add(file, &rule), 0);
		r = q2_check_ops.co_check(n, &c, NULL);
		fault_clear(file);
		co_block_node_unref(n);
		check(r == -EIO || (r == 0 && (c.check_errors == 1 || c.corruptions == 0)));
	}
	close_image(file);
	close_image(inner);
}

/* Every k-th allocation fails: -ENOMEM or done, never a wrong verdict. */
CO_TEST(no_memory)
{
	struct block_node *file = damaged_base(""), *n;
	struct block_check c = {0};
	int r = -ENOMEM;

	damage_leak(file);
	check_int(
		q2_test_try_open(block_node_ref(file), NULL, BLOCK_OPEN_CHECK, NULL, &n, NULL), 0);
	for (uint64_t k = 1; r < 0; k++) {
		mem_fail_at(k, false);
		r = q2_check_ops.co_check(n, &c, NULL);
		mem_fail_at(0, false);
		check(r == 0 || r == -ENOMEM);
	}
	check(c.leaks == 1 && c.corruptions == 1);
	close_image(n);
	close_image(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(damage),
		cmocka_unit_test(many_passes),
		cmocka_unit_test(rebuild_widths),
		cmocka_unit_test(statistics),
		cmocka_unit_test(marks),
		cmocka_unit_test(amplified),
		cmocka_unit_test(unreadable),
		cmocka_unit_test(no_memory),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
