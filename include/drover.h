/* SPDX-License-Identifier: MIT */
/*
 * libdrover: disk images for programs that embed them.
 *
 * Two handles. `drover_image` is the control handle: any thread may use it, its calls may block,
 * and it is never on the I/O path. `drover_queue` is the data handle: one thread, one ring, a fixed
 * number of slots; its calls do not block (but for drover_queue_reap() when told to wait) and do
 * not allocate. Any number of queues, on any threads, may serve one image.
 *
 * Results are 0 or a negative errno, never short: -EINVAL misuse, -EUCLEAN the image is corrupt,
 * -ENOTSUP valid but not supported, -EIO input or output failed, -ENOSPC no room, -EROFS or -EPERM
 * not writable, -ENOMEM. Control calls take a `struct drover_error *` (NULL: no text wanted) that
 * receives one sentence. The library never prints, exits or aborts on what a file contains.
 *
 * Structs that the caller fills begin with `struct_size`, which the caller sets to sizeof of the
 * struct it was compiled with (DROVER_INIT does). Fields that a caller does not know are zero, and
 * zero always means the default. A struct that a newer header has made longer is refused by an
 * older library with -E2BIG when what it does not know is not zero.
 *
 * Threads. The library has at most one control thread and one pool of workers, started on first
 * need. A control call posts to the control thread and waits. Made on a thread that has queues, it
 * turns their ring while it waits: requests go on, their results wait for drover_queue_reap(), and
 * no call of the library runs the caller's code. Nothing opened before fork(2) may be used by the
 * child.
 *
 * ABI. Symbols are versioned by lib/libdrover.map and the soname is libdrover.so.0. Functions are
 * only added; a struct grows only at its end. The soname changes when a symbol goes, a signature
 * changes or a field changes its place or meaning.
 */
#ifndef DROVER_H
#define DROVER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DROVER_API __attribute__((visibility("default")))
#else
#define DROVER_API
#endif

/* `struct drover_open_opts opts = DROVER_INIT(struct drover_open_opts);` */
#ifdef __cplusplus
#define DROVER_INIT(type) type{sizeof(type)}
#else
#define DROVER_INIT(type) ((type){.struct_size = sizeof(type)})
#endif

struct drover_image; /* an open image */
struct drover_queue; /* a thread's way of sending requests to one image */
struct drover_slot;  /* one request of a queue */
struct drover_job;   /* long work in the background */

/* --- library ------------------------------------------------------------------------------- */

/* The library's version, as "0.1.0". Static text. Does not block. */
DROVER_API const char *drover_version(void);

/* What went wrong, in one sentence without a final newline; the caller owns the struct. */
struct drover_error {
	int32_t code;	/* the negative errno that the call returned too */
	char text[768]; /* NUL-terminated; cut with "..." */
};

/* One line of the trace (see the option -T of the tools and DROVER_LOG). `event` is a name such as
 * "qcow2_snapshot_create". Called on any thread, several at once; it must not call the library. */
typedef void drover_log_fn(void *arg, const char *event, const char *text);

/* Sends trace lines whose event name matches `pattern` (with * and ?) to fn(arg, ...) instead of
 * stderr; fn NULL: back to stderr. Patterns add up. Call it before other threads use the library.
 * Errors: -EINVAL, -ENOMEM. Does not block. */
DROVER_API int drover_log(const char *pattern, drover_log_fn *fn, void *arg);

/* --- trust --------------------------------------------------------------------------------- */

enum drover_names {
	DROVER_NAMES_NONE,  /* names found inside an image are never followed */
	DROVER_NAMES_LOCAL, /* plain local backing paths, and data files in the image's folder */
	DROVER_NAMES_ALL,   /* also json: and protocol names: the image may open anything */
};

enum drover_trust_flags {
	/* An image without a known format may be opened as raw when no format is given. */
	DROVER_TRUST_PROBE_RAW = 1u << 0,
	/* Copies refuse images that expand to absurdly more than their files. */
	DROVER_TRUST_NO_AMPLIFICATION = 1u << 1,
};

