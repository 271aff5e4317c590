/* SPDX-License-Identifier: MIT */
/*
 * Eight queues on one image: overlapping writes, copy-on-write, zeroes, discards, compressed
 * writes, flushes and snapshots at once.
 *
 *   queues --sim [--seeds=N] [--seed=N] [--states]	one thread, seeded order of completions
 *   queues --threads [--rounds=N] [--seed=N]		real threads (for ThreadSanitizer)
 *
 * Sector s belongs to queue s % QUEUES, so every cluster is shared by all: a queue knows what its
 * sectors hold, and any lost, torn or misplaced write shows. After each round the independent
 * checker counts every reference (the allocator's invariant: refcount == references once the image
 * is closed). On sim, crash states of the recorded log are judged as well: whatever a flush had
 * covered when it was acknowledged must be there.
 */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/sync.h"
#include "block/mem.h"
#include "qcow2/qcow2.h"
#include "tests/crash/refcheck.h"
#include "tests/crash/setup.h"
#include "tests/crash/states.h"
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define QUEUES      8u
#define CLUSTERS    24u
#define CLUSTER     4096u
#define SECTORS     (CLUSTERS * CLUSTER / 512)
#define OPS         40u
#define MAX_HISTORY (QUEUES * OPS * 4)

/* One write of one sector; discards may leave the old value, so they write MAYBE_ZERO. */
struct change {
	uint32_t sector, version;
	uint64_t start, end; /* clock; end UINT64_MAX: never acknowledged */
	bool maybe;          /* a discard: zero or as before */
};
struct flush {
	uint64_t start, end;
};

struct queue {
	unsigned number;
	uint64_t rng;
	struct block_node *n;
	uint32_t version;
	uint32_t now[SECTORS];  /* of the queue's own sectors */
	bool maybe[SECTORS];    /* zero is right as well */
	struct change *changes; /* sim only */
	size_t nchanges;
	struct flush *flushes;
	size_t nflushes;
	uint8_t *buffer;
	int result;
};

static struct queue queues[QUEUES];
static struct co_counter running;
static bool use_sim, with_states, stop_snapshots;
static uint64_t seeds = 200, first_seed = 1, rounds = 20, judged;
static uint64_t failures;
static uint64_t current_seed;

static void attr_printf(1, 2) wrong(const char *fmt, ...)
{
	va_list ap;

	if (__atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED) > 10)
		return;
	printf("# %s seed %llu: ", use_sim ? "--sim" : "--threads",
		(unsigned long long)current_seed);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

static struct change *note(struct queue *q, uint32_t sector, uint32_t version, bool maybe)
{
	struct change *c;

	if (!use_sim || q->nchanges == MAX_HISTORY)
		return NULL;
	c = &q->changes[q->nchanges++];
	*c = (struct change){sector, version, disk_tick(), UINT64_MAX, maybe};
	return c;
}

static int co_write_sector(struct queue *q, uint32_t sector)
{
	uint32_t version = (++q->version << 3) | q->number;
	struct change *c = note(q, sector, version, false);
	int r;

	stamp(q->buffer, sector, version);
	r = co_block_pwrite(q->n, sector * 512ULL, q->buffer, 512);
	if (c)
		c->end = disk_tick();
	q->now[sector] = version;
	q->maybe[sector] = false;
	return r;
}

static int co_zero_sector(struct queue *q, uint32_t sector, bool unmap)
{
	struct change *c = note(q, sector, 0, false);
	int r = co_block_zero(q->n, sector * 512ULL, 512, unmap ? BLOCK_IO_UNMAP : 0);

	if (c)
		c->end = disk_tick();
	q->now[sector] = 0;
	q->maybe[sector] = false;
	return r;
}

/* Smaller than a cluster: nothing may happen to the others' sectors in it. */
static int co_discard_sector(struct queue *q, uint32_t sector)
{
	struct change *c = note(q, sector, 0, true);
	int r = co_block_discard(q->n, sector * 512ULL, 512, 0);

	if (c)
		c->end = disk_tick();
	q->maybe[sector] = true;
	return r;
}

static int co_read_sector(struct queue *q, uint32_t sector)
{
	uint32_t seen;
	int r = co_block_pread(q->n, sector * 512ULL, q->buffer, 512);

	if (r)
		return r;
	seen = stamp_read(q->buffer, sector);
	if (seen != q->now[sector] && !(q->maybe[sector] && !seen))
		wrong("queue %u: sector %u reads %x, not %x", q->number, sector, seen,
			q->now[sector]);
	return 0;
}

