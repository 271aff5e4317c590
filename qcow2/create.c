/* SPDX-License-Identifier: MIT */
/*
 * Creating an image: options, layout, and the writing of a new file.
 *
 * The file is laid out as header, refcount table, refcount blocks, L1 table and, with
 * preallocation, L2 tables and data clusters, without gaps. Everything is written and made durable
 * before sector 0, so that a creation cut short leaves no magic and thus nothing that looks like an
 * image. With the option `incomplete`, sector 0 stays without magic even then: the image opens only
 * with the open option of the same name, until co_finalize writes the magic (convert does that when
 * all data is there).
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

static const struct conf_enum compression_names[] = {
	{"zlib", Q2_COMPRESSION_DEFLATE}, {"zstd", Q2_COMPRESSION_ZSTD}, {NULL, 0}};

static const struct conf_enum compat_names[] = {
	{"0.10", 2}, {"v2", 2}, {"1.1", 3}, {"v3", 3}, {NULL, 0}};

/* Keys without help text are internal and not listed by `-o help`. */
const struct conf_key q2_create_keys[] = {
	{"backing_file", CONF_KEY_STRING, NULL, 0, 0, "File name of a base image"},
	{"backing_fmt", CONF_KEY_STRING, NULL, 0, 0, "Image format of the base image"},
	{"cluster_size", CONF_KEY_SIZE, NULL, 0, 0, "qcow2 cluster size"},
	{"compat", CONF_KEY_ENUM, compat_names, 0, 0,
		"Compatibility level (v2 [0.10] or v3 [1.1])"},
	{"compression_level", CONF_KEY_NUMBER, NULL, 0, 22,
		"Effort of image cluster compression (zlib 0-9, zstd 0-22; 0: fast default)"},
	{"compression_type", CONF_KEY_ENUM, compression_names, 0, 0,
		"Compression method used for image cluster compression"},
	{"extended_l2", CONF_KEY_BOOL, NULL, 0, 0, "Extended L2 tables"},
	{"lazy_refcounts", CONF_KEY_BOOL, NULL, 0, 0, "Postpone refcount updates"},
	{"nocow", CONF_KEY_BOOL, NULL, 0, 0, "Turn off copy-on-write (valid only on btrfs)"},
	{"preallocation", CONF_KEY_ENUM, block_prealloc_names, 0, 0,
		"Preallocation mode (allowed values: off, metadata, falloc, full)"},
	{"refcount_bits", CONF_KEY_NUMBER, NULL, 0, 0, "Width of a reference count entry in bits"},
	{"size", CONF_KEY_SIZE, NULL, 0, 0, "Virtual disk size"},
	{"incomplete", CONF_KEY_BOOL, NULL, 0, 0, NULL},
	{NULL, 0, NULL, 0, 0, NULL},
};

/* --- options ------------------------------------------------------------------------------- */

static int refuse_unsupported(const struct conf *opts, struct error *err)
{
	static const char *const crypt[] = {"encryption", "encrypt", NULL};
	static const char *const data_file[] = {"data_file", "data_file_raw", NULL};

	for (unsigned i = 0; crypt[i]; i++)
		if (conf_has(opts, crypt[i]))
			return error_set(err, -ENOTSUP,
				"Option '%s': this version of drover cannot create encrypted "
				"images",
				crypt[i]);
	for (unsigned i = 0; data_file[i]; i++)
		if (conf_has(opts, data_file[i]))
			return error_set(err, -ENOTSUP,
				"Option '%s': this version of drover cannot create images with an "
				"external data file",
				data_file[i]);
	return 0;
}

