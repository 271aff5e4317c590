/* SPDX-License-Identifier: MIT */
/*
 * The file that convert and dd write.
 *
 * Until all data is in it, nothing may look like a whole image: whoever finds the file after an
 * interrupted run must not take it for one. So
 *  - a new raw file is written as NAME.part and renamed at the end;
 *  - a new image of a format with a magic (the creation option `incomplete`) has none in sector 0
 *    until its co_finalize, which the format orders after everything else;
 *  - what existed before (files, devices, -n) cannot be protected: there the sentence says so.
 * With the cache mode unsafe this holds for a killed process, not for lost power.
 */
#include "tools/qemu-img/img.h"
#include "base/mem.h"
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static bool has_key(const struct conf_key *keys, const char *name)
{
	for (; keys && keys->name; keys++)
		if (!strcmp(keys->name, name))
			return true;
	return false;
}

/* A file name, and nothing that a protocol would have to be asked about? */
static bool is_plain(const char *name)
{
	struct conf *spec = NULL, *driver;
	bool plain;

	if (block_spec_from_name(name, NULL, &spec, NULL) < 0)
		return false;
	driver = conf_has(spec, "driver") ? conf_get(spec, "driver") : NULL;
	plain = !driver || !strcmp(conf_text(driver), "file");
	conf_free(spec);
	return plain && strncmp(name, "json:", 5) != 0;
}

/* Decides how the target is to be made: under another name, or without magic. */
static int plan(struct img_target *t, const struct block_driver *drv, struct error *err)
{
	struct stat st;

	t->is_new = is_plain(t->name) && lstat(t->name, &st) < 0 && errno == ENOENT;
	if (!strcmp(drv->name, "raw")) {
		if (!t->is_new)
			return 0;
		t->part = mem_printf("%s.part", t->name);
		return t->part ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	if (!has_key(drv->create_keys, "incomplete"))
		return 0;
	t->incomplete = true;
	if (conf_set(t->create, "incomplete", "on") < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

/* The compression level is a matter of who writes, not of the image: an option of the open.
 * Creating checks it too, before anything is touched. */
static int take_level(
	struct img_target *t, const struct block_driver *drv, char **ret, struct error *err)
{
	struct conf *v;

	if (!conf_has(t->create, "compression_level") ||
		!has_key(drv->open_keys, "compression-level"))
		return 0;
	v = conf_get(t->create, "compression_level");
	*ret = mem_printf("compression-level=%s", conf_text(v));
	return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int co_open(struct img_target *t, const char *more, struct error *err)
{
	struct image_common common = *t->common;
	struct image_name in = {.name = t->part ? t->part : t->name,
		.format = t->format,
		.opts = t->opts,
		.flags = BLOCK_OPEN_RDWR,
		.cache = t->cache,
		.more_opts = more};

	common.force_share = false; /* is about the source */
	return co_image_open(&common, &in, &t->node, err);
}

static int co_create_and_open(struct img_target *t, struct error *err)
{
	const struct block_driver *drv = block_driver_find(t->format);
	_cleanup_free_ char *level = NULL, *more = NULL;
	const struct block_trust *trust;
	int r;

	if (!drv)
		return error_set(err, -EINVAL, "Unknown file format '%s'", t->format);
	if (image_trust(t->common, &trust) < 0)
		return error_set(err, -EINVAL, "nothing was created");
	r = plan(t, drv, err);
	if (r >= 0)
		r = take_level(t, drv, &level, err);
	if (r < 0)
		return r;
	r = co_block_create(t->format, t->part ? t->part : t->name, t->create, trust, err);
	if (r < 0) {
		t->is_new = false; /* it cleans up after itself */
		return r;
	}
	if (t->incomplete || level) {
		more = mem_printf("%s%s%s", t->incomplete ? "incomplete=on" : "",
			t->incomplete && level ? "," : "", level ? level : "");
		if (!more)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return co_open(t, more, err);
}

int co_target_open(struct img_target *t, struct error *err)
{
	char left[512];
	int r = t->no_create ? co_open(t, NULL, err) : co_create_and_open(t, err);

	if (r < 0)
		co_target_abandon(t, left, sizeof(left));
	return r;
}

/* The name in its folder becomes durable. */
static int sync_folder(const char *name, struct error *err)
{
	_cleanup_free_ char *copy = mem_strdup(name);
	int fd, r = 0;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		r = error_set_errno(err, -errno, "the folder of '%s' could not be synced", name);
	if (fd >= 0)
		close(fd);
	return r;
}

static int co_finish(struct img_target *t, struct error *err)
{
	struct block_node *n = block_skip_filters(t->node);
	int r = 0;

	if (t->incomplete && (!n->drv->image || !n->drv->image->co_finalize))
		r = error_set(err, -ENOTSUP, "'%s' cannot be completed", t->name);
	else if (t->incomplete)
		r = n->drv->image->co_finalize(n, err);
	else if (t->cache != BLOCK_CACHE_UNSAFE && (r = co_block_flush(t->node)) < 0)
		error_set_errno(err, r, "'%s' could not be flushed", t->name);
	if (r < 0)
		return r;
	r = co_block_node_unref(take(t->node));
	if (r < 0)
		return error_set_errno(err, r, "'%s' could not be written to its end", t->name);
	if (!t->part)
		return 0;
	if (rename(t->part, t->name) < 0)
		return error_set_errno(
			err, -errno, "'%s' could not be renamed to '%s'", t->part, t->name);
	mem_free(take(t->part));
	return t->cache == BLOCK_CACHE_UNSAFE ? 0 : sync_folder(t->name, err);
}

int co_target_finish(struct img_target *t, struct error *err)
{
	int r = co_finish(t, err);

	if (r >= 0)
		t->is_new = false; /* from here on it is not ours to remove */
	return r;
}

void co_target_abandon(struct img_target *t, char *left, size_t n)
{
	const char *file = t->part ? t->part : t->name;

	*left = '\0';
	if (!t->node && !t->part && !t->is_new)
		return;
	co_block_node_unref(take(t->node));
	if (t->is_new && unlink(file) < 0 && errno != ENOENT)
		snprintf(left, n, "'%s' is incomplete and could not be removed: %s", file,
			errno_text(errno));
	else if (!t->is_new)
		snprintf(left, n, "'%s' is incomplete: do not use it", t->name);
	mem_free(take(t->part));
	t->is_new = false;
}