/* Clusters that belong to one queue alone, behind the shared ones: whole-cluster operations. */
static int co_private(struct queue *q)
{
	uint64_t off = (CLUSTERS + q->number * 4 + rng_next(&q->rng) % 4) * (uint64_t)CLUSTER;
	struct iovec iov;

	for (unsigned s = 0; s < CLUSTER / 512; s++)
		stamp(q->buffer + 512 * s, off / 512 + s, q->number + 1);
	switch (rng_next(&q->rng) % 4) {
	case 0:
		return co_block_write(
			q->n, off, iov_buf(&iov, q->buffer, CLUSTER), BLOCK_IO_COMPRESSED);
	case 1:
		return co_block_discard(q->n, off, CLUSTER, 0);
	case 2:
		return co_block_zero(q->n, off, CLUSTER, BLOCK_IO_UNMAP);
	default:
		return co_block_write(q->n, off, iov_buf(&iov, q->buffer, CLUSTER), 0);
	}
}

static int co_flush(struct queue *q)
{
	uint64_t start = use_sim ? disk_tick() : 0;
	int r = co_block_flush(q->n);

	if (use_sim && !r)
		q->flushes[q->nflushes++] = (struct flush){start, disk_tick()};
	return r;
}

static int co_snapshots(struct queue *q)
{
	struct block_snapshot s = {.icount = UINT64_MAX};
	struct error err = ERROR_INIT;
	char name[24];
	int r;

	snprintf(name, sizeof(name), "q%u-%u", q->number, ++q->version);
	s.name = name;
	r = q->n->drv->snapshot->co_create(q->n, &s, &err);
	if (!r)
		r = co_write_sector(q, q->number);
	if (!r)
		r = q->n->drv->snapshot->co_delete(q->n, name, &err);
	if (r)
		wrong("snapshot: %s", err.text);
	return r;
}

static int co_queue(struct queue *q)
{
	int r = 0;

	for (unsigned i = 0; i < OPS && !r; i++) {
		uint32_t sector = (uint32_t)(rng_next(&q->rng) % SECTORS);
		uint64_t what = rng_next(&q->rng) % 32;

		sector = sector - sector % QUEUES + q->number;
		if (what < 14)
			r = co_write_sector(q, sector);
		else if (what < 18)
			r = co_read_sector(q, sector);
		else if (what < 20)
			r = co_zero_sector(q, sector, what & 1);
		else if (what < 22)
			r = co_discard_sector(q, sector);
		else if (what < 27)
			r = co_private(q);
		else if (what < 31)
			r = co_flush(q);
		else if (q->number < 2 && !stop_snapshots)
			r = co_snapshots(q);
	}
	if (r)
		wrong("queue %u: %s", q->number, errno_text(r));
	for (uint32_t s = q->number; s < SECTORS && !r; s += QUEUES)
		r = co_read_sector(q, s);
	return r;
}

static void co_queue_on_ring(void *arg)
{
	struct queue *q = arg;

	q->result = co_queue(q);
	co_counter_dec(&running);
}

static int co_queue_on_thread(void *arg)
{
	return co_queue(arg);
}

static void queues_reset(struct block_node *n, uint64_t seed)
{
	for (unsigned i = 0; i < QUEUES; i++) {
		struct queue *q = &queues[i];

		q->number = i;
		q->rng = seed * 1000 + i;
		q->n = n;
		q->version = 0;
		q->nchanges = q->nflushes = 0;
		memset(q->now, 0, sizeof(q->now));
		memset(q->maybe, 0, sizeof(q->maybe));
		if (q->buffer)
			continue;
		q->buffer = malloc(CLUSTER);
		q->changes = calloc(MAX_HISTORY, sizeof(*q->changes));
		q->flushes = calloc(OPS + 1, sizeof(*q->flushes));
		if (!q->buffer || !q->changes || !q->flushes)
			abort();
	}
}

/* --- the image ----------------------------------------------------------------------------- */

static int co_open(struct block_node *file, bool create, bool small_cache, struct block_node **ret)
{
	struct block_open_opts o = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP, .trust = &block_trust_all};
	_cleanup_(conf_freep) struct conf *opts = NULL, *copts = NULL;
	struct error err = ERROR_INIT;
	struct block_create c = {.filename = "queues", .file = file, .trust = &block_trust_all};
	int r;

	r = conf_parse_options("size=1M,cluster_size=4k", NULL, &copts, &err);
	if (!r)
		r = conf_parse_options(small_cache ? "l2-cache-size=4k,refcount-cache-size=4k"
						   : "l2-cache-size=64k",
			NULL, &opts, &err);
	c.opts = copts;
	if (!r && create)
		r = co_q2_create(&c, &err);
	if (r) {
		wrong("create: %s", err.text);
		co_block_node_unref(file);
		return r;
	}
	r = co_block_open_on(&block_qcow2, file, opts, &o, ret, &err);
	if (r)
		wrong("open: %s", err.text);
	return r;
}

