/* SPDX-License-Identifier: MIT */
/*
 * The independent qcow2 checker, written for clarity, not for speed or hostile input sizes: it
 * walks header, refcount structures, active and snapshot tables, counts references in one array
 * and compares it with the refcounts.
 */
#include "tests/crash/refcheck.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

const char *const refcheck_class_names[RC_CLASSES] = {
	"structure", "refcount-low", "overlap", "copied"};

enum use { USE_NONE, USE_HEADER, USE_REFTABLE, USE_REFBLOCK, USE_L1, USE_L2, USE_DATA, USE_SNAPS };
static const char *const use_names[] = {
	"nothing", "header", "refcount table", "refcount block", "L1", "L2", "data", "snapshots"};

struct walk {
	const uint8_t *img;
	uint64_t size, clusters; /* clusters that may be referenced */
	unsigned cb;             /* cluster bits */
	uint64_t cs;
	unsigned order;
	bool v3, extl2;
	uint64_t reftable, reftable_entries;
	uint32_t *refs;
	uint8_t *use;
	struct refcheck *r;
};

static void attr_printf(3, 4) bad(struct walk *w, enum refcheck_class c, const char *fmt, ...)
{
	va_list ap;

	if (!refcheck_errors(w->r)) {
		va_start(ap, fmt);
		vsnprintf(w->r->text, sizeof(w->r->text), fmt, ap);
		va_end(ap);
	}
	w->r->errors[c]++;
}

static uint64_t be64_at(const struct walk *w, uint64_t off)
{
	/* A table's last cluster may be cut by the end of the file: what is not there is zero. */
	return off < w->size && w->size - off >= 8 ? load_be64(w->img + off) : 0;
}

/* Counts a reference to every cluster of [off, off+len). False when it lies outside. */
static bool count(struct walk *w, uint64_t off, uint64_t len, enum use use, const char *what)
{
	uint64_t first = off >> w->cb, last = (off + len - 1) >> w->cb;

	if (!len)
		return true;
	if (off + len < off || last >= w->clusters) {
		bad(w, RC_STRUCTURE, "%s at 0x%llx lies beyond the end of the file", what,
			(unsigned long long)off);
		return false;
	}
	for (uint64_t c = first; c <= last; c++) {
		bool single = use != USE_DATA && use != USE_L2;

		if (w->use[c] && (w->use[c] != use || single))
			bad(w, RC_OVERLAP, "%s at 0x%llx overlaps %s", what,
				(unsigned long long)off, use_names[w->use[c]]);
		if (!w->use[c])
			w->use[c] = (uint8_t)use;
		w->refs[c]++;
	}
	return true;
}

static uint64_t refcount_of(const struct walk *w, uint64_t c)
{
	uint64_t per = (w->cs * 8) >> w->order, block, off;
	unsigned bits = 1u << w->order;
	uint64_t i = c % per;

	if (c / per >= w->reftable_entries)
		return 0;
	block = be64_at(w, w->reftable + c / per * 8) & ~0x1ffULL;
	if (!block)
		return 0;
	off = block + i * bits / 8;
	if (off >= w->size || w->size - off < MAX(bits / 8, 1u))
		return 0;
	switch (w->order) {
	case 0:
	case 1:
	case 2:
		return w->img[off] >> (i * bits % 8) & ((1u << bits) - 1);
	case 3:
		return w->img[off];
	case 4:
		return load_be16(w->img + off);
	case 5:
		return load_be32(w->img + off);
	default:
		return load_be64(w->img + off);
	}
}

