/* SPDX-License-Identifier: MIT */
/*
 * Guest writes: in place where the cluster is ours alone, into new clusters otherwise.
 *
 * Theory of operation: a mapped run that is data and COPIED is overwritten, nothing else changes.
 * Everything else is a struct plan: a run of clusters inside one L2 slice that are all treated the
 * same way, worked off between co_q2_alloc_enter() and q2_alloc_leave():
 *
 *  NEW    unallocated, zero, compressed, or shared with a snapshot: new clusters, as many in a row
 *         as the allocator gives; the old ones go to the quarantine after the link.
 *  REUSE  the cluster is there and ours, but does not hold this data yet: a preallocated zero
 *         cluster, or subclusters not allocated yet. Nothing can see it before the link.
 *
 * The range written is widened to whole clusters (subclusters): head and tail come from what the
 * guest sees there now, are merged with the request's buffer and go out in one request (I5). On a
 * cluster the file never reached, zeroes in head and tail are not written at all. L2 entries follow
 * in memory; a failure before that gives the clusters back.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "block/fault.h"
#include "qcow2/qcow2.h"

#define ZERO_BYTES (64 * KiB)
#define STACK_IOV  24u

static const uint8_t zeroes[ZERO_BYTES] __attribute__((aligned(4096)));

enum action { ACTION_NEW, ACTION_REUSE, ACTION_IN_PLACE };

struct plan {
	struct q2_image *img;
	uint64_t off, len; /* guest bytes of this run */
	uint64_t start;    /* its first cluster's guest offset */
	uint64_t n;        /* clusters */
	enum action action;
	uint64_t host; /* of the first cluster */
	bool fresh;    /* the file reads as zeroes there */
	uint32_t hint; /* BLOCK_IO_FRESH, when the writer gave it */
	uint64_t from,
		to; /* guest range that becomes valid in the clusters: includes [off, +len) */
	struct q2_l2_entry e[Q2_L2_RUN]; /* old entries, then new ones */
	uint64_t old[Q2_L2_RUN];         /* entries to be dereferenced */
};

/* --- what to do with a cluster --- */

/* Subclusters of the cluster at guest offset `cluster` that [off, end) touches, as a mask. */
static uint32_t sub_mask(const struct q2_image *img, uint64_t cluster, uint64_t off, uint64_t end)
{
	uint64_t a = MAX(off, cluster) - cluster;
	uint64_t b = MIN(end, cluster + img->cluster_size) - cluster;
	unsigned first, last;

	if (off >= end || a >= b)
		return 0;
	first = (unsigned)(a >> img->sub_bits);
	last = (unsigned)((b - 1) >> img->sub_bits);
	return (uint32_t)((2ULL << last) - (1ULL << first));
}

static enum action extl2_action(const struct plan *p, const struct q2_l2_entry *e, uint64_t cluster)
{
	uint32_t touched = sub_mask(p->img, cluster, p->off, p->off + p->len);

	if ((e->entry & Q2_COMPRESSED) || !(e->entry & Q2_OFFSET_MASK) || !(e->entry & Q2_COPIED))
		return ACTION_NEW;
	return (touched & (uint32_t)e->bitmap) == touched ? ACTION_IN_PLACE : ACTION_REUSE;
}

static enum action entry_action(const struct plan *p, uint64_t i)
{
	const struct q2_l2_entry *e = &p->e[i];

	if (p->img->extl2)
		return extl2_action(p, e, p->start + (i << p->img->cluster_bits));
	if (!(e->entry & Q2_COPIED))
		return ACTION_NEW;
	switch (q2_entry_kind(p->img, e->entry)) {
	case Q2_DATA:
		return ACTION_IN_PLACE;
	case Q2_ZERO_ALLOC:
		return ACTION_REUSE;
	default:
		return ACTION_NEW;
	}
}

/* Cuts the run after n clusters. */
static void plan_cut(struct plan *p, uint64_t n)
{
	p->n = n;
	p->len = MIN(p->off + p->len, p->start + (n << p->img->cluster_bits)) - p->off;
}

/* The clusters from the first on that are treated alike. */
static void plan_run(struct plan *p)
{
	uint64_t n = 1;

	p->action = entry_action(p, 0);
	p->host = p->e[0].entry & Q2_OFFSET_MASK;
	for (; n < p->n && entry_action(p, n) == p->action; n++) {
		if (p->action == ACTION_NEW)
			continue;
		if (p->img->extl2 ||
			(p->e[n].entry & Q2_OFFSET_MASK) != p->host + (n << p->img->cluster_bits))
			break;
	}
	plan_cut(p, n);
}

