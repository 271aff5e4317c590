/* SPDX-License-Identifier: MIT */
/*
 * What the qcow2 tests share: small images built by hand in memory, and a checker of their
 * structure that knows nothing of the engine: it counts references itself.
 */
#ifndef DROVER_TEST_Q2_H
#define DROVER_TEST_Q2_H

#include "tests/unit/block.h"
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* Rounds of a randomized test: SEEDS when it is set and not empty (make exports it empty). */
static inline unsigned q2_test_seeds(unsigned by_default)
{
	const char *env = getenv("SEEDS");
	int n = env ? atoi(env) : 0;

	return n > 0 ? (unsigned)n : by_default;
}

struct q2_test {
	uint32_t version, cluster_bits, order;
	bool extl2, lazy, backing;
	uint64_t size;
	const char *opts; /* open options, NULL: none */
};

/* Clusters: header, refcount table, refcount block, then the L1 table. */
static inline struct mem_content *q2_test_build(const struct q2_test *t)
{
	uint64_t cluster = 1ULL << t->cluster_bits, entry = t->extl2 ? 16 : 8;
	uint64_t l1 = div_up(t->size, cluster * (cluster / entry));
	uint64_t l1_clusters = div_up(l1 * 8, cluster), used = 3 + l1_clusters;
	struct q2_header h = {.version = t->version,
		.cluster_bits = t->cluster_bits,
		.size = t->size,
		.l1_size = (uint32_t)l1,
		.l1_offset = 3 * cluster,
		.reftable_offset = cluster,
		.reftable_clusters = 1,
		.refcount_order = t->order,
		.header_length = t->version >= 3 ? Q2_H_V3_LENGTH : Q2_H_V2_LENGTH,
		.incompatible = t->extl2 ? Q2_INCOMPAT_EXTL2 : 0,
		.compatible = t->lazy ? Q2_COMPAT_LAZY_REFCOUNTS : 0};
	uint8_t *buf = calloc(1, cluster);
	struct mem_content *c;

	list_init(&h.unknown_ext);
	check_int(mem_content_new(used * cluster, &c), 0);
	check_int(q2_header_build(&h, buf, cluster, NULL), 0);
	check_int(mem_content_write(c, 0, buf, cluster), 0);
	memset(buf, 0, cluster);
	store_be64(buf, 2 * cluster);
	check_int(mem_content_write(c, cluster, buf, cluster), 0);
	memset(buf, 0, cluster);
	for (uint64_t i = 0; i < used; i++)
		q2_refcount_store(buf, i, t->order, 1);
	check_int(mem_content_write(c, 2 * cluster, buf, cluster), 0);
	free(buf);
	return c;
}

static inline struct block_node *q2_test_mem(struct mem_content *c)
{
	struct block_open_opts o = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP, .trust = &block_trust_local};
	struct block_node *file;

	check_int(co_mem_open(c, &o, &file, NULL), 0);
	return file;
}

/* Opens the image on `file` (takes the reference), with a backing node when there is one. */
static inline int q2_test_try_open(struct block_node *file, const char *opts, uint32_t flags,
	struct block_node *backing, struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *conf = NULL;
	struct block_open_opts o = {.flags = flags, .trust = &block_trust_local};
	int r = opts ? conf_parse_options(opts, NULL, &conf, err) : 0;

	check_int(r, 0);
	r = co_block_open_on(&block_qcow2, file, conf, &o, ret, err);
	if (r == 0 && backing)
		co_block_set_child(*ret, BLOCK_ROLE_BACKING, block_node_ref(backing));
	return r;
}

static inline struct block_node *q2_test_open(
	struct block_node *file, const char *opts, struct block_node *backing)
{
	struct error err = ERROR_INIT;
	struct block_node *n;

	if (q2_test_try_open(file, opts, BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP, backing, &n, &err)) {
		fprintf(stderr, "open: %s\n", err.text);
		abort();
	}
	return n;
}

/* --- structure --- */

struct q2_count {
	const struct mem_content *c;
	uint64_t cluster, clusters;
	uint32_t bits, *refs; /* references found, by cluster */
	unsigned leaks, errors;
};

static inline uint64_t q2_count_be64(const struct q2_count *s, uint64_t off)
{
	uint8_t b[8];

	mem_content_read(s->c, off, b, sizeof(b));
	return load_be64(b);
}

static inline uint32_t q2_count_be32(const struct q2_count *s, uint64_t off)
{
	uint8_t b[4];

	mem_content_read(s->c, off, b, sizeof(b));
	return load_be32(b);
}

static inline void q2_count_range(struct q2_count *s, uint64_t off, uint64_t len)
{
	for (uint64_t i = off / s->cluster; len && i <= (off + len - 1) / s->cluster; i++) {
		if (i >= s->clusters) {
			fprintf(stderr, "reference to cluster %llu beyond the file\n",
				(unsigned long long)i);
			s->errors++;
			return;
		}
		s->refs[i]++;
	}
}

