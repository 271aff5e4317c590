/* SPDX-License-Identifier: MIT */
/* The copy engine: content, traffic seen by the stores, order, errors, dirty bitmaps, packing. */
#include "tests/unit/store.h"

#define MIB (1024 * 1024)

struct fixture {
	struct store src, dst;
	struct block_copy c;
	struct block_job job;
	struct error err;
	int result;
};

static void setup(struct fixture *f, uint64_t size)
{
	*f = (struct fixture){0};
	store_init(&f->src, size);
	store_init(&f->dst, size);
	block_job_init(&f->job);
	f->c = (struct block_copy){.len = size, .min_sparse = 4096, .job = &f->job};
}

static void teardown(struct fixture *f)
{
	store_free(&f->src);
	store_free(&f->dst);
}

static int co_do_copy(void *arg)
{
	struct fixture *f = arg;

	f->c.src = store_co_node(&f->src);
	f->c.dst = store_co_node(&f->dst);
	f->result = co_block_copy(&f->c, &f->err);
	co_block_node_unref(f->c.src);
	co_block_node_unref(f->c.dst);
	return 0;
}

static void copy(struct fixture *f, enum ring_kind kind, uint64_t seed)
{
	store_run(kind, seed, co_do_copy, f);
}

static void assert_same(const struct fixture *f)
{
	assert_memory_equal(f->src.data, f->dst.data, f->src.size);
}

/* Runs of random kinds and lengths. */
static void fill(struct store *s, unsigned seed, unsigned run)
{
	uint64_t blocks = (s->size + STORE_BLOCK - 1) / STORE_BLOCK;

	srand(seed);
	for (uint64_t b = 0, n; b < blocks; b += n) {
		n = MIN((uint64_t)rand() % run + 1, blocks - b);
		store_set(s, b, n, rand() % 3, seed + (unsigned)b);
	}
}

/* Fresh target, dirty target, clusters, threads, engines: the content always arrives, holes are
 * not read (but where a cluster has data too) and what the target has already is not written. */
static void test_content(void **state attr_unused)
{
	static const uint64_t sizes[] = {1, 4096, 3 * MIB + 512, 21 * MIB + 4096 * 3 + 7};
	static const uint32_t clusters[] = {0, 512, 65536, 2 * MIB};

	for (unsigned i = 0; i < ARRAY_SIZE(sizes) * ARRAY_SIZE(clusters) * 4; i++) {
		uint32_t cluster = clusters[i / 4 % ARRAY_SIZE(clusters)];
		struct fixture f;

		setup(&f, sizes[i / 4 / ARRAY_SIZE(clusters)]);
		fill(&f.src, i + 1, i % 2 ? 20 : 700);
		f.dst.cluster = cluster;
		f.c.dst_is_zero = i & 1;
		f.c.in_order = i & 2;
		f.c.threads = i & 1 ? 3 : 1;
		f.c.depth = i % 9;
		if (!f.c.dst_is_zero)
			memset(f.dst.data, 0xee, f.dst.size);
		copy(&f, i % 3 ? RING_DEFAULT : RING_SIM, i);
		if (f.result)
			fail_msg("%s", f.err.text);
		assert_same(&f);
		if (f.c.dst_is_zero)
			assert_int_equal(f.dst.zero_bytes, 0);
		if (!cluster || !f.c.dst_is_zero)
			assert_int_equal(f.src.hole_reads, 0);
		assert_int_equal(f.c.bytes_read, f.src.read_bytes);
		assert_int_equal(f.c.bytes_written, f.dst.write_bytes);
		assert_int_equal(f.c.bytes_zeroed, f.dst.zero_bytes);
		assert_int_equal(f.job.done, f.c.len);
		assert_int_equal(f.job.total, f.c.len);
		teardown(&f);
	}
}

/* Adjacent extents of one kind become one request. */
static void test_merge(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 8 * MIB);
	store_set(&f.src, 0, 2048, STORE_DATA, 1); /* told in extents of at most 300 blocks */
	f.c.threads = 1;
	copy(&f, RING_SIM, 1);
	assert_int_equal(f.result, 0);
	assert_int_equal(f.src.reads, 8);
	assert_int_equal(f.dst.nlog, 8);
	teardown(&f);
}