/* Reads the options as they stand, without judging how they fit together. */
static int read_options(struct conf *opts, struct q2_create_params *p, uint64_t *cluster_size,
	uint64_t *refcount_bits, struct error *err)
{
	const struct conf_key *t = q2_create_keys;
	int version = 3, compression = Q2_COMPRESSION_DEFLATE, prealloc = BLOCK_PREALLOC_OFF;
	uint64_t level = 0;
	bool nocow = false; /* a property of the file, which block/create.c has made */
	int r;

	if ((r = conf_get_string(opts, t, "backing_file", &p->backing_name, err)) < 0 ||
		(r = conf_get_string(opts, t, "backing_fmt", &p->backing_format, err)) < 0 ||
		(r = conf_get_u64(opts, t, "cluster_size", cluster_size, err)) < 0 ||
		(r = conf_get_enum(opts, t, "compat", &version, err)) < 0 ||
		(r = conf_get_u64(opts, t, "compression_level", &level, err)) < 0 ||
		(r = conf_get_enum(opts, t, "compression_type", &compression, err)) < 0 ||
		(r = conf_get_bool(opts, t, "extended_l2", &p->extl2, err)) < 0 ||
		(r = conf_get_bool(opts, t, "lazy_refcounts", &p->lazy_refcounts, err)) < 0 ||
		(r = conf_get_bool(opts, t, "nocow", &nocow, err)) < 0 ||
		(r = conf_get_enum(opts, t, "preallocation", &prealloc, err)) < 0 ||
		(r = conf_get_u64(opts, t, "refcount_bits", refcount_bits, err)) < 0 ||
		(r = conf_get_u64(opts, t, "size", &p->size, err)) < 0 ||
		(r = conf_get_bool(opts, t, "incomplete", &p->incomplete, err)) < 0)
		return r;
	p->version = (uint32_t)version;
	p->compression = (uint8_t)compression;
	p->prealloc = (enum block_prealloc)prealloc;
	if (level > 9 && p->compression == Q2_COMPRESSION_DEFLATE)
		return error_set(err, -EINVAL,
			"Compression level %llu: levels of zlib go from 0 to 9",
			(unsigned long long)level);
	if (p->backing_name && !*p->backing_name)
		p->backing_name = NULL;
	return 0;
}

/* What version 2 cannot hold. */
static int check_version(const struct q2_create_params *p, struct error *err)
{
	if (p->version >= 3)
		return 0;
	if (p->refcount_order != 4)
		return error_set(err, -EINVAL,
			"Different refcount widths than 16 bits require compatibility level 1.1 "
			"or above (use compat=v3 or greater)");
	if (p->lazy_refcounts)
		return error_set(err, -EINVAL,
			"Lazy refcounts only supported with compatibility level 1.1 and above "
			"(use compat=v3 or greater)");
	if (p->extl2)
		return error_set(err, -EINVAL,
			"Extended L2 entries are only supported with compatibility level 1.1 and "
			"above (use compat=v3 or greater)");
	if (p->compression != Q2_COMPRESSION_DEFLATE)
		return error_set(err, -EINVAL,
			"Non-zlib compression type is only supported with compatibility level 1.1 "
			"and above (use compat=v3 or greater)");
	return 0;
}

static int check_together(const struct q2_create_params *p, struct error *err)
{
	struct q2_layout l;
	int r = check_version(p, err);

	if (r < 0)
		return r;
	if (p->extl2 && p->cluster_bits < Q2_MIN_EXTL2_CLUSTER_BITS)
		return error_set(err, -EINVAL,
			"Extended L2 entries are only supported with cluster sizes of at least "
			"%u bytes",
			1u << Q2_MIN_EXTL2_CLUSTER_BITS);
	if (p->backing_name && p->prealloc != BLOCK_PREALLOC_OFF && !p->extl2)
		return error_set(err, -EINVAL,
			"Backing file and preallocation can only be used at the same time if "
			"extended_l2 is on");
	if (p->backing_format && !p->backing_name)
		return error_set(err, -EINVAL,
			"A backing format (%s) is given without a backing file; name one with "
			"backing_file",
			p->backing_format);
	if (p->backing_name && strlen(p->backing_name) > Q2_MAX_BACKING_NAME)
		return error_set(err, -EINVAL,
			"The backing file name is %zu bytes long; qcow2 holds at most %u bytes",
			strlen(p->backing_name), Q2_MAX_BACKING_NAME);
	if (q2_layout(p, true, &l) < 0)
		return error_set(err, -EFBIG,
			"The image size is too large for file format 'qcow2' "
			"(try using a larger cluster size)");
	if (p->prealloc != BLOCK_PREALLOC_OFF &&
		l.reftable << p->cluster_bits > Q2_MAX_REFTABLE_BYTES)
		return error_set(err, -EFBIG,
			"The refcount table of the preallocated image would be larger than %llu "
			"MiB "
			"(try using a larger cluster size)",
			Q2_MAX_REFTABLE_BYTES / MiB);
	return 0;
}

