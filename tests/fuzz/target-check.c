/* SPDX-License-Identifier: MIT */
/* Fuzz target: check without repair, which never writes. */
#include "tests/fuzz/fuzz.h"

static void no_message(void *arg, bool is_error, const char *line)
{
}

static int co_check(void *arg)
{
	struct block_check c = {.message = no_message};
	struct error err = ERROR_INIT;
	struct block_node *n;
	uint64_t changes = disks[0].changes;
	int r;

	if (fuzz_byte() % 4 == 0)
		c.memory = 64 * KiB; /* more passes */
	r = co_fuzz_open(BLOCK_OPEN_CHECK, &n);
	if (r)
		return r;
	n->drv->check->co_check(n, &c, &err);
	co_block_node_unref(n);
	if (disks[0].changes != changes)
		fuzz_fail("check without repair wrote to the image");
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_image(data, size, co_check);
	return 0;
}
