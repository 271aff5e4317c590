/* SPDX-License-Identifier: MIT */
/* Fuzz target: compressed clusters, both codecs, every cluster size. */
#include "qcow2/qcow2.h"
#include "tests/fuzz/fuzz.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum q2_compression type;
	size_t cluster;
	uint8_t *out;
	int r;

	if (size < 1)
		return 0;
	type = data[0] & 1 ? Q2_COMPRESSION_ZSTD : Q2_COMPRESSION_DEFLATE;
	cluster = (size_t)512 << (data[0] >> 1) % 8;
	out = malloc(cluster);
	if (!out)
		return 0;
	r = q2_decompress(type, data + 1, size - 1, out, cluster);
	if (r && r != -EIO && r != -ENOMEM && r != -ENOTSUP)
		fuzz_fail("decompress returns %d", r);
	free(out);
	return 0;
}
