/* SPDX-License-Identifier: MIT */
/*
 * Zero and discard: whole clusters by metadata, edges by a write.
 *
 * What an entry becomes (version 3; with extended L2 the same by the bits of each subcluster):
 *
 *  zero			keeps its host cluster and reads as zeroes
 *  zero with UNMAP, discard	reads as zeroes without a host cluster; with discard_no_unref it
 *				keeps the cluster, so that the file does not fragment
 *  discard of a hole		stays a hole, unless a backing file shows through: what was
 *				discarded must not come back as older data
 *
 * Version 2 has no zero flag: without a backing file the entry is cleared; with one, zeroes are
 * written and discards ignored. Compressed clusters are always dropped. Dropped host clusters go
 * to the quarantine; they are punched there when discards are passed down, never here (I3).
 */
#include "base/trace.h"
#include "qcow2/qcow2.h"

struct drop {
	struct q2_image *img;
	bool unmap;   /* the host cluster may go */
	bool discard; /* holes may stay holes */
	bool backing;
};

static bool keeps_host(const struct drop *d, const struct q2_l2_entry *e)
{
	if (e->entry & Q2_COMPRESSED)
		return false;
	return (e->entry & Q2_OFFSET_MASK) && (!d->unmap || d->img->discard_no_unref);
}

static bool is_hole(const struct drop *d, const struct q2_l2_entry *e)
{
	return !e->entry && !e->bitmap && d->discard && !d->backing;
}

/* The new entry of a whole cluster. */
static struct q2_l2_entry whole_cluster(const struct drop *d, const struct q2_l2_entry *e)
{
	bool keep = keeps_host(d, e);

	if (is_hole(d, e) || d->img->h.version < 3)
		return (struct q2_l2_entry){0, 0};
	if (d->img->extl2)
		return (struct q2_l2_entry){keep ? e->entry : 0, (uint64_t)UINT32_MAX << 32};
	return (struct q2_l2_entry){(keep ? e->entry & ~Q2_ZERO : 0) | Q2_ZERO, 0};
}

/* Extended L2: subclusters [first, last] of a cluster that is not compressed. */
static struct q2_l2_entry part_of_cluster(
	const struct q2_l2_entry *e, unsigned first, unsigned last)
{
	uint64_t mask = (2ULL << last) - (1ULL << first);

	return (struct q2_l2_entry){e->entry, (e->bitmap & ~mask) | mask << 32};
}

/* Nothing to change below a missing table? Then no table is made. */
static bool table_missing(struct q2_image *img, uint64_t off)
{
	uint64_t index = q2_l1_index(img, off);
	bool missing;

	spin_lock(&img->map_lock);
	missing = index >= img->h.l1_size || !(img->l1[index] & Q2_OFFSET_MASK);
	spin_unlock(&img->map_lock);
	return missing;
}

/* Stores what changed and sends the old clusters to the quarantine. */
static int store(struct drop *d, uint64_t off, uint64_t n, const struct q2_l2_entry *old,
	const struct q2_l2_entry *new)
{
	int r;

	if (!memcmp(old, new, n * sizeof(*old)))
		return 0;
	r = co_q2_l2_table(d->img, off);
	if (r == 0)
		r = co_q2_l2_store(d->img, off, n, new);
	for (uint64_t i = 0; r == 0 && i < n; i++) {
		if ((new[i].entry &Q2_OFFSET_MASK) || !old[i].entry)
			continue;
		if (d->unmap)
			q2_free_entry_punch(d->img, old[i].entry);
		else
			q2_free_entry(d->img, old[i].entry);
	}
	return r;
}

/* Up to a run of whole clusters from off on; *done bytes. */
static int clusters_drop(struct drop *d, uint64_t off, uint64_t len, uint64_t *done)
{
	struct q2_image *img = d->img;
	uint64_t n = MIN(div_up(len, img->cluster_size), q2_l2_run_max(img, off));
	struct q2_l2_entry old[Q2_L2_RUN], new[Q2_L2_RUN];
	uint64_t span = 1ULL << (img->cluster_bits + img->l2_bits);
	struct q2_alloc_range range;
	int r;

	if ((d->discard || img->h.version < 3) && !d->backing && table_missing(img, off)) {
		*done = MIN(len, span - (off & (span - 1)));
		return 0;
	}
	co_q2_alloc_enter(img, &range, off, n << img->cluster_bits);
	r = co_q2_l2_load(img, off, n, old);
	for (uint64_t i = 0; i < n && r == 0; i++)
		new[i] = whole_cluster(d, &old[i]);
	if (r == 0)
		r = store(d, off, n, old, new);
	q2_alloc_leave(img, &range);
	*done = MIN(len, n << img->cluster_bits);
	return r;
}

/* Whole subclusters inside one cluster. 1: the cluster is compressed, write instead. */
static int subclusters_zero(struct drop *d, uint64_t off, uint64_t len)
{
	struct q2_image *img = d->img;
	uint64_t cluster = align_down(off, img->cluster_size);
	struct q2_l2_entry old, new;
	struct q2_alloc_range range;
	int r;

	co_q2_alloc_enter(img, &range, off, len);
	r = co_q2_l2_load(img, cluster, 1, &old);
	if (r == 0 && (old.entry & Q2_COMPRESSED)) {
		r = 1;
	} else if (r == 0) {
		new = part_of_cluster(&old, (unsigned)((off - cluster) >> img->sub_bits),
			(unsigned)((off + len - 1 - cluster) >> img->sub_bits));
		r = store(d, cluster, 1, &old, &new);
	}
	q2_alloc_leave(img, &range);
	return r;
}

