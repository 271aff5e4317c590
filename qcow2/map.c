/* SPDX-License-Identifier: MIT */
/*
 * Guest offset to host extent: L1 and L2 look-ups.
 *
 * Theory of operation: a look-up works under map_lock on the L1 table in memory and on cached L2
 * slices, and goes on over entry, slice and table borders as long as the next piece is of the same
 * kind (and adjacent on the host where that matters) and cached; so one call maps a long run. Only
 * a missing slice makes it drop the lock and load it. Entries are judged as they are met: one that
 * makes no sense marks the image corrupt, but never before a good prefix was returned.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "qcow2/qcow2.h"

/* What a run looks like so far. */
struct run {
	const struct q2_image *img;
	struct q2_mapping *m;
	uint64_t off, want; /* guest offset of the next byte, bytes still wanted */
	uint64_t bad;       /* the entry that makes no sense */
};

#define SLICES_MAX 32u

enum step { STEP_MORE, STEP_DONE, STEP_MISS, STEP_BAD };

bool q2_l1_entry_valid(const struct q2_image *img, uint64_t entry)
{
	uint64_t off = entry & Q2_OFFSET_MASK;

	return is_aligned(off, img->cluster_size) && !(img->writable && (entry & Q2_L1_RESERVED));
}

/* Standard entries; the words of extended ones are judged by subcluster. */
static bool entry_valid(const struct q2_image *img, uint64_t entry)
{
	uint64_t reserved = Q2_L2_RESERVED;

	if (entry & Q2_COMPRESSED)
		return !(entry & Q2_COPIED) || !img->writable;
	if (img->h.version < 3 || img->extl2)
		reserved |= Q2_ZERO;
	return is_aligned(entry & Q2_OFFSET_MASK, img->cluster_size) &&
		!(img->writable && (entry & reserved));
}

bool q2_l2_entry_valid(const struct q2_image *img, uint64_t entry, uint64_t bitmap)
{
	if (!entry_valid(img, entry))
		return false;
	if (!img->extl2 || (entry & Q2_COMPRESSED))
		return true;
	/* No subcluster is both, and none has data where there is no cluster. */
	return !((bitmap >> 32) & bitmap & UINT32_MAX) &&
		((entry & Q2_OFFSET_MASK) || !(uint32_t)bitmap);
}

enum q2_kind q2_entry_kind(const struct q2_image *img, uint64_t entry)
{
	if (entry & Q2_COMPRESSED)
		return Q2_DATA_COMPRESSED;
	if ((entry & Q2_ZERO) && img->h.version >= 3 && !img->extl2)
		return entry & Q2_OFFSET_MASK ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN;
	return entry & Q2_OFFSET_MASK ? Q2_DATA : Q2_UNALLOCATED;
}

/* Kind of subcluster `sub` and the number of subclusters from it on of that kind. */
enum q2_kind q2_sub_kind(uint64_t entry, uint64_t bitmap, unsigned sub, unsigned *count)
{
	uint32_t alloc = (uint32_t)bitmap >> sub, zero = (uint32_t)(bitmap >> 32) >> sub;
	uint32_t same;
	enum q2_kind kind;

	if (zero & 1) {
		same = zero;
		kind = entry & Q2_OFFSET_MASK ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN;
	} else if (alloc & 1) {
		same = alloc;
		kind = Q2_DATA;
	} else {
		same = ~(alloc | zero);
		kind = Q2_UNALLOCATED;
	}
	/* Trailing ones of `same`, within the cluster. */
	*count = ~same ? (unsigned)__builtin_ctz(~same) : 32;
	*count = MIN(*count, Q2_SUBCLUSTERS - sub);
	return kind;
}

/* Adds `len` bytes of `kind` at `host` to the run, or says that it ends here. */
static bool run_add(struct run *r, enum q2_kind kind, uint64_t host, bool copied, uint64_t len)
{
	struct q2_mapping *m = r->m;

	if (m->len) {
		if (m->kind != kind || m->copied != copied || kind == Q2_DATA_COMPRESSED)
			return false;
		/* Also for unallocated subclusters: their host space is shown by `map`. */
		if (host ? m->host_off + m->len != host : m->host_off)
			return false;
	} else {
		m->kind = kind;
		m->host_off = host;
		m->copied = copied;
	}
	len = MIN(len, r->want);
	m->len += len;
	r->off += len;
	r->want -= len;
	return true;
}

/* One standard entry. */
static enum step entry_step(struct run *r, uint64_t entry, bool l1_copied)
{
	const struct q2_image *img = r->img;
	uint64_t in = q2_cluster_offset(img, r->off), host = entry & Q2_OFFSET_MASK;
	enum q2_kind kind = q2_entry_kind(img, entry);

	if (unlikely(!entry_valid(img, entry))) {
		r->bad = entry;
		return STEP_BAD;
	}
	if (!r->m->len)
		r->m->entry = entry;
	if (kind == Q2_DATA_COMPRESSED)
		host = q2_compressed_offset(entry, img->cluster_bits);
	else if (host)
		host += in;
	if (!run_add(r, kind, host, l1_copied && (entry & Q2_COPIED), img->cluster_size - in))
		return STEP_DONE;
	return STEP_MORE;
}

/* One extended entry: runs of subclusters. */
static enum step extl2_step(struct run *r, uint64_t entry, uint64_t bitmap, bool l1_copied)
{
	const struct q2_image *img = r->img;
	uint64_t cluster_end = align_down(r->off, img->cluster_size) + img->cluster_size;

