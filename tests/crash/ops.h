/* SPDX-License-Identifier: MIT */
/*
 * The harness's operations: each one concrete (offset, length, name, size), with its effect on the
 * model and its execution by the engine; and the world they happen in: an overlay on disk 0 whose
 * backing file is on disk 1.
 */
#ifndef DROVER_TESTS_OPS_H
#define DROVER_TESTS_OPS_H

#include "tests/crash/disk.h"
#include "tests/crash/model.h"

enum op_kind {
	OP_ALLOC,      /* write to what is not allocated */
	OP_OVERWRITE,  /* write in place */
	OP_COW,        /* write to what is shared, compressed or in the backing file */
	OP_COMPRESSED, /* compressed write */
	OP_ZERO,
	OP_UNMAP, /* zero, may deallocate */
	OP_DISCARD,
	OP_FLUSH,
	OP_CREATE, /* snapshots */
	OP_APPLY,
	OP_DELETE,
	OP_GROW,
	OP_SHRINK,
	OP_COMMIT,
	OP_REBASE,
	OP_REPAIR,
	OP_KINDS,
};
extern const char *const op_names[OP_KINDS];
extern const unsigned op_variants[OP_KINDS];

struct op {
	enum op_kind kind;
	unsigned variant;
	uint64_t off, len; /* bytes; resizes: len is the new size */
	char name[16];     /* snapshots */
};

struct world {
	const struct config *c;
	struct layout l;
	struct block_node *top;
	uint32_t version; /* of the last write */
	struct model m;   /* what must be there now */
};

/* The canonical operation of a kind: aimed at clusters that setup.c prepared. `pos` (0...) is its
 * place in the sequence. */
struct op op_canonical(const struct layout *l, enum op_kind kind, unsigned variant, unsigned pos);
/* Any operation; data operations are much more frequent than others. */
struct op op_random(const struct layout *l, const struct model *m, uint64_t *rng, bool structural);
void op_text(const struct op *op, char *text, size_t n);

/* The model after `op`, whose writes have `version`. */
void op_predict(const struct op *op, const struct layout *l, uint32_t version, struct model *m);
/* The models that may be found when a crash hits while `op` runs, 1 or 2 of them. */
unsigned op_in_flight(const struct op *op, const struct layout *l, uint32_t version,
	const struct model *before, struct model ret[2]);
/* Is it right that the engine refuses this? */
bool op_must_fail(const struct op *op, const struct config *c, const struct model *m);

/* Opens disk 0 (with disk 1 behind it, when its header says so). */
int co_world_open(
	const struct config *c, uint32_t flags, struct block_node **ret, struct error *err);
int co_op_run(struct world *w, const struct op *op, uint32_t version, struct error *err);
/* Reads everything there is to see. Errors of single reads are in the result. */
int co_world_see(const struct world *w, struct block_node *n, struct seen *ret, struct error *err);

/* Registers the harness's drivers; once. */
void world_init(void);

#endif
