/* SPDX-License-Identifier: MIT */
/*
 * Changing the virtual size.
 *
 * grow		{ new L1 } < H[L1] < old L1 freed, then { what must read as zeroes, preallocated
 *		clusters } < H[size]. A crash leaves the old size.
 * shrink	H[size] < { L1 entries and L2 entries behind the end zeroed } < -1 for what they
 *		referred to < the file is cut. A crash leaves leaks at worst.
 *
 * What comes into sight by growing reads as zeroes: the rest of the last cluster, which may hold
 *old data, and a backing file that goes on behind the old end, are covered before the size changes;
 * VM state that lies where the disk will be is dropped, and so is what a shrink cut short by a
 *crash has left behind the end.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* --- the L1 table -------------------------------------------------------------------------- */

/* A table of n entries that holds the first `keep` of the old one; the rest is dropped. */
static int co_replace_l1(struct q2_image *img, uint32_t n, uint32_t keep)
{
	_cleanup_free_ uint64_t *l1 = mem_calloc(MAX(n, 1u), sizeof(*l1));
	uint32_t old_n = img->h.l1_size;
	struct q2_tree tree;
	uint64_t off = 0;
	int r;

	if (!l1)
		return -ENOMEM;
	keep = MIN(keep, old_n);
	if (keep)
		memcpy(l1, img->l1, keep * sizeof(*l1));
	r = co_q2_alloc_table(img, n * 8ULL, &off);
	if (r == 0)
		r = co_q2_write_entries(img, off, l1, n);
	if (r < 0)
		return r;
	r = q2_tree_init(&tree, img);
	if (r == 0)
		r = q2_tree_add_l1(&tree, img->l1 + keep, old_n - keep, -1, false);
	if (r == 0)
		r = q2_tree_add_clusters(
			&tree, img->h.l1_offset, q2_clusters_for(img, old_n * 8ULL), -1);
	if (r == 0)
		r = co_q2_switch_l1(img, off, l1, n, img->h.size);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_LOWER, false);
	q2_tree_destroy(&tree);
	return r;
}

static int co_resize_l1(struct q2_image *img, uint32_t n, uint32_t keep, struct error *err)
{
	struct error why = ERROR_INIT;
	int r = co_q2_structure_begin(img, false, err);

	if (r < 0)
		return r;
	r = co_replace_l1(img, n, keep);
	r = co_q2_structure_end(img, r, &why, "enlarge the L1 table");
	return r < 0 ? error_set(err, r, "%s", why.text) : 0;
}

int co_q2_grow_l1(struct q2_image *img, uint32_t n, struct error *err)
{
	return n > img->h.l1_size ? co_resize_l1(img, n, UINT32_MAX, err) : 0;
}

/* --- what lies behind the end -------------------------------------------------------------- */

/* The L2 table at the new end without its entries from `first` on; they lose their references. In
 * place when nobody else uses the table, else as a copy, for *entry to point to. */
static int co_cut_table(struct q2_image *img, struct q2_tree *tree, uint64_t *entry, uint64_t first)
{
	uint64_t cs = img->cluster_size, off = *entry & Q2_OFFSET_MASK;
	_cleanup_free_ uint8_t *table = block_buffer_alloc(img->file, cs);
	bool any = false;
	int r;

	if (!table)
		return -ENOMEM;
	if (!is_aligned(off, cs) || off >= block_size(img->file))
		return -EUCLEAN;
	r = co_block_pread(img->file, off, table, cs);
	for (uint64_t i = first; r == 0 && i < 1ULL << img->l2_bits; i++) {
		uint8_t *p = table + i * img->l2_entry_size;
		uint64_t e = load_be64(p);

		any |= !mem_is_zero(p, img->l2_entry_size);
		r = q2_tree_add_entry(tree, e, -1);
		memset(p, 0, img->l2_entry_size);
	}
	if (r < 0 || !any)
		return r;
	if (*entry & Q2_COPIED)
		return co_block_pwrite(img->file, off, table, cs);
	/* The clusters of the rest are shared with whoever shares the table. */
	for (uint64_t i = 0; i < first; i++)
		table[i * img->l2_entry_size] &= 0x7f;
	r = q2_tree_add_clusters(tree, off, 1, -1);
	if (r == 0)
		r = co_q2_alloc_table(img, cs, &off);
	if (r == 0)
		r = co_block_pwrite(img->file, off, table, cs);
	if (r == 0)
		r = co_block_flush(img->file);
	/* Else the old table, with what lies behind the end, stays the active one. */
	if (r == 0)
		*entry = off | Q2_COPIED;
	return r;
}

