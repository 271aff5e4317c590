/* SPDX-License-Identifier: MIT */
/* The ABI of soname 0: struct sizes, field offsets and constants that programs have compiled in. A
 * line here changes only together with the soname; a struct may grow at its end, which adds one. */
#include "drover.h"
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static const struct {
	const char *what;
	size_t is, was;
} facts[] = {
#define SIZE(type, n)	      {"sizeof struct " #type, sizeof(struct type), n}
#define FIELD(type, field, n) {#type "." #field, offsetof(struct type, field), n}
#define VALUE(name, n)	      {#name, (size_t)(name), n}
	SIZE(drover_error, 772),
	FIELD(drover_error, text, 4),
	SIZE(drover_trust, 24),
	FIELD(drover_trust, names, 4),
	FIELD(drover_trust, flags, 8),
	FIELD(drover_trust, max_chain, 12),
	FIELD(drover_trust, max_virtual_size, 16),
	SIZE(drover_open_opts, 32),
	FIELD(drover_open_opts, flags, 4),
	FIELD(drover_open_opts, format, 8),
	FIELD(drover_open_opts, cache, 16),
	FIELD(drover_open_opts, snapshot, 24),
	SIZE(drover_info, 1128),
	FIELD(drover_info, size, 8),
	FIELD(drover_info, actual_size, 16),
	FIELD(drover_info, cluster_size, 24),
	FIELD(drover_info, align, 32),
	FIELD(drover_info, format, 40),
	FIELD(drover_info, backing_name, 72),
	FIELD(drover_info, backing_format, 1096),
	SIZE(drover_extent, 32),
	FIELD(drover_extent, len, 8),
	FIELD(drover_extent, host_off, 16),
	FIELD(drover_extent, flags, 24),
	FIELD(drover_extent, depth, 28),
	SIZE(drover_check, 96),
	FIELD(drover_check, memory, 8),
	FIELD(drover_check, corruptions, 16),
	FIELD(drover_check, fragmented_clusters, 88),
	SIZE(drover_snapshot, 360),
	FIELD(drover_snapshot, name, 64),
	FIELD(drover_snapshot, disk_size, 320),
	FIELD(drover_snapshot, vm_clock_nsec, 352),
	SIZE(drover_queue_opts, 16),
	SIZE(drover_result, 16),
	FIELD(drover_result, result, 8),
	SIZE(drover_copy_opts, 32),
	FIELD(drover_copy_opts, rate, 8),
	FIELD(drover_copy_opts, min_sparse, 16),
	FIELD(drover_copy_opts, threads, 24),
	FIELD(drover_copy_opts, depth, 28),
	SIZE(drover_job_status, 24),
	FIELD(drover_job_status, result, 4),
	FIELD(drover_job_status, done, 8),
	VALUE(DROVER_NAMES_ALL, 2),
	VALUE(DROVER_TRUST_PROBE_RAW, 1),
	VALUE(DROVER_TRUST_NO_AMPLIFICATION, 2),
	VALUE(DROVER_TRUST_ALL, 2),
	VALUE(DROVER_OPEN_RDWR, 1),
	VALUE(DROVER_OPEN_OPTIONS, 32),
	VALUE(DROVER_CACHE_UNSAFE, 4),
	VALUE(DROVER_INFO_COMPRESSED, 16),
	VALUE(DROVER_EXTENT_COMPRESSED, 16),
	VALUE(DROVER_PREALLOC_FULL, 3),
	VALUE(DROVER_RESIZE_SHRINK, 1),
	VALUE(DROVER_CHECK_REPAIR_ERRORS, 2),
	VALUE(DROVER_AIO_THREADS, 2),
	VALUE(DROVER_IO_FUA, 1),
	VALUE(DROVER_IO_UNMAP, 2),
	VALUE(DROVER_IO_NO_FALLBACK, 4),
	VALUE(DROVER_COPY_KEEP_BACKING, 32),
};

static void test_layout(void **state attr_unused)
{
	for (size_t i = 0; i < ARRAY_SIZE(facts); i++)
		if (facts[i].is != facts[i].was)
			fail_msg("%s is %zu and was %zu", facts[i].what, facts[i].is, facts[i].was);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layout),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
