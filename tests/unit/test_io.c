/* SPDX-License-Identifier: MIT */
/* The guarded entry: range, rights, made-up zeroes and FUA, detect-zeroes, discard rounding. */
#include "tests/unit/block.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

CO_TEST(test_read_write)
{
	struct block_stats stats;
	struct block_node *n = must_open("driver=raw,file.driver=mem,file.size=1M", RW);

	check_int(block_size(n), MiB);
	write_fill(n, 0, 4096, 1);
	write_fill(n, 4097, 513, 2);
	check(reads_fill(n, 0, 4096, 1));
	check(reads_fill(n, 4097, 513, 2));
	check(reads_zero(n, 4096, 1));
	check(reads_zero(n, 4097 + 513, 100));
	block_node_stats(n, &stats);
	check_int(stats.writes, 2);
	check_int(stats.write_bytes, 4096 + 513);
	check_int(stats.reads, 4);
	check_int(co_block_node_unref(n), 0);
}

CO_TEST(test_range)
{
	struct block_node *n = must_open("driver=raw,file.driver=mem,file.size=64k", RW);
	char buf[1024] = {0};

	check_int(co_block_pread(n, 65536 - 512, buf, 1024), -EIO);
	check_int(co_block_pread(n, UINT64_MAX - 511, buf, 512), -EIO);
	check_int(co_block_pwrite(n, 65536 - 512, buf, 1024), -EIO);
	check_int(co_block_pwrite(n, UINT64_MAX - 511, buf, 1024), -EIO);
	check_int(co_block_zero(n, 65536, 1, 0), -EIO);
	check_int(co_block_zero(n, 512, UINT64_MAX - 5, 0), -EIO);
	check_int(co_block_discard(n, 65536, 1, 0), -EIO);
	check_int(co_block_pread(n, 65536, buf, 0), 0);
	check_int(block_size(n), 65536);
	co_block_node_unref(n);

	n = must_open("driver=raw,file.driver=mem,file.size=64k", 0);
	check_int(co_block_pwrite(n, 0, buf, 512), -EROFS);
	check_int(co_block_zero(n, 0, 512, 0), -EROFS);
	check_int(co_block_discard(n, 0, 512, 0), -EROFS);
	check_int(co_block_flush(n), 0);
	co_block_node_unref(n);
}

CO_TEST(test_store_grows)
{
	struct block_node *n = must_open("driver=mem,size=1000", RW);

	write_fill(n, 3000, 100, 3);
	check_int(block_size(n), 3100);
	check(reads_zero(n, 1000, 2000));
	check(reads_zero(n, 3100, 5000)); /* beyond the end of a store */
	check(!reads_zero(n, 3099, 10));
	check_int(co_block_zero(n, 3050, 1950, 0), 0);
	check_int(block_size(n), 5000);
	check(reads_fill(n, 3000, 50, 3));
	check(reads_zero(n, 3050, 1950));
	co_block_node_unref(n);
}

CO_TEST(test_zero_and_discard)
{
	struct block_node *n = must_open("driver=raw,file.driver=mem,file.size=1M", RW);
	struct block_extent e;

	write_fill(n, 0, 65536, 1);
	check_int(co_block_zero(n, 100, 5000, BLOCK_IO_UNMAP), 0);
	check(reads_fill(n, 0, 100, 1));
	check(reads_zero(n, 100, 5000));
	check(reads_fill(n, 5100, 1000, 1));
	check_int(co_block_discard(n, 8192, 8192, 0), 0);
	check(reads_zero(n, 8192, 8192));
	check_int(co_block_extent(n, 8192, 65536, &e), 0);
	check_int(e.len, 8192);
	check_int(e.flags & (BLOCK_EXTENT_ZERO | BLOCK_EXTENT_DATA), BLOCK_EXTENT_ZERO);
	check_int(co_block_extent(n, 65536, UINT64_MAX / 4, &e), 0);
	check_int(e.len, MiB - 65536);
	check(e.flags & BLOCK_EXTENT_EOF);
	co_block_node_unref(n);

	/* Without discard=unmap a guest's discards change nothing. */
	n = must_open("driver=raw,discard=ignore,file.driver=mem,file.size=1M", RW);
	write_fill(n, 0, 4096, 1);
	check_int(co_block_discard(n, 0, 4096, 0), 0);
	check(reads_fill(n, 0, 4096, 1));
	co_block_node_unref(n);
}

CO_TEST(test_zero_fallback)
{
	/* The injected "not supported" makes io.c write zero bytes. */
	struct block_node *n = must_open(
		"driver=raw,file.driver=fault,file.file.driver=mem,file.file.size=4M", RW);
	struct fault_rule rule = {.ops = FAULT_ZERO, .at = 1, .forever = true, .error = -ENOTSUP};

	check_int(fault_add(n->child[BLOCK_ROLE_FILE], &rule), 0);
	write_fill(n, 0, 3 * MiB, 1);
	check_int(co_block_zero(n, 4096, 2 * MiB + 77, BLOCK_IO_NO_FALLBACK), -ENOTSUP);
	check(reads_fill(n, 0, MiB, 1));
	check_int(co_block_zero(n, 4096, 2 * MiB + 77, 0), 0);
	check(reads_fill(n, 0, 4096, 1));
	check(reads_zero(n, 4096, 2 * MiB + 77));
	check(reads_fill(n, 4096 + 2 * MiB + 77, 4096, 1));
	co_block_node_unref(n);
}

static size_t count_events(struct block_node *rec, enum record_op op)
{
	size_t n, found = 0;
	const struct record_event *e = record_log(rec, &n);

	for (size_t i = 0; i < n; i++)
		found += e[i].op == op;
	return found;
}

