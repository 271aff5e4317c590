/* SPDX-License-Identifier: MIT */
/*
 * The block layer's map: nodes, drivers, the one request form and its guarded entry, extents, the
 * copy engine, jobs, dirty bitmaps. Prototypes stand under the file that defines them.
 *
 * A node is an opened driver instance (file, raw, qcow2, a filter) with children in roles. Every
 * request on a node goes through block/io.c, which checks range, flags, alignment and
 * capabilities, splits, serializes overlaps where a driver needs it, tracks what is in flight and
 * accounts; drivers hold no defensive code. Any ring may send requests to any node.
 *
 * co_block_* functions may yield. Results: 0 or a negative errno; never short. -EUCLEAN corrupt,
 * -ENOTSUP unsupported, -EIO I/O failed, -ENOSPC no room, -EROFS or -EPERM not writable.
 */
#ifndef DROVER_BLOCK_H
#define DROVER_BLOCK_H

#include "base/conf.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/list.h"
#include "base/sync.h"

struct block_node;
struct block_driver;
struct block_inflight;

/* --- requests ------------------------------------------------------------------------------ */

enum block_io_flags {
	BLOCK_IO_FUA = 1u << 0,		/* durable before the request completes */
	BLOCK_IO_UNMAP = 1u << 1,	/* zero: the range may be deallocated */
	BLOCK_IO_NO_FALLBACK = 1u << 2, /* zero: -ENOTSUP rather than writing zero bytes */
	BLOCK_IO_COMPRESSED = 1u << 3,	/* write: store compressed; whole clusters */
	BLOCK_IO_UNCHANGED = 1u << 4,	/* write: guest-visible content stays (copy-on-read) */
	BLOCK_IO_CACHE = 1u << 5,	/* read: prefetch only */
	BLOCK_IO_FRESH = 1u << 6,	/* write: nothing is stored there yet; a hint to the store
					   that it may allocate the range at once */
};

/* One request. Data flows through buf (buf.len == len) for reads and writes; zero, discard and
 * extent requests have an empty buf. */
struct block_io {
	uint64_t off, len; /* bytes */
	struct iov_slice buf;
	uint32_t flags; /* enum block_io_flags */
};

enum block_extent_flags {
	BLOCK_EXTENT_DATA = 1u << 0,	   /* must be read to know its content */
	BLOCK_EXTENT_ZERO = 1u << 1,	   /* reads as zeroes */
	BLOCK_EXTENT_ALLOCATED = 1u << 2,  /* content comes from this layer, not from its backing */
	BLOCK_EXTENT_MAPPED = 1u << 3,	   /* host_off and host are valid */
	BLOCK_EXTENT_COMPRESSED = 1u << 4, /* stored compressed */
	BLOCK_EXTENT_EOF = 1u << 5,	   /* the extent ends at the end of the node */
};

struct block_extent {
	uint64_t len;		 /* bytes from the offset asked for, all of one kind; > 0 */
	uint32_t flags;		 /* enum block_extent_flags */
	uint32_t depth;		 /* layers above the one that answers; 0: the top */
	uint64_t host_off;	 /* where it lies in host's file */
	struct block_node *host; /* borrowed */
};

/* --- nodes --------------------------------------------------------------------------------- */

