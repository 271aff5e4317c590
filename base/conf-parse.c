/* SPDX-License-Identifier: MIT */
/*
 * Option text to option trees: `a=b,c.d=e` and JSON give the same tree.
 *
 * Both go through conf_put(), which makes the groups of a dotted key. At the end, groups whose
 * keys are exactly 0..n-1 become lists, because that is how a list is written with dots.
 */
#include "base/conf-tree.h"
#include "base/mem.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

/* --- lists --- */

static bool is_list_like(const struct conf *c)
{
	if (c->type != CONF_OBJECT || !c->n)
		return false;
	for (size_t i = 0; i < c->n; i++) {
		const char *key = c->members[i].key;

		/* Keys differ, so n indices below n are 0..n-1. */
		if (conf_index(key, strlen(key)) >= c->n)
			return false;
	}
	return true;
}

/* In place: every member goes where its name says. */
static void make_list(struct conf *c)
{
	for (size_t i = 0; i < c->n; i++) {
		size_t to;

		while ((to = conf_index(c->members[i].key, strlen(c->members[i].key))) != i) {
			struct conf_member m = c->members[to];

			c->members[to] = c->members[i];
			c->members[i] = m;
		}
	}
	for (size_t i = 0; i < c->n; i++) {
		mem_free(c->members[i].key);
		c->members[i].key = NULL;
	}
	c->type = CONF_LIST;
}

static void find_lists(struct conf *c)
{
	for (size_t i = 0; i < c->n; i++) {
		struct conf *v = c->members[i].value;

		find_lists(v);
		if (is_list_like(v))
			make_list(v);
	}
}

static int put_error(struct error *err, int r, const char *key)
{
	switch (r) {
	case -ENOMEM:
		return error_set(err, r, "no memory for options");
	case -EEXIST:
		return error_set(
			err, -EINVAL, "Parameter '%.200s' is given twice; give it once", key);
	default:
		return error_set(err, -EINVAL,
			"Invalid parameter '%.200s': names between dots are not empty, list "
			"indices follow one another, and there are at most %u levels",
			key, CONF_DEPTH);
	}
}

/* --- a=b,c.d=e --- */

/* Copies one item to `out`, commas undoubled; returns where the next one begins. */
static const char *next_item(const char *text, char *out)
{
	while (*text) {
		if (*text == ',') {
			if (text[1] != ',')
				break;
			text++;
		}
		*out++ = *text++;
	}
	*out = '\0';
	return *text ? text + 1 : text;
}

static int put_item(struct conf *c, char *item, const char *implied_key, struct error *err)
{
	const char *key = item, *value;
	char *eq = strchr(item, '=');
	struct conf *v;
	int r;

	if (eq) {
		*eq = '\0';
		value = eq + 1;
	} else if (implied_key) {
		key = implied_key;
		value = item;
	} else {
		value = "on";
	}
	v = conf_new_scalar(value, false);
	if (!v)
		return put_error(err, -ENOMEM, key);
	r = conf_put(c, key, v, CONF_PUT_LATER);
	if (!r)
		return 0;
	conf_free(v);
	if (r == -EEXIST)
		return error_set(err, -EINVAL,
			"Parameter '%.200s' is given both as a value and as a group; use one of "
			"them",
			key);
	return put_error(err, r, key);
}

int conf_parse_options(
	const char *text, const char *implied_key, struct conf **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *c = *ret ? conf_dup(*ret) : conf_new(CONF_OBJECT);
	_cleanup_free_ char *item = NULL;
	size_t len = strnlen(text, CONF_SIZE + 1);
	int r;

	if (len > CONF_SIZE)
		return error_set(err, -EINVAL, "options are longer than 1 MiB");
	item = mem_alloc(len + 1);
	if (!c || !item)
		return put_error(err, -ENOMEM, "");
	while (*text) {
		text = next_item(text, item);
		r = put_item(c, item, implied_key, err);
		if (r)
			return r;
		implied_key = NULL;
	}
	find_lists(c);
	conf_free(*ret);
	*ret = take(c);
	return 0;
}

/* --- JSON --- */

/* The JSON parser recurses: how deep is decided before it starts, on a coroutine's small stack. */
static bool json_too_deep(const char *text)
{
	bool in_string = false;
	unsigned depth = 0;

	for (; *text; text++) {
		if (in_string) {
			if (*text == '\\' && text[1])
				text++;
			else if (*text == '"')
				in_string = false;
		} else if (*text == '"') {
			in_string = true;
		} else if (*text == '{' || *text == '[') {
			if (++depth > CONF_DEPTH)
				return true;
		} else if ((*text == '}' || *text == ']') && depth) {
			depth--;
		}
	}
	return false;
}

