/* SPDX-License-Identifier: MIT */
/* Cluster codecs: round trips, the 4 KiB window, bounds, determinism, incompressible data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include "base/mem.h"
#include "qcow2/qcow2.h"

static uint32_t seed = 1;

static uint32_t rnd(void)
{
	return seed = seed * 1664525 + 1013904223;
}

/* Text-like bytes with repeats at all distances up to far beyond the window. */
static void fill_text(uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n;) {
		size_t len = 4 + (rnd() >> 16) % 60;

		if (i > 64 && (rnd() >> 16) % 2) {
			size_t back = 1 + (rnd() >> 8) % MIN(i, (size_t)60000);

			for (size_t k = 0; k < len && i < n; k++, i++)
				p[i] = p[i - back];
		} else {
			for (size_t k = 0; k < len && i < n; k++, i++)
				p[i] = (uint8_t)('a' + (rnd() >> 16) % 20);
		}
	}
}

static void fill_random(uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(rnd() >> 24);
}

/* What the strictest readers do: output in small pieces, so that zlib keeps no history but its
 * window of 4 KiB and refuses distances beyond it. */
static int inflate_4k(const void *src, size_t len, uint8_t *dst, size_t n)
{
	z_stream z = {.next_in = (Bytef *)src, .avail_in = (uInt)len};
	uint8_t tiny[256];
	size_t done = 0, got;
	int r = Z_OK;

	assert_int_equal(inflateInit2(&z, -12), Z_OK);
	while (r == Z_OK) {
		z.next_out = tiny;
		z.avail_out = sizeof(tiny);
		r = inflate(&z, Z_NO_FLUSH);
		got = sizeof(tiny) - z.avail_out;
		if (done + got > n)
			break;
		memcpy(dst + done, tiny, got);
		done += got;
	}
	inflateEnd(&z);
	return r == Z_STREAM_END && done == n ? 0 : -1;
}

static void check_round_trip(unsigned type, int level, const uint8_t *src, uint32_t n)
{
	_cleanup_free_ uint8_t *enc = mem_alloc(n + 512), *dec = mem_alloc(n);
	struct q2_encoder *e = q2_encoder_new(type, level, n);
	uint32_t len = 0;

	assert_non_null(e);
	assert_int_equal(q2_encode(e, src, enc, &len), 0);
	assert_in_range(len, 1, n - 1);
	if (type == Q2_COMPRESSION_DEFLATE) {
		assert_int_equal(inflate_4k(enc, len, dec, n), 0);
		assert_memory_equal(src, dec, n);
	}
	/* Sectors have garbage behind the stream. */
	fill_random(enc + len, 512);
	memset(dec, 0, n);
	assert_int_equal(q2_decompress(type, enc, len + 512, dec, n), 0);
	assert_memory_equal(src, dec, n);
	assert_int_equal(q2_decompress(type, enc, len, dec, n), 0);
	assert_int_equal(q2_decompress(type, enc, len / 2, dec, n), -EIO);
	q2_encoder_free(e);
}

static void round_trip(void **state)
{
	static const int deflate_levels[] = {0, 1, 2, 3, 4, 6, 9}, zstd_levels[] = {0, 1, 3, 9};

	for (unsigned bits = Q2_MIN_CLUSTER_BITS; bits <= Q2_MAX_CLUSTER_BITS; bits += 3) {
		uint32_t n = 1u << bits;
		_cleanup_free_ uint8_t *src = mem_alloc(n);

		fill_text(src, n);
		for (unsigned i = 0; i < ARRAY_SIZE(deflate_levels); i++)
			check_round_trip(Q2_COMPRESSION_DEFLATE, deflate_levels[i], src, n);
		for (unsigned i = 0; i < ARRAY_SIZE(zstd_levels); i++)
			check_round_trip(Q2_COMPRESSION_ZSTD, zstd_levels[i], src, n);
	}
}

/* An encoder's history must not show in its output. */
static void deterministic(void **state)
{
	enum { N = 65536 };
	_cleanup_free_ uint8_t *a = mem_alloc(N), *b = mem_alloc(N), *c = mem_alloc(N),
			       *one = mem_alloc(N), *two = mem_alloc(N);

	fill_text(a, N);
	fill_text(b, N);
	fill_random(c, N);
	for (unsigned type = 0; type < 2; type++) {
		for (int level = 0; level <= 9; level++) {
			struct q2_encoder *fresh = q2_encoder_new(type, level, N);
			struct q2_encoder *used = q2_encoder_new(type, level, N);
			uint32_t l1 = 0, l2 = 0;

			assert_int_equal(q2_encode(used, b, two, &l2), 0);
			assert_int_equal(q2_encode(used, c, two, &l2), 1);
			assert_int_equal(q2_encode(used, a, two, &l2), 0);
			assert_int_equal(q2_encode(fresh, a, one, &l1), 0);
			assert_int_equal(l1, l2);
			assert_memory_equal(one, two, l1);
			q2_encoder_free(fresh);
			q2_encoder_free(used);
		}
	}
}

