/* SPDX-License-Identifier: MIT */
/*
 * JSON output for tools: a writer that streams, indented by four spaces as people expect it, so
 * that a map of millions of extents needs no tree in memory. Parsing goes through conf.h.
 */
#ifndef DROVER_JSON_H
#define DROVER_JSON_H

#include "base/base.h"
#include <stdio.h>

struct json_writer {
	FILE *out; /* borrowed */
	unsigned depth;
	bool compact; /* one line, ", " and ": " between; a list at the top has an object a line */
	bool need_comma[80];
	bool is_list[80];
};

/* Keys are NULL inside lists and at the top. Strings are escaped; bytes that are not UTF-8 become
 * U+FFFD. At most 79 levels (assert: the shape is ours). */
void json_begin(struct json_writer *w, FILE *out, bool compact);
void json_end(struct json_writer *w); /* final newline */
void json_object(struct json_writer *w, const char *key);
void json_object_end(struct json_writer *w);
void json_list(struct json_writer *w, const char *key);
void json_list_end(struct json_writer *w);
void json_string(struct json_writer *w, const char *key, const char *value);
void json_u64(struct json_writer *w, const char *key, uint64_t value);
void json_i64(struct json_writer *w, const char *key, int64_t value);
void json_double(struct json_writer *w, const char *key, double value);
void json_bool(struct json_writer *w, const char *key, bool value);
void json_null(struct json_writer *w, const char *key);
/* A number, true, false or null as it stands in `token`. */
void json_raw(struct json_writer *w, const char *key, const char *token);

#endif
