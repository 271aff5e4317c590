/* SPDX-License-Identifier: MIT */
/*
 * Trust presets: what names found inside an image may make us open, and how far.
 */
#include "block/internal.h"

/* Images from strangers: nothing but the image itself is opened, nothing is guessed. */
const struct block_trust block_trust_strict = {
	.names = BLOCK_NAMES_NONE,
	.probe_raw = false,
	.max_chain = 0,
	.max_virtual_size = 0,
	.refuse_amplification = true,
};

/* What the tools use: local backing files as their users expect. */
const struct block_trust block_trust_local = {
	.names = BLOCK_NAMES_LOCAL,
	.probe_raw = true,
	.max_chain = 200,
};

/* Images of one's own making: json: and protocol names inside images are followed too. */
const struct block_trust block_trust_all = {
	.names = BLOCK_NAMES_ALL,
	.probe_raw = true,
	.max_chain = 200,
};