static void walk_l2(struct walk *w, uint64_t l2, bool active, bool flags)
{
	unsigned esize = w->extl2 ? 16 : 8;

	for (uint64_t i = 0; i < w->cs / esize; i++) {
		uint64_t e = be64_at(w, l2 + i * esize), off = e & 0x00fffffffffffe00ULL;
		uint64_t sub = w->extl2 ? be64_at(w, l2 + i * esize + 8) : 0;

		if (flags)
			goto check_flags;
		if (e >> 62 & 1) {
			unsigned x = 62 - (w->cb - 8);
			uint64_t coff = e & ((1ULL << x) - 1);
			uint64_t sectors = ((e & 0x3fffffffffffffffULL) >> x) + 1;
			uint64_t end = align_down(coff, 512) + sectors * 512;

			if (e >> 63 || sub)
				bad(w, RC_STRUCTURE, "compressed entry 0x%llx with extra bits",
					(unsigned long long)e);
			/* The last sector may be cut by the end of the file. */
			if (coff >= w->size)
				bad(w, RC_STRUCTURE, "compressed data at 0x%llx is not in the file",
					(unsigned long long)coff);
			else
				count(w, coff, end - coff, USE_DATA, "compressed data");
			continue;
		}
		if ((e & 0x3f000000000001feULL) || ((e & 1) && (!w->v3 || w->extl2)))
			bad(w, RC_STRUCTURE, "reserved bits in L2 entry 0x%llx of table 0x%llx",
				(unsigned long long)e, (unsigned long long)l2);
		if ((sub & sub >> 32) & 0xffffffffULL)
			bad(w, RC_STRUCTURE, "subcluster both zero and allocated: 0x%llx",
				(unsigned long long)sub);
		if (!off) {
			if (sub & 0xffffffffULL)
				bad(w, RC_STRUCTURE, "subclusters 0x%llx allocated at 0",
					(unsigned long long)sub);
			continue;
		}
		if (off & (w->cs - 1))
			bad(w, RC_STRUCTURE, "unaligned data cluster 0x%llx",
				(unsigned long long)off);
		else
			count(w, off, w->cs, USE_DATA, "data cluster");
		continue;
	check_flags:
		if (!active || (e >> 62 & 1) || !off || off >> w->cb >= w->clusters)
			continue;
		if (e >> 63 && w->refs[off >> w->cb] > 1)
			bad(w, RC_COPIED, "COPIED on data cluster 0x%llx with %u references",
				(unsigned long long)off, w->refs[off >> w->cb]);
		else if ((e >> 63) != (refcount_of(w, off >> w->cb) == 1))
			w->r->copied_soft++;
	}
}

/* With `flags` the references are counted already, and COPIED is judged. */
static void walk_l1(struct walk *w, uint64_t l1, uint64_t n, bool active, bool flags)
{
	if (!flags && n && ((l1 & (w->cs - 1)) || !l1)) {
		bad(w, RC_STRUCTURE, "bad L1 table offset 0x%llx", (unsigned long long)l1);
		return;
	}
	/* Tables lie inside the file: what is absurd is not walked. */
	if (n > w->size / 8 + w->cs) {
		if (!flags)
			bad(w, RC_STRUCTURE, "L1 table of %llu entries", (unsigned long long)n);
		return;
	}
	if (!flags && !count(w, l1, n * 8, USE_L1, "L1 table"))
		return;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t e = be64_at(w, l1 + i * 8), off = e & 0x00fffffffffffe00ULL;

		if (!flags && (e & 0x7f000000000001ffULL))
			bad(w, RC_STRUCTURE, "reserved bits in L1 entry 0x%llx",
				(unsigned long long)e);
		if (!off)
			continue;
		if (off & (w->cs - 1)) {
			if (!flags)
				bad(w, RC_STRUCTURE, "unaligned L2 table 0x%llx",
					(unsigned long long)off);
			continue;
		}
		if (flags) {
			if (off >> w->cb >= w->clusters)
				continue;
			if (e >> 63 && w->refs[off >> w->cb] > 1)
				bad(w, RC_COPIED, "COPIED on L2 table 0x%llx with %u references",
					(unsigned long long)off, w->refs[off >> w->cb]);
			else if ((e >> 63) != (refcount_of(w, off >> w->cb) == 1))
				w->r->copied_soft++;
		} else if (!count(w, off, w->cs, USE_L2, "L2 table")) {
			continue;
		}
		walk_l2(w, off, active, flags);
	}
}

static void walk_snapshots(struct walk *w)
{
	const uint8_t *h = w->img;
	uint64_t off = load_be64(h + 64), at = off;
	uint32_t n = load_be32(h + 60);

	w->r->snapshots = n;
	if (!n)
		return;
	if (!off || (off & (w->cs - 1)) || n > 1000) {
		bad(w, RC_STRUCTURE, "bad snapshot table: %u at 0x%llx", n,
			(unsigned long long)off);
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint64_t len;

		if (at >= w->size || w->size - at < 40) {
			bad(w, RC_STRUCTURE, "snapshot table is cut");
			return;
		}
		len = 40ULL + load_be32(w->img + at + 36) + load_be16(w->img + at + 12) +
			load_be16(w->img + at + 14);
		if (len > 4096 || at + len > w->size) {
			bad(w, RC_STRUCTURE, "snapshot entry %u has no sensible size", i);
			return;
		}
		walk_l1(w, load_be64(w->img + at), load_be32(w->img + at + 8), false, false);
		at += align_up(len, 8);
	}
	count(w, off, at - off, USE_SNAPS, "snapshot table");
}

