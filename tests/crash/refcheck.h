/* SPDX-License-Identifier: MIT */
/*
 * A second, independent judge of qcow2 images: reads an image in memory and counts every
 * reference, straight from the format's specification. It shares no code with qcow2/check.c, so
 * that each of the two judges the other.
 */
#ifndef DROVER_TESTS_REFCHECK_H
#define DROVER_TESTS_REFCHECK_H

#include "base/base.h"

enum refcheck_class {
	RC_STRUCTURE,    /* header, tables or entries make no sense */
	RC_REFCOUNT_LOW, /* more references than the refcount says */
	RC_OVERLAP,      /* one cluster serves two purposes */
	RC_COPIED,       /* COPIED on something with two references: writing in place corrupts */
	RC_CLASSES,
};
extern const char *const refcheck_class_names[RC_CLASSES];

struct refcheck {
	uint64_t errors[RC_CLASSES];
	uint64_t leaks;       /* clusters with refcount > references */
	uint64_t copied_soft; /* harmless COPIED mismatches (handbook 3.3) */
	bool dirty, corrupt, has_backing;
	uint64_t size; /* virtual, bytes */
	uint32_t snapshots, version;
	char text[256]; /* the first error */
};

static inline uint64_t refcheck_errors(const struct refcheck *r)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < RC_CLASSES; i++)
		n += r->errors[i];
	return n;
}

void refcheck(const uint8_t *img, uint64_t size, struct refcheck *ret);
/* One byte a cluster: is its refcount zero and is nothing referring to it? For poisoning the free
 * clusters of a healthy image. Returns the number of clusters; the caller frees *ret. */
uint64_t refcheck_free_map(const uint8_t *img, uint64_t size, uint8_t **ret);

#endif
