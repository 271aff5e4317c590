/* SPDX-License-Identifier: MIT */
/*
 * Requests in flight on a node: drain, and serialization of overlapping requests where needed.
 *
 * Theory of Operation
 *
 * Guests may overlap requests and get either result, so most requests need no order. Two cases do:
 * a read-modify-write of a partly covered block, and copy-on-read, must not have a write between
 * their read and their write. They are called serializing.
 *
 * As long as nobody serializes, a request only counts itself: `reads` or `writes` goes up in its
 * thread's shard, `gate` is read and found zero, and at the end the counter goes down. No lock, no
 * list, nothing recorded about its range, and no cache line that threads fight for.
 *
 * A serializing request adds 1 to `gate`. From then on new writes see a shut gate, take their count
 * back, and enter `tracked` with their range instead; those that came before are known only by
 * number, so the serializing request waits until `writes` is 0 in all shards. Then it waits for the
 * overlapping requests that stand before it in `tracked`, and every overlapping request behind it
 * waits for it.
 *
 * A drain adds INFLIGHT_DRAIN to `gate`: new requests of all kinds wait, and the drain waits until
 * the counters of all shards are 0 and `tracked` is empty.
 *
 * The counters and `gate` are accessed sequentially consistent: a request writes its counter and
 * then reads `gate`; whoever shuts the gate writes `gate` and then reads the counters. So at least
 * one of the two sees the other, at the beginning of a request and at its end. That holds shard by
 * shard, so shards may be read one after another: with the gate shut none of them rises for good.
 *
 * Invariants
 * N1  A request is counted in exactly one of reads, writes, tracked from begin to end.
 * N2  While gate is not 0, `writes` only falls; while it is >= INFLIGHT_DRAIN, `reads` does too
 *     (but for the moment between counting and taking the count back).
 * N3  A request waits only for requests that stand before it in `tracked` or were counted before
 *     the gate was shut. So no two wait for each other.
 * N4  A tracked request enters `tracked` only when no drain is on (nested ones excepted), so a
 *     drain waits for a finite set.
 * N5  Whoever ends while the gate is shut wakes `changed` under the lock after its count has
 *     fallen; a waiter checks its condition under the same lock.
 * N6  The caller of a request holds a reference to the node until the request has returned, so the
 *     end of a request may touch this structure after its count has fallen.
 */
#include "block/internal.h"

int inflight_new(struct block_inflight **ret)
{
	struct block_inflight *f = mem_aligned(64, align_up(sizeof(*f), 64));

	if (!f)
		return -ENOMEM;
	memset(f, 0, sizeof(*f));
	list_init(&f->tracked);
	*ret = f;
	return 0;
}

void inflight_free(struct block_inflight *f)
{
	mem_free(f);
}

__thread unsigned inflight_thread __attribute__((tls_model("initial-exec")));

unsigned inflight_thread_new(void)
{
	static unsigned next;

	inflight_thread = 1 + __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % INFLIGHT_SHARDS;
	return inflight_thread;
}

uint64_t inflight_write_gen(const struct block_inflight *f)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < INFLIGHT_SHARDS; i++)
		sum += __atomic_load_n(&f->shards[i].write_gen, __ATOMIC_SEQ_CST);
	return sum;
}

void inflight_wake(struct block_inflight *f)
{
	spin_lock(&f->lock);
	co_queue_wake_all(&f->changed);
	spin_unlock(&f->lock);
}

static uint32_t gate(const struct block_inflight *f)
{
	return __atomic_load_n(&f->gate, __ATOMIC_SEQ_CST);
}

static bool any_writes(const struct block_inflight *f)
{
	for (unsigned i = 0; i < INFLIGHT_SHARDS; i++)
		if (__atomic_load_n(&f->shards[i].writes, __ATOMIC_SEQ_CST))
			return true;
	return false;
}

static bool any_reads(const struct block_inflight *f)
{
	for (unsigned i = 0; i < INFLIGHT_SHARDS; i++)
		if (__atomic_load_n(&f->shards[i].reads, __ATOMIC_SEQ_CST))
			return true;
	return false;
}

