/* SPDX-License-Identifier: MIT */
/* Look-ups: runs of one kind against a naive model, in tables built by hand. */
#include "tests/unit/q2.h"

/* Subcluster runs against bit by bit. */
static void subcluster_runs(void **state)
{
	uint64_t rnd = 7;

	for (unsigned i = 0; i < 20000; i++) {
		uint32_t alloc = (uint32_t)q2_random(&rnd), zero = (uint32_t)q2_random(&rnd);
		uint64_t entry = i % 2 ? 0x50000 | Q2_COPIED : 0, bitmap;

		if (i % 3 == 0)
			alloc = (uint32_t)(0xffffffffULL << i % 33);
		zero &= ~alloc;
		if (!entry)
			alloc = 0;
		bitmap = (uint64_t)zero << 32 | alloc;
		for (unsigned sub = 0; sub < 32; sub++) {
			unsigned count, want = 0;
			enum q2_kind kind = q2_sub_kind(entry, bitmap, sub, &count);
			unsigned a = alloc >> sub & 1, z = zero >> sub & 1;

			assert_int_equal(kind,
				z           ? entry ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN
					: a ? Q2_DATA
					    : Q2_UNALLOCATED);
			while (sub + want < 32 && (alloc >> (sub + want) & 1) == a &&
				(zero >> (sub + want) & 1) == z)
				want++;
			assert_int_equal(count, want);
		}
	}
}

struct model {
	enum q2_kind kind;
	uint64_t host; /* of the cluster; 0: none */
	bool copied;
};

#define CLUSTERS 512u

/* An image of 512-byte clusters with eight L2 tables of random entries. */
static struct mem_content *build(struct model *model, uint64_t *rnd)
{
	struct q2_test t = {3, 9, 4, false, false, false, CLUSTERS * 512, NULL};
	struct mem_content *c = q2_test_build(&t);
	uint64_t table = 64 * 512, host = 128 * 512;
	uint8_t be[8];

	check_int(mem_content_resize(c, 4096 * 512), 0);
	for (unsigned i = 0; i < CLUSTERS; i++) {
		struct model *m = &model[i];
		uint64_t entry = 0;

		/* Runs are made by repeating the kind of the one before. */
		m->kind = i && q2_random(rnd) % 4 ? m[-1].kind : q2_random(rnd) % 4;
		m->copied = q2_random(rnd) % 16 != 0;
		m->host = m->kind == Q2_DATA || m->kind == Q2_ZERO_ALLOC ? host : 0;
		if (i / 64 == 5) /* no table */
			*m = (struct model){Q2_UNALLOCATED, 0, false};
		if (m->host) {
			host += q2_random(rnd) % 8 ? 512 : 1024;
			entry = m->host | (m->copied ? Q2_COPIED : 0);
		} else {
			m->copied = false;
		}
		if (m->kind == Q2_ZERO_ALLOC || m->kind == Q2_ZERO_PLAIN)
			entry |= Q2_ZERO;
		store_be64(be, entry);
		check_int(mem_content_write(c, table + i * 8, be, 8), 0);
	}
	for (unsigned i = 0; i < CLUSTERS / 64; i++) {
		store_be64(be, i == 5 ? 0 : (table + i * 512ULL) | Q2_COPIED);
		check_int(mem_content_write(c, 3 * 512 + i * 8, be, 8), 0);
	}
	return c;
}

static uint64_t run_length(const struct model *model, uint64_t off, uint64_t len)
{
	uint64_t i = off / 512, end = (i + 1) * 512;

	while (end < off + len && model[end / 512].kind == model[i].kind &&
		model[end / 512].copied == model[i].copied &&
		(!model[i].host || model[end / 512].host == model[end / 512 - 1].host + 512))
		end += 512;
	return MIN(end, off + len) - off;
}

/* Whatever is cached, a mapping is a right prefix; when all is cached it is the whole run. */
static void look(
	struct q2_image *img, const struct model *model, uint64_t off, uint64_t len, bool all)
{
	const struct model *want = &model[off / 512];
	uint64_t run = run_length(model, off, len);
	struct q2_mapping m;

	check_int(co_q2_map(img, off, len, &m), 0);
	check_int(m.kind, want->kind);
	check_int(m.copied, want->copied);
	check_int(m.host_off, want->host ? want->host + off % 512 : 0);
	check(all ? m.len == run : m.len <= run && m.len > 0);
}

