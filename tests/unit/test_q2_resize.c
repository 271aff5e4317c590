/* SPDX-License-Identifier: MIT */
/* Growing, shrinking and emptying images: content, structure, what comes into sight, failures. */
#include "tests/unit/q2ops.h"

static const char *const shapes[] = {
	"cluster_size=512,compat=0.10",
	"cluster_size=512,refcount_bits=1",
	"cluster_size=4k",
	"cluster_size=64k",
	"cluster_size=16k,extended_l2=on",
	"cluster_size=2M",
};

static struct block_node *create_disk(const char *shape, uint64_t size)
{
	char opts[120];

	snprintf(opts, sizeof(opts), "size=%llu,%s", (unsigned long long)size, shape);
	return create_mem(opts);
}

static int resize(struct block_node *n, uint64_t size, enum block_prealloc mode)
{
	struct block_resize rs = {.size = size, .prealloc = mode, .shrink = size < n->size};
	struct error err = ERROR_INIT;
	int r = co_block_resize(n, &rs, &err);

	check(r == 0 || err.code == r);
	return r;
}

/* Random sizes and writes against a buffer. */
CO_TEST(random_sizes)
{
	enum { MAX = 3 * 1024 * 1024 };
	uint8_t *shadow = malloc(MAX), *buf = malloc(MAX);

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		uint64_t size = 1 * MiB, rnd = 5 + i;
		struct block_node *file = create_disk(shapes[i], size);
		struct block_node *n = open_image(file, NULL);

		memset(shadow, 0, MAX);
		for (unsigned step = 0; step < 60; step++) {
			uint64_t off = q2_random(&rnd) % (size / 512) * 512;
			uint64_t len = MIN(size - off, (1 + q2_random(&rnd) % 300) * 512);

			fill(shadow + off, len, off, step);
			check_int(co_block_pwrite(n, off, shadow + off, len), 0);
			if (step % 2) {
				uint64_t now = (1 + q2_random(&rnd) % (MAX / 512)) * 512;
				enum block_prealloc mode = now > size && step % 5 == 0
					? BLOCK_PREALLOC_METADATA
					: BLOCK_PREALLOC_OFF;

				check_int(resize(n, now, mode), 0);
				if (now < size)
					memset(shadow + now, 0, size - now);
				size = now;
				check_int(n->size, size);
			}
			check_int(co_block_pread(n, 0, buf, size), 0);
			check(!memcmp(buf, shadow, size));
			if (step % 10 == 9) {
				close_image(n);
				check_clean(file);
				n = open_image(file, NULL);
			}
		}
		close_image(n);
		check_clean(file);
		close_image(file);
	}
	free(shadow);
	free(buf);
}

/* A backing file longer than the overlay does not come into sight, in any version. */
CO_TEST(longer_backing)
{
	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct block_node *file = create_disk(shapes[i], 100 * KiB), *n, *backing;
		struct mem_content *c;

		check_int(mem_content_new(3 * MiB, &c), 0);
		backing = q2_test_mem(c);
		write_fill(backing, 0, 3 * MiB, 4);
		n = open_image(file, backing);
		check(reads_fill(n, 0, 100 * KiB, 4));
		check_int(resize(n, 4 * MiB, BLOCK_PREALLOC_OFF), 0);
		check(reads_fill(n, 0, 100 * KiB, 4));
		check(reads_zero(n, 100 * KiB, 4 * MiB - 100 * KiB));
		close_image(n);
		check_clean(file);
		n = open_image(file, backing);
		check(reads_fill(n, 0, 100 * KiB, 4));
		check(reads_zero(n, 100 * KiB, 4 * MiB - 100 * KiB));
		close_image(n);
		close_image(file);
		close_image(backing);
	}
}

CO_TEST(preallocation)
{
	static const enum block_prealloc modes[] = {
		BLOCK_PREALLOC_METADATA, BLOCK_PREALLOC_FALLOC, BLOCK_PREALLOC_FULL};

	for (unsigned i = 1; i < ARRAY_SIZE(shapes); i++) {
		for (unsigned m = 0; m < ARRAY_SIZE(modes); m++) {
			struct block_node *file = create_disk(shapes[i], 1 * MiB);
			struct block_node *n = open_image(file, NULL);
			struct block_check c;

			write_fill(n, 0, 1 * MiB, 1);
			check_int(resize(n, 9 * MiB, modes[m]), 0);
			check(reads_fill(n, 0, 1 * MiB, 1) && reads_zero(n, 1 * MiB, 8 * MiB));
			close_image(n);
			check_clean(file);
			c = check_file(file, 0, 0, NULL);
			check_int(c.allocated_clusters, c.total_clusters);
			close_image(file);
		}
	}
}

