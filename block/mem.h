/* SPDX-License-Identifier: MIT */
/*
 * Files in memory: content as copy-on-write chunks, so that the crash harness can keep and open
 * thousands of states of one image cheaply.
 */
#ifndef DROVER_BLOCK_MEM_H
#define DROVER_BLOCK_MEM_H

#include "block/block.h"

/* A file's bytes. Chunks nobody wrote read as zeroes. Not thread-safe on its own: the mem driver
 * locks its content; contents that share chunks may be used by different threads. */
struct mem_content;

int mem_content_new(uint64_t size, struct mem_content **ret);
/* A copy that shares chunks until either is written. */
int mem_content_dup(const struct mem_content *c, struct mem_content **ret);
void mem_content_free(struct mem_content *c); /* NULL is fine */
uint64_t mem_content_size(const struct mem_content *c);
/* Grows or cuts; what comes anew is zero. */
int mem_content_resize(struct mem_content *c, uint64_t size);
/* Beyond the end reads zeroes. */
void mem_content_read(const struct mem_content *c, uint64_t off, void *buf, size_t len);
/* Beyond the end grows. */
int mem_content_write(struct mem_content *c, uint64_t off, const void *buf, size_t len);
/* Zeroes, and frees whole chunks; does not grow. */
int mem_content_zero(struct mem_content *c, uint64_t off, uint64_t len);
/* A 64-bit hash of size and bytes, equal for equal content whatever is allocated. */
uint64_t mem_content_hash(const struct mem_content *c);

/* A `mem` node over content, which it takes over, also on failure. */
int co_mem_open(struct mem_content *c, const struct block_open_opts *o, struct block_node **ret,
	struct error *err);
/* A copy of what is in the node now. */
int mem_node_snapshot(struct block_node *n, struct mem_content **ret);

#endif
