/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 room's map: the open image, its invariants, and who defines what.
 *
 * Invariants about what may be on disk when. `A < B`: A is durable (a flush of the file returned)
 * before B is issued.
 *  I1 every on-disk reference to a cluster has on-disk refcount >= number of references, but while
 *     DIRTY is set
 *  I2 reference removed < refcount decremented
 *  I3 reference removed < cluster reused, overwritten or punched; nor is it while a request that
 *     may still use the old mapping is in flight, or before its punch has ended
 *  I4 pointee content < pointer		  I5 payload and COW head and tail < L2 entry
 *  I6 COPIED is written only where the refcount is 1 and stays 1 in every reachable crash state
 *  I7 every mode switch is one write inside header sector 0
 *  I8 an acknowledged flush: all writes acknowledged before survive
 *  I9 after a failed flush no later flush succeeds
 * Leaks (refcount > references) are always allowed.
 *
 * How they are kept (Theory of Operation; details in commit.c):
 *  - Guest data and metadata *content* go to disk at once. L2 entries, L1 entries and refcounts
 *    change in memory (cache.c), after the data they speak for was written.
 *  - co_q2_commit() is the only place that writes cached metadata: it takes copies of the dirty L2
 *    slices and L1 entries, writes dirty refcount slices, makes a barrier (so all data and
 *    refcounts that those copies speak for are durable: I1, I4, I5), then writes the copies. A
 *    guest flush adds a second barrier (I8). Caches that need room commit without it.
 *  - A new L2 table is written in full (zeroes or the copied old table) before its L1 entry exists
 *    in memory, so that L1 entries and L2 slices may go in one epoch.
 *  - Dereferenced clusters go to the quarantine (free.c): refcounts are decremented, host space
 *    punched and clusters reused only after the commit that wrote the dereference, a barrier after
 *    it, and the end of every request that began before it (request epochs, epoch.c). Until then
 *    their refcount stays up, so that the allocator cannot see them.
 *  - Structural operations (snapshots, resize, amend, repair) run alone: co_q2_quiesce_begin()
 *    waits for requests and empties caches; they write with barriers of their own, and version 3
 *    images carry DIRTY around the ones in which COPIED and refcounts disagree for a while.
 *
 * Locks, in this order: quiesce (request epochs) < compress_mutex < table_mutex < commit_mutex <
 * alloc_mutex < header_mutex < map_lock (spin). Nothing but co_mutexes is held across a yield.
 */
#ifndef DROVER_QCOW2_H
#define DROVER_QCOW2_H

#include "block/block.h"
#include "qcow2/format.h"

/* The header decoded, and its first cluster's variable part. Defined by header.c. */
struct q2_unknown_ext {
	struct list node;
	uint32_t type, len;
	uint8_t data[];
};

struct q2_header {
	uint32_t version, cluster_bits, crypt_method, l1_size, reftable_clusters, nb_snapshots;
	uint32_t refcount_order, header_length;
	uint64_t size, l1_offset, reftable_offset, snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	uint8_t compression_type;
	uint64_t backing_offset, ext_end; /* where the name stands; end of the extension area */
	uint32_t backing_len;
	char *backing_name, *backing_format, *data_file; /* owned, NULL: none */
	struct list unknown_ext;			 /* kept byte for byte */
	uint8_t *feature_names; /* table as found, for messages; owned */
	uint32_t feature_names_len;
	bool has_bitmaps_ext, has_crypto_ext; /* extensions kept verbatim until issue B's code */
	uint8_t bitmaps_ext[24];
	uint8_t crypto_ext[16];
};

struct q2_slice;
struct q2_cache;
struct q2_epochs;
struct q2_allocs;
struct q2_overlap;
struct q2_unpacked;

/* Host clusters whose reference is gone, on their way back to the free pool (free.c). */
struct q2_free_queue;

struct q2_snapshot_entry {
	struct block_snapshot info; /* id, name owned */
	uint64_t l1_offset;
	uint32_t l1_size;
	uint8_t *extra; /* extra data as found, owned */
	uint32_t extra_len;
};

struct q2_image {
	struct block_node *node; /* the qcow2 node */
	struct block_node *file; /* node->child[BLOCK_ROLE_FILE], borrowed */
	struct co_mutex header_mutex; /* innermost: sector 0 and the feature words */
	struct q2_header h;
	uint8_t sector0[512];

	/* Geometry derived from the header. */
	uint64_t cluster_size;
	uint32_t cluster_bits, l2_bits; /* l2_bits: log2 of entries per L2 table */
	uint32_t l2_entry_size;		/* 8, or 16 with extended L2 */
	uint32_t sub_bits;		/* log2 of subcluster size (== cluster_bits without) */
	uint32_t subclusters;		/* 32 or 1 */
	uint32_t refcount_bits;
	uint64_t refblock_bits; /* log2 of refcounts per refcount block */
	uint64_t max_refcount;
	bool extl2, writable, lazy_refcounts;

	/* Guarded by map_lock: L1 (host byte order), L2 slices. */
	struct spin map_lock;
	uint64_t *l1;
	uint8_t *l1_dirty; /* one byte a 512-byte sector of the table */
	uint32_t l1_ndirty; /* sectors */
	struct q2_cache *l2_cache;
	struct q2_overlap *overlap; /* clusters of tables (overlap.c); NULL when read-only */

