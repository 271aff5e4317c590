/* SPDX-License-Identifier: MIT */
/*
 * Reading compressed clusters, with a few of them kept decompressed: small reads do not decompress
 * the same cluster again and again.
 *
 * Theory of operation: an entry of the cache is named by the L2 entry (host offset and length of
 * the compressed bytes). Those bytes do not change while an entry refers to them, and when the last
 * reference to a host cluster leaves the quarantine, all requests that could still put its old
 * content here have ended: that is when q2_unpacked_forget() is called. A request that covers its
 * cluster whole decompresses straight into its own buffer and leaves the cache alone. Decompression
 * runs on the worker pool, but for small clusters.
 */
#include "base/mem.h"
#include "base/trace.h"
#include "base/worker.h"
#include "qcow2/qcow2.h"

#define SLOTS_MAX  16u
#define BUDGET     (2 * MiB)
#define INLINE_MAX (16 * KiB)

struct slot {
	uint64_t entry; /* 0: empty */
	uint64_t used;  /* clock of the last hit */
	uint8_t *data;
};

struct q2_unpacked {
	struct spin lock;
	uint64_t clock;
	unsigned n;
	struct slot slot[SLOTS_MAX];
};

int q2_unpacked_new(struct q2_image *img)
{
	img->unpacked = mem_zalloc(sizeof(*img->unpacked));
	if (!img->unpacked)
		return -ENOMEM;
	img->unpacked->n = (unsigned)MAX(
		MIN(BUDGET / img->cluster_size, (uint64_t)SLOTS_MAX), 1ULL);
	return 0;
}

void q2_unpacked_free(struct q2_unpacked *u)
{
	if (!u)
		return;
	for (unsigned i = 0; i < u->n; i++)
		mem_free(u->slot[i].data);
	mem_free(u);
}

void q2_unpacked_forget(struct q2_image *img, uint64_t off, uint64_t len)
{
	struct q2_unpacked *u = img->unpacked;

	spin_lock(&u->lock);
	for (unsigned i = 0; i < u->n; i++) {
		uint64_t e = u->slot[i].entry;

		if (e &&
			ranges_overlap(off, len, q2_compressed_offset(e, img->cluster_bits),
				q2_compressed_bytes(e, img->cluster_bits)))
			u->slot[i].entry = 0;
	}
	spin_unlock(&u->lock);
}

/* Copies from the cache; false on a miss. A cluster is at most 2 MiB: the lock is short enough. */
static bool lookup(struct q2_unpacked *u, uint64_t entry, uint64_t in, struct iov_slice buf)
{
	bool hit = false;

	spin_lock(&u->lock);
	for (unsigned i = 0; i < u->n && !hit; i++) {
		if (u->slot[i].entry != entry)
			continue;
		u->slot[i].used = ++u->clock;
		iov_copy_to(buf, u->slot[i].data + in);
		hit = true;
	}
	spin_unlock(&u->lock);
	return hit;
}

/* Puts a whole cluster into the oldest slot; takes `data` over and returns what was there. */
static uint8_t *insert(struct q2_unpacked *u, uint64_t entry, uint8_t *data)
{
	struct slot *oldest = &u->slot[0];
	uint8_t *old;

	spin_lock(&u->lock);
	for (unsigned i = 0; i < u->n; i++) {
		if (u->slot[i].entry == entry) {
			spin_unlock(&u->lock);
			return data;
		}
		if (!u->slot[i].entry || u->slot[i].used < oldest->used)
			oldest = &u->slot[i];
	}
	old = oldest->data;
	*oldest = (struct slot){entry, ++u->clock, data};
	spin_unlock(&u->lock);
	return old;
}

struct job {
	enum q2_compression type;
	const uint8_t *src;
	uint8_t *dst;
	size_t src_len, cluster_size;
};

static int job_run(void *arg)
{
	struct job *j = arg;

	return q2_decompress(j->type, j->src, j->src_len, j->dst, j->cluster_size);
}

/* One cluster, decompressed into dst. */
static int unpack(struct q2_image *img, uint64_t entry, uint8_t *dst)
{
	uint64_t off = q2_compressed_offset(entry, img->cluster_bits);
	uint64_t len = q2_compressed_bytes(entry, img->cluster_bits), size = block_size(img->file);
	_cleanup_free_ uint8_t *src = NULL;
	struct job job = {img->h.compression_type, NULL, dst, 0, img->cluster_size};
	int r;

	if (off >= size)
		return -EIO;
	/* The last sector of the file may be short. */
	len = MIN(len, size - off);
	src = block_buffer_alloc(img->file, len);
	if (!src)
		return -ENOMEM;
	r = co_block_pread(img->file, off, src, len);
	if (r < 0)
		return r;
	job.src = src;
	job.src_len = len;
	/* A small cluster is done before a worker is awake. */
	r = img->cluster_size <= INLINE_MAX ? job_run(&job) : co_offload(job_run, &job);
	trace("q2_unpack", "%s: %llu bytes at %llu, result %d", img->node->filename,
		(unsigned long long)len, (unsigned long long)off, r);
	return r;
}

int co_q2_unpack(struct q2_image *img, uint64_t entry, uint64_t in, struct iov_slice buf)
{
	bool whole = buf.len == img->cluster_size;
	_cleanup_free_ uint8_t *data = NULL;
	int r;

	if (lookup(img->unpacked, entry, in, buf))
		return 0;
	if (whole && iov_flat(buf))
		return unpack(img, entry, iov_flat(buf));
	data = mem_alloc(img->cluster_size);
	if (!data)
		return -ENOMEM;
	r = unpack(img, entry, data);
	if (r < 0)
		return r;
	iov_copy_to(buf, data + in);
	if (!whole)
		data = insert(img->unpacked, entry, take(data));
	return 0;
}
