/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 header decoded: every field of the first cluster checked against the limits, then kept
 * in struct q2_header.
 *
 * Theory of operation: q2_header_decode() is pure, so that it can be fuzzed and unit-tested on a
 * buffer. It first reads the fixed fields (q2_fields), then the extension area, which lies between
 * the header and the backing file name, and last judges the feature bits, because the sentence
 * that refuses an unknown bit names it from the feature name table. Whatever is wrong yields one
 * sentence: -EINVAL not a qcow2 image, -EUCLEAN corrupt, -ENOTSUP valid but not for us.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

#include <stdio.h>

#define LIMIT_ERR(...) error_set(err, -EUCLEAN, __VA_ARGS__)

static void fields_load(const uint8_t *b, struct q2_header *h)
{
	h->version = load_be32(b + Q2_H_VERSION);
	h->backing_offset = load_be64(b + Q2_H_BACKING_OFFSET);
	h->backing_len = load_be32(b + Q2_H_BACKING_SIZE);
	h->cluster_bits = load_be32(b + Q2_H_CLUSTER_BITS);
	h->size = load_be64(b + Q2_H_SIZE);
	h->crypt_method = load_be32(b + Q2_H_CRYPT_METHOD);
	h->l1_size = load_be32(b + Q2_H_L1_SIZE);
	h->l1_offset = load_be64(b + Q2_H_L1_OFFSET);
	h->reftable_offset = load_be64(b + Q2_H_REFTABLE_OFFSET);
	h->reftable_clusters = load_be32(b + Q2_H_REFTABLE_CLUSTERS);
	h->nb_snapshots = load_be32(b + Q2_H_NB_SNAPSHOTS);
	h->snapshots_offset = load_be64(b + Q2_H_SNAPSHOTS_OFFSET);
	h->refcount_order = 4;
	h->header_length = Q2_H_V2_LENGTH;
}

static void fields_load_v3(const uint8_t *b, size_t len, struct q2_header *h)
{
	h->incompatible = load_be64(b + Q2_H_INCOMPATIBLE);
	h->compatible = load_be64(b + Q2_H_COMPATIBLE);
	h->autoclear = load_be64(b + Q2_H_AUTOCLEAR);
	h->refcount_order = load_be32(b + Q2_H_REFCOUNT_ORDER);
	h->header_length = load_be32(b + Q2_H_HEADER_LENGTH);
	if (h->header_length > Q2_H_COMPRESSION_TYPE && len > Q2_H_COMPRESSION_TYPE)
		h->compression_type = b[Q2_H_COMPRESSION_TYPE];
}

/* Version and cluster size: what must be right before the rest can be read at all. */
static int check_basics(const struct q2_header *h, const char *name, struct error *err)
{
	if (h->version < 2 || h->version > 3)
		return error_set(err, -ENOTSUP,
			"%s: qcow2 version %u is not supported; only versions 2 and 3 exist here",
			name, h->version);
	if (h->cluster_bits < Q2_MIN_CLUSTER_BITS || h->cluster_bits > Q2_MAX_CLUSTER_BITS)
		return LIMIT_ERR("%s: cluster_bits is %u, it must be between %u and %u: "
				 "the header is corrupt",
			name, h->cluster_bits, Q2_MIN_CLUSTER_BITS, Q2_MAX_CLUSTER_BITS);
	return 0;
}

static int check_v3(const struct q2_header *h, const char *name, struct error *err)
{
	if (h->header_length < Q2_H_V3_MIN_LENGTH || h->header_length % 8)
		return LIMIT_ERR("%s: header_length is %u, it must be a multiple of 8 and at least "
				 "%u: the header is corrupt",
			name, h->header_length, Q2_H_V3_MIN_LENGTH);
	if (h->header_length > 1ULL << h->cluster_bits)
		return LIMIT_ERR("%s: header_length is %u, more than the cluster size %llu: "
				 "the header is corrupt",
			name, h->header_length, 1ULL << h->cluster_bits);
	if (h->refcount_order > Q2_MAX_REFCOUNT_ORDER)
		return LIMIT_ERR("%s: refcount_order is %u, it must be at most %u: "
				 "the header is corrupt",
			name, h->refcount_order, Q2_MAX_REFCOUNT_ORDER);
	return 0;
}

