/* SPDX-License-Identifier: MIT */
/*
 * Space of files and devices: holes, zeroes, discards, sizes, offloaded copies.
 *
 * The last answer of SEEK_DATA and SEEK_HOLE is kept, so that somebody who asks cluster by cluster
 * costs one call an extent. "Data" is kept always: it stays true enough when the range is punched,
 * and our own punches forget it. "Hole" is kept only for files nobody writes through us.
 */
#include "block/file.h"
#include "base/worker.h"
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static bool unsupported(int r)
{
	return r == -EOPNOTSUPP || r == -ENOSYS || r == -EINVAL || r == -ENOTTY || r == -EPERM;
}

/* --- extents ------------------------------------------------------------------------------- */

void file_extent_forget(struct file_state *s)
{
	spin_lock(&s->extent_lock);
	s->extent_start = s->extent_end = 0;
	s->extent_gen++;
	spin_unlock(&s->extent_lock);
}

/* The end and kind of what lies at off, from the host. */
static int ask_host(int fd, uint64_t off, uint64_t size, uint64_t *ret_end, bool *ret_data)
{
	off_t d = lseek(fd, (off_t)off, SEEK_DATA), h;

	*ret_data = true;
	*ret_end = size;
	if (d < 0 && errno == ENXIO) {
		*ret_data = false;
		return 0;
	}
	if (d < 0) /* no such call here: everything is data */
		return errno == EINVAL || errno == EOPNOTSUPP ? 0 : -errno;
	if ((uint64_t)d > off) {
		*ret_data = false;
		*ret_end = MIN((uint64_t)d, size);
		return 0;
	}
	h = lseek(fd, (off_t)off, SEEK_HOLE);
	if (h > d)
		*ret_end = MIN((uint64_t)h, size);
	return 0;
}

static int find_extent(struct block_node *n, uint64_t off, uint64_t *ret_end, bool *ret_data)
{
	struct file_state *s = n->priv;
	uint64_t gen;
	int r;

	spin_lock(&s->extent_lock);
	gen = s->extent_gen;
	if (off >= s->extent_start && off < s->extent_end) {
		*ret_end = s->extent_end;
		*ret_data = s->extent_data;
		spin_unlock(&s->extent_lock);
		return 0;
	}
	spin_unlock(&s->extent_lock);
	r = ask_host(s->fd, off, block_size(n), ret_end, ret_data);
	if (r || *ret_end <= off)
		return r ? r : -EIO;
	spin_lock(&s->extent_lock);
	if (gen == s->extent_gen && (*ret_data || !(n->opts.flags & BLOCK_OPEN_RDWR))) {
		s->extent_start = off;
		s->extent_end = *ret_end;
		s->extent_data = *ret_data;
	}
	spin_unlock(&s->extent_lock);
	return 0;
}

int co_file_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	struct file_state *s = n->priv;
	bool data = true;
	uint64_t end = off + len;
	int r = s->device ? 0 : find_extent(n, off, &end, &data);

	if (r)
		return r;
	*ret = (struct block_extent){
		.len = MIN(end - off, len),
		.flags = (data ? BLOCK_EXTENT_DATA : BLOCK_EXTENT_ZERO) | BLOCK_EXTENT_ALLOCATED |
			BLOCK_EXTENT_MAPPED,
		.host_off = off,
		.host = n,
	};
	return 0;
}

int co_file_actual_size(struct block_node *n, uint64_t *ret)
{
	struct file_state *s = n->priv;
	struct stat st;

	if (fstat(s->fd, &st))
		return -errno;
	*ret = (uint64_t)st.st_blocks * 512;
	return 0;
}

/* --- zeroes and discards ------------------------------------------------------------------- */

/* Tries fallocate unless this host has refused this way before; -ENOTSUP when it has. */
static int co_try_fallocate(
	struct file_state *s, bool *refused, int mode, uint64_t off, uint64_t len)
{
	int r;

	if (load_relaxed(refused))
		return -ENOTSUP;
	r = co_fallocate(s->fd, mode, off, len);
	if (r && unsupported(r)) {
		store_relaxed(refused, true);
		return -ENOTSUP;
	}
	return r;
}

/* Makes the file at least `end` bytes long by writing the last byte, which is ours to zero: unlike
 * ftruncate it cannot cut off what another thread appends meanwhile. */
static int co_extend(struct block_node *n, uint64_t end)
{
	struct file_state *s = n->priv;
	struct iovec iov;
	char zero = 0;

	int r;

	if (end <= block_size(n))
		return 0;
	/* Beside direct I/O rather without the page cache. */
	r = s->dio ? co_try_fallocate(s, &s->no_zero_range, FALLOC_FL_ZERO_RANGE, end - 1, 1)
		   : -ENOTSUP;
	return r != -ENOTSUP ? r : co_file_write_tail(n, end - 1, iov_buf(&iov, &zero, 1));
}

int co_file_zero(struct block_node *n, struct block_io *io)
{
	struct file_state *s = n->priv;
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int r = -ENOTSUP;

	file_extent_forget(s);
	if (io->flags & BLOCK_IO_UNMAP) {
		r = co_try_fallocate(s, &s->no_punch, punch, io->off, io->len);
		if (!r)
			r = co_extend(n, io->off + io->len);
	}
	if (r == -ENOTSUP)
		r = co_try_fallocate(s, &s->no_zero_range, FALLOC_FL_ZERO_RANGE, io->off, io->len);
	if (r == -ENOTSUP && !s->device && !load_relaxed(&s->no_allocate)) {
		/* The same in two steps, where the file system has both. */
		r = co_try_fallocate(s, &s->no_punch, punch, io->off, io->len);
		if (!r)
			r = co_try_fallocate(s, &s->no_allocate, 0, io->off, io->len);
	}
	file_extent_forget(s);
	return r;
}

