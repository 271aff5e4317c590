/* SPDX-License-Identifier: MIT */
/* Typed values out of option trees, driven by tables; sizes and numbers as people write them. */
#include "base/conf-tree.h"
#include "base/mem.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const struct conf_enum bool_names[] = {
	{"on", true},
	{"off", false},
	{"yes", true},
	{"no", false},
	{"true", true},
	{"false", false},
	{"y", true},
	{"n", false},
	{NULL, 0},
};

static const struct conf_key *key_of(const struct conf_key *table, const char *name)
{
	while (table->name && strcmp(table->name, name))
		table++;
	assert(table->name); /* a getter asks for a key its table does not have */
	return table;
}

/* 0 with *ret NULL: the key is absent. */
static int get_text(struct conf *c, const char *key, const char **ret, struct error *err)
{
	struct conf *v = conf_get(c, key);

	*ret = NULL;
	if (!v)
		return 0;
	if (v->type != CONF_SCALAR)
		return error_set(err, -EINVAL,
			"Parameter '%s' is a single value, not a group or list of them", key);
	*ret = conf_text(v);
	return 0;
}

int conf_get_string(struct conf *c, const struct conf_key *table, const char *key, const char **ret,
	struct error *err)
{
	const char *text;
	int r = get_text(c, key, &text, err);

	assert(key_of(table, key)->kind == CONF_KEY_STRING ||
		key_of(table, key)->kind == CONF_KEY_TREE);
	if (!r && text)
		*ret = text;
	return r;
}

static bool enum_value(const struct conf_enum *values, const char *text, int *ret)
{
	for (; values->name; values++) {
		if (!strcmp(values->name, text)) {
			*ret = values->value;
			return true;
		}
	}
	return false;
}

int conf_get_bool(
	struct conf *c, const struct conf_key *table, const char *key, bool *ret, struct error *err)
{
	const char *text;
	int v, r = get_text(c, key, &text, err);

	assert(key_of(table, key)->kind == CONF_KEY_BOOL);
	if (r || !text)
		return r;
	if (!enum_value(bool_names, text, &v))
		return error_set(err, -EINVAL, "Parameter '%s' expects 'on' or 'off', not '%.100s'",
			key, text);
	*ret = v;
	return 0;
}

/* "a, b or c" */
static void enum_list(const struct conf_enum *values, char *out, size_t size)
{
	size_t n = 0;

	*out = '\0';
	for (size_t i = 0; values[i].name && n < size; i++) {
		const char *sep = !i ? "" : values[i + 1].name ? ", " : " or ";
		int w = snprintf(out + n, size - n, "%s'%s'", sep, values[i].name);

		n += w > 0 ? (size_t)w : 0;
	}
}

int conf_get_enum(
	struct conf *c, const struct conf_key *table, const char *key, int *ret, struct error *err)
{
	const struct conf_key *k = key_of(table, key);
	const char *text;
	char names[400];
	int r = get_text(c, key, &text, err);

	assert(k->kind == CONF_KEY_ENUM);
	if (r || !text || enum_value(k->values, text, ret))
		return r;
	enum_list(k->values, names, sizeof(names));
	return error_set(err, -EINVAL, "Parameter '%s' does not accept value '%.100s'; use %s", key,
		text, names);
}

static int range_error(const struct conf_key *k, const char *text, struct error *err)
{
	if (!k->max)
		return error_set(err, -EINVAL,
			"Parameter '%s' is %.100s; it must be at least %" PRIu64, k->name, text,
			k->min);
	return error_set(err, -EINVAL,
		"Parameter '%s' is %.100s; it must be between %" PRIu64 " and %" PRIu64, k->name,
		text, k->min, k->max);
}

int conf_get_u64(struct conf *c, const struct conf_key *table, const char *key, uint64_t *ret,
	struct error *err)
{
	const struct conf_key *k = key_of(table, key);
	bool size = k->kind == CONF_KEY_SIZE;
	const char *text;
	uint64_t v;
	int r = get_text(c, key, &text, err);

