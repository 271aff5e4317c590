/* SPDX-License-Identifier: MIT */
/* Internal snapshots of the public API. */
#include "lib/lib.h"
#include "base/mem.h"

#include <stdio.h>
#include <time.h>

struct snapshot_call {
	struct block_node *node;
	const char *name;
	struct drover_snapshot *ret;
	uint32_t max, n;
	struct error err;
};

static int co_list(void *arg)
{
	struct snapshot_call *c = arg;
	struct block_snapshot *s;
	size_t n;
	int r = c->node->drv->snapshot->co_list(c->node, &s, &n);

	if (r)
		return r;
	c->n = (uint32_t)n;
	for (size_t i = 0; i < n; i++) {
		if (i < c->max) {
			c->ret[i] = (struct drover_snapshot){.disk_size = s[i].disk_size,
				.vm_state_size = s[i].vm_state_size,
				.date_sec = s[i].date_sec,
				.date_nsec = s[i].date_nsec,
				.vm_clock_nsec = s[i].vm_clock_nsec};
			snprintf(c->ret[i].id, sizeof(c->ret[i].id), "%s", s[i].id);
			snprintf(c->ret[i].name, sizeof(c->ret[i].name), "%s", s[i].name);
		}
		mem_free(s[i].id);
		mem_free(s[i].name);
	}
	mem_free(s);
	return 0;
}

static int co_create(void *arg)
{
	struct snapshot_call *c = arg;
	struct timespec now;
	struct block_snapshot s = {.name = (char *)c->name, .icount = UINT64_MAX};

	clock_gettime(CLOCK_REALTIME, &now);
	s.date_sec = (uint32_t)now.tv_sec;
	s.date_nsec = (uint32_t)now.tv_nsec;
	return c->node->drv->snapshot->co_create(c->node, &s, &c->err);
}

static int co_apply(void *arg)
{
	struct snapshot_call *c = arg;

	return c->node->drv->snapshot->co_apply(c->node, c->name, &c->err);
}

static int co_delete(void *arg)
{
	struct snapshot_call *c = arg;

	return c->node->drv->snapshot->co_delete(c->node, c->name, &c->err);
}

static int run(struct drover_image *img, struct snapshot_call *call, int (*fn)(void *arg),
	bool write, struct drover_error *err)
{
	int r;

	call->node = block_skip_filters(img->node);
	if (!call->node->drv->snapshot)
		return lib_error_text(
			err, -ENOTSUP, "The image's format has no internal snapshots");
	if (write && !call->name)
		return lib_error_text(err, -EINVAL, "A snapshot needs a name");
	if (write && !(img->node->opts.flags & BLOCK_OPEN_RDWR))
		return lib_error_text(err, -EPERM, "The image is open read-only");
	r = control_call(fn, call);
	return r ? lib_error(err, r, &call->err) : 0;
}

int drover_snapshot_list(struct drover_image *img, struct drover_snapshot *ret, uint32_t max,
	uint32_t *ret_n, struct drover_error *err)
{
	struct snapshot_call call = {.ret = ret, .max = max};
	int r = run(img, &call, co_list, false, err);

	if (!r)
		*ret_n = call.n;
	return r;
}

int drover_snapshot_create(struct drover_image *img, const char *name, struct drover_error *err)
{
	struct snapshot_call call = {.name = name};

	return run(img, &call, co_create, true, err);
}

int drover_snapshot_apply(
	struct drover_image *img, const char *id_or_name, struct drover_error *err)
{
	struct snapshot_call call = {.name = id_or_name};

	return run(img, &call, co_apply, true, err);
}

int drover_snapshot_delete(
	struct drover_image *img, const char *id_or_name, struct drover_error *err)
{
	struct snapshot_call call = {.name = id_or_name};

	return run(img, &call, co_delete, true, err);
}
