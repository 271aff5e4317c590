/* SPDX-License-Identifier: MIT */
/*
 * The log of the record filter: every change that went through it, with data, in an order from
 * which the crash harness builds what a power loss could leave.
 */
#ifndef DROVER_BLOCK_RECORD_H
#define DROVER_BLOCK_RECORD_H

#include "block/block.h"

enum record_op {
	RECORD_WRITE,
	RECORD_ZERO,     /* flags: BLOCK_IO_UNMAP when it was a punch */
	RECORD_DISCARD,  /* on stores here: a punch, reads as zeroes */
	RECORD_TRUNCATE, /* len: the new size */
	RECORD_FLUSH,
	RECORD_MARK, /* by the harness: off and len are its own */
};
extern const struct conf_enum record_op_names[];

/*
 * begin and end number the moments when events were issued and when they had completed, in one
 * count. An event is durable when a flush with flush.begin > event.end has completed well; events
 * whose [begin, end] overlap may have happened in any order.
 */
struct record_event {
	enum record_op op;
	uint32_t flags; /* enum block_io_flags */
	uint64_t off, len;
	uint64_t begin, end; /* end 0: still under way */
	int result;
	void *data; /* RECORD_WRITE: len bytes */
};

/* The log in order of `begin`; borrowed, valid until the next event or clear. */
const struct record_event *record_log(struct block_node *n, size_t *ret_n);
/* Adds a mark, with begin and end taken now. */
int record_mark(struct block_node *n, uint64_t off, uint64_t len);
/* Forgets what has completed so far. */
void record_clear(struct block_node *n);

#endif
