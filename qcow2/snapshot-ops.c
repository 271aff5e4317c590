/* SPDX-License-Identifier: MIT */
/*
 * Internal snapshots: create, delete, apply.
 *
 * Theory of Operation. The image is quiesced: caches are written and empty, nobody is in flight.
 * Each operation prepares in clusters nobody refers to, raises refcounts, switches by one write of
 * header sector 0 (I7), and lowers refcounts last (A < B: a barrier between them):
 *
 *	create	DIRTY < { L1 copy without COPIED, COPIED cleared in the active tables, new snapshot
 *		table, +1 for all the tree } < H[snapshots] < -1 for the old snapshot table < DIRTY
 *off delete	DIRTY < new snapshot table < H[snapshots] < -1 for the tree, the L1 copy and the old
 *		table < COPIED set where the count came down to 1 < DIRTY off
 *	apply	DIRTY < { +1 for what only the snapshot has, new L1 in new clusters without COPIED }
 *		< H[size, L1] < -1 for what only the old state had, the old L1 < DIRTY off
 *
 * The first barrier of create lies between the tables and the refcounts, so that no state on disk
 * has COPIED beside a count of 2 with two references. In every state in between, refcounts are at
 * least the number of references (I1) and COPIED is set only where the count is 1 (I6), but where
 * an operation has not come to clear or set it: that only costs a copy, or is of one reference.
 *With version 3, DIRTY makes every reader repair that.
 *
 * Only what differs is written: apply compares the two trees and touches no cluster that is in
 * both; create rewrites no L2 table that has no COPIED flag; delete sets flags in those tables only
 * that refer to a cluster whose count came down to 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "qcow2/qcow2.h"

static int check_writable(const struct q2_image *img, struct error *err)
{
	/* Before quiescing, others may be setting DIRTY. */
	if (__atomic_load_n(&img->h.incompatible, __ATOMIC_RELAXED) & Q2_INCOMPAT_DATA_FILE)
		return error_set(err, -ENOTSUP,
			"%s: images with an external data file have no "
			"internal snapshots",
			img->node->filename);
	return q2_structure_writable(img, err);
}

/* Writes the table of n snapshots into clusters of its own. */
static int co_write_table(
	struct q2_image *img, const struct q2_snapshot_entry *v, uint32_t n, uint64_t *off)
{
	uint64_t bytes = q2_snapshot_table_bytes(v, n), padded = align_up(bytes, 512);
	_cleanup_free_ uint8_t *buf = NULL;
	int r;

	if (bytes > Q2_MAX_SNAPSHOT_TABLE)
		return -EFBIG;
	r = co_q2_alloc_table(img, bytes, off);
	if (r < 0 || !bytes)
		return r;
	buf = block_buffer_alloc(img->file, padded);
	if (!buf)
		return -ENOMEM;
	memset(buf, 0, padded);
	q2_snapshot_table_encode(v, n, buf);
	return co_block_pwrite(img->file, *off, buf, padded);
}

/* H[snapshots]. */
static int co_switch_table(struct q2_image *img, uint64_t off, uint32_t n)
{
	uint64_t old_off = img->h.snapshots_offset;
	uint32_t old_n = img->h.nb_snapshots;
	int r;

	img->h.snapshots_offset = off;
	img->h.nb_snapshots = n;
	r = co_q2_header_switch(img);
	if (r < 0) {
		img->h.snapshots_offset = old_off;
		img->h.nb_snapshots = old_n;
	}
	return r;
}

/* --- create -------------------------------------------------------------------------------- */

static char *next_id(const struct q2_image *img)
{
	unsigned long long max = 0;

	for (uint32_t i = 0; i < img->nb_snapshots; i++) {
		unsigned long long id = strtoull(img->snapshots[i].info.id, NULL, 10);

		if (id > max && id < UINT32_MAX)
			max = id;
	}
	return mem_printf("%llu", max + 1);
}

static int new_entry(struct q2_image *img, const struct block_snapshot *s,
	struct q2_snapshot_entry *e, struct error *err)
{
	struct timespec now;

