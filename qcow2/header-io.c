/* SPDX-License-Identifier: MIT */
/*
 * The header on disk: read at open, sector 0 as the one switch of every mode, strings around it.
 *
 * Theory of operation: img->sector0 is what sector 0 holds; header_mutex guards it and makes every
 * change one write of 512 bytes (I7). A change that must be ordered is `barrier, sector 0,
 * barrier` (co_q2_header_switch). A new backing name is written first, into bytes that nothing on
 * disk refers to. Extensions that reach beyond sector 0 may not move, or a crash could leave half
 * of them: then the feature name table, which nobody needs to read the image, is dropped.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "qcow2/qcow2.h"

#include <stdarg.h>
#include <stdio.h>

int co_q2_header_read(struct block_node *file, const char *filename, bool incomplete,
	struct q2_header *h, struct error *err)
{
	uint64_t size = block_size(file), len = MIN(size, 512ULL);
	_cleanup_free_ uint8_t *buf = NULL;
	int r;

	buf = block_buffer_alloc(file, MAX(len, 1ULL));
	if (!buf)
		return error_set(err, -ENOMEM, "%s: out of memory", filename);
	r = len ? co_block_pread(file, 0, buf, len) : 0;
	if (r < 0)
		return error_set_errno(err, r, "%s: cannot read the header", filename);
	/* The rest of the first cluster, once its size is known to make sense. */
	if (len == 512 && load_be32(buf + Q2_H_CLUSTER_BITS) > Q2_MIN_CLUSTER_BITS &&
		load_be32(buf + Q2_H_CLUSTER_BITS) <= Q2_MAX_CLUSTER_BITS &&
		(incomplete || load_be32(buf) == Q2_MAGIC)) {
		len = MIN(size, 1ULL << load_be32(buf + Q2_H_CLUSTER_BITS));
		mem_free(buf);
		buf = block_buffer_alloc(file, len);
		if (!buf)
			return error_set(err, -ENOMEM, "%s: out of memory", filename);
		r = co_block_pread(file, 0, buf, len);
		if (r < 0)
			return error_set_errno(err, r, "%s: cannot read the header", filename);
	}
	if (incomplete && len >= 4)
		store_be32(buf, Q2_MAGIC);
	return q2_header_decode(buf, len, filename, h, err);
}

int co_q2_header_load_sector(struct q2_image *img)
{
	return co_block_pread(img->file, 0, img->sector0, sizeof(img->sector0));
}

/* header_mutex is held. */
static int sector_write(struct q2_image *img)
{
	uint8_t sector[512];
	int r;

	memcpy(sector, img->sector0, sizeof(sector));
	q2_header_encode(&img->h, sector);
	if (img->incomplete)
		store_be32(sector, 0);
	r = co_block_pwrite(img->file, 0, sector, sizeof(sector));
	trace("q2_header_write", "%s: result %d", img->node->filename, r);
	if (r == 0)
		memcpy(img->sector0, sector, sizeof(sector));
	return r;
}

int co_q2_header_write(struct q2_image *img)
{
	int r;

	co_mutex_lock(&img->header_mutex);
	r = sector_write(img);
	co_mutex_unlock(&img->header_mutex);
	return r;
}

int co_q2_header_switch(struct q2_image *img)
{
	int r = co_block_flush(img->file);

	if (r == 0)
		r = co_q2_header_write(img);
	return r < 0 ? r : co_block_flush(img->file);
}

/* Changes feature words in one durable sector write; on failure memory stays as it was. */
static int features_switch(struct q2_image *img, uint64_t incompatible, uint64_t autoclear)
{
	uint64_t old_incompatible = img->h.incompatible, old_autoclear = img->h.autoclear;
	int r;

	/* Atomic for those who look at a bit that never changes without holding header_mutex. */
	__atomic_store_n(&img->h.incompatible, incompatible, __ATOMIC_RELAXED);
	img->h.autoclear = autoclear;
	r = sector_write(img);
	if (r == 0)
		r = co_block_flush(img->file);
	if (r < 0) {
		__atomic_store_n(&img->h.incompatible, old_incompatible, __ATOMIC_RELAXED);
		img->h.autoclear = old_autoclear;
	}
	return r;
}

