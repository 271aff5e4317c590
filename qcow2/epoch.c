/* SPDX-License-Identifier: MIT */
/*
 * Request epochs: knowing when every request that may use an old mapping has ended.
 *
 * Theory of operation: time is cut into epochs, which q2_epoch_advance() ends (at every commit that
 * has clusters for the quarantine). A request counts itself into the current epoch when it enters
 * and out of it when it leaves; no lock is taken. An epoch is over when it is not the current one
 * and its counter is zero; `oldest` is the first that is not over. A mapping dropped before epoch
 * e ended can only be in use by requests of epochs <= e: once oldest > e, nobody uses it (I3).
 * Counters are reused in a ring of SLOTS, so an epoch may begin only when the one that used its
 * counter before is over.
 *
 * Quiescing stops new requests at the door and waits until all counters are zero.
 */
#include "base/mem.h"
#include "base/sync.h"
#include "base/trace.h"
#include "qcow2/qcow2.h"

#define SLOTS 64u

struct q2_epochs {
	uint64_t current;   /* atomic */
	uint64_t oldest;    /* guarded by lock */
	uint32_t quiescing; /* atomic; counts, guarded by lock for changes */
	struct spin lock;
	struct co_queue door;    /* requests that wait for the end of quiescing */
	struct co_queue drained; /* those who wait for requests to leave */
	uint32_t watchers;       /* atomic: leaving requests look at `drained` */
	struct co_mutex alone;   /* one quiescer at a time */
	struct {
		uint64_t n; /* atomic */
		char pad[56];
	} count[SLOTS];
};

int q2_epochs_new(struct q2_epochs **ret)
{
	*ret = mem_zalloc(sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

void q2_epochs_free(struct q2_epochs *e)
{
	mem_free(e);
}

static void leave(struct q2_epochs *e, unsigned token)
{
	if (__atomic_sub_fetch(&e->count[token].n, 1, __ATOMIC_SEQ_CST))
		return;
	if (likely(!__atomic_load_n(&e->watchers, __ATOMIC_SEQ_CST)))
		return;
	spin_lock(&e->lock);
	co_queue_wake_all(&e->drained);
	spin_unlock(&e->lock);
}

void q2_request_leave(struct q2_image *img, unsigned token)
{
	leave(img->epochs, token);
}

unsigned co_q2_request_enter(struct q2_image *img)
{
	struct q2_epochs *e = img->epochs;

	for (;;) {
		uint64_t now = __atomic_load_n(&e->current, __ATOMIC_SEQ_CST);
		unsigned token = now % SLOTS;

		__atomic_add_fetch(&e->count[token].n, 1, __ATOMIC_SEQ_CST);
		if (likely(__atomic_load_n(&e->current, __ATOMIC_SEQ_CST) == now &&
			    !__atomic_load_n(&e->quiescing, __ATOMIC_SEQ_CST)))
			return token;
		leave(e, token);
		spin_lock(&e->lock);
		if (e->quiescing)
			co_queue_wait(&e->door, &e->lock);
		else
			spin_unlock(&e->lock);
	}
}

/* Under the lock. */
static void oldest_advance(struct q2_epochs *e)
{
	while (e->oldest < e->current &&
		!__atomic_load_n(&e->count[e->oldest % SLOTS].n, __ATOMIC_SEQ_CST))
		e->oldest++;
}

uint64_t q2_epoch_advance(struct q2_image *img)
{
	struct q2_epochs *e = img->epochs;
	uint64_t ended;

	spin_lock(&e->lock);
	oldest_advance(e);
	ended = e->current;
	/* All counters in use: what is dropped now shares the epoch with what comes. */
	if (e->current + 1 < e->oldest + SLOTS)
		__atomic_store_n(&e->current, e->current + 1, __ATOMIC_SEQ_CST);
	spin_unlock(&e->lock);
	return ended;
}

uint64_t q2_epoch_oldest(struct q2_image *img)
{
	struct q2_epochs *e = img->epochs;
	uint64_t oldest;

	spin_lock(&e->lock);
	oldest_advance(e);
	oldest = e->oldest;
	spin_unlock(&e->lock);
	return oldest;
}

static bool all_out(struct q2_epochs *e)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (__atomic_load_n(&e->count[i].n, __ATOMIC_SEQ_CST))
			return false;
	return true;
}

void co_q2_epoch_wait(struct q2_image *img, uint64_t epoch)
{
	struct q2_epochs *e = img->epochs;

	spin_lock(&e->lock);
	__atomic_add_fetch(&e->watchers, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		oldest_advance(e);
		/* An epoch that could not be ended for want of counters ends here. */
		if (e->oldest == epoch && e->current == epoch)
			__atomic_store_n(&e->current, epoch + 1, __ATOMIC_SEQ_CST);
		oldest_advance(e);
		if (e->oldest > epoch)
			break;
		co_queue_wait(&e->drained, &e->lock);
		spin_lock(&e->lock);
	}
	__atomic_sub_fetch(&e->watchers, 1, __ATOMIC_SEQ_CST);
	spin_unlock(&e->lock);
}

static void quiesce_release(struct q2_epochs *e)
{
	spin_lock(&e->lock);
	__atomic_store_n(&e->quiescing, 0, __ATOMIC_SEQ_CST);
	co_queue_wake_all(&e->door);
	spin_unlock(&e->lock);
	co_mutex_unlock(&e->alone);
}

int co_q2_quiesce_begin(struct q2_image *img)
{
	struct q2_epochs *e = img->epochs;
	int r;

	co_mutex_lock(&e->alone);
	spin_lock(&e->lock);
	__atomic_store_n(&e->quiescing, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&e->watchers, 1, __ATOMIC_SEQ_CST);
	while (!all_out(e)) {
		co_queue_wait(&e->drained, &e->lock);
		spin_lock(&e->lock);
	}
	__atomic_sub_fetch(&e->watchers, 1, __ATOMIC_SEQ_CST);
	spin_unlock(&e->lock);
	trace("q2_quiesce_begin", "%s", img->node->filename);
	r = img->writable ? co_q2_free_drain(img) : 0;
	/* With lazy refcounts commits leave them in the cache. */
	if (r == 0 && img->writable && q2_cache_is_dirty(img->ref_cache)) {
		r = co_q2_write_refcounts(img);
		if (r == 0)
			r = co_q2_barrier(img);
	}
	if (r < 0) {
		quiesce_release(e);
		return r;
	}
	q2_cache_drop(img, img->l2_cache);
	q2_cache_drop(img, img->ref_cache);
	return 0;
}

void co_q2_quiesce_end(struct q2_image *img)
{
	trace("q2_quiesce_end", "%s", img->node->filename);
	quiesce_release(img->epochs);
}
