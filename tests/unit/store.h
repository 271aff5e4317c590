/* SPDX-License-Identifier: MIT */
/* A driver for tests: bytes in memory, extents as told, errors on request, everything counted. */
#ifndef DROVER_TEST_STORE_H
#define DROVER_TEST_STORE_H

#include "block/block.h"
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define STORE_BLOCK 4096u
#define STORE_LOG   65536u

enum { STORE_DATA, STORE_ZERO, STORE_UNALLOCATED };

struct store {
	uint8_t *data, *kind; /* kind: one a block */
	uint64_t size, cluster;
	uint64_t fail_read_off, fail_read_len, fail_write_off; /* UINT64_MAX: none */
	int copy_result; /* of co_copy: 0 copies */
	/* atomics */
	uint64_t reads, read_bytes, hole_reads, write_bytes, zero_bytes, copies;
	uint8_t *written; /* how often each block was written */
	uint64_t *log;	  /* offsets of writes in the order of their begin */
	uint32_t nlog;
	/* compressed storing: see test_copy.c */
	struct store_packed *packed;
	uint32_t npacked, tickets_open;
};

static const struct block_compress_ops *store_compress_ops;
static struct store *store_opening; /* what the next open is of */

static void store_init(struct store *s, uint64_t size)
{
	*s = (struct store){.size = size,
		.fail_read_off = UINT64_MAX,
		.fail_write_off = UINT64_MAX,
		.copy_result = -ENOTSUP};
	s->data = calloc(1, size);
	s->kind = calloc(1, size / STORE_BLOCK + 1);
	s->written = calloc(1, size / STORE_BLOCK + 1);
	s->log = calloc(STORE_LOG, sizeof(*s->log));
}

static void store_free(struct store *s)
{
	free(s->data);
	free(s->kind);
	free(s->written);
	free(s->log);
}

/* Blocks [first, first+n) become `kind`; data gets bytes that are nowhere zero. */
static void store_set(struct store *s, uint64_t first, uint64_t n, int kind, unsigned seed)
{
	uint64_t from = first * STORE_BLOCK, to = MIN((first + n) * STORE_BLOCK, s->size);

	memset(s->kind + first, kind, n);
	for (uint64_t i = from; i < to; i++) {
		seed = seed * 1103515245u + 12345u;
		s->data[i] = kind == STORE_DATA ? (uint8_t)(seed >> 16 | 1) : 0;
	}
}

static struct store *store_of(struct block_node *n)
{
	return *(struct store **)n->priv;
}

static int store_co_open(struct block_node *n, struct conf *opts attr_unused,
	struct error *err attr_unused)
{
	*(struct store **)n->priv = store_opening;
	n->size = store_opening->size;
	n->caps.align = 1;
	n->caps.buf_align = 1;
	n->caps.cluster = store_opening->cluster;
	n->caps.zero_flags = BLOCK_IO_UNMAP;
	return 0;
}

static int store_co_close(struct block_node *n attr_unused)
{
	return 0;
}

static int store_co_read(struct block_node *n, struct block_io *io)
{
	struct store *s = store_of(n);

	co_pause();
	__atomic_fetch_add(&s->reads, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&s->read_bytes, io->len, __ATOMIC_RELAXED);
	if (s->fail_read_off != UINT64_MAX &&
		ranges_overlap(io->off, io->len, s->fail_read_off, s->fail_read_len))
		return -EIO;
	for (uint64_t b = io->off / STORE_BLOCK; b <= (io->off + io->len - 1) / STORE_BLOCK; b++)
		if (s->kind[b] != STORE_DATA)
			__atomic_fetch_add(&s->hole_reads, 1, __ATOMIC_RELAXED);
	iov_copy_to(io->buf, s->data + io->off);
	return 0;
}