int co_q2_set_dirty(struct q2_image *img, bool dirty)
{
	uint64_t bits;
	int r = 0;

	if (img->h.version < 3)
		return 0;
	/* Clearing says that all is well: everything before must be durable. */
	if (!dirty)
		r = co_block_flush(img->file);
	co_mutex_lock(&img->header_mutex);
	if (r == 0 && dirty != img->dirty_on_disk) {
		bits = img->h.incompatible & ~(uint64_t)Q2_INCOMPAT_DIRTY;
		r = features_switch(img, bits | (dirty ? Q2_INCOMPAT_DIRTY : 0), img->h.autoclear);
		if (r == 0)
			__atomic_store_n(&img->dirty_on_disk, dirty, __ATOMIC_RELEASE);
	}
	co_mutex_unlock(&img->header_mutex);
	trace("q2_set_dirty", "%s: dirty %d, result %d", img->node->filename, dirty, r);
	return r;
}

int co_q2_corrupt(struct q2_image *img, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	trace("q2_corrupt", "%s: %s", img->node->filename, text);
	if (!img->writable || __atomic_exchange_n(&img->corrupt, true, __ATOMIC_ACQ_REL))
		return -EUCLEAN;
	if (img->h.version >= 3) {
		co_mutex_lock(&img->header_mutex);
		/* A failure changes nothing: in memory the image stays closed to writes. */
		(void)features_switch(
			img, img->h.incompatible | Q2_INCOMPAT_CORRUPT, img->h.autoclear);
		co_mutex_unlock(&img->header_mutex);
	}
	return -EUCLEAN;
}

int co_q2_before_write(struct q2_image *img)
{
	uint64_t keep = img->h.autoclear & Q2_AUTOCLEAR_KNOWN;
	int r = 0;

	if (unlikely(__atomic_load_n(&img->corrupt, __ATOMIC_ACQUIRE)))
		return -EUCLEAN;
	if (likely(__atomic_load_n(&img->headers_cleared, __ATOMIC_ACQUIRE)))
		return 0;
	co_mutex_lock(&img->header_mutex);
	if (!img->headers_cleared) {
		/* Neither bitmaps nor a raw data file are kept up by this engine: driver.c opens
		 * images that really have them for reading only. */
		keep &= ~(uint64_t)(Q2_AUTOCLEAR_BITMAPS | Q2_AUTOCLEAR_DATA_FILE_RAW);
		if (img->h.autoclear != keep)
			r = features_switch(img, img->h.incompatible, keep);
		if (r == 0)
			__atomic_store_n(&img->headers_cleared, true, __ATOMIC_RELEASE);
	}
	co_mutex_unlock(&img->header_mutex);
	return r;
}

/* --- strings and extensions --- */

struct rewrite {
	struct q2_image *img;
	uint8_t *old, *new; /* the first cluster */
	uint64_t len;
	uint64_t old_ext_end, ext_end;
	uint64_t name_off, name_len;
};

/* Where the new backing name can stand without touching what the old header refers to. */
static bool rewrite_place_name(struct rewrite *w)
{
	const struct q2_header *h = &w->img->h;
	uint64_t at = w->ext_end;

	if (w->len > 512) {
		at = MAX(at, w->old_ext_end);
		if (h->backing_len && w->name_len &&
			ranges_overlap(at, w->name_len, h->backing_offset, h->backing_len))
			at = h->backing_offset + h->backing_len;
	}
	w->name_off = w->name_len ? at : 0;
	return range_inside(at, w->name_len, w->len);
}

static bool rewrite_build(struct rewrite *w, bool feature_names)
{
	struct q2_header *h = &w->img->h;

	memcpy(w->new, w->old, w->len);
	memset(w->new + h->header_length, 0, w->old_ext_end - h->header_length);
	w->ext_end = q2_header_build_extensions(h, w->new, w->len, w->name_len, feature_names);
	if (w->ext_end > w->len || !rewrite_place_name(w))
		return false;
	if (w->name_len)
		memcpy(w->new + w->name_off, h->backing_name, w->name_len);
	return true;
}