	if (entry & Q2_COMPRESSED)
		return entry_step(r, entry, l1_copied);
	if (unlikely(!q2_l2_entry_valid(img, entry, bitmap))) {
		r->bad = entry;
		return STEP_BAD;
	}
	if (!r->m->len) {
		r->m->entry = entry;
		r->m->bitmap = bitmap;
	}
	while (r->want && r->off < cluster_end) {
		uint64_t in = q2_cluster_offset(img, r->off), host = entry & Q2_OFFSET_MASK, end;
		unsigned sub = (unsigned)(in >> img->sub_bits), count;
		enum q2_kind kind = q2_sub_kind(entry, bitmap, sub, &count);

		end = (uint64_t)(sub + count) << img->sub_bits;
		if (!run_add(r, kind, host ? host + in : 0, l1_copied && (entry & Q2_COPIED),
			    end - in))
			return STEP_DONE;
	}
	return STEP_MORE;
}

/* The part of the run inside one cached slice. */
static enum step slice_step(
	struct run *r, const struct q2_slice *s, uint32_t slice_size, bool copied)
{
	const struct q2_image *img = r->img;
	uint64_t per = slice_size / img->l2_entry_size;
	uint64_t i = q2_l2_index(img, r->off) & (per - 1);
	enum step step = STEP_MORE;

	for (; i < per && r->want && step == STEP_MORE; i++) {
		const uint8_t *p = s->data + i * img->l2_entry_size;

		step = img->extl2 ? extl2_step(r, load_be64(p), load_be64(p + 8), copied)
				  : entry_step(r, load_be64(p), copied);
	}
	return step;
}

/* Host offset of the slice that maps `off` inside the table at `table`. */
uint64_t q2_l2_slice_offset(const struct q2_image *img, uint64_t table, uint64_t off)
{
	uint64_t byte = q2_l2_index(img, off) * img->l2_entry_size;

	return table + align_down(byte, q2_cache_slice_size(img->l2_cache));
}

/* Under map_lock: as far as it goes without loading. */
static enum step map_cached(struct q2_image *img, struct run *r, uint64_t *miss)
{
	uint64_t span = 1ULL << (img->cluster_bits + img->l2_bits);
	unsigned slices = 0;

	/* The lock is held for a bounded time: callers go on where a mapping ends. */
	while (r->want && slices < SLICES_MAX) {
		uint64_t l1_index = q2_l1_index(img, r->off), entry, table;
		struct q2_slice *s;
		enum step step;

		entry = l1_index < img->h.l1_size ? img->l1[l1_index] : 0;
		table = entry & Q2_OFFSET_MASK;
		if (unlikely(!q2_l1_entry_valid(img, entry))) {
			r->bad = entry;
			return STEP_BAD;
		}
		if (!table) {
			if (!r->m->len)
				r->m->entry = r->m->bitmap = 0;
			if (!run_add(r, Q2_UNALLOCATED, 0, false, span - (r->off & (span - 1))))
				return STEP_DONE;
			continue;
		}
		*miss = q2_l2_slice_offset(img, table, r->off);
		s = q2_cache_peek(img->l2_cache, *miss);
		if (!s)
			return STEP_MISS;
		slices++;
		step = slice_step(r, s, q2_cache_slice_size(img->l2_cache), entry & Q2_COPIED);
		if (step != STEP_MORE)
			return step;
	}
	return STEP_DONE;
}

/* The cache has no room and cannot be written (after a failed flush): reads go on all the same. A
 * slice that is not cached is current on disk. It is never `copied` here: writes need the cache. */
static int map_uncached(struct q2_image *img, struct run *run, uint64_t slice_off, enum step *step)
{
	uint32_t size = q2_cache_slice_size(img->l2_cache);
	struct q2_slice slice = {.data = block_buffer_alloc(img->file, size)};
	int r;

	if (!slice.data)
		return -ENOMEM;
	r = co_block_pread(img->file, slice_off, slice.data, size);
	if (r == 0)
		*step = slice_step(run, &slice, size, false);
	mem_free(slice.data);
	return r;
}

static int map_bad(struct q2_image *img, const struct run *run, uint64_t off)
{
	return co_q2_corrupt(img, "table entry %#llx for guest offset %#llx makes no sense",
		(unsigned long long)run->bad, (unsigned long long)off);
}

int co_q2_map(struct q2_image *img, uint64_t off, uint64_t len, struct q2_mapping *ret)
{
	struct run run = {img, ret, off, len, 0};
	struct q2_slice *held = NULL;
	uint64_t miss;
	enum step step;
	int r;

	*ret = (struct q2_mapping){0};
	for (;;) {
		spin_lock(&img->map_lock);
		step = map_cached(img, &run, &miss);
		spin_unlock(&img->map_lock);
		/* Held so that it could not be evicted again before it was looked at. */
		if (held)
			q2_cache_put(img->l2_cache, take(held));
		if (ret->len)
			return 0;
		if (step == STEP_BAD)
			return map_bad(img, &run, off);
		r = co_q2_cache_get(img, img->l2_cache, miss, &held);
		if (r == -EIO || r == -ENOSPC)
			r = map_uncached(img, &run, miss, &step);
		if (r == 0 && !held)
			return ret->len ? 0 : map_bad(img, &run, off);
		if (r < 0)
			return r;
	}
}