static int store_change(struct store *s, const struct block_io *io, uint64_t *counter)
{
	uint32_t i = __atomic_fetch_add(&s->nlog, 1, __ATOMIC_RELAXED);

	if (i < STORE_LOG)
		s->log[i] = io->off;
	co_pause();
	if (s->fail_write_off != UINT64_MAX &&
		ranges_overlap(io->off, io->len, s->fail_write_off, 1))
		return -ENOSPC;
	__atomic_fetch_add(counter, io->len, __ATOMIC_RELAXED);
	for (uint64_t b = io->off / STORE_BLOCK; b <= (io->off + io->len - 1) / STORE_BLOCK; b++) {
		__atomic_fetch_add(&s->written[b], 1, __ATOMIC_RELAXED);
		__atomic_store_n(&s->kind[b], STORE_DATA, __ATOMIC_RELAXED);
	}
	return 0;
}

static int store_co_write(struct block_node *n, struct block_io *io)
{
	struct store *s = store_of(n);
	int r = store_change(s, io, &s->write_bytes);

	if (!r)
		iov_copy_from(s->data + io->off, io->buf);
	return r;
}

static int store_co_zero(struct block_node *n, struct block_io *io)
{
	struct store *s = store_of(n);
	int r = store_change(s, io, &s->zero_bytes);

	if (!r)
		memset(s->data + io->off, 0, io->len);
	return r;
}

static int store_co_flush(struct block_node *n attr_unused)
{
	return 0;
}

static int store_co_extent(
	struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	static const uint32_t flags[] = {
		[STORE_DATA] = BLOCK_EXTENT_DATA | BLOCK_EXTENT_ALLOCATED,
		[STORE_ZERO] = BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED,
		[STORE_UNALLOCATED] = 0,
	};
	struct store *s = store_of(n);
	uint64_t b = off / STORE_BLOCK, e = b + 1;

	while (e * STORE_BLOCK < off + len && s->kind[e] == s->kind[b] && e % 300)
		e++;
	*ret = (struct block_extent){
		.len = MIN(e * STORE_BLOCK, off + len) - off, .flags = flags[s->kind[b]]};
	return 0;
}

static int store_co_copy(struct block_node *src, uint64_t src_off, struct block_node *dst,
	uint64_t dst_off, uint64_t len)
{
	struct store *from = store_of(src), *to = store_of(dst);

	__atomic_fetch_add(&to->copies, 1, __ATOMIC_RELAXED);
	if (!to->copy_result)
		memcpy(to->data + dst_off, from->data + src_off, len);
	return to->copy_result;
}

static struct block_driver store_driver = {
	.name = "store",
	.kind = BLOCK_KIND_PROTOCOL,
	.node_size = sizeof(struct store *),
	.co_open = store_co_open,
	.co_close = store_co_close,
	.co_read = store_co_read,
	.co_write = store_co_write,
	.co_zero = store_co_zero,
	.co_flush = store_co_flush,
	.co_extent = store_co_extent,
	.co_copy = store_co_copy,
};

static struct block_node *store_co_node(struct store *s)
{
	static const struct block_driver *const table[] = {&store_driver, NULL};
	struct block_open_opts o = {.flags = BLOCK_OPEN_RDWR, .trust = &block_trust_all};
	struct conf *spec = conf_new(CONF_OBJECT);
	struct block_node *n = NULL;
	struct error err = ERROR_INIT;

	store_driver.compress = store_compress_ops;
	block_register(table);
	store_opening = s;
	assert_int_equal(conf_set(spec, "driver", "store"), 0);
	if (co_block_open(spec, &o, &n, &err))
		fail_msg("%s", err.text);
	conf_free(spec);
	return n;
}

/* Runs a test's coroutine on a fresh ring of the given kind. */
static void store_run(enum ring_kind kind, uint64_t seed, int (*fn)(void *arg), void *arg)
{
	struct ring_opts opts = {.kind = kind, .seed = seed};
	struct ring *ring;

	assert_int_equal(ring_new(&opts, &ring, NULL), 0);
	assert_int_equal(co_run(fn, arg), 0);
	ring_free(ring);
}

#endif