/* Waits on `changed` and has the lock again afterwards. */
static void co_wait_changed(struct block_inflight *f)
{
	co_queue_wait(&f->changed, &f->lock);
	spin_lock(&f->lock);
}

/* Slow half of beginning a read: a drain is on. */
void co_inflight_wait_read(struct block_inflight *f)
{
	for (;;) {
		__atomic_fetch_sub(&inflight_shard(f)->reads, 1, __ATOMIC_SEQ_CST);
		spin_lock(&f->lock);
		co_queue_wake_all(&f->changed);
		while (gate(f) >= INFLIGHT_DRAIN)
			co_wait_changed(f);
		__atomic_fetch_add(&inflight_shard(f)->reads, 1, __ATOMIC_SEQ_CST);
		spin_unlock(&f->lock);
		if (gate(f) < INFLIGHT_DRAIN)
			return;
	}
}

static bool must_wait(const struct block_tracked *t, const struct block_tracked *earlier)
{
	return (t->serializing || earlier->serializing) &&
		ranges_overlap(t->off, t->len, earlier->off, earlier->len);
}

/* Enters t into the list and waits for its turn; the lock is held before and after. */
static void co_track(struct block_inflight *f, struct block_tracked *t)
{
	struct block_tracked *e;
	bool wait;

	list_add_tail(&f->tracked, &t->link);
	t->tracked = true;
	do {
		wait = false;
		list_for_each(e, &f->tracked, link)
		{
			if (e == t)
				break;
			if (must_wait(t, e)) {
				wait = true;
				co_wait_changed(f);
				break;
			}
		}
	} while (wait);
}

/* Slow half of beginning a write: somebody serializes, or a drain is on. */
void co_inflight_wait_write(
	struct block_inflight *f, struct block_tracked *t, uint64_t off, uint64_t len)
{
	t->off = off;
	t->len = len;
	t->serializing = false;
	__atomic_fetch_sub(&inflight_shard(f)->writes, 1, __ATOMIC_SEQ_CST);
	spin_lock(&f->lock);
	co_queue_wake_all(&f->changed);
	while (gate(f) >= INFLIGHT_DRAIN)
		co_wait_changed(f);
	co_track(f, t);
	spin_unlock(&f->lock);
}

void co_inflight_serialize(
	struct block_inflight *f, struct block_tracked *t, uint64_t off, uint64_t len, bool nested)
{
	t->off = off;
	t->len = len;
	t->serializing = true;
	spin_lock(&f->lock);
	while (!nested && gate(f) >= INFLIGHT_DRAIN)
		co_wait_changed(f);
	__atomic_fetch_add(&f->gate, 1, __ATOMIC_SEQ_CST);
	co_track(f, t);
	while (any_writes(f))
		co_wait_changed(f);
	spin_unlock(&f->lock);
}

void inflight_untrack(struct block_inflight *f, struct block_tracked *t)
{
	spin_lock(&f->lock);
	list_del(&t->link);
	t->tracked = false;
	if (t->serializing)
		__atomic_fetch_sub(&f->gate, 1, __ATOMIC_SEQ_CST);
	co_queue_wake_all(&f->changed);
	spin_unlock(&f->lock);
}

void co_block_drain_begin(struct block_node *n)
{
	struct block_inflight *f = n->inflight;

	spin_lock(&f->lock);
	__atomic_fetch_add(&f->gate, INFLIGHT_DRAIN, __ATOMIC_SEQ_CST);
	while (any_reads(f) || any_writes(f) || !list_empty(&f->tracked))
		co_wait_changed(f);
	spin_unlock(&f->lock);
}

void co_block_drain_end(struct block_node *n)
{
	struct block_inflight *f = n->inflight;

	spin_lock(&f->lock);
	__atomic_fetch_sub(&f->gate, INFLIGHT_DRAIN, __ATOMIC_SEQ_CST);
	co_queue_wake_all(&f->changed);
	spin_unlock(&f->lock);
}