enum block_open_flags {
	BLOCK_OPEN_RDWR = 1u << 0,
	BLOCK_OPEN_NO_BACKING = 1u << 1,  /* do not open the backing file */
	BLOCK_OPEN_FORCE_SHARE = 1u << 2, /* take no lock against writers; read-only */
	BLOCK_OPEN_NO_IO = 1u << 3,	  /* metadata only (info): data files stay closed */
	BLOCK_OPEN_CHECK = 1u << 4,	  /* for check and repair: dirty, corrupt images open */
	BLOCK_OPEN_CREATE = 1u << 5,	  /* file: create or truncate */
	BLOCK_OPEN_AUTO_RO = 1u << 6,	  /* fall back to read-only where writing is refused */
	BLOCK_OPEN_NO_LOCK = 1u << 7,	  /* file: take no image locks (tests, /dev/fdset) */
	BLOCK_OPEN_UNMAP = 1u << 8,	  /* discards reach the host file (discard=unmap) */
	BLOCK_OPEN_EXCL = 1u << 9,	  /* with CREATE: -EEXIST when the file exists */
	BLOCK_OPEN_COPY_ON_READ = 1u << 10,
	BLOCK_OPEN_PROBED = 1u << 11, /* set by node.c: the format was found by probing */
	BLOCK_OPEN_STORE = 1u << 12,  /* a format lives in this node (set by open.c): it may
					 grow, and reads beyond the end give zeroes */
};

/* Host cache modes as users name them. */
enum block_cache {
	BLOCK_CACHE_WRITEBACK,
	BLOCK_CACHE_NONE,	  /* O_DIRECT */
	BLOCK_CACHE_WRITETHROUGH, /* flush after every write */
	BLOCK_CACHE_DIRECTSYNC,	  /* both */
	BLOCK_CACHE_UNSAFE,	  /* flushes are ignored */
};
extern const struct conf_enum block_cache_names[];

/* Permissions on a child, in the numbering of the image locks (bytes 100+n and 200+n). */
enum block_perm {
	BLOCK_PERM_READ = 1u << 0,
	BLOCK_PERM_WRITE = 1u << 1,
	BLOCK_PERM_WRITE_UNCHANGED = 1u << 2,
	BLOCK_PERM_RESIZE = 1u << 3,
	BLOCK_PERM_GRAPH = 1u << 4,
	BLOCK_PERM_ALL = 0x1f,
};

/* What names found inside an image may make us open; presets stand in block/trust.c. */
enum block_names { BLOCK_NAMES_NONE, BLOCK_NAMES_LOCAL, BLOCK_NAMES_ALL };

struct block_trust {
	enum block_names names;
	bool probe_raw;		   /* may a probe that finds nothing yield raw? */
	uint32_t max_chain;	   /* backing files followed */
	uint64_t max_virtual_size; /* bytes; 0: the format's own limit */
	bool refuse_amplification; /* convert: many references to one host range are refused */
};
extern const struct block_trust block_trust_strict, block_trust_local, block_trust_all;

struct block_open_opts {
	uint32_t flags; /* enum block_open_flags */
	enum block_cache cache;
	bool detect_zeroes, detect_zeroes_unmap;
	uint32_t perm, shared; /* what the opener needs and lets others have; 0,0: by flags */
	const struct block_trust *trust; /* never NULL */
};

enum block_role { BLOCK_ROLE_FILE, BLOCK_ROLE_BACKING, BLOCK_ROLE_DATA, BLOCK_ROLES };

struct block_caps {
	uint32_t align;		/* offsets and lengths of requests, power of two; >= 1 */
	uint32_t buf_align;	/* memory address of buffers */
	uint64_t max_io;	/* bytes per request; 0: no limit */
	uint32_t max_iov;	/* segments per request; 0: no limit */
	uint32_t zero_align;	/* smaller zero requests become writes */
	uint32_t discard_align; /* smaller discards are dropped */
	uint32_t write_flags;	/* enum block_io_flags the driver takes on writes */
	uint32_t zero_flags;	/* ... on zero requests */
	uint64_t cluster;	/* allocation unit in bytes; 0: none */
	bool zero_init;		/* a newly created node reads as zeroes */
	bool can_backing;	/* format with backing files */
	bool grows;		/* writes beyond the end extend it (openers with RESIZE) */
};

struct block_stats {
	uint64_t reads, writes, zeroes, discards, flushes; /* requests */
	uint64_t read_bytes, write_bytes;
};

