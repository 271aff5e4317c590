/* SPDX-License-Identifier: MIT */
/*
 * Fuzz target: repair. When it claims success the image is clean for a second check and for the
 * independent checker, and a second repair changes nothing (O10).
 */
#include "tests/crash/refcheck.h"
#include "tests/fuzz/fuzz.h"

static void no_message(void *arg, bool is_error, const char *line)
{
}

/* 0 when the check itself worked; *c has the counts. */
static int co_run_check(uint32_t repair, struct block_check *c)
{
	struct error err = ERROR_INIT;
	struct block_node *n;
	int r = co_fuzz_open(repair ? BLOCK_OPEN_CHECK | BLOCK_OPEN_RDWR : BLOCK_OPEN_CHECK, &n),
	    r2;

	*c = (struct block_check){.repair = repair, .message = no_message};
	if (r)
		return r;
	r = n->drv->check->co_check(n, c, &err);
	r2 = co_block_node_unref(n);
	return r ? r : r2;
}

static int co_repair(void *arg)
{
	struct block_check c;
	struct refcheck rc;
	uint64_t changes;
	bool overlap;
	int r;

	refcheck(disks[0].data, disks[0].size, &rc);
	overlap = rc.errors[RC_OVERLAP];
	r = co_run_check(BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, &c);
	/* What could not be repaired is counted and said. A table that is data as well changes its
	 * meaning while its flags are repaired: refcounts are all that can be promised, and such an
	 * image is not opened for writing. */
	if (r || c.corruptions || c.leaks || c.check_errors || overlap)
		return 0;
	r = co_run_check(0, &c);
	if (r || c.corruptions || c.leaks || c.check_errors)
		fuzz_fail("after repair: %d, %llu corruptions, %llu leaks, %llu errors", r,
			(unsigned long long)c.corruptions, (unsigned long long)c.leaks,
			(unsigned long long)c.check_errors);
	refcheck(disks[0].data, disks[0].size, &rc);
	if (rc.errors[RC_REFCOUNT_LOW] || rc.errors[RC_COPIED] || rc.leaks || rc.dirty ||
		rc.corrupt)
		fuzz_fail("after repair the independent checker finds: %s, %llu leaks", rc.text,
			(unsigned long long)rc.leaks);
	changes = disks[0].changes;
	r = co_run_check(BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, &c);
	if (r || disks[0].changes != changes)
		fuzz_fail("the second repair changed the image (%d)", r);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_image(data, size, co_repair);
	return 0;
}
