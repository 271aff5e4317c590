/* SPDX-License-Identifier: MIT */
/*
 * Which clusters hold metadata: so that no write of data or tables ever lands on them, even in an
 * image whose refcounts lie.
 *
 * Theory of operation: header, L1 table, refcount table and snapshot tables are a handful of ranges
 * known from struct q2_image. L2 tables and refcount blocks stand in a hash set of cluster offsets
 * (open addressing, at most half full), filled at open from the L1 and refcount tables, so that its
 * size is bounded by theirs. The low bits of a slot, free because offsets are cluster-aligned, hold
 * the kind. Guarded by map_lock.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

#define KIND_MASK 0xffULL

struct q2_overlap {
	uint64_t *slot; /* offset | kind; 0: empty */
	uint64_t n, mask;
	uint64_t conflict; /* a cluster that two tables claim, found when collecting; 0: none */
};

static uint64_t slot_of(const struct q2_overlap *o, uint64_t off)
{
	return ((off >> 9) * 0x9e3779b97f4a7c15ULL >> 20) & o->mask;
}

static uint64_t *find(struct q2_overlap *o, uint64_t off)
{
	uint64_t i = slot_of(o, off);

	while (o->slot[i] && (o->slot[i] & ~KIND_MASK) != off)
		i = (i + 1) & o->mask;
	return &o->slot[i];
}

static void insert(struct q2_overlap *o, uint64_t entry)
{
	uint64_t *s = find(o, entry & ~KIND_MASK);

	if (!*s)
		o->n++;
	*s = entry;
}

/* Takes over a larger array; the old one is returned for freeing. */
static uint64_t *rehash(struct q2_overlap *o, uint64_t *slot, uint64_t cap)
{
	uint64_t *old = o->slot, old_cap = o->mask + 1;

	o->slot = slot;
	o->mask = cap - 1;
	o->n = 0;
	for (uint64_t i = 0; old && i < old_cap; i++)
		if (old[i])
			insert(o, old[i]);
	return old;
}

int q2_overlap_add(struct q2_image *img, uint64_t off, enum q2_overlap_kind kind)
{
	struct q2_overlap *o = img->overlap;

	if (!o)
		return 0;
	spin_lock(&img->map_lock);
	while ((o->n + 1) * 2 > o->mask) {
		uint64_t cap = (o->mask + 1) * 2, *slot;

		spin_unlock(&img->map_lock);
		slot = mem_calloc(cap, sizeof(*slot));
		if (!slot)
			return -ENOMEM;
		spin_lock(&img->map_lock);
		if (cap > o->mask + 1)
			slot = rehash(o, slot, cap);
		spin_unlock(&img->map_lock);
		mem_free(slot);
		spin_lock(&img->map_lock);
	}
	insert(o, off | kind);
	spin_unlock(&img->map_lock);
	return 0;
}

/* Closes the gap, so that searches need no tombstones. */
static void close_gap(struct q2_overlap *o, uint64_t hole)
{
	for (uint64_t i = (hole + 1) & o->mask; o->slot[i]; i = (i + 1) & o->mask) {
		uint64_t home = slot_of(o, o->slot[i] & ~KIND_MASK);

		/* Movable when its home does not lie cyclically in (hole, i]. */
		if (((i - home) & o->mask) < ((i - hole) & o->mask))
			continue;
		o->slot[hole] = o->slot[i];
		o->slot[i] = 0;
		hole = i;
	}
}

void q2_overlap_del(struct q2_image *img, uint64_t off)
{
	struct q2_overlap *o = img->overlap;
	uint64_t *s;

	if (!o)
		return;
	spin_lock(&img->map_lock);
	s = find(o, off);
	if (*s) {
		*s = 0;
		o->n--;
		close_gap(o, (uint64_t)(s - o->slot));
	}
	spin_unlock(&img->map_lock);
}

/* A table found at open. Several L1 entries may share an L2 table that must be copied before it is
 * written; nothing else may be in two places. */