	if (s->name && strlen(s->name) > UINT16_MAX)
		return error_set(err, -EINVAL, "The snapshot name is longer than 65535 bytes");
	if (img->nb_snapshots >= Q2_MAX_SNAPSHOTS)
		return error_set(err, -EFBIG,
			"%s: the image has %u snapshots already, the most it "
			"can have",
			img->node->filename, img->nb_snapshots);
	if (img->max_refcount < 2)
		return error_set(err, -ENOTSUP,
			"%s: with refcounts of 1 bit an image cannot have "
			"snapshots",
			img->node->filename);
	if (s->id && *s->id)
		for (uint32_t i = 0; i < img->nb_snapshots; i++)
			if (!strcmp(img->snapshots[i].info.id, s->id))
				return error_set(err, -EEXIST, "%s: a snapshot with id '%s' exists",
					img->node->filename, s->id);
	e->info = *s;
	e->info.id = s->id && *s->id ? mem_strdup(s->id) : next_id(img);
	e->info.name = mem_strdup(s->name ? s->name : "");
	e->info.disk_size = img->h.size;
	if (!e->info.date_sec) {
		clock_gettime(CLOCK_REALTIME, &now);
		e->info.date_sec = (uint32_t)now.tv_sec;
		e->info.date_nsec = (uint32_t)now.tv_nsec;
	}
	e->l1_size = img->h.l1_size;
	if (!e->info.id || !e->info.name || q2_snapshot_build_extra(e) < 0) {
		q2_snapshot_entry_free(e);
		return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

/* The active L1 table without COPIED, first on disk, then in memory: a write that fails leaves the
 * flags in memory, so that they are cleared, and written, again. */
static int co_clear_l1_copied(struct q2_image *img)
{
	uint32_t n = img->h.l1_size;
	_cleanup_free_ uint64_t *l1 = mem_calloc(MAX(n, 1u), sizeof(*l1));
	bool any = false;
	int r = 0;

	if (!l1)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		any |= !!(img->l1[i] & Q2_COPIED);
		l1[i] = img->l1[i] & ~Q2_COPIED;
	}
	if (any)
		r = co_q2_write_entries(img, img->h.l1_offset, l1, n);
	if (r == 0 && n)
		memcpy(img->l1, l1, n * sizeof(*l1));
	return r;
}

/* The VM state belongs to the snapshot alone: out of the active table < one reference less. */
static int co_drop_vm_state(struct q2_image *img, struct q2_tree *tree)
{
	uint64_t first = q2_l1_needed(img, img->h.size);
	int r;

	if (first >= img->h.l1_size)
		return 0;
	r = q2_tree_add_l1(tree, img->l1 + first, img->h.l1_size - first, -1, false);
	if (r < 0)
		return r;
	memset(img->l1 + first, 0, (img->h.l1_size - first) * sizeof(*img->l1));
	r = co_q2_write_entries(img, img->h.l1_offset, img->l1, img->h.l1_size);
	return r < 0 ? r : co_block_flush(img->file);
}

/* What only leaks until it is lowered: the old table, the active references to VM state. */
static int co_create_clean_up(struct q2_image *img, const struct q2_snapshot_entry *e,
	uint64_t old_off, uint64_t old_bytes)
{
	struct q2_tree tree;
	int r = q2_tree_init(&tree, img);

	if (r == 0 && old_bytes)
		r = q2_tree_add_clusters(&tree, old_off, q2_clusters_for(img, old_bytes), -1);
	if (r == 0 && e->info.vm_state_size)
		r = co_drop_vm_state(img, &tree);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_LOWER, false);
	q2_tree_destroy(&tree);
	return r;
}

/* Up to the switch: on failure nothing refers to what was made. */
static int co_create_raise(struct q2_image *img, struct q2_snapshot_entry *e)
{
	struct q2_tree tree;
	int r = q2_tree_init(&tree, img);

	if (r == 0)
		r = q2_tree_add_l1(&tree, img->l1, img->h.l1_size, 1, true);
	if (r == 0)
		r = co_clear_l1_copied(img);
	if (r == 0)
		r = co_q2_write_entries(img, e->l1_offset, img->l1, img->h.l1_size);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_VERIFY, true);
	if (r == 0)
		r = co_block_flush(img->file);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_RAISE, false);
	q2_tree_destroy(&tree);
	return r;
}

/* Puts back what a create without effect has left: its clusters, the COPIED flags. */
static void co_undo_create(struct q2_image *img)
{
	struct block_check c = {.repair = BLOCK_REPAIR_LEAKS};

	if (co_q2_forget(img) == 0)
		co_q2_check_image(img, &c, NULL);
}

static int co_create_locked(struct q2_image *img, struct q2_snapshot_entry *list, uint32_t n)
{
	struct q2_snapshot_entry *e = &list[n];
	uint64_t old_off = img->h.snapshots_offset, new_off;
	uint64_t old_bytes = q2_snapshot_table_bytes(img->snapshots, n);
	int r = co_q2_alloc_table(img, (uint64_t)img->h.l1_size * 8, &e->l1_offset);

	if (r == 0)
		r = co_write_table(img, list, n + 1, &new_off);
	if (r == 0)
		r = co_create_raise(img, e);
	if (r < 0) {
		co_undo_create(img);
		return r;
	}
	r = co_switch_table(img, new_off, n + 1);
	if (r < 0)
		return r;
	mem_free(img->snapshots);
	img->snapshots = list;
	img->nb_snapshots = n + 1;
	return co_create_clean_up(img, e, old_off, old_bytes);
}

