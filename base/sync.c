/* SPDX-License-Identifier: MIT */
/*
 * Locks for coroutines: a spin lock guards the state, a queue on the waiters' own stacks holds who
 * comes next.
 *
 * Invariants
 * L1 Ownership is handed over: who unlocks gives the lock to the first waiter before waking it, so
 *    nobody who comes later can take it in between.
 * L2 A waiter is off the queue, and read for the last time, before it is woken: it may be gone.
 */
#include "base/sync.h"
#include "base/co.h"

#include <assert.h>
#include <sched.h>

#define SPIN_TRIES 100

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

void spin_lock(struct spin *s)
{
	while (unlikely(__atomic_exchange_n(&s->v, 1, __ATOMIC_ACQUIRE))) {
		int tries = 0;

		while (__atomic_load_n(&s->v, __ATOMIC_RELAXED)) {
			cpu_relax();
			if (++tries < SPIN_TRIES)
				continue;
			/* The holder has lost its CPU: spinning on would keep it away. */
			tries = 0;
			sched_yield();
		}
	}
}

void spin_unlock(struct spin *s)
{
	__atomic_store_n(&s->v, 0, __ATOMIC_RELEASE);
}

/* --- queues --- */

struct co_waiter {
	struct co *co;
	struct co_waiter *next;
	bool reader; /* co_rwlock */
};

static void queue_add(struct co_queue *q, struct co_waiter *w)
{
	w->co = co_self();
	assert(w->co);
	w->next = NULL;
	if (!q->tail)
		q->tail = &q->head;
	*q->tail = w;
	q->tail = &w->next;
}

static struct co *queue_pop(struct co_queue *q)
{
	struct co_waiter *w = q->head;

	q->head = w->next;
	if (!q->head)
		q->tail = NULL;
	return w->co;
}

static void co_wait_in(struct co_queue *q, struct co_waiter *w, struct spin *lock)
{
	queue_add(q, w);
	spin_unlock(lock);
	co_yield ();
}

void co_queue_wait(struct co_queue *q, struct spin *lock)
{
	struct co_waiter w = {0};

	co_wait_in(q, &w, lock);
}

bool co_queue_wake_one(struct co_queue *q)
{
	if (!q->head)
		return false;
	co_wake(queue_pop(q)); /* keeps L2 */
	return true;
}

void co_queue_wake_all(struct co_queue *q)
{
	while (co_queue_wake_one(q))
		;
}

/* --- mutex --- */

void co_mutex_lock(struct co_mutex *m)
{
	struct co_waiter w = {0};

	spin_lock(&m->lock);
	if (m->held) {
		co_wait_in(&m->waiters, &w, &m->lock); /* keeps L1 */
		return;
	}
	m->held = true;
	spin_unlock(&m->lock);
}

bool co_mutex_trylock(struct co_mutex *m)
{
	bool got;

	spin_lock(&m->lock);
	got = !m->held;
	m->held = true;
	spin_unlock(&m->lock);
	return got;
}

void co_mutex_unlock(struct co_mutex *m)
{
	spin_lock(&m->lock);
	assert(m->held);
	if (!co_queue_wake_one(&m->waiters))
		m->held = false;
	spin_unlock(&m->lock);
}

/* --- rwlock --- */

/* Hands the lock to the first waiter, or to all readers in front of the first writer. */
static void rwlock_pass(struct co_rwlock *l)
{
	while (l->waiters.head && !l->writer) {
		if (!l->waiters.head->reader) {
			if (l->readers)
				return;
			l->writer = true;
		} else {
			l->readers++;
		}
		co_queue_wake_one(&l->waiters);
	}
}

void co_rwlock_rdlock(struct co_rwlock *l)
{
	struct co_waiter w = {.reader = true};

	spin_lock(&l->lock);
	if (l->writer || l->waiters.head) {
		co_wait_in(&l->waiters, &w, &l->lock);
		return;
	}
	l->readers++;
	spin_unlock(&l->lock);
}

void co_rwlock_wrlock(struct co_rwlock *l)
{
	struct co_waiter w = {0};

	spin_lock(&l->lock);
	if (l->writer || l->readers) {
		co_wait_in(&l->waiters, &w, &l->lock);
		return;
	}
	l->writer = true;
	spin_unlock(&l->lock);
}

void co_rwlock_rdunlock(struct co_rwlock *l)
{
	spin_lock(&l->lock);
	assert(l->readers);
	l->readers--;
	rwlock_pass(l);
	spin_unlock(&l->lock);
}

void co_rwlock_wrunlock(struct co_rwlock *l)
{
	spin_lock(&l->lock);
	assert(l->writer);
	l->writer = false;
	rwlock_pass(l);
	spin_unlock(&l->lock);
}

void co_rwlock_downgrade(struct co_rwlock *l)
{
	spin_lock(&l->lock);
	assert(l->writer);
	l->writer = false;
	l->readers = 1;
	rwlock_pass(l);
	spin_unlock(&l->lock);
}

/* --- counter --- */

void co_counter_inc(struct co_counter *c)
{
	spin_lock(&c->lock);
	c->n++;
	spin_unlock(&c->lock);
}

void co_counter_dec(struct co_counter *c)
{
	spin_lock(&c->lock);
	assert(c->n);
	if (!--c->n)
		co_queue_wake_all(&c->waiters);
	spin_unlock(&c->lock);
}

void co_counter_wait_zero(struct co_counter *c)
{
	spin_lock(&c->lock);
	while (c->n) {
		co_queue_wait(&c->waiters, &c->lock);
		spin_lock(&c->lock);
	}
	spin_unlock(&c->lock);
}