static int collect(struct q2_image *img, uint64_t off, enum q2_overlap_kind kind, bool shared)
{
	struct q2_overlap *o = img->overlap;
	uint64_t known = *find(o, off);

	off = align_down(off, img->cluster_size);
	if (q2_overlaps(img, off, img->cluster_size, kind) || (known && !shared))
		o->conflict = off ? off : 1;
	return known ? 0 : q2_overlap_add(img, off, kind);
}

static int collect_tables(struct q2_image *img)
{
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < img->reftable_entries; i++)
		if (img->reftable[i])
			r = collect(img, img->reftable[i] & Q2_REFTABLE_MASK, Q2_OVERLAP_REFBLOCK,
				false);
	for (uint32_t i = 0; r == 0 && i < img->h.l1_size; i++)
		if (img->l1[i] & Q2_OFFSET_MASK)
			r = collect(img, img->l1[i] & Q2_OFFSET_MASK, Q2_OVERLAP_L2,
				!(img->l1[i] & Q2_COPIED));
	return r;
}

bool q2_overlap_conflict(const struct q2_image *img, uint64_t *ret)
{
	*ret = img->overlap ? img->overlap->conflict : 0;
	return *ret;
}

int q2_overlap_new(struct q2_image *img)
{
	struct q2_overlap *o = mem_zalloc(sizeof(*o));
	int r;

	if (!o)
		return -ENOMEM;
	o->mask = 63;
	o->slot = mem_calloc(o->mask + 1, sizeof(*o->slot));
	if (!o->slot) {
		mem_free(o);
		return -ENOMEM;
	}
	img->overlap = o;
	r = collect_tables(img);
	if (r < 0) {
		q2_overlap_free(o);
		img->overlap = NULL;
	}
	return r;
}

/* In place, so that only more tables than ever before take memory. */
int q2_overlap_refill(struct q2_image *img)
{
	struct q2_overlap *o = img->overlap;

	if (!o)
		return q2_overlap_new(img);
	memset(o->slot, 0, (o->mask + 1) * sizeof(*o->slot));
	o->n = 0;
	o->conflict = 0;
	return collect_tables(img);
}

void q2_overlap_free(struct q2_overlap *o)
{
	if (!o)
		return;
	mem_free(o->slot);
	mem_free(o);
}

static bool hits(uint64_t off, uint64_t len, uint64_t table, uint64_t table_len)
{
	return table_len && ranges_overlap(off, len, table, table_len);
}

static bool hits_snapshots(struct q2_image *img, uint64_t off, uint64_t len)
{
	if (!img->nb_snapshots)
		return false;
	if (hits(off, len, img->h.snapshots_offset, 1))
		return true;
	for (uint32_t i = 0; i < MIN(img->nb_snapshots, 64u); i++)
		if (hits(off, len, img->snapshots[i].l1_offset, img->snapshots[i].l1_size * 8ULL))
			return true;
	return false;
}

bool q2_overlaps_locked(struct q2_image *img, uint64_t off, uint64_t len, enum q2_overlap_kind own)
{
	struct q2_overlap *o = img->overlap;
	uint64_t end = off + len;

	if (off < img->cluster_size || hits(off, len, img->h.l1_offset, img->h.l1_size * 8ULL) ||
		hits(off, len, img->h.reftable_offset,
			(uint64_t)img->h.reftable_clusters << img->cluster_bits) ||
		hits_snapshots(img, off, len))
		return true;
	for (off = align_down(off, img->cluster_size); o && off < end; off += img->cluster_size) {
		uint64_t entry = *find(o, off);

		if (entry && (entry & KIND_MASK) != own)
			return true;
	}
	return false;
}

bool q2_overlaps(struct q2_image *img, uint64_t off, uint64_t len, enum q2_overlap_kind own)
{
	bool ret;

	spin_lock(&img->map_lock);
	ret = q2_overlaps_locked(img, off, len, own);
	spin_unlock(&img->map_lock);
	return ret;
}

int co_q2_overlap_check(struct q2_image *img, uint64_t off, uint64_t len, enum q2_overlap_kind own)
{
	if (!q2_overlaps(img, off, len, own))
		return 0;
	return co_q2_corrupt(img, "a write to [%#llx, %#llx) would overwrite metadata",
		(unsigned long long)off, (unsigned long long)(off + len));
}