static void test_zero_runs(void **state attr_unused)
{
	for (unsigned i = 0; i < 3; i++) {
		struct fixture f;

		setup(&f, 4 * MIB);
		store_set(&f.src, 0, 1024, STORE_DATA, 3);
		memset(f.src.data + 10 * 4096, 0, 4096);	/* one block */
		memset(f.src.data + 20 * 4096, 0, 8 * 4096);	/* a longer run */
		memset(f.src.data + 40 * 4096 + 100, 0, 8100);	/* one whole block in it */
		memset(f.dst.data, 0xee, f.dst.size);
		f.c.min_sparse = i == 0 ? 0 : i == 1 ? 4096 : 16384;
		copy(&f, RING_SIM, 1);
		assert_int_equal(f.result, 0);
		assert_same(&f);
		assert_int_equal(f.dst.zero_bytes, i == 0 ? 0 : i == 1 ? 10 * 4096 : 8 * 4096);
		assert_int_equal(f.dst.zero_bytes + f.dst.write_bytes, f.dst.size);
		teardown(&f);
	}
}

static void test_full_alloc(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 9 * MIB + 5);
	fill(&f.src, 5, 300);
	f.c.min_sparse = 0;
	f.c.full_alloc = true;
	f.c.dst_is_zero = true;
	copy(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 0);
	assert_same(&f);
	assert_int_equal(f.dst.write_bytes, f.dst.size);
	assert_int_equal(f.dst.zero_bytes, 0);
	assert_int_equal(f.src.hole_reads, 0);
	teardown(&f);
}

static void test_keeps_backing(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 16 * MIB);
	fill(&f.src, 9, 40);
	memset(f.dst.data, 0x55, f.dst.size);
	f.c.dst_has_backing = true;
	copy(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 0);
	for (uint64_t b = 0; b < f.src.size / STORE_BLOCK; b++) {
		if (f.src.kind[b] == STORE_UNALLOCATED)
			assert_int_equal(f.dst.written[b], 0);
		else
			assert_memory_equal(f.src.data + b * STORE_BLOCK,
				f.dst.data + b * STORE_BLOCK, STORE_BLOCK);
	}
	teardown(&f);
}

/* One ring with many workers, completing in any order: writes begin in ascending order. */
static void test_in_order(void **state attr_unused)
{
	for (unsigned seed = 1; seed < 40; seed++) {
		struct fixture f;

		setup(&f, 24 * MIB); /* units of 1 MiB, each one write */
		store_set(&f.src, 0, 24 * 256, STORE_DATA, seed);
		f.c.in_order = true;
		f.c.depth = 8;
		copy(&f, RING_SIM, seed);
		assert_int_equal(f.result, 0);
		assert_same(&f);
		assert_int_equal(f.dst.nlog, 24);
		for (uint32_t i = 1; i < f.dst.nlog; i++)
			assert_true(f.dst.log[i] > f.dst.log[i - 1]);
		teardown(&f);
	}
}

static void test_read_error(void **state attr_unused)
{
	for (unsigned salvage = 0; salvage < 2; salvage++) {
		struct fixture f;

		setup(&f, 8 * MIB);
		store_set(&f.src, 0, 2048, STORE_DATA, 3);
		f.src.fail_read_off = 5 * MIB + 700;
		f.src.fail_read_len = 1000;
		f.c.salvage = salvage;
		copy(&f, RING_DEFAULT, 1);
		if (!salvage) {
			assert_int_equal(f.result, -EIO);
			assert_non_null(strstr(f.err.text, "reading"));
			assert_non_null(strstr(f.err.text, "5242880"));
		} else {
			assert_int_equal(f.result, 0);
			/* the three blocks of 512 that the bad range touches */
			assert_int_equal(f.c.salvaged, 3 * 512);
			memset(f.src.data + 5 * MIB + 512, 0, 3 * 512);
			assert_same(&f);
		}
		teardown(&f);
	}
}

static void test_write_error(void **state attr_unused)
{
	for (unsigned i = 0; i < 4; i++) {
		struct fixture f;

		setup(&f, 16 * MIB);
		store_set(&f.src, 0, 4096, STORE_DATA, 3);
		f.dst.fail_write_off = 9 * MIB + 1;
		f.c.in_order = i & 1;
		f.c.threads = i & 2 ? 2 : 1;
		copy(&f, i & 2 ? RING_DEFAULT : RING_SIM, i);
		assert_int_equal(f.result, -ENOSPC);
		assert_non_null(strstr(f.err.text, "writing"));
		assert_non_null(strstr(f.err.text, "9437184"));
		teardown(&f);
	}
}

