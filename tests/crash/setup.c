/* SPDX-License-Identifier: MIT */
/*
 * Builds the image that workloads start from. What its clusters hold (see aim() in ops.c):
 *
 *   0, 7		data, in place		5	zero
 *   1			data shared with the snapshot s0 (where refcounts allow snapshots)
 *   2			compressed		6	compressed, shared with s0
 *   3			only in the base	4, 9	nowhere
 *   8			zero, host cluster kept (version 3)
 *   edge, edge+1	last cluster of the first L2 table, first of the second: that L2 table
 *			does not exist; the base has data in edge and edge+2
 *   tail		data up to the end of the disk, in a third L2 table
 *
 * Host clusters that were used and are free again hold poison: numbers that no reader may ever
 * take for data, zeroes, table entries or refcounts. So content that a crash kept from the disk is
 * seen, not mistaken for fresh zeroes.
 */
#include "tests/crash/setup.h"
#include "tests/crash/refcheck.h"
#include "qcow2/qcow2.h"
#include <stdio.h>
#include <stdlib.h>

const struct config configs[] = {
	{"v2-512", 2, 9, 16, false, false, NULL},
	{"v2-4k", 2, 12, 16, false, false, NULL},
	{"v2-64k", 2, 16, 16, false, false, NULL},
	{"v3-512-r1", 3, 9, 1, false, false, NULL},
	{"v3-512-r16", 3, 9, 16, false, false, NULL},
	{"v3-512-r64", 3, 9, 64, false, false, NULL},
	{"v3-4k-r1", 3, 12, 1, false, false, NULL},
	{"v3-4k-r16", 3, 12, 16, false, false, NULL},
	{"v3-4k-r64", 3, 12, 64, false, false, NULL},
	{"v3-64k-r1", 3, 16, 1, false, false, NULL},
	{"v3-64k-r16", 3, 16, 16, false, false, NULL},
	{"v3-64k-r64", 3, 16, 64, false, false, NULL},
	{"ext-64k-r1", 3, 16, 1, true, false, NULL},
	{"ext-64k-r16", 3, 16, 16, true, false, NULL},
	{"ext-64k-r64", 3, 16, 64, true, false, NULL},
};
const unsigned nconfigs = ARRAY_SIZE(configs);

static int co_open_file(unsigned disk, struct block_node **ret, struct error *err)
{
	struct block_open_opts o = {.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_STORE | BLOCK_OPEN_UNMAP,
		.perm = BLOCK_PERM_ALL,
		.shared = BLOCK_PERM_ALL,
		.trust = &block_trust_all};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	char text[64];
	int r;

	snprintf(text, sizeof(text), "driver=crash-disk,disk=%u", disk);
	r = conf_parse_options(text, NULL, &spec, err);
	return r ? r : co_block_open(spec, &o, ret, err);
}

static int co_create(const struct config *c, unsigned disk, uint64_t size, struct error *err)
{
	_cleanup_(conf_freep) struct conf *opts = NULL;
	struct block_create create = {.filename = disk ? "base" : "top", .trust = &block_trust_all};
	char text[256];
	int r, r2;

	disk_set(&disks[disk], NULL, 0);
	snprintf(text, sizeof(text), "size=%llu,compat=%s,cluster_size=%u,refcount_bits=%u%s%s",
		(unsigned long long)size, c->version == 2 ? "0.10" : "1.1", 1u << c->cluster_bits,
		c->refcount_bits, c->extl2 ? ",extended_l2=on" : "",
		c->lazy ? ",lazy_refcounts=on" : "");
	r = conf_parse_options(text, NULL, &opts, err);
	if (r)
		return r;
	r = co_open_file(disk, &create.file, err);
	if (r)
		return r;
	create.opts = opts;
	r = co_q2_create(&create, err);
	r2 = co_block_node_unref(create.file);
	return r ? r : r2;
}

static int co_do(struct world *w, enum op_kind kind, uint64_t cluster, uint64_t n, uint32_t version,
	const char *name, struct error *err)
{
	struct op op = {.kind = kind, .off = cluster * w->l.cs};
	uint64_t size = block_size(w->top);
	int r;

	op.len = MIN(n * w->l.cs, size - op.off);
	if (name)
		snprintf(op.name, sizeof(op.name), "%s", name);
	r = co_op_run(w, &op, version, err);
	if (r) {
		error_prefix(err, "setup: %s of cluster %llu (%s)", op_names[kind],
			(unsigned long long)cluster, errno_text(r));
		return r;
	}
	w->version = MAX(w->version, version);
	op_predict(&op, &w->l, version, &w->m);
	return 0;
}

static int co_fill_base(struct world *w, struct error *err)
{
	uint64_t edge = w->l.l2_clusters - 1;
	int r = co_do(w, OP_ALLOC, 0, 4, 1, NULL, err);

	if (!r)
		r = co_do(w, OP_ALLOC, edge, 1, 1, NULL, err);
	if (!r)
		r = co_do(w, OP_ALLOC, edge + 2, 1, 1, NULL, err);
	return r;
}