struct block_node {
	const struct block_driver *drv;
	char *filename;	   /* as given or found; for messages; owned */
	struct conf *spec; /* the options it was opened with; owned */
	uint64_t size;	   /* bytes; read atomically, changed only while drained */
	struct block_open_opts opts;
	struct block_caps caps; /* filled by open */
	struct block_node *child[BLOCK_ROLES]; /* NULL where there is none */
	struct block_inflight *inflight;
	uint32_t refs; /* atomic */
	bool broken_flush; /* I9: a flush failed; no later flush succeeds */
	void *priv; /* drv->node_size bytes, zeroed; the driver's own */
};

/* --- drivers ------------------------------------------------------------------------------- */

enum block_kind {
	BLOCK_KIND_PROTOCOL, /* stores bytes: file, mem */
	BLOCK_KIND_FORMAT,   /* interprets its file child: raw, qcow2 */
	BLOCK_KIND_FILTER,   /* same content as its file child: fault, record, throttle */
};

enum block_prealloc {
	BLOCK_PREALLOC_OFF,
	BLOCK_PREALLOC_METADATA,
	BLOCK_PREALLOC_FALLOC,
	BLOCK_PREALLOC_FULL,
};
extern const struct conf_enum block_prealloc_names[];

struct block_create {
	const char *filename; /* plain path, or a node in `file` */
	struct conf *opts;    /* creation options by the driver's create_keys */
	struct block_node *file; /* formats: the opened, empty, writable file node to write into */
	const struct block_trust *trust;
};

struct block_resize {
	uint64_t size;
	enum block_prealloc prealloc;
	bool shrink; /* allowed to lose data beyond size */
};

/* --- families of methods (each optional as a whole) --- */

/* One line of format-specific information, in QAPI's order and spelling ("compression-type"). */
struct block_info_item {
	const char *key;
	enum { BLOCK_INFO_BOOL, BLOCK_INFO_U64, BLOCK_INFO_STRING } kind;
	uint64_t num;
	char str[64];
	const char *long_str; /* instead of str when not NULL; owned by the node */
	bool hide_human;      /* only in JSON */
};

struct block_image_info {
	uint64_t cluster_size; /* 0: none */
	bool dirty, corrupt, encrypted, compressed;
	const char *backing_name;   /* as stored in the image; NULL: none; owned by the node */
	const char *backing_format; /* NULL: not stored */
	const char *data_file;	    /* external data file as stored; NULL: none */
	uint32_t nitems;
	struct block_info_item items[16];
};

struct block_measure {
	uint64_t required, fully_allocated, bitmaps;
	bool has_bitmaps;
};

struct block_image_ops {
	int (*co_info)(struct block_node *n, struct block_image_info *ret, struct error *err);
	/* Size of a new image with creation options `opts`: `size` bytes virtual, or what `src`
	 * (NULL: none) needs. */
	int (*co_measure)(struct conf *opts, struct block_node *src, uint64_t size,
		struct block_measure *ret, struct error *err);
	/* Changes the backing name and format in the header, durable after all data; NULL name:
	 * none. Does not touch the open backing child. */
	int (*co_set_backing)(struct block_node *n, const char *name, const char *format,
		struct error *err);
	/* Drops every allocation, so that the backing shows through; crash-safe (commit). */
	int (*co_make_empty)(struct block_node *n, struct error *err);
	/* The image was created with the creation option `incomplete` and opened with the open
	 * option of that name: everything so far becomes durable, then the header says that it is
	 * an image (no-op on other images). Until then it cannot be opened without the option. */
	int (*co_finalize)(struct block_node *n, struct error *err);
	/* Support data without guest content, human-readable, one item a line, into out. */
	int (*co_dump_metadata)(struct block_node *n,
		void (*emit)(void *arg, const char *line), void *arg, struct error *err);
};

struct block_snapshot {
	char *id, *name; /* owned */
	uint64_t disk_size, vm_state_size;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec;
	uint64_t icount; /* UINT64_MAX: not recorded */
};