/* [off, off+bytes) must be a cluster-aligned range behind the first cluster. */
static int check_range(const struct q2_header *h, const char *name, const char *what, uint64_t off,
	uint64_t bytes, struct error *err)
{
	uint64_t cluster = 1ULL << h->cluster_bits;

	if (!is_aligned(off, cluster))
		return LIMIT_ERR("%s: the %s's offset %#llx is not a multiple of the cluster size "
				 "%llu: the header is corrupt",
			name, what, (unsigned long long)off, (unsigned long long)cluster);
	if (off < cluster)
		return LIMIT_ERR("%s: the %s's offset %#llx lies in the header cluster: "
				 "the header is corrupt",
			name, what, (unsigned long long)off);
	if (!range_inside(off, bytes, INT64_MAX))
		return LIMIT_ERR("%s: the %s at offset %#llx with %llu bytes ends beyond 2^63: "
				 "the header is corrupt",
			name, what, (unsigned long long)off, (unsigned long long)bytes);
	return 0;
}

static int check_l1(const struct q2_header *h, const char *name, struct error *err)
{
	unsigned entry_bits = h->incompatible & Q2_INCOMPAT_EXTL2 ? 4 : 3;
	unsigned span_bits = h->cluster_bits + h->cluster_bits - entry_bits;
	uint64_t bytes = h->l1_size * 8ULL, needed;

	if (bytes > Q2_MAX_L1_BYTES)
		return LIMIT_ERR(
			"%s: the L1 table has %u entries, at most %llu are allowed (32 MiB)", name,
			h->l1_size, Q2_MAX_L1_BYTES / 8);
	if (h->size > INT64_MAX)
		return LIMIT_ERR(
			"%s: the virtual size %llu is beyond 2^63-1: the header is corrupt", name,
			(unsigned long long)h->size);
	needed = div_up(h->size, 1ULL << span_bits);
	if (h->l1_size < needed)
		return LIMIT_ERR(
			"%s: the L1 table has %u entries, but a virtual size of %llu bytes "
			"needs %llu: the header is corrupt",
			name, h->l1_size, (unsigned long long)h->size, (unsigned long long)needed);
	return h->l1_size ? check_range(h, name, "L1 table", h->l1_offset, bytes, err) : 0;
}

static int check_tables(const struct q2_header *h, const char *name, struct error *err)
{
	uint64_t bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;
	int r = check_l1(h, name, err);

	if (r < 0)
		return r;
	if (!h->reftable_clusters)
		return LIMIT_ERR("%s: the refcount table has no clusters: the header is corrupt; "
				 "qemu-img check -r all can rebuild it",
			name);
	if (bytes > MAX(Q2_MAX_REFTABLE_BYTES, 1ULL << h->cluster_bits))
		return LIMIT_ERR(
			"%s: the refcount table has %u clusters, more than the allowed 8 MiB", name,
			h->reftable_clusters);
	r = check_range(h, name, "refcount table", h->reftable_offset, bytes, err);
	if (r < 0)
		return r;
	if (h->nb_snapshots > Q2_MAX_SNAPSHOTS)
		return LIMIT_ERR("%s: the header counts %u snapshots, at most %u are allowed", name,
			h->nb_snapshots, Q2_MAX_SNAPSHOTS);
	return h->nb_snapshots ? check_range(h, name, "snapshot table", h->snapshots_offset, 0, err)
			       : 0;
}

/* --- extensions --- */

/* Copies an extension that holds text; a NUL inside ends nothing, so it is refused. */
static int ext_string(const uint8_t *data, uint32_t len, const char *name, const char *what,
	char **ret, struct error *err)
{
	if (memchr(data, 0, len))
		return LIMIT_ERR(
			"%s: the %s contains a NUL byte: the header is corrupt", name, what);
	*ret = mem_strndup((const char *)data, len);
	return *ret ? 0 : error_set(err, -ENOMEM, "%s: out of memory", name);
}