	/* Guarded by alloc_mutex: refcounts and the allocator. */
	struct co_mutex alloc_mutex;
	uint64_t *reftable; /* host byte order */
	uint64_t reftable_entries;
	uint8_t *reftable_dirty; /* one byte a 512-byte sector */
	bool reftable_changed;	 /* any of them; read without the lock by commit.c */
	struct q2_cache *ref_cache;
	uint64_t punch_off, punch_len; /* host range being punched; one release at a time */
	struct co_mutex compress_mutex; /* one compressed reservation at a time */
	uint64_t free_hint; /* cluster index where the search starts: none before it is free */
	/* Byte offset from which on the file was never written: a hole or beyond its end. */
	uint64_t data_end;
	uint64_t compressed_next; /* byte offset where the next compressed cluster goes; 0: none */

	struct co_mutex commit_mutex, table_mutex; /* table_mutex: new L2 tables, before commit */
	bool committing; /* atomic: a commit is under way, or the last one failed */
	struct q2_epochs *epochs;
	struct q2_free_queue *frees;
	struct q2_allocs *allocs; /* allocating requests in flight, by guest cluster (inflight.c) */
	struct q2_unpacked *unpacked; /* decompressed clusters (unpacked.c) */

	struct q2_snapshot_entry *snapshots;
	uint32_t nb_snapshots;

	uint64_t tree_memory;	/* bytes for bulk changes of refcounts (tree.c); 0: the default */
	bool corrupt;		/* found at run time: no more writes */
	bool dirty_on_disk;	/* DIRTY is durable in the header */
	bool headers_cleared;	/* unknown autoclear bits were cleared */
	bool discard_no_unref, pass_discard;
	/* Open option of a target that convert is still filling: sector 0 has no magic, and every
	 * header write leaves it out, until co_finalize of the image ops. */
	bool incomplete;
	int compression_level; /* open option compression-level; 0: default fast level */
};

static inline struct q2_image *q2_image(struct block_node *n)
{
	return n->priv;
}

static inline uint64_t q2_cluster_offset(const struct q2_image *img, uint64_t off)
{
	return off & (img->cluster_size - 1);
}

static inline uint64_t q2_l1_index(const struct q2_image *img, uint64_t off)
{
	return off >> (img->cluster_bits + img->l2_bits);
}

static inline uint64_t q2_l2_index(const struct q2_image *img, uint64_t off)
{
	return (off >> img->cluster_bits) & ((1ULL << img->l2_bits) - 1);
}

/* L1 entries needed for `size` bytes. */
static inline uint64_t q2_l1_needed(const struct q2_image *img, uint64_t size)
{
	return div_up(size, 1ULL << (img->cluster_bits + img->l2_bits));
}

/* --- driver.c: the table entry, open and close --- */
extern const struct block_driver block_qcow2;

/* --- options.c: open options, cache sizes --- */
extern const struct conf_key q2_open_keys[];
int q2_options_incomplete(struct conf *opts, bool *ret, struct error *err);
int q2_options_apply(struct q2_image *img, struct conf *opts, struct error *err);

/* --- header.c: parse, validate, write --- */
void q2_header_destroy(struct q2_header *h); /* also of a zeroed one */
/* The pure part: buf holds the start of the file, up to one cluster. */
int q2_header_decode(const uint8_t *buf, size_t len, const char *filename, struct q2_header *ret,
	struct error *err);
/* Hands h over; src is empty afterwards. */
void q2_header_move(struct q2_header *dst, struct q2_header *src);
/* The printable name of a feature bit from the image's table, "" when it has none. kind: 0
 * incompatible, 1 compatible, 2 autoclear. */
void q2_feature_name(const struct q2_header *h, unsigned kind, unsigned bit, char *ret, size_t n);
/* Fills img's geometry from img->h. */
void q2_geometry(struct q2_image *img);

/* --- header-build.c: encode --- */
/* The 512 bytes of sector 0 for `h` as it stands, the rest of the sector kept from `sector`. */
void q2_header_encode(const struct q2_header *h, uint8_t sector[512]);
/* The whole first cluster of a new image, for create; `buf` is cluster_size bytes, zeroed.
 * h->header_length must be set (Q2_H_V2_LENGTH, Q2_H_V3_LENGTH). */
int q2_header_build(const struct q2_header *h, uint8_t *buf, size_t len, struct error *err);
uint64_t q2_header_build_extensions(
	const struct q2_header *h, uint8_t *buf, size_t len, uint64_t reserve, bool feature_names);

/* --- header-io.c: read and write --- */
/* Reads and checks everything in the first cluster against the limits; sentences name `filename`.
 * On success *h owns its strings. With `incomplete` the magic may be missing. */
int co_q2_header_read(struct block_node *file, const char *filename, bool incomplete,
	struct q2_header *h, struct error *err);
int co_q2_header_load_sector(struct q2_image *img); /* img->sector0, at open */
/* I7: writes sector 0 from img->h in one write; no barrier of its own. */
int co_q2_header_write(struct q2_image *img);
/* Barrier, sector 0, barrier: the new state is durable, or the old one stands. */
int co_q2_header_switch(struct q2_image *img);
/* Rewrites extensions and the backing name as well: new strings into unused bytes of the first
 * cluster < sector 0. */
int co_q2_header_write_all(struct q2_image *img, struct error *err);
/* Sets or clears DIRTY durably (no-op on version 2). */
int co_q2_set_dirty(struct q2_image *img, bool dirty);
/* A corruption was found at run time: sets the corrupt bit on disk (version 3), refuses further
 * writes, writes one trace line and calls the log hook. Returns -EUCLEAN. */
int co_q2_corrupt(struct q2_image *img, const char *fmt, ...) attr_printf(2, 3);
/* Before the first write of any kind: clears unknown autoclear bits and those whose data we would
 * make stale, durable. */