static inline uint64_t q2_count_refcount(const struct q2_count *s, uint64_t i)
{
	uint32_t order = q2_count_be32(s, Q2_H_VERSION) >= 3 ? q2_count_be32(s, 96) : 4;
	uint64_t per = s->cluster * 8 >> order;
	uint64_t entries = q2_count_be32(s, Q2_H_REFTABLE_CLUSTERS) * s->cluster / 8, block;
	uint64_t at = (i % per << order) / 8;
	uint8_t buf[8] = {0};

	if (i / per >= entries)
		return 0;
	block = q2_count_be64(s, q2_count_be64(s, Q2_H_REFTABLE_OFFSET) + i / per * 8);
	if (!block)
		return 0;
	/* The entry alone, which starts a byte or lies inside one. */
	mem_content_read(s->c, block + at, buf, order > 3 ? (1u << order) / 8 : 1);
	return q2_refcount_load(buf, order >= 3 ? 0 : i % (8 >> order), order);
}

/* COPIED says that the refcount is 1. */
static inline void q2_count_copied(struct q2_count *s, uint64_t entry, const char *what)
{
	uint64_t off = entry & Q2_OFFSET_MASK;

	if (!off)
		return;
	if (!!(entry & Q2_COPIED) == (q2_count_refcount(s, off / s->cluster) == 1))
		return;
	fprintf(stderr, "%s entry %#llx: refcount %llu\n", what, (unsigned long long)entry,
		(unsigned long long)q2_count_refcount(s, off / s->cluster));
	s->errors++;
}

static inline void q2_count_l2(struct q2_count *s, uint64_t table, uint64_t entry_size)
{
	for (uint64_t i = 0; i < s->cluster; i += entry_size) {
		uint64_t e = q2_count_be64(s, table + i);

		if (e & Q2_COMPRESSED) {
			q2_count_range(s, q2_compressed_offset(e, s->bits),
				q2_compressed_bytes(e, s->bits));
			continue;
		}
		if (e & Q2_OFFSET_MASK)
			q2_count_range(s, e & Q2_OFFSET_MASK, s->cluster);
		q2_count_copied(s, e, "L2");
	}
}

static inline void q2_count_tables(struct q2_count *s)
{
	uint64_t l1 = q2_count_be64(s, Q2_H_L1_OFFSET), n = q2_count_be32(s, Q2_H_L1_SIZE);
	uint64_t reftable = q2_count_be64(s, Q2_H_REFTABLE_OFFSET);
	uint64_t reftable_len = q2_count_be32(s, Q2_H_REFTABLE_CLUSTERS) * s->cluster;
	bool v3 = q2_count_be32(s, Q2_H_VERSION) >= 3;
	uint64_t extl2 = v3 ? q2_count_be64(s, Q2_H_INCOMPATIBLE) & Q2_INCOMPAT_EXTL2 : 0;

	q2_count_range(s, 0, s->cluster);
	q2_count_range(s, l1, n * 8);
	q2_count_range(s, reftable, reftable_len);
	for (uint64_t i = 0; i < reftable_len; i += 8)
		if (q2_count_be64(s, reftable + i))
			q2_count_range(s, q2_count_be64(s, reftable + i), s->cluster);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t e = q2_count_be64(s, l1 + i * 8);

		if (!(e & Q2_OFFSET_MASK))
			continue;
		q2_count_range(s, e & Q2_OFFSET_MASK, s->cluster);
		q2_count_copied(s, e, "L1");
		q2_count_l2(s, e & Q2_OFFSET_MASK, extl2 ? 16 : 8);
	}
}

/* Images without snapshots. With `strict` there may be no leaks either. */
static inline void q2_test_structure(const struct mem_content *c, bool strict)
{
	struct q2_count s = {.c = c};

	s.bits = q2_count_be32(&s, Q2_H_CLUSTER_BITS);
	s.cluster = 1ULL << s.bits;
	s.clusters = div_up(mem_content_size(c), s.cluster) + 1024;
	s.refs = calloc(s.clusters, sizeof(*s.refs));
	q2_count_tables(&s);
	for (uint64_t i = 0; i < s.clusters; i++) {
		uint64_t have = q2_count_refcount(&s, i);

		if (have < s.refs[i]) {
			fprintf(stderr, "cluster %llu: refcount %llu, references %u\n",
				(unsigned long long)i, (unsigned long long)have, s.refs[i]);
			s.errors++;
		}
		s.leaks += have > s.refs[i];
	}
	free(s.refs);
	check_int(s.errors, 0);
	if (strict)
		check_int(s.leaks, 0);
}

static inline void q2_test_structure_of(struct block_node *file, bool strict)
{
	struct mem_content *c;

	check_int(mem_node_snapshot(file, &c), 0);
	q2_test_structure(c, strict);
	mem_content_free(c);
}

/* --- pseudo-random numbers --- */

static inline uint64_t q2_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