static int co_file(struct block_node **ret)
{
	struct block_open_opts o = {.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_STORE | BLOCK_OPEN_UNMAP,
		.perm = BLOCK_PERM_ALL,
		.shared = BLOCK_PERM_ALL,
		.trust = &block_trust_all};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct error err = ERROR_INIT;
	struct mem_content *content;
	int r;

	if (use_sim) {
		r = conf_parse_options("driver=crash-disk,disk=0", NULL, &spec, &err);
		if (!r)
			r = co_block_open(spec, &o, ret, &err);
	} else {
		r = mem_content_new(0, &content);
		if (!r)
			r = co_mem_open(content, &o, ret, &err);
	}
	if (r)
		wrong("file: %s", err.text);
	return r;
}

static void judge_image(const uint8_t *img, uint64_t size, bool closed)
{
	struct refcheck rc;

	refcheck(img, size, &rc);
	if (refcheck_errors(&rc))
		wrong("%s", rc.text);
	else if (closed && (rc.leaks || rc.dirty))
		wrong("closed image: %llu leaks%s", (unsigned long long)rc.leaks,
			rc.dirty ? ", DIRTY" : "");
}

/* --- crash states of a concurrent log ------------------------------------------------------ */

/* What a sector may hold after a crash at `clock`. */
static bool allowed(const struct queue *q, uint32_t sector, uint32_t seen, uint64_t clock)
{
	uint64_t flushed = 0; /* the start of the last flush acknowledged, of any queue */
	uint32_t kept = 0;
	bool kept_maybe = false;

	for (unsigned i = 0; i < QUEUES; i++)
		for (size_t k = 0; k < queues[i].nflushes; k++)
			if (queues[i].flushes[k].end < clock)
				flushed = MAX(flushed, queues[i].flushes[k].start);
	for (size_t k = 0; k < q->nchanges; k++) {
		const struct change *c = &q->changes[k];

		if (c->sector != sector || c->start > clock)
			continue;
		if (c->end < flushed) {
			kept = c->maybe ? kept : c->version;
			kept_maybe = c->maybe && (kept_maybe || kept);
			continue;
		}
		if (seen == c->version)
			return true;
	}
	return seen == kept || (kept_maybe && !seen);
}

/* The life of a sector, for a message. */
static void explain(uint32_t sector, uint64_t clock)
{
	const struct queue *q = &queues[sector % QUEUES];

	for (size_t k = 0; k < q->nchanges; k++)
		if (q->changes[k].sector == sector && q->changes[k].start < clock)
			printf("#   %s %x [%llu, %llu]\n",
				q->changes[k].maybe ? "discard" : "write", q->changes[k].version,
				(unsigned long long)q->changes[k].start,
				(unsigned long long)q->changes[k].end);
	for (unsigned i = 0; i < QUEUES; i++)
		for (size_t k = 0; k < queues[i].nflushes; k++)
			if (queues[i].flushes[k].end < clock)
				printf("#   flush of queue %u [%llu, %llu]\n", i,
					(unsigned long long)queues[i].flushes[k].start,
					(unsigned long long)queues[i].flushes[k].end);
}

static uint64_t demand(void *arg, uint64_t clock)
{
	return clock;
}

static int co_judge_crash(void *arg, struct states *s)
{
	static uint8_t content[SECTORS * 512];
	struct block_open_opts o = {.trust = &block_trust_all};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct error err = ERROR_INIT;
	struct block_node *n;
	int r;

	judged++;
	judge_image(disks[0].data, disks[0].size, false);
	r = conf_parse_options(
		"driver=qcow2,file.driver=crash-disk,file.disk=0", NULL, &spec, &err);
	if (!r)
		r = co_block_open(spec, &o, &n, &err);
	if (r) {
		wrong("open after a crash: %s", err.text);
		return 0;
	}
	if (co_block_pread(n, 0, content, sizeof(content)))
		wrong("read error after a crash");
	for (uint32_t i = 0; i < SECTORS; i++) {
		uint32_t seen = stamp_read(content + 512 * i, i);

		if (allowed(&queues[i % QUEUES], i, seen, s->cur.clock))
			continue;
		wrong("sector %u holds %x after a crash at %llu, state %016llx", i, seen,
			(unsigned long long)s->cur.clock, (unsigned long long)s->cur.key);
		explain(i, s->cur.clock);
		break;
	}
	co_block_node_unref(n);
	return failures > 3 ? -EIO : 0;
}

static void co_crash_states(uint8_t *const image[DISKS], const uint64_t size[DISKS])
{
	struct states_opts o = {.full = 0, .randoms = 3, .torn = false, .max = 6, .seed = 1};
	struct states s;

	states_init(&s, &o, image, size);
	co_states_each(&s, 0, demand, co_judge_crash, NULL);
	states_free(&s);
}

