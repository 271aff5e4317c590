/* SPDX-License-Identifier: MIT */
/* Several sources as one. */
#ifndef DROVER_QEMU_IMG_CONCAT_H
#define DROVER_QEMU_IMG_CONCAT_H

#include "block/block.h"

/* A read-only node that shows the n sources (n > 0) one behind the other; takes over the references
 * on success. -EFBIG, -ENOMEM. */
int co_concat_open(struct block_node **src, unsigned n, struct block_node **ret, struct error *err);

#endif