struct discard_call {
	int fd;
	uint64_t range[2];
};

static int discard_device(void *arg)
{
	struct discard_call *c = arg;

	return ioctl(c->fd, BLKDISCARD, c->range) < 0 ? -errno : 0;
}

int co_file_discard(struct block_node *n, struct block_io *io)
{
	struct file_state *s = n->priv;
	int r;

	file_extent_forget(s);
	if (s->device) {
		struct discard_call c = {s->fd, {io->off, io->len}};

		if (load_relaxed(&s->no_discard))
			return -ENOTSUP;
		r = co_offload_blocking(discard_device, &c);
		if (r && unsupported(r)) {
			store_relaxed(&s->no_discard, true);
			r = -ENOTSUP;
		}
	} else {
		r = co_try_fallocate(s, &s->no_punch, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			io->off, io->len);
	}
	file_extent_forget(s);
	return r;
}

/* --- size ---------------------------------------------------------------------------------- */

static int co_write_zeroes(int fd, uint64_t off, uint64_t end)
{
	struct iovec iov[ZERO_IOV];

	while (off < end) {
		uint64_t part = MIN(end - off, ZERO_IOV * ZERO_SPAN);
		int r = co_write_full(fd, block_zero_slice(iov, part), off);

		if (r)
			return r;
		off += part;
	}
	return 0;
}

int co_file_preallocate(int fd, const char *name, uint64_t old, uint64_t size,
	enum block_prealloc prealloc, struct error *err)
{
	int r = 0;

	switch (prealloc) {
	case BLOCK_PREALLOC_METADATA:
		return error_set(err, -ENOTSUP, "Unsupported preallocation mode: metadata");
	case BLOCK_PREALLOC_FALLOC:
		if (size > old)
			r = co_fallocate(fd, 0, old, size - old);
		if (r)
			error_set_errno(err, r, "Could not preallocate data for '%s'", name);
		break;
	case BLOCK_PREALLOC_FULL:
		r = co_write_zeroes(fd, old, size);
		if (!r)
			r = co_fsync(fd, true);
		if (r)
			error_set_errno(
				err, r, "Could not write zeros for preallocation of '%s'", name);
		break;
	case BLOCK_PREALLOC_OFF:
		break;
	}
	if (!r) {
		r = co_ftruncate(fd, size);
		if (r)
			error_set_errno(err, r, "Could not resize '%s'", name);
	}
	if (r && size > old) /* what was there stays, what half came goes */
		co_ftruncate(fd, old);
	return r;
}

static int co_resize_device(struct block_node *n, const struct block_resize *r, struct error *err)
{
	struct file_state *s = n->priv;
	uint64_t size;

	if (ioctl(s->fd, BLKGETSIZE64, &size) < 0)
		return error_set_errno(err, -errno, "Could not get the size of '%s'", n->filename);
	if (r->size != size)
		return error_set(err, -ENOTSUP,
			"'%s' is a device of %llu bytes; only its own tools can resize it",
			n->filename, (unsigned long long)size);
	return 0;
}

int co_file_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	struct file_state *s = n->priv;
	struct block_lock had;
	int fd, ret;

	file_extent_forget(s);
	if (s->device)
		return co_resize_device(n, r, err);
	ret = file_tail_fd(n, &fd);
	if (ret)
		return error_set_errno(err, ret, "Could not resize '%s'", n->filename);
	/* Openers that do not resize as a rule take the right to it for this once. */
	had = s->lock;
	if (had.perm && !(had.perm & BLOCK_PERM_RESIZE)) {
		ret = block_lock_set(s->fd, n->filename, &s->lock, had.perm | BLOCK_PERM_RESIZE,
			BLOCK_PERM_ALL & ~had.unshared, err);
		if (ret)
			return ret;
	}
	ret = co_file_preallocate(fd, n->filename, block_size(n), r->size, r->prealloc, err);
	if (had.perm && s->lock.perm != had.perm)
		block_lock_set(s->fd, n->filename, &s->lock, had.perm,
			BLOCK_PERM_ALL & ~had.unshared, NULL);
	return ret;
}

/* --- offloaded copy ------------------------------------------------------------------------ */

int co_file_copy(struct block_node *src, uint64_t src_off, struct block_node *dst, uint64_t dst_off,
	uint64_t len)
{
	struct file_state *s = src->priv, *d = dst->priv;

	if (load_relaxed(&d->no_copy) || s->device || d->device)
		return -ENOTSUP;
	while (len) {
		ssize_t r = co_copy_file_range(s->fd, src_off, d->fd, dst_off, len);

		if (r == -EXDEV || r == -EBADF || (r < 0 && unsupported((int)r))) {
			store_relaxed(&d->no_copy, true);
			return -ENOTSUP;
		}
		if (r < 0)
			return (int)r;
		if (!r) /* the source ends early: the caller reads it by hand */
			return -ENOTSUP;
		src_off += (uint64_t)r;
		dst_off += (uint64_t)r;
		len -= (uint64_t)r;
	}
	return 0;
}