struct block_snapshot_ops {
	int (*co_list)(struct block_node *n, struct block_snapshot **ret, size_t *ret_n);
	int (*co_create)(struct block_node *n, const struct block_snapshot *s, struct error *err);
	int (*co_apply)(struct block_node *n, const char *id_or_name, struct error *err);
	int (*co_delete)(struct block_node *n, const char *id_or_name, struct error *err);
	/* A read-only node that shows the snapshot; holds a reference on n. */
	int (*co_open)(struct block_node *n, const char *id_or_name, struct block_node **ret,
		struct error *err);
};

/* VM state lies beyond the guest-visible end; offsets start at 0. */
struct block_vmstate_ops {
	int (*co_read)(struct block_node *n, struct block_io *io);
	int (*co_write)(struct block_node *n, struct block_io *io);
};

enum block_repair { BLOCK_REPAIR_LEAKS = 1, BLOCK_REPAIR_ERRORS = 2 };

struct block_check {
	/* in */
	uint32_t repair;	  /* enum block_repair */
	uint64_t memory;	  /* bytes the check may use; 0: default 256 MiB */
	void (*message)(void *arg, bool is_error, const char *line); /* NULL: silent */
	void (*progress)(void *arg, uint64_t done, uint64_t total);
	void *arg;
	/* out */
	uint64_t corruptions, leaks, check_errors, corruptions_fixed, leaks_fixed;
	uint64_t image_end, total_clusters, allocated_clusters, compressed_clusters,
		fragmented_clusters;
};

struct block_check_ops {
	int (*co_check)(struct block_node *n, struct block_check *c, struct error *err);
};

/* Compressed writing for the copy engine: encode on any thread, store in guest order. */
struct block_packed {
	uint64_t off;	  /* guest offset, a multiple of the cluster size */
	const void *data; /* encoded bytes, or a plain cluster when !compressed */
	uint32_t len;
	bool compressed;
	bool zero; /* all zero: data is NULL */
};

struct block_compress_ops {
	/* Pure CPU work, thread-safe, no I/O: one cluster from src (cluster bytes) to dst (room
	 * for cluster bytes). 0 and *ret_len, or 1 when it does not shrink, or -ENOMEM. `state`
	 * comes from new_state (one a thread), so that contexts are reused. */
	int (*encode)(struct block_node *n, void *state, const void *src, void *dst,
		uint32_t *ret_len);
	void *(*new_state)(struct block_node *n);
	void (*free_state)(void *state);
	/* Reserves host space for the items in order; serialized by the caller and quick. The
	 * opaque *ticket carries the reservation to co_store, which writes data (in parallel with
	 * others) and then links it. Every ticket must reach co_store or abandon. */
	int (*co_reserve)(struct block_node *n, const struct block_packed *items, unsigned nitems,
		void **ticket);
	int (*co_store)(struct block_node *n, const struct block_packed *items, unsigned nitems,
		void *ticket);
	void (*abandon)(struct block_node *n, void *ticket);
};

/* The table of a driver. A method that is NULL passes through to the file child in a filter and
 * answers -ENOTSUP otherwise; block/io.c guarantees: 0 < len, range inside the node (drivers never
 * see more), alignment to caps, only flags in caps, buf.len == len. A request that reaches the end
 * of the node may end unaligned there. After a successful co_flush io.c flushes the children in the
 * roles FILE and DATA by itself; co_flush writes out the driver's own caches. */
struct block_driver {
	const char *name;
	enum block_kind kind;
	size_t node_size; /* of node->priv */
	const struct conf_key *open_keys, *create_keys; /* may be NULL */
	bool takes_filename; /* protocol: `filename` option names the file */
	const char *const *protocols; /* "nbd", ...: URL prefixes; NULL: none */