CO_TEST(refusals)
{
	struct block_node *file = create_disk("cluster_size=512,compat=0.10", 1 * MiB);
	struct block_node *n = open_image(file, NULL);
	struct block_snapshot s = {.name = (char *)"a", .icount = UINT64_MAX};
	struct block_resize rs = {.size = 64 * KiB};

	check_int(co_block_resize(n, &rs, NULL), -EINVAL); /* shrinking must be wanted */
	check_int(resize(n, 1000, BLOCK_PREALLOC_OFF), -EINVAL);
	check_int(resize(n, 64 * KiB, BLOCK_PREALLOC_FULL), -EINVAL);
	check_int(resize(n, 129 * GiB, BLOCK_PREALLOC_OFF), -EFBIG);
	check_int(resize(n, 2 * MiB, BLOCK_PREALLOC_OFF), 0);
	check_int(q2_snapshot_ops.co_create(n, &s, NULL), 0);
	check_int(resize(n, 3 * MiB, BLOCK_PREALLOC_OFF), -ENOTSUP);
	check_int(resize(n, 1 * MiB, BLOCK_PREALLOC_OFF), -ENOTSUP);
	check_int(n->size, 2 * MiB);
	close_image(n);
	check_clean(file);
	close_image(file);
}

/* The file gives back what the shrunken disk does not need. */
CO_TEST(file_is_cut)
{
	struct block_node *file = create_disk("cluster_size=64k", 64 * MiB);
	struct block_node *n = open_image(file, NULL);

	write_fill(n, 0, 64 * MiB, 1);
	check_int(co_block_flush(n), 0);
	check(block_size(file) > 64 * MiB);
	check_int(resize(n, 1 * MiB, BLOCK_PREALLOC_OFF), 0);
	check(block_size(file) < 2 * MiB);
	check(reads_fill(n, 0, 1 * MiB, 1));
	write_fill(n, 0, 1 * MiB, 2);
	close_image(n);
	check_clean(file);
	close_image(file);
}

/* --- order on disk ------------------------------------------------------------------------- */

/* Applies the events up to the k-th to `base`; what was written behind the last flush may be
 * missing one by one: `skip` leaves one out. */
static struct mem_content *replay(
	const struct mem_content *base, const struct record_event *e, size_t k, size_t skip)
{
	struct mem_content *c;

	check_int(mem_content_dup(base, &c), 0);
	for (size_t i = 0; i < k; i++) {
		if (i == skip)
			continue;
		if (e[i].op == RECORD_WRITE)
			check_int(mem_content_write(c, e[i].off, e[i].data, e[i].len), 0);
		else if (e[i].op == RECORD_TRUNCATE)
			check_int(mem_content_resize(c, e[i].len), 0);
		else if (e[i].op == RECORD_ZERO || e[i].op == RECORD_DISCARD)
			check_int(mem_content_zero(c, e[i].off, e[i].len), 0);
	}
	return c;
}

static void check_crash_state(
	struct mem_content *c, uint64_t old_size, uint64_t new_size, uint64_t kept)
{
	struct block_node *file = q2_test_mem(c), *n;
	struct block_check r = check_file(file, 0, 0, NULL);

	check_int(r.corruptions, 0);
	n = open_image(file, NULL);
	check(n->size == old_size || n->size == new_size);
	check(reads_fill(n, 0, kept, 1));
	if (n->size > kept)
		check(n->size == old_size ? reads_fill(n, 0, old_size, 1)
					  : reads_zero(n, kept, n->size - kept));
	/* Grown again without a repair, nothing old comes back. */
	check_int(resize(n, 4 * MiB, BLOCK_PREALLOC_OFF), 0);
	check(reads_zero(n, MAX(old_size, new_size), 4 * MiB - MAX(old_size, new_size)));
	close_image(n);
	check_file(file, BLOCK_REPAIR_LEAKS, 0, NULL);
	check_clean(file);
	close_image(file);
}