/* Copy-on-read may only fill what is still unallocated. */
static bool plan_unallocated(struct plan *p)
{
	uint64_t n;

	for (n = 0; n < p->n; n++) {
		uint64_t cluster = p->start + (n << p->img->cluster_bits), bitmap = p->e[n].bitmap;
		uint32_t touched = sub_mask(p->img, cluster, p->off, p->off + p->len);

		if (p->e[n].entry & Q2_COMPRESSED)
			break;
		if (p->img->extl2 ? ((bitmap | bitmap >> 32) & touched) != 0
				  : q2_entry_kind(p->img, p->e[n].entry) != Q2_UNALLOCATED)
			break;
	}
	if (n)
		plan_cut(p, n);
	return n;
}

/* --- how much to write --- */

/* Subclusters whose content must move along with cluster i, because it gets a new place. */
static uint32_t carried(const struct plan *p, uint64_t i)
{
	if (p->e[i].entry & Q2_COMPRESSED)
		return UINT32_MAX;
	return p->action == ACTION_NEW ? (uint32_t)p->e[i].bitmap : 0;
}

static void plan_bounds_extl2(struct plan *p)
{
	struct q2_image *img = p->img;
	uint64_t last = p->start + ((p->n - 1) << img->cluster_bits), end = p->off + p->len;
	uint32_t head = carried(p, 0), tail = carried(p, p->n - 1);
	uint64_t sub = 1ULL << img->sub_bits;

	p->from = align_down(p->off, sub);
	p->to = align_up(end, sub);
	if (p->action == ACTION_REUSE) {
		/* What the subcluster holds already stays. */
		if (p->e[0].bitmap & sub_mask(img, p->start, p->off, p->off + 1))
			p->from = p->off;
		if (p->e[0].bitmap & sub_mask(img, p->start, end - 1, end))
			p->to = end;
		return;
	}
	if (head)
		p->from = MIN(p->from, p->start + ((uint64_t)__builtin_ctz(head) << img->sub_bits));
	if (tail)
		p->to = MAX(p->to, last + ((uint64_t)(32 - __builtin_clz(tail)) << img->sub_bits));
}

static void plan_bounds(struct plan *p)
{
	p->from = p->start;
	p->to = p->start + (p->n << p->img->cluster_bits);
	if (p->img->extl2)
		plan_bounds_extl2(p);
}

/* --- data --- */

/* One end of the widened range: [off, off+len) as the guest sees it now. */
struct edge {
	uint64_t off, len;
	uint8_t *data; /* NULL: zeroes */
};

static int edge_read(struct plan *p, struct edge *e)
{
	struct iovec iov;
	uint64_t zero;
	int r;

	if (!e->len)
		return 0;
	r = co_q2_reads_zero(p->img, e->off, e->len, &zero);
	if (r < 0)
		return r;
	if (zero == e->len) {
		if (p->fresh)
			e->len = 0;
		return 0;
	}
	e->data = block_buffer_alloc(p->img->file, e->len);
	if (!e->data)
		return -ENOMEM;
	co_block_event(p->img->file, "cow_read");
	return co_q2_read_range(p->img, e->off, iov_buf(&iov, e->data, e->len));
}

static unsigned edge_segments(const struct edge *e)
{
	return e->data ? 1 : (unsigned)div_up(e->len, ZERO_BYTES);
}

static unsigned edge_export(const struct edge *e, struct iovec *iov)
{
	uint64_t left = e->len;
	unsigned n = 0;

	if (e->data) {
		iov[0] = (struct iovec){e->data, e->len};
		return 1;
	}
	for (; left; left -= iov[n++].iov_len)
		iov[n] = (struct iovec){(void *)(uintptr_t)zeroes, MIN(left, ZERO_BYTES)};
	return n;
}

/* Head, request and tail in one write. */
static int data_write(struct plan *p, const struct edge *head, const struct edge *tail,
	struct iov_slice buf, uint32_t flags)
{
	unsigned max = edge_segments(head) + iov_segments(buf) + edge_segments(tail), n;
	uint64_t host = p->host + (p->off - head->len - p->start);
	struct iovec few[STACK_IOV], *iov = few;
	_cleanup_free_ struct iovec *many = NULL;
	struct iov_slice all;
	size_t covered;

