/* SPDX-License-Identifier: MIT */
/*
 * Files and block devices of this host: opening, cache modes, direct I/O, data.
 *
 * Theory of Operation
 *
 * With O_DIRECT (cache none, directsync) all I/O goes through the ring, and the alignment the host
 * asks for is found by statx, or by trying where the kernel does not tell. The end of a file may
 * be ragged; what does not fill a block there goes through a second descriptor without O_DIRECT.
 *
 * Through the page cache, small reads are tried in place first (RWF_NOWAIT) and go to the ring only
 * when they would wait; file systems that know no RWF_NOWAIT answer in place. Small writes are
 * made in place, because every file system hands buffered writes of the ring to worker threads.
 * Large requests go to the ring, where those threads work in parallel.
 *
 * A failed fdatasync means that the kernel may have dropped the data, so io.c refuses every later
 * flush of the node (keeps I9).
 */
#include "block/file.h"
#include "base/trace.h"
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL_READ  (64 * KiB)
#define SMALL_WRITE (128 * KiB)
#define FRESH_MIN   (256 * KiB)

enum { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };
static const struct conf_enum locking_names[] = {
	{"auto", LOCKING_AUTO}, {"on", LOCKING_ON}, {"off", LOCKING_OFF}, {NULL, 0}};
/* The engine is the process's choice (DROVER_AIO); the option is read so that command lines and
 * specs made for other programs work. */
enum { AIO_THREADS, AIO_NATIVE, AIO_URING };
static const struct conf_enum aio_names[] = {
	{"threads", AIO_THREADS}, {"native", AIO_NATIVE}, {"io_uring", AIO_URING}, {NULL, 0}};

static const struct conf_key file_keys[] = {
	{"filename", CONF_KEY_STRING, NULL, 0, 0, "path of the file"},
	{"locking", CONF_KEY_ENUM, locking_names, 0, 0, "image locks"},
	{"aio", CONF_KEY_ENUM, aio_names, 0, 0, "accepted; DROVER_AIO chooses the engine"},
	{"aio-max-batch", CONF_KEY_NUMBER, NULL, 0, 0, "accepted; batches are as large as can be"},
	{"drop-cache", CONF_KEY_BOOL, NULL, 0, 0, "accepted; caches are dropped by nobody here"},
	{NULL, 0, NULL, 0, 0, NULL},
};

/* --- opening ------------------------------------------------------------------------------- */

static bool wants_dio(enum block_cache c)
{
	return c == BLOCK_CACHE_NONE || c == BLOCK_CACHE_DIRECTSYNC;
}

static int open_fd(const char *path, bool rw, bool dio, uint32_t flags)
{
	int how = (rw ? O_RDWR : O_RDONLY) | O_CLOEXEC | (dio ? O_DIRECT : 0);
	int fd, protected = 0;

	if (flags & BLOCK_OPEN_CREATE)
		how |= O_CREAT | (flags & BLOCK_OPEN_EXCL ? O_EXCL : 0);
	do
		fd = open(path, how, 0644);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		return -errno;
	/* Newer kernels open a write-protected device for writing and refuse the writes. */
	if (rw && !ioctl(fd, BLKROGET, &protected) && protected) {
		close(fd);
		return -EACCES;
	}
	return fd;
}

/* May a read of `len` bytes at offset 0 into `buf` be made? */
static bool dio_takes(int fd, char *buf, size_t len)
{
	return pread(fd, buf, len, 0) >= 0 || errno != EINVAL;
}

/* Offsets and buffers that direct I/O on fd takes. */
static int find_dio_align(int fd, uint32_t *ret_off, uint32_t *ret_mem)
{
	static const uint32_t sizes[] = {512, 1024, 2048, 4096, 8192, 16384, 65536};
	_cleanup_free_ char *buf = NULL;
	uint32_t off = 4096, mem = 4096;
	struct stat st;
	struct statx sx;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) && (sx.stx_mask & STATX_DIOALIGN) &&
		is_pow2(sx.stx_dio_offset_align) && is_pow2(sx.stx_dio_mem_align)) {
		*ret_off = sx.stx_dio_offset_align;
		*ret_mem = sx.stx_dio_mem_align;
		return 0;
	}
	/* An empty file takes anything and tells nothing. */
	if (!fstat(fd, &st) && (st.st_size || S_ISBLK(st.st_mode))) {
		buf = mem_aligned(65536, 2 * 65536);
		if (!buf)
			return -ENOMEM;
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			off = sizes[i];
			if (dio_takes(fd, buf, off))
				break;
		}
		for (mem = 512; mem < 65536 && !dio_takes(fd, buf + mem, off);)
			mem *= 2;
	}
	*ret_off = off;
	*ret_mem = mem;
	return 0;
}

