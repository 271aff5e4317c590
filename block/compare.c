/* SPDX-License-Identifier: MIT */
/*
 * Comparing two images by content, in parallel and by extents.
 *
 * Workers take pieces in ascending order. A piece is cut where either side changes its kind; what
 * both know to be zero is passed over, what one side knows to be zero is tested on the other, and
 * only data against data is read twice. A difference (or an error) at some offset stops the
 * handing out of later pieces, while the earlier ones, which are all in work by then, go on: the
 * lowest offset wins, so the result does not depend on the number of workers.
 */
#include "block/copy.h"
#include "base/mem.h"

#define PIECE	     (512 * KiB)
#define SPAN	     (1 * GiB) /* of what needs no reading, in one piece */
#define WORKERS_RING 3u
#define SECTOR	     512u /* differences are told by sector, as people expect */

/* One side of a piece. */
struct side {
	struct block_node *node;
	uint64_t size;
	uint64_t end;	/* up to where `flags` holds */
	uint32_t flags; /* block_extent_flags that count here */
};

struct piece {
	uint64_t off, len;
	bool data[2];
};

enum verdict { SAME, CONTENT, ALLOCATION, FAILED };

struct compare_state {
	struct block_compare *c;
	struct co_mutex lock; /* guards the scan */
	struct side side[2];
	uint64_t pos, end;
	uint8_t *buf;
	struct spin result_lock; /* guards what follows; worst_off is read atomically */
	uint64_t worst_off;
	enum verdict verdict;
	int error;
	struct block_node *failed;
};

static uint64_t worst_off(const struct compare_state *st)
{
	return __atomic_load_n(&st->worst_off, __ATOMIC_RELAXED);
}

static void conclude(struct compare_state *st, enum verdict v, uint64_t off, int error,
	struct block_node *failed)
{
	spin_lock(&st->result_lock);
	if (st->verdict == SAME || off < st->worst_off) {
		st->verdict = v;
		st->error = error;
		st->failed = failed;
		__atomic_store_n(&st->worst_off, off, __ATOMIC_RELAXED);
	}
	spin_unlock(&st->result_lock);
}

/* --- scan ---------------------------------------------------------------------------------- */

static int co_side_look(struct side *s, uint64_t pos, uint64_t end)
{
	const uint32_t mask = BLOCK_EXTENT_DATA | BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED;
	struct block_extent e = {0};
	int r;

	if (pos < s->end)
		return 0;
	if (pos >= s->size) {
		s->end = end;
		s->flags = BLOCK_EXTENT_ZERO;
		return 0;
	}
	r = co_block_extent_chain(s->node, NULL, pos, MIN(s->size, end) - pos, &e);
	if (r < 0)
		return r;
	if (!e.len)
		return -EUCLEAN;
	s->end = pos + e.len;
	s->flags = e.flags & mask;
	return 0;
}

/* Does the content have to be read to know it? */
static bool side_is_data(const struct side *s)
{
	return s->flags & BLOCK_EXTENT_DATA && !(s->flags & BLOCK_EXTENT_ZERO);
}

/* Takes the next piece: 1, 0 at the end, or a negative errno with *failed set. */
static int co_piece_next(struct compare_state *st, struct piece *p, struct block_node **failed)
{
	uint64_t end;
	bool more = true;

	*p = (struct piece){.off = st->pos};
	while (more && st->pos < st->end && st->pos < worst_off(st)) {
		bool data[2];

		for (unsigned i = 0; i < 2; i++) {
			int r = co_side_look(&st->side[i], st->pos, st->end);

			*failed = st->side[i].node;
			if (r < 0)
				return r;
			data[i] = side_is_data(&st->side[i]);
		}
		if (st->c->strict && st->side[0].flags != st->side[1].flags) {
			conclude(st, ALLOCATION, st->pos, 0, NULL);
			break;
		}
		if (p->len && (data[0] != p->data[0] || data[1] != p->data[1]))
			break;
		end = MIN(st->side[0].end, st->side[1].end);
		end = MIN(end, st->end);
		end = MIN(end, p->off + (data[0] || data[1] ? PIECE : SPAN));
		more = end < p->off + PIECE || !(data[0] || data[1]);
		more = more && end < p->off + SPAN;
		memcpy(p->data, data, sizeof(data));
		p->len = end - p->off;
		st->pos = end;
	}
	return p->len > 0;
}

