/* SPDX-License-Identifier: MIT */
/*
 * The snapshot table: reading it at open, encoding it for a new one, finding entries.
 *
 * Everything in it is checked against limits before it is believed; the L1 tables it names are read
 * only when somebody asks for the snapshot.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* --- reading ------------------------------------------------------------------------------- */

void q2_snapshot_entry_free(struct q2_snapshot_entry *s)
{
	mem_free(s->info.id);
	mem_free(s->info.name);
	mem_free(s->extra);
	*s = (struct q2_snapshot_entry){0};
}

void q2_snapshots_free(struct q2_image *img)
{
	for (uint32_t i = 0; i < img->nb_snapshots; i++)
		q2_snapshot_entry_free(&img->snapshots[i]);
	mem_free(img->snapshots);
	img->snapshots = NULL;
	img->nb_snapshots = 0;
}

static int bad_table(const struct q2_image *img, struct error *err, const char *what)
{
	return error_set(
		err, -EUCLEAN, "%s: the snapshot table is damaged: %s", img->node->filename, what);
}

/* Reads entries through a window of the table, so that its size need not be known in advance. */
struct reader {
	struct q2_image *img;
	uint64_t off, end; /* host offsets; end: of the file or the limit of the table */
	uint8_t *buf;
	size_t room;
};

/* The next n bytes of the table, valid until the next call; skips nothing. */
static int co_reader_get(struct reader *rd, size_t n, const uint8_t **ret)
{
	int r;

	if (!range_inside(rd->off, n, rd->end))
		return -EUCLEAN;
	if (rd->room < n) {
		mem_free(rd->buf);
		rd->room = 0;
		rd->buf = block_buffer_alloc(rd->img->file, n);
		if (!rd->buf)
			return -ENOMEM;
		rd->room = n;
	}
	r = n ? co_block_pread(rd->img->file, rd->off, rd->buf, n) : 0;
	rd->off += n;
	*ret = rd->buf;
	return r;
}

static int parse_extra(const struct q2_image *img, struct q2_snapshot_entry *s)
{
	const uint8_t *x = s->extra;

	s->info.icount = UINT64_MAX;
	s->info.disk_size = img->h.size;
	if (s->extra_len >= Q2_SX_VM_STATE_SIZE + 8)
		s->info.vm_state_size = load_be64(x + Q2_SX_VM_STATE_SIZE);
	if (s->extra_len >= Q2_SX_DISK_SIZE + 8)
		s->info.disk_size = load_be64(x + Q2_SX_DISK_SIZE);
	if (s->extra_len >= Q2_SX_ICOUNT + 8)
		s->info.icount = load_be64(x + Q2_SX_ICOUNT);
	return 0;
}

static char *copy_text(const uint8_t *p, size_t n)
{
	return memchr(p, 0, n) ? NULL : mem_strndup((const char *)p, n);
}

