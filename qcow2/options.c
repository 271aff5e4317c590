/* SPDX-License-Identifier: MIT */
/*
 * Open options of qcow2 images, and the sizes of the metadata caches that follow from them.
 *
 * cache-size is the sum of both caches; of l2-cache-size and refcount-cache-size at most one may be
 * given beside it. Without options the L2 cache covers the whole disk as long as that takes no more
 * than 32 MiB. Memory is used as slices come in, so a large budget costs nothing by itself.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

#define L2_CACHE_MAX   (32 * MiB)
#define SLICE_DEFAULT  (4 * KiB)
#define REF_CACHE_MIN  (256 * KiB)
#define REF_CACHE_MAX  (2 * MiB)
#define CACHE_SIZE_MAX (1ULL << 40)

enum overlap_check { OVERLAP_CHECK_SOME };
static const struct conf_enum overlap_names[] = {
	{"none", OVERLAP_CHECK_SOME},
	{"constant", OVERLAP_CHECK_SOME},
	{"cached", OVERLAP_CHECK_SOME},
	{"all", OVERLAP_CHECK_SOME},
	{NULL, 0},
};

const struct conf_key q2_open_keys[] = {
	{"cache-size", CONF_KEY_SIZE, NULL, 0, CACHE_SIZE_MAX,
		"bytes for both metadata caches together"},
	{"l2-cache-size", CONF_KEY_SIZE, NULL, 0, CACHE_SIZE_MAX, "bytes for the L2 table cache"},
	{"refcount-cache-size", CONF_KEY_SIZE, NULL, 0, CACHE_SIZE_MAX,
		"bytes for the refcount block cache"},
	{"l2-cache-entry-size", CONF_KEY_SIZE, NULL, 0, 1ULL << Q2_MAX_CLUSTER_BITS,
		"bytes of an L2 table that are read and written at once; a power of two"},
	{"cache-clean-interval", CONF_KEY_NUMBER, NULL, 0, 0,
		"accepted; caches here never exceed their budget"},
	{"lazy-refcounts", CONF_KEY_BOOL, NULL, 0, 0, "write refcounts late, repair after a crash"},
	{"discard-no-unref", CONF_KEY_BOOL, NULL, 0, 0,
		"discarded clusters stay where they are and are reused for the same guest data"},
	{"pass-discard-request", CONF_KEY_BOOL, NULL, 0, 0,
		"discards of the guest reach the host file; default: as discard=unmap says"},
	{"pass-discard-snapshot", CONF_KEY_BOOL, NULL, 0, 0, "accepted; as pass-discard-request"},
	{"pass-discard-other", CONF_KEY_BOOL, NULL, 0, 0, "accepted"},
	{"overlap-check", CONF_KEY_ENUM, overlap_names, 0, 0,
		"accepted; metadata is always guarded"},
	{"compression-level", CONF_KEY_NUMBER, NULL, 0, 22,
		"level for compressed writes; 0: fast default"},
	{"incomplete", CONF_KEY_BOOL, NULL, 0, 0, "a target that is still being filled"},
	{NULL, 0, NULL, 0, 0, NULL},
};

int q2_options_incomplete(struct conf *opts, bool *ret, struct error *err)
{
	return conf_get_bool(opts, q2_open_keys, "incomplete", ret, err);
}

struct sizes {
	uint64_t l2, ref, slice;
};

/* Bytes of L2 tables for the whole disk. */
static uint64_t l2_needed(const struct q2_image *img)
{
	return div_up(img->h.size, img->cluster_size) * img->l2_entry_size;
}

static int sizes_combined(
	struct q2_image *img, struct conf *opts, uint64_t total, struct sizes *s, struct error *err)
{
	bool l2 = conf_has(opts, "l2-cache-size"), ref = conf_has(opts, "refcount-cache-size");
	uint64_t ref_min = 4 * s->slice;

	if (l2 && ref)
		return error_set(err, -EINVAL,
			"cache-size, l2-cache-size and refcount-cache-size may not be set at the "
			"same "
			"time");
	if (l2 && s->l2 > total)
		return error_set(err, -EINVAL, "l2-cache-size may not exceed cache-size");
	if (ref && s->ref > total)
		return error_set(err, -EINVAL, "refcount-cache-size may not exceed cache-size");
	if (l2) {
		s->ref = total - s->l2;
	} else if (ref) {
		s->l2 = total - s->ref;
	} else {
		s->l2 = MIN(l2_needed(img), total > ref_min ? total - ref_min : 0);
		s->ref = total - s->l2;
	}
	return 0;
}

