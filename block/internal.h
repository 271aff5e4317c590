/* SPDX-License-Identifier: MIT */
/*
 * What the files of the block room share: the node's private half, in-flight tracking, dirty
 * bitmap hooks, alignment, locks. Prototypes stand under the file that defines them.
 */
#ifndef DROVER_BLOCK_INTERNAL_H
#define DROVER_BLOCK_INTERNAL_H

#include "block/block.h"
#include "base/mem.h"

#define BLOCK_SIZE_MAX  ((uint64_t)INT64_MAX & ~4095ULL)
#define BLOCK_PROBE_LEN 2048u

#define load_relaxed(p)     __atomic_load_n(p, __ATOMIC_RELAXED)
#define store_relaxed(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)

/* --- inflight.c --- */

struct block_dirty_link;

/* Counters that threads share as little as possible: each thread has its shard in every node. */
#define INFLIGHT_SHARDS 8u
struct inflight_shard {
	uint32_t reads, writes;   /* atomic: in flight and untracked */
	uint64_t write_gen;       /* atomic: writes that have completed */
	struct block_stats stats; /* relaxed atomics */
} __attribute__((aligned(64)));

/* See the Theory of Operation at the head of inflight.c. */
struct block_inflight {
	uint32_t gate;        /* atomic: serializing requests + drains * INFLIGHT_DRAIN */
	struct co_mutex flush_mutex; /* one flush of a store at a time */
	uint64_t flushed_gen;	     /* sum of write_gen that the last good flush covers; by it */
	struct block_dirty_link *dirty; /* attached dirty bitmaps; see dirty.c */
	struct spin lock;               /* guards what follows */
	struct list tracked;            /* struct block_tracked, in order of arrival */
	struct co_queue changed;        /* woken when something ends while the gate is shut */
	struct inflight_shard shards[INFLIGHT_SHARDS];
};

#define INFLIGHT_DRAIN 0x10000u

/* One tracked request, on its coroutine's stack. */
struct block_tracked {
	bool tracked, serializing;
	uint64_t off, len;
	struct list link;
};

int inflight_new(struct block_inflight **ret);
void inflight_free(struct block_inflight *f);
void co_inflight_wait_read(struct block_inflight *f);
void co_inflight_wait_write(
	struct block_inflight *f, struct block_tracked *t, uint64_t off, uint64_t len);
void inflight_wake(struct block_inflight *f);
void inflight_untrack(struct block_inflight *f, struct block_tracked *t);
/* Makes every write that overlaps [off, off+len) wait until inflight_untrack(), after those in
 * flight have ended. `nested`: inside a request of the same node that is counted already, so a
 * drain that waits for that one is not waited for. */
void co_inflight_serialize(
	struct block_inflight *f, struct block_tracked *t, uint64_t off, uint64_t len, bool nested);

/* The calling thread's shard, from 1; 0: none yet. Coroutines stay on their thread, so that a
 * request ends in the shard it began in. */
extern __thread unsigned inflight_thread __attribute__((tls_model("initial-exec")));
unsigned inflight_thread_new(void);

static inline struct inflight_shard *inflight_shard(struct block_inflight *f)
{
	unsigned i = inflight_thread;

	if (unlikely(!i))
		i = inflight_thread_new();
	return &f->shards[i - 1];
}

/* Writes that have completed so far, on all threads. */
uint64_t inflight_write_gen(const struct block_inflight *f);

static inline void co_inflight_begin_read(struct block_inflight *f)
{
	__atomic_fetch_add(&inflight_shard(f)->reads, 1, __ATOMIC_SEQ_CST);
	if (unlikely(__atomic_load_n(&f->gate, __ATOMIC_SEQ_CST) >= INFLIGHT_DRAIN))
		co_inflight_wait_read(f);
}

/* As co_inflight_begin_read(), or false when that would wait. */
static inline bool inflight_try_read(struct block_inflight *f)
{
	struct inflight_shard *s = inflight_shard(f);

	__atomic_fetch_add(&s->reads, 1, __ATOMIC_SEQ_CST);
	if (likely(__atomic_load_n(&f->gate, __ATOMIC_SEQ_CST) < INFLIGHT_DRAIN))
		return true;
	__atomic_fetch_sub(&s->reads, 1, __ATOMIC_SEQ_CST);
	inflight_wake(f);
	return false;
}

static inline void inflight_end_read(struct block_inflight *f)
{
	__atomic_fetch_sub(&inflight_shard(f)->reads, 1, __ATOMIC_SEQ_CST);
	if (unlikely(__atomic_load_n(&f->gate, __ATOMIC_SEQ_CST)))
		inflight_wake(f);
}

static inline void co_inflight_begin_write(
	struct block_inflight *f, struct block_tracked *t, uint64_t off, uint64_t len)
{
	t->tracked = false;
	__atomic_fetch_add(&inflight_shard(f)->writes, 1, __ATOMIC_SEQ_CST);
	if (unlikely(__atomic_load_n(&f->gate, __ATOMIC_SEQ_CST)))
		co_inflight_wait_write(f, t, off, len);
}