CO_TEST(test_fua_and_writethrough)
{
	struct iovec iov;
	char buf[512] = {1};
	struct block_node *n = must_open(
		"driver=raw,file.driver=record,file.file.driver=mem,file.file.size=1M", RW);
	struct block_node *rec = n->child[BLOCK_ROLE_FILE];

	check_int(co_block_write(n, 0, iov_buf(&iov, buf, 512), 0), 0);
	check_int(count_events(rec, RECORD_FLUSH), 0);
	check_int(co_block_write(n, 512, iov_buf(&iov, buf, 512), BLOCK_IO_FUA), 0);
	check_int(count_events(rec, RECORD_FLUSH), 1);
	check_int(co_block_zero(n, 512, 512, BLOCK_IO_FUA), 0);
	check_int(count_events(rec, RECORD_FLUSH), 2);
	co_block_node_unref(n);

	n = must_open("driver=raw,cache.writeback=off,"
		      "file.driver=record,file.file.driver=mem,file.file.size=1M",
		RW);
	rec = n->child[BLOCK_ROLE_FILE];
	check_int(co_block_pwrite(n, 0, buf, 512), 0);
	check_int(count_events(rec, RECORD_FLUSH), 1);
	check_int(co_block_discard(n, 0, 512, 0), 0);
	check_int(count_events(rec, RECORD_FLUSH), 2);
	co_block_node_unref(n);
}

CO_TEST(test_detect_zeroes)
{
	struct block_node *n = must_open(
		"driver=raw,detect-zeroes=unmap,"
		"file.driver=record,file.file.driver=mem,file.file.size=1M",
		RW);
	struct block_node *rec = n->child[BLOCK_ROLE_FILE];
	char buf[4096] = {0};

	check_int(co_block_pwrite(n, 0, buf, 4096), 0);
	check_int(count_events(rec, RECORD_WRITE), 0);
	check_int(count_events(rec, RECORD_ZERO), 1);
	check(record_log(rec, &(size_t){0})[0].flags & BLOCK_IO_UNMAP);
	buf[4095] = 1;
	check_int(co_block_pwrite(n, 0, buf, 4096), 0);
	check_int(count_events(rec, RECORD_WRITE), 1);
	co_block_node_unref(n);
}

CO_TEST(test_flush_skips_and_breaks)
{
	struct block_node *n = must_open(
		"driver=raw,file.driver=fault,file.file.driver=mem,file.file.size=1M", RW);
	struct block_node *fault = n->child[BLOCK_ROLE_FILE];
	struct fault_rule rule = {.ops = FAULT_FLUSH, .at = 1, .error = -EIO};

	write_fill(n, 0, 512, 1);
	check_int(co_block_flush(n), 0);
	check_int(fault_add(fault, &rule), 0);
	write_fill(n, 0, 512, 2);
	check_int(co_block_flush(n), -EIO);
	/* The rule hit once; the failure stays. */
	check_int(co_block_flush(n), -EIO);
	write_fill(n, 0, 512, 3);
	check_int(co_block_flush(n), -EIO);
	check_int(co_block_node_unref(n), -EIO);
}

static unsigned flush_calls;

/* As a kernel does it: the failed write-back is told to the first of two who wait, late. */
static int co_flush_told_once(struct block_node *n)
{
	if (flush_calls++)
		return 0;
	for (int i = 0; i < 8; i++)
		co_pause();
	return -EIO;
}

struct flusher {
	struct block_node *n;
	int r;
	bool done;
};

static void co_flusher(void *arg)
{
	struct flusher *f = arg;

	f->r = co_block_flush(f->n);
	f->done = true;
}

/* I9: nobody's flush succeeds beside one that fails. */
CO_TEST(test_flush_beside_a_failing_one)
{
	struct block_node *n = must_open("driver=mem,size=1M", RW);
	struct block_driver told_once = *n->drv;
	const struct block_driver *drv = n->drv;
	struct flusher a = {.n = n}, b = {.n = n};

	told_once.co_flush = co_flush_told_once;
	n->drv = &told_once;
	write_fill(n, 0, 512, 1);
	check_int(co_start(co_flusher, &a), 0);
	check_int(co_start(co_flusher, &b), 0);
	while (!a.done || !b.done)
		co_pause();
	check_int(a.r, -EIO);
	check_int(b.r, -EIO);
	n->drv = drv;
	co_block_node_unref(n);
}

CO_TEST(test_resize)
{
	struct block_node *n = must_open("driver=raw,file.driver=mem,file.size=1M", RW);
	struct block_resize r = {.size = 2 * MiB};
	struct error err = ERROR_INIT;

	write_fill(n, 0, MiB, 1);
	check_int(co_block_resize(n, &r, &err), 0);
	check_int(block_size(n), 2 * MiB);
	check(reads_zero(n, MiB, MiB));
	r.size = 512 * KiB;
	check_int(co_block_resize(n, &r, &err), -EINVAL);
	r.shrink = true;
	check_int(co_block_resize(n, &r, &err), 0);
	r.size = MiB;
	check_int(co_block_resize(n, &r, &err), 0);
	check(reads_fill(n, 0, 512 * KiB, 1));
	check(reads_zero(n, 512 * KiB, 512 * KiB));
	co_block_node_unref(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read_write),
		cmocka_unit_test(test_range),
		cmocka_unit_test(test_store_grows),
		cmocka_unit_test(test_zero_and_discard),
		cmocka_unit_test(test_zero_fallback),
		cmocka_unit_test(test_fua_and_writethrough),
		cmocka_unit_test(test_detect_zeroes),
		cmocka_unit_test(test_flush_skips_and_breaks),
		cmocka_unit_test(test_flush_beside_a_failing_one),
		cmocka_unit_test(test_resize),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
