/* SPDX-License-Identifier: MIT */
/* Error sentences: written once at the origin, prefixed by callers, cut to fit. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

/* Replaces the tail by "..." when `wanted` bytes did not fit, at a UTF-8 character boundary. */
static void error_cut(struct error *err, size_t wanted)
{
	size_t at = sizeof(err->text) - 4;

	if (wanted < sizeof(err->text))
		return;
	while (at > 0 && ((unsigned char)err->text[at] & 0xc0) == 0x80)
		at--;
	memcpy(err->text + at, "...", 4);
}

static size_t attr_printf(3, 0)
	error_append(struct error *err, size_t at, const char *fmt, va_list ap)
{
	int n = 0;

	if (at < sizeof(err->text))
		n = vsnprintf(err->text + at, sizeof(err->text) - at, fmt, ap);
	return at + (n > 0 ? (size_t)n : 0);
}

static size_t attr_printf(3, 4) error_appendf(struct error *err, size_t at, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	at = error_append(err, at, fmt, ap);
	va_end(ap);
	return at;
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	error_cut(err, error_append(err, 0, fmt, ap));
	va_end(ap);
	return code;
}

int error_set_errno(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;
	size_t n;

	if (!err)
		return code;
	err->code = code;
	va_start(ap, fmt);
	n = error_append(err, 0, fmt, ap);
	va_end(ap);
	error_cut(err, error_appendf(err, n, ": %s", errno_text(code)));
	return code;
}

void error_prefix(struct error *err, const char *fmt, ...)
{
	struct error old;
	va_list ap;
	size_t n;

	if (!err || !err->code)
		return;
	old = *err;
	va_start(ap, fmt);
	n = error_append(err, 0, fmt, ap);
	va_end(ap);
	error_cut(err, error_appendf(err, n, ": %s", old.text));
}

const char *errno_text(int code)
{
	const char *text;

	if (code < 0)
		code = code == INT32_MIN ? 0 : -code;
	if (code == EUCLEAN)
		return "the image is corrupt";
	text = strerrordesc_np(code);
	return text ? text : "unknown error";
}