/* --- comparing ------------------------------------------------------------------------------ */

/* Offset of the first sector that differs from `other`, or from zeroes; len when none does. */
static uint64_t first_difference(const uint8_t *buf, const uint8_t *other, uint64_t len)
{
	for (uint64_t n, pos = 0; pos < len; pos += n) {
		n = MIN(len - pos, (uint64_t)SECTOR);
		if (other ? memcmp(buf + pos, other + pos, n) : !mem_is_zero(buf + pos, n))
			return pos;
	}
	return len;
}

static void co_compare_piece(struct compare_state *st, const struct piece *p, uint8_t *buf)
{
	uint8_t *got[2] = {NULL, NULL};
	uint64_t at = p->len;
	bool same = true;

	for (unsigned i = 0; i < 2; i++) {
		int r;

		if (!p->data[i])
			continue;
		got[i] = buf + i * PIECE;
		r = co_block_pread(st->side[i].node, p->off, got[i], p->len);
		if (r < 0) {
			conclude(st, FAILED, p->off, r, st->side[i].node);
			return;
		}
	}
	if (got[0] && got[1])
		same = !memcmp(got[0], got[1], p->len);
	else if (got[0] || got[1])
		same = mem_is_zero(got[0] ? got[0] : got[1], p->len);
	if (!same)
		at = got[0] ? first_difference(got[0], got[1], p->len)
			    : first_difference(got[1], NULL, p->len);
	if (at < p->len)
		conclude(st, CONTENT, p->off + at, 0, NULL);
}

static int co_worker(void *arg, unsigned member)
{
	struct compare_state *st = arg;
	uint8_t *buf = st->buf + (size_t)member * 2 * PIECE;
	struct block_node *failed = NULL;
	struct piece p;
	int r;

	for (;;) {
		co_mutex_lock(&st->lock);
		r = co_piece_next(st, &p, &failed);
		if (r < 0)
			conclude(st, FAILED, st->pos, r, failed);
		co_mutex_unlock(&st->lock);
		if (r <= 0)
			return 0;
		if (p.data[0] || p.data[1])
			r = co_block_job_step(st->c->job, p.len);
		else
			r = co_block_job_skip(st->c->job, p.len);
		if (r < 0)
			conclude(st, FAILED, 0, r, NULL);
		else if (p.data[0] || p.data[1])
			co_compare_piece(st, &p, buf);
	}
}

static int result(struct compare_state *st, struct error *err)
{
	struct block_compare *c = st->c;

	c->failed = st->failed;
	if (st->verdict == SAME)
		return 0;
	c->diff_off = st->worst_off;
	c->diff_alloc = st->verdict == ALLOCATION;
	if (st->verdict != FAILED)
		return 1;
	if (st->error == -ECANCELED || !st->failed)
		return error_set(err, st->error, "The comparison was cancelled");
	return error_set_errno(err, st->error, "Error while reading offset %llu of %s",
		(unsigned long long)st->worst_off,
		st->failed->filename ? st->failed->filename : "image");
}

int co_block_compare(struct block_compare *c, struct error *err)
{
	struct compare_state st = {.c = c, .worst_off = UINT64_MAX};
	unsigned threads, n;
	uint64_t unset = 0;
	int r;

	st.side[0] = (struct side){.node = c->a, .size = block_size(c->a)};
	st.side[1] = (struct side){.node = c->b, .size = block_size(c->b)};
	st.end = MAX(st.side[0].size, st.side[1].size);
	__atomic_compare_exchange_n(
		&c->job->total, &unset, st.end, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	threads = st.end <= 8 * PIECE ? 1 : block_crew_threads(0, 1024);
	n = threads * WORKERS_RING;
	st.buf = mem_aligned(4096, (size_t)n * 2 * PIECE);
	if (!st.buf)
		return error_set(err, -ENOMEM, "Out of memory for comparing");
	r = co_block_crew_run(threads, n, co_worker, &st);
	mem_free(st.buf);
	if (r < 0)
		return error_set_errno(err, r, "Comparing failed");
	return result(&st, err);
}
