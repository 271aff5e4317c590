/* SPDX-License-Identifier: MIT */
/* The guest model: layout of the tracked sectors, stamps, effects of operations, comparison. */
#include "tests/crash/model.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define STAMP_MAGIC 0x5a31ULL

/* --- layout -------------------------------------------------------------------------------- */

/* Which sectors of a cluster are tracked: all of a small one; of a big one both ends, the middle
 * and the surroundings of a subcluster boundary. */
static bool tracked(uint64_t sector_in_cluster, uint64_t per_cluster)
{
	uint64_t s = sector_in_cluster;

	if (per_cluster <= 8)
		return true;
	return s < 10 || (s >= per_cluster / 2 - 3 && s < per_cluster / 2 + 5) ||
		s >= per_cluster - 6;
}

static void add_window(struct layout *l, uint64_t first, uint64_t n)
{
	struct window *w = &l->win[l->nwindows++];
	uint64_t per = l->cs / 512;

	*w = (struct window){first, n, l->ncells};
	for (uint64_t s = first * per; s < (first + n) * per; s++)
		if (tracked(s % per, per))
			l->sector[l->ncells++] = (uint32_t)s;
}

void layout_init(struct layout *l, const struct config *c)
{
	uint64_t cs = 1ULL << c->cluster_bits, n = cs / (c->extl2 ? 16 : 8);
	uint64_t last = 2 * n;

	memset(l, 0, sizeof(*l));
	l->cs = cs;
	l->can_zero = c->version > 2;
	l->l2_clusters = n;
	/* Two full L2 tables and a bit more; a tail of half a cluster where a sector allows. */
	l->size = last * cs + (cs > 512 ? cs / 2 + 512 : cs);
	l->base_size = (n + 2) * cs;
	l->grow[0] = l->size + 2 * cs;
	/* Beyond what one cluster of L1 table holds, where that is a sensible size. */
	l->grow[1] = cs <= 4096 ? n * n * cs + 2 * cs : l->size + n * cs;
	l->shrink[0] = last * cs;
	l->shrink[1] = (n - 2) * cs + 512;
	add_window(l, 0, 10);
	add_window(l, n - 3, 6);
	add_window(l, last - 2, 5);
	add_window(l, (l->grow[1] - 1) / cs - 1, 2);
}

/* --- stamps -------------------------------------------------------------------------------- */

void stamp(uint8_t *sector, uint64_t number, uint32_t version)
{
	uint64_t word = STAMP_MAGIC << 48 | (number & 0xffffff) << 24 | (version & 0xffffff);

	if (!version)
		word = 0;
	for (unsigned i = 0; i < 64; i++)
		memcpy(sector + 8 * i, &word, 8);
}

uint32_t stamp_read(const uint8_t *sector, uint64_t number)
{
	uint64_t word, w;

	memcpy(&word, sector, 8);
	if (memcmp(sector, sector + 8, 504))
		return SEEN_FOREIGN;
	if (!word)
		return 0;
	w = STAMP_MAGIC << 24 | (number & 0xffffff);
	return word >> 24 == w && (word & 0xffffff) ? word & 0xffffff : SEEN_FOREIGN;
}

/* --- sets ---------------------------------------------------------------------------------- */

static bool holds(const uint32_t *set, unsigned n, uint32_t v)
{
	for (unsigned i = 0; i < n; i++)
		if (set[i] == v)
			return true;
	return false;
}

static void add_all(struct cell *c, uint32_t v)
{
	if (holds(c->all, c->nall, v))
		return;
	if (c->nall == ARRAY_SIZE(c->all)) {
		fprintf(stderr, "crash harness: a sector has too many possible values\n");
		exit(2);
	}
	c->all[c->nall++] = v;
}

static void add_cur(struct cell *c, uint32_t v)
{
	add_all(c, v);
	if (!holds(c->cur, c->ncur, v) && c->ncur < ARRAY_SIZE(c->cur))
		c->cur[c->ncur++] = v;
}

static void set_cur(struct cell *c, uint32_t v)
{
	c->cur[0] = v;
	c->ncur = 1;
	add_all(c, v);
}

static void settle(struct cell *c)
{
	memcpy(c->all, c->cur, sizeof(c->cur));
	c->nall = c->ncur;
}

