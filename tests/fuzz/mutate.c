/* SPDX-License-Identifier: MIT */
/*
 * The structure-aware mutator of qcow2 images: besides libFuzzer's own mutations it pokes header
 * fields, refcount table and blocks, L1 and L2 entries and snapshot entries, with values that are
 * likely to matter: other clusters of the file, limits, flags, neighbours of what is there.
 */
#include "tests/fuzz/fuzz.h"

struct image {
	uint8_t *p;
	size_t size;
	unsigned cluster_bits;
	uint64_t rng;
};

static uint64_t next(struct image *m)
{
	uint64_t z = (m->rng += 0x9e3779b97f4a7c15ULL);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

/* A host offset somewhere in the file, mostly a cluster's start. */
static uint64_t some_offset(struct image *m)
{
	uint64_t off = next(m) % (m->size + 1);

	if (next(m) % 8)
		off = align_down(off, 1ULL << m->cluster_bits);
	if (next(m) % 32 == 0)
		off = align_down(m->size, 1ULL << m->cluster_bits) +
			(next(m) % 3 << m->cluster_bits);
	return off;
}

static uint64_t some_number(struct image *m, uint64_t old)
{
	static const uint64_t magic[] = {0, 1, 2, 3, 9, 21, 22, 64, 104, 112, 511, 512, 513, 4096,
		65535, 65536, 1u << 22, 1u << 31, UINT32_MAX, 1ULL << 32, 1ULL << 56, INT64_MAX,
		1ULL << 62, 1ULL << 63, UINT64_MAX};

	switch (next(m) % 6) {
	case 0:
		return magic[next(m) % ARRAY_SIZE(magic)];
	case 1:
		return old + 1;
	case 2:
		return old - 1;
	case 3:
		return old ^ 1ULL << next(m) % 64;
	case 4:
		return old << 1;
	default:
		return some_offset(m);
	}
}

static uint64_t some_entry(struct image *m, uint64_t old)
{
	uint64_t e;

	switch (next(m) % 8) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return old ^ 1ULL << 63;
	case 3:
		return old ^ 1ULL << 62;
	case 4:
		return some_number(m, old);
	case 5:
		/* compressed: somewhere, with some length */
		e = 1ULL << 62 | (next(m) % (m->size + 1));
		return e | next(m) % 4 << (62 - (m->cluster_bits - 8));
	default:
		return some_offset(m) | (next(m) & 1ULL << 63) | (next(m) % 8 == 0);
	}
}

static void poke64(struct image *m, uint64_t off, bool entry)
{
	uint64_t old;

	if (off > m->size || m->size - off < 8)
		return;
	old = load_be64(m->p + off);
	store_be64(m->p + off, entry ? some_entry(m, old) : some_number(m, old));
}

static void poke32(struct image *m, uint64_t off)
{
	if (off <= m->size && m->size - off >= 4)
		store_be32(m->p + off, (uint32_t)some_number(m, load_be32(m->p + off)));
}

/* Where the pointer at `off` of a table leads, 0 when nowhere. */
static uint64_t follow(const struct image *m, uint64_t off)
{
	uint64_t to;

	if (off > m->size || m->size - off < 8)
		return 0;
	to = load_be64(m->p + off) & 0x00fffffffffffe00ULL;
	return to < m->size ? to : 0;
}

/* Some entry of the table at `table`, the first ones most often. */
static uint64_t slot(struct image *m, uint64_t table, unsigned stride)
{
	uint64_t n = (1ULL << m->cluster_bits) / stride;

	if (next(m) % 2 && n > 8)
		n = 8;
	return table + next(m) % n * stride;
}

static void poke_header(struct image *m)
{
	static const uint8_t f64[] = {8, 24, 40, 48, 64, 72, 80, 88};
	static const uint8_t f32[] = {4, 16, 20, 32, 36, 56, 60, 96, 100, 104, 108, 112, 116};

	if (next(m) % 2)
		poke64(m, f64[next(m) % ARRAY_SIZE(f64)], false);
	else
		poke32(m, f32[next(m) % ARRAY_SIZE(f32)]);
}

static void poke_table(struct image *m)
{
	uint64_t table = follow(m, next(m) % 3 ? 40 : 48), at; /* L1, refcount table */

	at = slot(m, table, 8);
	if (next(m) % 3 == 0 || !follow(m, at)) {
		poke64(m, at, true);
		return;
	}
	at = slot(m, follow(m, at), next(m) % 4 ? 8 : 2);
	poke64(m, at, true);
}

static void poke_snapshot(struct image *m)
{
	uint64_t table = follow(m, 64), field = next(m) % 80;

	if (next(m) % 3) {
		poke32(m, table + align_down(field, 4));
		return;
	}
	poke64(m, slot(m, follow(m, table), 8), true);
}

/* Copies one cluster over another: tables that claim each other's clusters. */
static void copy_cluster(struct image *m)
{
	uint64_t cs = 1ULL << m->cluster_bits, n = m->size >> m->cluster_bits;

	if (n < 2)
		return;
	memmove(m->p + next(m) % n * cs, m->p + next(m) % n * cs, cs);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	struct image m = {.rng = seed};
	unsigned times;

	if (size < FUZZ_CONTROL + 512)
		return LLVMFuzzerMutate(data, size, max);
	m.p = data + FUZZ_CONTROL;
	m.size = size - FUZZ_CONTROL;
	m.cluster_bits = load_be32(m.p + 20);
	if (m.cluster_bits < 9 || m.cluster_bits > 21)
		m.cluster_bits = 9;
	for (times = 1 + next(&m) % 4; times; times--) {
		switch (next(&m) % 12) {
		case 0:
		case 1:
		case 2:
			poke_header(&m);
			break;
		case 3:
		case 4:
		case 5:
		case 6:
			poke_table(&m);
			break;
		case 7:
			poke_snapshot(&m);
			break;
		case 8:
			copy_cluster(&m);
			break;
		case 9:
			store_be64(data + 8 * (next(&m) % (FUZZ_CONTROL / 8)), next(&m));
			break;
		default:
			size = LLVMFuzzerMutate(data, size, max);
			if (size < FUZZ_CONTROL + 512)
				return size;
			m.size = size - FUZZ_CONTROL;
		}
	}
	return size;
}
