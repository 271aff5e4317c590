/* SPDX-License-Identifier: MIT */
/*
 * Cluster codecs: one cluster of guest data to compressed bytes and back. Pure CPU work, any
 * thread.
 *
 * Deflate clusters are raw deflate with a window of 4 KiB, which is all that some qcow2 readers
 * have; zstd clusters are one frame. Levels (open and create option compression_level):
 *
 *	deflate  1-3  ISA-L 1-3		zstd  1-22  as they are
 *		 4-9  zlib 4-9			      0     3, with tables fit for clusters
 *		 0    ISA-L 2, the default
 *
 * The result depends on the cluster, the level and the CPU's instruction set only, never on what an
 * encoder did before nor on where it lies in memory, so that images come out the same whatever the
 * number of threads. ISA-L needs help with that: see encode_isal.
 */
#include <isa-l/igzip_lib.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/mem.h"
#include "qcow2/qcow2.h"

#define WINDOW_BITS        12
#define ISAL_MAX_LEVEL     3
#define ISAL_DEFAULT_LEVEL 2
#define ISAL_PRIME         16u         /* bytes of the first call of encode_isal */
#define ISAL_PRIME_MIN     (16u << 10) /* clusters in which the cost of it does not show */
#define ZSTD_TUNED_MIN     (32u << 10)
#define ZSTD_TUNED_MAX     (128u << 10)

struct q2_encoder {
	enum q2_compression type;
	int level;
	uint32_t cluster_size;
	struct isal_zstream *isal; /* deflate up to ISAL_MAX_LEVEL, and the early trial */
	uint8_t *isal_buf;
	z_stream zlib;
	bool zlib_ready;
	ZSTD_CCtx *zstd;
};

/* --- encoding ------------------------------------------------------------------------------ */

static voidpf zlib_alloc(voidpf opaque, uInt n, uInt size)
{
	return mem_calloc(n, size);
}

static void zlib_free(voidpf opaque, voidpf p)
{
	mem_free(p);
}

/* The room for tokens bounds the length of a block: short blocks have codes that follow the data,
 * long ones fewer tables. These were the smallest results, or near them at a better speed. */
static uint32_t isal_buf_size(int level)
{
	switch (level) {
	case 1:
		return ISAL_DEF_LVL1_REQ + 24 * 1024;
	case 2:
		return ISAL_DEF_LVL2_REQ + 20 * 1024;
	default:
		return ISAL_DEF_LVL3_REQ + 28 * 1024;
	}
}

/* Small clusters go without the priming of encode_isal, whose bytes they would feel: level 3. */
static int isal_level(enum q2_compression type, int level, uint32_t cluster_size)
{
	if (cluster_size < ISAL_PRIME_MIN)
		return ISAL_MAX_LEVEL;
	if (type == Q2_COMPRESSION_DEFLATE && level > 0 && level <= ISAL_MAX_LEVEL)
		return level;
	return ISAL_DEFAULT_LEVEL;
}

static int encoder_init_deflate(struct q2_encoder *e)
{
	int r;

	e->zlib.zalloc = zlib_alloc;
	e->zlib.zfree = zlib_free;
	r = deflateInit2(&e->zlib, e->level, Z_DEFLATED, -WINDOW_BITS, 9, Z_DEFAULT_STRATEGY);
	e->zlib_ready = r == Z_OK;
	return e->zlib_ready ? 0 : -ENOMEM;
}

/* The tables of level 3 are too large to stay in the L1 cache, and most of them lies idle in a
 * cluster. Smaller ones, with shorter matches, give the same size in less time. */
static int zstd_default(ZSTD_CCtx *c)
{
	static const struct {
		ZSTD_cParameter key;
		int value;
	} params[] = {{ZSTD_c_strategy, ZSTD_dfast}, {ZSTD_c_hashLog, 13}, {ZSTD_c_chainLog, 12},
		{ZSTD_c_minMatch, 4}};

	for (unsigned i = 0; i < ARRAY_SIZE(params); i++)
		if (ZSTD_isError(ZSTD_CCtx_setParameter(c, params[i].key, params[i].value)))
			return -EINVAL;
	return 0;
}

static int encoder_init_zstd(struct q2_encoder *e)
{
	int level = e->level ? e->level : ZSTD_CLEVEL_DEFAULT;

	e->zstd = ZSTD_createCCtx();
	if (!e->zstd)
		return -ENOMEM;
	if (ZSTD_isError(ZSTD_CCtx_setParameter(e->zstd, ZSTD_c_compressionLevel, level)))
		return -EINVAL;
	if (e->level == 0 && e->cluster_size >= ZSTD_TUNED_MIN && e->cluster_size <= ZSTD_TUNED_MAX)
		return zstd_default(e->zstd);
	return 0;
}