static bool inside(const struct layout *l, unsigned i, uint64_t size)
{
	return 512ULL * l->sector[i] < size;
}

/* --- effects ------------------------------------------------------------------------------- */

void model_init(struct model *m, const struct layout *l)
{
	memset(m, 0, sizeof(*m));
	m->has_backing = true;
	m->top.size = l->size;
	m->base.size = l->base_size;
	for (unsigned i = 0; i < l->ncells; i++) {
		set_cur(&m->top.c[i], 0);
		set_cur(&m->base.c[i], 0);
		m->top.c[i].thru = true;
	}
}

void model_write(
	struct view *v, const struct layout *l, uint64_t off, uint64_t len, uint32_t version)
{
	for (unsigned i = 0; i < l->ncells; i++) {
		uint64_t at = 512ULL * l->sector[i];

		if (at < off || at >= off + len)
			continue;
		set_cur(&v->c[i], version);
		v->c[i].thru = false;
	}
}

/* Old data, zeroes or the backing file: the format promises no more. */
void model_discard(struct model *m, const struct layout *l, uint64_t off, uint64_t len)
{
	for (unsigned i = 0; i < l->ncells; i++) {
		uint64_t at = 512ULL * l->sector[i];
		struct cell *c = &m->top.c[i], *b = &m->base.c[i];

		if (at < off || at >= off + len)
			continue;
		add_cur(c, 0);
		for (unsigned k = 0; m->has_backing && k < b->ncur; k++)
			if (inside(l, i, m->base.size))
				add_cur(c, b->cur[k]);
		c->thru = true;
	}
}

void model_flush(struct model *m, const struct layout *l)
{
	for (unsigned i = 0; i < l->ncells; i++) {
		settle(&m->top.c[i]);
		settle(&m->base.c[i]);
	}
}

void model_resize(struct view *v, const struct layout *l, uint64_t size)
{
	uint64_t low = MIN(size, v->size);

	for (unsigned i = 0; i < l->ncells; i++) {
		if (inside(l, i, low))
			continue;
		set_cur(&v->c[i], 0);
		settle(&v->c[i]);
		v->c[i].thru = true;
	}
	v->size = size;
}

struct model_snapshot *model_snap_find(struct model *m, const char *name)
{
	for (unsigned i = 0; i < MAX_SNAPS; i++)
		if (m->snap[i].present && !strcmp(m->snap[i].name, name))
			return &m->snap[i];
	return NULL;
}

bool model_snap_create(struct model *m, const char *name)
{
	for (unsigned i = 0; i < MAX_SNAPS; i++) {
		if (m->snap[i].present)
			continue;
		m->snap[i].present = true;
		snprintf(m->snap[i].name, sizeof(m->snap[i].name), "%s", name);
		m->snap[i].v = m->top;
		return true;
	}
	return false;
}

void model_snap_apply(struct model *m, const struct layout *l, const char *name)
{
	struct model_snapshot *s = model_snap_find(m, name);

	m->top = s->v;
	for (unsigned i = 0; i < l->ncells; i++)
		settle(&m->top.c[i]);
}

/* What shows through in snapshots may be what it was (copied there in time) or the new base. */
static void snapshots_see(struct model *m, const struct layout *l, bool backing)
{
	for (unsigned k = 0; k < MAX_SNAPS; k++) {
		struct view *v = &m->snap[k].v;

		for (unsigned i = 0; m->snap[k].present && i < l->ncells; i++) {
			if (!v->c[i].thru)
				continue;
			if (!backing) {
				add_cur(&v->c[i], 0);
				continue;
			}
			for (unsigned j = 0; j < m->base.c[i].nall; j++)
				add_cur(&v->c[i], m->base.c[i].all[j]);
		}
	}
}

/* The base takes the guest's view. Before the end is acknowledged every sector may be either; the
 * view through the overlay never changes. */
void model_commit(struct model *m, const struct layout *l, bool acked)
{
	for (unsigned i = 0; i < l->ncells; i++) {
		struct cell *b = &m->base.c[i], *t = &m->top.c[i];

		if (!inside(l, i, m->top.size))
			continue;
		b->ncur = 0;
		for (unsigned k = 0; k < t->ncur; k++)
			add_cur(b, t->cur[k]);
		if (acked)
			settle(b);
		t->thru = true;
	}
	m->base.size = MAX(m->base.size, m->top.size);
	snapshots_see(m, l, true);
}