/* How far content of an image is trusted. There is no default: every open says it. */
struct drover_trust {
	uint32_t struct_size;
	uint32_t names;		   /* enum drover_names */
	uint32_t flags;		   /* enum drover_trust_flags */
	uint32_t max_chain;	   /* backing files followed */
	uint64_t max_virtual_size; /* bytes; 0: the format's own limit */
};

enum drover_trust_level {
	DROVER_TRUST_STRICT, /* hostile until shown otherwise: opens nothing but the image */
	DROVER_TRUST_LOCAL,  /* what the tools use */
	DROVER_TRUST_ALL,    /* the image is ours */
};

/* The preset for a level: static, never NULL for the levels above, NULL for others. Copy it to
 * change it. Does not block. */
DROVER_API const struct drover_trust *drover_trust(enum drover_trust_level level);

/* --- images: the control handle ------------------------------------------------------------ */

enum drover_open_flags {
	DROVER_OPEN_RDWR = 1u << 0,	   /* writable; otherwise read-only */
	DROVER_OPEN_NO_BACKING = 1u << 1,  /* do not open the backing file */
	DROVER_OPEN_FORCE_SHARE = 1u << 2, /* read although another program may write */
	DROVER_OPEN_UNMAP = 1u << 3,	   /* discards give space back to the host */
	DROVER_OPEN_CHECK = 1u << 4,	   /* open damaged images, for drover_image_check() */
	DROVER_OPEN_OPTIONS = 1u << 5,	   /* the name is an option string: driver=...,file.... */
};

enum drover_cache {
	DROVER_CACHE_WRITEBACK,	   /* host page cache; durable after a flush */
	DROVER_CACHE_NONE,	   /* O_DIRECT; durable after a flush */
	DROVER_CACHE_WRITETHROUGH, /* host page cache, each write durable */
	DROVER_CACHE_DIRECTSYNC,   /* O_DIRECT, each write durable */
	DROVER_CACHE_UNSAFE,	   /* flushes are ignored */
};

struct drover_open_opts {
	uint32_t struct_size;
	uint32_t flags;	      /* enum drover_open_flags */
	const char *format;   /* "raw", "qcow2", ...; NULL: find it by probing */
	uint32_t cache;	      /* enum drover_cache */
	uint32_t reserved;    /* 0 */
	const char *snapshot; /* id or name of an internal snapshot to show, read-only; NULL */
};

/*
 * Opens the image `name` (a path, json:{...}, or an option string by flag).
 *
 * opts may be NULL: read-only, probed. trust is mandatory: NULL is -EINVAL. Both are copied. On
 * success *ret is an open image that drover_close() closes. Blocks. Errors: of the operating
 * system; -EINVAL, -EUCLEAN, -ENOTSUP, -EPERM (trust), -EAGAIN (locked by another program).
 */
DROVER_API int drover_open(const char *name, const struct drover_open_opts *opts,
	const struct drover_trust *trust, struct drover_image **ret, struct drover_error *err);

/* Flushes and closes the image and frees it. -EBUSY, and nothing is changed, while it has queues
 * or jobs. Any other error means that data written may be lost; the image is gone all the same.
 * NULL is fine. Blocks. */
DROVER_API int drover_close(struct drover_image *img, struct drover_error *err);

/* The guest-visible size in bytes. Does not block. */
DROVER_API uint64_t drover_image_size(const struct drover_image *img);

enum drover_info_flags {
	DROVER_INFO_RDWR = 1u << 0,
	DROVER_INFO_DIRTY = 1u << 1,	  /* was not closed cleanly */
	DROVER_INFO_CORRUPT = 1u << 2,	  /* is marked corrupt: no writes until repaired */
	DROVER_INFO_ENCRYPTED = 1u << 3,
	DROVER_INFO_COMPRESSED = 1u << 4, /* has compressed clusters */
};

struct drover_info {
	uint32_t struct_size; /* set by the caller */
	uint32_t flags;	      /* enum drover_info_flags */
	uint64_t size;	      /* guest-visible bytes */
	uint64_t actual_size; /* bytes of storage in use */
	uint64_t cluster_size; /* 0: none */
	uint32_t align;	       /* requests that are multiples of it are fastest */
	uint32_t reserved;
	char format[32];
	char backing_name[1024]; /* as stored in the image; empty: none */
	char backing_format[32]; /* empty: not stored */
};