int q2_create_parse(
	struct conf *opts, uint64_t size, struct q2_create_params *ret, struct error *err)
{
	struct q2_create_params p = {.size = size};
	uint64_t cluster_size = 64 * KiB, refcount_bits = 16;
	int r = refuse_unsupported(opts, err);

	if (r == 0)
		r = read_options(opts, &p, &cluster_size, &refcount_bits, err);
	if (r < 0)
		return r;
	if (!is_pow2(cluster_size) || cluster_size < 1ULL << Q2_MIN_CLUSTER_BITS ||
		cluster_size > 1ULL << Q2_MAX_CLUSTER_BITS)
		return error_set(err, -EINVAL,
			"Cluster size must be a power of two between %u and %uk",
			1u << Q2_MIN_CLUSTER_BITS, 1u << (Q2_MAX_CLUSTER_BITS - 10));
	if (!is_pow2(refcount_bits) || refcount_bits > 64)
		return error_set(err, -EINVAL,
			"Refcount width must be a power of two and may not exceed 64 bits");
	if (p.size == UINT64_MAX)
		return error_set(err, -EINVAL, "Image creation needs a size parameter");
	p.cluster_bits = log2_u64(cluster_size);
	p.refcount_order = log2_u64(refcount_bits);
	r = check_together(&p, err);
	if (r < 0)
		return r;
	*ret = p;
	return 0;
}

/* --- writing ------------------------------------------------------------------------------- */

struct creation {
	const struct q2_create_params *p;
	struct block_node *file;
	struct q2_layout l;
	uint64_t cluster_size;
	uint8_t *buf; /* BUF_SIZE bytes */
};

#define BUF_SIZE (4 * MiB) /* whole clusters of any size */

/* Streams `bytes` of generated content to `off`: fill() sets n bytes that start `at` into it. */
static int co_stream(struct creation *c, uint64_t off, uint64_t bytes,
	void (*fill)(struct creation *c, uint64_t at, uint64_t n))
{
	for (uint64_t at = 0; at < bytes;) {
		uint64_t n = MIN(bytes - at, BUF_SIZE);
		int r;

		memset(c->buf, 0, n);
		fill(c, at, n);
		r = co_block_pwrite(c->file, off + at, c->buf, n);
		if (r < 0)
			return r;
		at += n;
	}
	return 0;
}

static void fill_reftable(struct creation *c, uint64_t at, uint64_t n)
{
	for (uint64_t i = at / 8; i < (at + n) / 8 && i < c->l.refblocks; i++)
		store_be64(c->buf + i * 8 - at, (1 + c->l.reftable + i) << c->p->cluster_bits);
}

/* Every cluster up to the end of the file has one reference. */
static void fill_refblocks(struct creation *c, uint64_t at, uint64_t n)
{
	unsigned order = c->p->refcount_order;
	uint64_t first = at * 8 >> order, count = n * 8 >> order;

	for (uint64_t i = 0; i < count && first + i < c->l.total; i++)
		q2_refcount_store(c->buf, i, order, 1);
}

static uint64_t l2_start(const struct creation *c)
{
	return 1 + c->l.reftable + c->l.refblocks + c->l.l1_clusters;
}

