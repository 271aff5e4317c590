/* SPDX-License-Identifier: MIT */
/*
 * Errors: a negative errno says what kind, a sentence says what, where and what to do.
 *
 * A control call takes a caller-owned `struct error *` (NULL: no text wanted). The origin of a
 * failure writes the sentence with error_set(); callers may put context in front with
 * error_prefix(). Data-path calls carry no struct error: the errno is all, and the caller that
 * talks to people words it. There is no global or thread-local error.
 *
 * -EUCLEAN: the image is corrupt. -ENOTSUP: valid but not supported. -EIO: input or output failed.
 */
#ifndef DROVER_ERROR_H
#define DROVER_ERROR_H

#include "base/base.h"

struct error {
	int code;       /* the negative errno of the last error_set(), 0 when never set */
	char text[768]; /* NUL-terminated sentence without a final newline; cut with "..." */
};

#define ERROR_INIT                                                                                 \
	(struct error)                                                                             \
	{                                                                                          \
		0                                                                                  \
	}

/* Writes the sentence and returns `code` (negative), so that `return error_set(...)` works. */
int error_set(struct error *err, int code, const char *fmt, ...) attr_printf(3, 4);
/* As error_set(), with ": " and the text of errno `-code` behind. */
int error_set_errno(struct error *err, int code, const char *fmt, ...) attr_printf(3, 4);
/* Puts context in front of the sentence that is there: "context: sentence". */
void error_prefix(struct error *err, const char *fmt, ...) attr_printf(2, 3);
/* Thread-safe text of an errno, positive or negative; -EUCLEAN reads "the image is corrupt". */
const char *errno_text(int code);

#endif