/* Writes new[from, to) as far as it lies behind sector 0, in whole sectors, and makes it durable.
 */
static int rewrite_tail(struct rewrite *w, uint64_t from, uint64_t to)
{
	int r;

	from = MAX(align_down(from, 512), 512ULL);
	to = MIN(align_up(to, 512), w->len);
	if (from >= to)
		return 0;
	r = co_block_pwrite(w->img->file, from, w->new + from, to - from);
	return r < 0 ? r : co_block_flush(w->img->file);
}

static int rewrite_sector0(struct rewrite *w)
{
	int r;

	memcpy(w->img->sector0, w->new, 512);
	r = sector_write(w->img);
	return r < 0 ? r : co_block_flush(w->img->file);
}

/* Does the extension area change behind sector 0? */
static bool rewrite_crosses(const struct rewrite *w)
{
	uint64_t end = MAX(w->ext_end, w->old_ext_end);

	return end > 512 && memcmp(w->old + 512, w->new + 512, end - 512) != 0;
}

static int rewrite_run(struct rewrite *w)
{
	int r;

	if (!rewrite_build(w, true) && !rewrite_build(w, false))
		return -ENOSPC;
	if (rewrite_crosses(w)) {
		/* First a header without the feature names, all in sector 0. */
		if (!rewrite_build(w, false) || w->ext_end > 512)
			return -ENOSPC;
	}
	w->img->h.backing_offset = w->name_off;
	w->img->h.backing_len = (uint32_t)w->name_len;
	w->img->h.ext_end = w->ext_end;
	r = w->name_len ? rewrite_tail(w, w->name_off, w->name_off + w->name_len) : 0;
	return r < 0 ? r : rewrite_sector0(w);
}

int co_q2_header_write_all(struct q2_image *img, struct error *err)
{
	struct q2_header *h = &img->h;
	struct rewrite w = {.img = img, .len = img->cluster_size, .old_ext_end = h->ext_end};
	_cleanup_free_ uint8_t *old = block_buffer_alloc(img->file, img->cluster_size);
	_cleanup_free_ uint8_t *new = block_buffer_alloc(img->file, img->cluster_size);
	uint64_t old_off = h->backing_offset, old_ext_end = h->ext_end;
	uint32_t old_len = h->backing_len;
	uint8_t sector[512];
	int r;

	if (!old || !new)
		return error_set(err, -ENOMEM, "%s: out of memory", img->node->filename);
	w.old = old;
	w.new = new;
	w.name_len = h->backing_name ? strlen(h->backing_name) : 0;
	if (w.name_len > Q2_MAX_BACKING_NAME)
		return error_set(err, -EINVAL,
			"%s: the backing file name has %llu bytes, a qcow2 image has room for %u",
			img->node->filename, (unsigned long long)w.name_len, Q2_MAX_BACKING_NAME);
	co_mutex_lock(&img->header_mutex);
	memcpy(sector, img->sector0, sizeof(sector));
	memset(old, 0, img->cluster_size);
	r = co_block_pread(img->file, 0, old, MIN(img->cluster_size, block_size(img->file)));
	if (r == 0)
		r = co_block_flush(img->file);
	if (r == 0)
		r = rewrite_run(&w);
	if (r < 0) {
		memcpy(img->sector0, sector, sizeof(sector));
		h->backing_offset = old_off;
		h->backing_len = old_len;
		h->ext_end = old_ext_end;
	}
	co_mutex_unlock(&img->header_mutex);
	if (r == -ENOSPC)
		return error_set(err, r,
			"%s: the first cluster has no room to change the backing file name safely; "
			"convert the image to one with larger clusters",
			img->node->filename);
	return r < 0 ? error_set_errno(err, r, "%s: cannot write the header", img->node->filename)
		     : 0;
}