static int co_create(struct block_node *node, const struct block_snapshot *s, struct error *err)
{
	struct q2_image *img = q2_image(node);
	struct q2_snapshot_entry *list = NULL, e = {0};
	struct error why = ERROR_INIT;
	uint32_t n;
	int r = check_writable(img, err);

	if (r == 0)
		r = co_q2_structure_begin(img, true, err);
	if (r < 0)
		return r;
	n = img->nb_snapshots;
	r = new_entry(img, s, &e, &why);
	if (r == 0 && !(list = mem_calloc(n + 1, sizeof(*list))))
		r = -ENOMEM;
	if (r == 0) {
		if (n)
			memcpy(list, img->snapshots, n * sizeof(*list));
		list[n] = e;
		r = co_create_locked(img, list, n);
	}
	if (r < 0 && img->snapshots != list) {
		q2_snapshot_entry_free(&e);
		mem_free(list);
	}
	r = co_q2_structure_end(img, r, &why, "create the snapshot");
	if (r < 0)
		error_set(err, r, "%s", why.text);
	return r;
}

/* --- delete -------------------------------------------------------------------------------- */

static int co_delete_lower(struct q2_image *img, const struct q2_snapshot_entry *e,
	const uint64_t *l1, uint64_t old_off, uint64_t old_bytes)
{
	struct q2_tree tree;
	int r = q2_tree_init(&tree, img);

	if (r == 0)
		r = q2_tree_add_l1(&tree, l1, e->l1_size, -1, false);
	if (r == 0)
		r = q2_tree_add_l1(&tree, img->l1, img->h.l1_size, 0, true);
	if (r == 0)
		r = q2_tree_add_clusters(
			&tree, e->l1_offset, q2_clusters_for(img, (uint64_t)e->l1_size * 8), -1);
	if (r == 0)
		r = q2_tree_add_clusters(&tree, old_off, q2_clusters_for(img, old_bytes), -1);
	if (r == 0)
		r = co_q2_tree_apply(&tree, Q2_TREE_COPIED, false);
	q2_tree_destroy(&tree);
	return r;
}

static int co_delete_locked(struct q2_image *img, uint32_t at, struct error *err)
{
	uint64_t old_off = img->h.snapshots_offset, new_off = 0;
	uint64_t old_bytes = q2_snapshot_table_bytes(img->snapshots, img->nb_snapshots);
	uint32_t n = img->nb_snapshots - 1;
	_cleanup_free_ struct q2_snapshot_entry *rest = mem_calloc(MAX(n, 1u), sizeof(*rest));
	_cleanup_free_ uint64_t *l1 = NULL;
	struct q2_snapshot_entry gone;
	int r;

	if (!rest)
		return -ENOMEM;
	memcpy(rest, img->snapshots, at * sizeof(*rest));
	memcpy(rest + at, img->snapshots + at + 1, (n - at) * sizeof(*rest));
	gone = img->snapshots[at];
	r = co_q2_snapshot_l1(img, &gone, &l1, err);
	if (r == 0)
		r = co_write_table(img, rest, n, &new_off);
	if (r == 0)
		r = co_switch_table(img, new_off, n);
	if (r < 0)
		return r;
	memcpy(img->snapshots, rest, n * sizeof(*rest));
	img->nb_snapshots = n;
	r = co_delete_lower(img, &gone, l1, old_off, old_bytes);
	q2_snapshot_entry_free(&gone);
	return r;
}

static int not_found(const struct q2_image *img, const char *name, struct error *err)
{
	return error_set(err, -ENOENT, "%s: there is no snapshot '%s'", img->node->filename, name);
}

static int co_delete(struct block_node *node, const char *id_or_name, struct error *err)
{
	struct q2_image *img = q2_image(node);
	struct error why = ERROR_INIT;
	int at, r = check_writable(img, err);

	if (r == 0 && q2_snapshot_find(img, id_or_name) < 0)
		return not_found(img, id_or_name, err);
	if (r == 0)
		r = co_q2_structure_begin(img, true, err);
	if (r < 0)
		return r;
	at = q2_snapshot_find(img, id_or_name);
	r = at < 0 ? not_found(img, id_or_name, &why) : co_delete_locked(img, (uint32_t)at, &why);
	r = co_q2_structure_end(img, r, &why, "delete the snapshot");
	if (r < 0)
		error_set(err, r, "%s", why.text);
	return r;
}

