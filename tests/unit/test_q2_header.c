/* SPDX-License-Identifier: MIT */
/* The qcow2 header: every limit by poking its field, extensions kept, switches that cannot tear. */
#include "tests/unit/q2.h"

static const struct q2_test plain = {3, 16, 4, false, false, false, 64 * MiB, NULL};

static int decode(const uint8_t *buf, size_t len, struct error *err)
{
	struct q2_header h;
	int r;

	*err = ERROR_INIT;
	r = q2_header_decode(buf, len, "x.qcow2", &h, err);
	if (r == 0)
		q2_header_destroy(&h);
	return r;
}

/* A good first cluster of 64 KiB. */
static uint8_t *good(uint32_t version)
{
	struct q2_test t = plain;
	struct mem_content *c;
	uint8_t *buf = malloc(65536);

	t.version = version;
	c = q2_test_build(&t);
	mem_content_read(c, 0, buf, 65536);
	mem_content_free(c);
	return buf;
}

struct poke {
	unsigned off, bytes;
	uint64_t value;
	int result;
	const char *says; /* part of the sentence */
};

static const struct poke pokes[] = {
	{Q2_H_MAGIC, 4, 0, -EINVAL, "not a qcow2 image"},
	{Q2_H_VERSION, 4, 1, -ENOTSUP, "version 1"},
	{Q2_H_VERSION, 4, 4, -ENOTSUP, "version 4"},
	{Q2_H_CLUSTER_BITS, 4, 8, -EUCLEAN, "cluster_bits is 8"},
	{Q2_H_CLUSTER_BITS, 4, 22, -EUCLEAN, "cluster_bits is 22"},
	{Q2_H_CLUSTER_BITS, 4, 0xffffffff, -EUCLEAN, "cluster_bits is 4294967295"},
	{Q2_H_SIZE, 8, 1ULL << 63, -EUCLEAN, "virtual size"},
	{Q2_H_SIZE, 8, UINT64_MAX, -EUCLEAN, "virtual size"},
	{Q2_H_SIZE, 8, 1ULL << 40, -EUCLEAN, "L1 table has 1 entries"},
	{Q2_H_CRYPT_METHOD, 4, 3, -ENOTSUP, "encryption method 3"},
	{Q2_H_CRYPT_METHOD, 4, 2, -EUCLEAN, "encryption method 2"},
	{Q2_H_L1_SIZE, 4, 4194305, -EUCLEAN, "4194305 entries"},
	{Q2_H_L1_SIZE, 4, 0xffffffff, -EUCLEAN, "4294967295 entries"},
	{Q2_H_L1_SIZE, 4, 0, -EUCLEAN, "0 entries"},
	{Q2_H_L1_OFFSET, 8, 0x30200, -EUCLEAN, "not a multiple"},
	{Q2_H_L1_OFFSET, 8, 0, -EUCLEAN, "lies in the header"},
	{Q2_H_L1_OFFSET, 8, 0xffffffffffff0000, -EUCLEAN, "ends beyond 2^63"},
	{Q2_H_REFTABLE_OFFSET, 8, 0x10001, -EUCLEAN, "not a multiple"},
	{Q2_H_REFTABLE_OFFSET, 8, 1ULL << 63, -EUCLEAN, "ends beyond 2^63"},
	{Q2_H_REFTABLE_CLUSTERS, 4, 0, -EUCLEAN, "refcount table has no clusters"},
	{Q2_H_REFTABLE_CLUSTERS, 4, 129, -EUCLEAN, "129 clusters"},
	{Q2_H_REFTABLE_CLUSTERS, 4, 0xffffffff, -EUCLEAN, "4294967295 clusters"},
	{Q2_H_NB_SNAPSHOTS, 4, 65537, -EUCLEAN, "65537 snapshots"},
	{Q2_H_NB_SNAPSHOTS, 4, 1, -EUCLEAN, "snapshot table"},
	{Q2_H_INCOMPATIBLE, 8, 1 << 5, -ENOTSUP, "bit 5"},
	{Q2_H_INCOMPATIBLE, 8, 1ULL << 63, -ENOTSUP, "bit 63"},
	{Q2_H_INCOMPATIBLE, 8, Q2_INCOMPAT_COMPRESSION, -EUCLEAN, "contradict"},
	{Q2_H_REFCOUNT_ORDER, 4, 7, -EUCLEAN, "refcount_order is 7"},
	{Q2_H_HEADER_LENGTH, 4, 96, -EUCLEAN, "header_length is 96"},
	{Q2_H_HEADER_LENGTH, 4, 108, -EUCLEAN, "header_length is 108"},
	{Q2_H_HEADER_LENGTH, 4, 65544, -EUCLEAN, "header_length is 65544"},
	{Q2_H_COMPRESSION_TYPE, 1, 1, -EUCLEAN, "contradict"},
	{Q2_H_COMPRESSION_TYPE, 1, 9, -EUCLEAN, "contradict"},
	{Q2_H_BACKING_SIZE, 4, 3, -EUCLEAN, "no offset"},
	{Q2_H_BACKING_OFFSET, 8, 0x300, 0, NULL}, /* of an empty name */
	{Q2_H_V3_LENGTH + 4, 4, 0x10000, -EUCLEAN, "more than there is room for"},
};

