/* SPDX-License-Identifier: MIT */
/*
 * A tiny image format with backing files, for tests of the graph that need layers but no qcow2:
 * sector 0 holds the magic, the backing name and format; a sector that begins with 0xff is not
 * allocated.
 */
#ifndef DROVER_TEST_LAYER_H
#define DROVER_TEST_LAYER_H

#include "tests/unit/block.h"

#define LAYER_MAGIC "LAYER\r\n\032"

struct layer_head {
	char magic[8];
	char backing[256], format[16];
	char pad[512 - 8 - 256 - 16];
};

static inline int layer_probe(const void *head, size_t n)
{
	return n >= 8 && !memcmp(head, LAYER_MAGIC, 8) ? 100 : 0;
}

static inline int co_layer_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct block_node *file = n->child[BLOCK_ROLE_FILE];
	struct layer_head h;
	int r = co_block_pread(file, 0, &h, sizeof(h));

	if (r)
		return error_set_errno(err, r, "Could not read '%s'", n->filename);
	if (!layer_probe(h.magic, 8))
		return error_set(err, -EINVAL, "Image is not in layer format");
	n->size = block_size(file) - 512;
	n->caps = (struct block_caps){.align = 512,
		.buf_align = 1,
		.zero_align = 512,
		.discard_align = 512,
		.cluster = 512,
		.write_flags = BLOCK_IO_UNCHANGED,
		.can_backing = true};
	if (h.backing[0] && !(n->opts.flags & BLOCK_OPEN_NO_BACKING))
		return co_block_open_backing(
			n, h.backing, h.format[0] ? h.format : NULL, NULL, err);
	return 0;
}

static inline int co_layer_sector(struct block_node *n, uint64_t off, char *buf, bool *ret)
{
	int r = co_block_pread(n->child[BLOCK_ROLE_FILE], off + 512, buf, 512);

	*ret = buf[0] != (char)0xff;
	return r;
}

static inline int co_layer_extent(
	struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	bool first = false, more;
	uint64_t done = 0;
	char buf[512];

	off = align_down(off, 512);
	while (done < len) {
		int r = co_layer_sector(n, off + done, buf, &more);

		if (r)
			return r;
		if (!done)
			first = more;
		else if (first != more)
			break;
		done += 512;
	}
	*ret = (struct block_extent){.len = MIN(done, len),
		.flags = first ? BLOCK_EXTENT_DATA | BLOCK_EXTENT_ALLOCATED : 0};
	return 0;
}

static inline int co_layer_read(struct block_node *n, struct block_io *io)
{
	char buf[512];
	bool allocated;

	for (uint64_t done = 0; done < io->len; done += 512) {
		uint64_t off = io->off + done;
		int r = co_layer_sector(n, off, buf, &allocated);

		if (r)
			return r;
		if (allocated)
			iov_copy_to(iov_cut(io->buf, done, 512), buf);
		else
			r = co_block_read_backing(n, off, iov_cut(io->buf, done, 512));
		if (r)
			return r;
	}
	return 0;
}

static inline int co_layer_write(struct block_node *n, struct block_io *io)
{
	return co_block_write(n->child[BLOCK_ROLE_FILE], io->off + 512, io->buf, 0);
}

static const struct block_driver layer_driver = {
	.name = "layer",
	.kind = BLOCK_KIND_FORMAT,
	.probe = layer_probe,
	.co_open = co_layer_open,
	.co_read = co_layer_read,
	.co_write = co_layer_write,
	.co_extent = co_layer_extent,
};

/* Registers the layer format beside the usual drivers. */
static inline int layer_setup(void **state)
{
	static const struct block_driver *table[64];
	const struct block_driver *const *d;
	int r = test_setup(state);
	unsigned n = 0;

	for (d = block_drivers(); *d && n < 62; d++)
		table[n++] = *d;
	table[n++] = &layer_driver;
	block_register(table);
	return r;
}

/* A file of `sectors` sectors, none of them allocated. */
static inline const char *layer_make(
	const char *file, const char *backing, const char *format, unsigned sectors)
{
	const char *path = test_path(file);
	struct layer_head h = {.magic = LAYER_MAGIC};
	char hole[512];
	FILE *f = fopen(path, "w");

	check(f);
	snprintf(h.backing, sizeof(h.backing), "%s", backing ? backing : "");
	snprintf(h.format, sizeof(h.format), "%s", format ? format : "");
	check(fwrite(&h, 1, 512, f) == 512);
	memset(hole, 0xff, 512);
	for (unsigned i = 0; i < sectors; i++)
		check(fwrite(hole, 1, 512, f) == 512);
	check(!fclose(f));
	return path;
}

#endif