static int co_read_entry(struct reader *rd, struct q2_snapshot_entry *s, struct error *err)
{
	const struct q2_image *img = rd->img;
	const uint8_t *p;
	uint16_t id_size, name_size;
	int r;

	rd->off = align_up(rd->off, 8);
	r = co_reader_get(rd, Q2_S_HEADER, &p);
	if (r < 0)
		return r == -EUCLEAN ? bad_table(img, err, "it ends beyond the file") : r;
	s->l1_offset = load_be64(p + Q2_S_L1_OFFSET);
	s->l1_size = load_be32(p + Q2_S_L1_SIZE);
	id_size = load_be16(p + Q2_S_ID_SIZE);
	name_size = load_be16(p + Q2_S_NAME_SIZE);
	s->info.date_sec = load_be32(p + Q2_S_DATE_SEC);
	s->info.date_nsec = load_be32(p + Q2_S_DATE_NSEC);
	s->info.vm_clock_nsec = load_be64(p + Q2_S_VM_CLOCK);
	s->info.vm_state_size = load_be32(p + Q2_S_VM_STATE_SIZE);
	s->extra_len = load_be32(p + Q2_S_EXTRA_SIZE);
	if (s->extra_len > Q2_MAX_SNAPSHOT_EXTRA) {
		s->extra_len = 0;
		return bad_table(img, err, "an entry has more than 1024 bytes of extra data");
	}
	if (img->h.version >= 3 && s->extra_len < Q2_SX_DISK_SIZE + 8)
		return bad_table(img, err,
			"an entry has less than 16 bytes of extra data, which "
			"version 3 does not allow");
	r = co_reader_get(rd, (size_t)s->extra_len + id_size + name_size, &p);
	if (r < 0)
		return r == -EUCLEAN ? bad_table(img, err, "it ends beyond the file") : r;
	s->extra = mem_alloc(s->extra_len);
	if (!s->extra)
		return -ENOMEM;
	memcpy(s->extra, p, s->extra_len);
	if (memchr(p + s->extra_len, 0, (size_t)id_size + name_size))
		return bad_table(img, err, "a name contains a NUL byte");
	s->info.id = copy_text(p + s->extra_len, id_size);
	s->info.name = copy_text(p + s->extra_len + id_size, name_size);
	return s->info.id && s->info.name ? parse_extra(img, s) : -ENOMEM;
}

static int co_load(struct q2_image *img, struct reader *rd, struct error *err)
{
	uint32_t n = img->h.nb_snapshots;
	int r = 0;

	/* Grown as entries turn up, so that a number in the header costs nothing. */
	for (uint32_t i = 0; r == 0 && i < n; i++) {
		if (is_pow2(i) || i == 0) {
			struct q2_snapshot_entry *v = mem_realloc(
				img->snapshots, MAX(2 * i, 1u) * sizeof(*img->snapshots));

			if (!v)
				return -ENOMEM;
			img->snapshots = v;
		}
		img->snapshots[i] = (struct q2_snapshot_entry){0};
		img->nb_snapshots = i + 1;
		r = co_read_entry(rd, &img->snapshots[i], err);
	}
	return r;
}

int co_q2_snapshots_load(struct q2_image *img, struct error *err)
{
	const struct q2_header *h = &img->h;
	struct reader rd = {.img = img, .off = h->snapshots_offset};
	int r;

	q2_snapshots_free(img);
	if (!h->nb_snapshots)
		return 0;
	if (h->nb_snapshots > Q2_MAX_SNAPSHOTS)
		return error_set(err, -EFBIG,
			"%s: the image says it has %u snapshots; at most %u "
			"are supported",
			img->node->filename, h->nb_snapshots, Q2_MAX_SNAPSHOTS);
	if (!is_aligned(h->snapshots_offset, img->cluster_size) ||
		h->snapshots_offset >= block_size(img->file))
		return bad_table(img, err, "it does not lie at a cluster of the file");
	rd.end = MIN(align_up(block_size(img->file), img->cluster_size),
		h->snapshots_offset + Q2_MAX_SNAPSHOT_TABLE);
	r = co_load(img, &rd, err);
	mem_free(rd.buf);
	if (r < 0) {
		q2_snapshots_free(img);
		if (r != -EUCLEAN)
			error_set_errno(
				err, r, "%s: cannot read the snapshot table", img->node->filename);
	}
	return r;
}

/* --- finding and reading one --------------------------------------------------------------- */

int q2_snapshot_find(const struct q2_image *img, const char *id_or_name)
{
	for (uint32_t i = 0; i < img->nb_snapshots; i++)
		if (!strcmp(img->snapshots[i].info.id, id_or_name))
			return (int)i;
	for (uint32_t i = 0; i < img->nb_snapshots; i++)
		if (!strcmp(img->snapshots[i].info.name, id_or_name))
			return (int)i;
	return -ENOENT;
}