static int file_size(int fd, const struct stat *st, uint64_t *ret)
{
	if (S_ISBLK(st->st_mode))
		return ioctl(fd, BLKGETSIZE64, ret) < 0 ? -errno : 0;
	*ret = S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0;
	return 0;
}

static bool knows_nowait(int fd)
{
	char c;
	struct iovec iov = {&c, 1};

	return preadv2(fd, &iov, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
}

static uint32_t sector_size(int fd)
{
	int size = 0;

	return !ioctl(fd, BLKSSZGET, &size) && is_pow2((uint64_t)size) ? (uint32_t)size : 4096;
}

static int fill_caps(struct block_node *n, const struct stat *st)
{
	struct file_state *s = n->priv;
	uint32_t off = 1, mem = 1, sector = 1;
	int r = s->dio ? find_dio_align(s->fd, &off, &mem) : 0;

	if (r)
		return r;
	if (S_ISBLK(st->st_mode))
		sector = sector_size(s->fd);
	n->caps = (struct block_caps){
		.align = off,
		.buf_align = mem,
		.max_io = GiB,
		.zero_align = sector,
		.discard_align = sector,
		.zero_flags = BLOCK_IO_UNMAP,
		.write_flags = s->dio ? BLOCK_IO_FUA
			: s->device   ? 0
				      : BLOCK_IO_FRESH,
		.zero_init = !s->device,
		.grows = S_ISREG(st->st_mode),
	};
	return 0;
}

/* Opens the path as the node's flags say, falling back to read-only where that is allowed. */
static int open_path(struct block_node *n, const char *path, int *ret, struct error *err)
{
	uint32_t flags = n->opts.flags;
	bool dio = wants_dio(n->opts.cache);
	int fd = open_fd(path, flags & BLOCK_OPEN_RDWR, dio, flags);

	if ((fd == -EACCES || fd == -EROFS || fd == -EPERM) && (flags & BLOCK_OPEN_AUTO_RO) &&
		(flags & BLOCK_OPEN_RDWR)) {
		fd = open_fd(path, false, dio, flags & ~(uint32_t)BLOCK_OPEN_CREATE);
		if (fd >= 0)
			n->opts.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
	}
	if (fd == -EINVAL && dio)
		return error_set(err, -EINVAL,
			"Could not open '%s': its file system has no O_DIRECT; use another cache "
			"mode",
			path);
	if (fd < 0)
		return error_set_errno(err, fd, "Could not open '%s'", path);
	*ret = fd;
	return 0;
}

static int check_type(const struct block_node *n, const char *path, struct error *err)
{
	bool device = n->drv == &block_host_device;
	struct stat st;

	if (stat(path, &st)) /* open() words it, or creates the file */
		return 0;
	if (device && !S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode))
		return error_set(err, -EINVAL,
			"'host_device' driver requires '%s' to be either a character or block "
			"device",
			path);
	if (!device && !S_ISREG(st.st_mode))
		return error_set(
			err, -EINVAL, "'file' driver requires '%s' to be a regular file", path);
	return 0;
}

static int set_locks(struct block_node *n, const struct block_open_opts *o, struct error *err)
{
	struct file_state *s = n->priv;
	uint32_t perm = o->perm, shared = o->shared;
	int r;

	if (!s->locking || (o->flags & BLOCK_OPEN_NO_LOCK))
		return 0;
	if (o->flags & BLOCK_OPEN_FORCE_SHARE)
		shared = BLOCK_PERM_ALL;
	if (!(o->flags & BLOCK_OPEN_RDWR))
		perm &= BLOCK_PERM_READ;
	r = block_lock_set(s->fd, n->filename, &s->lock, perm, shared, err);
	if (!s->must_lock && (r == -ENOLCK || r == -ENOSYS || r == -EOPNOTSUPP || r == -EINVAL)) {
		trace("block_file_no_locks", "%s: %s", n->filename, errno_text(r));
		return 0;
	}
	return r;
}

static int co_file_open_fd(struct block_node *n, const char *path, struct error *err)
{
	struct file_state *s = n->priv;
	struct stat st;
	int r = set_locks(n, &n->opts, err);

	if (r)
		return r;
	/* Emptied only now that the locks say nobody else uses it. */
	if ((n->opts.flags & BLOCK_OPEN_CREATE) && (n->opts.flags & BLOCK_OPEN_RDWR) &&
		!s->device && ftruncate(s->fd, 0))
		return error_set_errno(err, -errno, "Could not empty '%s'", path);
	if (fstat(s->fd, &st))
		return error_set_errno(err, -errno, "Could not open '%s'", path);
	r = file_size(s->fd, &st, &n->size);
	if (!r)
		r = fill_caps(n, &st);
	return r ? error_set_errno(err, r, "Could not open '%s'", path) : 0;
}