int co_q2_before_write(struct q2_image *img);

/* --- cache.c: slices of L2 tables and refcount blocks, within a byte budget --- */
struct q2_slice {
	struct q2_slice *hash_next;
	uint64_t off;  /* host offset of the slice in the file */
	uint32_t refs; /* holders never yield while they hold one */
	bool dirty, loading, used;
	uint64_t dirty_seq; /* when it became dirty */
	uint64_t gen; /* counts changes, so that a commit knows whether its copy is current */
	uint8_t *data; /* slice_size bytes, big-endian as on disk */
};

/* A copy of a dirty slice, on its way to disk. */
struct q2_copy {
	struct q2_slice *slice; /* stays in the cache while it is dirty */
	uint64_t off, gen;
	uint8_t *data;
};

/* slice_size: power of two; nslices: at least 2. `lock` guards slices and their content: map_lock
 * for the L2 cache, NULL: a lock of its own. */
int q2_cache_new(struct q2_image *img, uint32_t slice_size, uint32_t nslices, struct spin *lock,
	struct q2_cache **ret);
void q2_cache_free(struct q2_cache *c); /* NULL is fine; nothing is written */
struct spin *q2_cache_lock(struct q2_cache *c);
/* A cached slice with a reference, loaded when needed (may yield and evict; may commit). Content
 * is read and changed under the cache's lock, without yielding before q2_cache_put(). */
int co_q2_cache_get(struct q2_image *img, struct q2_cache *c, uint64_t off, struct q2_slice **ret);
/* Without yielding: NULL on a miss. The caller holds the cache's lock; takes no reference. */
struct q2_slice *q2_cache_peek(struct q2_cache *c, uint64_t off);
void q2_cache_put(struct q2_cache *c, struct q2_slice *s); /* takes the lock */
void q2_cache_mark_dirty(struct q2_cache *c, struct q2_slice *s); /* under the lock */
bool q2_cache_is_dirty(const struct q2_cache *c);
uint32_t q2_cache_slice_size(const struct q2_cache *c);
/* Forgets every clean, unreferenced slice: structural operations that wrote to disk directly. */
void q2_cache_drop(struct q2_image *img, struct q2_cache *c);
/* Forgets the clean slices of [off, off+len): the clusters get a new use. */
void q2_cache_drop_range(struct q2_cache *c, uint64_t off, uint64_t len);
/* The cache's clock: a slice that is dirty now has a dirty_seq of at most this. */
uint64_t q2_cache_dirty_seq(struct q2_cache *c);
/* Copies dirty slices that became dirty up to `seq`, as many as a bounded buffer holds: *ret_n of
 * them, sorted by offset, 0 when there are none. They stay dirty until co_q2_cache_write() has
 * written the copies. */
int q2_cache_copy_dirty(struct q2_cache *c, uint64_t seq, struct q2_copy **ret, uint32_t *ret_n);
void q2_copies_free(struct q2_copy *copies, uint32_t n);
int co_q2_cache_write(struct q2_image *img, struct q2_cache *c, struct q2_copy *copies, uint32_t n);
/* Writes every dirty slice in no particular order: the refcount cache. */
int co_q2_cache_writeback(struct q2_image *img, struct q2_cache *c);

/* --- map.c: guest offset to host extent --- */
enum q2_kind {
	Q2_UNALLOCATED,	 /* backing shows through */
	Q2_ZERO_PLAIN,	 /* reads zero, no host cluster */
	Q2_ZERO_ALLOC,	 /* reads zero, host cluster reserved */
	Q2_DATA,
	Q2_DATA_COMPRESSED,
};
struct q2_mapping {
	enum q2_kind kind;
	uint64_t len;	   /* bytes from the offset asked for, all of this kind, contiguous on
			      the host where there is a host_off */
	uint64_t host_off; /* of the first byte: DATA, ZERO_ALLOC, UNALLOCATED subclusters of a
			      cluster that exists; or the compressed data; 0: none */
	uint64_t entry;	   /* raw first L2 entry (host order) */
	uint64_t bitmap;   /* extended L2: its second word */
	bool copied;	   /* the L2 table and the cluster may be written in place */
};
/* What lies at off (len > 0 bytes at most). Yields only when a slice must be read. -EUCLEAN after
 * marking the image corrupt when a table makes no sense. */
int co_q2_map(struct q2_image *img, uint64_t off, uint64_t len, struct q2_mapping *ret);

enum q2_kind q2_entry_kind(const struct q2_image *img, uint64_t entry); /* not for extended L2 */
/* Extended L2: kind of subcluster `sub`, and how many from it on are of that kind. */
enum q2_kind q2_sub_kind(uint64_t entry, uint64_t bitmap, unsigned sub, unsigned *count);
bool q2_l1_entry_valid(const struct q2_image *img, uint64_t entry);
bool q2_l2_entry_valid(const struct q2_image *img, uint64_t entry, uint64_t bitmap);
uint64_t q2_l2_slice_offset(const struct q2_image *img, uint64_t table, uint64_t off);

/* --- refcount.c (the _locked forms under alloc_mutex) --- */
int co_q2_refcount_get(struct q2_image *img, uint64_t cluster, uint64_t *ret);
int co_q2_refcount_get_locked(struct q2_image *img, uint64_t cluster, uint64_t *ret);
/* Adds delta (+1, -1) to each of n clusters from host offset off; all or none. -EUCLEAN on
 * underflow, -EFBIG beyond the width. In the cache; durable by the next commit. Callers obey I2. */
