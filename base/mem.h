/* SPDX-License-Identifier: MIT */
/*
 * Memory allocation. Every allocation of the library goes through here and may fail: the caller
 * returns -ENOMEM. Tests make the k-th allocation fail with mem_fail_at().
 */
#ifndef DROVER_MEM_H
#define DROVER_MEM_H

#include "base/base.h"

void *mem_alloc(size_t n);             /* uninitialised; NULL when out of memory; n == 0 is 1 */
void *mem_zalloc(size_t n);            /* zeroed */
void *mem_calloc(size_t n, size_t sz); /* zeroed array, NULL also when n * sz overflows */
void *mem_realloc(void *p, size_t n);  /* on failure p stays valid */
/* For I/O buffers: `align` is a power of two of at least sizeof(void *). Freed by mem_free(). */
void *mem_aligned(size_t align, size_t n);
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n);
char *mem_printf(const char *fmt, ...) attr_printf(1, 2);
void mem_free(void *p); /* NULL is fine */

/* Cleanup function for _cleanup_(mem_freep). */
static inline void mem_freep(void *pp)
{
	mem_free(*(void **)pp);
}
#define _cleanup_free_ _cleanup_(mem_freep)

/*
 * Test hook: the k-th allocation from now on fails (k from 1), and with `forever` all later ones
 * too; k == 0 turns it off. Returns the number of allocations since the last call. Process-wide.
 */
uint64_t mem_fail_at(uint64_t k, bool forever);
/* Counts an allocation made by other means (mmap); true: it has to fail. */
bool mem_fault(void);

#endif
