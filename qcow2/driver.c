/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 driver: its table entry, open, reopen and close.
 *
 * Opening costs what the file holds, never what the virtual size claims: the L1 and refcount tables
 * must lie inside the file, aligned and apart from each other, before anything is read or
 * allocated for them. What this engine cannot keep right it refuses to write, with the reason.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "qcow2/qcow2.h"

/* --- tables --- */

struct table {
	const char *what;
	uint64_t off, len;
};

static int table_inside(struct q2_image *img, const struct table *t, struct error *err)
{
	if (range_inside(t->off, t->len, block_size(img->file)))
		return 0;
	return error_set(err, -EUCLEAN,
		"%s: the %s at offset %#llx (%llu bytes) ends behind the end of the file, which "
		"has "
		"%llu bytes: the image is cut off or corrupt",
		img->node->filename, t->what, (unsigned long long)t->off,
		(unsigned long long)t->len, (unsigned long long)block_size(img->file));
}

static int tables_check(struct q2_image *img, struct error *err)
{
	const struct q2_header *h = &img->h;
	struct table t[] = {
		{"L1 table", h->l1_offset, h->l1_size * 8ULL},
		{"refcount table", h->reftable_offset,
			(uint64_t)h->reftable_clusters << h->cluster_bits},
		{"snapshot table", h->snapshots_offset, h->nb_snapshots ? 40ULL : 0},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		int r = t[i].len ? table_inside(img, &t[i], err) : 0;

		if (r < 0)
			return r;
		for (size_t j = 0; j < i; j++)
			if (t[i].len && t[j].len &&
				ranges_overlap(t[i].off, t[i].len, t[j].off, t[j].len))
				return error_set(err, -EUCLEAN,
					"%s: the %s and the %s overlap: the header is corrupt",
					img->node->filename, t[j].what, t[i].what);
	}
	return 0;
}

/* A table of 64-bit entries in host order; NULL for an empty one. */
static int table_load(struct q2_image *img, const char *what, uint64_t off, uint64_t n,
	uint64_t **ret, uint8_t **ret_dirty, struct error *err)
{
	_cleanup_free_ uint64_t *t = block_buffer_alloc(img->file, MAX(n * 8, 8ULL));
	_cleanup_free_ uint8_t *dirty = mem_zalloc(MAX(div_up(n, 64), 1ULL));
	int r;

	if (!t || !dirty)
		return error_set(
			err, -ENOMEM, "%s: no memory for the %s", img->node->filename, what);
	r = n ? co_block_pread(img->file, off, t, n * 8) : 0;
	if (r < 0)
		return error_set_errno(err, r, "%s: cannot read the %s", img->node->filename, what);
	for (uint64_t i = 0; i < n; i++)
		t[i] = load_be64(&t[i]);
	*ret = take(t);
	*ret_dirty = take(dirty);
	return 0;
}

static int tables_load(struct q2_image *img, struct error *err)
{
	const struct q2_header *h = &img->h;
	int r = tables_check(img, err);

	if (r < 0)
		return r;
	r = table_load(img, "L1 table", h->l1_offset, h->l1_size, &img->l1, &img->l1_dirty, err);
	if (r < 0)
		return r;
	img->reftable_entries = (uint64_t)h->reftable_clusters << (h->cluster_bits - 3);
	return table_load(img, "refcount table", h->reftable_offset, img->reftable_entries,
		&img->reftable, &img->reftable_dirty, err);
}

/* --- may it be written, or read at all? --- */

static int refuse_reading(struct q2_image *img, struct error *err)
{
	const char *name = img->node->filename;

	if (img->node->opts.flags & (BLOCK_OPEN_NO_IO | BLOCK_OPEN_CHECK))
		return 0;
	if (img->h.incompatible & Q2_INCOMPAT_DATA_FILE)
		return error_set(err, -ENOTSUP,
			"%s: the guest data is in an external data file, which this version does "
			"not "
			"open; only its information can be shown",
			name);
	if (img->h.crypt_method != Q2_CRYPT_NONE)
		return error_set(err, -ENOTSUP,
			"%s: the image is encrypted, which this version cannot read; only its "
			"information "
			"can be shown",
			name);
	return 0;
}

