/* SPDX-License-Identifier: MIT */
/*
 * The check of all metadata but L2 tables: gathers the tables that the header, the L1 tables and
 * the refcount table list, and counts the references that metadata makes.
 *
 * Tables are read afresh from the file, with reserved bits and nonsense still in them; those that
 * cannot be read as tables are reported and left out.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* A table of n big-endian 64-bit entries at off, in host order; entries beyond the end of the file
 * read as zero. NULL: *err_code says why. */
static uint64_t *co_read_entries(struct q2_check *ck, uint64_t off, uint64_t n, int *err_code)
{
	uint64_t *v = block_buffer_alloc(ck->img->file, align_up(MAX(n, 1ULL) * 8, 512));
	uint64_t bytes = n * 8, have = off < ck->file_size ? MIN(bytes, ck->file_size - off) : 0;
	int r;

	*err_code = -ENOMEM;
	if (!v)
		return NULL;
	memset(v, 0, bytes);
	r = have ? co_block_pread(ck->img->file, off, v, have) : 0;
	if (r < 0) {
		*err_code = r;
		mem_free(v);
		return NULL;
	}
	for (uint64_t i = 0; i < n; i++)
		v[i] = load_be64(&v[i]);
	return v;
}

/* --- L1 tables ----------------------------------------------------------------------------- */

static int add_l1_entry(struct q2_check *ck, uint64_t entry, uint64_t index, bool active)
{
	uint64_t off = entry & Q2_OFFSET_MASK, cluster = ck->img->cluster_size;

	if (entry & Q2_L1_RESERVED & ~511ULL || entry & 511)
		q2_check_error(ck, "ERROR found L1 entry with reserved bits set: %llx",
			(unsigned long long)entry);
	if (!off)
		return 0;
	if (off & (cluster - 1)) {
		q2_check_error(ck,
			"ERROR l2_offset=%llx: Table is not cluster aligned; L1 entry "
			"corrupted",
			(unsigned long long)off);
		return 0;
	}
	if (off >= ck->file_size) {
		struct q2_refs_cursor none = {.refs = &ck->refs};

		q2_check_count(ck, &none, off, cluster, 1);
		return 0;
	}
	return q2_tables_add(&ck->l2, off, index, 1, active);
}

static int add_l1_table(struct q2_check *ck, const uint64_t *l1, uint64_t n, bool active)
{
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < n; i++)
		if (l1[i])
			r = add_l1_entry(ck, l1[i], i, active);
	return r;
}

/* Snapshots whose tables make no sense are reported and not followed. */
static int co_add_snapshot(struct q2_check *ck, const struct q2_snapshot_entry *s)
{
	_cleanup_free_ uint64_t *l1 = NULL;
	int r;

	if (s->l1_offset & (ck->img->cluster_size - 1)) {
		q2_check_error(ck,
			"ERROR snapshot %s (%s) l1_offset=%#llx: L1 table is not cluster "
			"aligned; snapshot table entry corrupted",
			s->info.id, s->info.name, (unsigned long long)s->l1_offset);
		return 0;
	}
	if ((uint64_t)s->l1_size * 8 > Q2_MAX_L1_BYTES) {
		q2_check_error(ck,
			"ERROR snapshot %s (%s) l1_size=%#x: L1 table is too large; "
			"snapshot table entry corrupted",
			s->info.id, s->info.name, s->l1_size);
		return 0;
	}
	l1 = co_read_entries(ck, s->l1_offset, s->l1_size, &r);
	if (!l1)
		return r;
	r = add_l1_table(ck, l1, s->l1_size, false);
	/* Shared tables collapse, so that many snapshots of one disk stay cheap. */
	q2_tables_merge(&ck->l2);
	return r;
}

/* --- refcount table ------------------------------------------------------------------------ */

