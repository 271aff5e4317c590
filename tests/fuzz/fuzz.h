/* SPDX-License-Identifier: MIT */
/*
 * What the fuzz targets share. An input for an image target is FUZZ_CONTROL bytes that choose the
 * operations, then the image. The targets must not crash, leak, hang, allocate beyond the limit,
 * or reach a sanitizer's report, whatever the bytes are; results that must hold are asserted by
 * fuzz_fail().
 */
#ifndef DROVER_TESTS_FUZZ_H
#define DROVER_TESTS_FUZZ_H

#include "tests/crash/disk.h"

#define FUZZ_CONTROL 16u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

/* Puts the image on disk 0 and runs fn in a coroutine. */
void fuzz_image(const uint8_t *data, size_t size, int (*co_fn)(void *arg));
/* Opens disk 0 as qcow2, without its backing file. */
int co_fuzz_open(uint32_t flags, struct block_node **ret);
/* The operations' choice: the next bytes of the control block, zero when they are used up. */
uint32_t fuzz_byte(void);
uint64_t fuzz_u64(void);
/* A fact that must hold does not: says so and aborts, which libFuzzer records. */
void fuzz_fail(const char *fmt, ...) attr_printf(1, 2) __attribute__((noreturn));

#endif