static void poke_one(const struct poke *p)
{
	uint8_t *buf = good(3);
	struct error err;
	int r;

	for (unsigned i = 0; i < p->bytes; i++)
		buf[p->off + i] = (uint8_t)(p->value >> 8 * (p->bytes - 1 - i));
	r = decode(buf, 65536, &err);
	if (r != p->result || (p->says && !strstr(err.text, p->says)) ||
		(r < 0 && r != -EINVAL && !strstr(err.text, "x.qcow2"))) {
		fprintf(stderr, "field %u = %#llx: result %d, '%s'\n", p->off,
			(unsigned long long)p->value, r, err.text);
		abort();
	}
	free(buf);
}

static void every_limit(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(pokes); i++)
		poke_one(&pokes[i]);
}

static void backing_names(void **state)
{
	static const struct {
		uint64_t off;
		uint32_t len;
		int result;
	} cases[] = {
		{0x300, 5, 0},
		{0x300, 1023, 0},
		{0x300, 1024, -EUCLEAN},
		{65536 - 5, 5, 0},
		{65536 - 4, 5, -EUCLEAN},
		{UINT64_MAX - 3, 5, -EUCLEAN},
		{0x70, 5, 0}, /* right behind the header: no extensions then */
		{0x60, 5, -EUCLEAN},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint8_t *buf = good(3);
		struct error err;

		memset(buf + 0x300, 'n', 1100);
		memset(buf + 65536 - 5, 'n', 5);
		if (cases[i].off == 0x70)
			memset(buf + 0x70, 'n', 5);
		store_be64(buf + Q2_H_BACKING_OFFSET, cases[i].off);
		store_be32(buf + Q2_H_BACKING_SIZE, cases[i].len);
		assert_int_equal(decode(buf, 65536, &err), cases[i].result);
		if (i == 0) {
			buf[0x302] = 0;
			assert_int_equal(decode(buf, 65536, &err), -EUCLEAN);
			assert_non_null(strstr(err.text, "NUL"));
		}
		free(buf);
	}
}

static void cut_off_headers(void **state)
{
	for (uint32_t version = 2; version <= 3; version++) {
		uint8_t *buf = good(version);
		size_t need = version == 2 ? Q2_H_V2_LENGTH : Q2_H_V3_MIN_LENGTH;

		for (size_t len = 0; len < 600; len++) {
			uint8_t *exact = malloc(len + 1); /* for the address sanitizer */
			struct error err;
			int r;

			memcpy(exact, buf, len);
			r = decode(exact, len, &err);
			assert_true(len < need ? r < 0 : r == 0 || r == -EUCLEAN);
			free(exact);
		}
		free(buf);
	}
}

static void unknown_feature_is_named(void **state)
{
	uint8_t *buf = good(3);
	struct error err;
	uint8_t *name = buf + Q2_H_V3_LENGTH + 8;

	name[0] = 0;
	name[1] = 17;
	memcpy(name + 2, "time \033travel", 13);
	store_be64(buf + Q2_H_INCOMPATIBLE, 1u << 17 | 1u << 20);
	assert_int_equal(decode(buf, 65536, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "bit 17 (time ?travel), bit 20"));
	free(buf);
}

