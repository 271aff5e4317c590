/* SPDX-License-Identifier: MIT */
/*
 * iovec slices: a window of `len` bytes, starting `skip` bytes into an array of iovecs that
 * somebody else owns. Passed by value; cutting one never allocates or copies.
 */
#ifndef DROVER_IOV_H
#define DROVER_IOV_H

#include "base/base.h"
#include <sys/uio.h>

#define IOV_MAX_SEGMENTS 1024u

struct iov_slice {
	const struct iovec *iov; /* borrowed */
	uint32_t niov;           /* entries from iov that the window may touch */
	size_t skip;             /* bytes of iov[0..] before the window; may exceed the first */
	size_t len;              /* bytes in the window */
};

/* A slice of one buffer: *store must live as long as the slice. */
static inline struct iov_slice iov_buf(struct iovec *store, void *buf, size_t len)
{
	*store = (struct iovec){buf, len};
	return (struct iov_slice){store, 1, 0, len};
}

/* The window [off, off+len) of s; off + len <= s.len. Leading iovecs are dropped. */
struct iov_slice iov_cut(struct iov_slice s, size_t off, size_t len);
/* Writes the window as plain iovecs into `ret` (room for max). Returns their number; when max is
 * too small the result covers only the front of the window, and *covered says how much. */
unsigned iov_export(struct iov_slice s, struct iovec *ret, unsigned max, size_t *covered);
/* Number of non-empty segments in the window. */
unsigned iov_segments(struct iov_slice s);
/* The window's address when it is contiguous in memory, else NULL. */
void *iov_flat(struct iov_slice s);
void iov_copy_from(void *dst, struct iov_slice src);  /* dst has room for src.len */
void iov_copy_to(struct iov_slice dst, const void *src); /* src holds dst.len bytes */
void iov_fill(struct iov_slice dst, int byte);
bool iov_is_zero(struct iov_slice s);
/* Are all addresses and lengths of the window multiples of align? */
bool iov_aligned(struct iov_slice s, size_t align);

/* Is the buffer all zero bytes? SIMD where the CPU has it; stops at the first non-zero. */
bool mem_is_zero(const void *p, size_t n);

#endif
