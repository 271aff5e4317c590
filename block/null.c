/* SPDX-License-Identifier: MIT */
/*
 * null: reads zeroes and forgets writes, to measure everything else.
 */
#include "block/internal.h"
#include "base/co.h"
#include "base/ring.h"

struct null_state {
	uint64_t latency_ns;
};

static const struct conf_key null_keys[] = {
	{"size", CONF_KEY_SIZE, NULL, 0, INT64_MAX, "size in bytes (default 1 GiB)"},
	{"latency-ns", CONF_KEY_NUMBER, NULL, 0, 0, "time every request takes"},
	{"read-zeroes", CONF_KEY_BOOL, NULL, 0, 0, "accepted; reads are always zeroes"},
	{"filename", CONF_KEY_STRING, NULL, 0, 0, "name for messages"},
	{NULL, 0, NULL, 0, 0, NULL},
};

static int co_null_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct null_state *s = n->priv;
	const char *name = NULL;
	bool zeroes;
	int r;

	n->size = GiB;
	if ((r = conf_get_u64(opts, null_keys, "size", &n->size, err)) ||
		(r = conf_get_u64(opts, null_keys, "latency-ns", &s->latency_ns, err)) ||
		(r = conf_get_bool(opts, null_keys, "read-zeroes", &zeroes, err)) ||
		(r = conf_get_string(opts, null_keys, "filename", &name, err)))
		return r;
	n->caps = (struct block_caps){.align = 1,
		.buf_align = 1,
		.zero_align = 1,
		.discard_align = 1,
		.zero_flags = BLOCK_IO_UNMAP | BLOCK_IO_FUA,
		.write_flags = BLOCK_IO_FUA,
		.zero_init = true,
		.grows = true};
	return 0;
}

static int co_null_wait(struct block_node *n)
{
	const struct null_state *s = n->priv;

	if (s->latency_ns)
		co_sleep(s->latency_ns);
	return 0;
}

static int co_null_read(struct block_node *n, struct block_io *io)
{
	iov_fill(io->buf, 0);
	return co_null_wait(n);
}

static int co_null_change(struct block_node *n, struct block_io *io)
{
	return co_null_wait(n);
}

static int co_null_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	return co_null_wait(n);
}

static int co_null_extent(
	struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	*ret = (struct block_extent){.len = len,
		.flags = BLOCK_EXTENT_ZERO | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_MAPPED,
		.host_off = off,
		.host = n};
	return 0;
}

static int co_null_actual_size(struct block_node *n, uint64_t *ret)
{
	*ret = 0;
	return 0;
}

const struct block_driver block_null = {
	.name = "null-co",
	.kind = BLOCK_KIND_PROTOCOL,
	.node_size = sizeof(struct null_state),
	.open_keys = null_keys,
	.co_open = co_null_open,
	.co_read = co_null_read,
	.co_write = co_null_change,
	.co_zero = co_null_change,
	.co_discard = co_null_change,
	.co_flush = co_null_wait,
	.co_resize = co_null_resize,
	.co_extent = co_null_extent,
	.co_actual_size = co_null_actual_size,
};
