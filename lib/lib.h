/* SPDX-License-Identifier: MIT */
/* What the files of the library room share: the handles, the control thread, versioned structs. */
#ifndef DROVER_LIB_H
#define DROVER_LIB_H

#include "block/block.h"
#include "drover.h"

/* --- struct.c: structs that begin with their size, errors ---------------------------------- */

/* Copies a caller's struct into `dst` of `size` bytes; src NULL: all zero. `least` is the size of
 * the struct in the first version. -EINVAL too short, -E2BIG longer with something in it. */
int lib_struct_in(void *dst, size_t size, size_t least, const void *src);
/* Copies a result into the caller's struct, as much of it as the caller knows. */
int lib_struct_out(void *dst, const void *src, size_t size, size_t least);
int lib_trust_in(struct block_trust *ret, const struct drover_trust *trust);
/* Hands a sentence to the caller; returns `code`. err may be NULL. */
int lib_error(struct drover_error *err, int code, const struct error *from);
int lib_error_text(struct drover_error *err, int code, const char *text);

/* --- control.c: the control thread --------------------------------------------------------- */

/* The control thread runs while somebody holds it. */
int control_get(struct drover_error *err);
void control_put(void);
/* Runs fn(arg) as a coroutine on the control thread and returns its result; turns the calling
 * thread's ring meanwhile. */
int control_call(int (*fn)(void *arg), void *arg);

/* Work for the control thread; the owner fills fn and arg and keeps it until its end. */
struct control_task {
	int (*fn)(void *arg);
	void *arg;
	/* internal */
	struct list link;
	struct ring *waiter; /* ring of a thread that waits for the end; NULL: none */
	int result;
	bool done;
};
void control_start(struct control_task *task);
/* Waits for its end, turning the calling thread's ring: 0, or -ETIMEDOUT. One thread at a time. */
int control_wait(struct control_task *task, int64_t timeout_ns);
bool control_done(struct control_task *task, int *ret_result);

/* --- image.c ------------------------------------------------------------------------------- */

struct drover_image {
	struct block_node *node;
	struct block_trust trust; /* nodes point to it */
	uint32_t users;		  /* atomic: queues and jobs */
};

void image_use(struct drover_image *img);
void image_unuse(struct drover_image *img);

#endif
