/* SPDX-License-Identifier: MIT */
/*
 * A snapshot as a read-only disk, and the VM state behind the end of the active one.
 *
 * The view is a second qcow2 node on the same file, read-only, with the snapshot's L1 table and
 * size in place of the active ones. What a snapshot refers to does not change while it exists.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* Gives the freshly opened node the snapshot's face. */
static int co_dress(struct block_node *view, struct block_node *n, const uint64_t *l1,
	const struct q2_snapshot_entry *s)
{
	struct q2_image *img = q2_image(view);
	uint64_t size = s->info.disk_size, entries = MAX(q2_l1_needed(img, size), s->l1_size);
	_cleanup_free_ uint64_t *padded = NULL;
	int r;

	if (entries > Q2_MAX_L1_BYTES / 8)
		return -EUCLEAN;
	padded = mem_calloc(MAX(entries, 1ULL), sizeof(*padded));
	if (!padded)
		return -ENOMEM;
	memcpy(padded, l1, s->l1_size * sizeof(*l1));
	r = co_q2_set_l1(img, padded, (uint32_t)entries);
	if (r < 0)
		return r;
	img->h.l1_size = (uint32_t)entries;
	img->h.l1_offset = s->l1_offset;
	img->h.size = size;
	__atomic_store_n(&view->size, size, __ATOMIC_RELAXED);
	if (n->child[BLOCK_ROLE_BACKING])
		return co_block_set_child(
			view, BLOCK_ROLE_BACKING, block_node_ref(n->child[BLOCK_ROLE_BACKING]));
	return 0;
}

static int co_open_view(struct block_node *n, struct block_node **ret, struct error *err)
{
	struct block_open_opts o = n->opts;
	struct conf *none = conf_new(CONF_OBJECT);
	int r;

	if (!none)
		return error_set(err, -ENOMEM, "out of memory");
	o.flags &= ~(uint32_t)(BLOCK_OPEN_RDWR | BLOCK_OPEN_CREATE | BLOCK_OPEN_EXCL |
		BLOCK_OPEN_AUTO_RO);
	o.flags |= BLOCK_OPEN_NO_BACKING;
	o.perm = o.shared = 0;
	r = co_block_open_on(
		&block_qcow2, block_node_ref(n->child[BLOCK_ROLE_FILE]), none, &o, ret, err);
	conf_free(none);
	return r;
}

int co_q2_snapshot_open(
	struct block_node *n, const char *id_or_name, struct block_node **ret, struct error *err)
{
	struct q2_image *img = q2_image(n);
	int at = q2_snapshot_find(img, id_or_name), r = 0;
	_cleanup_free_ uint64_t *l1 = NULL;
	struct block_node *view;

	if (at < 0)
		return error_set(
			err, -ENOENT, "%s: there is no snapshot '%s'", n->filename, id_or_name);
	if (img->writable)
		r = co_q2_commit(img, false);
	if (r < 0)
		return error_set_errno(
			err, r, "%s: cannot write out the metadata caches", n->filename);
	r = co_q2_snapshot_l1(img, &img->snapshots[at], &l1, err);
	if (r == 0)
		r = co_open_view(n, &view, err);
	if (r < 0)
		return r;
	r = co_dress(view, n, l1, &img->snapshots[at]);
	if (r < 0) {
		co_block_node_unref(view);
		return error_set_errno(
			err, r, "%s: cannot show snapshot '%s'", n->filename, id_or_name);
	}
	*ret = view;
	return 0;
}

/* --- VM state ------------------------------------------------------------------------------ */

/* Guest offset of byte 0 of the VM state: behind all that the L1 entries of the disk cover. */
static uint64_t vm_state_start(const struct q2_image *img)
{
	return q2_l1_needed(img, img->h.size) << (img->cluster_bits + img->l2_bits);
}

static int vm_state_range(
	const struct q2_image *img, const struct block_io *io, uint64_t *off, uint64_t *end)
{
	if (add_overflow(vm_state_start(img), io->off, off) || add_overflow(*off, io->len, end) ||
		q2_l1_needed(img, *end) > Q2_MAX_L1_BYTES / 8)
		return -EFBIG;
	return 0;
}

static int co_vm_state_read(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	uint64_t off, end, covered;
	unsigned token;
	int r = vm_state_range(img, io, &off, &end);

	if (r < 0 || !io->len)
		return r;
	token = co_q2_request_enter(img);
	covered = (uint64_t)img->h.l1_size << (img->cluster_bits + img->l2_bits);
	if (end > covered) {
		uint64_t keep = covered > off ? covered - off : 0;

		iov_fill(iov_cut(io->buf, keep, io->len - keep), 0);
		io->buf = iov_cut(io->buf, 0, keep);
	}
	r = io->buf.len ? co_q2_read_range(img, off, io->buf) : 0;
	q2_request_leave(img, token);
	return r;
}

static int co_vm_state_write(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	uint64_t off, end;
	unsigned token;
	int r = vm_state_range(img, io, &off, &end);

	if (r == 0)
		r = q2_structure_writable(img, NULL);
	if (r == 0)
		r = co_q2_before_write(img);
	if (r == 0 && q2_l1_needed(img, end) > img->h.l1_size)
		r = co_q2_grow_l1(img, (uint32_t)q2_l1_needed(img, end), NULL);
	if (r < 0 || !io->len)
		return r;
	token = co_q2_request_enter(img);
	r = co_q2_write_range(img, off, io->buf, 0);
	q2_request_leave(img, token);
	return r;
}

const struct block_vmstate_ops q2_vmstate_ops = {
	.co_read = co_vm_state_read,
	.co_write = co_vm_state_write,
};
