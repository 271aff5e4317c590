/* SPDX-License-Identifier: MIT */
/* Operations as data: names, canonical targets, random choice, effects on the model. */
#include "tests/crash/ops.h"
#include <stdio.h>

const char *const op_names[OP_KINDS] = {"alloc", "overwrite", "cow", "compressed", "zero", "unmap",
	"discard", "flush", "create", "apply", "delete", "grow", "shrink", "commit", "rebase",
	"repair"};
const unsigned op_variants[OP_KINDS] = {4, 3, 4, 4, 4, 4, 4, 1, 1, 1, 1, 2, 2, 1, 1, 1};

static void part(struct op *op, const struct layout *l, uint64_t cluster)
{
	op->off = cluster * l->cs;
	op->len = l->cs;
	if (l->cs > 512) {
		op->off += l->cs / 4;
		op->len = l->cs / 2;
	}
}

static void whole(struct op *op, const struct layout *l, uint64_t cluster, uint64_t n)
{
	op->off = cluster * l->cs;
	op->len = n * l->cs;
}

/* See setup.c for what the clusters hold. */
static void aim(struct op *op, const struct layout *l)
{
	uint64_t edge = l->l2_clusters - 1; /* last cluster of the first L2 table */
	unsigned v = op->variant;

	switch (op->kind) {
	case OP_ALLOC:
		if (v == 0)
			part(op, l, 4);
		else if (v == 1)
			whole(op, l, 9, 1);
		else if (v == 2)
			whole(op, l, edge, 2);
		else
			part(op, l, edge + 2);
		break;
	case OP_OVERWRITE:
		if (v == 0)
			part(op, l, 0);
		else
			whole(op, l, v == 1 ? 7 : 0, 1);
		break;
	case OP_COW:
		part(op, l, (const unsigned[]){1, 2, 3, 6}[v]);
		break;
	case OP_COMPRESSED:
		whole(op, l, (const unsigned[]){4, 0, 2, 1}[v], 1);
		break;
	case OP_ZERO:
		if (v == 2) {
			op->off = l->cs > 512 ? l->cs / 4 : 0;
			op->len = l->cs + (l->cs > 512 ? l->cs / 4 : 512);
		} else {
			whole(op, l, (const unsigned[]){0, 1, 0, 3}[v], 1);
		}
		break;
	case OP_UNMAP:
		whole(op, l, (const unsigned[]){7, 2, 1, 0}[v], v == 3 ? 2 : 1);
		break;
	case OP_DISCARD:
		whole(op, l, (const unsigned[]){7, 2, 1, 0}[v], v == 3 ? 10 : 1);
		break;
	case OP_GROW:
		op->len = l->grow[v];
		break;
	case OP_SHRINK:
		op->len = l->shrink[v];
		break;
	default:
		break;
	}
}

struct op op_canonical(const struct layout *l, enum op_kind kind, unsigned variant, unsigned pos)
{
	struct op op = {.kind = kind, .variant = variant % op_variants[kind]};

	aim(&op, l);
	if (kind == OP_CREATE)
		snprintf(op.name, sizeof(op.name), "n%u", pos);
	else if (kind == OP_APPLY || kind == OP_DELETE)
		snprintf(op.name, sizeof(op.name), "s0");
	return op;
}

static void random_range(
	struct op *op, const struct layout *l, const struct model *m, uint64_t *rng)
{
	uint64_t size = m->top.size, unit = op->kind == OP_COMPRESSED ? l->cs : 512;
	const struct window *w;
	uint64_t from, to;

	do {
		w = &l->win[rng_next(rng) % l->nwindows];
		from = w->first * l->cs;
		to = MIN((w->first + w->n) * l->cs, align_down(size, unit));
	} while (from >= to);
	if (rng_next(rng) % 2)
		unit = l->cs;
	op->off = from + rng_next(rng) % div_up(to - from, unit) * unit;
	op->len = MIN(to - op->off, (1 + rng_next(rng) % 3) * unit);
	if (rng_next(rng) % 8 == 0 && op->kind != OP_COMPRESSED)
		op->len = to - op->off;
	if (op->kind == OP_COMPRESSED)
		op->len = MIN(op->len, l->cs);
}

struct op op_random(const struct layout *l, const struct model *m, uint64_t *rng, bool structural)
{
	static const enum op_kind data[] = {OP_OVERWRITE, OP_OVERWRITE, OP_OVERWRITE, OP_OVERWRITE,
		OP_COMPRESSED, OP_ZERO, OP_UNMAP, OP_DISCARD, OP_FLUSH};
	static const enum op_kind rare[] = {OP_CREATE, OP_CREATE, OP_APPLY, OP_DELETE, OP_DELETE,
		OP_GROW, OP_SHRINK, OP_COMMIT, OP_REBASE, OP_REPAIR};
	struct op op = {.kind = data[rng_next(rng) % ARRAY_SIZE(data)]};
	unsigned k;

