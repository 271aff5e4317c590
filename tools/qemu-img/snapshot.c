/* SPDX-License-Identifier: MIT */
/* qemu-img snapshot: internal snapshots listed, made, applied and deleted. */
#include "tools/qemu-img/img.h"
#include <time.h>

struct snapshot_opts {
	struct image_common c;
	bool list;
	const char *create, *apply, *remove;
	int output;
};

static int co_list(const struct snapshot_opts *o, struct block_node *n)
{
	struct block_snapshot *s = NULL;
	struct json_writer w;
	size_t count = 0;
	int r = 0;

	if (n->drv->snapshot)
		r = n->drv->snapshot->co_list(n, &s, &count);
	if (r < 0) {
		tool_error(
			"The snapshots of '%s' could not be read: %s", n->filename, errno_text(r));
		return 1;
	}
	if (o->output == IMG_JSON) {
		json_begin(&w, stdout, false);
		img_json_snapshots(&w, NULL, s, count);
		json_end(&w);
	} else {
		img_print_snapshots(s, count);
	}
	img_free_snapshots(s, count);
	return 0;
}

static int co_make(const char *name, struct block_node *n, struct error *err)
{
	struct block_snapshot s = {.disk_size = block_size(n)};
	char copy[1024];
	struct timespec now;

	if (strlen(name) >= sizeof(copy))
		return error_set(err, -EINVAL, "the name is longer than 1023 bytes");
	strcpy(copy, name);
	clock_gettime(CLOCK_REALTIME, &now);
	s.name = copy;
	s.date_sec = (uint32_t)now.tv_sec;
	s.date_nsec = (uint32_t)now.tv_nsec;
	return n->drv->snapshot->co_create(n, &s, err);
}

/* Deletes by name only: a script that names a snapshot which is gone must not lose the one whose ID
 * happens to be that number. */
static int co_remove(const char *name, struct block_node *n, struct error *err)
{
	struct block_snapshot *s = NULL;
	bool found = false;
	size_t count = 0;
	int r = n->drv->snapshot->co_list(n, &s, &count);

	if (r < 0)
		return error_set_errno(err, r, "the snapshots could not be read");
	for (size_t i = 0; i < count; i++)
		found |= !strcmp(s[i].name, name);
	img_free_snapshots(s, count);
	if (!found)
		return error_set(err, -ENOENT, "snapshot not found");
	return n->drv->snapshot->co_delete(n, name, err);
}

static int co_change(const struct snapshot_opts *o, struct block_node *n)
{
	const char *verb = o->create ? "create" : o->apply ? "apply" : "delete";
	const char *name = o->create ? o->create : o->apply ? o->apply : o->remove;
	const struct block_snapshot_ops *ops = n->drv->snapshot;
	struct error err = ERROR_INIT;
	int r;

	if (!ops)
		r = error_set(&err, -ENOTSUP, "'%s' is a %s image, which has no internal snapshots",
			n->filename, n->drv->name);
	else if (o->create)
		r = co_make(name, n, &err);
	else if (o->apply)
		r = ops->co_apply(n, name, &err);
	else
		r = co_remove(name, n, &err);
	if (r >= 0)
		return 0;
	error_prefix(&err, "Could not %s snapshot '%s'", verb, name);
	return tool_fail(&err);
}

static int co_snapshot_cmd(void *opts, char *const *args, unsigned nargs)
{
	const struct snapshot_opts *o = opts;
	unsigned actions = o->list + !!o->create + !!o->apply + !!o->remove;
	bool change = actions && !o->list;
	struct block_node *n;
	int rc;

	if (actions > 1) {
		tool_error("Cannot mix '-l', '-a', '-c', '-d'");
		return 1;
	}
	if (co_image_open_common(&o->c, args[0],
		    change ? BLOCK_OPEN_RDWR : BLOCK_OPEN_NO_IO | BLOCK_OPEN_NO_BACKING, &n) < 0)
		return 1;
	rc = change ? co_change(o, n) : co_list(o, n);
	co_image_close(&n, &rc);
	return rc;
}

#define T struct snapshot_opts
static const struct opt options[] = {
	OPT_QUIET(T),
	OPTS_SOURCE(T),
	OPT_SHARE(T),
	IMAGE_OPT(T, OPT_FLAG, 'l', "list", NULL, "list the snapshots (the default)", list),
	IMAGE_OPT(T, OPT_TEXT, 'c', "create", "SNAPSHOT", "create a snapshot of that name", create),
	IMAGE_OPT(T, OPT_TEXT, 'a', "apply", "SNAPSHOT",
		"make the disk what it was at that snapshot", apply),
	IMAGE_OPT(T, OPT_TEXT, 'd', "delete", "SNAPSHOT", "delete that snapshot", remove),
	OPT_OUTPUT(T, output),
	OPTS_COMMON(T),
	{0},
};
#undef T

const struct command img_snapshot = {
	.name = "snapshot",
	.summary = "List or manipulate snapshots within image",
	.args = "FILENAME",
	.wrong_args = "Expecting one image file name",
	.min_args = 1,
	.max_args = 1,
	.opts = options,
	.opts_size = sizeof(struct snapshot_opts),
	.co_run = co_snapshot_cmd,
};