static void walk_refcounts(struct walk *w, uint32_t table_clusters)
{
	if (!w->reftable || (w->reftable & (w->cs - 1)) || !table_clusters) {
		bad(w, RC_STRUCTURE, "bad refcount table offset 0x%llx",
			(unsigned long long)w->reftable);
		w->reftable_entries = 0;
		return;
	}
	if (!count(w, w->reftable, (uint64_t)table_clusters * w->cs, USE_REFTABLE,
		    "refcount table")) {
		w->reftable_entries = 0;
		return;
	}
	for (uint64_t i = 0; i < w->reftable_entries; i++) {
		uint64_t e = be64_at(w, w->reftable + i * 8);

		if (!e)
			continue;
		if (e & 0x1ff || e & (w->cs - 1))
			bad(w, RC_STRUCTURE, "bad refcount table entry 0x%llx",
				(unsigned long long)e);
		else
			count(w, e, w->cs, USE_REFBLOCK, "refcount block");
	}
}

static bool walk_start(struct walk *w, const uint8_t *img, uint64_t size, struct refcheck *r)
{
	memset(r, 0, sizeof(*r));
	*w = (struct walk){.img = img, .size = size, .r = r};
	if (size < 104 || load_be32(img) != 0x514649fb) {
		bad(w, RC_STRUCTURE, "no qcow2 header");
		return false;
	}
	r->version = load_be32(img + 4);
	w->cb = load_be32(img + 20);
	if ((r->version != 2 && r->version != 3) || w->cb < 9 || w->cb > 21) {
		bad(w, RC_STRUCTURE, "version %u, cluster bits %u", r->version, w->cb);
		return false;
	}
	w->cs = 1ULL << w->cb;
	w->v3 = r->version == 3;
	w->order = w->v3 ? load_be32(img + 96) : 4;
	if (w->order > 6) {
		bad(w, RC_STRUCTURE, "refcount order %u", w->order);
		return false;
	}
	r->dirty = w->v3 && load_be64(img + 72) & 1;
	r->corrupt = w->v3 && load_be64(img + 72) & 2;
	w->extl2 = w->v3 && load_be64(img + 72) & 16;
	r->has_backing = load_be64(img + 8);
	r->size = load_be64(img + 24);
	w->reftable = load_be64(img + 48);
	w->clusters = div_up(size, w->cs);
	w->refs = calloc(w->clusters, sizeof(*w->refs));
	w->use = calloc(w->clusters, 1);
	return w->refs && w->use;
}

/* Fills refs, use and everything of the result that concerns references. */
static void walk_all(struct walk *w)
{
	const uint8_t *img = w->img;
	uint64_t l1 = load_be64(img + 40), cover = w->cs * (w->cs / (w->extl2 ? 16 : 8));
	uint32_t l1_size = load_be32(img + 36), table_clusters = load_be32(img + 56);

	w->reftable_entries = MIN((uint64_t)table_clusters, w->clusters) * (w->cs / 8);
	count(w, 0, w->cs, USE_HEADER, "header");
	walk_refcounts(w, table_clusters);
	if (l1_size < div_up(w->r->size, cover))
		bad(w, RC_STRUCTURE, "L1 table of %u entries is too small for the size", l1_size);
	walk_l1(w, l1, l1_size, true, false);
	walk_snapshots(w);
	walk_l1(w, l1, l1_size, true, true);
}

void refcheck(const uint8_t *img, uint64_t size, struct refcheck *ret)
{
	struct walk w;

	if (walk_start(&w, img, size, ret)) {
		walk_all(&w);
		for (uint64_t c = 0; c < w.clusters; c++) {
			uint64_t rc = refcount_of(&w, c);

			if (w.refs[c] > rc)
				bad(&w, RC_REFCOUNT_LOW,
					"cluster 0x%llx (%s) has %u references, refcount %llu",
					(unsigned long long)(c << w.cb), use_names[w.use[c]],
					w.refs[c], (unsigned long long)rc);
			else if (w.refs[c] < rc)
				ret->leaks++;
		}
	}
	free(w.refs);
	free(w.use);
}

uint64_t refcheck_free_map(const uint8_t *img, uint64_t size, uint8_t **ret)
{
	struct refcheck r;
	struct walk w;
	uint64_t n = 0;

	*ret = NULL;
	if (walk_start(&w, img, size, &r)) {
		walk_all(&w);
		n = w.clusters;
		*ret = calloc(n ? n : 1, 1);
		for (uint64_t c = 0; *ret && c < n; c++)
			(*ret)[c] = !w.refs[c] && !refcount_of(&w, c);
	}
	free(w.refs);
	free(w.use);
	return n;
}