static void test_range(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 8 * MIB);
	fill(&f.src, 4, 100);
	f.c.src_off = MIB + 777;
	f.c.dst_off = 5 * MIB + 13;
	f.c.len = 2 * MIB + 99;
	f.c.dst_is_zero = true;
	f.dst.cluster = 65536;
	copy(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, 0);
	assert_memory_equal(f.dst.data + f.c.dst_off, f.src.data + f.c.src_off, f.c.len);
	assert_true(mem_is_zero(f.dst.data, f.c.dst_off));
	assert_true(mem_is_zero(f.dst.data + f.c.dst_off + f.c.len,
		f.dst.size - f.c.dst_off - f.c.len));
	f.c.len = 7 * MIB;
	copy(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, -EINVAL);
	teardown(&f);
}

static void test_offload(void **state attr_unused)
{
	for (unsigned i = 0; i < 2; i++) {
		struct fixture f;

		setup(&f, 16 * MIB);
		fill(&f.src, 6, 500);
		f.c.offload = true;
		f.c.dst_is_zero = true;
		f.dst.copy_result = i ? 0 : -ENOTSUP;
		copy(&f, RING_SIM, 1);
		assert_int_equal(f.result, 0);
		assert_same(&f);
		assert_true(f.dst.copies > 0);
		assert_int_equal(f.src.reads > 0, !i);
		teardown(&f);
	}
}

static void test_dirty(void **state attr_unused)
{
	for (unsigned fails = 0; fails < 2; fails++) {
		struct fixture f;
		struct block_dirty *d;

		setup(&f, 32 * MIB);
		fill(&f.src, 8, 900);
		assert_int_equal(block_dirty_new(f.src.size, 65536, &d), 0);
		for (unsigned i = 0; i < 100; i++)
			block_dirty_set(d, (uint64_t)i * i * 3000 % f.src.size, 100);
		block_dirty_set(d, 20 * MIB, 7 * MIB);
		f.c.dirty = d;
		if (fails) {
			store_set(&f.src, 21 * 256, 256, STORE_DATA, 3);
			f.dst.fail_write_off = 21 * MIB + 5;
		}
		memset(f.dst.data, 0x55, f.dst.size);
		copy(&f, RING_SIM, 3);
		assert_int_equal(f.result, fails ? -ENOSPC : 0);
		/* What is not dirty any more has been copied. */
		for (uint64_t b = 0; b < f.src.size / STORE_BLOCK; b++) {
			const uint8_t *p = f.dst.data + b * STORE_BLOCK;

			if (f.dst.written[b] && !block_dirty_test(d, b * STORE_BLOCK))
				assert_memory_equal(f.src.data + b * STORE_BLOCK, p, STORE_BLOCK);
		}
		assert_int_equal(block_dirty_count(d) > 0, fails);
		if (fails)
			assert_true(block_dirty_test(d, 21 * MIB + 5));
		else
			assert_memory_equal(f.src.data + 20 * MIB, f.dst.data + 20 * MIB, 7 * MIB);
		assert_false(f.dst.written[(19 * MIB + 500000) / STORE_BLOCK]);
		block_dirty_free(d);
		teardown(&f);
	}
}

static void test_amplified(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 4 * MIB);
	fill(&f.src, 8, 900);
	f.c.refuse_amplified = true;
	copy(&f, RING_DEFAULT, 3);
	assert_int_equal(f.result, 0); /* a plain file is as big as what it holds */
	teardown(&f);
}

/* --- jobs in the copy ---------------------------------------------------------------------- */

static void cancel_soon(void *arg attr_unused, const struct block_job *job)
{
	if (__atomic_load_n(&job->done, __ATOMIC_RELAXED) >= 4 * MIB)
		block_job_cancel((struct block_job *)job);
}

static void test_cancel(void **state attr_unused)
{
	struct fixture f;

	setup(&f, 64 * MIB);
	store_set(&f.src, 0, 64 * 256, STORE_DATA, 3);
	f.job.progress = cancel_soon;
	f.job.rate = 40 * MIB;
	f.c.in_order = true;
	copy(&f, RING_DEFAULT, 1);
	assert_int_equal(f.result, -ECANCELED);
	assert_true(f.dst.write_bytes < 40 * MIB);
	teardown(&f);
}

/* --- compressed ---------------------------------------------------------------------------- */

/* The image that the fake format writes: encoded clusters one behind another. */
struct store_packed {
	uint64_t off;
	uint32_t len;
	bool compressed;
	uint8_t sum;
};

struct ticket {
	uint32_t first;
	unsigned n;
};

static uint32_t encoders;

