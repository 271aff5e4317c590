/* SPDX-License-Identifier: MIT */
/* Tickets that pass one after another in ascending order, whatever ring their holders run on. */
#include "block/copy.h"

void co_copy_order_wait(struct copy_order *o, uint64_t seq)
{
	spin_lock(&o->lock);
	while (o->next != seq) {
		co_queue_wait(&o->waiters[seq % COPY_ORDER_SLOTS], &o->lock);
		spin_lock(&o->lock);
	}
	spin_unlock(&o->lock);
}

void copy_order_pass(struct copy_order *o, uint64_t seq)
{
	spin_lock(&o->lock);
	o->next = seq + 1;
	co_queue_wake_one(&o->waiters[o->next % COPY_ORDER_SLOTS]);
	spin_unlock(&o->lock);
}
