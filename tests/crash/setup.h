/* SPDX-License-Identifier: MIT */
/* The configurations under test and the image that every workload of a configuration starts from.
 */
#ifndef DROVER_TESTS_SETUP_H
#define DROVER_TESTS_SETUP_H

#include "tests/crash/ops.h"

extern const struct config configs[];
extern const unsigned nconfigs;

/* An overlay and its base as they were after a clean close, and what they hold. */
struct fixture {
	const struct config *c;
	struct layout l;
	uint8_t *image[DISKS];
	uint64_t size[DISKS];
	uint32_t version; /* the last one used */
	struct model m;
};

int co_fixture_make(const struct config *c, struct fixture *ret, struct error *err);
void fixture_free(struct fixture *f);
/* Puts the fixture's images on the disks and makes `w` its world, not opened yet. */
void fixture_load(const struct fixture *f, struct world *w);

#endif
