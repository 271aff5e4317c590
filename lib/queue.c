/* SPDX-License-Identifier: MIT */
/*
 * Queues of the public API: requests of one thread to one image.
 *
 * Theory of Operation
 *
 * A slot goes free -> taken [get] -> prepared [slot_*] -> running [submit, reap] -> done -> free
 * [reap]. Each running slot is a coroutine from the thread's pool of stacks; everything else it
 * needs is in the slot, so nothing is allocated once the pool is warm. Many requests end without
 * a yield (page cache, metadata in memory) and are done when submit returns.
 *
 * The ring belongs to the thread and is shared by its queues; the first makes it and the last frees
 * it. Results that exist but are not taken make the ring's descriptor readable, because somebody
 * may wait for it alone: after every call that leaves some behind the ring is kicked.
 *
 * Invariants:
 * Q1  inflight counts running slots; done + inflight + prepared + taken + free are all slots.
 * Q2  With a descriptor given out and results waiting, the ring has a kick pending.
 */
#include "lib/lib.h"
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"

#include <time.h>

#define SLOTS_DEFAULT 128u
#define SLOTS_MAX     4096u
#define TURN_EVERY    32u /* reaps that found all they wanted */

enum slot_op { SLOT_NONE, SLOT_READ, SLOT_WRITE, SLOT_ZERO, SLOT_DISCARD, SLOT_FLUSH };

struct drover_slot {
	struct drover_slot *next;
	struct drover_queue *q;
	enum slot_op op;
	uint32_t flags;
	uint64_t off, len;
	struct iov_slice buf;
	struct iovec one;
	void *user;
	int result;
};

struct slot_fifo {
	struct drover_slot *head, **tail;
};

struct drover_queue {
	struct drover_image *img;
	struct block_node *node;
	struct ring *ring;
	struct drover_slot *free;
	struct slot_fifo prepared, done;
	uint32_t inflight, ndone;
	uint32_t lazy_reaps; /* in a row without a turn of the ring */
	bool fd_used;
	struct drover_slot slots[];
};

/* The calling thread's ring as far as queues use it. */
static __thread struct {
	unsigned users;
	bool ours;
} ring_use;

static void fifo_init(struct slot_fifo *f)
{
	f->head = NULL;
	f->tail = &f->head;
}

static void fifo_push(struct slot_fifo *f, struct drover_slot *s)
{
	s->next = NULL;
	*f->tail = s;
	f->tail = &s->next;
}

static struct drover_slot *fifo_pop(struct slot_fifo *f)
{
	struct drover_slot *s = f->head;

	f->head = s->next;
	if (!f->head)
		f->tail = &f->head;
	return s;
}

/* --- life ---------------------------------------------------------------------------------- */

static int ring_hold(uint32_t aio, struct ring **ret, struct error *err)
{
	static const enum ring_kind kinds[] = {
		[DROVER_AIO_DEFAULT] = RING_DEFAULT,
		[DROVER_AIO_IO_URING] = RING_IO_URING,
		[DROVER_AIO_THREADS] = RING_THREADS,
	};
	struct ring_opts opts = {.kind = kinds[aio]};
	struct ring *ring = ring_self();
	int r;

	if (!ring) {
		r = ring_new(&opts, &ring, err);
		if (r)
			return r;
		ring_use.ours = true;
	}
	ring_use.users++;
	*ret = ring;
	return 0;
}

static void ring_release(struct ring *ring)
{
	if (--ring_use.users || !ring_use.ours)
		return;
	ring_use.ours = false;
	ring_free(ring);
}

int drover_queue_new(struct drover_image *img, const struct drover_queue_opts *opts,
	struct drover_queue **ret, struct drover_error *err)
{
	struct drover_queue_opts o;
	struct drover_queue *q;
	struct error e = ERROR_INIT;
	int r = lib_struct_in(&o, sizeof(o), sizeof(o), opts);