/* "Compresses" clusters whose first byte is below 0x80 to as many bytes as that byte says. */
static int encode(struct block_node *n, void *state, const void *src, void *dst, uint32_t *ret_len)
{
	const uint8_t *p = src;

	assert_non_null(state);
	if (p[0] >= 0x80)
		return 1;
	memcpy(dst, p, p[0] + 1u);
	*ret_len = p[0] + 1u;
	return 0;
}

static void *encoder_new(struct block_node *n attr_unused)
{
	void *state = mem_alloc(16);

	if (state)
		__atomic_fetch_add(&encoders, 1, __ATOMIC_RELAXED);
	return state;
}

static void encoder_free(void *state)
{
	__atomic_fetch_sub(&encoders, 1, __ATOMIC_RELAXED);
	mem_free(state);
}

static int co_reserve(struct block_node *n, const struct block_packed *items, unsigned nitems,
	void **ret)
{
	struct store *s = store_of(n);
	struct ticket *t = mem_alloc(sizeof(*t));

	if (!t)
		return -ENOMEM;
	*t = (struct ticket){s->npacked, nitems};
	for (unsigned i = 0; i < nitems; i++) {
		assert_true(is_aligned(items[i].off, s->cluster));
		assert_false(items[i].zero);
		if (s->npacked)
			assert_true(items[i].off > s->packed[s->npacked - 1].off);
		s->packed[s->npacked++] = (struct store_packed){.off = items[i].off,
			.len = items[i].len,
			.compressed = items[i].compressed};
		if (!i)
			co_pause(); /* whoever came now would be out of turn */
	}
	__atomic_fetch_add(&s->tickets_open, 1, __ATOMIC_RELAXED);
	*ret = t;
	return 0;
}

static void ticket_end(struct store *s, struct ticket *t)
{
	__atomic_fetch_sub(&s->tickets_open, 1, __ATOMIC_RELAXED);
	mem_free(t);
}

static int co_store(
	struct block_node *n, const struct block_packed *items, unsigned nitems, void *ticket)
{
	struct store *s = store_of(n);
	struct ticket *t = ticket;
	int r = 0;

	co_pause();
	assert_int_equal(t->n, nitems);
	for (unsigned i = 0; i < nitems; i++) {
		uint64_t room = MIN(s->cluster, s->size - items[i].off);

		if (ranges_overlap(items[i].off, s->cluster, s->fail_write_off, 1))
			r = -ENOSPC;
		assert_int_equal(s->packed[t->first + i].off, items[i].off);
		s->packed[t->first + i].sum = ((const uint8_t *)items[i].data)[items[i].len - 1];
		memcpy(s->data + items[i].off, items[i].data, MIN(room, items[i].len));
	}
	ticket_end(s, t);
	return r;
}

static void abandon(struct block_node *n, void *ticket)
{
	ticket_end(store_of(n), ticket);
}

static const struct block_compress_ops compress_ops = {
	encode, encoder_new, encoder_free, co_reserve, co_store, abandon};

static void pack_setup(struct fixture *f, uint64_t size)
{
	setup(f, size);
	f->dst.cluster = 65536;
	f->c.compress = true;
	f->c.dst_is_zero = true;
	f->dst.packed = calloc(size / 512 + 2, sizeof(*f->dst.packed));
}

static void pack_teardown(struct fixture *f)
{
	assert_int_equal(f->dst.tickets_open, 0);
	assert_int_equal(encoders, 0);
	free(f->dst.packed);
	teardown(f);
}

/* The same items in the same order for any number of threads and any timing; each data cluster
 * once, padded at the end of the image; zero clusters not at all. */
static void test_compress_order(void **state attr_unused)
{
	uint64_t size = 14 * MIB + 1000;
	struct fixture first;

	store_compress_ops = &compress_ops;
	pack_setup(&first, size);
	fill(&first.src, 4, 200);
	first.c.threads = 1;
	copy(&first, RING_SIM, 1);
	assert_int_equal(first.result, 0);
	assert_true(first.dst.npacked > 50);
	for (uint32_t i = 0; i < first.dst.npacked; i++) {
		uint64_t off = first.dst.packed[i].off, n = MIN(65536u, size - off);

		assert_false(mem_is_zero(first.src.data + off, n));
		assert_int_equal(first.dst.packed[i].compressed, first.src.data[off] < 0x80);
	}
	for (uint64_t off = 0, i = 0; off < size; off += 65536)
		if (!mem_is_zero(first.src.data + off, MIN(65536u, size - off)))
			assert_int_equal(first.dst.packed[i++].off, off);
	for (unsigned k = 2; k < 14; k += 1 + k / 4) {
		struct fixture f;

		pack_setup(&f, size);
		fill(&f.src, 4, 200);
		f.c.threads = k;
		f.c.depth = k * 2;
		copy(&f, k % 2 ? RING_DEFAULT : RING_SIM, k);
		assert_int_equal(f.result, 0);
		assert_int_equal(f.dst.npacked, first.dst.npacked);
		assert_memory_equal(f.dst.packed, first.dst.packed,
			f.dst.npacked * sizeof(f.dst.packed[0]));
		pack_teardown(&f);
	}
	pack_teardown(&first);
	store_compress_ops = NULL;
}