int co_q2_refcount_add(struct q2_image *img, uint64_t off, uint64_t n, int delta);
/* Adds n to the count of the cluster at host offset off if it is not zero: -ENOENT when it is,
 * -EFBIG beyond the width. */
int co_q2_refcount_raise(struct q2_image *img, uint64_t off, uint64_t n);
/* The same for compressed clusters that join the host cluster of compressed_next. Atomic against
 * frees: -ENOENT when that was retired since the caller looked, for by now it may be another's. */
int co_q2_refcount_join(struct q2_image *img, uint64_t off, uint64_t n);
int co_q2_refcount_add_locked(struct q2_image *img, uint64_t off, uint64_t n, int delta);
/* Reads or writes refcount i of a block held in memory, any width. */
uint64_t q2_refcount_load(const void *block, uint64_t i, unsigned order);
void q2_refcount_store(void *block, uint64_t i, unsigned order, uint64_t value);
uint64_t q2_refcounts_per_slice(const struct q2_image *img);
int co_q2_refcount_slice(
	struct q2_image *img, uint64_t cluster, struct q2_slice **ret, uint64_t *first);
/* The end of the quarantine: takes one reference from n clusters; those that had only one are
 * punched before that when `punch`. */
int co_q2_release(struct q2_image *img, uint64_t off, uint64_t n, bool punch);

/* --- alloc.c --- */
/* n contiguous free clusters with refcount set to 1 (in the cache); grows the structures when
 * needed. *ret is the host offset. Checks the result against known metadata (overlap). */
int co_q2_alloc(struct q2_image *img, uint64_t n, uint64_t *ret);
/* 1 to n contiguous clusters, the first free ones. *fresh: they read as zeroes (never written). */
int co_q2_alloc_data(struct q2_image *img, uint64_t n, uint64_t *ret, uint64_t *got, bool *fresh);
/* As many of the n clusters as are free right at host offset `at`; *got may be 0. */
int co_q2_alloc_at(struct q2_image *img, uint64_t at, uint64_t n, uint64_t *got);
/* Gives clusters back that nothing ever referred to: no quarantine. */
void co_q2_alloc_undo(struct q2_image *img, uint64_t off, uint64_t n);

/* --- refcount-grow.c: new refcount blocks, a larger table; under alloc_mutex --- */
/* How many blocks must be made to count n clusters from `start` and, right behind, themselves. */
uint64_t q2_refblocks_missing(const struct q2_image *img, uint64_t start, uint64_t n);
/* Makes them. 2: the table had to grow instead; ask again. */
int co_q2_refblocks_new(struct q2_image *img, uint64_t start, uint64_t n, uint64_t blocks);

/* --- overlap.c: which clusters hold metadata --- */
enum q2_overlap_kind { Q2_OVERLAP_NONE, Q2_OVERLAP_L2, Q2_OVERLAP_REFBLOCK };
/* Collects the tables of a writable image at open. */
int q2_overlap_new(struct q2_image *img);
/* Made anew from the tables in memory; the image is quiesced. */
int q2_overlap_refill(struct q2_image *img);
void q2_overlap_free(struct q2_overlap *o);
/* Did the tables collected at open claim a cluster twice, or one of the header's tables? */
bool q2_overlap_conflict(const struct q2_image *img, uint64_t *ret);
/* A table of this kind starts to live (or dies) in the cluster at `off`. */
int q2_overlap_add(struct q2_image *img, uint64_t off, enum q2_overlap_kind kind);
void q2_overlap_del(struct q2_image *img, uint64_t off);
/* Does [off, off+len) touch the header, the L1 or refcount table, a snapshot's table, or a table
 * of another kind than `own`? For writes of data and tables and for the allocator's results; the
 * _locked form under map_lock. */
bool q2_overlaps(struct q2_image *img, uint64_t off, uint64_t len, enum q2_overlap_kind own);
bool q2_overlaps_locked(struct q2_image *img, uint64_t off, uint64_t len, enum q2_overlap_kind own);
/* The same as a guard: marks the image corrupt and returns -EUCLEAN. */
int co_q2_overlap_check(
	struct q2_image *img, uint64_t off, uint64_t len, enum q2_overlap_kind own);

/* --- free.c: the quarantine --- */
int q2_free_queue_new(struct q2_free_queue **ret);
void q2_free_queue_free(struct q2_free_queue *q);
/* The reference to these n clusters was removed in memory. Never yields; not under a spin lock.
 * -ENOMEM: they are leaked, which is harmless. The _punch forms also give the host space back when
 * discards are passed down (the image's pass_discard). */
int q2_free_clusters(struct q2_image *img, uint64_t off, uint64_t n);
int q2_free_clusters_punch(struct q2_image *img, uint64_t off, uint64_t n);
/* The same for what an L2 entry refers to, compressed or not; 0 when it refers to nothing. */
int q2_free_entry(struct q2_image *img, uint64_t entry);
int q2_free_entry_punch(struct q2_image *img, uint64_t entry);
/* Everything queued so far leaves the quarantine before it returns (commits as needed). The caller
 * is no request (holds no token). */
int co_q2_free_drain(struct q2_image *img);
bool q2_free_pending(struct q2_image *img);  /* anything in the quarantine? */
bool q2_free_unsealed(struct q2_image *img); /* anything that no commit has taken yet? */
/* For commit.c. */
void q2_free_seal(struct q2_image *img);
void q2_free_written(struct q2_image *img);
uint64_t q2_free_barrier_begin(struct q2_image *img);
void q2_free_barrier_end(struct q2_image *img, uint64_t number);
void co_q2_free_release(struct q2_image *img);