/* Takes everything behind the end out of the L2 table where it lies. */
static int co_cut_last_table(struct q2_image *img, struct q2_tree *tree)
{
	uint64_t clusters = div_up(img->h.size, img->cluster_size);
	uint64_t last = clusters >> img->l2_bits;
	uint64_t first = clusters & ((1ULL << img->l2_bits) - 1);

	if (!first || last >= img->h.l1_size || !(img->l1[last] & Q2_OFFSET_MASK))
		return 0;
	return co_cut_table(img, tree, &img->l1[last], first);
}

static int co_cut_tables(struct q2_image *img, struct q2_tree *tree)
{
	uint64_t keep = q2_l1_needed(img, img->h.size);
	int r = co_cut_last_table(img, tree);

	if (r == 0 && keep < img->h.l1_size)
		r = q2_tree_add_l1(tree, img->l1 + keep, img->h.l1_size - keep, -1, false);
	if (r < 0)
		return r;
	for (uint64_t i = keep; i < img->h.l1_size; i++)
		img->l1[i] = 0;
	r = co_q2_write_entries(img, img->h.l1_offset, img->l1, img->h.l1_size);
	return r < 0 ? r : co_block_flush(img->file);
}

/* A shrink cut short by a crash leaves entries behind the end. */
static int co_find_leftovers(struct q2_image *img, bool *ret)
{
	uint64_t cover = 1ULL << (img->cluster_bits + img->l2_bits);
	uint64_t off = align_up(img->h.size, img->cluster_size), end = align_up(off, cover);

	*ret = false;
	while (!*ret && off < end && q2_l1_index(img, off) < img->h.l1_size) {
		struct q2_mapping m;
		int r = co_q2_map(img, off, end - off, &m);

		if (r < 0)
			return r;
		*ret = m.kind != Q2_UNALLOCATED;
		off += m.len;
	}
	return 0;
}

static int co_remove_leftovers(struct q2_image *img, struct error *err)
{
	struct error why = ERROR_INIT;
	struct q2_tree tree;
	bool found;
	int r = co_find_leftovers(img, &found);

	if (r < 0 || !found)
		return r < 0 ? error_set_errno(
				       err, r, "%s: cannot read the L2 tables", img->node->filename)
			     : 0;
	r = co_q2_structure_begin(img, false, err);
	if (r < 0)
		return r;
	r = q2_tree_init(&tree, img);
	if (r == 0)
		r = co_cut_last_table(img, &tree);
	if (r == 0)
		r = co_q2_write_entries(img, img->h.l1_offset, img->l1, img->h.l1_size);
	if (r == 0)
		r = co_block_flush(img->file);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_LOWER, false);
	q2_tree_destroy(&tree);
	r = co_q2_structure_end(img, r, &why, "remove what a shrink has left");
	return r < 0 ? error_set(err, r, "%s", why.text) : 0;
}

/* --- growing ------------------------------------------------------------------------------- */

/* Is there VM state in the L1 entries that the disk will use? */
static bool vm_state_in_the_way(const struct q2_image *img, uint64_t needed)
{
	for (uint64_t i = q2_l1_needed(img, img->h.size); i < MIN(needed, (uint64_t)img->h.l1_size);
		i++)
		if (img->l1[i])
			return true;
	return false;
}

static int co_write_zeroes(struct q2_image *img, uint64_t off, uint64_t len)
{
	uint64_t size = MIN(len, 1 * MiB);
	_cleanup_free_ uint8_t *zeroes = block_buffer_alloc(img->file, size);
	unsigned token;
	int r = 0;

	if (!zeroes)
		return -ENOMEM;
	memset(zeroes, 0, size);
	token = co_q2_request_enter(img);
	for (uint64_t done = 0, n; r == 0 && done < len; done += n) {
		struct iovec iov;

		n = MIN(size, len - done);
		r = co_q2_write_range(img, off + done, iov_buf(&iov, zeroes, n), 0);
	}
	q2_request_leave(img, token);
	return r;
}

/* For images of version 2, which have no zero clusters to cover a backing file with: zeroes as data
 * where the backing file has any, and over old data in the last cluster. */
static int co_cover(struct q2_image *img, struct block_node *backing, uint64_t off, uint64_t end)
{
	uint64_t tail = MIN(end, align_up(off, img->cluster_size));
	int r = tail > off ? co_write_zeroes(img, off, tail - off) : 0;

	for (off = tail; r == 0 && backing && off < MIN(end, block_size(backing));) {
		struct block_extent e;

		r = co_block_extent_chain(
			backing, NULL, off, MIN(end, block_size(backing)) - off, &e);
		if (r == 0 && !(e.flags & BLOCK_EXTENT_ZERO) && e.flags & BLOCK_EXTENT_DATA)
			r = co_write_zeroes(img, off, e.len);
		off += r == 0 ? e.len : 0;
	}
	return r;
}

