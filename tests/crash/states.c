/* SPDX-License-Identifier: MIT */
/* Enumerates crash states from a log: subsets of uncovered changes, torn writes, deduplicated. */
#include "tests/crash/states.h"
#include "tests/crash/model.h"
#include <stdio.h>
#include <stdlib.h>

static void *need(void *p)
{
	if (!p) {
		fprintf(stderr, "crash harness: out of memory\n");
		exit(2);
	}
	return p;
}

static uint64_t mix(uint64_t h)
{
	h = (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
	return (h ^ h >> 32) * 0xd6e8feb86659fd93ULL;
}

static uint64_t sector_hash(const uint8_t *p, uint64_t number)
{
	uint64_t h[4] = {number, 1, 2, 3};

	for (unsigned i = 0; i < 16; i++)
		for (unsigned k = 0; k < 4; k++) {
			uint64_t w;

			memcpy(&w, p + 32 * i + 8 * k, 8);
			h[k] = (h[k] ^ w) * 0x9fb21c651e98df25ULL;
			h[k] ^= h[k] >> 29;
		}
	return mix(h[0] ^ mix(h[1] ^ mix(h[2] ^ mix(h[3]))));
}

void states_init(struct states *s, const struct states_opts *o, uint8_t *const image[DISKS],
	const uint64_t size[DISKS])
{
	memset(s, 0, sizeof(*s));
	s->o = *o;
	s->log = disk_log;
	memset(&disk_log, 0, sizeof(disk_log));
	s->covered = need(calloc(s->log.n + 1, sizeof(*s->covered)));
	s->inc = need(calloc(s->log.n + 1, sizeof(*s->inc)));
	s->vol = need(calloc(s->log.n + 1, sizeof(*s->vol)));
	s->rng = o->seed;
	s->keys_cap = 1024;
	s->keys = need(calloc(s->keys_cap, sizeof(*s->keys)));
	for (unsigned i = 0; i < DISKS; i++) {
		disk_set(&s->durable[i], image[i], size[i]);
		disks[i].logging = disks[i].tracking = false;
		disk_set(&disks[i], image[i], size[i]);
		disk_track(&disks[i]);
	}
}

void states_free(struct states *s)
{
	for (size_t i = 0; i < s->log.n; i++)
		free(s->log.ev[i].data);
	free(s->log.ev);
	for (unsigned i = 0; i < DISKS; i++) {
		free(s->durable[i].data);
		free(s->durable[i].touched);
		disks[i].tracking = false;
	}
	free(s->covered);
	free(s->inc);
	free(s->vol);
	free(s->keys);
	memset(s, 0, sizeof(*s));
}

/* The disk becomes the durable content again. */
static void reset(struct states *s, unsigned i)
{
	struct disk *w = &disks[i], *d = &s->durable[i];

	disk_reserve(d, w->cap);
	disk_reserve(w, d->cap);
	for (uint32_t k = 0; k < w->ntouched; k++) {
		uint64_t off = (uint64_t)w->touched_list[k] * SECTOR;

		memcpy(w->data + off, d->data + off, SECTOR);
	}
	w->size = d->size;
	disk_track(w);
}

void states_restore(struct states *s)
{
	for (unsigned i = 0; i < DISKS; i++)
		reset(s, i);
	for (size_t k = 0; k < s->nvol; k++) {
		struct event *e = &s->log.ev[s->vol[k]];

		if (!s->inc[k])
			continue;
		if ((int64_t)s->vol[k] == s->cur.torn_event)
			disk_apply_part(&disks[e->disk], e, s->cur.torn_from, s->cur.torn_to);
		else
			disk_apply(&disks[e->disk], e);
	}
}

static uint64_t content_hash(const struct states *s)
{
	uint64_t h = s->hash;

	for (unsigned i = 0; i < DISKS; i++) {
		const struct disk *w = &disks[i], *d = &s->durable[i];

		for (uint32_t k = 0; k < w->ntouched; k++) {
			uint64_t n = w->touched_list[k];

			if (!memcmp(w->data + n * SECTOR, d->data + n * SECTOR, SECTOR))
				continue;
			h ^= sector_hash(w->data + n * SECTOR, n << 1 | i);
			h ^= sector_hash(d->data + n * SECTOR, n << 1 | i);
		}
		h ^= mix(w->size << 1 | i);
	}
	return h;
}

/* False when it was there. */
static bool keys_add(struct states *s, uint64_t key)
{
	size_t i;

	if (s->nkeys * 2 >= s->keys_cap) {
		uint64_t *old = s->keys;
		size_t n = s->keys_cap;

		s->keys_cap *= 2;
		s->keys = need(calloc(s->keys_cap, sizeof(*s->keys)));
		s->nkeys = 0;
		for (size_t k = 0; k < n; k++)
			if (old[k])
				keys_add(s, old[k]);
		free(old);
	}
	for (i = key & (s->keys_cap - 1); s->keys[i]; i = (i + 1) & (s->keys_cap - 1))
		if (s->keys[i] == key)
			return false;
	s->keys[i] = key;
	s->nkeys++;
	return true;
}

struct each {
	struct states *s;
	states_demand_fn *demand;
	co_states_fn *fn;
	void *arg;
};

static int co_emit(struct each *e, int64_t torn, uint64_t from, uint64_t to)
{
	struct states *s = e->s;

	if (s->o.max && s->emitted >= s->o.max)
		return 0;
	s->cur.torn_event = torn;
	s->cur.torn_from = from;
	s->cur.torn_to = to;
	states_restore(s);
	s->cur.key = mix(content_hash(s) ^ mix(e->demand(e->arg, s->cur.clock))) | 1;
	if (s->o.only && s->cur.key != s->o.only)
		return 0;
	if (!keys_add(s, s->cur.key)) {
		s->duplicates++;
		return 0;
	}
	s->cur.nincluded = 0;
	for (size_t k = 0; k < s->nvol; k++)
		s->cur.nincluded += s->inc[k];
	s->emitted++;
	s->found++;
	return e->fn(e->arg, s);
}

static void fill(struct states *s, bool v)
{
	memset(s->inc, v, s->nvol * sizeof(*s->inc));
}

/* Write k torn, in front of it nothing missing, behind it nothing there (or all the others). */
static int co_tear(struct each *e, size_t k, bool others)
{
	struct states *s = e->s;
	const struct event *ev = &s->log.ev[s->vol[k]];
	uint64_t head = SECTOR - ev->off % SECTOR, sectors, half, at;
	int r;

	if (ev->kind == EV_TRUNCATE || ev->len <= head)
		return 0;
	sectors = div_up(ev->len - head, SECTOR) + 1;
	half = head + (sectors / 2 - 1) * SECTOR;
	at = head + rng_next(&s->rng) % (sectors - 1) * SECTOR;
	for (size_t i = 0; i < s->nvol; i++)
		s->inc[i] = others || i <= k;
	r = co_emit(e, (int64_t)s->vol[k], 0, half);
	if (!r)
		r = co_emit(e, (int64_t)s->vol[k], half, ev->len);
	if (!r)
		r = co_emit(e, (int64_t)s->vol[k], at, MIN(at + SECTOR, ev->len));
	return r;
}

static int co_some_subsets(struct each *e)
{
	struct states *s = e->s;
	size_t n = s->nvol;
	int r = 0;

	for (size_t i = 0; i <= n && !r; i++) { /* prefixes */
		for (size_t k = 0; k < n; k++)
			s->inc[k] = k < i;
		r = co_emit(e, -1, 0, 0);
	}
	for (size_t i = 0; i < n && !r; i++) { /* one missing, one alone */
		fill(s, true);
		s->inc[i] = false;
		r = co_emit(e, -1, 0, 0);
		fill(s, false);
		s->inc[i] = true;
		if (!r)
			r = co_emit(e, -1, 0, 0);
	}
	for (size_t i = 0; n <= s->o.pairs && i < n; i++)
		for (size_t k = i + 1; k < n && !r; k++) {
			fill(s, false);
			s->inc[i] = s->inc[k] = true;
			r = co_emit(e, -1, 0, 0);
			fill(s, true);
			s->inc[i] = s->inc[k] = false;
			if (!r)
				r = co_emit(e, -1, 0, 0);
		}
	for (unsigned i = 0; i < s->o.randoms && !r; i++) {
		for (size_t k = 0; k < n; k++)
			s->inc[k] = rng_next(&s->rng) >> 40 & 1;
		r = co_emit(e, -1, 0, 0);
	}
	return r;
}

static int co_epoch(struct each *e)
{
	struct states *s = e->s;
	int r = 0;

	s->emitted = 0;
	if (s->nvol <= s->o.full)
		for (uint64_t mask = 0; mask < 1ULL << s->nvol && !r; mask++) {
			for (size_t k = 0; k < s->nvol; k++)
				s->inc[k] = mask >> k & 1;
			r = co_emit(e, -1, 0, 0);
		}
	else
		r = co_some_subsets(e);
	for (size_t k = 0; k < s->nvol && !r && s->o.torn; k++) {
		r = co_tear(e, k, false);
		if (!r)
			r = co_tear(e, k, true);
	}
	return r;
}

/* The flush makes durable what had ended on its disk when it began. */
static void cover(struct states *s, const struct event *flush)
{
	for (size_t i = 0; i < s->log.n; i++) {
		struct event *e = &s->log.ev[i];
		struct disk *d = &s->durable[e->disk];

		if (s->covered[i] || e->kind == EV_FLUSH || e->disk != flush->disk ||
			e->done >= flush->issued)
			continue;
		s->covered[i] = true;
		for (uint64_t n = e->off / SECTOR; n < div_up(e->off + e->len, SECTOR); n++)
			if ((n + 1) * SECTOR <= d->cap)
				s->hash ^= sector_hash(d->data + n * SECTOR, n << 1 | e->disk);
		disk_apply(d, e);
		for (uint64_t n = e->off / SECTOR; n < div_up(e->off + e->len, SECTOR); n++)
			s->hash ^= sector_hash(d->data + n * SECTOR, n << 1 | e->disk);
	}
	for (unsigned i = 0; i < DISKS; i++) {
		disks[i].tracking = false;
		disk_set(&disks[i], s->durable[i].data, s->durable[i].size);
		disk_track(&disks[i]);
	}
}

static int co_epoch_end(struct each *e, uint64_t clock, uint64_t from)
{
	struct states *s = e->s;

	s->cur.clock = clock;
	s->nvol = 0;
	for (size_t i = 0; i < s->log.n; i++)
		if (!s->covered[i] && s->log.ev[i].kind != EV_FLUSH && s->log.ev[i].issued < clock)
			s->vol[s->nvol++] = i;
	s->cur.nvolatile = s->nvol;
	return clock > from ? co_epoch(e) : 0;
}

/* The flush that completed next after `clock`, NULL: none did. */
static const struct event *next_flush(const struct states *s, uint64_t clock)
{
	const struct event *ret = NULL;

	for (size_t i = 0; i < s->log.n; i++) {
		const struct event *e = &s->log.ev[i];

		if (e->kind == EV_FLUSH && e->done != UINT64_MAX && e->done > clock &&
			(!ret || e->done < ret->done))
			ret = e;
	}
	return ret;
}

int co_states_each(
	struct states *s, uint64_t from, states_demand_fn *demand, co_states_fn *fn, void *arg)
{
	struct each e = {s, demand, fn, arg};
	const struct event *flush;
	uint64_t clock = 0;
	int r;

	while ((flush = next_flush(s, clock))) {
		clock = flush->done;
		r = co_epoch_end(&e, clock, from);
		if (r)
			return r;
		cover(s, flush);
		s->cur.epoch++;
	}
	return co_epoch_end(&e, UINT64_MAX, from);
}

void states_explain(const struct states *s)
{
	static const char *const kinds[] = {"write", "zero", "truncate", "flush"};

	fprintf(stderr, "  state %016llx: epoch %u, %llu of %llu changes\n",
		(unsigned long long)s->cur.key, s->cur.epoch, (unsigned long long)s->cur.nincluded,
		(unsigned long long)s->cur.nvolatile);
	for (size_t k = 0, i = 0; i < s->log.n; i++) {
		const struct event *e = &s->log.ev[i];
		const char *mark = s->covered[i] ? "durable" : "later";

		if (k < s->nvol && s->vol[k] == i)
			mark = s->inc[k++] ? (int64_t)i == s->cur.torn_event ? "TORN" : "there"
					   : "LOST";
		fprintf(stderr, "  %4zu %-7s disk %u %-8s 0x%llx +0x%llx", i,
			e->kind == EV_FLUSH ? "" : mark, e->disk, kinds[e->kind],
			(unsigned long long)e->off, (unsigned long long)e->len);
		if ((int64_t)i == s->cur.torn_event)
			fprintf(stderr, " only [0x%llx, 0x%llx)",
				(unsigned long long)s->cur.torn_from,
				(unsigned long long)s->cur.torn_to);
		fprintf(stderr, "\n");
	}
}