static int add_refblock(struct q2_check *ck, uint64_t i, uint64_t entry)
{
	uint64_t off = entry & Q2_REFTABLE_MASK;

	if (entry & Q2_REFTABLE_RESERVED) {
		q2_check_refcount_error(ck, "ERROR refcount table entry %llu has reserved bits set",
			(unsigned long long)i);
		ck->bad_structure = true;
	}
	if (off & (ck->img->cluster_size - 1)) {
		q2_check_refcount_error(ck,
			"ERROR refcount block %llu is not cluster aligned; refcount "
			"table entry corrupted",
			(unsigned long long)i);
		ck->bad_structure = true;
		return 0;
	}
	if (off >= ck->file_size) {
		q2_check_refcount_error(
			ck, "ERROR refcount block %llu is outside image", (unsigned long long)i);
		ck->bad_structure = true;
		return 0;
	}
	return off ? q2_tables_add(&ck->refblocks, off, i, 1, 0) : 0;
}

int co_q2_check_gather(struct q2_check *ck, struct error *err)
{
	struct q2_image *img = ck->img;
	const struct q2_header *h = &img->h;
	int r;

	ck->reftable_entries = (uint64_t)h->reftable_clusters << (img->cluster_bits - 3);
	ck->reftable = co_read_entries(ck, h->reftable_offset, ck->reftable_entries, &r);
	if (!ck->reftable)
		return error_set_errno(
			err, r, "%s: cannot read the refcount table", img->node->filename);
	ck->l1 = co_read_entries(ck, h->l1_offset, h->l1_size, &r);
	if (!ck->l1)
		return error_set_errno(err, r, "%s: cannot read the L1 table", img->node->filename);

	r = 0;
	for (uint64_t i = 0; r == 0 && i < ck->reftable_entries; i++)
		if (ck->reftable[i])
			r = add_refblock(ck, i, ck->reftable[i]);
	q2_tables_merge(&ck->refblocks);
	/* One block in two places of the table cannot be right for both. */
	for (size_t i = 0; i < ck->refblocks.n; i++) {
		if (ck->refblocks.v[i].refs < 2)
			continue;
		q2_check_refcount_error(ck, "ERROR refcount block %llu refcount=%lld",
			(unsigned long long)ck->refblocks.v[i].index,
			(long long)ck->refblocks.v[i].refs);
		ck->bad_structure = true;
	}
	if (r == 0)
		r = add_l1_table(ck, ck->l1, h->l1_size, true);
	for (uint32_t i = 0; r == 0 && i < img->nb_snapshots; i++)
		r = co_add_snapshot(ck, &img->snapshots[i]);
	q2_tables_merge(&ck->l2);
	return r < 0
		? error_set_errno(err, r, "%s: cannot read the image's tables", img->node->filename)
		: 0;
}

/* --- references ---------------------------------------------------------------------------- */

void q2_check_count(
	struct q2_check *ck, struct q2_refs_cursor *cur, uint64_t off, uint64_t len, int64_t n)
{
	unsigned bits = ck->img->cluster_bits;
	uint64_t first = off >> bits, last;

	if (!len)
		return;
	if (off > UINT64_MAX - len || off + len > ck->clusters << bits) {
		q2_refs_cursor_end(cur); /* no lock is held while somebody prints */
		if (ck->first_pass)
			q2_check_error(ck,
				"ERROR: counting reference for region exceeding the end "
				"of the file by one cluster or more: offset 0x%llx size 0x%llx",
				(unsigned long long)off, (unsigned long long)len);
		return;
	}
	last = (off + len - 1) >> bits;
	for (uint64_t c = first; c <= last; c++)
		q2_refs_add(cur, c, -n);
}

/* The directory of persistent bitmaps, its tables and their clusters. */
static int co_count_bitmap_table(
	struct q2_check *ck, struct q2_refs_cursor *cur, uint64_t off, uint64_t entries)
{
	_cleanup_free_ uint64_t *table = NULL;
	int r;

	q2_check_count(ck, cur, off, entries * 8, 1);
	q2_refs_cursor_end(cur);
	if (off & (ck->img->cluster_size - 1) || off >= ck->file_size)
		return 0;
	table = co_read_entries(ck, off, MIN(entries, (ck->file_size - off) / 8), &r);
	if (!table)
		return r;
	for (uint64_t i = 0; i < MIN(entries, (ck->file_size - off) / 8); i++)
		if (table[i] & Q2_OFFSET_MASK)
			q2_check_count(
				ck, cur, table[i] & Q2_OFFSET_MASK, ck->img->cluster_size, 1);
	q2_refs_cursor_end(cur);
	return 0;
}