static int co_zero_new(struct q2_image *img, uint64_t size)
{
	struct block_node *backing = img->node->child[BLOCK_ROLE_BACKING];
	uint64_t old = img->h.size, end = align_up(old, img->cluster_size);
	struct block_io io = {.off = old, .flags = BLOCK_IO_UNMAP};
	int r;

	if (backing)
		end = MAX(end, block_size(backing));
	end = MIN(end, size);
	if (end <= old)
		return 0;
	io.len = end - old;
	r = co_q2_zero(img->node, &io);
	return r == -ENOTSUP ? co_cover(img, backing, old, end) : r;
}

static int co_switch_size(struct q2_image *img, uint64_t size)
{
	uint64_t old = img->h.size;
	int r = co_q2_commit(img, true);

	if (r < 0)
		return r;
	img->h.size = size;
	r = co_q2_header_switch(img);
	if (r < 0)
		img->h.size = old;
	else
		__atomic_store_n(&img->node->size, size, __ATOMIC_RELAXED);
	return r;
}

static int co_grow(struct q2_image *img, const struct block_resize *rs, struct error *err)
{
	uint64_t needed = q2_l1_needed(img, rs->size), old = img->h.size;
	int r = 0;

	if (needed > Q2_MAX_L1_BYTES / 8)
		return error_set(err, -EFBIG,
			"%s: with clusters of %llu bytes a disk cannot be "
			"larger than %llu bytes",
			img->node->filename, (unsigned long long)img->cluster_size,
			(unsigned long long)(Q2_MAX_L1_BYTES / 8)
				<< (img->cluster_bits + img->l2_bits));
	r = co_remove_leftovers(img, err);
	if (r < 0)
		return r;
	if (vm_state_in_the_way(img, needed))
		r = co_resize_l1(img, (uint32_t)MAX(needed, (uint64_t)img->h.l1_size),
			(uint32_t)q2_l1_needed(img, old), err);
	else
		r = co_q2_grow_l1(img, (uint32_t)needed, err);
	if (r < 0)
		return r;
	r = co_zero_new(img, rs->size);
	if (r == 0 && rs->prealloc != BLOCK_PREALLOC_OFF) {
		r = co_q2_preallocate(img, old, rs->size - old, rs->prealloc, err);
		if (r < 0)
			return r;
	}
	if (r == 0)
		r = co_switch_size(img, rs->size);
	return r < 0 ? error_set_errno(err, r, "%s: cannot grow the image", img->node->filename)
		     : 0;
}

/* --- shrinking ----------------------------------------------------------------------------- */

static int co_shrink_quiesced(struct q2_image *img, uint64_t size)
{
	struct q2_tree tree;
	int r = co_switch_size(img, size);

	if (r < 0)
		return r;
	r = q2_tree_init(&tree, img);
	if (r == 0)
		r = co_cut_tables(img, &tree);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_LOWER, false);
	q2_tree_destroy(&tree);
	return r < 0 ? r : co_q2_trim_file(img);
}

static int co_shrink(struct q2_image *img, const struct block_resize *rs, struct error *err)
{
	struct error why = ERROR_INIT;
	int r;

	if (rs->prealloc != BLOCK_PREALLOC_OFF)
		return error_set(err, -EINVAL,
			"%s: preallocation can only be used for growing an "
			"image",
			img->node->filename);
	r = co_q2_structure_begin(img, false, err);
	if (r < 0)
		return r;
	r = co_shrink_quiesced(img, rs->size);
	r = co_q2_structure_end(img, r, &why, "shrink the image");
	return r < 0 ? error_set(err, r, "%s", why.text) : 0;
}

int co_q2_resize(struct block_node *n, const struct block_resize *rs, struct error *err)
{
	struct q2_image *img = q2_image(n);
	struct block_resize r2 = *rs;
	int r = q2_structure_writable(img, err);

	if (r < 0)
		return r;
	if (rs->size % 512)
		return error_set(
			err, -EINVAL, "%s: the new size must be a multiple of 512", n->filename);
	/* Snapshots of version 2 do not say how large their disk was. */
	if (img->h.version < 3 && img->nb_snapshots)
		return error_set(err, -ENOTSUP,
			"%s: an image of version 2 with snapshots cannot be "
			"resized; upgrade it with qemu-img amend -o compat=1.1",
			n->filename);
	r = co_q2_before_write(img);
	if (r < 0)
		return error_set_errno(err, r, "%s: cannot update the header", n->filename);
	if (r2.size > img->h.size)
		return co_grow(img, &r2, err);
	return r2.size < img->h.size ? co_shrink(img, &r2, err) : 0;
}