	assert(size || k->kind == CONF_KEY_NUMBER);
	if (r || !text)
		return r;
	r = size ? parse_size(text, &v) : parse_u64(text, &v);
	if (r == -ERANGE)
		return error_set(
			err, -EINVAL, "Value '%.100s' is too large for parameter '%s'", text, key);
	if (r && size)
		return error_set(err, -EINVAL,
			"Parameter '%s' expects a size, not '%.100s'; write bytes, or a number "
			"with "
			"one of the suffixes k, M, G, T, P and E (powers of 1024), as in 64k or "
			"1.5G",
			key, text);
	if (r)
		return error_set(err, -EINVAL,
			"Parameter '%s' expects a non-negative number, not '%.100s'", key, text);
	if (v < k->min || (k->max && v > k->max))
		return range_error(k, text, err);
	*ret = v;
	return 0;
}

/* --- what nobody asked for --- */

/* The dotted name of the first unread key below c, written behind `at` bytes of `path`. */
static bool find_unread(const struct conf *c, char *path, size_t size, size_t at)
{
	for (size_t i = 0; i < c->n; i++) {
		const struct conf *v = c->members[i].value;
		const char *dot = at ? "." : "";
		int n;

		if (c->members[i].key)
			n = snprintf(path + at, size - at, "%s%s", dot, c->members[i].key);
		else
			n = snprintf(path + at, size - at, "%s%zu", dot, i);
		if (!v->read)
			return true;
		if (find_unread(v, path, size, MIN(at + (size_t)MAX(n, 0), size - 1)))
			return true;
	}
	return false;
}

int conf_check_unused(const struct conf *c, struct error *err)
{
	char path[256] = "";

	if (!find_unread(c, path, sizeof(path), 0))
		return 0;
	return error_set(err, -EINVAL, "Invalid parameter '%s'", path);
}

const char *conf_enum_name(const struct conf_enum *values, int value)
{
	for (; values->name; values++)
		if (values->value == value)
			return values->name;
	return NULL;
}

/* --- numbers --- */

/* Digits in base 10, or 16 behind 0x. *end is set behind them. */
static int parse_digits(const char *text, const char **end, uint64_t *ret)
{
	unsigned base = 10, digit;
	uint64_t v = 0;
	bool big = false;

	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
		base = 16;
		text += 2;
	}
	for (*end = text;; (*end)++) {
		unsigned char ch = (unsigned char)**end;

		if (isdigit(ch))
			digit = ch - '0';
		else if (base == 16 && isxdigit(ch))
			digit = (unsigned)(tolower(ch) - 'a') + 10;
		else
			break;
		big |= mul_overflow(v, base, &v);
		big |= add_overflow(v, digit, &v);
	}
	if (*end == text)
		return -EINVAL;
	*ret = v;
	return big ? -ERANGE : 0;
}

int parse_u64(const char *text, uint64_t *ret)
{
	const char *end;
	uint64_t v;
	int r = parse_digits(text, &end, &v);

	if (r == -EINVAL || *end)
		return -EINVAL;
	if (!r)
		*ret = v;
	return r;
}

/* Shift of a suffix, 0 for none or bytes; *end goes behind it. */
static unsigned size_shift(const char **end)
{
	static const char suffixes[] = "bkmgtpe";
	const char *s = **end ? strchr(suffixes, tolower((unsigned char)**end)) : NULL;

	if (!s)
		return 0;
	(*end)++;
	return 10 * (unsigned)(s - suffixes);
}

/* ".25" and its like, exactly as far as a double goes, which is beyond what a byte count shows. */
static double parse_fraction(const char **end)
{
	double v = 0, weight = 1;

	for ((*end)++; isdigit((unsigned char)**end); (*end)++) {
		weight /= 10;
		v += weight * (**end - '0');
	}
	return v;
}

int parse_size(const char *text, uint64_t *ret)
{
	const char *start, *end;
	double fraction = 0;
	uint64_t v, part;
	unsigned shift;
	bool hex;
	int r;

	while (isspace((unsigned char)*text))
		text++;
	start = text + (*text == '+');
	hex = start[0] == '0' && (start[1] == 'x' || start[1] == 'X');
	r = parse_digits(start, &end, &v);
	if (r == -EINVAL)
		return r;
	if (!hex && *end == '.')
		fraction = parse_fraction(&end);
	shift = size_shift(&end);
	/* Half a byte is nothing one can ask for. */
	if (*end || (fraction > 0 && !shift))
		return -EINVAL;
	if (r || v > (uint64_t)INT64_MAX >> shift)
		return -ERANGE;
	part = (uint64_t)(fraction * (double)(1ULL << shift) + 0.5);
	if (add_overflow(v << shift, part, &v) || v > INT64_MAX)
		return -ERANGE;
	*ret = v;
	return 0;
}