static int co_file_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct file_state *s = n->priv;
	const char *path = NULL;
	int r, locking = LOCKING_AUTO, aio = AIO_URING;
	uint64_t batch;
	bool drop;

	if ((r = conf_get_string(opts, file_keys, "filename", &path, err)) ||
		(r = conf_get_enum(opts, file_keys, "locking", &locking, err)) ||
		(r = conf_get_enum(opts, file_keys, "aio", &aio, err)) ||
		(r = conf_get_u64(opts, file_keys, "aio-max-batch", &batch, err)) ||
		(r = conf_get_bool(opts, file_keys, "drop-cache", &drop, err)))
		return r;
	if (!path || !*path)
		return error_set(
			err, -EINVAL, "The '%s' driver requires a file name", n->drv->name);
	r = check_type(n, path, err);
	if (!r)
		r = open_path(n, path, &s->fd, err);
	if (r)
		return r;
	s->tail_fd = -1;
	s->device = n->drv == &block_host_device;
	s->dio = wants_dio(n->opts.cache);
	s->nowait = !s->dio && knows_nowait(s->fd);
	s->locking = locking != LOCKING_OFF;
	s->must_lock = locking == LOCKING_ON;
	r = co_file_open_fd(n, path, err);
	if (r) {
		block_lock_drop(s->fd, &s->lock);
		close(s->fd);
	}
	return r;
}

static int co_file_close(struct block_node *n)
{
	struct file_state *s = n->priv;
	int r = 0;

	block_lock_drop(s->fd, &s->lock);
	if (s->tail_fd >= 0)
		close(s->tail_fd);
	if (close(s->fd) && errno != EINTR)
		r = -errno;
	return r;
}

/* A change of access mode or of O_DIRECT needs a new open file description: locks, which hang on
 * the old one, move over to it. */
static int co_file_reopen_fd(
	struct block_node *n, const struct block_open_opts *o, struct error *err)
{
	struct file_state *s = n->priv;
	struct block_lock old_lock = s->lock;
	struct stat st;
	char path[64];
	int old = s->fd, fd, r;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", old);
	fd = open_fd(path, o->flags & BLOCK_OPEN_RDWR, wants_dio(o->cache), 0);
	if (fd < 0)
		return error_set_errno(err, fd, "Could not reopen '%s'", n->filename);
	/* Our own locks on the old description would stand against us. */
	block_lock_drop(old, &s->lock);
	s->fd = fd;
	r = set_locks(n, o, err);
	if (r) {
		s->fd = old;
		s->lock = (struct block_lock){0};
		block_lock_set(old, n->filename, &s->lock, old_lock.perm,
			BLOCK_PERM_ALL & ~old_lock.unshared, NULL);
		close(fd);
		return r;
	}
	close(old);
	if (s->tail_fd >= 0)
		close(s->tail_fd);
	s->tail_fd = -1;
	s->dio = wants_dio(o->cache);
	s->nowait = !s->dio && knows_nowait(s->fd);
	if (fstat(fd, &st))
		return error_set_errno(err, -errno, "Could not reopen '%s'", n->filename);
	return fill_caps(n, &st);
}

static int co_file_reopen(struct block_node *n, const struct block_open_opts *o, struct error *err)
{
	bool mode = (n->opts.flags ^ o->flags) & BLOCK_OPEN_RDWR;

	file_extent_forget(n->priv);
	if (mode || wants_dio(n->opts.cache) != wants_dio(o->cache))
		return co_file_reopen_fd(n, o, err);
	return set_locks(n, o, err);
}

/* --- data ---------------------------------------------------------------------------------- */

int file_tail_fd(struct block_node *n, int *ret)
{
	struct file_state *s = n->priv;
	int fd = __atomic_load_n(&s->tail_fd, __ATOMIC_ACQUIRE), none = -1;
	char path[64];

	if (!s->dio) {
		*ret = s->fd;
		return 0;
	}
	if (fd < 0) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
		fd = open_fd(path, n->opts.flags & BLOCK_OPEN_RDWR, false, 0);
		if (fd == -ENOENT) /* no /proc in here */
			fd = open_fd(n->filename, n->opts.flags & BLOCK_OPEN_RDWR, false, 0);
		if (fd < 0)
			return fd;
		if (!__atomic_compare_exchange_n(
			    &s->tail_fd, &none, fd, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			close(fd);
			fd = none;
		}
	}
	*ret = fd;
	return 0;
}

static enum io_hint read_hint(const struct file_state *s, uint64_t len)
{
	if (s->dio || len > SMALL_READ)
		return IO_RING;
	return likely(s->nowait) ? IO_NOWAIT_FIRST : IO_INLINE;
}

static int co_read_fd(
	struct block_node *n, int fd, uint64_t off, struct iov_slice buf, enum io_hint hint)
{
	ssize_t r = co_read_full_hint(fd, buf, off, 0, hint);