static void look_all(const char *opts, bool all)
{
	struct model model[CLUSTERS];
	struct block_node *n;
	uint64_t rnd = 3;

	for (unsigned round = 0; round < 10; round++) {
		struct mem_content *c = build(model, &rnd);

		check_int(q2_test_try_open(q2_test_mem(c), opts, 0, NULL, &n, NULL), 0);
		for (uint64_t off = 0; all && off < CLUSTERS * 512; off += 512)
			look(q2_image(n), model, off, 512, true);
		for (unsigned i = 0; i < 2000; i++) {
			uint64_t off = q2_random(&rnd) % (CLUSTERS * 512);
			uint64_t len = 1 + q2_random(&rnd) % (CLUSTERS * 512 - off);

			look(q2_image(n), model, off, len, all);
		}
		check_int(co_block_node_unref(n), 0);
	}
}

CO_TEST(runs_across_tables)
{
	look_all(NULL, true);
}

CO_TEST(smallest_cache)
{
	look_all("l2-cache-size=1024", false);
}

/* --- entries that make no sense --- */

static int map_entry(
	uint32_t version, uint64_t l1, uint64_t l2, uint32_t flags, struct q2_mapping *m)
{
	struct q2_test t = {version, 12, 4, false, false, false, MiB, NULL};
	struct mem_content *c = q2_test_build(&t);
	struct block_node *n;
	uint8_t be[8];
	int r;

	check_int(mem_content_resize(c, 64 * 4096), 0);
	store_be64(be, l1);
	check_int(mem_content_write(c, 3 * 4096, be, 8), 0);
	store_be64(be, l2);
	check_int(mem_content_write(c, 8 * 4096, be, 8), 0);
	check_int(q2_test_try_open(q2_test_mem(c), NULL, flags, NULL, &n, NULL), 0);
	r = co_q2_map(q2_image(n), 0, 4096, m);
	co_block_node_unref(n);
	return r;
}

CO_TEST(bad_entries)
{
	uint64_t l1 = 8 * 4096 | Q2_COPIED, data = 16 * 4096;
	struct q2_mapping m;

	check_int(map_entry(3, l1, data | Q2_COPIED, 0, &m), 0);
	check_int(m.kind, Q2_DATA);
	check_int(m.copied, true);
	check_int(map_entry(3, l1 & ~Q2_COPIED, data | Q2_COPIED, 0, &m), 0);
	check_int(m.copied, false);
	check_int(map_entry(3, l1 + 512, 0, 0, &m), -EUCLEAN);
	check_int(map_entry(3, 1000 * 4096 | Q2_COPIED, 0, 0, &m), -EUCLEAN);
	check_int(map_entry(3, l1, data + 512, 0, &m), -EUCLEAN);
	/* Reserved bits: tolerated by readers only. */
	check_int(map_entry(3, l1, data | 4, 0, &m), 0);
	check_int(map_entry(3, l1, data | 4, BLOCK_OPEN_RDWR, &m), -EUCLEAN);
	check_int(map_entry(3, l1 | 8, data, BLOCK_OPEN_RDWR, &m), -EUCLEAN);
	check_int(map_entry(2, l1, data | Q2_ZERO, BLOCK_OPEN_RDWR, &m), -EUCLEAN);
	check_int(map_entry(2, l1, data | Q2_ZERO, 0, &m), 0);
	check_int(m.kind, Q2_DATA);
}

CO_TEST(compressed_entries)
{
	uint64_t l1 = 8 * 4096 | Q2_COPIED, entry = q2_compressed_entry(20 * 4096 + 100, 700, 12);
	struct q2_mapping m;

	check_int(q2_compressed_offset(entry, 12), 20 * 4096 + 100);
	check_int(q2_compressed_bytes(entry, 12), 1024 - 100);
	check_int(map_entry(3, l1, entry, 0, &m), 0);
	check_int(m.kind, Q2_DATA_COMPRESSED);
	check_int(m.host_off, 20 * 4096 + 100);
	check_int(m.len, 4096);
	check_int(map_entry(3, l1, entry | Q2_COPIED, BLOCK_OPEN_RDWR, &m), -EUCLEAN);
	/* Bit 0 is part of the offset, not the zero flag. */
	check_int(map_entry(3, l1, q2_compressed_entry(20 * 4096 + 1, 64, 12), 0, &m), 0);
	check_int(m.kind, Q2_DATA_COMPRESSED);
	check_int(m.host_off, 20 * 4096 + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(subcluster_runs),
		cmocka_unit_test(runs_across_tables),
		cmocka_unit_test(smallest_cache),
		cmocka_unit_test(bad_entries),
		cmocka_unit_test(compressed_entries),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