/* --- rounds -------------------------------------------------------------------------------- */

static int co_sim_round(void *arg)
{
	struct block_node *file, *n;
	uint8_t *image[DISKS] = {NULL, NULL};
	uint64_t size[DISKS] = {0, 0};
	int r;

	disk_set(&disks[0], NULL, 0);
	disk_set(&disks[1], NULL, 0);
	disks[0].yields = disks[0].logging = disks[0].tracking = false;
	r = co_file(&file);
	if (!r)
		r = co_open(file, true, current_seed & 1, &n);
	if (r)
		return r;
	disk_log_clear();
	size[0] = disks[0].size;
	image[0] = malloc(size[0]);
	image[1] = malloc(1);
	memcpy(image[0], disks[0].data, size[0]);
	disks[0].yields = true;
	disks[0].logging = with_states;
	queues_reset(n, current_seed);
	for (unsigned i = 0; i < QUEUES; i++) {
		co_counter_inc(&running);
		r = co_start(co_queue_on_ring, &queues[i]);
		if (r)
			abort();
	}
	co_counter_wait_zero(&running);
	disks[0].yields = false;
	r = co_block_node_unref(n);
	if (r)
		wrong("close: %s", errno_text(r));
	judge_image(disks[0].data, disks[0].size, true);
	if (with_states && !failures)
		co_crash_states(image, size);
	disks[0].logging = false;
	disk_log_clear();
	free(image[0]);
	free(image[1]);
	return 0;
}

static int sim(void)
{
	for (uint64_t i = 0; i < seeds && !failures; i++) {
		struct ring_opts o = {.kind = RING_SIM, .seed = first_seed + i};
		struct error err = ERROR_INIT;
		struct ring *ring;

		current_seed = first_seed + i;
		if (ring_new(&o, &ring, &err)) {
			fprintf(stderr, "queues: %s\n", err.text);
			return 1;
		}
		co_run(co_sim_round, NULL);
		ring_free(ring);
	}
	return 0;
}

static int co_threads_round(void *arg)
{
	struct ring_thread *t[QUEUES];
	struct block_node *file, *n;
	struct mem_content *content;
	uint64_t size;
	uint8_t *copy;
	int r = co_file(&file);

	if (!r)
		r = co_open(block_node_ref(file), true, current_seed & 1, &n);
	if (r)
		return r;
	queues_reset(n, current_seed);
	for (unsigned i = 0; i < QUEUES; i++)
		if (ring_thread_start(NULL, co_queue_on_thread, &queues[i], &t[i]))
			abort();
	for (unsigned i = 0; i < QUEUES; i++)
		ring_thread_join(t[i]);
	r = co_block_node_unref(n);
	if (r)
		wrong("close: %s", errno_text(r));
	r = mem_node_snapshot(file, &content);
	if (!r) {
		size = mem_content_size(content);
		copy = malloc(size);
		mem_content_read(content, 0, copy, size);
		judge_image(copy, size, true);
		free(copy);
		mem_content_free(content);
	}
	co_block_node_unref(file);
	return r;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"sim", 0, NULL, 's'}, {"threads", 0, NULL, 't'},
		{"seeds", 1, NULL, 'n'}, {"seed", 1, NULL, 'S'}, {"rounds", 1, NULL, 'r'},
		{"states", 0, NULL, 'c'}, {NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			use_sim = true;
			break;
		case 't':
			use_sim = false;
			break;
		case 'n':
			seeds = strtoull(optarg, NULL, 0);
			break;
		case 'S':
			first_seed = strtoull(optarg, NULL, 0);
			break;
		case 'r':
			rounds = strtoull(optarg, NULL, 0);
			break;
		case 'c':
			with_states = true;
			break;
		default:
			return 2;
		}
	}
	world_init();
	if (use_sim) {
		if (sim())
			return 1;
		printf("%sok 1 - %u queues on sim, %llu seeds, %llu crash states\n1..1\n",
			failures ? "not " : "", QUEUES, (unsigned long long)seeds,
			(unsigned long long)judged);
	} else {
		for (uint64_t i = 0; i < rounds && !failures; i++) {
			current_seed = first_seed + i;
			co_run(co_threads_round, NULL);
		}
		printf("%sok 1 - %u queues on threads, %llu rounds\n1..1\n", failures ? "not " : "",
			QUEUES, (unsigned long long)rounds);
	}
	for (unsigned i = 0; i < QUEUES; i++) {
		free(queues[i].buffer);
		free(queues[i].changes);
		free(queues[i].flushes);
	}
	disk_free_all();
	return failures ? 1 : 0;
}