static int write_zeroes(struct q2_image *img, uint64_t off, uint64_t len)
{
	static const uint8_t zeroes[4096];
	struct iovec iov[64];

	while (len) {
		uint64_t part = MIN(len, sizeof(zeroes) * ARRAY_SIZE(iov)), left = part;
		unsigned n = 0;
		int r;

		for (; left; left -= iov[n++].iov_len)
			iov[n] = (struct iovec){
				(void *)(uintptr_t)zeroes, MIN(left, sizeof(zeroes))};
		r = co_q2_write_range(img, off, (struct iov_slice){iov, n, 0, part}, 0);
		if (r < 0)
			return r;
		off += part;
		len -= part;
	}
	return 0;
}

/* Marks the unit (cluster or subcluster) at `start` zero when all of it reads as zeroes already: 1
 * when it does not. Looked at and changed inside one enter, or a write between would be lost. */
static int unit_mark_zero(struct drop *d, uint64_t start, uint64_t unit)
{
	struct q2_image *img = d->img;
	uint64_t cluster = align_down(start, img->cluster_size), zero;
	unsigned sub = (unsigned)((start - cluster) >> img->sub_bits);
	struct q2_l2_entry old, new;
	struct q2_alloc_range range;
	int r;

	co_q2_alloc_enter(img, &range, start, unit);
	r = co_q2_reads_zero(img, start, unit, &zero);
	if (r == 0 && zero < unit)
		r = 1;
	if (r == 0 && img->h.version >= 3)
		r = co_q2_l2_load(img, cluster, 1, &old);
	if (r == 0 && img->h.version >= 3) {
		new = img->extl2 ? part_of_cluster(&old, sub, sub) : whole_cluster(d, &old);
		r = store(d, cluster, 1, &old, &new);
	}
	q2_alloc_leave(img, &range);
	return r;
}

/* Less than a unit: nothing but a mark when the whole unit reads as zeroes anyway, or a write. */
static int edge_zero(struct drop *d, uint64_t off, uint64_t len, uint32_t flags)
{
	uint64_t unit = 1ULL << d->img->sub_bits;
	int r = unit_mark_zero(d, align_down(off, unit), unit);

	if (r <= 0)
		return r;
	return flags & BLOCK_IO_NO_FALLBACK ? -ENOTSUP : write_zeroes(d->img, off, len);
}

/* The piece of a zero request at off: a run of clusters, of subclusters, or an edge. */
static int zero_piece(struct drop *d, uint64_t off, uint64_t len, uint32_t flags, uint64_t *done)
{
	struct q2_image *img = d->img;
	uint64_t cluster = img->cluster_size, unit = 1ULL << img->sub_bits, end = off + len;
	uint64_t size = block_size(img->node);
	int r;

	/* The last cluster of the disk counts as whole. */
	if (end == size)
		end = align_up(end, cluster);
	if (is_aligned(off, cluster) && end - off >= cluster) {
		r = clusters_drop(d, off, align_down(end - off, cluster), done);
		*done = MIN(*done, len);
		return r;
	}
	end = MIN(off + len, align_down(off, cluster) + cluster);
	if (is_aligned(off, unit) && end - off >= unit) {
		*done = align_down(end - off, unit);
		r = subclusters_zero(d, off, *done);
		if (r == 1)
			r = flags & BLOCK_IO_NO_FALLBACK ? -ENOTSUP : write_zeroes(img, off, *done);
		return r;
	}
	*done = MIN(end, align_down(off, unit) + unit) - off;
	return edge_zero(d, off, *done, flags);
}

static int zero_range(struct drop *d, uint64_t off, uint64_t len, uint32_t flags)
{
	struct q2_image *img = d->img;

	while (len) {
		uint64_t done;
		int r = zero_piece(d, off, len, flags, &done);

		if (r < 0)
			return r;
		off += done;
		len -= done;
	}
	trace("q2_zero", "%s: up to %llu", img->node->filename, (unsigned long long)off);
	return 0;
}

int co_q2_zero(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	struct drop d = {img, io->flags & BLOCK_IO_UNMAP, false, n->child[BLOCK_ROLE_BACKING]};
	unsigned token;
	int r = co_q2_before_write(img);

	if (r < 0)
		return r;
	if (img->h.version < 3) {
		/* Entries can only be cleared. */
		if (d.backing || img->h.backing_name)
			return -ENOTSUP;
		d.unmap = true;
	}
	token = co_q2_request_enter(img);
	r = zero_range(&d, io->off, io->len, io->flags);
	q2_request_leave(img, token);
	return r;
}

int co_q2_discard(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	struct drop d = {img, true, true, n->child[BLOCK_ROLE_BACKING] || img->h.backing_name};
	uint64_t off = io->off, len = io->len;
	unsigned token;
	int r = co_q2_before_write(img);

	if (r < 0)
		return r;
	/* The backing file would shine through. */
	if (img->h.version < 3 && d.backing)
		return 0;
	token = co_q2_request_enter(img);
	while (r == 0 && len) {
		uint64_t done;

		r = clusters_drop(&d, off, len, &done);
		off += done;
		len -= done;
	}
	q2_request_leave(img, token);
	trace("q2_discard", "%s: %llu bytes at %llu, result %d", n->filename,
		(unsigned long long)io->len, (unsigned long long)io->off, r);
	return r;
}