/* The shortest text that reads back as the same number. */
static struct conf *from_real(double d)
{
	char text[40];

	for (int digits = 15; digits <= 17; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, d);
		if (strtod(text, NULL) == d)
			break;
	}
	return conf_new_scalar(text, true);
}

static struct conf *from_scalar(const json_t *j)
{
	char text[24];

	switch (json_typeof(j)) {
	case JSON_STRING:
		return conf_new_scalar(json_string_value(j), false);
	case JSON_INTEGER:
		snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, json_integer_value(j));
		return conf_new_scalar(text, true);
	case JSON_REAL:
		return from_real(json_real_value(j));
	case JSON_TRUE:
	case JSON_FALSE:
		return conf_new_scalar(json_is_true(j) ? "true" : "false", true);
	default:
		return conf_new_scalar("", true);
	}
}

static int from_json(const json_t *j, struct conf **ret, unsigned level, struct error *err);

static int from_array(const json_t *j, struct conf *list, unsigned level, struct error *err)
{
	int r;

	for (size_t i = 0; i < json_array_size(j); i++) {
		struct conf *v = NULL;

		r = from_json(json_array_get(j, i), &v, level + 1, err);
		if (r)
			return r;
		r = conf_append(list, NULL, 0, v);
		if (r) {
			conf_free(v);
			return put_error(err, r, "");
		}
	}
	return 0;
}

/* {"a": {"b": 1}, "a.c": 2}: the two groups are one. `value` is taken. */
static int put_merged(struct conf *c, const char *key, struct conf *value, struct error *err)
{
	_cleanup_(conf_freep) struct conf *v = value;
	struct conf *there = conf_has(c, key) ? conf_get(c, key) : NULL;
	int r = 0;

	if (!there || there->type != CONF_OBJECT || v->type != CONF_OBJECT) {
		r = conf_put(c, key, v, CONF_PUT_NEW);
		if (r)
			return put_error(err, r, key);
		take(v);
		return 0;
	}
	for (size_t i = 0; i < v->n && !r; i++) {
		r = put_merged(there, v->members[i].key, take(v->members[i].value), err);
	}
	return r;
}

/* `level` is the depth of obj: dots in keys nest like braces, and both together are bounded. */
static int from_object(const json_t *j, struct conf *obj, unsigned level, struct error *err)
{
	const char *key;
	json_t *member;
	int r;

	json_object_foreach((json_t *)j, key, member)
	{
		struct conf *v = NULL;
		unsigned below = level;

		for (const char *p = key; *p; p++)
			below += *p == '.';
		if (below > CONF_DEPTH)
			return put_error(err, -EINVAL, key);
		r = from_json(member, &v, below + 1, err);
		if (!r)
			r = put_merged(obj, key, v, err);
		if (r)
			return r;
	}
	return 0;
}

static int from_json(const json_t *j, struct conf **ret, unsigned level, struct error *err)
{
	_cleanup_(conf_freep) struct conf *c = NULL;
	int r = 0;

	if (json_is_array(j))
		c = conf_new(CONF_LIST);
	else if (json_is_object(j))
		c = conf_new(CONF_OBJECT);
	else
		c = from_scalar(j);
	if (!c)
		return put_error(err, -ENOMEM, "");
	if (json_is_array(j))
		r = from_array(j, c, level, err);
	else if (json_is_object(j))
		r = from_object(j, c, level, err);
	if (r)
		return r;
	*ret = take(c);
	return 0;
}

/* Nothing has been asked of a fresh tree. */
static void clear_read(struct conf *c)
{
	c->read = false;
	for (size_t i = 0; i < c->n; i++)
		clear_read(c->members[i].value);
}

int conf_parse_json(const char *text, struct conf **ret, struct error *err)
{
	struct conf *c = NULL;
	json_error_t je;
	json_t *j;
	int r;

	if (strnlen(text, CONF_SIZE + 1) > CONF_SIZE)
		return error_set(err, -EINVAL, "the JSON text is longer than 1 MiB");
	if (json_too_deep(text))
		return error_set(err, -EINVAL, "the JSON text is nested more than %u levels deep",
			CONF_DEPTH);
	j = json_loads(text, JSON_REJECT_DUPLICATES, &je);
	if (!j)
		return error_set(err, -EINVAL, "the JSON text is wrong at line %d, column %d: %s",
			je.line, je.column, je.text);
	if (json_is_object(j))
		r = from_json(j, &c, 1, err);
	else
		r = error_set(err, -EINVAL, "the JSON text is not an object ({...})");
	json_decref(j);
	if (r)
		return r;
	find_lists(c);
	clear_read(c);
	*ret = c;
	return 0;
}
