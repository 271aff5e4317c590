/* SPDX-License-Identifier: MIT */
/*
 * Cluster codecs: round trips, the 4 KiB window, bounds, determinism, incompressible data; and the
 * packing of compressed clusters into images.
 */
#include <zlib.h>
#include <zstd.h>

#include "tests/unit/q2ops.h"

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

/* Nor must the address of its state: many encoders at once lie in many places. */
static void anywhere(void **state)
{
	enum { N = 65536, ENCODERS = 64, CLUSTERS = 20 };
	_cleanup_free_ uint8_t *src = mem_alloc(N), *one = mem_alloc(N), *two = mem_alloc(N);
	struct q2_encoder *e[ENCODERS];

	for (int level = 0; level <= 3; level++) {
		for (unsigned i = 0; i < ENCODERS; i++) {
			e[i] = q2_encoder_new(Q2_COMPRESSION_DEFLATE, level, N);
			assert_non_null(e[i]);
		}
		for (unsigned c = 0; c < CLUSTERS; c++) {
			uint32_t l1 = 0, l2 = 0;

			fill_text(src, N);
			assert_int_equal(q2_encode(e[0], src, one, &l1), 0);
			for (unsigned i = 1; i < ENCODERS; i++) {
				assert_int_equal(q2_encode(e[i], src, two, &l2), 0);
				assert_int_equal(l1, l2);
				assert_memory_equal(one, two, l1);
			}
		}
		for (unsigned i = 0; i < ENCODERS; i++)
			q2_encoder_free(e[i]);
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
	_cleanup_free_ uint8_t *src = mem_alloc(2 * N), *enc = mem_alloc(4 * N),
			       *dec = mem_alloc(N);
	size_t sizes[] = {N, 2 * N, N - 1, N / 2};

	fill_text(src, 2 * N);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		z_stream z = {.next_in = src,
			.avail_in = (uInt)sizes[i],
			.next_out = enc,
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

/* --- packing ------------------------------------------------------------------------------- */

static const char *const shapes[] = {
	"cluster_size=512,compat=0.10",
	"cluster_size=4k",
	"cluster_size=4k,refcount_bits=1",
	"cluster_size=512,refcount_bits=4,compression_type=zstd",
	"cluster_size=64k,compression_type=zstd",
	"cluster_size=64k",
	"cluster_size=16k,extended_l2=on",
};

/* Some clusters compress well, some not at all, some are zero. */
static void fill_mixed(uint8_t *p, size_t n, size_t cluster)
{
	for (size_t off = 0; off < n; off += cluster) {
		size_t len = MIN(cluster, n - off);

		switch ((rnd() >> 16) % 6) {
		case 0:
			memset(p + off, 0, len);
			break;
		case 1:
			fill_random(p + off, len);
			break;
		default:
			fill_text(p + off, len);
		}
	}
}

static int write_compressed(struct block_node *n, uint64_t off, void *buf, size_t len)
{
	struct iovec iov;

	return co_block_write(n, off, iov_buf(&iov, buf, len), BLOCK_IO_COMPRESSED);
}

/* Compressed and plain writes over each other, with reopening. */
CO_TEST(packed)
{
	enum { SIZE = 1024 * 1024 + 512 };
	uint8_t *shadow = malloc(SIZE), *buf = malloc(SIZE);

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct block_node *file, *n;
		uint64_t cluster;
		char opts[120];

		snprintf(opts, sizeof(opts), "size=%u,%s", SIZE, shapes[i]);
		file = create_mem(opts);
		n = open_image(file, NULL);
		cluster = q2_image(n)->cluster_size;
		memset(shadow, 0, SIZE);
		for (unsigned step = 0; step < 30; step++) {
			uint64_t off = (rnd() >> 8) % div_up(SIZE, cluster) * cluster;
			uint64_t len = MIN(SIZE - off, (1 + (rnd() >> 16) % 40) * cluster);

			fill_mixed(shadow + off, len, cluster);
			if (step % 3 == 2)
				check_int(co_block_pwrite(n, off, shadow + off, len), 0);
			else
				check_int(write_compressed(n, off, shadow + off, len), 0);
			check_int(co_block_pread(n, 0, buf, SIZE), 0);
			check(!memcmp(buf, shadow, SIZE));
			if (step % 10 != 9)
				continue;
			close_image(n);
			check_clean(file);
			n = open_image(file, NULL);
			check_int(co_block_pread(n, 0, buf, SIZE), 0);
			check(!memcmp(buf, shadow, SIZE));
		}
		close_image(n);
		check_clean(file);
		close_image(file);
	}
	free(shadow);
	free(buf);
}

/* Text takes less room than its clusters, next to each other, and unaligned requests are refused.
 */
CO_TEST(tight)
{
	enum { SIZE = 4 * 1024 * 1024 };
	struct block_node *file = create_mem("size=4M"), *n = open_image(file, NULL);
	uint8_t *data = malloc(SIZE);
	struct q2_encoder *e = q2_encoder_new(Q2_COMPRESSION_DEFLATE, 0, 65536);
	uint64_t sum = 0;

	fill_text(data, SIZE);
	for (unsigned i = 0; i < SIZE; i += 65536) {
		uint32_t len;
		uint8_t out[65536];

		check_int(q2_encode(e, data + i, out, &len), 0);
		sum += len;
	}
	q2_encoder_free(e);
	check_int(write_compressed(n, 512, data, 65536), -EINVAL);
	check_int(write_compressed(n, 0, data, 512), -EINVAL);
	check_int(write_compressed(n, 0, data, SIZE), 0);
	close_image(n);
	/* Metadata, and at most a sector lost for every batch of 16. */
	check(block_size(file) <= align_up(6 * 65536 + sum + 4 * 512, 65536));
	check_clean(file);
	check_int(check_file(file, 0, 0, NULL).compressed_clusters, 64);
	close_image(file);
	free(data);
}

/* No write ever touches a sector that holds bytes of clusters written before. */
CO_TEST(sectors_are_written_once)
{
	enum { CLUSTER = 4096, N = 200 };
	struct block_node *file = must_open(
		"driver=record,file.driver=mem,file.size=0", BLOCK_OPEN_RDWR);
	uint8_t *data = malloc(CLUSTER), *seen = calloc(1, 65536);
	const struct record_event *e;
	struct block_node *n;
	size_t count;

	check_int(try_create_on(file, "size=1M,cluster_size=4k", NULL), 0);
	record_clear(file);
	n = open_image(file, NULL);
	for (unsigned i = 0; i < N; i++) {
		fill_text(data, CLUSTER);
		check_int(write_compressed(n, (uint64_t)i * CLUSTER, data, CLUSTER), 0);
		if (i % 20 == 7)
			check_int(co_block_flush(n), 0);
		if (i % 50 == 30) {
			close_image(n);
			n = open_image(file, NULL);
		}
	}
	/* Data is what the L2 entries refer to; metadata is written as often as it likes. */
	e = record_log(file, &count);
	for (unsigned i = 0; i < N; i++) {
		struct q2_mapping m;

		check_int(co_q2_map(q2_image(n), (uint64_t)i * CLUSTER, CLUSTER, &m), 0);
		check_int(m.kind, Q2_DATA_COMPRESSED);
		seen[m.host_off / 512] = 1;
	}
	for (size_t k = 0; k < count; k++) {
		if (e[k].op != RECORD_WRITE)
			continue;
		for (uint64_t s = e[k].off / 512; s < (e[k].off + e[k].len) / 512; s++) {
			check(seen[s] != 2);
			if (seen[s] == 1)
				seen[s] = 2;
		}
	}
	close_image(n);
	check_clean(file);
	close_image(file);
	free(data);
	free(seen);
}

/* Tickets in any order, given up, and with failing writes: the rest stays right. */
CO_TEST(tickets)
{
	enum { CLUSTER = 4096, BATCH = 8 };
	struct block_node *file = must_open("driver=fault,file.driver=mem,file.size=0", RW);
	struct fault_rule rule = {.ops = FAULT_WRITE, .at = 1, .error = -ENOSPC};
	const struct block_compress_ops *ops = &q2_compress_ops;
	struct block_packed items[4][BATCH] = {0};
	uint8_t *text = malloc(CLUSTER), *out = malloc(4 * BATCH * CLUSTER);
	void *ticket[4], *state;
	struct block_node *n;
	uint32_t len;

	check_int(try_create_on(file, "size=1M,cluster_size=4k", NULL), 0);
	n = open_image(file, NULL);
	state = ops->new_state(n);
	fill_text(text, CLUSTER);
	for (unsigned t = 0; t < 4; t++) {
		for (unsigned i = 0; i < BATCH; i++) {
			struct block_packed *it = &items[t][i];

			it->off = (uint64_t)(t * BATCH + i) * CLUSTER;
			it->data = out + it->off;
			it->zero = i == 5;
			it->compressed = i != 2;
			check_int(ops->encode(n, state, text, (void *)it->data, &len), 0);
			it->len = it->compressed ? len : CLUSTER;
			if (i == 2)
				memcpy((void *)it->data, text, CLUSTER);
		}
		check_int(ops->co_reserve(n, items[t], BATCH, &ticket[t]), 0);
	}
	ops->free_state(state);
	check_int(ops->co_store(n, items[2], BATCH, ticket[2]), 0);
	ops->abandon(n, ticket[1]);
	check_int(fault_add(file, &rule), 0);
	check_int(ops->co_store(n, items[3], BATCH, ticket[3]), -ENOSPC);
	fault_clear(file);
	check_int(ops->co_store(n, items[0], BATCH, ticket[0]), 0);
	for (unsigned c = 0; c < 4 * BATCH; c++) {
		bool there = (c / BATCH == 0 || c / BATCH == 2) && c % BATCH != 5;
		uint8_t got[CLUSTER];

		check_int(co_block_pread(n, (uint64_t)c * CLUSTER, got, CLUSTER), 0);
		check(there ? !memcmp(got, text, CLUSTER) : mem_is_zero(got, CLUSTER));
	}
	close_image(n);
	check_clean(file);
	close_image(file);
	free(text);
	free(out);
}

struct late {
	struct block_node *n;
	uint8_t *data;
	int result;
	bool done;
};

static void co_late(void *arg)
{
	struct late *l = arg;

	l->result = write_compressed(l->n, 4096, l->data, 4096);
	l->done = true;
}

/* The host cluster to go on in is freed, and taken by somebody else, while the writer that has
 * looked at it waits for alloc_mutex: it must not join it. */
CO_TEST(joins_no_foreign_cluster)
{
	enum { CLUSTER = 4096 };
	struct block_node *file = create_mem("size=1M,cluster_size=4k");
	struct late late = {.n = open_image(file, NULL), .data = malloc(CLUSTER)};
	struct q2_image *img = q2_image(late.n);
	struct q2_mapping m;
	uint64_t host, count;

	fill_text(late.data, CLUSTER);
	check_int(write_compressed(late.n, 0, late.data, CLUSTER), 0);
	check_int(co_q2_map(img, 0, CLUSTER, &m), 0);
	host = align_down(m.host_off, CLUSTER);
	check(img->compressed_next > host && img->compressed_next < host + CLUSTER);
	co_mutex_lock(&img->alloc_mutex);
	check_int(co_start(co_late, &late), 0);
	while (!late.done && !img->alloc_mutex.waiters.head)
		co_sleep(1000000);
	check_int(co_q2_refcount_add_locked(img, host, 1, -1), 0);
	img->compressed_next = 0;
	check_int(co_q2_refcount_add_locked(img, host, 1, 1), 0);
	co_mutex_unlock(&img->alloc_mutex);
	while (!late.done)
		co_sleep(1000000);
	check_int(late.result, 0);
	check_int(co_q2_refcount_get(img, host >> img->cluster_bits, &count), 0);
	check_int(count, 1);
	check_int(co_q2_map(img, CLUSTER, CLUSTER, &m), 0);
	check(align_down(m.host_off, CLUSTER) != host);
	close_image(late.n);
	check_clean(file);
	close_image(file);
	free(late.data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(deterministic),
		cmocka_unit_test(anywhere),
		cmocka_unit_test(incompressible),
		cmocka_unit_test(foreign),
		cmocka_unit_test(levels),
		cmocka_unit_test(no_memory),
		cmocka_unit_test(packed),
		cmocka_unit_test(tight),
		cmocka_unit_test(sectors_are_written_once),
		cmocka_unit_test(tickets),
		cmocka_unit_test(joins_no_foreign_cluster),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
