/* SPDX-License-Identifier: MIT */
/* The engine's side of the harness: opening the image, doing operations, reading everything. */
#include "tests/crash/ops.h"
#include "base/mem.h"
#include "qcow2/qcow2.h"
#include <stdio.h>
#include <stdlib.h>

#define MAX_LEN (2 * MiB)

static uint8_t buffer[MAX_LEN];

static const struct block_driver *const drivers[] = {
	&block_qcow2, &block_raw, &crash_disk, &block_file, NULL};

void world_init(void)
{
	block_register(drivers);
}

/* Everything inside an image may be followed: the backing file is given by the spec anyway. */
static int co_open_spec(
	const char *text, uint32_t flags, struct block_node **ret, struct error *err)
{
	struct block_open_opts o = {.flags = flags, .trust = &block_trust_all};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	int r = conf_parse_options(text, NULL, &spec, err);

	if (r)
		return r;
	o.flags |= flags & BLOCK_OPEN_RDWR ? BLOCK_OPEN_UNMAP : 0;
	return co_block_open(spec, &o, ret, err);
}

#define BASE_SPEC "driver=qcow2,file.driver=crash-disk,file.disk=1"
#define TOP_SPEC  "driver=qcow2,file.driver=crash-disk,file.disk=0"
#define BACKED    ",backing.driver=qcow2,backing.file.driver=crash-disk,backing.file.disk=1"

int co_world_open(
	const struct config *c, uint32_t flags, struct block_node **ret, struct error *err)
{
	char text[512];
	bool backed = disks[0].size >= 512 && load_be64(disks[0].data + 8);

	snprintf(text, sizeof(text), "%s%s%s", TOP_SPEC, backed ? BACKED : "",
		c->open_opts ? c->open_opts : "");
	return co_open_spec(text, flags, ret, err);
}

/* --- operations ---------------------------------------------------------------------------- */

static int co_write(struct world *w, const struct op *op, uint32_t version, uint32_t flags)
{
	struct iovec iov;

	if (op->len > MAX_LEN)
		return -EFBIG;
	for (uint64_t s = 0; s < op->len / 512; s++)
		stamp(buffer + 512 * s, op->off / 512 + s, version);
	return co_block_write(w->top, op->off, iov_buf(&iov, buffer, op->len), flags);
}

static int co_resize(struct world *w, uint64_t size, struct error *err)
{
	struct block_resize r = {.size = size, .shrink = size < block_size(w->top)};

	return co_block_resize(w->top, &r, err);
}

/* Copies what the overlay holds into its base, as `commit` does. */
static int co_commit(struct world *w, struct error *err)
{
	struct block_node *base = block_backing(w->top);
	struct block_open_opts o;
	struct block_job job;
	struct block_copy copy;
	int r, r2;

	if (!base)
		return error_set(err, -ENOTSUP, "There is no backing file to commit to.");
	o = base->opts;
	o.flags |= BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP;
	r = co_block_reopen(base, &o, err);
	if (r)
		return r;
	block_job_init(&job);
	copy = (struct block_copy){
		.src = w->top,
		.dst = base,
		.base = base,
		.len = block_size(w->top),
		.threads = 1,
		.depth = 1,
		.in_order = true,
		.min_sparse = 4096,
		.dst_has_backing = true,
		.job = &job,
	};
	if (block_size(base) < copy.len) {
		struct block_resize rs = {.size = copy.len};

		r = co_block_resize(base, &rs, err);
	}
	if (!r)
		r = co_block_copy(&copy, err);
	if (!r)
		r = co_block_flush(base);
	if (!r)
		r = w->top->drv->image->co_make_empty(w->top, err);
	o.flags &= ~(uint32_t)(BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP);
	r2 = co_block_reopen(base, &o, r ? NULL : err);
	return r ? r : r2;
}

/* Flattens: everything that shows through is copied, made durable, and only then the header says
 * that there is no backing file. */
static int co_rebase(struct world *w, struct error *err)
{
	struct block_node *base = block_backing(w->top);
	uint64_t off = 0, end = block_size(w->top);
	int r = 0;

	if (!base)
		return error_set(err, -ENOTSUP, "There is no backing file to leave.");
	while (off < end && !r) {
		struct block_extent e;
		struct iovec iov;

		r = co_block_extent_chain(w->top, NULL, off, end - off, &e);
		if (r)
			break;
		if (e.depth && (e.flags & BLOCK_EXTENT_DATA) && !(e.flags & BLOCK_EXTENT_ZERO)) {
			e.len = MIN(e.len, MAX_LEN);
			r = co_block_read(w->top, off, iov_buf(&iov, buffer, e.len), 0);
			if (!r)
				r = co_block_write(w->top, off, iov_buf(&iov, buffer, e.len), 0);
		}
		off += e.len;
	}
	if (!r)
		r = w->top->drv->image->co_set_backing(w->top, NULL, NULL, err);
	if (!r)
		r = co_block_set_child(w->top, BLOCK_ROLE_BACKING, NULL);
	return r;
}