	/* 0-100: how sure that head (n bytes, maybe the whole file) is of this format. */
	int (*probe)(const void *head, size_t n);
	/* Formats and filters find their file child already open. Fills caps and size. On failure
	 * the driver cleans its priv; co_close is not called. */
	int (*co_open)(struct block_node *n, struct conf *opts, struct error *err);
	/* Change flags or cache mode of an open node (read-only <-> read-write). */
	int (*co_reopen)(struct block_node *n, const struct block_open_opts *o, struct error *err);
	int (*co_create)(const struct block_create *c, struct error *err);
	int (*co_resize)(struct block_node *n, const struct block_resize *r, struct error *err);
	/* Flushes the driver's own caches and frees priv. Errors are reported, closing goes on. */
	int (*co_close)(struct block_node *n);

	int (*co_read)(struct block_node *n, struct block_io *io);
	int (*co_write)(struct block_node *n, struct block_io *io);
	int (*co_zero)(struct block_node *n, struct block_io *io);
	int (*co_discard)(struct block_node *n, struct block_io *io);
	int (*co_flush)(struct block_node *n);
	/* What lies at [off, off+len): the first extent, its len <= len. */
	int (*co_extent)(struct block_node *n, uint64_t off, uint64_t len,
		struct block_extent *ret);
	/* Offloaded copy within one kind of store; -ENOTSUP makes the caller copy by hand. */
	int (*co_copy)(struct block_node *src, uint64_t src_off, struct block_node *dst,
		uint64_t dst_off, uint64_t len);
	/* Bytes of storage in use, 0 and *ret. */
	int (*co_actual_size)(struct block_node *n, uint64_t *ret);

	const struct block_image_ops *image;
	const struct block_snapshot_ops *snapshot;
	const struct block_vmstate_ops *vmstate;
	const struct block_check_ops *check;
	const struct block_compress_ops *compress;
};

/* --- node.c: the graph --------------------------------------------------------------------- */

/* The table of drivers is given once by lib/drivers.c, before the first open. */
void block_register(const struct block_driver *const *table); /* ends with NULL */
const struct block_driver *block_driver_find(const char *name); /* NULL: none */
const struct block_driver *const *block_drivers(void);

/*
 * Opens the node that `spec` describes: an object with `driver` and its options, `file` (an object)
 * for formats and filters, `backing` to override the image's own. Without `driver`, a `filename` is
 * opened by the file driver (or by its URL's protocol) and its format is found by probing; a
 * format driver with a `filename` and no `file` puts it on a file node. The spec is copied. Unused
 * keys are an error. *ret has one reference for the caller.
 */
int co_block_open(const struct conf *spec, const struct block_open_opts *o,
	struct block_node **ret, struct error *err);
/* Called by a format's co_open: asks for the backing file named inside the image, relative to the
 * image's folder, under the trust rules. It is opened, and child[BLOCK_ROLE_BACKING] set, right
 * after co_open has returned: a chain is opened layer by layer, not on one ever deeper stack. */
int co_block_open_backing(struct block_node *n, const char *name, const char *format,
	struct conf *override, struct error *err);
/* The spec for a file name as users type it: plain path, `json:{...}`, URL; format NULL: probe. */
int block_spec_from_name(const char *name, const char *format, struct conf **ret,
	struct error *err);
/* A node over given children, for tests, filters and snapshots: takes over the references. */
int co_block_open_on(const struct block_driver *drv, struct block_node *file, struct conf *opts,
	const struct block_open_opts *o, struct block_node **ret, struct error *err);
struct block_node *block_node_ref(struct block_node *n);
/* Drops a reference; the last one drains, flushes and closes (may yield). Returns the close error
 * of the last reference: data written may be lost then. NULL is fine. */
int co_block_node_unref(struct block_node *n);
/* Replaces the child in a role (taking the new reference, dropping the old); n and every node above
 * it that is in use are drained. */