/* Describes the image. Opens no other file. Blocks. */
DROVER_API int drover_image_info(
	struct drover_image *img, struct drover_info *ret, struct drover_error *err);

enum drover_extent_flags {
	DROVER_EXTENT_DATA = 1u << 0,	    /* must be read to know its content */
	DROVER_EXTENT_ZERO = 1u << 1,	    /* reads as zeroes */
	DROVER_EXTENT_ALLOCATED = 1u << 2,  /* some layer of the chain has it */
	DROVER_EXTENT_MAPPED = 1u << 3,	    /* host_off is valid */
	DROVER_EXTENT_COMPRESSED = 1u << 4, /* stored compressed */
};

struct drover_extent {
	uint64_t off, len; /* guest bytes */
	uint64_t host_off; /* in the file of the layer that has it */
	uint32_t flags;	   /* enum drover_extent_flags */
	uint32_t depth;	   /* layers above the one that has it; 0: the image itself */
};

/* What lies at [off, off+len), through the backing chain: at most `max` extents in ascending order
 * without gaps into ret; adjacent ones of one kind are merged where their places on the host are
 * adjacent too. *ret_n gets their number; fewer than the range has when `max` is reached. The
 * range must lie in the image. Blocks. */
DROVER_API int drover_image_extents(struct drover_image *img, uint64_t off, uint64_t len,
	struct drover_extent *ret, uint32_t max, uint32_t *ret_n, struct drover_error *err);

enum drover_prealloc {
	DROVER_PREALLOC_OFF,
	DROVER_PREALLOC_METADATA,
	DROVER_PREALLOC_FALLOC,
	DROVER_PREALLOC_FULL,
};

enum drover_resize_flags {
	DROVER_RESIZE_SHRINK = 1u << 0, /* data beyond the new size may be lost */
};

/* Changes the guest-visible size; a smaller one only with DROVER_RESIZE_SHRINK (-EINVAL). Requests
 * in flight end first. Blocks. */
DROVER_API int drover_image_resize(struct drover_image *img, uint64_t size,
	enum drover_prealloc prealloc, uint32_t flags, struct drover_error *err);

/* Everything acknowledged before is durable. After a failure every later flush fails. Blocks. */
DROVER_API int drover_image_flush(struct drover_image *img, struct drover_error *err);

enum drover_check_flags {
	DROVER_CHECK_REPAIR_LEAKS = 1u << 0,
	DROVER_CHECK_REPAIR_ERRORS = 1u << 1,
};

struct drover_check {
	uint32_t struct_size; /* set by the caller */
	uint32_t flags;	      /* enum drover_check_flags; set by the caller */
	uint64_t memory;      /* bytes that may be used; 0: 256 MiB; set by the caller */
	/* results */
	uint64_t corruptions, leaks, check_errors, corruptions_fixed, leaks_fixed;
	uint64_t image_end, total_clusters, allocated_clusters, compressed_clusters,
		fragmented_clusters;
};

/* Checks the image's metadata and repairs what flags name (the image must be open read-write
 * then). 0 also when faults were found: the counts tell. -ENOTSUP for formats without metadata.
 * Blocks. */
DROVER_API int drover_image_check(
	struct drover_image *img, struct drover_check *check, struct drover_error *err);

/* Creates an image file of `format`, `size` bytes (0 with a backing file: its size), with
 * creation options "key=value,..." (NULL: none) as `qemu-img create -o` takes them. An existing
 * file is overwritten. Nothing that looks whole is left on failure. trust, which is mandatory,
 * says what a backing file named in the options may open. Blocks. */
DROVER_API int drover_create(const char *format, const char *name, uint64_t size,
	const char *options, const struct drover_trust *trust, struct drover_error *err);

/* --- internal snapshots -------------------------------------------------------------------- */

struct drover_snapshot {
	char id[64];
	char name[256]; /* cut when longer */
	uint64_t disk_size, vm_state_size; /* bytes */
	uint64_t date_sec;		   /* since 1970 */
	uint32_t date_nsec;
	uint32_t reserved;
	uint64_t vm_clock_nsec;
};

/* At most `max` snapshots into ret (NULL when max is 0); *ret_n gets how many there are. Blocks. */
DROVER_API int drover_snapshot_list(struct drover_image *img, struct drover_snapshot *ret,
	uint32_t max, uint32_t *ret_n, struct drover_error *err);
