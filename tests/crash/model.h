/* SPDX-License-Identifier: MIT */
/*
 * What a guest may see: for every tracked 512-byte sector the versions it may hold, now and after
 * a crash; the same for every snapshot and for the backing file.
 *
 * Every write has a version number of its own, and every sector it writes holds a stamp of sector
 * number and version, repeated, so that a sector read back tells what it is: the version, zero
 * (version 0), or foreign bytes. `cur` is what a running guest may read (one version, more only
 * after a discard), `all` is what may be found after a crash: cur at the last acknowledged flush
 * and everything written since.
 */
#ifndef DROVER_TESTS_MODEL_H
#define DROVER_TESTS_MODEL_H

#include "base/base.h"

#define MAX_CELLS    896u
#define MAX_WINDOWS  6u
#define MAX_SNAPS    6u
#define SEEN_FOREIGN 0xffffffffu
#define SEEN_ERROR   0xfffffffeu

struct config {
	const char *name;
	unsigned version, cluster_bits, refcount_bits;
	bool extl2, lazy;
	const char *open_opts; /* more options of the open, beginning with a comma */
};

/* Where the tracked sectors of a configuration lie. */
struct layout {
	bool can_zero;               /* version 3: zeroes cost no space */
	uint64_t cs, l2_clusters;    /* clusters an L2 table covers */
	uint64_t size, base_size;    /* bytes, at the start */
	uint64_t grow[2], shrink[2]; /* sizes after the resizes by variant */
	unsigned nwindows, ncells;
	struct window {
		uint64_t first, n; /* clusters */
		unsigned cell;     /* its first cell */
	} win[MAX_WINDOWS];
	uint32_t sector[MAX_CELLS];
};

struct cell {
	uint32_t cur[4], all[10];
	uint8_t ncur, nall;
	bool thru; /* may be unallocated here, so that the backing file shows */
};

struct view {
	uint64_t size;
	struct cell c[MAX_CELLS];
};

struct model_snapshot {
	char name[16];
	bool present;
	struct view v;
};

struct model {
	bool has_backing;
	struct view top, base;
	struct model_snapshot snap[MAX_SNAPS];
};

/* What was read back. */
struct seen_view {
	uint64_t size;
	uint32_t v[MAX_CELLS];
};
struct seen {
	bool has_backing;
	unsigned nsnaps;
	struct seen_view top, base;
	struct {
		char name[16];
		struct seen_view v;
	} snap[MAX_SNAPS];
};

void layout_init(struct layout *l, const struct config *c);

void stamp(uint8_t *sector, uint64_t number, uint32_t version);
/* The version in a sector, 0 when it is zero, SEEN_FOREIGN. */
uint32_t stamp_read(const uint8_t *sector, uint64_t number);

void model_init(struct model *m, const struct layout *l);
/* A write of `version` (0: zeroes) to [off, off+len) of a view. */
void model_write(
	struct view *v, const struct layout *l, uint64_t off, uint64_t len, uint32_t version);
void model_discard(struct model *m, const struct layout *l, uint64_t off, uint64_t len);
void model_flush(struct model *m, const struct layout *l);
void model_resize(struct view *v, const struct layout *l, uint64_t size);
bool model_snap_create(struct model *m, const char *name);
struct model_snapshot *model_snap_find(struct model *m, const char *name);
void model_snap_apply(struct model *m, const struct layout *l, const char *name);
void model_commit(struct model *m, const struct layout *l, bool acked);
void model_rebase(struct model *m, const struct layout *l);
/* Every cell takes the one value that was seen: the start of a life after a crash. */
void model_adopt(struct model *m, const struct layout *l, const struct seen *s);

/* Does what was seen fit? `live`: exactly what a running guest must see. On a mismatch `text`
 * (n bytes) says where. */
bool model_match(const struct model *m, const struct layout *l, const struct seen *s, bool live,
	char *text, size_t n);

static inline uint64_t rng_next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

#endif