/* --- epoch.c: requests in flight --- */
int q2_epochs_new(struct q2_epochs **ret);
void q2_epochs_free(struct q2_epochs *e);
unsigned co_q2_request_enter(struct q2_image *img); /* waits while quiesced; returns a token */
void q2_request_leave(struct q2_image *img, unsigned token);
uint64_t q2_epoch_advance(struct q2_image *img); /* ends the current epoch; returns it */
uint64_t q2_epoch_oldest(struct q2_image *img);	 /* the first that is not over */
void co_q2_epoch_wait(struct q2_image *img, uint64_t epoch); /* until it is over */
/* Alone on the image: no request in flight, caches committed and empty, quarantine empty. On
 * failure it is not alone. */
int co_q2_quiesce_begin(struct q2_image *img);
void co_q2_quiesce_end(struct q2_image *img);

/* --- commit.c: the one writer of cached metadata --- */
/* Writes all metadata dirty at the call in the order of the theory above; with `durable` it ends
 * with a barrier. */
int co_q2_commit(struct q2_image *img, bool durable);
/* The refcount part alone: dirty slices and refcount table entries, in order. */
int co_q2_write_refcounts(struct q2_image *img);
/* A barrier of the image file (and lets the quarantine advance). */
int co_q2_barrier(struct q2_image *img);

/* --- inflight.c: requests that change L2 entries --- */
struct q2_alloc_range {
	struct list node;
	uint64_t start, end; /* guest bytes, whole clusters */
};
int q2_allocs_new(struct q2_allocs **ret);
void q2_allocs_free(struct q2_allocs *a);
/* Waits until no other request is between enter and leave on these clusters. Enter, then look at
 * the entries. r lives on the caller's stack until it leaves. */
void co_q2_alloc_enter(struct q2_image *img, struct q2_alloc_range *r, uint64_t off, uint64_t len);
void q2_alloc_leave(struct q2_image *img, struct q2_alloc_range *r);

/* --- l2.c: changing L2 tables --- */
#define Q2_L2_RUN 256u /* clusters worked on at once */
struct q2_l2_entry {
	uint64_t entry, bitmap; /* host order; bitmap only with extended L2 */
};
/* The table for guest offset off exists and may be changed. */
int co_q2_l2_table(struct q2_image *img, uint64_t off);
/* Clusters from off on whose entries lie in one slice, at most Q2_L2_RUN. */
uint64_t q2_l2_run_max(const struct q2_image *img, uint64_t off);
/* n entries of one slice; zeroes when there is no table. -EUCLEAN after marking the image corrupt
 * when one of them makes no sense. */
int co_q2_l2_load(struct q2_image *img, uint64_t off, uint64_t n, struct q2_l2_entry *ret);
/* In the cache. After co_q2_l2_table(), inside co_q2_alloc_enter(). */
int co_q2_l2_store(struct q2_image *img, uint64_t off, uint64_t n, const struct q2_l2_entry *e);
/* Links whole clusters whose data was written (compressed writing): for each guest cluster off[i]
 * (ascending) the L2 entry becomes entry[i], which is q2_compressed_entry() or `host offset |
 * Q2_COPIED` for a plain cluster (extended L2: all subclusters allocated). Makes new L2 tables,
 * dereferences what the old entries referred to, waits for allocating writes in flight on the same
 * clusters. In the cache, as every L2 change. */
int co_q2_link(struct q2_image *img, const uint64_t *off, const uint64_t *entry, unsigned n);

/* --- read.c, write.c, discard.c, extent.c: guest requests (driver methods) --- */
int co_q2_read(struct block_node *n, struct block_io *io);
int co_q2_write(struct block_node *n, struct block_io *io);
int co_q2_zero(struct block_node *n, struct block_io *io);
int co_q2_discard(struct block_node *n, struct block_io *io);
int co_q2_flush(struct block_node *n);
int co_q2_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret);
/* The same inside a request (the caller holds a token). Ranges may reach beyond the virtual size
 * (VM state) as far as the L1 table covers them. */
int co_q2_read_range(struct q2_image *img, uint64_t off, struct iov_slice buf);
int co_q2_write_range(struct q2_image *img, uint64_t off, struct iov_slice buf, uint32_t flags);
/* *ret: bytes from off on that are known to read as zeroes without looking at data. */
int co_q2_reads_zero(struct q2_image *img, uint64_t off, uint64_t len, uint64_t *ret);
/* preallocate.c: gives every cluster of [off, off+len) a host cluster without writing data, and the
 * file the length for them; FALLOC and FULL also make the file allocate space for what is new. */
int co_q2_preallocate(struct q2_image *img, uint64_t off, uint64_t len, enum block_prealloc mode,
	struct error *err);

/* --- fan.c: pieces of one request side by side --- */
struct q2_fan {
	struct q2_image *img;
	/* Does one piece: `off` is its guest offset, buf.len == m->len. */
	int (*co_piece)(struct q2_image *img, const struct q2_mapping *m, uint64_t off,
		struct iov_slice buf);
	int result; /* the first error */
	unsigned started;
	struct co_counter running;
};
/* Starts a piece; *f lives until co_q2_fan_wait() has returned. */
void co_q2_fan_add(
	struct q2_fan *f, const struct q2_mapping *m, uint64_t off, struct iov_slice buf);
int co_q2_fan_wait(struct q2_fan *f); /* 0 or the first error */

