/* SPDX-License-Identifier: MIT */
/*
 * Creating files: locked before they are emptied, so that an image in use keeps its content.
 */
#include "block/file.h"
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

const struct conf_key block_file_create_keys[] = {
	{"size", CONF_KEY_SIZE, NULL, 0, INT64_MAX, "Virtual disk size"},
	{"preallocation", CONF_KEY_ENUM, block_prealloc_names, 0, 0,
		"Preallocation mode (allowed values: off, falloc, full)"},
	{"nocow", CONF_KEY_BOOL, NULL, 0, 0, "Turn off copy-on-write (valid only on btrfs)"},
	{"extent_size_hint", CONF_KEY_SIZE, NULL, 0, INT64_MAX,
		"Extent size hint for the image file, 0 to disable"},
	{NULL, 0, NULL, 0, 0, NULL},
};

struct create_args {
	uint64_t size, extent_hint;
	int prealloc;
	bool nocow;
};

static int parse_args(struct conf *opts, struct create_args *a, struct error *err)
{
	const struct conf_key *k = block_file_create_keys;
	int r;

	if (!opts)
		return 0;
	if ((r = conf_get_u64(opts, k, "size", &a->size, err)) ||
		(r = conf_get_enum(opts, k, "preallocation", &a->prealloc, err)) ||
		(r = conf_get_bool(opts, k, "nocow", &a->nocow, err)) ||
		(r = conf_get_u64(opts, k, "extent_size_hint", &a->extent_hint, err)))
		return r;
	return 0;
}

/* Both are wishes, set while the file is empty; file systems that have no use for them refuse. */
static void set_hints(int fd, const struct create_args *a)
{
	struct fsxattr attr;
	int flags;

	if (a->nocow && !ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
		flags |= FS_NOCOW_FL;
		ioctl(fd, FS_IOC_SETFLAGS, &flags);
	}
	if (a->extent_hint && a->extent_hint <= UINT32_MAX &&
		!ioctl(fd, FS_IOC_FSGETXATTR, &attr)) {
		attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
		attr.fsx_extsize = (uint32_t)a->extent_hint;
		ioctl(fd, FS_IOC_FSSETXATTR, &attr);
	}
}

static int co_fill_file(int fd, const char *name, const struct create_args *a,
	struct block_lock *lock, struct error *err)
{
	struct stat st;
	uint64_t size;
	int r;

	if (fstat(fd, &st))
		return error_set_errno(err, -errno, "Could not create '%s'", name);
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(fd, BLKGETSIZE64, &size) < 0)
			return error_set_errno(err, -errno, "Could not create '%s'", name);
		if (size < a->size)
			return error_set(err, -ENOSPC,
				"Device '%s' is too small: %llu of %llu bytes", name,
				(unsigned long long)size, (unsigned long long)a->size);
		return 0;
	}
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "'%s' is neither a file nor a block device", name);
	r = block_lock_set(fd, name, lock, BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
		BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE, err);
	if (r)
		return r;
	r = co_ftruncate(fd, 0);
	if (r)
		return error_set_errno(err, r, "Could not empty '%s'", name);
	set_hints(fd, a);
	return co_file_preallocate(fd, name, 0, a->size, (enum block_prealloc)a->prealloc, err);
}

int co_file_create(const struct block_create *c, struct error *err)
{
	struct create_args a = {0};
	struct block_lock lock = {0};
	bool made = access(c->filename, F_OK) && errno == ENOENT;
	int fd, r = parse_args(c->opts, &a, err);

	if (r)
		return r;
	a.size = align_up(a.size, 512); /* disks have whole sectors */
	if (a.size > BLOCK_SIZE_MAX)
		return error_set(err, -EFBIG, "Could not create '%s': File too large", c->filename);
	fd = open(c->filename, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		return error_set_errno(err, -errno, "Could not create '%s'", c->filename);
	r = co_fill_file(fd, c->filename, &a, &lock, err);
	block_lock_drop(fd, &lock);
	if (close(fd) && !r)
		r = error_set_errno(err, -errno, "Could not create '%s'", c->filename);
	if (r && made)
		unlink(c->filename);
	return r;
}