static void round_trip(void **state)
{
	uint8_t *buf = calloc(1, 65536), *again = calloc(1, 65536);
	struct q2_unknown_ext *ext = mem_zalloc(sizeof(*ext) + 5);
	struct q2_header h = {.version = 3,
				 .cluster_bits = 16,
				 .size = 10 * MiB,
				 .l1_size = 1,
				 .l1_offset = 0x30000,
				 .reftable_offset = 0x10000,
				 .reftable_clusters = 1,
				 .refcount_order = 4,
				 .header_length = Q2_H_V3_LENGTH,
				 .backing_name = mem_strdup("base.img"),
				 .backing_format = mem_strdup("raw")},
			 d;
	struct error err = ERROR_INIT;

	list_init(&h.unknown_ext);
	ext->type = 0x12345678;
	ext->len = 5;
	memcpy(ext->data, "abcde", 5);
	list_add_tail(&h.unknown_ext, &ext->node);
	assert_int_equal(q2_header_build(&h, buf, 65536, &err), 0);
	assert_int_equal(q2_header_decode(buf, 65536, "x", &d, &err), 0);
	assert_string_equal(d.backing_name, "base.img");
	assert_string_equal(d.backing_format, "raw");
	assert_int_equal(d.feature_names_len, 8 * 48);
	ext = list_first(&d.unknown_ext, struct q2_unknown_ext, node);
	assert_int_equal(ext->type, 0x12345678);
	assert_memory_equal(ext->data, "abcde", 5);
	assert_int_equal(q2_header_build(&d, again, 65536, &err), 0);
	assert_memory_equal(buf, again, 65536);
	q2_header_destroy(&h);
	q2_header_destroy(&d);
	free(buf);
	free(again);
}

static void duplicate_extensions(void **state)
{
	uint8_t *buf = good(3), *at = buf + Q2_H_V3_LENGTH;
	struct error err;

	memset(at, 0, 500);
	for (unsigned i = 0; i < 2; i++) {
		store_be32(at + i * 16, 0x77777777);
		store_be32(at + i * 16 + 4, 3);
	}
	assert_int_equal(decode(buf, 65536, &err), -EUCLEAN);
	assert_non_null(strstr(err.text, "occurs twice"));
	free(buf);
}

/* --- on an open image --- */

static void set_text(char **p, const char *text)
{
	mem_free(*p);
	*p = text ? mem_strdup(text) : NULL;
}

/* Which of the two states does the file hold? -1: neither. */
static int which_backing(const struct mem_content *c, const char *a, const char *b)
{
	uint8_t *buf = malloc(65536);
	struct q2_header h;
	struct error err = ERROR_INIT;
	int ret = -1;

	mem_content_read(c, 0, buf, 65536);
	if (q2_header_decode(buf, 65536, "x", &h, &err) == 0) {
		const char *name = h.backing_name ? h.backing_name : "";

		ret = !strcmp(name, a) ? 0 : !strcmp(name, b) ? 1 : -1;
		if (ret >= 0 &&
			strcmp(h.backing_format ? h.backing_format : "", ret ? "qcow2" : "raw"))
			ret = -1;
		q2_header_destroy(&h);
	}
	free(buf);
	return ret;
}

static void apply_event(struct mem_content *c, const struct record_event *e)
{
	if (e->op == RECORD_WRITE)
		check_int(mem_content_write(c, e->off, e->data, e->len), 0);
}

/* Every prefix and every drop-one between two flushes holds the old name or the new. */
static void crash_backing(const struct mem_content *start, const struct record_event *log, size_t n,
	const char *a, const char *b)
{
	size_t first = 0;

	for (size_t end = 0; end <= n; end++) {
		if (end < n && log[end].op != RECORD_FLUSH)
			continue;
		for (size_t k = first; k <= 2 * end; k++) {
			struct mem_content *c;

			check_int(mem_content_dup(start, &c), 0);
			for (size_t i = 0; i < end; i++)
				if (i < first || (k < end ? i <= k : i != k - end))
					apply_event(c, &log[i]);
			check(which_backing(c, a, b) >= 0);
			mem_content_free(c);
		}
		first = end + 1;
	}
}