	if (unlikely(r < 0))
		return (int)r;
	if (unlikely((size_t)r < buf.len)) {
		/* Somebody else has cut the file: what is gone reads as zeroes, as it would if
		 * the file grew again. */
		if (((struct file_state *)n->priv)->device)
			return -EIO;
		iov_fill(iov_cut(buf, (size_t)r, buf.len - (size_t)r), 0);
	}
	return 0;
}

static uint64_t ragged(const struct block_node *n, uint64_t len)
{
	return len & (n->caps.align - 1);
}

static int co_file_read(struct block_node *n, struct block_io *io)
{
	struct file_state *s = n->priv;
	uint64_t tail = ragged(n, io->len), whole = io->len - tail;
	int r = 0, fd;

	if (likely(!tail))
		return co_read_fd(n, s->fd, io->off, io->buf, read_hint(s, io->len));
	if (whole)
		r = co_read_fd(n, s->fd, io->off, iov_cut(io->buf, 0, whole), IO_RING);
	if (!r)
		r = file_tail_fd(n, &fd);
	if (!r)
		r = co_read_fd(n, fd, io->off + whole, iov_cut(io->buf, whole, tail), IO_RING);
	return r;
}

/* Beside direct I/O the page must be clean again before anybody writes to it directly, or the page
 * cache would later put old data over the new: io.c keeps other writes off the page meanwhile. */
int co_file_write_tail(struct block_node *n, uint64_t off, struct iov_slice buf)
{
	const struct file_state *s = n->priv;
	int fd, r = file_tail_fd(n, &fd);

	if (!r && s->dio)
		r = co_write_full_hint(fd, buf, off, RWF_DSYNC, IO_RING);
	else if (!r)
		r = co_write_full_hint(fd, buf, off, 0, IO_INLINE);
	return r;
}

/* A page cache that knows the blocks of a range need not reserve them page by page: a fifth of the
 * cost of copying into a new file. Not worth a call for small writes, and never an error: the write
 * finds out. */
static void file_allocate(struct file_state *s, uint64_t off, uint64_t len)
{
	if (len < FRESH_MIN || load_relaxed(&s->no_allocate))
		return;
	if (fallocate(s->fd, 0, (off_t)off, (off_t)len) < 0 && errno == EOPNOTSUPP)
		store_relaxed(&s->no_allocate, true);
}

static int co_file_write(struct block_node *n, struct block_io *io)
{
	struct file_state *s = n->priv;
	uint64_t tail = ragged(n, io->len), whole = io->len - tail;
	int rwf = io->flags & BLOCK_IO_FUA ? RWF_DSYNC : 0, r = 0;

	if (io->flags & BLOCK_IO_FRESH)
		file_allocate(s, io->off, io->len);
	if (likely(!tail))
		r = co_write_full_hint(s->fd, io->buf, io->off, rwf,
			s->dio || io->len >= SMALL_WRITE ? IO_RING : IO_INLINE);
	else if (whole)
		r = co_write_full_hint(s->fd, iov_cut(io->buf, 0, whole), io->off, rwf, IO_RING);
	if (unlikely(tail) && !r)
		r = co_file_write_tail(n, io->off + whole, iov_cut(io->buf, whole, tail));
	if (unlikely(tail && rwf) && !r)
		r = co_fsync(s->fd, true);
	/* The sync in it may have taken up an error that belongs to earlier writes. */
	if (unlikely(r && (rwf || tail)) && r != -ENOSPC)
		store_relaxed(&n->broken_flush, true);
	return r;
}

static int co_file_flush(struct block_node *n)
{
	struct file_state *s = n->priv;

	return co_fsync(s->fd, true);
}

static const char *const file_protocols[] = {"file", NULL};
static const char *const device_protocols[] = {"host_device", NULL};

#define FILE_METHODS                                                                               \
	.kind = BLOCK_KIND_PROTOCOL, .node_size = sizeof(struct file_state),                       \
	.open_keys = file_keys, .create_keys = block_file_create_keys, .takes_filename = true,     \
	.co_open = co_file_open, .co_reopen = co_file_reopen, .co_create = co_file_create,         \
	.co_resize = co_file_resize, .co_close = co_file_close, .co_read = co_file_read,           \
	.co_write = co_file_write, .co_zero = co_file_zero, .co_discard = co_file_discard,         \
	.co_flush = co_file_flush, .co_extent = co_file_extent, .co_copy = co_file_copy,           \
	.co_actual_size = co_file_actual_size

const struct block_driver block_file = {.name = "file", .protocols = file_protocols, FILE_METHODS};
const struct block_driver block_host_device = {
	.name = "host_device", .protocols = device_protocols, FILE_METHODS};