static int refuse_writing(struct q2_image *img, struct error *err)
{
	const struct q2_header *h = &img->h;
	const char *name = img->node->filename;

	if (h->incompatible & Q2_INCOMPAT_DATA_FILE)
		return error_set(err, -ENOTSUP,
			"%s: the image has an external data file, which this version does not "
			"write",
			name);
	if (h->crypt_method != Q2_CRYPT_NONE)
		return error_set(err, -ENOTSUP,
			"%s: the image is encrypted, which this version does not write", name);
	if (h->has_bitmaps_ext && (h->autoclear & Q2_AUTOCLEAR_BITMAPS))
		return error_set(err, -ENOTSUP,
			"%s: the image has persistent bitmaps, which this version would leave out "
			"of date; "
			"open it read-only, or remove them with 'qemu-img bitmap --remove'",
			name);
	if ((h->incompatible & Q2_INCOMPAT_CORRUPT) && !(img->node->opts.flags & BLOCK_OPEN_CHECK))
		return error_set(err, -EACCES,
			"%s: the image is marked corrupt and cannot be opened for writing; repair "
			"it with "
			"'qemu-img check -r all'",
			name);
	return 0;
}

static int rights_check(struct q2_image *img, struct error *err)
{
	struct block_node *n = img->node;
	uint64_t limit = n->opts.trust ? n->opts.trust->max_virtual_size : 0;
	int r = refuse_reading(img, err);

	if (r < 0)
		return r;
	if (limit && img->h.size > limit)
		return error_set(err, -EFBIG,
			"%s: the virtual size of %llu bytes is more than the %llu allowed for "
			"untrusted "
			"images",
			n->filename, (unsigned long long)img->h.size, (unsigned long long)limit);
	if (!(n->opts.flags & BLOCK_OPEN_RDWR))
		return 0;
	r = refuse_writing(img, err);
	if (r < 0 && (n->opts.flags & BLOCK_OPEN_AUTO_RO)) {
		n->opts.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
		if (err)
			*err = ERROR_INIT;
		return 0;
	}
	img->writable = r == 0;
	return r;
}

/* --- life of an image --- */

static void image_destroy(struct q2_image *img)
{
	q2_cache_free(take(img->l2_cache));
	q2_cache_free(take(img->ref_cache));
	q2_overlap_free(take(img->overlap));
	q2_epochs_free(take(img->epochs));
	q2_free_queue_free(take(img->frees));
	q2_allocs_free(take(img->allocs));
	q2_unpacked_free(take(img->unpacked));
	q2_snapshots_free(img);
	mem_free(take(img->l1));
	mem_free(take(img->l1_dirty));
	mem_free(take(img->reftable));
	mem_free(take(img->reftable_dirty));
	q2_header_destroy(&img->h);
}

static int image_new(struct q2_image *img, struct error *err)
{
	int r = q2_epochs_new(&img->epochs);

	if (r == 0)
		r = q2_free_queue_new(&img->frees);
	if (r == 0)
		r = q2_allocs_new(&img->allocs);
	if (r == 0)
		r = q2_unpacked_new(img);
	return r < 0 ? error_set(err, r, "%s: out of memory", img->node->filename) : 0;
}

/* What only a writer needs; also on the way from read-only to read-write. */
static int writer_start(struct q2_image *img, struct error *err)
{
	uint64_t conflict;
	int r;

	if (!img->writable)
		return 0;
	r = q2_overlap_new(img);
	if (r < 0)
		return error_set(err, r, "%s: out of memory", img->node->filename);
	if (img->node->opts.flags & BLOCK_OPEN_CHECK)
		return 0;
	if (img->dirty_on_disk) {
		r = co_q2_check_dirty(img, err);
		q2_overlap_free(take(img->overlap));
		if (r == 0)
			r = q2_overlap_new(img);
		if (r < 0)
			return r;
	}
	if (q2_overlap_conflict(img, &conflict))
		return error_set(err, -EUCLEAN,
			"%s: two tables claim the cluster at offset %#llx: the image is corrupt; "
			"open it "
			"read-only, or repair it with 'qemu-img check -r all'",
			img->node->filename, (unsigned long long)conflict);
	return 0;
}

static void caps_fill(struct q2_image *img)
{
	struct block_node *n = img->node;

	n->size = img->h.size;
	n->caps.align = n->caps.buf_align = 1;
	n->caps.zero_align = 1;
	n->caps.discard_align = (uint32_t)img->cluster_size;
	n->caps.cluster = img->cluster_size;
	n->caps.write_flags = BLOCK_IO_COMPRESSED | BLOCK_IO_UNCHANGED | BLOCK_IO_FRESH;
	n->caps.zero_flags = BLOCK_IO_UNMAP | BLOCK_IO_NO_FALLBACK;
	n->caps.can_backing = true;
	n->caps.zero_init = !img->h.backing_name;
}

