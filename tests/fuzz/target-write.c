/* SPDX-License-Identifier: MIT */
/* Fuzz target: guest and control operations on a mutated image, read-write. */
#include "tests/fuzz/fuzz.h"

#define PIECE (16 * KiB)

static uint8_t buffer[PIECE];

static void co_snapshot(struct block_node *n, unsigned what)
{
	const struct block_snapshot_ops *ops = n->drv->snapshot;
	struct block_snapshot s = {
		.name = (char[]){'f', (char)('0' + what % 4), 0}, .icount = UINT64_MAX};
	struct error err = ERROR_INIT;

	switch (what / 4 % 3) {
	case 0:
		ops->co_create(n, &s, &err);
		break;
	case 1:
		ops->co_apply(n, what & 1 ? "s0" : s.name, &err);
		break;
	default:
		ops->co_delete(n, what & 1 ? "s0" : s.name, &err);
	}
}

static void co_resize(struct block_node *n)
{
	struct block_resize r = {.shrink = true};
	struct error err = ERROR_INIT;

	r.size = (block_size(n) & ~511ULL) + (fuzz_byte() - 128ULL) * 512;
	if (r.size < 64 * MiB)
		co_block_resize(n, &r, &err);
}

static void co_operation(struct block_node *n)
{
	uint64_t size = block_size(n), off, len, cs = n->caps.cluster ? n->caps.cluster : 512;
	struct error err = ERROR_INIT;
	struct iovec iov;
	uint32_t what = fuzz_byte();

	off = fuzz_u64() % 4 ? fuzz_u64() % 256 * 512 : fuzz_u64();
	len = fuzz_u64() % 8 * 512 + (fuzz_u64() % 4 ? 0 : fuzz_u64() % 512);
	if (!size)
		return;
	off %= size;
	len = MIN(len ? len : 1, size - off);
	len = MIN(len, PIECE);
	switch (what % 12) {
	case 0:
	case 1:
	case 2:
	case 3:
		memset(buffer, (int)what, len);
		co_block_pwrite(n, off, buffer, len);
		break;
	case 4:
		off = align_down(off, cs);
		len = MIN(cs, PIECE);
		len = MIN(len, size - off);
		co_block_write(n, off, iov_buf(&iov, buffer, len), BLOCK_IO_COMPRESSED);
		break;
	case 5:
		co_block_zero(n, off, len, what & 16 ? BLOCK_IO_UNMAP : 0);
		break;
	case 6:
		co_block_discard(n, off, MIN(len * 4, size - off), 0);
		break;
	case 7:
		co_block_flush(n);
		break;
	case 8:
		co_resize(n);
		break;
	case 9:
		if (what & 16)
			n->drv->image->co_make_empty(n, &err);
		else
			n->drv->image->co_set_backing(
				n, what & 32 ? "x.img" : NULL, what & 32 ? "raw" : NULL, &err);
		break;
	default:
		co_snapshot(n, what / 12);
	}
}

static int co_write(void *arg)
{
	struct block_node *n;
	unsigned count = 1 + fuzz_byte() % 16;
	int r = co_fuzz_open(BLOCK_OPEN_RDWR, &n);

	if (r)
		return r;
	while (count--)
		co_operation(n);
	co_block_node_unref(n);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_image(data, size, co_write);
	return 0;
}
