/* SPDX-License-Identifier: MIT */
/*
 * Preallocation: every cluster gets its host cluster and its L2 entry, without data.
 *
 * The entries are plain data entries, as everybody writes them: the file reads as zeroes there,
 * because it is a hole beyond its old end, and its end is moved behind the last cluster.
 */
#include "base/trace.h"
#include "qcow2/qcow2.h"

/* Clusters from off on, inside one slice; those that have an entry stay as they are. */
static int run(struct q2_image *img, uint64_t off, uint64_t n, uint64_t *done)
{
	struct q2_l2_entry e[Q2_L2_RUN];
	uint64_t host, got, first;
	bool fresh;
	int r = co_q2_l2_load(img, off, n, e);

	if (r < 0)
		return r;
	for (first = 0; first < n && (e[first].entry || e[first].bitmap);)
		first++;
	*done = first;
	for (got = first; got < n && !e[got].entry && !e[got].bitmap;)
		got++;
	n = got - first;
	if (!n)
		return 0;
	r = co_q2_alloc_data(img, n, &host, &got, &fresh);
	if (r < 0)
		return r;
	if (!fresh)
		r = co_block_zero(img->file, host, got << img->cluster_bits, 0);
	for (uint64_t i = 0; i < got; i++)
		e[i] = (struct q2_l2_entry){
			(host + (i << img->cluster_bits)) | Q2_COPIED, img->extl2 ? UINT32_MAX : 0};
	if (r == 0)
		r = co_q2_l2_store(img, off + (first << img->cluster_bits), got, e);
	if (r < 0)
		co_q2_alloc_undo(img, host, got);
	*done += got;
	return r;
}

static int preallocate(struct q2_image *img, uint64_t off, uint64_t end)
{
	while (off < end) {
		uint64_t n = MIN(div_up(end - off, img->cluster_size), q2_l2_run_max(img, off)),
			 done;
		struct q2_alloc_range range;
		int r;

		co_q2_alloc_enter(img, &range, off, n << img->cluster_bits);
		r = co_q2_l2_table(img, off);
		if (r == 0)
			r = run(img, off, n, &done);
		q2_alloc_leave(img, &range);
		if (r < 0)
			return r;
		off += done << img->cluster_bits;
	}
	return 0;
}

int co_q2_preallocate(struct q2_image *img, uint64_t off, uint64_t len, enum block_prealloc mode,
	struct error *err)
{
	struct block_resize grow = {img->data_end, BLOCK_PREALLOC_OFF, false};
	int r = co_q2_before_write(img);

	if (r == 0)
		r = preallocate(img, align_down(off, img->cluster_size), off + len);
	trace("q2_preallocate", "%s: %llu bytes at %llu, result %d", img->node->filename,
		(unsigned long long)len, (unsigned long long)off, r);
	if (r < 0)
		return error_set_errno(
			err, r, "%s: cannot preallocate clusters", img->node->filename);
	grow.size = img->data_end;
	grow.prealloc = mode == BLOCK_PREALLOC_METADATA ? BLOCK_PREALLOC_OFF : mode;
	if (grow.size <= block_size(img->file))
		return 0;
	return co_block_resize(img->file, &grow, err);
}
