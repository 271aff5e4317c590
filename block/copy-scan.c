/* SPDX-License-Identifier: MIT */
/*
 * The copy engine's source of work: cuts the source into units by extents or by a dirty bitmap.
 *
 * One worker at a time looks ahead, under the scan lock. Extents of one kind are merged into runs,
 * so that a fragmented source does not make small requests. A unit ends where the target's
 * allocation unit ends: two workers then never write into one cluster of the target. With `round`,
 * which is for fresh targets and for compression, also every segment does: a cluster that has any
 * data is read whole and written by one request.
 */
#include "block/copy.h"

#define RUN_MERGE  64u	     /* extents merged into one run at most */
#define UNIT_SEGS  32u	     /* a unit ends at the next granule from here on */
#define UNIT_SPAN  (4 * GiB) /* bound for holes in one unit, for progress and cancel */

static enum copy_kind extent_kind(const struct copy_scan *s, const struct block_extent *e)
{
	if (s->c->dst_has_backing && !(e->flags & BLOCK_EXTENT_ALLOCATED))
		return COPY_SKIP;
	if (e->flags & BLOCK_EXTENT_ZERO)
		return COPY_ZERO;
	/* Neither data nor zero: unallocated down to base, which a target without a backing
	 * file has to get as well. */
	if (e->flags & BLOCK_EXTENT_DATA || s->c->base)
		return COPY_DATA;
	return COPY_ZERO;
}

/* Kind and end of what lies at `pos`, not beyond s->end. */
static int co_look_at(struct copy_scan *s, uint64_t pos, uint64_t *ret_end, enum copy_kind *ret)
{
	struct block_copy *c = s->c;
	struct block_extent e = {0};
	uint64_t limit = s->end;
	int r;

	if (c->dirty) {
		if (pos >= s->dirty_end) {
			uint64_t off, len;

			if (!block_dirty_next(c->dirty, pos, true, &off, &len))
				off = s->end;
			if (off > pos) {
				*ret_end = MIN(off, s->end);
				*ret = COPY_SKIP;
				return 0;
			}
			/* First clear, then look: a write that comes between is dirty again. */
			s->dirty_end = off + len;
			block_dirty_clear(c->dirty, off, len);
		}
		limit = MIN(limit, s->dirty_end);
	}
	r = co_block_extent_chain(c->src, c->base, pos, limit - pos, &e);
	if (r < 0)
		return r;
	if (!e.len)
		return -EUCLEAN;
	*ret_end = pos + MIN(e.len, limit - pos);
	*ret = extent_kind(s, &e);
	return 0;
}

/* Makes run_end and run_kind tell about pos. */
static int co_run_find(struct copy_scan *s)
{
	if (s->pos < s->run_end)
		return 0;
	s->run_end = s->pos;
	for (unsigned i = 0; i < RUN_MERGE && s->run_end < s->end; i++) {
		enum copy_kind kind;
		uint64_t end;
		int r = co_look_at(s, s->run_end, &end, &kind);

		if (r < 0)
			return r;
		if (i && kind != s->run_kind)
			break;
		s->run_kind = kind;
		s->run_end = end;
		if (end - s->pos >= (kind == COPY_DATA ? 2 * s->unit : UNIT_SPAN))
			break;
	}
	return 0;
}

/* The next multiple of the granule (in the target) above or at, or below or at, `pos`. */
static uint64_t granule_up(const struct copy_scan *s, uint64_t pos)
{
	uint64_t shift = s->c->dst_off - s->c->src_off; /* wraps, as intended */

	return MIN(align_up(pos + shift, s->granule) - shift, s->end);
}

static uint64_t granule_down(const struct copy_scan *s, uint64_t pos)
{
	uint64_t shift = s->c->dst_off - s->c->src_off, v;

	if (pos >= s->end)
		return s->end;
	v = align_down(pos + shift, s->granule) - shift;
	return v <= pos ? v : 0; /* wrapped below the source's start */
}

static void segment_add(struct copy_scan *s, struct copy_unit *u, enum copy_kind kind, uint64_t end)
{
	struct copy_segment *last = u->nsegs ? &u->seg[u->nsegs - 1] : NULL;
	uint64_t len = end - s->pos;

	if (last && last->kind == kind)
		last->len += len;
	else
		u->seg[u->nsegs++] = (struct copy_segment){s->pos, len, kind};
	if (kind == COPY_DATA)
		u->data += len;
	u->len += len;
	s->pos = end;
}

/* Rounds the run at pos to whole granules: what is mixed is data. */
static enum copy_kind run_round(const struct copy_scan *s, uint64_t *end)
{
	uint64_t down = granule_down(s, *end);

	if (s->run_kind != COPY_DATA && down > s->pos) {
		*end = down;
		return s->run_kind;
	}
	*end = granule_up(s, *end);
	return COPY_DATA;
}

/* Adds what lies at pos to the unit. Returns 1 when the unit may take more, 0 when it is full. */
static int co_unit_grow(struct copy_scan *s, struct copy_unit *u, uint64_t *work)
{
	bool closing = *work >= s->unit || u->nsegs >= UNIT_SEGS || u->len >= UNIT_SPAN;
	uint64_t end, stop = s->end;
	enum copy_kind kind;
	bool costs;
	int r;

	if (closing) {
		stop = granule_up(s, s->pos);
		if (stop == s->pos || u->nsegs == COPY_SEGMENTS)
			return 0;
	}
	r = co_run_find(s);
	if (r < 0)
		return r;
	end = MIN(s->run_end, stop);
	kind = s->run_kind;
	if (s->round)
		kind = run_round(s, &end);
	costs = kind == COPY_DATA || (kind == COPY_ZERO && s->c->full_alloc);
	if (costs && !closing && end - s->pos > s->unit - *work)
		end = MIN(end, granule_up(s, s->pos + (s->unit - *work)));
	if (!costs)
		end = MIN(end, granule_up(s, s->pos + UNIT_SPAN));
	if (costs)
		*work += end - s->pos;
	segment_add(s, u, kind, end);
	return s->pos < s->end;
}

void copy_scan_abandon(struct copy_scan *s)
{
	if (s->c->dirty && s->pos < s->dirty_end)
		block_dirty_set(s->c->dirty, s->pos, s->dirty_end - s->pos);
}

int co_copy_scan_next(struct copy_scan *s, struct copy_unit *u)
{
	uint64_t work = 0;
	int r = 1;

	co_mutex_lock(&s->lock);
	*u = (struct copy_unit){.off = s->pos, .seq = s->next_seq};
	while (r > 0 && s->pos < s->end)
		r = co_unit_grow(s, u, &work);
	if (r < 0) {
		s->pos = u->off; /* for copy_scan_abandon() */
	} else if (!u->nsegs) {
		r = 0;
	} else {
		s->next_seq++;
		s->data_total += u->data;
		r = s->data_limit && s->data_total > s->data_limit ? -EUCLEAN : 1;
	}
	co_mutex_unlock(&s->lock);
	return r;
}
