/* SPDX-License-Identifier: MIT */
/* What the unit tests of the block room share: running in a coroutine, opening nodes, patterns. */
#ifndef DROVER_TEST_BLOCK_H
#define DROVER_TEST_BLOCK_H

#include "block/internal.h"
#include "block/fault.h"
#include "block/mem.h"
#include "block/record.h"
#include "base/co.h"
#include "base/ring.h"
#include "lib/drivers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

static char test_dir[160];

static inline int test_setup(void **state)
{
	const char *tmp = getenv("TMPDIR");

	drivers_init();
	snprintf(test_dir, sizeof(test_dir), "%.100s/drover-unit-XXXXXX", tmp ? tmp : "/tmp");
	return mkdtemp(test_dir) ? 0 : -1;
}

static inline int test_teardown(void **state)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", test_dir);
	return system(cmd);
}

/* A path in the test's folder; valid until the fourth call after. */
static inline const char *test_path(const char *name)
{
	static char path[4][256];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(path[i], sizeof(path[i]), "%s/%s", test_dir, name);
	return path[i];
}

static inline int test_in_co(void *arg)
{
	void (*fn)(void) = *(void (**)(void))arg;

	fn();
	return 0;
}

/* Defines the cmocka test `name` whose body runs in a coroutine. A failed assertion aborts the
 * program, because cmocka cannot jump out of another stack. */
#define CO_TEST(name)                                                                              \
	static void co_##name(void);                                                               \
	static void name(void **state)                                                             \
	{                                                                                          \
		void (*fn)(void) = co_##name;                                                      \
                                                                                                   \
		assert_int_equal(co_run(test_in_co, &fn), 0);                                      \
	}                                                                                          \
	static void co_##name(void)

#define check(cond)                                                                                \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #cond);   \
			abort();                                                                   \
		}                                                                                  \
	} while (0)
#define check_int(a, b)                                                                            \
	do {                                                                                       \
		long long check_a = (long long)(a), check_b = (long long)(b);                      \
                                                                                                   \
		if (check_a != check_b) {                                                          \
			fprintf(stderr, "%s:%d: %s is %lld, %s is %lld\n", __FILE__, __LINE__, #a, \
				check_a, #b, check_b);                                             \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static inline int try_open(
	const char *text, uint32_t flags, struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts o = {.flags = flags, .trust = &block_trust_local};
	int r = conf_parse_options(text, "filename", &spec, err);

	return r ? r : co_block_open(spec, &o, ret, err);
}

static inline struct block_node *must_open(const char *text, uint32_t flags)
{
	struct error err = ERROR_INIT;
	struct block_node *n;

	if (try_open(text, flags, &n, &err)) {
		fprintf(stderr, "opening %s: %s\n", text, err.text);
		abort();
	}
	return n;
}

static inline char *test_printf(const char *fmt, const char *arg)
{
	static char text[4][512];
	static unsigned i;

	i = (i + 1) % 4;
	_Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wformat-nonliteral\"");
	snprintf(text[i], sizeof(text[i]), fmt, arg);
	_Pragma("GCC diagnostic pop") return text[i];
}

/* Bytes that tell where they belong and which write put them there. */
static inline void fill(void *buf, size_t len, uint64_t off, unsigned seed)
{
	unsigned char *p = buf;

	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)(((off + i) * 7 + (off + i) / 509 + seed * 31) % 251 + 1);
}

static inline void write_fill(struct block_node *n, uint64_t off, size_t len, unsigned seed)
{
	char *buf = malloc(len);

	fill(buf, len, off, seed);
	check_int(co_block_pwrite(n, off, buf, len), 0);
	free(buf);
}

static inline bool reads_fill(struct block_node *n, uint64_t off, size_t len, unsigned seed)
{
	char *buf = malloc(len), *want = malloc(len);
	bool same;

	fill(want, len, off, seed);
	memset(buf, 0xee, len);
	check_int(co_block_pread(n, off, buf, len), 0);
	same = !memcmp(buf, want, len);
	free(buf);
	free(want);
	return same;
}

static inline bool reads_zero(struct block_node *n, uint64_t off, size_t len)
{
	char *buf = malloc(len);
	bool zero;

	memset(buf, 0xee, len);
	check_int(co_block_pread(n, off, buf, len), 0);
	zero = mem_is_zero(buf, len);
	free(buf);
	return zero;
}

#endif
