/* SPDX-License-Identifier: MIT */
/* Planted ordering bugs: changes of a recorded log. */
#include "tests/crash/plants.h"
#include <stdio.h>
#include <stdlib.h>

static struct event *insert(struct event_log *log, size_t at, const struct event *e)
{
	if (log->n == log->cap) {
		log->cap = 2 * log->cap + 16;
		log->ev = realloc(log->ev, log->cap * sizeof(*log->ev));
		if (!log->ev)
			abort();
	}
	memmove(&log->ev[at + 1], &log->ev[at], (log->n - at) * sizeof(*log->ev));
	log->n++;
	log->ev[at] = *e;
	return &log->ev[at];
}

static uint8_t *copy(const uint8_t *p, size_t n)
{
	uint8_t *ret = malloc(n);

	if (!ret)
		abort();
	memcpy(ret, p, n);
	return ret;
}

static void drop(struct plant *p, struct event_log *log, unsigned n)
{
	unsigned k = 0;

	for (size_t i = 0; i < log->n; i++) {
		if (log->ev[i].kind != EV_FLUSH)
			continue;
		if (k >= p->k && k < p->k + n) {
			log->ev[i].done = UINT64_MAX;
			p->applied = true;
		}
		k++;
	}
}

void plant_drop_flush(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n)
{
	drop(p, log, 1);
}

void plant_drop_flushes(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n)
{
	drop(p, log, 2);
}

void plant_drop_flushes_of(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n)
{
	for (size_t i = 0; i < log->n; i++)
		if (log->ev[i].kind == EV_FLUSH && log->ev[i].issued > start[p->k] &&
			log->ev[i].done < end[p->k]) {
			log->ev[i].done = UINT64_MAX;
			p->applied = true;
		}
}

void plant_split_header(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n)
{
	const uint64_t cut = 40;

	for (size_t i = 0; i < log->n; i++) {
		struct event *e = &log->ev[i], tail;

		if (e->kind != EV_WRITE || e->disk || e->off || e->len < 512)
			continue;
		tail = *e;
		tail.off = cut;
		tail.len = e->len - cut;
		tail.data = copy(e->data + cut, tail.len);
		e->len = cut;
		insert(log, ++i, &tail);
		p->applied = true;
	}
}

void plant_keep_copied(struct plant *p, struct event_log *log, const uint64_t *start,
	const uint64_t *end, unsigned n)
{
	const uint64_t copied = 1ULL << 63;

	/* The workload's disk as it was: disks[0] still has what the run left; what matters is the
	 * content before each write, so the log is replayed from the plant's image. */
	struct disk d = {0};

	disk_set(&d, p->image, p->image_size);
	for (size_t i = 0; i < log->n; i++) {
		struct event *e = &log->ev[i];

		if (e->disk)
			continue;
		for (uint64_t at = 0; e->kind == EV_WRITE && e->issued < end[p->k] &&
			!(e->off % 8) && at + 8 <= e->len;
			at += 8) {
			uint64_t is, was = 0;

			is = load_be64(e->data + at);
			if (e->off + at + 8 <= d.size)
				was = load_be64(d.data + e->off + at);
			if (!(was & copied) || is != (was & ~copied))
				continue;
			store_be64(e->data + at, was);
			p->applied = true;
		}
		disk_apply(&d, e);
	}
	free(d.data);
	free(d.touched);
}

/* The host offset of a guest cluster in the fixture, by the book. */
static uint64_t host_of(const uint8_t *img, uint64_t cluster)
{
	uint64_t cs = 1ULL << load_be32(img + 20);
	unsigned esize = load_be32(img + 4) == 3 && (load_be64(img + 72) & 16) ? 16 : 8;
	uint64_t per = cs / esize, l1 = load_be64(img + 40) & 0x00fffffffffffe00ULL, l2;

	l2 = load_be64(img + l1 + cluster / per * 8) & 0x00fffffffffffe00ULL;
	return load_be64(img + l2 + cluster % per * esize) & 0x00fffffffffffe00ULL;
}

void plant_reuse(struct plant *p, struct event_log *log, const uint64_t *start, const uint64_t *end,
	unsigned n)
{
	uint64_t cs = 1ULL << load_be32(p->image + 20);
	struct event e = {.kind = EV_WRITE, .off = host_of(p->image, p->k), .len = cs};
	size_t at = 0;

	while (at < log->n && log->ev[at].issued < end[0])
		at++;
	e.issued = end[0];
	e.done = end[0];
	e.data = malloc(cs);
	if (!e.data || !e.off)
		abort();
	for (uint64_t s = 0; s < cs / 512; s++)
		stamp(e.data + 512 * s, 9 * cs / 512 + s, 77);
	insert(log, at, &e);
	p->applied = true;
}
