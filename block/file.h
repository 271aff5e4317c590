/* SPDX-License-Identifier: MIT */
/*
 * What the files of the file driver share: file.c (open, data), file-space.c (holes, zeroes,
 * discard, size), file-create.c.
 */
#ifndef DROVER_BLOCK_FILE_H
#define DROVER_BLOCK_FILE_H

#include "block/internal.h"
#include "base/ring.h"

/* Ways of doing a thing that this file's host has refused once are not tried again. */
struct file_state {
	int fd;
	int tail_fd; /* without O_DIRECT, for the ragged end of a file; -1: not opened yet */
	bool device, dio, nowait;
	bool locking, must_lock; /* take image locks; refuse file systems without them */
	bool no_punch, no_zero_range, no_allocate, no_discard, no_copy; /* relaxed atomics */
	struct block_lock lock;
	/* The last answer about holes; see file-space.c. */
	struct spin extent_lock;
	uint64_t extent_start, extent_end;
	bool extent_data;
	uint64_t extent_gen;
};

/* --- file.c --- */
int file_tail_fd(struct block_node *n, int *ret);
/* Blocks an fd cannot take unaligned: writes `buf` through the page cache. */
int co_file_write_tail(struct block_node *n, uint64_t off, struct iov_slice buf);

/* --- file-space.c --- */
int co_file_zero(struct block_node *n, struct block_io *io);
int co_file_discard(struct block_node *n, struct block_io *io);
int co_file_extent(struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret);
int co_file_resize(struct block_node *n, const struct block_resize *r, struct error *err);
int co_file_copy(struct block_node *src, uint64_t src_off, struct block_node *dst, uint64_t dst_off,
	uint64_t len);
int co_file_actual_size(struct block_node *n, uint64_t *ret);
void file_extent_forget(struct file_state *s);
/* Gives [old, size) of a file that is old bytes long the space asked for, and the size. */
int co_file_preallocate(int fd, const char *name, uint64_t old, uint64_t size,
	enum block_prealloc prealloc, struct error *err);

/* --- file-create.c --- */
extern const struct conf_key block_file_create_keys[];
int co_file_create(const struct block_create *c, struct error *err);

#endif