int co_block_set_child(struct block_node *n, enum block_role role, struct block_node *child);
int co_block_reopen(struct block_node *n, const struct block_open_opts *o, struct error *err);
/* Joins a name found in the image `base` with the folder of that image. Caller frees. */
char *block_path_join(const char *base, const char *name);

/* --- create.c ------------------------------------------------------------------------------ */

/* Creates an image file of `format` at `filename`. Nothing that looks whole is left on failure. */
int co_block_create(const char *format, const char *filename, struct conf *opts,
	const struct block_trust *trust, struct error *err);

/* --- io.c: the guarded entry --------------------------------------------------------------- */

int co_block_read(struct block_node *n, uint64_t off, struct iov_slice buf, uint32_t flags);
int co_block_write(struct block_node *n, uint64_t off, struct iov_slice buf, uint32_t flags);
int co_block_pread(struct block_node *n, uint64_t off, void *buf, size_t len);
int co_block_pwrite(struct block_node *n, uint64_t off, const void *buf, size_t len);
int co_block_zero(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags);
int co_block_discard(struct block_node *n, uint64_t off, uint64_t len, uint32_t flags);
/* Everything acknowledged before is durable, through all children. After a failure every later
 * flush of that node fails too: what was lost cannot come back. */
int co_block_flush(struct block_node *n);
int co_block_copy_range(struct block_node *src, uint64_t src_off, struct block_node *dst,
	uint64_t dst_off, uint64_t len);
int co_block_resize(struct block_node *n, const struct block_resize *r, struct error *err);
uint64_t block_size(const struct block_node *n);
/* Formats grow their file by writing beyond its end; block/io.c lets them and tracks the size. */
int co_block_actual_size(struct block_node *n, uint64_t *ret);
/* What has gone through the node since it was opened; any thread. */
void block_node_stats(struct block_node *n, struct block_stats *ret);

/* --- werror.c: writes parked by werror=stop and werror=enospc --- */
/* Lets them go on: tried again, or, with report, ended by their error like all later ones. */
void block_werror_resume(struct block_node *n, bool report);
uint32_t block_werror_parked(struct block_node *n); /* how many are parked */

/* --- align.c: unaligned requests to aligned ones; bounce buffers --- */
void *block_buffer_alloc(const struct block_node *n, size_t len); /* aligned for n; mem_free() */

/* --- inflight.c: requests in flight, overlap serialization, drain --- */
void co_block_drain_begin(struct block_node *n); /* nests; new requests wait until drain_end */
void co_block_drain_end(struct block_node *n);

/* --- extent.c ------------------------------------------------------------------------------ */

/* The first extent of this layer at [off, off+len). */
int co_block_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret);
/* Through the backing chain down to `base` (not included; NULL: all of it): what the guest sees.
 * Beyond a short backing file: ZERO, at the depth of the layer above it, and ALLOCATED where there
 * is a base, whose data those zeroes may hide. Adjacent extents of one kind are not merged. */
int co_block_extent_chain(struct block_node *n, struct block_node *base, uint64_t off,
	uint64_t len, struct block_extent *ret);
/* Reads what n's backing chain shows, zeroes beyond its end: what a format does where it has
 * nothing of its own. Neither stack nor time grow with the length of the chain. */
int co_block_read_backing(struct block_node *n, uint64_t off, struct iov_slice buf);
struct block_node *block_backing(struct block_node *n); /* through filters; NULL: none */
struct block_node *block_skip_filters(struct block_node *n);

/* --- dirty.c: in-memory dirty bitmaps ------------------------------------------------------- */

struct block_dirty;
/* granularity: power of two, 512 B to 2 GiB, in bytes. */
int block_dirty_new(uint64_t size, uint32_t granularity, struct block_dirty **ret);
void block_dirty_free(struct block_dirty *d);
void block_dirty_set(struct block_dirty *d, uint64_t off, uint64_t len);   /* atomic, any thread */
void block_dirty_clear(struct block_dirty *d, uint64_t off, uint64_t len); /* whole granules only */
bool block_dirty_test(const struct block_dirty *d, uint64_t off);
uint64_t block_dirty_count(const struct block_dirty *d); /* bytes */
/* The next run of dirty (or clean) granules at or after off: false when there is none. */
bool block_dirty_next(const struct block_dirty *d, uint64_t off, bool dirty, uint64_t *ret_off,
	uint64_t *ret_len);