static void incompressible(void **state)
{
	enum { N = 65536 };
	_cleanup_free_ uint8_t *src = mem_alloc(N), *enc = mem_alloc(N);
	uint32_t len;

	for (unsigned type = 0; type < 2; type++) {
		struct q2_encoder *e = q2_encoder_new(type, 0, N);

		for (int i = 0; i < 20; i++) {
			fill_random(src, N);
			assert_int_equal(q2_encode(e, src, enc, &len), 1);
		}
		/* Random bytes that repeat within the window are compressible all the same. */
		fill_random(src, 2048);
		for (unsigned i = 2048; i < N; i++)
			src[i] = src[i - 2048];
		assert_int_equal(q2_encode(e, src, enc, &len), 0);
		assert_true(len < N / 4);
		q2_encoder_free(e);
	}
}

/* Foreign streams: a 32 KiB window, streams longer or shorter than a cluster, noise. */
static void foreign(void **state)
{
	enum { N = 65536 };
	_cleanup_free_ uint8_t *src = mem_alloc(2 * N), *enc = mem_alloc(4 * N), *dec = mem_alloc(N);
	size_t sizes[] = {N, 2 * N, N - 1, N / 2};

	fill_text(src, 2 * N);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		z_stream z = {.next_in = src, .avail_in = (uInt)sizes[i], .next_out = enc,
			.avail_out = 4 * N};
		size_t len;

		assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY), Z_OK);
		assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
		deflateEnd(&z);
		/* A stream that goes on behind the cluster still yields the cluster. */
		assert_int_equal(q2_decompress(Q2_COMPRESSION_DEFLATE, enc, z.total_out, dec, N),
			sizes[i] >= N ? 0 : -EIO);
		if (sizes[i] >= N)
			assert_memory_equal(dec, src, N);

		len = ZSTD_compress(enc, 4 * N, src, sizes[i], 3);
		assert_int_equal(q2_decompress(Q2_COMPRESSION_ZSTD, enc, len, dec, N),
			sizes[i] == N ? 0 : -EIO);
	}
	memset(enc, 0, N);
	assert_int_equal(q2_decompress(Q2_COMPRESSION_ZSTD, enc, N, dec, N), -EIO);
	assert_int_equal(q2_decompress(Q2_COMPRESSION_DEFLATE, enc, 0, dec, N), -EIO);
	for (unsigned i = 0; i < 2000; i++) {
		fill_random(enc, 600);
		q2_decompress(Q2_COMPRESSION_DEFLATE, enc, 600, dec, N);
		store_be32(enc, 0x28b52ffd); /* a zstd magic */
		q2_decompress(Q2_COMPRESSION_ZSTD, enc, 600, dec, N);
	}
}

/* Level 9 takes no more room than zlib's default does with the same window. */
static void levels(void **state)
{
	enum { N = 65536 };
	_cleanup_free_ uint8_t *src = mem_alloc(N), *enc = mem_alloc(2 * N);
	uint64_t ours[10] = {0}, peer = 0;

	for (int i = 0; i < 20; i++) {
		fill_text(src, N);
		for (int level = 0; level <= 9; level += 3) {
			struct q2_encoder *e = q2_encoder_new(Q2_COMPRESSION_DEFLATE, level, N);
			uint32_t len = 0;

			assert_int_equal(q2_encode(e, src, enc, &len), 0);
			ours[level] += len;
			q2_encoder_free(e);
		}
		z_stream z = {.next_in = src, .avail_in = N, .next_out = enc, .avail_out = 2 * N};

		deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY);
		deflate(&z, Z_FINISH);
		peer += z.total_out;
		deflateEnd(&z);
	}
	assert_true(ours[9] <= peer);
	assert_true(ours[9] <= ours[6]);
}

static void no_memory(void **state)
{
	for (unsigned type = 0; type < 2; type++) {
		struct q2_encoder *e;
		unsigned k = 0;

		do {
			mem_fail_at(++k, false);
			e = q2_encoder_new(type, 9, 65536);
		} while (!e && k < 20);
		mem_fail_at(0, false);
		assert_non_null(e);
		assert_true(k > 2);
		q2_encoder_free(e);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(deterministic),
		cmocka_unit_test(incompressible),
		cmocka_unit_test(foreign),
		cmocka_unit_test(levels),
		cmocka_unit_test(no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