	if (!o.slots)
		o.slots = SLOTS_DEFAULT;
	if (r || !img || o.slots > SLOTS_MAX || o.aio > DROVER_AIO_THREADS || o.reserved)
		return lib_error_text(err, r ? r : -EINVAL,
			"drover_queue_new() was given options that this library does not know");
	q = mem_zalloc(sizeof(*q) + o.slots * sizeof(q->slots[0]));
	if (!q)
		return lib_error_text(err, -ENOMEM, "Out of memory");
	r = ring_hold(o.aio, &q->ring, &e);
	if (r) {
		mem_free(q);
		return lib_error(err, r, &e);
	}
	q->img = img;
	q->node = img->node;
	fifo_init(&q->prepared);
	fifo_init(&q->done);
	for (uint32_t i = o.slots; i-- > 0;) {
		q->slots[i].q = q;
		q->slots[i].next = q->free;
		q->free = &q->slots[i];
	}
	image_use(img);
	*ret = q;
	return 0;
}

void drover_queue_free(struct drover_queue *q)
{
	if (!q)
		return;
	while (q->inflight)
		ring_turn(q->ring, -1);
	ring_release(q->ring);
	image_unuse(q->img);
	mem_free(q);
}

/* --- slots --------------------------------------------------------------------------------- */

struct drover_slot *drover_queue_get(struct drover_queue *q)
{
	struct drover_slot *s = q->free;

	if (unlikely(!s))
		return NULL;
	q->free = s->next;
	s->op = SLOT_NONE;
	return s;
}

void drover_slot_put(struct drover_slot *s)
{
	s->next = s->q->free;
	s->q->free = s;
}

static void slot_prepare(struct drover_slot *s, enum slot_op op, uint64_t off, uint64_t len,
	uint32_t flags, void *user)
{
	s->op = op;
	s->off = off;
	s->len = len;
	s->flags = flags;
	s->user = user;
	s->result = 0;
	fifo_push(&s->q->prepared, s);
}

void drover_slot_read(struct drover_slot *s, uint64_t off, void *buf, size_t len, void *user)
{
	s->buf = iov_buf(&s->one, buf, len);
	slot_prepare(s, SLOT_READ, off, len, 0, user);
}

void drover_slot_write(struct drover_slot *s, uint64_t off, const void *buf, size_t len,
	uint32_t flags, void *user)
{
	s->buf = iov_buf(&s->one, (void *)buf, len);
	slot_prepare(s, SLOT_WRITE, off, len, flags, user);
}

static void slot_vector(struct drover_slot *s, enum slot_op op, uint64_t off,
	const struct iovec *iov, uint32_t niov, uint32_t flags, void *user)
{
	size_t len = 0;
	bool bad = niov > IOV_MAX_SEGMENTS;

	for (uint32_t i = 0; i < niov && !bad; i++)
		bad = __builtin_add_overflow(len, iov[i].iov_len, &len);
	s->buf = (struct iov_slice){iov, niov, 0, len};
	slot_prepare(s, op, off, len, flags, user);
	if (bad)
		s->result = -EINVAL;
}

void drover_slot_readv(
	struct drover_slot *s, uint64_t off, const struct iovec *iov, uint32_t niov, void *user)
{
	slot_vector(s, SLOT_READ, off, iov, niov, 0, user);
}

void drover_slot_writev(struct drover_slot *s, uint64_t off, const struct iovec *iov,
	uint32_t niov, uint32_t flags, void *user)
{
	slot_vector(s, SLOT_WRITE, off, iov, niov, flags, user);
}

void drover_slot_zero(
	struct drover_slot *s, uint64_t off, uint64_t len, uint32_t flags, void *user)
{
	slot_prepare(s, SLOT_ZERO, off, len, flags, user);
}

void drover_slot_discard(struct drover_slot *s, uint64_t off, uint64_t len, void *user)
{
	slot_prepare(s, SLOT_DISCARD, off, len, 0, user);
}

void drover_slot_flush(struct drover_slot *s, void *user)
{
	slot_prepare(s, SLOT_FLUSH, 0, 0, 0, user);
}

/* --- running ------------------------------------------------------------------------------- */

