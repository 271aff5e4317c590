/* SPDX-License-Identifier: MIT */
/*
 * Small helpers every room uses: sizes, checked arithmetic, cleanup attributes, byte order.
 */
#ifndef DROVER_BASE_H
#define DROVER_BASE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#define KiB 1024ULL
#define MiB (1024ULL * KiB)
#define GiB (1024ULL * MiB)
#define TiB (1024ULL * GiB)

#define ARRAY_SIZE(a)     (sizeof(a) / sizeof((a)[0]))
#define likely(x)         __builtin_expect(!!(x), 1)
#define unlikely(x)       __builtin_expect(!!(x), 0)
#define attr_printf(f, a)    __attribute__((format(printf, f, a)))
#define attr_must_check      __attribute__((warn_unused_result))
#define attr_unused          __attribute__((unused))
#define _cleanup_(fn)     __attribute__((cleanup(fn)))

#define container_of(ptr, type, member)                                                            \
	((type *)((char *)(ptr)-offsetof(type, member)))

/* Each use has variables of its own, so that uses may nest. */
#define UNIQUE_JOIN(a, b) a##b
#define UNIQUE(a, n)     UNIQUE_JOIN(a, n)
#define COMPARE(a, b, op, n)                                                                       \
	({                                                                                         \
		__typeof__(a) UNIQUE(left_, n) = (a);                                              \
		__typeof__(b) UNIQUE(right_, n) = (b);                                             \
		UNIQUE(left_, n) op UNIQUE(right_, n) ? UNIQUE(left_, n) : UNIQUE(right_, n);      \
	})
#define MIN(a, b) COMPARE(a, b, <, __COUNTER__)
#define MAX(a, b) COMPARE(a, b, >, __COUNTER__)

/* Hands an owned pointer over: yields its value and clears the variable, so that _cleanup_ does
 * nothing. */
#define take(p)                                                                                    \
	({                                                                                         \
		__typeof__(p) taken = (p);                                                         \
		(p) = NULL;                                                                        \
		taken;                                                                             \
	})

/* `align` is a power of two. align_up() may wrap near UINT64_MAX: callers check ranges before. */
static inline uint64_t align_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t align)
{
	return (v + align - 1) & ~(align - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t align)
{
	return !(v & (align - 1));
}

static inline bool is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

static inline uint64_t div_up(uint64_t v, uint64_t d)
{
	return v / d + (v % d != 0);
}

static inline unsigned log2_u64(uint64_t v)
{
	return 63u - (unsigned)__builtin_clzll(v);
}

/* Checked arithmetic on values that come from files and peers: true on overflow, like the
 * compiler's builtins; *ret holds the wrapped value then and must not be used. */
static inline bool attr_must_check add_overflow(uint64_t a, uint64_t b, uint64_t *ret)
{
	return __builtin_add_overflow(a, b, ret);
}

static inline bool attr_must_check mul_overflow(uint64_t a, uint64_t b, uint64_t *ret)
{
	return __builtin_mul_overflow(a, b, ret);
}

/* Is [off, off+len) inside [0, limit) without overflow? */
static inline bool range_inside(uint64_t off, uint64_t len, uint64_t limit)
{
	return off <= limit && len <= limit - off;
}

static inline bool ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return a < b + blen && b < a + alen;
}

/* Unaligned big-endian access: qcow2, LUKS and NBD are big-endian throughout. */
static inline uint16_t load_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap16(v);
}

static inline uint32_t load_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap32(v);
}

static inline uint64_t load_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

static inline void store_be16(void *p, uint16_t v)
{
	v = __builtin_bswap16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void store_be32(void *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void store_be64(void *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, sizeof(v));
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "drover runs on little-endian hosts");
_Static_assert(sizeof(off_t) == 8, "drover needs 64-bit file offsets");

#endif
