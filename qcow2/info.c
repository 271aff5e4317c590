/* SPDX-License-Identifier: MIT */
/*
 * What `info` shows of an image, the change of its backing name, the end of an incomplete target,
 * and the dump of metadata for support.
 */
#include <stdarg.h>
#include <stdio.h>

#include "base/mem.h"
#include "qcow2/qcow2.h"

/* --- info ---------------------------------------------------------------------------------- */

static const char *compression_name(const struct q2_header *h)
{
	return h->compression_type == Q2_COMPRESSION_ZSTD ? "zstd" : "zlib";
}

static struct block_info_item *add_item(struct block_image_info *info, const char *key)
{
	struct block_info_item *it = &info->items[info->nitems++];

	it->key = key;
	return it;
}

static void add_bool(struct block_image_info *info, const char *key, bool value)
{
	struct block_info_item *it = add_item(info, key);

	it->kind = BLOCK_INFO_BOOL;
	it->num = value;
}

static void add_text(struct block_image_info *info, const char *key, const char *text)
{
	struct block_info_item *it = add_item(info, key);

	it->kind = BLOCK_INFO_STRING;
	it->long_str = text;
}

static int co_info(struct block_node *n, struct block_image_info *ret, struct error *err)
{
	const struct q2_image *img = q2_image(n);
	const struct q2_header *h = &img->h;
	bool v3 = h->version >= 3;

	*ret = (struct block_image_info){
		.cluster_size = img->cluster_size,
		.dirty = h->incompatible & Q2_INCOMPAT_DIRTY,
		.corrupt = img->corrupt || h->incompatible & Q2_INCOMPAT_CORRUPT,
		.encrypted = h->crypt_method != Q2_CRYPT_NONE,
		.backing_name = h->backing_name,
		.backing_format = h->backing_format,
		.data_file = h->incompatible & Q2_INCOMPAT_DATA_FILE ? h->data_file : NULL,
	};
	add_text(ret, "compat", v3 ? "1.1" : "0.10");
	add_text(ret, "compression-type", compression_name(h));
	if (v3)
		add_bool(ret, "lazy-refcounts", h->compatible & Q2_COMPAT_LAZY_REFCOUNTS);
	*add_item(ret, "refcount-bits") = (struct block_info_item){
		.key = "refcount-bits", .kind = BLOCK_INFO_U64, .num = img->refcount_bits};
	if (ret->data_file) {
		add_text(ret, "data-file", ret->data_file);
		add_bool(ret, "data-file-raw", h->autoclear & Q2_AUTOCLEAR_DATA_FILE_RAW);
	}
	if (v3) {
		add_bool(ret, "corrupt", ret->corrupt);
		add_bool(ret, "extended-l2", img->extl2);
	}
	return 0;
}

/* --- backing name, end of creation ---------------------------------------------------------- */

static int co_set_backing(
	struct block_node *n, const char *name, const char *format, struct error *err)
{
	struct q2_image *img = q2_image(n);
	char *old_name = img->h.backing_name, *old_format = img->h.backing_format;
	_cleanup_free_ char *new_name = NULL, *new_format = NULL;
	int r = q2_structure_writable(img, err);

	if (r < 0)
		return r;
	if (name && strlen(name) > Q2_MAX_BACKING_NAME)
		return error_set(err, -EINVAL,
			"%s: the backing file name is %zu bytes long; qcow2 "
			"holds at most %u",
			n->filename, strlen(name), Q2_MAX_BACKING_NAME);
	if ((name && !(new_name = mem_strdup(name))) ||
		(name && format && !(new_format = mem_strdup(format))))
		return error_set(err, -ENOMEM, "out of memory");
	/* What was copied because of the change is durable before it. */
	r = co_q2_before_write(img);
	if (r == 0)
		r = co_q2_commit(img, true);
	if (r < 0)
		return error_set_errno(err, r, "%s: cannot write the metadata", n->filename);
	img->h.backing_name = new_name;
	img->h.backing_format = new_format;
	r = co_q2_header_write_all(img, err);
	if (r == 0)
		r = co_q2_barrier(img);
	if (r < 0) {
		img->h.backing_name = old_name;
		img->h.backing_format = old_format;
		return r;
	}
	new_name = old_name; /* freed on the way out */
	new_format = old_format;
	return 0;
}

static int co_finalize(struct block_node *n, struct error *err)
{
	struct q2_image *img = q2_image(n);
	int r;

	if (!img->incomplete)
		return 0;
	r = co_block_flush(n);
	if (r == 0) {
		img->incomplete = false;
		r = co_q2_header_switch(img);
	}
	if (r < 0) {
		img->incomplete = true;
		return error_set_errno(err, r, "%s: cannot complete the image", n->filename);
	}
	return 0;
}

/* --- dump of metadata ----------------------------------------------------------------------- */

struct dump {
	void (*emit)(void *arg, const char *line);
	void *arg;
};

static void attr_printf(2, 3) line(const struct dump *d, const char *fmt, ...)
{
	char text[1280];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	d->emit(d->arg, text);
}