/* Attached, it records every write, zero and discard that completes on the node. */
int block_dirty_attach(struct block_node *n, struct block_dirty *d);
void block_dirty_detach(struct block_node *n, struct block_dirty *d);

/* --- job.c: pause, cancel, rate, progress of long work -------------------------------------- */

struct block_job {
	struct spin lock;
	bool cancelled, paused;
	uint64_t rate;	      /* bytes a second; 0: no limit */
	uint64_t done, total; /* bytes; relaxed atomics */
	const char *phase;    /* static text for --progress=json */
	void (*progress)(void *arg, const struct block_job *job); /* NULL; any thread, serialized */
	void *arg;
	uint64_t rate_next_ns, progress_next_ns; /* internal */
	struct co_queue waiters;
};
void block_job_init(struct block_job *job);
void block_job_cancel(struct block_job *job); /* any thread, async-signal-safe */
void block_job_pause(struct block_job *job, bool paused);
/* Called by the work for every piece: sleeps for pause and rate, counts, calls progress.
 * -ECANCELED when cancelled. */
int co_block_job_step(struct block_job *job, uint64_t bytes);
/* As co_block_job_step() for bytes that cost no I/O (holes): counted, not rate-limited. */
int co_block_job_skip(struct block_job *job, uint64_t bytes);

/* --- copy.c: the one copy engine ------------------------------------------------------------ */

struct block_copy {
	struct block_node *src, *dst;
	struct block_node *base; /* copy only what differs from this layer of src's chain; NULL */
	uint64_t src_off, dst_off, len;
	struct block_dirty *dirty; /* copy only dirty granules, clearing them; NULL: by extents */
	uint32_t threads;     /* rings working in parallel; 0: worker_count() */
	uint32_t depth;	      /* pieces in flight in all; 0: default (the -m option) */
	uint64_t min_sparse;  /* zero runs of at least so many bytes become zero requests; 0: keep
				 data as data */
	bool dst_is_zero;     /* dst reads as zeroes where nothing is written */
	bool dst_has_backing; /* unallocated in src stays unallocated in dst */
	bool full_alloc;      /* zeroes are written as data, so that dst is allocated (-S 0) */
	bool in_order;	      /* writes in ascending order (no -W) */
	bool compress;
	bool offload;		/* copy_file_range where both ends can */
	bool salvage;		/* read errors become zeroes, counted */
	bool refuse_amplified;	/* -EUCLEAN for images that expand absurdly */
	struct block_job *job;	/* never NULL */
	/* out */
	uint64_t bytes_read, bytes_written, bytes_zeroed, salvaged;
};
/* Copies; returns when all is written (not flushed). On failure the first error wins and err says
 * at which offset of which file. Runs on the calling ring and on threads of its own. */
int co_block_copy(struct block_copy *c, struct error *err);

/* Compares by content, skipping what both know to be zero. 0: same; 1: *diff_off is the first
 * difference; strict also compares allocation. */
struct block_compare {
	struct block_node *a, *b;
	bool strict;
	struct block_job *job;
	uint64_t diff_off; /* out */
	bool diff_alloc;   /* out: content is equal, allocation differs (strict) */
	struct block_node *failed; /* out: which side an error came from */
};
int co_block_compare(struct block_compare *c, struct error *err);

/* --- drivers of this room --- */
extern const struct block_driver block_file, block_host_device, block_raw, block_mem, block_fault,
	block_record, block_throttle, block_copy_on_read, block_verify, block_null;

#endif