static void no_message(void *arg, bool is_error, const char *line)
{
}

static int co_repair(struct world *w, struct error *err)
{
	struct block_check c = {
		.repair = BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, .message = no_message};

	return w->top->drv->check->co_check(w->top, &c, err);
}

int co_op_run(struct world *w, const struct op *op, uint32_t version, struct error *err)
{
	const struct block_snapshot_ops *snaps = w->top->drv->snapshot;
	struct block_snapshot s = {.date_sec = 1000000000, .icount = UINT64_MAX};

	switch (op->kind) {
	case OP_ALLOC:
	case OP_OVERWRITE:
	case OP_COW:
		return co_write(w, op, version, 0);
	case OP_COMPRESSED:
		return co_write(w, op, version, BLOCK_IO_COMPRESSED);
	case OP_ZERO:
		return co_block_zero(w->top, op->off, op->len, 0);
	case OP_UNMAP:
		return co_block_zero(w->top, op->off, op->len, BLOCK_IO_UNMAP);
	case OP_DISCARD:
		return co_block_discard(w->top, op->off, op->len, 0);
	case OP_FLUSH:
		return co_block_flush(w->top);
	case OP_CREATE:
		s.name = (char *)(uintptr_t)op->name;
		return snaps->co_create(w->top, &s, err);
	case OP_APPLY:
		return snaps->co_apply(w->top, op->name, err);
	case OP_DELETE:
		return snaps->co_delete(w->top, op->name, err);
	case OP_GROW:
	case OP_SHRINK:
		return co_resize(w, op->len, err);
	case OP_COMMIT:
		return co_commit(w, err);
	case OP_REBASE:
		return co_rebase(w, err);
	case OP_REPAIR:
		return co_repair(w, err);
	case OP_KINDS:
		break;
	}
	return -EINVAL;
}

/* --- reading ------------------------------------------------------------------------------- */

static void co_see_view(const struct layout *l, struct block_node *n, struct seen_view *v)
{
	v->size = block_size(n);
	memset(v->v, 0, sizeof(v->v[0]) * l->ncells);
	for (unsigned k = 0; k < l->nwindows; k++) {
		uint64_t off = l->win[k].first * l->cs, len = l->win[k].n * l->cs;
		uint32_t cell = l->win[k].cell;
		unsigned last = k + 1 < l->nwindows ? l->win[k + 1].cell : l->ncells;
		bool failed;

		if (off >= v->size)
			continue;
		len = MIN(len, v->size - off);
		failed = co_block_pread(n, off, buffer, len) != 0;
		for (; cell < last; cell++) {
			uint64_t at = 512ULL * l->sector[cell];

			if (at >= v->size)
				break;
			if (failed && co_block_pread(n, at, buffer + (at - off), 512))
				v->v[cell] = SEEN_ERROR;
			else
				v->v[cell] = stamp_read(buffer + (at - off), at / 512);
		}
	}
}

static int co_see_snapshots(
	const struct world *w, struct block_node *n, struct seen *ret, struct error *err)
{
	struct block_snapshot *list = NULL;
	size_t count = 0;
	int r = n->drv->snapshot->co_list(n, &list, &count);

	ret->nsnaps = 0;
	if (r)
		return error_set(err, r, "The snapshots cannot be listed.");
	for (size_t i = 0; i < count; i++) {
		struct block_node *s = NULL;

		if (!r && i < MAX_SNAPS) {
			snprintf(ret->snap[i].name, sizeof(ret->snap[i].name), "%s", list[i].name);
			r = n->drv->snapshot->co_open(n, list[i].name, &s, err);
			if (!r) {
				co_see_view(&w->l, s, &ret->snap[i].v);
				co_block_node_unref(s);
				ret->nsnaps++;
			}
		}
		mem_free(list[i].id);
		mem_free(list[i].name);
	}
	mem_free(list);
	return r;
}

int co_world_see(const struct world *w, struct block_node *n, struct seen *ret, struct error *err)
{
	struct block_node *base = block_backing(n);
	int r;

	ret->has_backing = base != NULL;
	co_see_view(&w->l, n, &ret->top);
	if (base) {
		co_see_view(&w->l, base, &ret->base);
	} else {
		r = co_open_spec(BASE_SPEC, 0, &base, err);
		if (r)
			return r;
		co_see_view(&w->l, base, &ret->base);
		co_block_node_unref(base);
	}
	return co_see_snapshots(w, n, ret, err);
}