static inline void inflight_end_write(struct block_inflight *f, struct block_tracked *t)
{
	struct inflight_shard *s = inflight_shard(f);

	__atomic_fetch_add(&s->write_gen, 1, __ATOMIC_SEQ_CST);
	if (unlikely(t->tracked)) {
		inflight_untrack(f, t);
		return;
	}
	__atomic_fetch_sub(&s->writes, 1, __ATOMIC_SEQ_CST);
	if (unlikely(__atomic_load_n(&f->gate, __ATOMIC_SEQ_CST)))
		inflight_wake(f);
}

/* --- dirty.c --- */

/* Records a completed change in every attached bitmap; called by io.c when there is one. */
void block_dirty_note(struct block_node *n, uint64_t off, uint64_t len);

/* --- node.c --- */

enum block_werror { BLOCK_WERROR_REPORT, BLOCK_WERROR_STOP, BLOCK_WERROR_ENOSPC };

struct block_chain;

/* The public node with what only this room sees behind it. */
struct node {
	struct block_node pub; /* first */
	uint32_t depth;        /* layers above, through backing links */
	/* the backing file asked for by co_open, opened after it has returned */
	char *backing_name, *backing_format;
	bool backing_wanted;
	struct block_chain *chain; /* atomic; what lies where below; see chain.c */
	/* write-error policy; see werror.c */
	enum block_werror werror;
	struct spin werror_lock;
	bool werror_give_up;
	uint32_t werror_parked;
	struct co_queue werror_waiters;
};

static inline struct node *node_of(const struct block_node *n)
{
	return container_of(n, struct node, pub);
}

/* As co_block_open_on() with the whole spec to keep beside the options that drv may read; the
 * backing file is not opened yet. Takes the reference to `file`, also on failure. */
int co_node_open_on(const struct block_driver *drv, struct block_node *file,
	const struct conf *spec, struct conf *opts, const struct block_open_opts *o,
	struct block_node **ret, struct error *err);
/* The best format for these first bytes; NULL when no driver knows them. */
const struct block_driver *block_probe(const void *head, size_t n);

/* --- foreign.c --- */

/* The name of a format that is known but not read, by its first bytes; NULL: none. */
const char *block_foreign(const void *head, size_t n);

/* --- open.c --- */

/* Opens the backing files below top, layer by layer. */
int co_open_chain(struct block_node *top, struct error *err);
/* What the child of a node opened with `o` is opened with. */
void block_child_opts(const struct block_driver *drv, const struct block_open_opts *o,
	enum block_role role, struct block_open_opts *ret);
/* Lays the options that the node's spec gives it over *o, which it is to be reopened with. */
int block_own_opts(const struct block_node *n, struct block_open_opts *o, struct error *err);
/* Sets `driver` (and the name it takes) in a spec that has only a `filename`. */
int block_name_driver(struct conf *spec, struct error *err);
/* Is name of the form proto:..., with a colon before the first slash? Returns the prefix length. */
size_t block_name_protocol(const char *name);

/* --- align.c --- */

/* Requests that break the driver's alignment, buffer or size rules, inside the node's range. A
 * write holds its serialization already. */
int co_align_read(struct block_node *n, struct block_io *io);
int co_align_write(struct block_node *n, struct block_io *io);

static inline bool align_fits(const struct block_node *n, const struct block_io *io)
{
	const struct block_caps *c = &n->caps;

	return likely(!((io->off | io->len) & (c->align - 1))) &&
		(!c->max_io || io->len <= c->max_io) &&
		(!c->max_iov || io->buf.niov <= c->max_iov) &&
		(c->buf_align <= 1 || iov_aligned(io->buf, c->buf_align));
}

/* --- chain.c --- */

void block_chain_free(struct block_chain *c); /* NULL is fine */
/* A child, a mode or a size has changed: what is remembered about chains is void. */
void block_graph_changed(void);

/* --- io.c --- */

/* A slice of len zero bytes, made of one shared page run; iov has room for ZERO_IOV entries. */
#define ZERO_IOV  16u
#define ZERO_SPAN (64 * KiB)
struct iov_slice block_zero_slice(struct iovec iov[ZERO_IOV], uint64_t len);
/* Raises the node's size after growth by a write; any ring. */
void block_grow(struct block_node *n, uint64_t end);

/* --- werror.c --- */

/* After a failed write: true when it is to be tried again. */
bool co_werror_again(struct block_node *n, int r);
/* --- lock.c --- */

/* Takes the image locks of `perm` held and `shared` allowed on an open descriptor, replacing those
 * in `held` (updated). -EAGAIN with a sentence that says who holds the file, as far as known. */
struct block_lock {
	uint32_t perm, unshared; /* bytes locked now */
};
int block_lock_set(int fd, const char *name, struct block_lock *held, uint32_t perm,
	uint32_t shared, struct error *err);
/* Drops all of them at once. Closing the descriptor would do so only when nothing in the kernel
 * holds the file any more, which a finished request of the ring may do for a moment. */
void block_lock_drop(int fd, struct block_lock *held);

#endif