static void change_backing(uint32_t cluster_bits, const char *a, const char *b)
{
	struct q2_test t = {3, cluster_bits, 4, false, false, false, 256 * KiB, NULL};
	struct block_open_opts o = {.flags = BLOCK_OPEN_RDWR, .trust = &block_trust_local};
	struct block_node *mem = q2_test_mem(q2_test_build(&t)), *record, *n;
	struct error err = ERROR_INIT;
	const struct record_event *log;
	struct mem_content *start, *end;
	struct q2_image *img;
	size_t events;

	check_int(co_block_open_on(&block_record, block_node_ref(mem), NULL, &o, &record, NULL), 0);
	n = q2_test_open(block_node_ref(record), NULL, NULL);
	img = q2_image(n);
	set_text(&img->h.backing_name, a);
	set_text(&img->h.backing_format, "raw");
	check_int(co_q2_header_write_all(img, &err), 0);
	record_clear(record);
	check_int(mem_node_snapshot(mem, &start), 0);
	check_int(which_backing(start, a, b), 0);
	set_text(&img->h.backing_name, b);
	set_text(&img->h.backing_format, "qcow2");
	check_int(co_q2_header_write_all(img, &err), 0);
	check_int(mem_node_snapshot(mem, &end), 0);
	check_int(which_backing(end, a, b), 1);
	log = record_log(record, &events);
	crash_backing(start, log, events, a, b);
	mem_content_free(start);
	mem_content_free(end);
	check_int(co_block_node_unref(n), 0);
	co_block_node_unref(record);
	co_block_node_unref(mem);
}

CO_TEST(backing_change_is_atomic)
{
	char *long_name = malloc(800);

	memset(long_name, 'l', 799);
	long_name[799] = 0;
	change_backing(9, "base.raw", "other.qcow2");
	change_backing(12, "base.raw", "other.qcow2");
	change_backing(16, "base.raw", "other.qcow2");
	change_backing(16, long_name, "short");
	change_backing(16, "short", long_name);
	change_backing(12, long_name, "short");
	free(long_name);
}

CO_TEST(unknown_autoclear_is_cleared_by_the_first_write)
{
	struct mem_content *c = q2_test_build(&plain);
	struct block_node *file, *n;
	uint8_t bits[8] = {0};
	char buf[512] = "x";

	bits[7] = 0xf2; /* raw data file, and unknown ones */
	check_int(mem_content_write(c, Q2_H_AUTOCLEAR, bits, 8), 0);
	file = q2_test_mem(c);
	n = q2_test_open(block_node_ref(file), NULL, NULL);
	check_int(co_block_pread(n, 0, buf, 512), 0);
	check_int(co_block_pread(file, Q2_H_AUTOCLEAR, bits, 8), 0);
	check_int(load_be64(bits), 0xf2);
	check_int(co_block_pwrite(n, 0, buf, 512), 0);
	check_int(co_block_pread(file, Q2_H_AUTOCLEAR, bits, 8), 0);
	check_int(load_be64(bits), 0);
	check_int(co_block_node_unref(n), 0);
	co_block_node_unref(file);
}

static int open_poked(
	uint32_t field, unsigned bytes, uint64_t value, uint32_t flags, struct error *err)
{
	struct mem_content *c = q2_test_build(&plain);
	struct block_node *n;
	uint8_t be[8];
	int r;

	store_be64(be, value);
	check_int(mem_content_write(c, field, be + 8 - bytes, bytes), 0);
	*err = ERROR_INIT;
	r = q2_test_try_open(q2_test_mem(c), NULL, flags, NULL, &n, err);
	if (r == 0)
		check_int(co_block_node_unref(n), 0);
	return r;
}

CO_TEST(what_cannot_be_written_is_refused)
{
	struct error err;

	check_int(open_poked(Q2_H_INCOMPATIBLE, 8, Q2_INCOMPAT_CORRUPT, 0, &err), 0);
	check_int(open_poked(Q2_H_INCOMPATIBLE, 8, Q2_INCOMPAT_CORRUPT, BLOCK_OPEN_RDWR, &err),
		-EACCES);
	check(strstr(err.text, "marked corrupt"));
	check_int(open_poked(Q2_H_INCOMPATIBLE, 8, Q2_INCOMPAT_DATA_FILE, 0, &err), -ENOTSUP);
	check_int(
		open_poked(Q2_H_INCOMPATIBLE, 8, Q2_INCOMPAT_DATA_FILE, BLOCK_OPEN_NO_IO, &err), 0);
	check_int(open_poked(Q2_H_CRYPT_METHOD, 4, Q2_CRYPT_AES, BLOCK_OPEN_RDWR, &err), -ENOTSUP);
	check(strstr(err.text, "encrypted"));
	check_int(open_poked(Q2_H_L1_OFFSET, 8, 0x1000000, 0, &err), -EUCLEAN);
	check(strstr(err.text, "ends behind the end of the file"));
	check_int(open_poked(Q2_H_L1_OFFSET, 8, 0x10000, 0, &err), -EUCLEAN);
	check(strstr(err.text, "overlap"));
}