static int co_fill_top(struct world *w, struct error *err)
{
	const struct {
		enum op_kind kind;
		uint64_t cluster, n;
		uint32_t version;
		const char *name;
	} steps[] = {
		{OP_ALLOC, 1, 1, 2, NULL},
		{OP_COMPRESSED, 6, 1, 2, NULL},
		{OP_ALLOC, 12, 9, 2, NULL}, /* scratch, freed below */
		{OP_FLUSH, 0, 0, 0, NULL},
		{OP_DISCARD, 12, 9, 0, NULL},
		{OP_CREATE, 0, 0, 0, "s0"},
		{OP_ALLOC, 0, 1, 3, NULL},
		{OP_ALLOC, 7, 2, 3, NULL},
		{OP_COMPRESSED, 2, 1, 3, NULL},
		{OP_ZERO, 5, 1, 0, NULL},
		{OP_ZERO, 8, 1, 0, NULL},
		{OP_ALLOC, w->l.l2_clusters - 3, 1, 3, NULL},
		{OP_ALLOC, 2 * w->l.l2_clusters, 4, 3, NULL},
		{OP_ALLOC, 24, 9, 3, NULL}, /* scratch */
		{OP_FLUSH, 0, 0, 0, NULL},
		{OP_DISCARD, 24, 9, 0, NULL},
		{OP_FLUSH, 0, 0, 0, NULL},
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(steps) && !r; i++) {
		if (steps[i].kind == OP_CREATE && w->c->refcount_bits == 1)
			continue;
		r = co_do(w, steps[i].kind, steps[i].cluster, steps[i].n, steps[i].version,
			steps[i].name, err);
	}
	return r;
}

/* Free clusters get contents that make no sense as anything, in two kinds: wild numbers, and
 * mostly zeroes, which as refcounts would say "free". */
static void poison(struct disk *d, uint64_t cs)
{
	static const uint64_t words[] = {0x0df0fecaefbeaddeULL, 0x0001000000000000ULL};
	uint8_t *map;
	uint64_t n = refcheck_free_map(d->data, d->size, &map);

	for (uint64_t c = 0; c < n; c++)
		for (uint64_t i = 0; map[c] && i < cs && c * cs + i + 8 <= d->size; i += 8)
			memcpy(d->data + c * cs + i, &words[c % 2], 8);
	free(map);
}

static int keep(struct fixture *f, unsigned disk, struct error *err)
{
	struct disk *d = &disks[disk];
	struct refcheck r;

	poison(d, f->l.cs);
	refcheck(d->data, d->size, &r);
	if (refcheck_errors(&r) || r.leaks || r.dirty)
		return error_set(err, -EUCLEAN, "setup: disk %u is not clean: %s, %llu leaks", disk,
			r.text, (unsigned long long)r.leaks);
	f->size[disk] = d->size;
	f->image[disk] = malloc(d->size);
	if (!f->image[disk])
		return error_set(err, -ENOMEM, "setup: out of memory");
	memcpy(f->image[disk], d->data, d->size);
	return 0;
}

static int co_make_base(struct fixture *f, struct world *w, struct error *err)
{
	int r = co_create(f->c, 1, f->l.base_size, err);

	if (r)
		return r;
	/* The base is filled through the same code as the top: on disk 0, then it moves. */
	disk_set(&disks[0], disks[1].data, disks[1].size);
	r = co_world_open(f->c, BLOCK_OPEN_RDWR, &w->top, err);
	if (r)
		return r;
	w->m.top.size = f->l.base_size;
	r = co_fill_base(w, err);
	if (!r)
		r = co_block_node_unref(take(w->top));
	else
		co_block_node_unref(take(w->top));
	disk_set(&disks[1], disks[0].data, disks[0].size);
	return r;
}

static int co_make_top(struct fixture *f, struct world *w, struct error *err)
{
	static struct model base; /* too big for a coroutine's stack */
	int r = co_create(f->c, 0, f->l.size, err);

	if (r)
		return r;
	base = w->m;
	r = co_world_open(f->c, BLOCK_OPEN_RDWR, &w->top, err);
	if (r)
		return r;
	r = w->top->drv->image->co_set_backing(w->top, "base", "qcow2", err);
	if (r) {
		co_block_node_unref(take(w->top));
		return r;
	}
	r = co_block_node_unref(take(w->top));
	if (!r)
		r = co_world_open(f->c, BLOCK_OPEN_RDWR, &w->top, err);
	if (r)
		return r;
	model_init(&w->m, &f->l);
	w->m.base = base.top;
	/* What the overlay does not hold shows the base. */
	for (unsigned i = 0; i < f->l.ncells; i++) {
		w->m.top.c[i] = base.top.c[i];
		w->m.top.c[i].thru = true;
	}
	r = co_fill_top(w, err);
	if (!r)
		r = co_block_node_unref(take(w->top));
	else
		co_block_node_unref(take(w->top));
	return r;
}

int co_fixture_make(const struct config *c, struct fixture *ret, struct error *err)
{
	static struct world w; /* too big for a coroutine's stack */
	int r;

	memset(ret, 0, sizeof(*ret));
	memset(&w, 0, sizeof(w));
	ret->c = w.c = c;
	layout_init(&ret->l, c);
	w.l = ret->l;
	model_init(&w.m, &w.l);
	r = co_make_base(ret, &w, err);
	if (!r)
		r = keep(ret, 1, err);
	if (!r)
		r = co_make_top(ret, &w, err);
	if (!r)
		r = keep(ret, 0, err);
	if (r) {
		fixture_free(ret);
		return r;
	}
	model_flush(&w.m, &ret->l);
	ret->m = w.m;
	ret->version = w.version;
	return 0;
}

void fixture_free(struct fixture *f)
{
	for (unsigned i = 0; i < DISKS; i++) {
		free(f->image[i]);
		f->image[i] = NULL;
	}
}

void fixture_load(const struct fixture *f, struct world *w)
{
	for (unsigned i = 0; i < DISKS; i++)
		disk_set(&disks[i], f->image[i], f->size[i]);
	w->c = f->c;
	w->l = f->l;
	w->top = NULL;
	w->version = f->version;
	w->m = f->m;
}
