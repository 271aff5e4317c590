/* SPDX-License-Identifier: MIT */
/* The record filter: order, data, results, marks, the log file. */
#include "tests/unit/block.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

CO_TEST(test_log)
{
	struct block_node *n = must_open("driver=record,file.driver=mem,file.size=64k", RW);
	struct block_resize rs = {.size = 128 * KiB};
	struct error err = ERROR_INIT;
	const struct record_event *e;
	char want[4096];
	size_t k;

	write_fill(n, 0, 4096, 1);
	check_int(co_block_zero(n, 4096, 512, BLOCK_IO_UNMAP), 0);
	check_int(record_mark(n, 42, 43), 0);
	check_int(co_block_flush(n), 0);
	check_int(co_block_discard(n, 0, 1024, 0), 0);
	check_int(co_block_resize(n, &rs, &err), 0);
	e = record_log(n, &k);
	check_int(k, 6);
	for (size_t i = 0; i < k; i++) {
		check(e[i].begin < e[i].end);
		check(!i || e[i - 1].end < e[i].begin);
		check_int(e[i].result, 0);
	}
	check_int(e[0].op, RECORD_WRITE);
	check_int(e[0].len, 4096);
	fill(want, sizeof(want), 0, 1);
	check(!memcmp(e[0].data, want, sizeof(want)));
	check_int(e[1].op, RECORD_ZERO);
	check(e[1].flags & BLOCK_IO_UNMAP);
	check_int(e[2].op, RECORD_MARK);
	check_int(e[2].off, 42);
	check_int(e[3].op, RECORD_FLUSH);
	check_int(e[4].op, RECORD_DISCARD);
	check_int(e[5].op, RECORD_TRUNCATE);
	check_int(e[5].len, 128 * KiB);
	record_clear(n);
	record_log(n, &k);
	check_int(k, 0);
	write_fill(n, 0, 512, 1);
	check(record_log(n, &k)[0].begin > 10);
	co_block_node_unref(n);
}

/* Data is what was written, not what the buffer holds later. */
CO_TEST(test_data_is_copied)
{
	struct block_node *n = must_open("driver=record,file.driver=mem,file.size=64k", RW);
	char buf[512] = {1, 2, 3};
	size_t k;

	check_int(co_block_pwrite(n, 100, buf, 512), 0);
	memset(buf, 0, sizeof(buf));
	check(((char *)record_log(n, &k)[0].data)[2] == 3);
	co_block_node_unref(n);
}

CO_TEST(test_failures)
{
	struct block_node *n = must_open(
		"driver=record,file.driver=fault,file.op=write,"
		"file.error=ENOSPC,file.file.driver=mem,file.file.size=64k",
		RW);
	char buf[512] = {1};
	size_t k;

	check_int(co_block_pwrite(n, 0, buf, 512), -ENOSPC);
	check_int(record_log(n, &k)[0].result, -ENOSPC);
	co_block_node_unref(n);
}

/* --- overlapping requests under the seeded scheduler --- */

static struct block_node *node;
static unsigned running;

static void co_writer(void *arg)
{
	char buf[512];

	memset(buf, (int)(uintptr_t)arg, sizeof(buf));
	check_int(co_block_pwrite(node, (uintptr_t)arg * 512, buf, 512), 0);
	running--;
}

static void co_flusher(void *arg)
{
	check_int(co_block_flush(node), 0);
	running--;
}

static void co_overlapping(void)
{
	const struct record_event *e;
	size_t k, overlaps = 0;

	node = must_open("driver=record,file.driver=mem,file.size=64k", RW);
	running = 9;
	for (uintptr_t i = 0; i < 4; i++)
		check_int(co_start(co_writer, (void *)i), 0);
	check_int(co_start(co_flusher, NULL), 0);
	for (uintptr_t i = 4; i < 8; i++)
		check_int(co_start(co_writer, (void *)i), 0);
	while (running)
		co_pause();
	e = record_log(node, &k);
	check_int(k, 9);
	for (size_t i = 0; i < k; i++) {
		check(!i || e[i - 1].begin < e[i].begin);
		check(e[i].end > e[i].begin);
		for (size_t j = 0; j < i; j++)
			overlaps += e[j].end > e[i].begin;
	}
	check(overlaps > 0);
	co_block_node_unref(node);
}

static void test_overlapping(void **state)
{
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct ring_opts o = {.kind = RING_SIM, .seed = seed};
		void (*fn)(void) = co_overlapping;
		struct error err = ERROR_INIT;
		struct ring *ring;

		assert_int_equal(ring_new(&o, &ring, &err), 0);
		assert_int_equal(co_run(test_in_co, &fn), 0);
		ring_free(ring);
	}
}

CO_TEST(test_log_file)
{
	char line[128], text[512];
	struct block_node *n;
	FILE *f;

	snprintf(text, sizeof(text), "driver=record,log=%s,file.driver=mem,file.size=64k",
		test_path("log"));
	n = must_open(text, RW);
	check_int(co_block_pwrite(n, 512, "abc", 3), 0);
	check_int(co_block_flush(n), 0);
	check_int(co_block_node_unref(n), 0);
	f = fopen(test_path("log"), "r");
	check(f && fgets(line, sizeof(line), f) && !strcmp(line, "1 2 write 512 3 0 0\n"));
	check(fgets(line, sizeof(line), f) && !strcmp(line, "abc\n"));
	check(fgets(line, sizeof(line), f) && !strcmp(line, "3 4 flush 0 0 0 0\n"));
	fclose(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_overlapping),
		cmocka_unit_test(test_log),
		cmocka_unit_test(test_data_is_copied),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_log_file),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