/* --- unpacked.c: decompressed clusters kept for small reads --- */
int q2_unpacked_new(struct q2_image *img);
void q2_unpacked_free(struct q2_unpacked *u);
/* Bytes [in, in + buf.len) of the cluster that the compressed `entry` describes. */
int co_q2_unpack(struct q2_image *img, uint64_t entry, uint64_t in, struct iov_slice buf);
void q2_unpacked_forget(struct q2_image *img, uint64_t off, uint64_t len); /* host range */

/* --- walk.c: bulk access to tables, past the caches (the image is quiesced) --- */
struct q2_table {
	uint64_t off;	/* of one cluster: an L2 table or a refcount block */
	uint64_t index; /* its place in the first table that lists it */
	int64_t refs;	/* times it is listed in all, or a change of that */
	int64_t active; /* ... by the active L1 table */
};
struct q2_tables {
	struct q2_table *v;
	size_t n, room;
};
int q2_tables_add(struct q2_tables *t, uint64_t off, uint64_t index, int64_t refs, int64_t active);
void q2_tables_merge(struct q2_tables *t); /* sorts by offset and adds up duplicates */
void q2_tables_free(struct q2_tables *t);

struct q2_changed {
	uint32_t from, to; /* bytes of the table that fn changed; from >= to: none */
};
static inline void q2_changed_add(struct q2_changed *c, uint32_t off, uint32_t len)
{
	c->from = MIN(c->from, off);
	c->to = MAX(c->to, off + len);
}
struct q2_walk {
	const struct q2_table *tables; /* sorted by offset, cluster aligned, inside the file */
	size_t n;
	bool write; /* write back what fn changed; no barrier */
	/* On workers, in parallel. A negative result ends the walk. */
	int (*fn)(void *arg, const struct q2_table *t, uint8_t *data, struct q2_changed *changed);
	/* Instead of fn for a table that cannot be read; NULL: that ends the walk. */
	int (*read_error)(void *arg, const struct q2_table *t, int error);
	void (*progress)(void *arg, size_t tables); /* NULL: none; in the calling ring */
	void *arg;
};
int co_q2_walk(struct q2_image *img, const struct q2_walk *w);

/* --- refs.c: a number and a flag for every host cluster, within a memory budget --- */
struct q2_refs {
	uint64_t lo, hi;   /* window of cluster indices; hi falls when memory runs out */
	uint64_t clusters; /* of the file */
	bool out_of_memory; /* the numbers are not to be trusted */
	struct spin lock, big_lock;
	struct q2_refs_chunk **hash, **sorted;
	size_t hash_size, nchunks, max_chunks, nsorted;
	struct big *big;
	size_t big_room, nbig;
};
struct q2_refs_cursor {
	struct q2_refs *refs;
	struct q2_refs_chunk *chunk; /* locked */
};
int q2_refs_init(struct q2_refs *r, uint64_t clusters, uint64_t memory);
void q2_refs_destroy(struct q2_refs *r);
/* Forgets all numbers and moves the window behind the last; false when that was the end. */
bool q2_refs_next_window(struct q2_refs *r);
void q2_refs_rewind(struct q2_refs *r); /* forgets all, window at the start */
/* Cursors: one a worker at a time, never held across a yield. Outside the window: ignored, 0. */
void q2_refs_add(struct q2_refs_cursor *cur, uint64_t cluster, int64_t n);
int64_t q2_refs_get(struct q2_refs_cursor *cur, uint64_t cluster);
void q2_refs_clear(struct q2_refs_cursor *cur, uint64_t cluster);
void q2_refs_set_flag(struct q2_refs_cursor *cur, uint64_t cluster, bool flag);
/* *ret_known: the cluster lies in the window. */
bool q2_refs_flag(struct q2_refs_cursor *cur, uint64_t cluster, bool *ret_known);
/* The slots of [cluster, cluster + n) as far as they lie in one chunk, and how many that is; *ret
 * is NULL where there are none (`create`: outside the window only). A slot is number * 2 + flag;
 * the number Q2_SLOT_BIG stands for one that q2_refs_get() tells. */
uint64_t q2_refs_slots(struct q2_refs_cursor *cur, uint64_t cluster, uint64_t n, bool create,
	int16_t **ret);
#define Q2_SLOT_BIG (-0x4000)
/* Adds refcount `value` to each of n clusters and sets their flags to value == 1. */
void q2_refs_load_run(struct q2_refs_cursor *cur, uint64_t cluster, uint64_t n, uint64_t value);
/* Adds to each of n clusters; do all of them that lie in the window have the flag expected? */
bool q2_refs_add_run(struct q2_refs_cursor *cur, uint64_t cluster, uint64_t n, int64_t add,
	bool expect_flag);
void q2_refs_cursor_end(struct q2_refs_cursor *cur);
/* Iterates over clusters with a number other than 0: after q2_refs_sort(), with *chunk and *cluster
 * from 0; add 1 to *cluster for the next. */
int q2_refs_sort(struct q2_refs *r);
bool q2_refs_next(struct q2_refs *r, size_t *chunk, uint64_t *cluster, int64_t *value);
/* The same by chunk: clusters [*first, *first + *n) may have numbers. */
bool q2_refs_next_chunk(const struct q2_refs *r, size_t *chunk, uint64_t *first, uint64_t *n);