	if (structural && rng_next(rng) % 5 == 0)
		op.kind = rare[rng_next(rng) % ARRAY_SIZE(rare)];
	switch (op.kind) {
	case OP_CREATE:
		/* The model has room for so many. */
		for (k = 0; k < MAX_SNAPS && m->snap[k].present;)
			k++;
		if (k == MAX_SNAPS) {
			op.kind = OP_FLUSH;
			break;
		}
		snprintf(op.name, sizeof(op.name), "r%u", (unsigned)(rng_next(rng) % 1000000));
		break;
	case OP_APPLY:
	case OP_DELETE:
		k = rng_next(rng) % MAX_SNAPS;
		for (unsigned i = 0; i < MAX_SNAPS; i++, k = (k + 1) % MAX_SNAPS)
			if (m->snap[k].present)
				break;
		snprintf(
			op.name, sizeof(op.name), "%s", m->snap[k].present ? m->snap[k].name : "x");
		break;
	case OP_GROW:
		op.len = l->grow[rng_next(rng) % 2];
		if (op.len < m->top.size)
			op.kind = OP_SHRINK;
		/* Version 2 has to write zeroes over a longer base: too much for a RAM disk. */
		if (!l->can_zero && m->has_backing && m->base.size > m->top.size + 64 * MiB)
			op.kind = OP_FLUSH;
		break;
	case OP_SHRINK:
		op.len = l->shrink[rng_next(rng) % 2];
		if (op.len > m->top.size)
			op.kind = OP_FLUSH;
		break;
	case OP_FLUSH:
	case OP_COMMIT:
	case OP_REBASE:
	case OP_REPAIR:
		break;
	default:
		random_range(&op, l, m, rng);
	}
	return op;
}

void op_text(const struct op *op, char *text, size_t n)
{
	const char *name = op_names[op->kind];

	if (op->name[0])
		snprintf(text, n, "%s %s", name, op->name);
	else if (op->kind == OP_GROW || op->kind == OP_SHRINK)
		snprintf(text, n, "%s to %llu", name, (unsigned long long)op->len);
	else if (op->len)
		snprintf(text, n, "%s [%llu, +%llu)", name, (unsigned long long)op->off,
			(unsigned long long)op->len);
	else
		snprintf(text, n, "%s", name);
}

void op_predict(const struct op *op, const struct layout *l, uint32_t version, struct model *m)
{
	struct model_snapshot *s;

	switch (op->kind) {
	case OP_ALLOC:
	case OP_OVERWRITE:
	case OP_COW:
	case OP_COMPRESSED:
		model_write(&m->top, l, op->off, op->len, version);
		break;
	case OP_ZERO:
	case OP_UNMAP:
		model_write(&m->top, l, op->off, op->len, 0);
		break;
	case OP_DISCARD:
		model_discard(m, l, op->off, op->len);
		break;
	case OP_FLUSH:
		model_flush(m, l);
		break;
	case OP_CREATE:
		model_snap_create(m, op->name);
		break;
	case OP_APPLY:
		model_snap_apply(m, l, op->name);
		break;
	case OP_DELETE:
		s = model_snap_find(m, op->name);
		s->present = false;
		break;
	case OP_GROW:
	case OP_SHRINK:
		model_resize(&m->top, l, op->len);
		break;
	case OP_COMMIT:
		model_commit(m, l, true);
		break;
	case OP_REBASE:
		model_rebase(m, l);
		break;
	case OP_REPAIR:
	case OP_KINDS:
		break;
	}
}

unsigned op_in_flight(const struct op *op, const struct layout *l, uint32_t version,
	const struct model *before, struct model ret[2])
{
	ret[0] = *before;
	switch (op->kind) {
	case OP_FLUSH:
	case OP_REPAIR:
		return 1;
	case OP_CREATE:
	case OP_APPLY:
	case OP_DELETE:
	case OP_GROW:
	case OP_SHRINK:
		ret[1] = *before;
		op_predict(op, l, version, &ret[1]);
		return 2;
	case OP_REBASE:
		model_rebase(&ret[0], l);
		ret[1] = ret[0];
		ret[0].has_backing = true;
		return 2;
	case OP_COMMIT:
		model_commit(&ret[0], l, false);
		ret[1] = ret[0];
		ret[0].base.size = before->base.size;
		return ret[0].base.size == ret[1].base.size ? 1 : 2;
	default:
		op_predict(op, l, version, &ret[0]);
		return 1;
	}
}

bool op_must_fail(const struct op *op, const struct config *c, const struct model *m)
{
	unsigned n = 0;

	switch (op->kind) {
	case OP_CREATE:
		for (unsigned i = 0; i < MAX_SNAPS; i++)
			n += m->snap[i].present;
		/* One reference a cluster: nothing can be shared. */
		return c->refcount_bits == 1 || n == MAX_SNAPS;
	case OP_APPLY:
	case OP_DELETE:
		return !model_snap_find((struct model *)(uintptr_t)m, op->name);
	case OP_GROW:
	case OP_SHRINK:
		/* Version 2 snapshots have no size of their own. */
		for (unsigned i = 0; i < MAX_SNAPS; i++)
			n += m->snap[i].present;
		return c->version == 2 && n;
	case OP_COMMIT:
	case OP_REBASE:
		return !m->has_backing;
	case OP_FLUSH:
	case OP_REPAIR:
	case OP_KINDS:
		return false;
	default:
		return op->off + op->len > m->top.size;
	}
}