static int ext_unknown(struct q2_header *h, uint32_t type, const uint8_t *data, uint32_t len)
{
	struct q2_unknown_ext *ext = mem_alloc(sizeof(*ext) + len);

	if (!ext)
		return -ENOMEM;
	ext->type = type;
	ext->len = len;
	memcpy(ext->data, data, len);
	list_add_tail(&h->unknown_ext, &ext->node);
	return 0;
}

static bool ext_seen(const struct q2_header *h, uint32_t type)
{
	const struct q2_unknown_ext *ext;

	switch (type) {
	case Q2_EXT_BACKING_FORMAT:
		return h->backing_format;
	case Q2_EXT_FEATURE_NAMES:
		return h->feature_names;
	case Q2_EXT_BITMAPS:
		return h->has_bitmaps_ext;
	case Q2_EXT_CRYPTO:
		return h->has_crypto_ext;
	case Q2_EXT_DATA_FILE:
		return h->data_file;
	}
	list_for_each(ext, &h->unknown_ext, node) if (ext->type == type) return true;
	return false;
}

static int ext_fixed(const uint8_t *data, uint32_t len, const char *name, const char *what,
	uint8_t *dst, uint32_t want, bool *has, struct error *err)
{
	if (len != want)
		return LIMIT_ERR("%s: the %s header extension has %u bytes, it must have %u: "
				 "the header is corrupt",
			name, what, len, want);
	memcpy(dst, data, want);
	*has = true;
	return 0;
}

static int ext_keep(struct q2_header *h, uint32_t type, const uint8_t *data, uint32_t len,
	const char *name, struct error *err)
{
	switch (type) {
	case Q2_EXT_BACKING_FORMAT:
		return ext_string(data, len, name, "backing format", &h->backing_format, err);
	case Q2_EXT_DATA_FILE:
		return ext_string(data, len, name, "data file name", &h->data_file, err);
	case Q2_EXT_FEATURE_NAMES:
		h->feature_names = mem_alloc(len);
		if (!h->feature_names)
			return -ENOMEM;
		memcpy(h->feature_names, data, len);
		h->feature_names_len = len;
		return 0;
	case Q2_EXT_BITMAPS:
		return ext_fixed(data, len, name, "bitmaps", h->bitmaps_ext, sizeof(h->bitmaps_ext),
			&h->has_bitmaps_ext, err);
	case Q2_EXT_CRYPTO:
		return ext_fixed(data, len, name, "encryption", h->crypto_ext,
			sizeof(h->crypto_ext), &h->has_crypto_ext, err);
	}
	return ext_unknown(h, type, data, len);
}

/* The area from the header's end up to the backing name, or to the end of the cluster. */
static int extensions_load(
	struct q2_header *h, const uint8_t *buf, size_t len, const char *name, struct error *err)
{
	/* The offset of an empty name ends nothing: it is dropped with the next header write. */
	uint64_t pos = h->header_length, end = h->backing_len ? h->backing_offset : len;

	end = MIN(end, (uint64_t)len);
	while (pos + 8 <= end) {
		uint32_t type = load_be32(buf + pos), n = load_be32(buf + pos + 4);
		int r;

		pos += 8;
		if (type == Q2_EXT_END)
			break;
		if (n > end - pos)
			return LIMIT_ERR(
				"%s: the header extension %#x at offset %llu has %u bytes, "
				"more than there is room for: the header is corrupt",
				name, type, (unsigned long long)pos - 8, n);
		if (ext_seen(h, type))
			return LIMIT_ERR("%s: the header extension %#x occurs twice: "
					 "the header is corrupt",
				name, type);
		r = ext_keep(h, type, buf + pos, n, name, err);
		if (r < 0)
			return r == -ENOMEM ? error_set(err, r, "%s: out of memory", name) : r;
		pos += align_up(n, 8);
	}
	h->ext_end = MAX(MIN(pos, end), (uint64_t)h->header_length);
	return 0;
}