	if (head->len || tail->len)
		co_block_event(p->img->file, "cow_write");
	co_block_event(p->img->file, "write_aio");
	if (!head->len && !tail->len)
		return co_block_write(p->img->file, host, buf, flags);
	if (max > STACK_IOV) {
		many = mem_calloc(max, sizeof(*many));
		if (!many)
			return -ENOMEM;
		iov = many;
	}
	n = head->len ? edge_export(head, iov) : 0;
	n += iov_export(buf, iov + n, max - n, &covered);
	n += tail->len ? edge_export(tail, iov + n) : 0;
	all = (struct iov_slice){iov, n, 0, head->len + buf.len + tail->len};
	return co_block_write(p->img->file, host, all, flags);
}

static int plan_write(struct plan *p, struct iov_slice buf)
{
	uint64_t end = p->off + p->len;
	struct edge head = {p->from, p->off - p->from, NULL}, tail = {end, p->to - end, NULL};
	int r = edge_read(p, &head);

	if (r == 0)
		r = edge_read(p, &tail);
	if (r == 0)
		r = data_write(p, &head, &tail, buf, p->fresh ? p->hint : 0);
	mem_free(head.data);
	mem_free(tail.data);
	return r;
}

/* --- link --- */

static void plan_entries(struct plan *p)
{
	struct q2_image *img = p->img;

	for (uint64_t i = 0; i < p->n; i++) {
		uint64_t cluster = p->start + (i << img->cluster_bits);
		uint32_t valid = sub_mask(img, cluster, p->from, p->to);
		struct q2_l2_entry *e = &p->e[i];
		uint64_t zero = e->entry & Q2_COMPRESSED ? 0 : e->bitmap >> 32;
		uint64_t alloc = p->action == ACTION_REUSE ? (uint32_t)e->bitmap : 0;

		p->old[i] = p->action == ACTION_NEW ? e->entry : 0;
		e->entry = (p->host + (i << img->cluster_bits)) | Q2_COPIED;
		if (img->extl2)
			e->bitmap = (zero & ~(uint64_t)valid) << 32 | alloc | valid;
	}
}

static int plan_link(struct plan *p)
{
	int r;

	plan_entries(p);
	r = co_q2_l2_store(p->img, p->start, p->n, p->e);
	for (uint64_t i = 0; r == 0 && i < p->n; i++)
		q2_free_entry(p->img, p->old[i]);
	return r;
}

/* --- the run --- */

static int plan_place(struct plan *p)
{
	uint64_t got;
	int r;

	if (p->action == ACTION_REUSE)
		return co_q2_overlap_check(
			p->img, p->host, p->n << p->img->cluster_bits, Q2_OVERLAP_NONE);
	r = co_q2_alloc_data(p->img, p->n, &p->host, &got, &p->fresh);
	if (r == 0)
		plan_cut(p, got);
	return r;
}

static int plan_run_new(struct plan *p, struct iov_slice buf)
{
	int r = plan_place(p);

	if (r < 0)
		return r;
	plan_bounds(p);
	r = plan_write(p, iov_cut(buf, 0, p->len));
	if (r == 0)
		r = plan_link(p);
	if (r < 0 && p->action == ACTION_NEW)
		co_q2_alloc_undo(p->img, p->host, p->n);
	return r;
}

/* *done is 0 when somebody else allocated meanwhile: map again. */
static int plan_execute(struct plan *p, struct iov_slice buf, uint32_t flags, uint64_t *done)
{
	int r = co_q2_l2_table(p->img, p->off);

	*done = 0;
	if (r == 0)
		r = co_q2_l2_load(p->img, p->start, p->n, p->e);
	if (r < 0 || ((flags & BLOCK_IO_UNCHANGED) && !plan_unallocated(p)))
		return r;
	plan_run(p);
	if (p->action == ACTION_IN_PLACE)
		return 0;
	r = plan_run_new(p, buf);
	trace("q2_write_alloc", "%s: %llu bytes at %llu, %s, host %llu, result %d",
		p->img->node->filename, (unsigned long long)p->len, (unsigned long long)p->off,
		p->action == ACTION_NEW ? "new clusters" : "same cluster",
		(unsigned long long)p->host, r);
	if (r == 0)
		*done = p->len;
	return r;
}

