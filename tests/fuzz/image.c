/* SPDX-License-Identifier: MIT */
/* Images for fuzz targets: the input on a RAM disk, opened by the real engine. */
#include "tests/fuzz/fuzz.h"
#include "base/co.h"
#include "qcow2/qcow2.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static uint8_t control[FUZZ_CONTROL];
static unsigned used;
static uint64_t stream;

static const struct block_driver *const drivers[] = {
	&block_qcow2, &block_raw, &crash_disk, &block_file, NULL};

void fuzz_image(const uint8_t *data, size_t size, int (*co_fn)(void *arg))
{
	static bool registered;

	if (size < FUZZ_CONTROL)
		return;
	if (!registered)
		block_register(drivers);
	registered = true;
	memcpy(control, data, FUZZ_CONTROL);
	used = 0;
	stream = load_be64(control + 8);
	disk_set(&disks[0], data + FUZZ_CONTROL, size - FUZZ_CONTROL);
	disks[0].tracking = disks[0].logging = false;
	co_run(co_fn, NULL);
}

int co_fuzz_open(uint32_t flags, struct block_node **ret)
{
	struct block_open_opts o = {
		.flags = flags | BLOCK_OPEN_NO_BACKING, .trust = &block_trust_local};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct error err = ERROR_INIT;
	int r = conf_parse_options(
		"driver=qcow2,file.driver=crash-disk,file.disk=0", NULL, &spec, &err);

	if (r)
		return r;
	if (flags & BLOCK_OPEN_RDWR)
		o.flags |= BLOCK_OPEN_UNMAP;
	r = co_block_open(spec, &o, ret, &err);
	if (r && !err.text[0])
		fuzz_fail("open fails with %d and no sentence", r);
	return r;
}

uint64_t fuzz_u64(void)
{
	uint64_t z = (stream += 0x9e3779b97f4a7c15ULL);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

uint32_t fuzz_byte(void)
{
	return used < FUZZ_CONTROL ? control[used++] : (uint8_t)fuzz_u64();
}

void fuzz_fail(const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "fuzz: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	abort();
}