static void fill_l1(struct creation *c, uint64_t at, uint64_t n)
{
	for (uint64_t i = at / 8; i < (at + n) / 8 && i < c->l.l2_tables; i++)
		store_be64(
			c->buf + i * 8 - at, (l2_start(c) + i) << c->p->cluster_bits | Q2_COPIED);
}

/* Extended entries stay without allocated subclusters: a backing file shows through. */
static void fill_l2(struct creation *c, uint64_t at, uint64_t n)
{
	uint64_t entry_size = c->p->extl2 ? 16 : 8;
	uint64_t data = l2_start(c) + c->l.l2_tables;

	for (uint64_t i = at / entry_size; i < (at + n) / entry_size && i < c->l.data; i++)
		store_be64(
			c->buf + i * entry_size - at, (data + i) << c->p->cluster_bits | Q2_COPIED);
}

/* Makes the file at least as long as the image; devices have their size. */
static int co_extend(
	struct creation *c, uint64_t clusters, enum block_prealloc mode, struct error *err)
{
	struct block_resize rs = {.size = clusters << c->p->cluster_bits, .prealloc = mode};

	if (rs.size <= block_size(c->file) && mode == BLOCK_PREALLOC_OFF)
		return 0;
	return co_block_resize(c->file, &rs, err);
}

static int co_write_preallocated(struct creation *c, struct error *err)
{
	bool reserve = c->p->prealloc == BLOCK_PREALLOC_FALLOC ||
		c->p->prealloc == BLOCK_PREALLOC_FULL;
	uint64_t data = (l2_start(c) + c->l.l2_tables) << c->p->cluster_bits;
	uint64_t end = c->l.total << c->p->cluster_bits;
	uint64_t stale = MIN(block_size(c->file), end);
	int r = 0;

	/* Old content of a device must not show up as guest data. */
	if (stale > data && !c->p->extl2)
		r = co_block_zero(c->file, data, stale - data, 0);
	if (r == 0 && end > block_size(c->file))
		r = co_extend(c, c->l.total, reserve ? c->p->prealloc : BLOCK_PREALLOC_OFF, err);
	if (r < 0)
		return r;
	return co_stream(c, l2_start(c) << c->p->cluster_bits, c->l.l2_tables << c->p->cluster_bits,
		fill_l2);
}

/* The entries get real space on the host: linking what a guest wrote must not fail on a full
 * disk. */
static int co_write_empty_l1(struct creation *c, uint64_t at)
{
	uint64_t room = c->l.l1_clusters * c->cluster_size;
	uint64_t entries = div_up(div_up(c->p->size, c->cluster_size),
		c->cluster_size / (c->p->extl2 ? 16 : 8));
	uint64_t used = MIN(align_up(entries * 8, 4096), room);
	int r = used ? co_block_zero(c->file, at, used, 0) : 0;

	if (r == 0 && room > used)
		r = co_block_zero(c->file, at + used, room - used, BLOCK_IO_UNMAP);
	return r;
}

/* All but the first cluster. */
static int co_write_tables(struct creation *c, struct error *err)
{
	bool prealloc = c->p->prealloc != BLOCK_PREALLOC_OFF;
	uint64_t cs = c->cluster_size;
	uint64_t l1 = (1 + c->l.reftable + c->l.refblocks) * cs;
	int r = co_extend(c, l2_start(c), BLOCK_PREALLOC_OFF, err);

	if (r == 0)
		r = co_stream(c, cs, c->l.reftable * cs, fill_reftable);
	if (r == 0)
		r = co_stream(c, cs * (1 + c->l.reftable), c->l.refblocks * cs, fill_refblocks);
	if (r < 0)
		return r;
	if (prealloc) {
		r = co_stream(c, l1, c->l.l1_clusters * cs, fill_l1);
		return r < 0 ? r : co_write_preallocated(c, err);
	}
	return co_write_empty_l1(c, l1);
}

