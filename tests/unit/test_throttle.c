/* SPDX-License-Identifier: MIT */
/* Throttling: the rate is kept (T1), order is kept (T2), and nothing else waits. */
#include "tests/unit/block.h"
#include <time.h>

static struct block_node *node;
static unsigned order[16], norder, running;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

static uint64_t time_reads(unsigned n, size_t len)
{
	static char buf[65536];
	uint64_t start = now_ns();

	for (unsigned i = 0; i < n; i++)
		check_int(co_block_pread(node, 0, buf, len), 0);
	return (now_ns() - start) / 1000000;
}

CO_TEST(test_rates)
{
	char c = 0;
	uint64_t ms;

	/* 1000 requests a second, 10 of them at once: 60 take 50 ms. */
	node = must_open("driver=throttle,iops-total=1000,burst-ms=10,file.driver=mem,file.size=1M",
		BLOCK_OPEN_RDWR);
	ms = time_reads(61, 512);
	check(ms >= 49 && ms < 500);
	co_block_node_unref(node);

	node = must_open("driver=throttle,bps-read=1M,burst-ms=10,file.driver=mem,file.size=1M",
		BLOCK_OPEN_RDWR);
	ms = time_reads(3, 65536);
	check(ms >= 110 && ms < 600);
	/* Writes have no limit here. */
	ms = now_ns();
	for (int i = 0; i < 1000; i++)
		check_int(co_block_pwrite(node, 0, &c, 1), 0);
	check((now_ns() - ms) / 1000000 < 100);
	co_block_node_unref(node);
}

static void co_ordered(void *arg)
{
	char c;

	check_int(co_block_pread(node, 0, &c, 1), 0);
	order[norder++] = (unsigned)(uintptr_t)arg;
	running--;
}

CO_TEST(test_order)
{
	node = must_open(
		"driver=throttle,iops-read=1000,burst-ms=1,file.driver=mem,file.size=1M", 0);
	running = 16;
	for (uintptr_t i = 0; i < 16; i++)
		check_int(co_start(co_ordered, (void *)i), 0);
	while (running)
		co_sleep(1000000);
	for (unsigned i = 2; i < 16; i++)
		check(order[i] == i);
	co_block_node_unref(node);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rates),
		cmocka_unit_test(test_order),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