static void crash_states(uint64_t old_size, uint64_t new_size)
{
	struct block_node *file = must_open("driver=record,file.driver=mem,file.size=0", RW), *n;
	uint64_t kept = MIN(old_size, new_size);
	const struct record_event *e;
	struct mem_content *base;
	size_t count, epoch = 0;
	char opts[80];

	snprintf(opts, sizeof(opts), "size=%llu,cluster_size=512", (unsigned long long)old_size);
	check_int(try_create_on(file, opts, NULL), 0);
	n = open_image(file, NULL);
	write_fill(n, 0, old_size, 1);
	check_int(co_block_flush(n), 0);
	check_int(mem_node_snapshot(file->child[BLOCK_ROLE_FILE], &base), 0);
	record_clear(file);
	check_int(resize(n, new_size, BLOCK_PREALLOC_OFF), 0);
	e = record_log(file, &count);
	check(count > 4);
	for (size_t k = 0; k <= count; k++) {
		check_crash_state(replay(base, e, k, SIZE_MAX), old_size, new_size, kept);
		if (k < count && e[k].op != RECORD_FLUSH)
			continue;
		for (size_t skip = epoch; skip < k; skip++)
			check_crash_state(replay(base, e, k, skip), old_size, new_size, kept);
		epoch = k + 1;
	}
	mem_content_free(base);
	close_image(n);
	close_image(file);
}

CO_TEST(crashes)
{
	crash_states(100 * KiB, 300 * KiB);
	crash_states(300 * KiB, 100 * KiB);
	crash_states(300 * KiB, 512);
	crash_states(1 * MiB, 513 * KiB);
}

/* --- emptying ------------------------------------------------------------------------------ */

CO_TEST(emptied)
{
	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct block_node *file = create_disk(shapes[i], 2 * MiB), *n, *backing, *view;
		struct block_snapshot s = {.name = (char *)"a", .icount = UINT64_MAX};
		struct mem_content *c;
		bool snapshots = !strstr(shapes[i], "bits=1");

		check_int(mem_content_new(2 * MiB, &c), 0);
		backing = q2_test_mem(c);
		write_fill(backing, 0, 2 * MiB, 4);
		n = open_image(file, backing);
		write_fill(n, 0, 1 * MiB, 1);
		if (snapshots)
			check_int(q2_snapshot_ops.co_create(n, &s, NULL), 0);
		write_fill(n, 512 * KiB, 1 * MiB, 2);
		check_int(q2_image_ops.co_make_empty(n, NULL), 0);
		check(reads_fill(n, 0, 2 * MiB, 4));
		if (snapshots) {
			check_int(q2_snapshot_ops.co_open(n, "a", &view, NULL), 0);
			check(reads_fill(view, 0, 1 * MiB, 1));
			close_image(view);
		} else {
			check(block_size(file) < 256 * KiB);
		}
		write_fill(n, 100, 1000, 3);
		close_image(n);
		check_clean(file);
		n = open_image(file, backing);
		check(reads_fill(n, 100, 1000, 3) && reads_fill(n, 4096, 2 * MiB - 4096, 4));
		close_image(n);
		close_image(file);
		close_image(backing);
	}
}

/* Every k-th request fails: the size is the old or the new one, nothing within both is lost. */
CO_TEST(failing_requests)
{
	static const uint64_t sizes[] = {16 * MiB, 100 * KiB};

	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		int r = -EIO;

		for (uint64_t k = 1; r < 0; k++) {
			struct block_node *file, *n;
			struct fault_rule rule = {.ops = FAULT_ANY, .at = k, .error = -EIO};
			struct mem_content *c;

			file = must_open("driver=fault,file.driver=mem,file.size=0", RW);
			check_int(try_create_on(file, "size=1M,cluster_size=512", NULL), 0);
			n = open_image(file, NULL);
			write_fill(n, 0, 1 * MiB, 1);
			check_int(co_block_flush(n), 0);
			check_int(fault_add(file, &rule), 0);
			r = resize(n, sizes[i], BLOCK_PREALLOC_OFF);
			fault_clear(file);
			co_block_node_unref(n);
			check_int(mem_node_snapshot(file->child[BLOCK_ROLE_FILE], &c), 0);
			co_block_node_unref(file);
			file = q2_test_mem(c);
			n = open_image(file, NULL);
			check(n->size == 1 * MiB || n->size == sizes[i]);
			check(reads_fill(n, 0, MIN(n->size, 1 * MiB), 1));
			close_image(n);
			check_int(check_file(file, BLOCK_REPAIR_LEAKS, 0, NULL).corruptions, 0);
			check_clean(file);
			close_image(file);
		}
	}
}