static int backing_load(
	struct q2_header *h, const uint8_t *buf, size_t len, const char *name, struct error *err)
{
	if (!h->backing_offset != !h->backing_len) {
		/* Old writers leave the offset of an empty name behind. */
		if (!h->backing_len) {
			h->backing_offset = 0;
			return 0;
		}
		return LIMIT_ERR("%s: the backing file name has %u bytes but no offset: "
				 "the header is corrupt",
			name, h->backing_len);
	}
	if (!h->backing_offset)
		return 0;
	if (h->backing_len > Q2_MAX_BACKING_NAME)
		return LIMIT_ERR("%s: the backing file name has %u bytes, at most %u are allowed",
			name, h->backing_len, Q2_MAX_BACKING_NAME);
	if (h->backing_offset < h->ext_end || !range_inside(h->backing_offset, h->backing_len, len))
		return LIMIT_ERR("%s: the backing file name at offset %#llx lies outside the first "
				 "cluster or inside the header: the header is corrupt",
			name, (unsigned long long)h->backing_offset);
	return ext_string(buf + h->backing_offset, h->backing_len, name, "backing file name",
		&h->backing_name, err);
}

/* --- features --- */

/* The name of a feature bit: kind 0 incompatible, 1 compatible, 2 autoclear. Bytes that could
 * disturb a terminal are replaced. */
void q2_feature_name(const struct q2_header *h, unsigned kind, unsigned bit, char *ret, size_t n)
{
	for (uint32_t i = 0; i + 48 <= h->feature_names_len; i += 48) {
		const uint8_t *e = h->feature_names + i;
		size_t j;

		if (e[0] != kind || e[1] != bit)
			continue;
		for (j = 0; j + 1 < n && j < 46 && e[2 + j]; j++)
			ret[j] = e[2 + j] >= 0x20 && e[2 + j] < 0x7f ? (char)e[2 + j] : '?';
		ret[j] = 0;
		return;
	}
	if (n)
		ret[0] = 0;
}

static int check_unknown_features(const struct q2_header *h, const char *name, struct error *err)
{
	uint64_t unknown = h->incompatible & ~(uint64_t)Q2_INCOMPAT_KNOWN;
	char list[400];
	size_t used = 0;

	if (!unknown)
		return 0;
	for (unsigned bit = 0; bit < 64 && used < sizeof(list) - 64; bit++) {
		char text[48] = "";

		if (!(unknown >> bit & 1))
			continue;
		q2_feature_name(h, 0, bit, text, sizeof(text));
		used += (size_t)snprintf(list + used, sizeof(list) - used, "%sbit %u%s%s%s",
			used ? ", " : "", bit, *text ? " (" : "", text, *text ? ")" : "");
	}
	return error_set(err, -ENOTSUP,
		"%s: the image uses features this program does not know: %s; use a newer program",
		name, list);
}

static int check_compression(const struct q2_header *h, const char *name, struct error *err)
{
	bool bit = h->incompatible & Q2_INCOMPAT_COMPRESSION;

	if (bit != (h->compression_type != Q2_COMPRESSION_DEFLATE))
		return LIMIT_ERR("%s: compression type %u and the compression feature bit (%s) "
				 "contradict each other: the header is corrupt",
			name, h->compression_type, bit ? "set" : "not set");
	if (h->compression_type > Q2_COMPRESSION_ZSTD)
		return error_set(err, -ENOTSUP,
			"%s: compression type %u is not supported; known are 0 (zlib) and 1 (zstd)",
			name, h->compression_type);
	return 0;
}