void q2_encoder_free(struct q2_encoder *e)
{
	if (!e)
		return;
	if (e->zlib_ready)
		deflateEnd(&e->zlib);
	ZSTD_freeCCtx(e->zstd);
	mem_free(e->isal);
	mem_free(e->isal_buf);
	mem_free(e);
}

struct q2_encoder *q2_encoder_new(enum q2_compression type, int level, uint32_t cluster_size)
{
	struct q2_encoder *e = mem_zalloc(sizeof(*e));
	int fast_level = isal_level(type, level, cluster_size), r = 0;

	if (!e)
		return NULL;
	e->type = type;
	e->level = level;
	e->cluster_size = cluster_size;
	e->isal = mem_zalloc(sizeof(*e->isal));
	e->isal_buf = mem_zalloc(isal_buf_size(fast_level));
	if (!e->isal || !e->isal_buf)
		goto fail;
	isal_deflate_init(e->isal);
	e->isal->level = (uint32_t)fast_level;
	e->isal->level_buf = e->isal_buf;
	e->isal->level_buf_size = isal_buf_size(fast_level);
	e->isal->hist_bits = WINDOW_BITS;
	e->isal->gzip_flag = IGZIP_DEFLATE;
	if (type == Q2_COMPRESSION_ZSTD)
		r = encoder_init_zstd(e);
	else if (level > ISAL_MAX_LEVEL)
		r = encoder_init_deflate(e);
	if (r == 0)
		return e;
fail:
	q2_encoder_free(e);
	return NULL;
}

/* Each returns 0 and *ret_len, or 1 when the result takes more than `room` bytes. */

/* At levels 1 and 2 the x86 matcher of ISA-L (2.30 at least), when it meets the very first byte of
 * a stream, files position 2 in its hash table under a hash of bits 16 to 47 of the address of
 * the stream state instead of the data: now and then a match, so the output, depends on them. Its
 * code for the end of a piece of input has no such slip. A first piece of 16 bytes is all end, so
 * it goes there, and the matcher starts with a history. That costs a stored block and a flush. */
static int encode_isal(struct q2_encoder *e, const void *src, uint32_t n, void *dst, uint32_t room,
	uint32_t *ret_len)
{
	struct isal_zstream *z = e->isal;
	uint32_t prime = z->level < ISAL_MAX_LEVEL ? ISAL_PRIME : 0;

	isal_deflate_reset(z);
	z->next_in = (uint8_t *)src;
	z->next_out = dst;
	z->avail_out = room;
	if (prime) {
		z->avail_in = prime;
		z->end_of_stream = 0;
		z->flush = SYNC_FLUSH;
		if (isal_deflate(z) != COMP_OK || z->avail_in != 0)
			return 1;
	}
	z->avail_in = n - prime;
	z->end_of_stream = 1;
	z->flush = NO_FLUSH;
	if (isal_deflate(z) != COMP_OK || z->internal_state.state != ZSTATE_END)
		return 1;
	*ret_len = room - z->avail_out;
	return 0;
}

static int encode_zlib(struct q2_encoder *e, const void *src, uint32_t n, void *dst, uint32_t room,
	uint32_t *ret_len)
{
	z_stream *z = &e->zlib;

	if (deflateReset(z) != Z_OK)
		return -EINVAL;
	z->next_in = (Bytef *)src;
	z->avail_in = n;
	z->next_out = dst;
	z->avail_out = room;
	if (deflate(z, Z_FINISH) != Z_STREAM_END)
		return 1;
	*ret_len = room - z->avail_out;
	return 0;
}

static int encode_zstd(struct q2_encoder *e, const void *src, uint32_t n, void *dst, uint32_t room,
	uint32_t *ret_len)
{
	size_t r = ZSTD_compress2(e->zstd, dst, room, src, n);

	if (ZSTD_isError(r))
		return ZSTD_getErrorCode(r) == ZSTD_error_memory_allocation ? -ENOMEM : 1;
	*ret_len = (uint32_t)r;
	return 0;
}

/* Do bytes sampled from all over the cluster come as evenly as random ones would? With N samples
 * the sum of squared counts of 256 values is about N*N/256 + N for random bytes, and several times
 * that for anything a codec can work with. */