/* A clean image is not written by opening it, whichever way. */
CO_TEST(opening_writes_nothing)
{
	struct mem_content *c = q2_test_build(&plain), *after;
	uint64_t before = mem_content_hash(c);
	struct block_node *file = q2_test_mem(c);

	check_int(co_block_node_unref(q2_test_open(block_node_ref(file), NULL, NULL)), 0);
	check_int(mem_node_snapshot(file, &after), 0);
	check(mem_content_hash(after) == before);
	mem_content_free(after);
	co_block_node_unref(file);
}

CO_TEST(a_corruption_found_stops_writes)
{
	struct mem_content *c = q2_test_build(&plain);
	struct block_node *file, *n;
	char buf[512] = "x";
	uint8_t be[8];

	/* An L2 entry between two clusters. */
	store_be64(be, Q2_COPIED | 0x40000);
	check_int(mem_content_write(c, 0x30000, be, 8), 0);
	store_be64(be, Q2_COPIED | 0x50200);
	check_int(mem_content_write(c, 0x40000, be, 8), 0);
	check_int(mem_content_resize(c, 0x60000), 0);
	file = q2_test_mem(c);
	n = q2_test_open(block_node_ref(file), NULL, NULL);
	check_int(co_block_pread(n, 0, buf, 512), -EUCLEAN);
	check_int(co_block_pwrite(n, 0, buf, 512), -EUCLEAN);
	check_int(co_block_pread(file, Q2_H_INCOMPATIBLE, be, 8), 0);
	check_int(load_be64(be), Q2_INCOMPAT_CORRUPT);
	co_block_node_unref(n);
	co_block_node_unref(file);
}

/* L1 entries, or refcount table entries, that name what is a table already. */
static int open_table(uint64_t at, uint64_t entry, uint64_t entry2, uint32_t flags)
{
	struct mem_content *c = q2_test_build(&plain);
	struct block_node *n;
	uint8_t be[16];
	int r;

	store_be64(be, entry);
	store_be64(be + 8, entry2);
	check_int(mem_content_write(c, at, be, 16), 0);
	check_int(mem_content_resize(c, 0x80000), 0);
	r = q2_test_try_open(q2_test_mem(c), NULL, flags, NULL, &n, NULL);
	if (r == 0)
		check_int(co_block_node_unref(n), 0);
	return r;
}

CO_TEST(tables_in_one_place_are_refused)
{
	uint32_t rw = BLOCK_OPEN_RDWR;

	check_int(open_table(0x10000, 0x20000, 0, rw), 0);
	check_int(open_table(0x10000, 0x20000, 0x20000, rw), -EUCLEAN);
	check_int(open_table(0x10000, 0x20000, 0x20000, 0), 0);
	check_int(open_table(0x10000, 0x20000, 0x20000, rw | BLOCK_OPEN_CHECK), 0);
	check_int(open_table(0x10000, 0x20000, 0x30000, rw), -EUCLEAN);
	check_int(open_table(0x30000, Q2_COPIED | 0x40000, 0, rw), 0);
	check_int(open_table(0x30000, Q2_COPIED | 0x20000, 0, rw), -EUCLEAN);
	check_int(open_table(0x30000, Q2_COPIED | 0x10000, 0, rw), -EUCLEAN);
	check_int(open_table(0x30000, Q2_COPIED | 0x10000, 0, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_limit),
		cmocka_unit_test(backing_names),
		cmocka_unit_test(cut_off_headers),
		cmocka_unit_test(unknown_feature_is_named),
		cmocka_unit_test(round_trip),
		cmocka_unit_test(duplicate_extensions),
		cmocka_unit_test(backing_change_is_atomic),
		cmocka_unit_test(unknown_autoclear_is_cleared_by_the_first_write),
		cmocka_unit_test(what_cannot_be_written_is_refused),
		cmocka_unit_test(opening_writes_nothing),
		cmocka_unit_test(a_corruption_found_stops_writes),
		cmocka_unit_test(tables_in_one_place_are_refused),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