void model_rebase(struct model *m, const struct layout *l)
{
	m->has_backing = false;
	snapshots_see(m, l, false);
}

static void adopt(struct view *v, const struct layout *l, const struct seen_view *s)
{
	v->size = s->size;
	for (unsigned i = 0; i < l->ncells; i++) {
		set_cur(&v->c[i], inside(l, i, s->size) ? s->v[i] : 0);
		settle(&v->c[i]);
		/* Which writes a crash has kept is not known any more. */
		v->c[i].thru = true;
	}
}

void model_adopt(struct model *m, const struct layout *l, const struct seen *s)
{
	m->has_backing = s->has_backing;
	adopt(&m->top, l, &s->top);
	adopt(&m->base, l, &s->base);
	for (unsigned k = 0; k < MAX_SNAPS; k++)
		m->snap[k].present = m->snap[k].present && k < MAX_SNAPS;
	for (unsigned k = 0; k < s->nsnaps; k++) {
		struct model_snapshot *ms = model_snap_find(m, s->snap[k].name);

		if (ms)
			adopt(&ms->v, l, &s->snap[k].v);
	}
}

/* --- comparison ---------------------------------------------------------------------------- */

static bool attr_printf(3, 4) differs(char *text, size_t n, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, n, fmt, ap);
	va_end(ap);
	return false;
}

static const char *value_text(uint32_t v, char buf[24])
{
	if (v == SEEN_FOREIGN)
		return "foreign bytes";
	if (v == SEEN_ERROR)
		return "a read error";
	snprintf(buf, 24, v ? "version %u" : "zeroes", v);
	return buf;
}

static bool match_view(const struct view *v, const struct layout *l, const struct seen_view *s,
	bool live, const char *what, char *text, size_t n)
{
	char a[24];

	if (v->size != s->size)
		return differs(text, n, "%s: size %llu, expected %llu", what,
			(unsigned long long)s->size, (unsigned long long)v->size);
	for (unsigned i = 0; i < l->ncells; i++) {
		const struct cell *c = &v->c[i];
		const uint32_t *set = live ? c->cur : c->all;
		unsigned k = live ? c->ncur : c->nall;
		char list[80] = "";
		size_t used = 0;

		if (!inside(l, i, v->size) || holds(set, k, s->v[i]))
			continue;
		for (unsigned j = 0; j < k && used < sizeof(list) - 12; j++)
			used += (size_t)snprintf(list + used, sizeof(list) - used, " %u", set[j]);
		return differs(text, n, "%s: sector %u (cluster %llu) has %s, allowed versions:%s",
			what, l->sector[i], (unsigned long long)(512ULL * l->sector[i] / l->cs),
			value_text(s->v[i], a), list);
	}
	return true;
}

bool model_match(const struct model *m, const struct layout *l, const struct seen *s, bool live,
	char *text, size_t n)
{
	char what[40];
	unsigned found = 0;

	if (m->has_backing != s->has_backing)
		return differs(text, n, "backing file: %s, expected %s",
			s->has_backing ? "yes" : "no", m->has_backing ? "yes" : "no");
	if (!match_view(&m->top, l, &s->top, live, "guest view", text, n))
		return false;
	if (!match_view(&m->base, l, &s->base, live, "base", text, n))
		return false;
	for (unsigned k = 0; k < MAX_SNAPS; k++) {
		const struct model_snapshot *ms = &m->snap[k];
		unsigned j = 0;

		if (!ms->present)
			continue;
		while (j < s->nsnaps && strcmp(s->snap[j].name, ms->name))
			j++;
		if (j == s->nsnaps)
			return differs(text, n, "snapshot %s is missing", ms->name);
		found++;
		snprintf(what, sizeof(what), "snapshot %s", ms->name);
		if (!match_view(&ms->v, l, &s->snap[j].v, true, what, text, n))
			return false;
	}
	if (found != s->nsnaps)
		return differs(text, n, "%u snapshots, expected %u", s->nsnaps, found);
	return true;
}
