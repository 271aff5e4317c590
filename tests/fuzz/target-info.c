/* SPDX-License-Identifier: MIT */
/* Fuzz target: header and open, everything `info`, `map` and `measure` ask for. */
#include "tests/fuzz/fuzz.h"
#include "base/mem.h"

static void no_line(void *arg, const char *line)
{
}

static void co_snapshots(struct block_node *n)
{
	struct block_snapshot *list = NULL;
	struct error err = ERROR_INIT;
	size_t count = 0;

	if (n->drv->snapshot->co_list(n, &list, &count))
		return;
	for (size_t i = 0; i < count; i++) {
		struct block_node *s = NULL;

		if (i < 4 && !n->drv->snapshot->co_open(n, list[i].id, &s, &err))
			co_block_node_unref(s);
		mem_free(list[i].id);
		mem_free(list[i].name);
	}
	mem_free(list);
}

static int co_info(void *arg)
{
	struct block_image_info info = {0};
	struct block_measure measure;
	struct block_extent e;
	struct block_node *n;
	struct error err = ERROR_INIT;
	uint64_t off = 0, changes = disks[0].changes;
	int r = co_fuzz_open(fuzz_byte() % 4 ? 0 : BLOCK_OPEN_NO_IO, &n);

	if (r)
		return r;
	n->drv->image->co_info(n, &info, &err);
	n->drv->image->co_measure(NULL, n, 0, &measure, &err);
	n->drv->image->co_dump_metadata(n, no_line, NULL, &err);
	co_snapshots(n);
	for (unsigned i = 0; i < 256 && off < block_size(n); i++) {
		if (co_block_extent(n, off, block_size(n) - off, &e))
			break;
		if (!e.len || e.len > block_size(n) - off)
			fuzz_fail("extent of %llu bytes at %llu", (unsigned long long)e.len,
				(unsigned long long)off);
		off += e.len;
	}
	co_block_node_unref(n);
	if (disks[0].changes != changes)
		fuzz_fail("a read-only open wrote to the image");
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_image(data, size, co_info);
	return 0;
}