static int write_alloc(
	struct q2_image *img, uint64_t off, struct iov_slice buf, uint32_t flags, uint64_t *done)
{
	struct q2_alloc_range range;
	struct plan *p = mem_alloc(sizeof(*p));
	uint64_t n;
	int r;

	if (!p)
		return -ENOMEM;
	p->img = img;
	p->off = off;
	p->len = buf.len;
	p->start = align_down(off, img->cluster_size);
	p->fresh = false;
	p->hint = flags & BLOCK_IO_FRESH;
	n = div_up(off + buf.len - p->start, img->cluster_size);
	plan_cut(p, MIN(n, q2_l2_run_max(img, off)));
	co_q2_alloc_enter(img, &range, off, p->len);
	r = plan_execute(p, buf, flags, done);
	q2_alloc_leave(img, &range);
	mem_free(p);
	return r;
}

static int write_in_place(
	struct q2_image *img, const struct q2_mapping *m, uint64_t off, struct iov_slice buf)
{
	int r = co_q2_overlap_check(img, m->host_off, m->len, Q2_OVERLAP_NONE);

	if (r < 0)
		return r;
	co_block_event(img->file, "write_aio");
	return co_block_write(img->file, m->host_off, buf, 0);
}

/* Pieces in place run side by side; those that allocate one after the other. */
static int write_pieces(struct q2_image *img, struct q2_mapping *m, uint64_t off,
	struct iov_slice buf, uint32_t flags)
{
	struct q2_fan fan = {.img = img, .co_piece = write_in_place};
	int r = 0, r2;

	for (;;) {
		uint64_t done = m->len;

		if (m->kind == Q2_DATA && m->copied && !(flags & BLOCK_IO_UNCHANGED))
			co_q2_fan_add(&fan, m, off, iov_cut(buf, 0, done));
		else if (!(flags & BLOCK_IO_UNCHANGED) || m->kind == Q2_UNALLOCATED)
			r = write_alloc(img, off, buf, flags, &done);
		if (r < 0 || fan.result < 0)
			break;
		off += done;
		buf = iov_cut(buf, done, buf.len - done);
		if (!buf.len)
			break;
		r = co_q2_map(img, off, buf.len, m);
		if (r < 0)
			break;
	}
	r2 = co_q2_fan_wait(&fan);
	return r < 0 ? r : r2;
}

int co_q2_write_range(struct q2_image *img, uint64_t off, struct iov_slice buf, uint32_t flags)
{
	struct q2_mapping m;
	int r = co_q2_map(img, off, buf.len, &m);

	if (r < 0)
		return r;
	if (likely(m.len == buf.len && m.kind == Q2_DATA && m.copied &&
		    !(flags & BLOCK_IO_UNCHANGED)))
		return write_in_place(img, &m, off, buf);
	return write_pieces(img, &m, off, buf, flags);
}

int co_q2_write(struct block_node *n, struct block_io *io)
{
	struct q2_image *img = q2_image(n);
	unsigned token;
	int r;

	if (io->flags & BLOCK_IO_COMPRESSED)
		return co_q2_write_compressed(n, io);
	r = co_q2_before_write(img);
	if (r < 0)
		return r;
	token = co_q2_request_enter(img);
	r = co_q2_write_range(img, io->off, io->buf, io->flags);
	q2_request_leave(img, token);
	if (unlikely(r == -ENOSPC) && q2_free_pending(img) && co_q2_free_drain(img) == 0) {
		/* What the quarantine held may be enough. */
		token = co_q2_request_enter(img);
		r = co_q2_write_range(img, io->off, io->buf, io->flags);
		q2_request_leave(img, token);
	}
	trace("q2_write", "%s: %llu bytes at %llu, result %d", n->filename,
		(unsigned long long)io->len, (unsigned long long)io->off, r);
	return r;
}

int co_q2_flush(struct block_node *n)
{
	struct q2_image *img = q2_image(n);
	unsigned token;
	int r;

	if (!img->writable)
		return 0;
	token = co_q2_request_enter(img);
	r = co_q2_commit(img, true);
	q2_request_leave(img, token);
	/* Only now is the epoch over that the commit has ended: this request was part of it. */
	if (r == 0)
		co_q2_free_release(img);
	return r;
}
