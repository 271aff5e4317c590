/* SPDX-License-Identifier: MIT */
/*
 * verify: a filter that does everything on two nodes and compares what is read.
 *
 *   driver=verify,test.driver=qcow2,test.file.filename=x.qcow2,raw.filename=x.raw
 *
 * `test` is what the guest sees; `raw` holds the truth. A difference is -EIO, with the offset in
 * the trace. Both must have the same size.
 */
#include "block/internal.h"
#include "base/trace.h"

static const struct conf_key verify_keys[] = {
	{"raw", CONF_KEY_TREE, NULL, 0, 0, "the node that holds the truth"},
	{NULL, 0, NULL, 0, 0, NULL},
};

static struct block_node *tested(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_FILE];
}

static struct block_node *truth(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_DATA];
}

/* `raw` as a spec: an object without a driver is a raw image in the file it names. */
static int truth_spec(struct conf *opts, struct conf **ret, struct error *err)
{
	struct conf *given = conf_get(opts, verify_keys[0].name);
	_cleanup_(conf_freep) struct conf *c = NULL;

	if (!given)
		return error_set(err, -EINVAL, "The verify driver requires 'raw'");
	if (conf_type(given) == CONF_SCALAR) {
		int r = block_spec_from_name(conf_text(given), "raw", &c, err);

		if (r)
			return r;
	} else {
		c = conf_dup(given);
		if (!c || (!conf_has(c, "driver") && conf_set(c, "driver", "raw")))
			return error_set_errno(err, -ENOMEM, "Could not open 'raw'");
	}
	conf_remove(opts, "raw");
	*ret = take(c);
	return 0;
}

static int co_verify_open(struct block_node *n, struct conf *opts, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts o = n->opts;
	struct block_node *t;
	int r = truth_spec(opts, &spec, err);

	if (!r)
		r = co_block_open(spec, &o, &t, err);
	if (r)
		return r;
	if (block_size(t) != n->size) {
		r = error_set(err, -EINVAL,
			"'%s' has %llu bytes and '%s' %llu: verify needs the same size",
			n->filename, (unsigned long long)n->size, t->filename,
			(unsigned long long)block_size(t));
		co_block_node_unref(t);
		return r;
	}
	n->child[BLOCK_ROLE_DATA] = t;
	return 0;
}

static bool same(struct iov_slice a, const char *b)
{
	size_t done = 0;

	while (done < a.len) {
		struct iovec v;
		size_t covered;

		if (!iov_export(iov_cut(a, done, a.len - done), &v, 1, &covered))
			return false;
		if (memcmp(v.iov_base, b + done, covered))
			return false;
		done += covered;
	}
	return true;
}

static int co_verify_read(struct block_node *n, struct block_io *io)
{
	_cleanup_free_ char *buf = block_buffer_alloc(truth(n), io->len);
	int r;

	if (!buf)
		return -ENOMEM;
	r = co_block_read(tested(n), io->off, io->buf, io->flags);
	if (!r)
		r = co_block_pread(truth(n), io->off, buf, io->len);
	if (!r && !same(io->buf, buf)) {
		trace("block_verify_differs", "%s: %llu bytes at %llu", n->filename,
			(unsigned long long)io->len, (unsigned long long)io->off);
		r = -EIO;
	}
	return r;
}

static int co_verify_write(struct block_node *n, struct block_io *io)
{
	int r = co_block_write(tested(n), io->off, io->buf, io->flags);

	return r ? r : co_block_write(truth(n), io->off, io->buf, io->flags & BLOCK_IO_FUA);
}

static int co_verify_zero(struct block_node *n, struct block_io *io)
{
	int r = co_block_zero(tested(n), io->off, io->len, io->flags);

	return r ? r : co_block_zero(truth(n), io->off, io->len, io->flags);
}

/* What a discarded range reads as is the tested node's to say: the truth is made to follow. */
static int co_verify_discard(struct block_node *n, struct block_io *io)
{
	_cleanup_free_ char *buf = block_buffer_alloc(truth(n), MIN(io->len, MiB));
	uint64_t off = io->off, end = io->off + io->len;
	int r = buf ? co_block_discard(tested(n), io->off, io->len, io->flags) : -ENOMEM;

	while (!r && off < end) {
		uint64_t part = MIN(end - off, MiB);

		r = co_block_pread(tested(n), off, buf, part);
		if (!r)
			r = co_block_pwrite(truth(n), off, buf, part);
		off += part;
	}
	return r;
}

static int co_verify_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	int ret = co_block_resize(tested(n), r, err);

	return ret ? ret : co_block_resize(truth(n), r, err);
}

const struct block_driver block_verify = {
	.name = "verify",
	.kind = BLOCK_KIND_FILTER,
	.open_keys = verify_keys,
	.co_open = co_verify_open,
	.co_resize = co_verify_resize,
	.co_read = co_verify_read,
	.co_write = co_verify_write,
	.co_zero = co_verify_zero,
	.co_discard = co_verify_discard,
};
