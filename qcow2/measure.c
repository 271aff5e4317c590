/* SPDX-License-Identifier: MIT */
/*
 * The measure command: how big an image file with given options becomes for a virtual size, or for
 * the content of another node.
 */
#include "base/mem.h"
#include "qcow2/qcow2.h"

/* Does the host file hold data behind this extent? A hole in it reads as zeroes, so that a copy
 * need not store it. *len is cut to what the answer is good for. */
static int co_extent_needs_data(struct block_extent *e, bool *ret)
{
	struct block_extent host;
	int r;

	*ret = false;
	if (e->flags & BLOCK_EXTENT_ZERO || !(e->flags & BLOCK_EXTENT_DATA))
		return 0;
	*ret = true;
	if (!(e->flags & BLOCK_EXTENT_MAPPED) || e->flags & BLOCK_EXTENT_COMPRESSED || !e->host)
		return 0;
	if (e->host_off >= block_size(e->host)) {
		*ret = false;
		return 0;
	}
	e->len = MIN(e->len, block_size(e->host) - e->host_off);
	r = co_block_extent(e->host, e->host_off, e->len, &host);
	if (r < 0)
		return r;
	e->len = MIN(e->len, host.len);
	*ret = !(host.flags & BLOCK_EXTENT_ZERO);
	return 0;
}

/* Counts the clusters of the target that would hold data of src. */
static int co_count_data(
	struct block_node *src, unsigned cluster_bits, uint64_t *ret, struct error *err)
{
	uint64_t size = block_size(src), off = 0, clusters = 0, counted_to = 0;

	while (off < size) {
		struct block_extent e;
		bool data = false;
		int r = co_block_extent_chain(src, NULL, off, size - off, &e);

		if (r == 0)
			r = co_extent_needs_data(&e, &data);
		if (r < 0)
			return error_set_errno(err, r,
				"%s: cannot find out what is allocated at "
				"offset %llu",
				src->filename, (unsigned long long)off);
		if (data) {
			uint64_t first = MAX(off >> cluster_bits, counted_to);
			uint64_t end = div_up(off + e.len, 1ULL << cluster_bits);

			if (end > first)
				clusters += end - first;
			counted_to = MAX(counted_to, end);
		}
		off += e.len;
	}
	*ret = clusters;
	return 0;
}

int co_q2_measure(struct conf *opts, struct block_node *src, uint64_t size,
	struct block_measure *ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *none = NULL;
	struct q2_create_params p;
	struct q2_layout l;
	uint64_t data = 0;
	int r;

	if (!opts) {
		opts = none = conf_new(CONF_OBJECT);
		if (!opts)
			return error_set(err, -ENOMEM, "out of memory");
	}
	r = q2_create_parse(opts, src ? block_size(src) : size, &p, err);
	if (r < 0)
		return r;
	r = q2_layout(&p, true, &l);
	if (r < 0)
		return error_set(
			err, r, "The image size is too large (try using a larger cluster size)");
	if (p.prealloc == BLOCK_PREALLOC_FALLOC || p.prealloc == BLOCK_PREALLOC_FULL ||
		(src && p.backing_name)) {
		data = l.data; /* what the target's backing file holds is not known here */
	} else if (src) {
		r = co_count_data(src, p.cluster_bits, &data, err);
		if (r < 0)
			return r;
	} else {
		data = 0;
	}
	*ret = (struct block_measure){
		.required = (l.metadata + data) << p.cluster_bits,
		.fully_allocated = l.total << p.cluster_bits,
		/* Bitmaps travel only between version 3 images. */
		.has_bitmaps = src && src->drv == &block_qcow2 && p.version >= 3 &&
			q2_image(src)->h.version >= 3,
	};
	return 0;
}