/* --- tree.c: changes of refcounts for all that L1 tables reach --- */
struct q2_tree {
	struct q2_image *img;
	struct q2_tables
		tables; /* L2 tables; refs: change of their references; active: see below */
	struct q2_tables extra;	 /* clusters with a change of their own (L1 copies, old tables) */
	struct q2_refs refs;	 /* the changes; flag: the refcount has come down to 1 */
	bool collected;		 /* refs holds the changes of the window */
	struct q2_freed *freed;	 /* clusters that nothing refers to any more (tree.c) */
};
int q2_tree_init(struct q2_tree *t, struct q2_image *img);
void q2_tree_destroy(struct q2_tree *t);
/* The references of n L1 entries (host order) change by `delta`; `active`: their L2 tables belong
 * to the L1 table that is or becomes the active one, so that COPIED matters in them. -EUCLEAN for
 * entries that make no sense. */
int q2_tree_add_l1(struct q2_tree *t, const uint64_t *l1, uint64_t n, int delta, bool active);
int q2_tree_add_clusters(struct q2_tree *t, uint64_t off, uint64_t n, int delta);
/* What one L2 entry refers to. */
int q2_tree_add_entry(struct q2_tree *t, uint64_t entry, int delta);
/* What co_q2_tree_apply() does in a window. */
enum q2_tree_step {
	Q2_TREE_VERIFY,	 /* would any refcount leave its range? -EFBIG or -EUCLEAN */
	Q2_TREE_RAISE,	 /* changes that are positive in sum */
	Q2_TREE_LOWER,	 /* negative ones; remembers where the refcount becomes 1 */
	Q2_TREE_COPIED,	 /* after LOWER: lowers, barrier, sets COPIED where the refcount became 1 */
};
/* Applies the step to all; `clear_copied`: COPIED is cleared in tables marked active on the way.
 * LOWER and COPIED come when the removed references are durable (I2) and give host space back where
 * discards reach the file. No barrier at the end. */
int co_q2_tree_apply(struct q2_tree *t, enum q2_tree_step step, bool clear_copied);

/* --- codec.c: cluster codecs, pure --- */
struct q2_encoder;
/* One per thread; NULL: no memory. Levels: head of codec.c. */
struct q2_encoder *q2_encoder_new(enum q2_compression type, int level, uint32_t cluster_size);
void q2_encoder_free(struct q2_encoder *e); /* NULL is fine */
/* One cluster from src to dst (room for a cluster): 0 and *ret_len, 1 when it does not shrink, or a
 * negative errno. */
int q2_encode(struct q2_encoder *e, const void *src, void *dst, uint32_t *ret_len);
/* One whole cluster out of src (len bytes, may have trailing garbage): 0 or -EIO. Thread-safe. */
int q2_decompress(enum q2_compression type, const void *src, size_t len, void *dst,
	size_t cluster_size);

/* --- compress.c: compressed writing --- */
extern const struct block_compress_ops q2_compress_ops;
int co_q2_write_compressed(struct block_node *n, struct block_io *io);

/* --- layout.c: how many clusters the metadata takes --- */
struct q2_create_params {
	uint64_t size;
	uint32_t version, cluster_bits, refcount_order;
	uint8_t compression;
	bool extl2, lazy_refcounts, incomplete;
	enum block_prealloc prealloc;
	const char *backing_name, *backing_format; /* borrowed from the options; NULL: none */
};

/* Clusters by kind. */
struct q2_layout {
	uint64_t data, l2_tables, l1_clusters, refblocks, reftable;
	uint64_t metadata; /* all but data, with the header */
	uint64_t total;
};
/* With `full` as if every guest cluster were allocated, else without L2 tables and data. -EFBIG
 * when the L1 table would be too large. */
int q2_layout(const struct q2_create_params *p, bool full, struct q2_layout *ret);

/* --- create.c --- */
extern const struct conf_key q2_create_keys[];
/* Creation options, checked; `size` is the default of the option of that name, UINT64_MAX: none. */
int q2_create_parse(struct conf *opts, uint64_t size, struct q2_create_params *ret,
	struct error *err);
int co_q2_create(const struct block_create *c, struct error *err);
/* --- measure.c --- */
int co_q2_measure(struct conf *opts, struct block_node *src, uint64_t size,
	struct block_measure *ret, struct error *err);

/* --- info.c: what `info` shows; dump of metadata --- */
extern const struct block_image_ops q2_image_ops;

/* --- structure.c: the frame of structural operations --- */
int q2_structure_writable(const struct q2_image *img, struct error *err);
/* Alone on the image, nothing cached; with `dirty` DIRTY is durable. Every successful begin needs
 * an end, which takes the operation's result and returns the final one; `what` completes "cannot".
 */
int co_q2_structure_begin(struct q2_image *img, bool dirty, struct error *err);
int co_q2_structure_end(struct q2_image *img, int result, struct error *err, const char *what);
/* Drops and remakes what was derived from tables that were changed on disk. */
int co_q2_forget(struct q2_image *img);
uint64_t q2_clusters_for(const struct q2_image *img, uint64_t bytes);
/* Clusters for a table of `bytes`, their refcounts durable; *off is 0 for 0 bytes. */
int co_q2_alloc_table(struct q2_image *img, uint64_t bytes, uint64_t *off);
/* H[size, L1] with its barriers, on disk and in memory; on failure memory is as before. */
int co_q2_switch_l1(struct q2_image *img, uint64_t off, const uint64_t *l1, uint32_t entries,
	uint64_t size);
/* Copies of the tables in memory (host order). */
int co_q2_set_l1(struct q2_image *img, const uint64_t *l1, uint32_t n);
int co_q2_set_reftable(struct q2_image *img, const uint64_t *table, uint64_t n);
/* Cuts the file behind the last cluster with a refcount. */
int co_q2_trim_file(struct q2_image *img);

