/* SPDX-License-Identifier: MIT */
/* Memory allocation with a fault hook: every allocation of the library is counted here. */
#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/*
 * The hook's state. `armed` is the only word the hot path reads when no test runs; the rest is
 * touched by tests alone. Counting must work across threads, so all of it is atomic.
 */
static _Atomic bool armed;
static _Atomic bool fail_forever;
static _Atomic uint64_t fail_k;
static _Atomic uint64_t count;

bool mem_fault(void)
{
	uint64_t n, k;

	if (likely(!atomic_load_explicit(&armed, memory_order_relaxed)))
		return false;
	n = atomic_fetch_add(&count, 1) + 1;
	k = atomic_load(&fail_k);
	if (!k)
		return false;
	return atomic_load(&fail_forever) ? n >= k : n == k;
}

uint64_t mem_fail_at(uint64_t k, bool forever)
{
	uint64_t n = atomic_exchange(&count, 0);

	atomic_store(&fail_forever, forever);
	atomic_store(&fail_k, k);
	/* Stays armed once a test has shown interest, so that the next call can report a count. */
	atomic_store(&armed, true);
	return n;
}

void *mem_alloc(size_t n)
{
	if (mem_fault())
		return NULL;
	return malloc(n ? n : 1);
}

void *mem_zalloc(size_t n)
{
	if (mem_fault())
		return NULL;
	return calloc(1, n ? n : 1);
}

void *mem_calloc(size_t n, size_t sz)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, sz, &bytes))
		return NULL;
	return mem_zalloc(bytes);
}

void *mem_realloc(void *p, size_t n)
{
	if (mem_fault())
		return NULL;
	return realloc(p, n ? n : 1);
}

void *mem_aligned(size_t align, size_t n)
{
	void *p;

	if (mem_fault())
		return NULL;
	if (posix_memalign(&p, align, n ? n : 1))
		return NULL;
	return p;
}

char *mem_strndup(const char *s, size_t n)
{
	size_t len = strnlen(s, n);
	char *p = mem_alloc(len + 1);

	if (!p)
		return NULL;
	memcpy(p, s, len);
	p[len] = '\0';
	return p;
}

char *mem_strdup(const char *s)
{
	return mem_strndup(s, SIZE_MAX);
}

char *mem_printf(const char *fmt, ...)
{
	va_list ap;
	char *p;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0)
		return NULL;
	p = mem_alloc((size_t)n + 1);
	if (!p)
		return NULL;
	va_start(ap, fmt);
	vsnprintf(p, (size_t)n + 1, fmt, ap);
	va_end(ap);
	return p;
}

void mem_free(void *p)
{
	free(p);
}