#define BITMAP_ENTRY_HEADER  24u
#define MAX_BITMAP_DIRECTORY 67107840ULL
#define MAX_BITMAP_TABLE     (1ULL << 27)

static int co_count_bitmaps(struct q2_check *ck, struct q2_refs_cursor *cur)
{
	const uint8_t *ext = ck->img->h.bitmaps_ext;
	uint32_t n = load_be32(ext);
	uint64_t size = load_be64(ext + 8), off = load_be64(ext + 16), at = 0;
	_cleanup_free_ uint8_t *dir = NULL;
	int r = 0;

	q2_check_count(ck, cur, off, size, 1);
	q2_refs_cursor_end(cur);
	if (size > MAX_BITMAP_DIRECTORY || !range_inside(off, size, ck->file_size)) {
		if (ck->first_pass)
			q2_check_error(ck,
				"ERROR bitmap directory of %llu bytes at 0x%llx does "
				"not lie inside the file",
				(unsigned long long)size, (unsigned long long)off);
		return 0;
	}
	dir = block_buffer_alloc(ck->img->file, MAX(size, 1ULL));
	if (!dir)
		return -ENOMEM;
	r = size ? co_block_pread(ck->img->file, off, dir, size) : 0;
	for (uint32_t i = 0; r == 0 && i < n && range_inside(at, BITMAP_ENTRY_HEADER, size); i++) {
		const uint8_t *e = dir + at;
		uint32_t entries = load_be32(e + 8);

		if (entries <= MAX_BITMAP_TABLE)
			r = co_count_bitmap_table(ck, cur, load_be64(e), entries);
		at += align_up(
			(uint64_t)BITMAP_ENTRY_HEADER + load_be32(e + 20) + load_be16(e + 18), 8);
	}
	return r;
}

/* Refcount blocks have one reference, and a refcount of 1 when all is well. */
static void count_refblocks(struct q2_check *ck, struct q2_refs_cursor *cur)
{
	for (size_t i = 0; i < ck->refblocks.n; i++) {
		const struct q2_table *t = &ck->refblocks.v[i];
		bool known, one = q2_refs_flag(cur, t->off >> ck->img->cluster_bits, &known);

		q2_check_count(ck, cur, t->off, ck->img->cluster_size, t->refs);
		if (known && !one)
			ck->bad_structure = true; /* someone else uses it, or may do so soon */
	}
}

static void count_l2_tables(struct q2_check *ck, struct q2_refs_cursor *cur)
{
	for (size_t i = 0; i < ck->l2.n; i++)
		q2_check_count(ck, cur, ck->l2.v[i].off, ck->img->cluster_size, ck->l2.v[i].refs);
}

int co_q2_check_metadata(struct q2_check *ck)
{
	const struct q2_image *img = ck->img;
	const struct q2_header *h = &img->h;
	struct q2_refs_cursor cur = {.refs = &ck->refs};
	int r = 0;

	q2_check_count(ck, &cur, 0, img->cluster_size, 1);
	q2_check_count(ck, &cur, h->l1_offset, (uint64_t)h->l1_size * 8, 1);
	if (!ck->counting)
		q2_check_count(ck, &cur, h->reftable_offset,
			(uint64_t)h->reftable_clusters << img->cluster_bits, 1);
	q2_check_count(ck, &cur, h->snapshots_offset,
		q2_snapshot_table_bytes(img->snapshots, img->nb_snapshots), 1);
	for (uint32_t i = 0; i < img->nb_snapshots; i++)
		if (!(img->snapshots[i].l1_offset & (img->cluster_size - 1)))
			q2_check_count(ck, &cur, img->snapshots[i].l1_offset,
				(uint64_t)img->snapshots[i].l1_size * 8, 1);
	if (h->has_crypto_ext)
		q2_check_count(ck, &cur, load_be64(h->crypto_ext), load_be64(h->crypto_ext + 8), 1);
	if (!ck->counting)
		count_refblocks(ck, &cur);
	count_l2_tables(ck, &cur);
	q2_refs_cursor_end(&cur);
	if (h->has_bitmaps_ext && h->autoclear & Q2_AUTOCLEAR_BITMAPS)
		r = co_count_bitmaps(ck, &cur);
	q2_refs_cursor_end(&cur);
	return r;
}