/* Each of these blocks, is durable when it returns 0, and answers -ENOTSUP for formats without
 * snapshots, -ENOENT for names that do not exist, -EEXIST for those that do. Requests in flight
 * end before create and apply. */
DROVER_API int drover_snapshot_create(
	struct drover_image *img, const char *name, struct drover_error *err);
DROVER_API int drover_snapshot_apply(
	struct drover_image *img, const char *id_or_name, struct drover_error *err);
DROVER_API int drover_snapshot_delete(
	struct drover_image *img, const char *id_or_name, struct drover_error *err);

/* --- queues: the data handle --------------------------------------------------------------- */

enum drover_aio {
	DROVER_AIO_DEFAULT, /* DROVER_AIO in the environment, else io_uring where it works */
	DROVER_AIO_IO_URING,
	DROVER_AIO_THREADS,
};

struct drover_queue_opts {
	uint32_t struct_size;
	uint32_t slots; /* requests in flight at most, 1 to 4096; 0: 128 */
	uint32_t aio;	/* enum drover_aio; queues of one thread share a ring: the first decides */
	uint32_t reserved;
};

/* Makes a queue to img for the calling thread, which alone may use it and its slots, and frees it
 * by drover_queue_free(). opts may be NULL. Allocates everything the queue will ever need. Errors:
 * -EINVAL, -ENOMEM, those of io_uring_setup(2). */
DROVER_API int drover_queue_new(struct drover_image *img, const struct drover_queue_opts *opts,
	struct drover_queue **ret, struct drover_error *err);
/* Waits for what is in flight, drops results that were not reaped and frees the queue. NULL is
 * fine. */
DROVER_API void drover_queue_free(struct drover_queue *q);

/* A free slot, or NULL when all are in use: reap first. The caller prepares it exactly once and
 * does not touch it after that. Never blocks. */
DROVER_API struct drover_slot *drover_queue_get(struct drover_queue *q);
/* Gives back a slot that was not prepared. */
DROVER_API void drover_slot_put(struct drover_slot *slot);

enum drover_io_flags {
	DROVER_IO_FUA = 1u << 0,	 /* write, zero: durable before the request completes */
	DROVER_IO_UNMAP = 1u << 1,	 /* zero: space may be given back */
	DROVER_IO_NO_FALLBACK = 1u << 2, /* zero: -ENOTSUP rather than writing zero bytes */
};

/*
 * Prepare a request: `off` and `len` in bytes, anywhere in the image and of any alignment
 * (multiples of drover_info.align are fastest). The buffers, and the array of a vectored form with
 * its at most 1024 entries, belong to the caller and stay untouched until the request is reaped.
 * `user` comes back with the result. Requests in flight together may complete in any order; a
 * request is seen by those submitted after it was reaped. Never block; errors come with the result.
 */
DROVER_API void drover_slot_read(
	struct drover_slot *slot, uint64_t off, void *buf, size_t len, void *user);
DROVER_API void drover_slot_write(struct drover_slot *slot, uint64_t off, const void *buf,
	size_t len, uint32_t flags, void *user);
DROVER_API void drover_slot_readv(
	struct drover_slot *slot, uint64_t off, const struct iovec *iov, uint32_t niov, void *user);
DROVER_API void drover_slot_writev(struct drover_slot *slot, uint64_t off,
	const struct iovec *iov, uint32_t niov, uint32_t flags, void *user);
/* Makes the range read as zeroes. */
DROVER_API void drover_slot_zero(
	struct drover_slot *slot, uint64_t off, uint64_t len, uint32_t flags, void *user);
/* Says that the content is not needed any more; it may read as anything the format promises. */
DROVER_API void drover_slot_discard(
	struct drover_slot *slot, uint64_t off, uint64_t len, void *user);
/* Everything reaped before the flush was submitted is durable when it completes with 0. */
DROVER_API void drover_slot_flush(struct drover_slot *slot, void *user);

/* Starts everything prepared and hands it to the kernel. Returns the number of requests started.
 * Never waits. */
DROVER_API int drover_queue_submit(struct drover_queue *q);

