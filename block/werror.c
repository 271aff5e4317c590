/* SPDX-License-Identifier: MIT */
/*
 * The write-error policy of a node: `werror=report` hands errors to the guest; `stop` parks failed
 * writes until somebody says go on; `enospc` parks them only for lack of room, and tries again by
 * itself every second, so that making room is all an operator has to do.
 *
 * Flushes are never parked: a failed flush cannot be repeated (I9).
 */
#include "block/internal.h"
#include "base/ring.h"
#include "base/trace.h"

#define RETRY_NS 1000000000ULL

/* Errors of the store may go away; refusals of the request itself do not. */
static bool may_pass(int r)
{
	switch (r) {
	case -EROFS:
	case -EPERM:
	case -EINVAL:
	case -ENOTSUP:
	case -EUCLEAN:
		return false;
	default:
		return true;
	}
}

bool co_werror_again(struct block_node *n, int r)
{
	struct node *x = node_of(n);
	bool again;

	if (x->werror == BLOCK_WERROR_REPORT || !may_pass(r) ||
		(x->werror == BLOCK_WERROR_ENOSPC && r != -ENOSPC && r != -EDQUOT))
		return false;
	trace("block_werror_park", "%s: %s", n->filename, errno_text(r));
	spin_lock(&x->werror_lock);
	x->werror_parked++;
	if (!x->werror_give_up) {
		if (x->werror == BLOCK_WERROR_STOP) {
			co_queue_wait(&x->werror_waiters, &x->werror_lock);
		} else {
			spin_unlock(&x->werror_lock);
			co_sleep(RETRY_NS);
		}
		spin_lock(&x->werror_lock);
	}
	x->werror_parked--;
	again = !x->werror_give_up;
	spin_unlock(&x->werror_lock);
	return again;
}

void block_werror_resume(struct block_node *n, bool report)
{
	struct node *x = node_of(n);

	spin_lock(&x->werror_lock);
	x->werror_give_up = report;
	co_queue_wake_all(&x->werror_waiters);
	spin_unlock(&x->werror_lock);
}

uint32_t block_werror_parked(struct block_node *n)
{
	struct node *x = node_of(n);
	uint32_t ret;

	spin_lock(&x->werror_lock);
	ret = x->werror_parked;
	spin_unlock(&x->werror_lock);
	return ret;
}