static int sizes_read(struct q2_image *img, struct conf *opts, struct sizes *s, struct error *err)
{
	uint64_t total = UINT64_MAX;
	int r;

	s->slice = MIN(SLICE_DEFAULT, img->cluster_size);
	s->l2 = MIN(l2_needed(img), L2_CACHE_MAX);
	s->ref = MAX(REF_CACHE_MIN, MIN(4 * img->cluster_size, REF_CACHE_MAX));
	if ((r = conf_get_u64(opts, q2_open_keys, "cache-size", &total, err)) ||
		(r = conf_get_u64(opts, q2_open_keys, "l2-cache-size", &s->l2, err)) ||
		(r = conf_get_u64(opts, q2_open_keys, "refcount-cache-size", &s->ref, err)) ||
		(r = conf_get_u64(opts, q2_open_keys, "l2-cache-entry-size", &s->slice, err)))
		return r;
	if (!is_pow2(s->slice) || s->slice < 512 || s->slice > img->cluster_size)
		return error_set(err, -EINVAL,
			"L2 cache entry size must be a power of two between 512 and the cluster "
			"size "
			"(%llu)",
			(unsigned long long)img->cluster_size);
	return total == UINT64_MAX ? 0 : sizes_combined(img, opts, total, s, err);
}

static int switches_read(struct q2_image *img, struct conf *opts, struct error *err)
{
	uint64_t level = 0, interval;
	bool accepted;
	int check, r;

	img->pass_discard = img->node->opts.flags & BLOCK_OPEN_UNMAP;
	if ((r = conf_get_bool(opts, q2_open_keys, "lazy-refcounts", &img->lazy_refcounts, err)) ||
		(r = conf_get_bool(
			 opts, q2_open_keys, "discard-no-unref", &img->discard_no_unref, err)) ||
		(r = conf_get_bool(
			 opts, q2_open_keys, "pass-discard-request", &img->pass_discard, err)) ||
		(r = conf_get_bool(opts, q2_open_keys, "pass-discard-snapshot", &accepted, err)) ||
		(r = conf_get_bool(opts, q2_open_keys, "pass-discard-other", &accepted, err)) ||
		(r = conf_get_u64(opts, q2_open_keys, "cache-clean-interval", &interval, err)) ||
		(r = conf_get_enum(opts, q2_open_keys, "overlap-check", &check, err)) ||
		(r = conf_get_u64(opts, q2_open_keys, "compression-level", &level, err)))
		return r;
	img->compression_level = (int)level;
	if (img->lazy_refcounts && img->h.version < 3)
		return error_set(err, -EINVAL,
			"%s: lazy-refcounts needs a version 3 image (compat=1.1)",
			img->node->filename);
	if (img->discard_no_unref && img->h.version < 3)
		return error_set(err, -EINVAL,
			"%s: discard-no-unref needs a version 3 image (compat=1.1)",
			img->node->filename);
	return 0;
}

/* Slices for a budget, but never more than there is to cache. */
static uint32_t slices(uint64_t budget, uint64_t most, uint64_t slice)
{
	budget = MIN(budget, most);
	return (uint32_t)MIN(div_up(budget, slice), (uint64_t)UINT32_MAX);
}

int q2_options_apply(struct q2_image *img, struct conf *opts, struct error *err)
{
	uint64_t ref_slice = MIN(SLICE_DEFAULT, img->cluster_size);
	struct sizes s;
	int r = switches_read(img, opts, err);

	if (r == 0)
		r = sizes_read(img, opts, &s, err);
	if (r < 0)
		return r;
	r = q2_cache_new(img, (uint32_t)s.slice,
		slices(s.l2, MAX((uint64_t)img->h.l1_size << img->cluster_bits, L2_CACHE_MAX),
			s.slice),
		&img->map_lock, &img->l2_cache);
	if (r == 0)
		r = q2_cache_new(img, (uint32_t)ref_slice,
			slices(s.ref,
				MAX(img->reftable_entries << img->cluster_bits, REF_CACHE_MAX),
				ref_slice),
			NULL, &img->ref_cache);
	return r < 0
		? error_set(err, r, "%s: no memory for the metadata caches", img->node->filename)
		: 0;
}