static void dump_header(const struct dump *d, const struct q2_image *img)
{
	const struct q2_header *h = &img->h;

	line(d, "file: %llu bytes", (unsigned long long)block_size(img->file));
	line(d, "version: %u", h->version);
	line(d, "header length: %u", h->header_length);
	line(d, "cluster bits: %u (%llu bytes)", h->cluster_bits,
		(unsigned long long)img->cluster_size);
	line(d, "virtual size: %llu", (unsigned long long)h->size);
	line(d, "crypt method: %u", h->crypt_method);
	line(d, "l1 table: %u entries at %#llx", h->l1_size, (unsigned long long)h->l1_offset);
	line(d, "refcount table: %u clusters at %#llx", h->reftable_clusters,
		(unsigned long long)h->reftable_offset);
	line(d, "refcount bits: %u", img->refcount_bits);
	line(d, "snapshots: %u, table at %#llx", h->nb_snapshots,
		(unsigned long long)h->snapshots_offset);
	line(d, "incompatible features: %#llx", (unsigned long long)h->incompatible);
	line(d, "compatible features: %#llx", (unsigned long long)h->compatible);
	line(d, "autoclear features: %#llx", (unsigned long long)h->autoclear);
	line(d, "compression type: %s", compression_name(h));
}

static void dump_extensions(const struct dump *d, const struct q2_image *img)
{
	const struct q2_header *h = &img->h;
	const struct q2_unknown_ext *x;

	if (h->backing_name)
		line(d, "backing file: %zu bytes of name, format %s", strlen(h->backing_name),
			h->backing_format ? h->backing_format : "not stored");
	if (h->data_file)
		line(d, "extension data file: %zu bytes of name", strlen(h->data_file));
	if (h->feature_names_len)
		line(d, "extension feature names: %u bytes", h->feature_names_len);
	if (h->has_bitmaps_ext)
		line(d, "extension bitmaps: %u bitmaps, directory of %llu bytes at %#llx",
			load_be32(h->bitmaps_ext),
			(unsigned long long)load_be64(h->bitmaps_ext + 8),
			(unsigned long long)load_be64(h->bitmaps_ext + 16));
	if (h->has_crypto_ext)
		line(d, "extension encryption header: %llu bytes at %#llx",
			(unsigned long long)load_be64(h->crypto_ext + 8),
			(unsigned long long)load_be64(h->crypto_ext));
	list_for_each(x, &h->unknown_ext, node) line(d, "extension %#x: %u bytes", x->type, x->len);
}

static void dump_tables(const struct dump *d, const struct q2_image *img)
{
	uint64_t used = 0, copied = 0, blocks = 0;

	for (uint32_t i = 0; i < img->h.l1_size; i++) {
		if (!img->l1[i])
			continue;
		used++;
		copied += !!(img->l1[i] & Q2_COPIED);
		line(d, "l1[%u]: %#llx", i, (unsigned long long)img->l1[i]);
	}
	line(d, "l2 tables: %llu, %llu of them may be written in place", (unsigned long long)used,
		(unsigned long long)copied);
	for (uint64_t i = 0; i < img->reftable_entries; i++) {
		if (!img->reftable[i])
			continue;
		blocks++;
		line(d, "refcount table[%llu]: %#llx", (unsigned long long)i,
			(unsigned long long)img->reftable[i]);
	}
	line(d, "refcount blocks: %llu", (unsigned long long)blocks);
}

static void dump_snapshots(const struct dump *d, const struct q2_image *img)
{
	for (uint32_t i = 0; i < img->nb_snapshots; i++) {
		const struct q2_snapshot_entry *s = &img->snapshots[i];

		line(d,
			"snapshot[%u]: id %.64s, l1 table of %u entries at %#llx, disk size %llu, "
			"VM "
			"state %llu, extra data %u bytes",
			i, s->info.id, s->l1_size, (unsigned long long)s->l1_offset,
			(unsigned long long)s->info.disk_size,
			(unsigned long long)s->info.vm_state_size, s->extra_len);
	}
}

static int co_dump_metadata(struct block_node *n, void (*emit)(void *arg, const char *line),
	void *arg, struct error *err)
{
	struct q2_image *img = q2_image(n);
	struct dump d = {emit, arg};
	struct block_check c = {0};
	int r;

	dump_header(&d, img);
	dump_extensions(&d, img);
	dump_tables(&d, img);
	dump_snapshots(&d, img);
	r = q2_check_ops.co_check(n, &c, err);
	if (r < 0)
		return r;
	line(&d, "clusters: %llu of %llu allocated, %llu compressed, %llu fragmented",
		(unsigned long long)c.allocated_clusters, (unsigned long long)c.total_clusters,
		(unsigned long long)c.compressed_clusters,
		(unsigned long long)c.fragmented_clusters);
	line(&d, "check: %llu corruptions, %llu leaks, %llu unreadable tables, image end %#llx",
		(unsigned long long)c.corruptions, (unsigned long long)c.leaks,
		(unsigned long long)c.check_errors, (unsigned long long)c.image_end);
	return 0;
}

const struct block_image_ops q2_image_ops = {
	.co_info = co_info,
	.co_measure = co_q2_measure,
	.co_set_backing = co_set_backing,
	.co_make_empty = co_q2_make_empty,
	.co_finalize = co_finalize,
	.co_dump_metadata = co_dump_metadata,
};
