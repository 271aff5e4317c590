/* SPDX-License-Identifier: MIT */
/*
 * What the files of the copy engine share: units of work and who makes, runs and orders them.
 * Private to copy*.c, crew.c and compare.c.
 */
#ifndef DROVER_BLOCK_COPY_H
#define DROVER_BLOCK_COPY_H

#include "block/block.h"

/* --- crew.c: coroutines spread over rings of their own --- */

/* Runs fn(arg, i) for every i in [0, n) as a coroutine, member i on ring i % threads; `threads`
 * 0 or 1, and the sim engine, mean the calling ring. Returns when all have ended: 0, or a negative
 * result of one of them. -ENOMEM when not even one member could be started. */
int co_block_crew_run(
	unsigned threads, unsigned n, int (*fn)(void *arg, unsigned i), void *arg);
/* How many rings a crew of n may use when `threads` are asked for (0: one a core). */
unsigned block_crew_threads(unsigned threads, unsigned n);

/* --- copy-order.c: tickets in ascending order across rings --- */

#define COPY_ORDER_SLOTS 256u /* more than units in flight */

struct copy_order {
	struct spin lock;
	uint64_t next;
	struct co_queue waiters[COPY_ORDER_SLOTS];
};

/* Waits until every ticket below `seq` has passed. */
void co_copy_order_wait(struct copy_order *o, uint64_t seq);
/* Ticket `seq`, which has waited, lets the next one go. */
void copy_order_pass(struct copy_order *o, uint64_t seq);

/* --- copy-scan.c: the source of work --- */

enum copy_kind {
	COPY_DATA, /* must be read */
	COPY_ZERO, /* reads as zeroes */
	COPY_SKIP, /* nothing to do: comes from the backing, or is not dirty */
};

struct copy_segment {
	uint64_t off, len; /* in the source */
	enum copy_kind kind;
};

#define COPY_SEGMENTS 64u

/* A contiguous range of the source that one worker copies. */
struct copy_unit {
	uint64_t seq; /* 0, 1, 2, ... in ascending order of off */
	uint64_t off, len;
	uint64_t data; /* bytes of COPY_DATA: what the buffer must hold */
	unsigned nsegs;
	struct copy_segment seg[COPY_SEGMENTS];
};

struct copy_scan {
	struct block_copy *c;
	struct co_mutex lock;
	uint64_t pos, end; /* in the source */
	uint64_t unit;	   /* data bytes a unit aims at */
	uint64_t granule;  /* units begin and end on multiples of it in the target; power of two */
	bool round;	   /* segments too: a granule with any data is data throughout */
	uint64_t next_seq;
	/* the run of one kind that pos lies in */
	uint64_t run_end;
	enum copy_kind run_kind;
	uint64_t dirty_end; /* end of the dirty run that pos lies in */
	uint64_t data_limit; /* refuse_amplified: more data than this is absurd; 0: no limit */
	uint64_t data_total;
};

/* Fills *u with the next unit: 1, or 0 when all is handed out, or a negative errno. */
int co_copy_scan_next(struct copy_scan *s, struct copy_unit *u);
/* After a failure: what was cleared in the dirty bitmap and not handed out is dirty again. */
void copy_scan_abandon(struct copy_scan *s);

/* --- copy.c: the engine's state --- */

struct copy_worker {
	uint8_t *buf;		    /* data segments one behind another */
	uint8_t *packed;	    /* compress: encoded clusters */
	struct block_packed *items; /* compress */
	struct copy_unit unit;
};

struct copy_state {
	struct block_copy *c;
	struct copy_scan scan;
	struct copy_order order;
	uint64_t piece;	 /* capacity of a worker's buffer */
	uint64_t detect; /* granule of zero detection; 0: none */
	bool no_offload; /* atomic: copy_range has said -ENOTSUP */
	unsigned threads, nworkers;
	struct copy_worker *workers;
	const struct block_compress_ops *ops; /* compress */
	struct block_node *packer;	      /* compress: the node below filters */
	void **encoders;		      /* compress: one state a ring */
	struct spin lock;
	int error; /* the first; atomic */
	uint64_t error_off;
	struct block_node *error_node;
};

bool copy_failed(const struct copy_state *st);
/* Notes the first error and where it was; returns `code`. */
int copy_fail(struct copy_state *st, int code, struct block_node *node, uint64_t off);
uint64_t copy_target_off(const struct copy_state *st, uint64_t src_off);
/* Reads [off, off+len) of the source into buf; salvages when asked to. */
int co_copy_read(struct copy_state *st, uint64_t off, void *buf, uint64_t len);
int co_copy_write(struct copy_state *st, uint64_t off, const void *buf, uint64_t len);
/* Makes [off, off+len) (source offsets) read as zeroes in the target. */
int co_copy_zero(struct copy_state *st, uint64_t off, uint64_t len);

/* --- copy-compress.c --- */

int copy_compress_setup(struct copy_state *st, struct error *err);
void copy_compress_cleanup(struct copy_state *st);
int co_copy_compress_unit(struct copy_state *st, unsigned member);

#endif
