/* SPDX-License-Identifier: MIT */
/*
 * The streaming JSON writer. Indented output is what scripts compare with; compact output has one
 * object a line when it is a list, so that it can be read line by line.
 */
#include "base/json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

#define LEVELS 79u

/* The next character of a UTF-8 text, 0xfffd for what is none (one byte is consumed then). */
static uint32_t utf8_next(const unsigned char **text)
{
	static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
	const unsigned char *s = *text;
	unsigned more = 0;
	uint32_t c = *s++;

	if (c >= 0xf0 && c < 0xf8)
		more = 3, c &= 7;
	else if (c >= 0xe0)
		more = 2, c = c < 0xf0 ? c & 15 : 0xfffd;
	else if (c >= 0xc0)
		more = 1, c &= 31;
	else if (c >= 0x80)
		c = 0xfffd;
	*text = s;
	if (c == 0xfffd || !more)
		return c;
	for (unsigned i = 0; i < more; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0xfffd;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < smallest[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0xfffd;
	*text = s + more;
	return c;
}

static void put_char(FILE *out, uint32_t c)
{
	static const char shorts[] = "\bb\ff\nn\rr\tt\"\"\\\\";

	for (const char *p = shorts; *p; p += 2) {
		if ((uint32_t)*p == c) {
			fprintf(out, "\\%c", p[1]);
			return;
		}
	}
	if (c >= 0x20 && c < 0x7f) {
		fputc((int)c, out);
	} else if (c < 0x10000) {
		fprintf(out, "\\u%04" PRIX32, c);
	} else {
		c -= 0x10000;
		fprintf(out, "\\u%04" PRIX32 "\\u%04" PRIX32, 0xd800 + (c >> 10),
			0xdc00 + (c & 0x3ff));
	}
}

static void put_string(FILE *out, const char *s)
{
	const unsigned char *p = (const unsigned char *)s;

	fputc('"', out);
	while (*p)
		put_char(out, utf8_next(&p));
	fputc('"', out);
}

static void put_indent(struct json_writer *w)
{
	if (!w->compact)
		fprintf(w->out, "\n%*s", (int)w->depth * 4, "");
}

/* What stands between two values: in a compact list at the top, every element has its line. */
static void put_separator(struct json_writer *w)
{
	bool lines = w->compact && w->depth == 1 && w->is_list[1];

	if (w->need_comma[w->depth])
		fputs(!w->compact ? "," : lines ? ",\n" : ", ", w->out);
	if (w->depth)
		put_indent(w);
	w->need_comma[w->depth] = true;
}

static void put_key(struct json_writer *w, const char *key)
{
	assert(!w->depth || w->is_list[w->depth] == !key);
	put_separator(w);
	if (!key)
		return;
	put_string(w->out, key);
	fputs(": ", w->out);
}

static void open_level(struct json_writer *w, const char *key, bool list)
{
	put_key(w, key);
	/* The form of `qemu-img map`, which people read by line: "[{ "start": ...},". */
	if (list)
		fputc('[', w->out);
	else
		fputs(w->compact && w->depth == 1 && w->is_list[1] ? "{ " : "{", w->out);
	assert(w->depth < LEVELS);
	w->depth++;
	w->need_comma[w->depth] = false;
	w->is_list[w->depth] = list;
}

static void close_level(struct json_writer *w, bool list)
{
	assert(w->depth && w->is_list[w->depth] == list);
	w->depth--;
	put_indent(w);
	fputc(list ? ']' : '}', w->out);
}

void json_begin(struct json_writer *w, FILE *out, bool compact)
{
	*w = (struct json_writer){.out = out, .compact = compact};
}

void json_end(struct json_writer *w)
{
	assert(!w->depth);
	fputc('\n', w->out);
}

void json_object(struct json_writer *w, const char *key)
{
	open_level(w, key, false);
}

void json_object_end(struct json_writer *w)
{
	close_level(w, false);
}

void json_list(struct json_writer *w, const char *key)
{
	open_level(w, key, true);
}

void json_list_end(struct json_writer *w)
{
	close_level(w, true);
}

void json_string(struct json_writer *w, const char *key, const char *value)
{
	put_key(w, key);
	put_string(w->out, value);
}

void json_raw(struct json_writer *w, const char *key, const char *token)
{
	put_key(w, key);
	fputs(token, w->out);
}

void json_u64(struct json_writer *w, const char *key, uint64_t value)
{
	put_key(w, key);
	fprintf(w->out, "%" PRIu64, value);
}

void json_i64(struct json_writer *w, const char *key, int64_t value)
{
	put_key(w, key);
	fprintf(w->out, "%" PRId64, value);
}

void json_double(struct json_writer *w, const char *key, double value)
{
	if (!isfinite(value)) {
		json_null(w, key);
		return;
	}
	put_key(w, key);
	fprintf(w->out, "%.17g", value);
}

void json_bool(struct json_writer *w, const char *key, bool value)
{
	json_raw(w, key, value ? "true" : "false");
}

void json_null(struct json_writer *w, const char *key)
{
	json_raw(w, key, "null");
}