/* An L2 entry names the refcount table: emptying gives up the reference, but not the table. */
CO_TEST(damage_is_not_punched)
{
	struct block_node *file = create_mem("size=1M,cluster_size=4k");
	struct block_node *n = open_image(file, NULL);
	uint64_t reftable = q2_image(n)->h.reftable_offset, l1 = q2_image(n)->h.l1_offset;
	uint8_t buf[4096] = "x";

	check_int(co_block_pwrite(n, 0, buf, sizeof(buf)), 0);
	close_image(n);
	poke_be64(file, file_be64(file, l1) & Q2_OFFSET_MASK, reftable | Q2_COPIED);
	n = open_image(file, NULL);
	(void)co_q2_make_empty(n, NULL);
	check(file_be64(file, reftable));
	co_block_node_unref(n);
	close_image(file);
}

/* The shared table at the new end cannot be copied: the old one stays in use. */
CO_TEST(shrink_without_room)
{
	struct block_node *file = create_mem("size=1M,cluster_size=4k");
	struct block_node *n = open_image(file, NULL);
	struct block_snapshot s = {.name = (char[]){"s"}};
	struct block_resize r = {.size = 64 * KiB, .shrink = true};
	uint8_t buf[4096] = "x";

	check_int(co_block_pwrite(n, 0, buf, sizeof(buf)), 0);
	check_int(co_block_pwrite(n, MiB / 2, buf, sizeof(buf)), 0);
	check_int(q2_snapshot_ops.co_create(n, &s, NULL), 0);
	file->caps.grows = false;
	check_int(co_block_resize(n, &r, NULL), -ENOSPC);
	check_int(co_block_pread(n, 0, buf, sizeof(buf)), 0);
	check_int(buf[0], 'x');
	file->caps.grows = true;
	check_int(co_block_pwrite(n, 4096, buf, sizeof(buf)), 0);
	close_image(n);
	n = open_image(file, NULL);
	for (unsigned i = 0; i < 2; i++) {
		memset(buf, 0, sizeof(buf));
		check_int(co_block_pread(n, i * 4096, buf, sizeof(buf)), 0);
		check_int(buf[0], 'x');
	}
	close_image(n);
	check_int(check_file(file, 0, 0, NULL).corruptions, 0);
	close_image(file);
}

struct waiting_discard {
	struct block_node *n;
	int result;
	bool done;
};

static void co_waiting_discard(void *arg)
{
	struct waiting_discard *w = arg;

	w->result = co_block_discard(w->n, 4096, 2048, 0);
	w->done = true;
}

/* A discard up to the end, in the middle of a cluster, that waits while the disk grows: the rest of
 * the cluster is not its own any more. */
CO_TEST(discard_waits_for_growth)
{
	struct block_node *file = create_mem("size=6k,cluster_size=4k");
	struct waiting_discard w = {.n = open_image(file, NULL)};
	struct q2_image *img = q2_image(w.n);
	struct block_resize r = {.size = 8192};
	uint8_t buf[2048];
	struct iovec iov;
	unsigned token;

	memset(buf, 'x', sizeof(buf));
	co_block_drain_begin(w.n);
	check_int(co_start(co_waiting_discard, &w), 0);
	check(!w.done);
	check_int(co_block_resize(w.n, &r, NULL), 0);
	token = co_q2_request_enter(img);
	check_int(co_q2_write_range(img, 6144, iov_buf(&iov, buf, sizeof(buf)), 0), 0);
	q2_request_leave(img, token);
	co_block_drain_end(w.n);
	while (!w.done)
		co_sleep(1000000);
	check_int(w.result, 0);
	check_int(co_block_pread(w.n, 6144, buf, sizeof(buf)), 0);
	check_int(buf[0], 'x');
	close_image(w.n);
	check_clean(file);
	close_image(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_sizes),
		cmocka_unit_test(longer_backing),
		cmocka_unit_test(preallocation),
		cmocka_unit_test(refusals),
		cmocka_unit_test(file_is_cut),
		cmocka_unit_test(crashes),
		cmocka_unit_test(emptied),
		cmocka_unit_test(failing_requests),
		cmocka_unit_test(damage_is_not_punched),
		cmocka_unit_test(shrink_without_room),
		cmocka_unit_test(discard_waits_for_growth),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
