/* SPDX-License-Identifier: MIT */
/* Fuzz target: reading everything, active state and snapshots. */
#include "tests/fuzz/fuzz.h"
#include "base/mem.h"

#define PIECE (64 * KiB)

static uint8_t buffer[PIECE];

/* What is allocated, up to a bound; and some of the rest. */
static void co_read_all(struct block_node *n)
{
	uint64_t off = 0, size = block_size(n), budget = 2 * MiB;

	for (unsigned i = 0; i < 512 && off < size && budget; i++) {
		uint64_t len = MIN(PIECE, size - off);
		struct block_extent e = {.len = len};

		if (!co_block_extent(n, off, size - off, &e) && (e.flags & BLOCK_EXTENT_ZERO)) {
			off += e.len;
			continue;
		}
		len = MIN(len, e.len);
		len = MIN(len, budget);
		co_block_pread(n, off, buffer, len);
		budget -= len;
		off += len;
	}
	for (unsigned i = 0; i < 8 && size; i++) {
		off = fuzz_u64() % size;
		co_block_pread(n, off, buffer, MIN(fuzz_u64() % PIECE + 1, size - off));
	}
}

static int co_read(void *arg)
{
	struct block_snapshot *list = NULL;
	struct error err = ERROR_INIT;
	struct block_node *n;
	size_t count = 0;
	int r = co_fuzz_open(fuzz_byte() % 4 ? 0 : BLOCK_OPEN_CHECK, &n);

	if (r)
		return r;
	co_read_all(n);
	if (!n->drv->snapshot->co_list(n, &list, &count))
		for (size_t i = 0; i < count; i++) {
			struct block_node *s = NULL;

			if (i < 2 && !n->drv->snapshot->co_open(n, list[i].id, &s, &err)) {
				co_read_all(s);
				co_block_node_unref(s);
			}
			mem_free(list[i].id);
			mem_free(list[i].name);
		}
	mem_free(list);
	co_block_node_unref(n);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_image(data, size, co_read);
	return 0;
}
