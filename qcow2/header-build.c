/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 header encoded: sector 0, and the whole first cluster with extensions and backing name.
 *
 * Layout of what is built: fixed fields, backing format, data file, encryption, bitmaps, unknown
 * extensions as they were found, and last the feature name table, which is only for messages and
 * is left out where the first cluster has no room for it; then the end marker. The backing name
 * follows the area in a new image; in an existing one header-io.c chooses where it goes.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

struct feature {
	uint8_t kind, bit;
	const char *name;
};

static const struct feature features[] = {
	{0, 0, "dirty bit"},
	{0, 1, "corrupt bit"},
	{0, 2, "external data file"},
	{0, 3, "compression type"},
	{0, 4, "extended L2 entries"},
	{1, 0, "lazy refcounts"},
	{2, 0, "bitmaps"},
	{2, 1, "raw external data"},
};

void q2_header_encode(const struct q2_header *h, uint8_t sector[512])
{
	store_be32(sector + Q2_H_MAGIC, Q2_MAGIC);
	store_be32(sector + Q2_H_VERSION, h->version);
	store_be64(sector + Q2_H_BACKING_OFFSET, h->backing_offset);
	store_be32(sector + Q2_H_BACKING_SIZE, h->backing_len);
	store_be32(sector + Q2_H_CLUSTER_BITS, h->cluster_bits);
	store_be64(sector + Q2_H_SIZE, h->size);
	store_be32(sector + Q2_H_CRYPT_METHOD, h->crypt_method);
	store_be32(sector + Q2_H_L1_SIZE, h->l1_size);
	store_be64(sector + Q2_H_L1_OFFSET, h->l1_offset);
	store_be64(sector + Q2_H_REFTABLE_OFFSET, h->reftable_offset);
	store_be32(sector + Q2_H_REFTABLE_CLUSTERS, h->reftable_clusters);
	store_be32(sector + Q2_H_NB_SNAPSHOTS, h->nb_snapshots);
	store_be64(sector + Q2_H_SNAPSHOTS_OFFSET, h->snapshots_offset);
	if (h->version < 3)
		return;
	store_be64(sector + Q2_H_INCOMPATIBLE, h->incompatible);
	store_be64(sector + Q2_H_COMPATIBLE, h->compatible);
	store_be64(sector + Q2_H_AUTOCLEAR, h->autoclear);
	store_be32(sector + Q2_H_REFCOUNT_ORDER, h->refcount_order);
	store_be32(sector + Q2_H_HEADER_LENGTH, h->header_length);
	if (h->header_length > Q2_H_COMPRESSION_TYPE)
		sector[Q2_H_COMPRESSION_TYPE] = h->compression_type;
}

/* The area being built: `pos` runs on past `end` when there is no room, so that the caller sees it
 * once at the end. */
struct area {
	uint8_t *buf;
	uint64_t pos, end;
};

static void area_add(struct area *a, uint32_t type, const void *data, uint32_t len)
{
	uint64_t total = 8 + align_up(len, 8);

	if (a->pos + total <= a->end) {
		store_be32(a->buf + a->pos, type);
		store_be32(a->buf + a->pos + 4, len);
		memset(a->buf + a->pos + 8, 0, total - 8);
		if (len)
			memcpy(a->buf + a->pos + 8, data, len);
	}
	a->pos += total;
}

static void area_add_text(struct area *a, uint32_t type, const char *text)
{
	if (text)
		area_add(a, type, text, (uint32_t)strlen(text));
}

static void area_add_feature_names(struct area *a, const struct q2_header *h, uint64_t reserve)
{
	uint8_t table[ARRAY_SIZE(features) * 48] = {0};
	uint32_t len = h->feature_names ? h->feature_names_len : sizeof(table);

	if (h->version < 3 || a->pos + 8 + align_up(len, 8) + 8 + reserve > a->end)
		return;
	if (h->feature_names) {
		area_add(a, Q2_EXT_FEATURE_NAMES, h->feature_names, len);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		table[i * 48] = features[i].kind;
		table[i * 48 + 1] = features[i].bit;
		memcpy(table + i * 48 + 2, features[i].name, strlen(features[i].name));
	}
	area_add(a, Q2_EXT_FEATURE_NAMES, table, len);
}

/* Extensions from header_length on. `reserve` bytes of the cluster are for the backing name.
 * Returns the end of the area, beyond `len` when it does not fit. */
uint64_t q2_header_build_extensions(
	const struct q2_header *h, uint8_t *buf, size_t len, uint64_t reserve, bool feature_names)
{
	struct area a = {buf, h->header_length, len};
	const struct q2_unknown_ext *ext;

	area_add_text(&a, Q2_EXT_BACKING_FORMAT, h->backing_format);
	area_add_text(&a, Q2_EXT_DATA_FILE, h->data_file);
	if (h->has_crypto_ext)
		area_add(&a, Q2_EXT_CRYPTO, h->crypto_ext, sizeof(h->crypto_ext));
	if (h->has_bitmaps_ext)
		area_add(&a, Q2_EXT_BITMAPS, h->bitmaps_ext, sizeof(h->bitmaps_ext));
	if (h->unknown_ext.next)
		list_for_each(ext, &h->unknown_ext, node)
			area_add(&a, ext->type, ext->data, ext->len);
	if (feature_names)
		area_add_feature_names(&a, h, reserve);
	area_add(&a, Q2_EXT_END, NULL, 0);
	return a.pos;
}

int q2_header_build(const struct q2_header *h, uint8_t *buf, size_t len, struct error *err)
{
	struct q2_header out = *h;
	size_t name_len = h->backing_name ? strlen(h->backing_name) : 0;
	uint64_t end;

	if (name_len > Q2_MAX_BACKING_NAME)
		return error_set(err, -EINVAL,
			"the backing file name has %zu bytes, a qcow2 image has room for %u",
			name_len, Q2_MAX_BACKING_NAME);
	/* unknown_ext is walked through the original: a copied list head is no list. */
	end = q2_header_build_extensions(h, buf, len, name_len, true);
	if (end + name_len > len)
		return error_set(err, -ENOSPC,
			"the backing file name and the header extensions need %llu bytes, but the "
			"first "
			"cluster has only %zu; use larger clusters or a shorter name",
			(unsigned long long)(end + name_len), len);
	out.backing_offset = name_len ? end : 0;
	out.backing_len = (uint32_t)name_len;
	if (name_len)
		memcpy(buf + end, h->backing_name, name_len);
	q2_header_encode(&out, buf);
	return 0;
}