/* --- snapshot.c (table), snapshot-ops.c (create, apply, delete), snapshot-view.c (open) --- */
int co_q2_snapshots_load(struct q2_image *img, struct error *err);
void q2_snapshots_free(struct q2_image *img);
void q2_snapshot_entry_free(struct q2_snapshot_entry *s);
int q2_snapshot_find(const struct q2_image *img, const char *id_or_name); /* index or -ENOENT */
/* The L1 table of a snapshot in host order, l1_size entries; mem_free(). */
int co_q2_snapshot_l1(struct q2_image *img, const struct q2_snapshot_entry *s, uint64_t **ret,
	struct error *err);
int q2_snapshot_build_extra(struct q2_snapshot_entry *s); /* extra data from info */
uint64_t q2_snapshot_table_bytes(const struct q2_snapshot_entry *v, uint32_t n);
void q2_snapshot_table_encode(const struct q2_snapshot_entry *v, uint32_t n, uint8_t *buf);
int co_q2_snapshot_open(struct block_node *n, const char *id_or_name, struct block_node **ret,
	struct error *err);
extern const struct block_snapshot_ops q2_snapshot_ops;
extern const struct block_vmstate_ops q2_vmstate_ops;

/* --- resize.c --- */
int co_q2_resize(struct block_node *n, const struct block_resize *r, struct error *err);
/* At least n entries in the L1 table. */
int co_q2_grow_l1(struct q2_image *img, uint32_t n, struct error *err);
/* --- empty.c: drops all allocations (commit) --- */
int co_q2_make_empty(struct block_node *n, struct error *err);

/* --- check.c: the check and its passes --- */
extern const struct block_check_ops q2_check_ops;
/* The check of an image that is quiesced or just being opened. */
int co_q2_check_image(struct q2_image *img, struct block_check *c, struct error *err);
/* For the rw open of an image with DIRTY set: rebuilds refcounts, clears the bit. */
int co_q2_check_dirty(struct q2_image *img, struct error *err);

/* A wrong COPIED flag, reported when its refcount can be read. */
struct q2_copied_error {
	uint64_t entry, cluster, l1_index;
	bool l1;
};
#define Q2_MAX_COPIED_ERRORS 65536u /* kept for messages; all are counted */

struct q2_check {
	struct q2_image *img;
	struct block_check *c;
	uint64_t file_size, clusters; /* the file, in bytes and whole clusters */
	uint64_t *l1;		      /* the active table as on disk, host order */
	uint64_t *reftable;	      /* as on disk, host order */
	uint64_t reftable_entries;
	struct q2_tables l2, refblocks;
	struct q2_refs refs; /* per cluster: refcount minus references; flag: refcount is 1 */
	pthread_mutex_t lock;	      /* counters, messages and what follows */
	bool first_pass;	      /* report what does not depend on the window */
	bool bad_structure;	      /* refcount table or blocks cannot be repaired in place */
	bool unreadable;	      /* a table could not be read: its references are not known */
	bool fix_copied, may_set_copied; /* the pass that corrects COPIED flags */
	bool counting;		      /* for a rebuild: references only, silently */
	uint64_t refcount_errors;     /* corruptions that correct refcounts do away with */
	uint64_t highest_used;	      /* cluster index + 1 of the highest refcount */
	uint64_t copied_wrong, copied_fixed;
	uint64_t fixable;	      /* other errors that the pass over COPIED flags corrects */
	struct q2_copied_error *copied_errors;
	uint32_t ncopied_errors;
	uint8_t *block; /* refcount block `block_index`, for single look-ups */
	uint64_t block_index;
};
void q2_check_message(struct q2_check *ck, bool is_error, const char *fmt, ...) attr_printf(3, 4);
/* As q2_check_message(), counted as a corruption. */
void q2_check_error(struct q2_check *ck, const char *fmt, ...) attr_printf(2, 3);
/* The same for an error in refcounts or in the structures that hold them. */
void q2_check_refcount_error(struct q2_check *ck, const char *fmt, ...) attr_printf(2, 3);
int co_q2_check_load_refcounts(struct q2_check *ck); /* into refs, with flags */
/* Tells how far the pass over L2 tables has come (struct q2_walk's progress). */
void q2_check_progress(void *arg, size_t tables);
/* The refcount on disk, 0 where there is no block. */
int co_q2_check_refcount(struct q2_check *ck, uint64_t cluster, uint64_t *ret);

/* --- check-meta.c: tables gathered, metadata references --- */
int co_q2_check_gather(struct q2_check *ck, struct error *err); /* l1, reftable, l2, refblocks */
/* Counts n references less for each cluster of [off, off+len), reporting what lies beyond the end
 * of the file. */
void q2_check_count(struct q2_check *ck, struct q2_refs_cursor *cur, uint64_t off, uint64_t len,
	int64_t n);
int co_q2_check_metadata(struct q2_check *ck); /* counts header, tables, extensions */

/* --- check-l2.c: entries --- */
int co_q2_check_l2_tables(struct q2_check *ck);

/* --- repair.c --- */
int co_q2_repair_refcounts(struct q2_check *ck); /* in place, of the window in memory */
int co_q2_repair_copied(struct q2_check *ck);
int co_q2_repair_rebuild(struct q2_check *ck, struct error *err);
/* Writes a table of entries (host order), padded with zeroes to whole sectors; no barrier. */
int co_q2_write_entries(struct q2_image *img, uint64_t off, const uint64_t *entries, uint64_t n);

#endif
