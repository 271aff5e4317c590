/* SPDX-License-Identifier: MIT */
/*
 * Control of the fault filter, and the named events that formats fire on their file.
 */
#ifndef DROVER_BLOCK_FAULT_H
#define DROVER_BLOCK_FAULT_H

#include "block/block.h"

enum fault_op {
	FAULT_READ = 1u << 0,
	FAULT_WRITE = 1u << 1,
	FAULT_ZERO = 1u << 2,
	FAULT_DISCARD = 1u << 3,
	FAULT_FLUSH = 1u << 4,
	FAULT_RESIZE = 1u << 5,
	FAULT_ANY = 0x3f,
};

struct fault_rule {
	uint32_t ops;      /* enum fault_op; calls of these kinds are counted */
	uint64_t at;       /* the call that is hit, from 1 */
	bool forever;      /* and every later one */
	int error;         /* negative errno; 0: none (delay only) */
	bool torn;         /* writes: the first half arrives, then the error */
	uint64_t delay_ns; /* before the call goes on or fails */
	char event[48];    /* counting starts when this event has been fired; "": at once */
};

/* Adds a rule; counting starts now. */
int fault_add(struct block_node *n, const struct fault_rule *rule);
void fault_clear(struct block_node *n); /* all rules and breakpoints; suspended requests go on */
/* Calls of the given kinds since the node was opened. */
uint64_t fault_calls(struct block_node *n, uint32_t ops);

/* Breakpoints: whoever fires `event` next is held there, under the name `tag`. */
int fault_break(struct block_node *n, const char *event, const char *tag);
bool fault_is_held(struct block_node *n, const char *tag);
int fault_resume(struct block_node *n, const char *tag); /* -ENOENT: nobody is held there */
/* Forgets the breakpoints of that name (NULL: all); who is held there goes on. -ENOENT: none. */
int fault_unbreak(struct block_node *n, const char *tag);

void co_fault_fire(struct block_node *n, const char *event);

/* Fired by a format on its file child, for example "l2_update". Costs two loads when there is no
 * fault node. */
static inline void co_block_event(struct block_node *file, const char *event)
{
	while (unlikely(file->drv->kind == BLOCK_KIND_FILTER)) {
		if (file->drv == &block_fault)
			co_fault_fire(file, event);
		file = file->child[BLOCK_ROLE_FILE];
	}
}

#endif