static int fill_header(const struct creation *c, struct q2_header *h)
{
	const struct q2_create_params *p = c->p;

	*h = (struct q2_header){
		.version = p->version,
		.cluster_bits = p->cluster_bits,
		.size = p->size,
		.l1_size = (uint32_t)div_up(
			div_up(p->size, c->cluster_size), c->cluster_size / (p->extl2 ? 16 : 8)),
		.l1_offset = (1 + c->l.reftable + c->l.refblocks) * c->cluster_size,
		.reftable_offset = c->cluster_size,
		.reftable_clusters = (uint32_t)c->l.reftable,
		.refcount_order = p->refcount_order,
		.header_length = p->version >= 3 ? Q2_H_V3_LENGTH : Q2_H_V2_LENGTH,
		.compression_type = p->compression,
		.compatible = p->lazy_refcounts ? Q2_COMPAT_LAZY_REFCOUNTS : 0,
		.incompatible = (p->extl2 ? Q2_INCOMPAT_EXTL2 : 0) |
			(p->compression ? Q2_INCOMPAT_COMPRESSION : 0),
	};
	list_init(&h->unknown_ext);
	if (p->backing_name && !(h->backing_name = mem_strdup(p->backing_name)))
		return -ENOMEM;
	if (p->backing_format && !(h->backing_format = mem_strdup(p->backing_format)))
		return -ENOMEM;
	return 0;
}

/* The first cluster: all behind sector 0 < sector 0. */
static int co_write_header(struct creation *c, struct error *err)
{
	_cleanup_(q2_header_destroy) struct q2_header h;
	int r = fill_header(c, &h);

	if (r < 0)
		return r;
	memset(c->buf, 0, c->cluster_size);
	r = q2_header_build(&h, c->buf, c->cluster_size, err);
	if (r < 0)
		return r;
	if (c->cluster_size > 512)
		r = co_block_pwrite(c->file, 512, c->buf + 512, c->cluster_size - 512);
	if (r == 0)
		r = co_block_flush(c->file);
	if (r < 0)
		return r;
	if (c->p->incomplete)
		store_be32(c->buf + Q2_H_MAGIC, 0);
	return co_block_pwrite(c->file, 0, c->buf, 512);
}

/* An old image on a device stops being one before anything else is overwritten. */
static int co_wipe_magic(struct creation *c)
{
	int r;

	if (block_size(c->file) < 512)
		return 0;
	r = co_block_zero(c->file, 0, 512, 0);
	return r < 0 ? r : co_block_flush(c->file);
}

int co_q2_create(const struct block_create *cr, struct error *err)
{
	const char *name = cr->filename ? cr->filename : cr->file->filename;
	_cleanup_free_ uint8_t *buf = block_buffer_alloc(cr->file, BUF_SIZE);
	struct q2_create_params p;
	struct creation c = {.p = &p, .file = cr->file, .buf = buf};
	int r;

	if (!buf)
		return error_set(err, -ENOMEM, "%s: out of memory", name);
	r = q2_create_parse(cr->opts, UINT64_MAX, &p, err);
	if (r < 0)
		return r;
	r = q2_layout(&p, p.prealloc != BLOCK_PREALLOC_OFF, &c.l);
	if (r < 0)
		return error_set_errno(err, r, "%s: cannot lay out the image", name);
	c.cluster_size = 1ULL << p.cluster_bits;

	struct error why = ERROR_INIT;
	r = co_wipe_magic(&c);
	if (r == 0)
		r = co_write_tables(&c, &why);
	if (r == 0)
		r = co_write_header(&c, &why);
	if (r == 0)
		r = co_block_flush(c.file);
	if (r < 0 && why.code)
		return error_set(err, r, "%s: %s", name, why.text);
	return r < 0 ? error_set_errno(err, r, "%s: cannot write the new image", name) : 0;
}