int co_q2_snapshot_l1(
	struct q2_image *img, const struct q2_snapshot_entry *s, uint64_t **ret, struct error *err)
{
	uint64_t bytes = (uint64_t)s->l1_size * 8;
	_cleanup_free_ uint64_t *l1 = NULL;
	int r = 0;

	if (bytes > Q2_MAX_L1_BYTES || !is_aligned(s->l1_offset, img->cluster_size) ||
		(bytes &&
			!range_inside(s->l1_offset, bytes,
				align_up(block_size(img->file), img->cluster_size))))
		return error_set(err, -EUCLEAN,
			"%s: snapshot '%s' has an L1 table that does not "
			"lie inside the file",
			img->node->filename, s->info.name);
	l1 = block_buffer_alloc(img->file, MAX(bytes, 512ULL));
	if (!l1)
		return error_set(err, -ENOMEM, "out of memory");
	if (bytes)
		r = co_block_pread(img->file, s->l1_offset, l1, bytes);
	if (r < 0)
		return error_set_errno(err, r, "%s: cannot read the L1 table of snapshot '%s'",
			img->node->filename, s->info.name);
	for (uint32_t i = 0; i < s->l1_size; i++)
		l1[i] = load_be64(&l1[i]);
	*ret = take(l1);
	return 0;
}

/* --- encoding ------------------------------------------------------------------------------ */

/* Fills in what the extra data says of the entry, making it as long as version 3 wants it. */
int q2_snapshot_build_extra(struct q2_snapshot_entry *s)
{
	uint32_t len = MAX(s->extra_len, (uint32_t)Q2_SX_ICOUNT + 8);
	uint8_t *x = mem_zalloc(len);

	if (!x)
		return -ENOMEM;
	if (s->extra_len)
		memcpy(x, s->extra, s->extra_len);
	store_be64(x + Q2_SX_VM_STATE_SIZE, s->info.vm_state_size);
	store_be64(x + Q2_SX_DISK_SIZE, s->info.disk_size);
	store_be64(x + Q2_SX_ICOUNT, s->info.icount);
	mem_free(s->extra);
	s->extra = x;
	s->extra_len = len;
	return 0;
}

uint64_t q2_snapshot_table_bytes(const struct q2_snapshot_entry *v, uint32_t n)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < n; i++)
		at = align_up(at, 8) + Q2_S_HEADER + v[i].extra_len + strlen(v[i].info.id) +
			strlen(v[i].info.name);
	return at;
}

void q2_snapshot_table_encode(const struct q2_snapshot_entry *v, uint32_t n, uint8_t *buf)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < n; i++) {
		const struct q2_snapshot_entry *s = &v[i];
		size_t id = strlen(s->info.id), name = strlen(s->info.name);
		uint8_t *p;

		at = align_up(at, 8);
		p = buf + at;
		store_be64(p + Q2_S_L1_OFFSET, s->l1_offset);
		store_be32(p + Q2_S_L1_SIZE, s->l1_size);
		store_be16(p + Q2_S_ID_SIZE, (uint16_t)id);
		store_be16(p + Q2_S_NAME_SIZE, (uint16_t)name);
		store_be32(p + Q2_S_DATE_SEC, s->info.date_sec);
		store_be32(p + Q2_S_DATE_NSEC, s->info.date_nsec);
		store_be64(p + Q2_S_VM_CLOCK, s->info.vm_clock_nsec);
		/* Readers take the 64-bit size from the extra data when it does not fit here. */
		store_be32(p + Q2_S_VM_STATE_SIZE,
			s->info.vm_state_size <= UINT32_MAX ? (uint32_t)s->info.vm_state_size : 0);
		store_be32(p + Q2_S_EXTRA_SIZE, s->extra_len);
		memcpy(p + Q2_S_HEADER, s->extra, s->extra_len);
		memcpy(p + Q2_S_HEADER + s->extra_len, s->info.id, id);
		memcpy(p + Q2_S_HEADER + s->extra_len + id, s->info.name, name);
		at += Q2_S_HEADER + s->extra_len + id + name;
	}
}