static int open_tables(struct q2_image *img, struct conf *opts, struct error *err)
{
	int r = image_new(img, err);

	if (r == 0)
		r = tables_load(img, err);
	if (r == 0)
		r = q2_options_apply(img, opts, err);
	if (r == 0 && img->h.nb_snapshots)
		r = co_q2_snapshots_load(img, err);
	if (r < 0)
		return r;
	img->data_end = align_up(block_size(img->file), img->cluster_size);
	img->dirty_on_disk = img->h.incompatible & Q2_INCOMPAT_DIRTY;
	caps_fill(img);
	return writer_start(img, err);
}

static int co_q2_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct q2_image *img = q2_image(n);
	int r;

	img->node = n;
	img->file = n->child[BLOCK_ROLE_FILE];
	r = q2_options_incomplete(opts, &img->incomplete, err);
	if (r == 0)
		r = co_q2_header_read(img->file, n->filename, img->incomplete, &img->h, err);
	if (r < 0)
		return r;
	q2_geometry(img);
	r = rights_check(img, err);
	/* Before anything that may write the header, as the repair of a dirty image does. */
	if (r == 0) {
		r = co_q2_header_load_sector(img);
		if (r < 0)
			error_set_errno(err, r, "%s: cannot read the header", n->filename);
	}
	if (r == 0)
		r = open_tables(img, opts, err);
	if (r == 0 && img->h.backing_name)
		r = co_block_open_backing(n, img->h.backing_name, img->h.backing_format, NULL, err);
	trace("q2_open", "%s: %s, result %d", n->filename, img->writable ? "rw" : "ro", r);
	if (r < 0)
		image_destroy(img);
	return r;
}

/* Everything cached becomes durable, the quarantine empty, DIRTY cleared. */
static int writer_stop(struct q2_image *img)
{
	int r = 0, r2;

	if (!img->writable || img->corrupt)
		return img->corrupt ? -EUCLEAN : 0;
	/* Releasing makes refcounts dirty once more. */
	r = co_q2_free_drain(img);
	if (r == 0)
		r = co_q2_commit(img, true);
	if (r == 0 && img->dirty_on_disk && !(img->node->opts.flags & BLOCK_OPEN_CHECK)) {
		r = co_q2_write_refcounts(img);
		if (r == 0)
			r = co_q2_barrier(img);
		r2 = r == 0 ? co_q2_set_dirty(img, false) : 0;
		r = r < 0 ? r : r2;
	}
	return r;
}

static int co_q2_close(struct block_node *n)
{
	struct q2_image *img = q2_image(n);
	int r = writer_stop(img);

	trace("q2_close", "%s: result %d", n->filename, r);
	image_destroy(img);
	return r;
}

static int co_q2_reopen(struct block_node *n, const struct block_open_opts *o, struct error *err)
{
	struct q2_image *img = q2_image(n);
	bool rw = o->flags & BLOCK_OPEN_RDWR;
	int r = 0;

	img->pass_discard = o->flags & BLOCK_OPEN_UNMAP;
	if (rw == img->writable)
		return 0;
	if (!rw) {
		r = writer_stop(img);
		if (r < 0)
			return error_set_errno(
				err, r, "%s: cannot write the metadata", n->filename);
		img->writable = false;
		q2_overlap_free(take(img->overlap));
		return 0;
	}
	r = refuse_writing(img, err);
	if (r < 0)
		return r;
	img->writable = true;
	img->data_end = MAX(img->data_end, align_up(block_size(img->file), img->cluster_size));
	r = writer_start(img, err);
	if (r < 0) {
		img->writable = false;
		q2_overlap_free(take(img->overlap));
	}
	return r;
}

static int q2_probe(const void *head, size_t n)
{
	const uint8_t *p = head;

	if (n < 8 || load_be32(p) != Q2_MAGIC)
		return 0;
	return load_be32(p + Q2_H_VERSION) >= 2 && load_be32(p + Q2_H_VERSION) <= 3 ? 100 : 0;
}

const struct block_driver block_qcow2 = {
	.name = "qcow2",
	.kind = BLOCK_KIND_FORMAT,
	.node_size = sizeof(struct q2_image),
	.open_keys = q2_open_keys,
	.create_keys = q2_create_keys,
	.probe = q2_probe,
	.co_open = co_q2_open,
	.co_reopen = co_q2_reopen,
	.co_create = co_q2_create,
	.co_resize = co_q2_resize,
	.co_close = co_q2_close,
	.co_read = co_q2_read,
	.co_write = co_q2_write,
	.co_zero = co_q2_zero,
	.co_discard = co_q2_discard,
	.co_flush = co_q2_flush,
	.co_extent = co_q2_extent,
	.image = &q2_image_ops,
	.snapshot = &q2_snapshot_ops,
	.vmstate = &q2_vmstate_ops,
	.check = &q2_check_ops,
	.compress = &q2_compress_ops,
};
