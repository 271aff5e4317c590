/* SPDX-License-Identifier: MIT */
/* iovec slices: cutting, walking and copying windows of scattered buffers; zero detection. */
#include "base/iov.h"

#include <assert.h>

/* Walks the non-empty segments of a window. */
struct iov_walk {
	const struct iovec *iov, *end;
	size_t skip, left;
};

static struct iov_walk iov_walk(struct iov_slice s)
{
	return (struct iov_walk){s.iov, s.iov + s.niov, s.skip, s.len};
}

static bool iov_next(struct iov_walk *w, char **ret, size_t *ret_len)
{
	while (w->left && w->iov < w->end) {
		const struct iovec *v = w->iov++;
		size_t n;

		if (w->skip >= v->iov_len) {
			w->skip -= v->iov_len;
			continue;
		}
		n = MIN(v->iov_len - w->skip, w->left);
		*ret = (char *)v->iov_base + w->skip;
		*ret_len = n;
		w->skip = 0;
		w->left -= n;
		return true;
	}
	assert(!w->left); /* the window lies inside its iovecs */
	return false;
}

struct iov_slice iov_cut(struct iov_slice s, size_t off, size_t len)
{
	assert(off <= s.len && len <= s.len - off);
	s.skip += off;
	s.len = len;
	while (s.niov > 1 && s.skip >= s.iov->iov_len) {
		s.skip -= s.iov->iov_len;
		s.iov++;
		s.niov--;
	}
	return s;
}

unsigned iov_export(struct iov_slice s, struct iovec *ret, unsigned max, size_t *covered)
{
	struct iov_walk w = iov_walk(s);
	size_t n, sum = 0;
	unsigned i = 0;
	char *p;

	while (i < max && iov_next(&w, &p, &n)) {
		ret[i++] = (struct iovec){p, n};
		sum += n;
	}
	if (covered)
		*covered = sum;
	return i;
}

unsigned iov_segments(struct iov_slice s)
{
	struct iov_walk w = iov_walk(s);
	unsigned i = 0;
	size_t n;
	char *p;

	while (iov_next(&w, &p, &n))
		i++;
	return i;
}

void *iov_flat(struct iov_slice s)
{
	struct iov_walk w = iov_walk(s);
	char *first = NULL, *end = NULL, *p;
	size_t n;

	if (!s.len)
		return s.niov ? (char *)s.iov->iov_base + MIN(s.skip, s.iov->iov_len) : NULL;
	while (iov_next(&w, &p, &n)) {
		if (end && p != end)
			return NULL;
		first = first ? first : p;
		end = p + n;
	}
	return first;
}

void iov_copy_from(void *dst, struct iov_slice src)
{
	struct iov_walk w = iov_walk(src);
	char *d = dst, *p;
	size_t n;

	for (; iov_next(&w, &p, &n); d += n)
		memcpy(d, p, n);
}

void iov_copy_to(struct iov_slice dst, const void *src)
{
	struct iov_walk w = iov_walk(dst);
	const char *s = src;
	size_t n;
	char *p;

	for (; iov_next(&w, &p, &n); s += n)
		memcpy(p, s, n);
}

void iov_fill(struct iov_slice dst, int byte)
{
	struct iov_walk w = iov_walk(dst);
	size_t n;
	char *p;

	while (iov_next(&w, &p, &n))
		memset(p, byte, n);
}

bool iov_is_zero(struct iov_slice s)
{
	struct iov_walk w = iov_walk(s);
	size_t n;
	char *p;

	while (iov_next(&w, &p, &n))
		if (!mem_is_zero(p, n))
			return false;
	return true;
}

bool iov_aligned(struct iov_slice s, size_t align)
{
	struct iov_walk w = iov_walk(s);
	size_t n;
	char *p;

	while (iov_next(&w, &p, &n))
		if (!is_aligned((uintptr_t)p | n, align))
			return false;
	return true;
}

/*
 * Zero detection. Vectors are accumulated by OR over 128 (256) bytes, so that there is one test
 * and branch per block and the loads overlap; unaligned loads cost nothing on the CPUs that matter.
 */
typedef uint64_t vec16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t vec32 __attribute__((vector_size(32), aligned(1), may_alias));

static bool zero_tail(const unsigned char *p, size_t n)
{
	uint64_t a = 0, v;

	for (; n >= 8; p += 8, n -= 8) {
		memcpy(&v, p, 8);
		a |= v;
	}
	for (; n; p++, n--)
		a |= *p;
	return !a;
}

static bool zero_vec16(const unsigned char *p, size_t n)
{
	for (; n >= 128; p += 128, n -= 128) {
		const vec16 *v = (const vec16 *)p;
		vec16 a = (v[0] | v[1]) | (v[2] | v[3]);
		vec16 b = (v[4] | v[5]) | (v[6] | v[7]);

		a |= b;
		if (a[0] | a[1])
			return false;
	}
	return zero_tail(p, n);
}

#ifdef __x86_64__
static __attribute__((target("avx2"))) bool zero_vec32(const unsigned char *p, size_t n)
{
	for (; n >= 256; p += 256, n -= 256) {
		const vec32 *v = (const vec32 *)p;
		vec32 a = (v[0] | v[1]) | (v[2] | v[3]);
		vec32 b = (v[4] | v[5]) | (v[6] | v[7]);

		a |= b;
		if (a[0] | a[1] | a[2] | a[3])
			return false;
	}
	return zero_vec16(p, n);
}
#endif

bool mem_is_zero(const void *p, size_t n)
{
	const unsigned char *b = p;

	/* Data is mostly recognised by its first bytes: do not start the wide loop for it. */
	if (n >= 16) {
		uint64_t first, last;

		memcpy(&first, b, 8);
		memcpy(&last, b + n - 8, 8);
		if (first | last)
			return false;
	}
#ifdef __x86_64__
	if (n >= 256 && __builtin_cpu_supports("avx2"))
		return zero_vec32(b, n);
#endif
	return zero_vec16(b, n);
}
