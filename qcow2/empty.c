/* SPDX-License-Identifier: MIT */
/*
 * Emptying an image: drops every allocation of the active state, so that the backing file shows
 * through. {zero L1 in new clusters} < H[L1] < -1 for the old tree and the old L1 table: before the
 * switch nothing has changed, after it only leaks are left. Snapshots keep what is theirs.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

static int co_drop_all(struct q2_image *img)
{
	uint32_t n = img->h.l1_size;
	_cleanup_free_ uint64_t *zeroes = mem_calloc(MAX(n, 1u), sizeof(*zeroes));
	struct q2_tree tree;
	uint64_t off = 0;
	int r;

	if (!zeroes)
		return -ENOMEM;
	r = co_q2_alloc_table(img, (uint64_t)n * 8, &off);
	if (r == 0)
		r = co_q2_write_entries(img, off, zeroes, n);
	if (r < 0)
		return r;
	r = q2_tree_init(&tree, img);
	if (r == 0)
		r = q2_tree_add_l1(&tree, img->l1, n, -1, false);
	if (r == 0)
		r = q2_tree_add_clusters(
			&tree, img->h.l1_offset, q2_clusters_for(img, n * 8ULL), -1);
	if (r == 0)
		r = co_q2_switch_l1(img, off, zeroes, n, img->h.size);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_LOWER, false);
	q2_tree_destroy(&tree);
	return r;
}

/* Twice: the first L1 table had to lie behind all that was in use then, the second one finds room
 * at the front, and the file can be cut. */
static int co_empty(struct q2_image *img)
{
	int r = co_drop_all(img);

	if (r == 0)
		r = co_q2_forget(img);
	if (r == 0)
		r = co_drop_all(img);
	return r < 0 ? r : co_q2_trim_file(img);
}

int co_q2_make_empty(struct block_node *n, struct error *err)
{
	struct q2_image *img = q2_image(n);
	struct error why = ERROR_INIT;
	int r = q2_structure_writable(img, err);

	if (r == 0)
		r = co_q2_structure_begin(img, false, err);
	if (r < 0)
		return r;
	r = img->h.l1_size ? co_empty(img) : 0;
	r = co_q2_structure_end(img, r, &why, "empty the image");
	return r < 0 ? error_set(err, r, "%s", why.text) : 0;
}
