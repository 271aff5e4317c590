/* SPDX-License-Identifier: MIT */
/* What every unit test includes: cmocka with the headers it wants in front. */
#ifndef DROVER_TESTS_UNIT_H
#define DROVER_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* For files with functions setup() and teardown(). */
#define unit_test_fixture(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

/* DROVER_AIO=threads asks for a run without io_uring, as under emulators that do not have it. */
static inline bool unit_without_uring(void)
{
	const char *aio = getenv("DROVER_AIO");

	return aio && !strcmp(aio, "threads");
}

#endif
