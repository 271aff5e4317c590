/* SPDX-License-Identifier: MIT */
/*
 * Locks that a coroutine may hold across a yield, and wait queues; all work across rings. Fair
 * (first come, first served). Zero-initialised objects are valid and unlocked.
 *
 * For critical sections that never yield use `struct spin`, which is short and may be taken inside
 * and outside of coroutines.
 */
#ifndef DROVER_SYNC_H
#define DROVER_SYNC_H

#include "base/list.h"
#include <pthread.h>

/* A short lock, never held across a yield, an allocation or a system call that may block long. */
struct spin {
	int v;
};
void spin_lock(struct spin *s);
void spin_unlock(struct spin *s);

/* Waiters in order of arrival. */
struct co_queue {
	struct co_waiter *head, **tail; /* NULL tail: empty */
};

/* Waits until woken. `lock` (held by the caller) guards the condition; it is released while
 * waiting and not held on return. */
void co_queue_wait(struct co_queue *q, struct spin *lock);
/* Wakes the first waiter, or all; the caller holds the same lock. False when nobody waited. */
bool co_queue_wake_one(struct co_queue *q);
void co_queue_wake_all(struct co_queue *q);

struct co_mutex {
	struct spin lock;
	bool held;
	struct co_queue waiters;
};
void co_mutex_lock(struct co_mutex *m);
bool co_mutex_trylock(struct co_mutex *m);
void co_mutex_unlock(struct co_mutex *m);

/* Writers do not starve: a reader that comes after a waiting writer waits behind it. */
struct co_rwlock {
	struct spin lock;
	uint32_t readers;
	bool writer;
	struct co_queue waiters;
};
void co_rwlock_rdlock(struct co_rwlock *l);
void co_rwlock_wrlock(struct co_rwlock *l);
void co_rwlock_rdunlock(struct co_rwlock *l);
void co_rwlock_wrunlock(struct co_rwlock *l);
void co_rwlock_downgrade(struct co_rwlock *l); /* from writer to reader */

/* Counts work in flight; co_wait_zero() waits until it is none. */
struct co_counter {
	struct spin lock;
	uint64_t n;
	struct co_queue waiters;
};
void co_counter_inc(struct co_counter *c);
void co_counter_dec(struct co_counter *c);
void co_counter_wait_zero(struct co_counter *c);

#endif