_Static_assert((int)DROVER_IO_FUA == (int)BLOCK_IO_FUA, "flags go through as they are");
_Static_assert((int)DROVER_IO_UNMAP == (int)BLOCK_IO_UNMAP, "flags go through as they are");
_Static_assert((int)DROVER_IO_NO_FALLBACK == (int)BLOCK_IO_NO_FALLBACK,
	"flags go through as they are");

static int co_slot_run(struct drover_slot *s)
{
	struct block_node *n = s->q->node;
	const uint32_t zero_flags = DROVER_IO_FUA | DROVER_IO_UNMAP | DROVER_IO_NO_FALLBACK;

	if (unlikely(s->result < 0))
		return s->result;
	switch (s->op) {
	case SLOT_READ:
		return co_block_read(n, s->off, s->buf, 0);
	case SLOT_WRITE:
		if (s->flags & ~(uint32_t)DROVER_IO_FUA)
			return -EINVAL;
		return co_block_write(n, s->off, s->buf, s->flags);
	case SLOT_ZERO:
		if (s->flags & ~zero_flags)
			return -EINVAL;
		return co_block_zero(n, s->off, s->len, s->flags);
	case SLOT_DISCARD:
		return co_block_discard(n, s->off, s->len, 0);
	case SLOT_FLUSH:
		return co_block_flush(n);
	default:
		return -EINVAL;
	}
}

static void slot_done(struct drover_slot *s, int result)
{
	struct drover_queue *q = s->q;

	s->result = result;
	q->inflight--;
	q->ndone++;
	fifo_push(&q->done, s);
}

static void slot_main(void *arg)
{
	struct drover_slot *s = arg;

	slot_done(s, co_slot_run(s));
}

static int queue_start(struct drover_queue *q)
{
	int n = 0;

	while (q->prepared.head) {
		struct drover_slot *s = fifo_pop(&q->prepared);

		q->inflight++;
		n++;
		if (unlikely(co_start(slot_main, s) < 0))
			slot_done(s, -ENOMEM);
	}
	return n;
}

/* Keeps Q2. */
static void queue_tell(struct drover_queue *q)
{
	if (q->fd_used && q->ndone)
		ring_kick(q->ring);
}

int drover_queue_submit(struct drover_queue *q)
{
	int n = queue_start(q);

	if (q->inflight)
		ring_turn(q->ring, 0);
	queue_tell(q);
	return n;
}

static int64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* Turns the ring until `min` results are there or the time is over. */
static int queue_wait(struct drover_queue *q, uint32_t min, int64_t timeout_ns)
{
	int64_t deadline = timeout_ns > 0 ? clock_ns() : 0, left = timeout_ns;
	int r;

	if (timeout_ns > 0)
		deadline = timeout_ns > INT64_MAX - deadline ? INT64_MAX : deadline + timeout_ns;
	q->lazy_reaps = 0;
	do {
		r = ring_turn(q->ring, q->ndone >= min ? 0 : left);
		if (r < 0)
			return r;
		if (timeout_ns > 0) {
			left = deadline - clock_ns();
			if (left < 0)
				left = 0;
		}
	} while (q->ndone < min && left);
	return 0;
}

int drover_queue_reap(struct drover_queue *q, struct drover_result *ret, uint32_t min,
	uint32_t max, int64_t timeout_ns)
{
	uint32_t n = 0;
	int r;

	queue_start(q);
	min = MIN(min, max);
	min = MIN(min, q->inflight + q->ndone);
	/* All there already: the ring is turned now and then for whoever else uses it. */
	if (q->inflight || q->fd_used || ++q->lazy_reaps >= TURN_EVERY) {
		r = queue_wait(q, min, timeout_ns);
		if (r < 0)
			return r;
	}
	while (n < max && q->ndone) {
		struct drover_slot *s = fifo_pop(&q->done);

		q->ndone--;
		ret[n++] = (struct drover_result){.user = s->user, .result = s->result};
		s->next = q->free;
		q->free = s;
	}
	queue_tell(q);
	return (int)n;
}

int drover_queue_fd(struct drover_queue *q)
{
	q->fd_used = true;
	queue_tell(q);
	return ring_fd(q->ring);
}