struct drover_result {
	void *user;
	int32_t result; /* 0 or a negative errno */
	uint32_t reserved;
};

/*
 * Submits what is prepared (so that submit and wait are one system call), then takes up to `max`
 * results, waiting until there are `min` (cut to max and to what is in flight) or timeout_ns have
 * passed (negative: no limit; 0: do not wait). Returns the number of results, or a negative errno
 * of the ring itself; then no result was taken. The slots of the results are free again.
 */
DROVER_API int drover_queue_reap(struct drover_queue *q, struct drover_result *ret, uint32_t min,
	uint32_t max, int64_t timeout_ns);
/* A descriptor for poll(2) or epoll(7) that is readable when drover_queue_reap(q, ..., 0) would
 * find something to do, level-triggered; it may be readable for nothing. It belongs to the queue
 * (queues of one thread share it). A wait on any descriptor may end with EINTR on a thread that has
 * a ring, when the kernel starts a worker for it. */
DROVER_API int drover_queue_fd(struct drover_queue *q);

/* --- jobs ---------------------------------------------------------------------------------- */

enum drover_copy_flags {
	DROVER_COPY_TARGET_IS_ZERO = 1u << 0, /* the target reads as zeroes everywhere */
	DROVER_COPY_COMPRESS = 1u << 1,	      /* store compressed */
	DROVER_COPY_IN_ORDER = 1u << 2,	      /* begin writes in ascending order */
	DROVER_COPY_OFFLOAD = 1u << 3,	      /* copy_file_range(2) where both ends can */
	DROVER_COPY_SALVAGE = 1u << 4,	      /* what cannot be read becomes zeroes */
	DROVER_COPY_KEEP_BACKING = 1u << 5,   /* what only the source's backing has is left out */
};

struct drover_copy_opts {
	uint32_t struct_size;
	uint32_t flags;	     /* enum drover_copy_flags */
	uint64_t rate;	     /* bytes a second; 0: no limit */
	uint64_t min_sparse; /* zero runs at least so long are not stored; 0: 4096 */
	uint32_t threads;    /* 0: one a core */
	uint32_t depth;	     /* pieces in flight; 0: a good number */
};

/* Starts copying the content of src into dst, which is at least as big and open read-write; ends
 * with a flush. Both images stay in use until the job is freed. Does not wait for the copy. opts
 * may be NULL. Errors: -EINVAL, -EPERM (dst is read-only), -ENOMEM. */
DROVER_API int drover_copy(struct drover_image *src, struct drover_image *dst,
	const struct drover_copy_opts *opts, struct drover_job **ret, struct drover_error *err);

/* Starts writing what img has itself into its backing file, and empties img after that. img is open
 * read-write; its backing file is made writable for the job. Of opts, flags are not used. Errors as
 * for drover_copy(), and -ENOTSUP when img has no backing file. */
DROVER_API int drover_commit(struct drover_image *img, const struct drover_copy_opts *opts,
	struct drover_job **ret, struct drover_error *err);

struct drover_job_status {
	uint32_t struct_size; /* set by the caller */
	int32_t result;	      /* -EINPROGRESS, or how the job ended */
	uint64_t done, total; /* bytes of the range, holes included */
};

/* How far the job is. Does not block. */
DROVER_API int drover_job_status(const struct drover_job *job, struct drover_job_status *ret);
/* Ask the job to end with -ECANCELED, to halt, and to keep to a rate (bytes a second; 0: none).
 * Do not block; a job that has ended does not mind. Cancel is async-signal-safe. */
DROVER_API void drover_job_cancel(struct drover_job *job);
DROVER_API void drover_job_pause(struct drover_job *job, int paused);
DROVER_API void drover_job_rate(struct drover_job *job, uint64_t rate);
/* Waits until the job has ended or timeout_ns have passed (negative: no limit). 0: it has ended and
 * drover_job_status() tells how; -ETIMEDOUT. */
DROVER_API int drover_job_wait(struct drover_job *job, int64_t timeout_ns);
/* Waits for the end of the job, frees it and returns its result, with the sentence of its failure.
 * NULL is fine: 0. */
DROVER_API int drover_job_free(struct drover_job *job, struct drover_error *err);

#ifdef __cplusplus
}
#endif

#endif