static bool looks_random(const uint8_t *src, uint32_t n)
{
	enum { WINDOWS = 16, WINDOW = 256, SAMPLES = WINDOWS * WINDOW };
	uint32_t count[256] = {0};
	uint64_t sum = 0;

	if (n < 2 * SAMPLES)
		return false;
	for (uint32_t w = 0; w < WINDOWS; w++) {
		const uint8_t *p = src + (uint64_t)w * (n - WINDOW) / (WINDOWS - 1);

		for (uint32_t i = 0; i < WINDOW; i++)
			count[p[i]]++;
	}
	for (unsigned i = 0; i < 256; i++)
		sum += (uint64_t)count[i] * count[i];
	return sum < SAMPLES * SAMPLES / 256 + 2 * SAMPLES;
}

int q2_encode(struct q2_encoder *e, const void *src, void *dst, uint32_t *ret_len)
{
	uint32_t n = e->cluster_size, room = n - 1;

	/* Data that looks random gets a trial on its first quarter, which also finds repeats. */
	if (looks_random(src, n)) {
		uint32_t trial;

		if (encode_isal(e, src, n / 4, dst, n / 4, &trial) != 0)
			return 1;
	}
	if (e->type == Q2_COMPRESSION_ZSTD)
		return encode_zstd(e, src, n, dst, room, ret_len);
	if (e->level > ISAL_MAX_LEVEL)
		return encode_zlib(e, src, n, dst, room, ret_len);
	return encode_isal(e, src, n, dst, room, ret_len);
}

/* --- decoding ------------------------------------------------------------------------------ */

/* Decoder contexts are pooled: as many exist as were ever in use at once. */
struct decoder {
	struct decoder *next;
	struct inflate_state isal;
	ZSTD_DCtx *zstd;
};

static struct {
	struct spin lock;
	struct decoder *free;
} decoders;

static struct decoder *decoder_get(void)
{
	struct decoder *d;

	spin_lock(&decoders.lock);
	d = decoders.free;
	if (d)
		decoders.free = d->next;
	spin_unlock(&decoders.lock);
	return d ? d : mem_zalloc(sizeof(*d));
}

static void decoder_put(struct decoder *d)
{
	spin_lock(&decoders.lock);
	d->next = decoders.free;
	decoders.free = d;
	spin_unlock(&decoders.lock);
}

/* Decodes with the output as its own history, so windows up to 32 KiB are read. */
static int decode_isal(struct decoder *d, const void *src, size_t len, void *dst, size_t n)
{
	struct inflate_state *z = &d->isal;

	isal_inflate_init(z);
	z->next_in = (uint8_t *)src;
	z->avail_in = (uint32_t)len;
	z->next_out = dst;
	z->avail_out = (uint32_t)n;
	return isal_inflate_stateless(z) == ISAL_DECOMP_OK && z->avail_out == 0 ? 0 : -EIO;
}

/* The second opinion, for streams that ISA-L does not take: one that goes on behind the cluster, or
 * whose end is cut off although the cluster is whole. */
static int decode_zlib(const void *src, size_t len, void *dst, size_t n)
{
	z_stream z = {.zalloc = zlib_alloc, .zfree = zlib_free};
	int r;

	z.next_in = (Bytef *)src;
	z.avail_in = (uInt)len;
	z.next_out = dst;
	z.avail_out = (uInt)n;
	if (inflateInit2(&z, -15) != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

/* One frame that holds one cluster; what lies behind the frame is not looked at. */
static int decode_zstd(struct decoder *d, const void *src, size_t len, void *dst, size_t n)
{
	size_t frame = ZSTD_findFrameCompressedSize(src, len);

	if (ZSTD_isError(frame))
		return -EIO;
	if (!d->zstd && !(d->zstd = ZSTD_createDCtx()))
		return -ENOMEM;
	return ZSTD_decompressDCtx(d->zstd, dst, n, src, frame) == n ? 0 : -EIO;
}

int q2_decompress(
	enum q2_compression type, const void *src, size_t len, void *dst, size_t cluster_size)
{
	struct decoder *d;
	int r;

	if (len > 2ULL << Q2_MAX_CLUSTER_BITS || cluster_size > 1ULL << Q2_MAX_CLUSTER_BITS)
		return -EIO;
	d = decoder_get();
	if (!d)
		return -ENOMEM;
	if (type == Q2_COMPRESSION_ZSTD) {
		r = decode_zstd(d, src, len, dst, cluster_size);
	} else {
		r = decode_isal(d, src, len, dst, cluster_size);
		if (r < 0)
			r = decode_zlib(src, len, dst, cluster_size);
	}
	decoder_put(d);
	return r;
}
