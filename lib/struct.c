/* SPDX-License-Identifier: MIT */
/* Structs that begin with their size, trust presets, errors and the log: what crosses the ABI. */
#include "lib/lib.h"
#include "base/trace.h"

#include <stdio.h>

static uint32_t struct_size(const void *p)
{
	uint32_t n;

	memcpy(&n, p, sizeof(n));
	return n;
}

int lib_struct_in(void *dst, size_t size, size_t least, const void *src)
{
	size_t n = src ? struct_size(src) : 0;

	memset(dst, 0, size);
	if (!src)
		return 0;
	if (n < least)
		return -EINVAL;
	if (n > size) {
		if (!mem_is_zero((const char *)src + size, n - size))
			return -E2BIG;
		n = size;
	}
	memcpy(dst, src, n);
	return 0;
}

int lib_struct_out(void *dst, const void *src, size_t size, size_t least)
{
	uint32_t n = struct_size(dst);

	if (n < least)
		return -EINVAL;
	memcpy((char *)dst + sizeof(n), (const char *)src + sizeof(n), MIN(n, size) - sizeof(n));
	return 0;
}

static const struct drover_trust presets[] = {
	[DROVER_TRUST_STRICT] = {.struct_size = sizeof(struct drover_trust),
		.names = DROVER_NAMES_NONE,
		.flags = DROVER_TRUST_NO_AMPLIFICATION,
		.max_chain = 0,
		.max_virtual_size = 1024 * TiB},
	[DROVER_TRUST_LOCAL] = {.struct_size = sizeof(struct drover_trust),
		.names = DROVER_NAMES_LOCAL,
		.flags = DROVER_TRUST_PROBE_RAW,
		.max_chain = 200},
	[DROVER_TRUST_ALL] = {.struct_size = sizeof(struct drover_trust),
		.names = DROVER_NAMES_ALL,
		.flags = DROVER_TRUST_PROBE_RAW,
		.max_chain = 200},
};

const struct drover_trust *drover_trust(enum drover_trust_level level)
{
	return (unsigned)level < ARRAY_SIZE(presets) ? &presets[level] : NULL;
}

int lib_trust_in(struct block_trust *ret, const struct drover_trust *trust)
{
	static const enum block_names names[] = {
		[DROVER_NAMES_NONE] = BLOCK_NAMES_NONE,
		[DROVER_NAMES_LOCAL] = BLOCK_NAMES_LOCAL,
		[DROVER_NAMES_ALL] = BLOCK_NAMES_ALL,
	};
	struct drover_trust t;
	int r;

	if (!trust)
		return -EINVAL;
	r = lib_struct_in(&t, sizeof(t), sizeof(t), trust);
	if (r < 0)
		return r;
	if (t.names >= ARRAY_SIZE(names) ||
		t.flags & ~(DROVER_TRUST_PROBE_RAW | DROVER_TRUST_NO_AMPLIFICATION))
		return -EINVAL;
	*ret = (struct block_trust){
		.names = names[t.names],
		.probe_raw = t.flags & DROVER_TRUST_PROBE_RAW,
		.max_chain = t.max_chain,
		.max_virtual_size = t.max_virtual_size,
		.refuse_amplification = t.flags & DROVER_TRUST_NO_AMPLIFICATION,
	};
	return 0;
}

int lib_error_text(struct drover_error *err, int code, const char *text)
{
	if (err) {
		err->code = code;
		snprintf(err->text, sizeof(err->text), "%s", text);
	}
	return code;
}

int lib_error(struct drover_error *err, int code, const struct error *from)
{
	bool told = from->code && from->text[0];

	return lib_error_text(err, code, told ? from->text : errno_text(code));
}

const char *drover_version(void)
{
	return DROVER_VERSION;
}

int drover_log(const char *pattern, drover_log_fn *fn, void *arg)
{
	int r;

	if (!pattern || strpbrk(pattern, ",="))
		return -EINVAL;
	r = trace_configure(pattern, NULL);
	if (!r)
		trace_sink(fn, arg);
	return r;
}