static int check_features(const struct q2_header *h, const char *name, struct error *err)
{
	int r = check_unknown_features(h, name, err);

	if (r == 0)
		r = check_compression(h, name, err);
	if (r < 0)
		return r;
	if ((h->incompatible & Q2_INCOMPAT_EXTL2) && h->cluster_bits < Q2_MIN_EXTL2_CLUSTER_BITS)
		return LIMIT_ERR(
			"%s: extended L2 entries need clusters of at least 16 KiB, this image "
			"has %llu bytes: the header is corrupt",
			name, 1ULL << h->cluster_bits);
	if (h->crypt_method > Q2_CRYPT_LUKS)
		return error_set(err, -ENOTSUP,
			"%s: encryption method %u is not supported; known are 0 (none), 1 (AES) "
			"and 2 "
			"(LUKS)",
			name, h->crypt_method);
	if ((h->crypt_method == Q2_CRYPT_LUKS) != h->has_crypto_ext)
		return LIMIT_ERR(
			"%s: encryption method %u and the encryption header extension (%s) "
			"contradict each other: the header is corrupt",
			name, h->crypt_method, h->has_crypto_ext ? "present" : "absent");
	return 0;
}

/* --- entry points --- */

static int header_decode(
	struct q2_header *h, const uint8_t *buf, size_t len, const char *name, struct error *err)
{
	int r;

	fields_load(buf, h);
	r = check_basics(h, name, err);
	if (r < 0)
		return r;
	if (h->version >= 3) {
		if (len < Q2_H_V3_MIN_LENGTH)
			return LIMIT_ERR("%s: the file ends inside the qcow2 header", name);
		fields_load_v3(buf, len, h);
		r = check_v3(h, name, err);
		if (r < 0)
			return r;
	}
	len = MIN((uint64_t)len, 1ULL << h->cluster_bits);
	r = extensions_load(h, buf, len, name, err);
	if (r == 0)
		r = backing_load(h, buf, len, name, err);
	if (r == 0)
		r = check_features(h, name, err);
	return r < 0 ? r : check_tables(h, name, err);
}

int q2_header_decode(
	const uint8_t *buf, size_t len, const char *name, struct q2_header *ret, struct error *err)
{
	struct q2_header h = {0};
	int r;

	if (len < 4 || load_be32(buf) != Q2_MAGIC)
		return error_set(
			err, -EINVAL, "%s: not a qcow2 image (the magic is missing)", name);
	if (len < Q2_H_V2_LENGTH)
		return LIMIT_ERR("%s: the file ends inside the qcow2 header", name);
	list_init(&h.unknown_ext);
	r = header_decode(&h, buf, len, name, err);
	if (r < 0) {
		q2_header_destroy(&h);
		return r;
	}
	q2_header_move(ret, &h);
	return 0;
}

/* A list head must not be copied: it is linked again. */
void q2_header_move(struct q2_header *dst, struct q2_header *src)
{
	*dst = *src;
	list_init(&dst->unknown_ext);
	list_splice_tail(&dst->unknown_ext, &src->unknown_ext);
	*src = (struct q2_header){0};
	list_init(&src->unknown_ext);
}

void q2_header_destroy(struct q2_header *h)
{
	struct q2_unknown_ext *ext, *tmp;

	mem_free(take(h->backing_name));
	mem_free(take(h->backing_format));
	mem_free(take(h->data_file));
	mem_free(take(h->feature_names));
	if (!h->unknown_ext.next)
		return;
	list_for_each_safe(ext, tmp, &h->unknown_ext, node)
	{
		list_del(&ext->node);
		mem_free(ext);
	}
}

void q2_geometry(struct q2_image *img)
{
	const struct q2_header *h = &img->h;

	img->extl2 = h->incompatible & Q2_INCOMPAT_EXTL2;
	img->cluster_bits = h->cluster_bits;
	img->cluster_size = 1ULL << h->cluster_bits;
	img->l2_entry_size = img->extl2 ? 16 : 8;
	img->l2_bits = h->cluster_bits - (img->extl2 ? 4 : 3);
	img->subclusters = img->extl2 ? Q2_SUBCLUSTERS : 1;
	img->sub_bits = h->cluster_bits - (img->extl2 ? 5 : 0);
	img->refcount_bits = 1u << h->refcount_order;
	img->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
	img->max_refcount = h->refcount_order == 6 ? UINT64_MAX : (1ULL << img->refcount_bits) - 1;
	img->lazy_refcounts = h->compatible & Q2_COMPAT_LAZY_REFCOUNTS;
}