/* --- apply --------------------------------------------------------------------------------- */

static int co_apply_tree(
	struct q2_image *img, struct q2_tree *tree, uint64_t *l1, uint32_t entries, uint64_t size)
{
	uint64_t old_bytes = (uint64_t)img->h.l1_size * 8, new_off;
	int r = co_q2_alloc_table(img, (uint64_t)entries * 8, &new_off);
	if (r == 0)
		r = q2_tree_add_clusters(
			tree, img->h.l1_offset, q2_clusters_for(img, old_bytes), -1);

	if (r == 0)
		r = co_q2_tree_apply(tree, Q2_TREE_VERIFY, true);
	if (r == 0)
		r = co_q2_tree_apply(tree, Q2_TREE_RAISE, false);
	if (r == 0)
		r = co_q2_write_entries(img, new_off, l1, entries);
	if (r < 0) {
		co_undo_create(img);
		return r;
	}
	r = co_q2_switch_l1(img, new_off, l1, entries, size);
	if (r < 0)
		return r;
	__atomic_store_n(&img->node->size, size, __ATOMIC_RELAXED);
	return co_q2_tree_apply(tree, Q2_TREE_LOWER, false);
}

static int co_apply_locked(
	struct q2_image *img, const struct q2_snapshot_entry *s, struct error *err)
{
	uint64_t size = s->info.disk_size, entries = MAX(q2_l1_needed(img, size), s->l1_size);
	_cleanup_free_ uint64_t *l1 = NULL, *new_l1 = NULL;
	struct q2_tree tree;
	int r = co_q2_snapshot_l1(img, s, &l1, err);

	if (r < 0)
		return r;
	if (entries > Q2_MAX_L1_BYTES / 8)
		return error_set(err, -EUCLEAN,
			"%s: snapshot '%s' has a disk size of %llu bytes, "
			"too large for clusters of %llu bytes",
			img->node->filename, s->info.name, (unsigned long long)size,
			(unsigned long long)img->cluster_size);
	new_l1 = mem_calloc(MAX(entries, 1ULL), sizeof(*new_l1));
	if (!new_l1)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->l1_size; i++)
		new_l1[i] = l1[i] & ~Q2_COPIED;
	r = q2_tree_init(&tree, img);
	if (r == 0)
		r = q2_tree_add_l1(&tree, new_l1, s->l1_size, 1, true);
	if (r == 0)
		r = q2_tree_add_l1(&tree, img->l1, img->h.l1_size, -1, false);
	if (r == 0)
		r = co_apply_tree(img, &tree, new_l1, (uint32_t)entries, size);
	q2_tree_destroy(&tree);
	return r;
}

static int co_apply(struct block_node *node, const char *id_or_name, struct error *err)
{
	struct q2_image *img = q2_image(node);
	struct error why = ERROR_INIT;
	int at, r = check_writable(img, err);

	if (r == 0 && q2_snapshot_find(img, id_or_name) < 0)
		return not_found(img, id_or_name, err);
	if (r == 0)
		r = co_q2_structure_begin(img, true, err);
	if (r < 0)
		return r;
	at = q2_snapshot_find(img, id_or_name);
	r = at < 0 ? not_found(img, id_or_name, &why)
		   : co_apply_locked(img, &img->snapshots[at], &why);
	r = co_q2_structure_end(img, r, &why, "apply the snapshot");
	if (r < 0)
		error_set(err, r, "%s", why.text);
	return r;
}

/* --- list ---------------------------------------------------------------------------------- */

static int co_list(struct block_node *node, struct block_snapshot **ret, size_t *ret_n)
{
	const struct q2_image *img = q2_image(node);
	struct block_snapshot *v = mem_calloc(MAX(img->nb_snapshots, 1u), sizeof(*v));
	bool ok = v;

	for (uint32_t i = 0; ok && i < img->nb_snapshots; i++) {
		v[i] = img->snapshots[i].info;
		v[i].id = mem_strdup(img->snapshots[i].info.id);
		v[i].name = mem_strdup(img->snapshots[i].info.name);
		ok = v[i].id && v[i].name;
	}
	if (!ok) {
		for (uint32_t i = 0; v && i < img->nb_snapshots; i++) {
			mem_free(v[i].id);
			mem_free(v[i].name);
		}
		mem_free(v);
		return -ENOMEM;
	}
	*ret = v;
	*ret_n = img->nb_snapshots;
	return 0;
}

const struct block_snapshot_ops q2_snapshot_ops = {
	.co_list = co_list,
	.co_create = co_create,
	.co_apply = co_apply,
	.co_delete = co_delete,
	.co_open = co_q2_snapshot_open,
};
