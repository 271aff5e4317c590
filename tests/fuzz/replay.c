/* SPDX-License-Identifier: MIT */
/* Runs a fuzz target once over each file given: for coverage builds, which have no libFuzzer. */
#include "tests/fuzz/fuzz.h"
#include <stdio.h>
#include <stdlib.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max)
{
	return size;
}

int main(int argc, char **argv)
{
	static uint8_t data[4 * MiB];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rb");
		size_t n = f ? fread(data, 1, sizeof(data), f) : 0;

		if (!f) {
			perror(argv[i]);
			return 1;
		}
		fclose(f);
		LLVMFuzzerTestOneInput(data, n);
	}
	return 0;
}