/* Clusters cut by the copy's own ends go plain, at their place. */
static void test_compress_partial(void **state attr_unused)
{
	struct fixture f;

	store_compress_ops = &compress_ops;
	pack_setup(&f, 8 * MIB);
	store_set(&f.src, 0, 2048, STORE_DATA, 3);
	for (uint64_t off = 0; off < f.src.size; off++)
		f.src.data[off] |= 0x80; /* incompressible: stored whole */
	f.c.dst_off = 1000;
	f.c.len = 5 * MIB;
	copy(&f, RING_SIM, 1);
	assert_int_equal(f.result, 0);
	assert_memory_equal(f.dst.data + 1000, f.src.data, 5 * MIB);
	assert_true(f.dst.nlog >= 2);
	pack_teardown(&f);
	store_compress_ops = NULL;
}

static void test_compress_error(void **state attr_unused)
{
	struct fixture f;

	store_compress_ops = &compress_ops;
	for (unsigned i = 0; i < 20; i++) {
		pack_setup(&f, 16 * MIB);
		store_set(&f.src, 0, 4096, STORE_DATA, 3);
		if (i & 1) {
			f.src.fail_read_off = 3 * MIB;
			f.src.fail_read_len = 1;
		} else {
			f.dst.fail_write_off = 7 * MIB;
		}
		f.c.depth = i;
		copy(&f, i % 4 < 2 ? RING_SIM : RING_DEFAULT, i);
		assert_int_equal(f.result, i & 1 ? -EIO : -ENOSPC);
		pack_teardown(&f);
	}
	store_compress_ops = NULL;
	pack_setup(&f, 65536);
	copy(&f, RING_SIM, 1);
	assert_int_equal(f.result, -ENOTSUP);
	pack_teardown(&f);
}

/* --- memory -------------------------------------------------------------------------------- */

static int co_copy_failing(void *arg)
{
	struct fixture *f = arg;
	struct block_node *src = store_co_node(&f->src), *dst = store_co_node(&f->dst);
	uint64_t k = f->src.reads; /* borrowed as an argument */

	f->c.src = src;
	f->c.dst = dst;
	mem_fail_at(k, false);
	f->result = co_block_copy(&f->c, &f->err);
	mem_fail_at(0, false);
	co_block_node_unref(src);
	co_block_node_unref(dst);
	return 0;
}

/* The k-th allocation fails: an error or a complete copy, never a crash or a leak. */
static void test_no_memory(void **state attr_unused)
{
	unsigned failures = 0;

	for (unsigned compress = 0; compress < 2; compress++) {
		store_compress_ops = compress ? &compress_ops : NULL;
		for (unsigned k = 1; k < 60; k += 1 + k / 12) {
			struct fixture f;

			pack_setup(&f, 5 * MIB);
			store_set(&f.src, 0, 5 * 256, STORE_DATA, 3);
			for (uint64_t off = 0; off < f.src.size; off += 65536)
				f.src.data[off] = 0xff;
			f.c.compress = compress;
			f.src.reads = k;
			store_run(k & 1 ? RING_SIM : RING_DEFAULT, k, co_copy_failing, &f);
			if (f.result) {
				assert_int_equal(f.result, -ENOMEM);
				failures++;
			} else {
				assert_same(&f);
			}
			pack_teardown(&f);
		}
	}
	assert_true(failures > 5);
	store_compress_ops = NULL;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_content),
		cmocka_unit_test(test_merge),
		cmocka_unit_test(test_zero_runs),
		cmocka_unit_test(test_full_alloc),
		cmocka_unit_test(test_keeps_backing),
		cmocka_unit_test(test_in_order),
		cmocka_unit_test(test_read_error),
		cmocka_unit_test(test_write_error),
		cmocka_unit_test(test_range),
		cmocka_unit_test(test_offload),
		cmocka_unit_test(test_dirty),
		cmocka_unit_test(test_amplified),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_compress_order),
		cmocka_unit_test(test_compress_partial),
		cmocka_unit_test(test_compress_error),
		cmocka_unit_test(test_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
