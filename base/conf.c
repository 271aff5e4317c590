/* SPDX-License-Identifier: MIT */
/* Option trees: nodes, members in the order they were given, dotted paths, JSON output. */
#include "base/conf.h"
#include "base/conf-tree.h"
#include "base/json.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

struct conf *conf_new(enum conf_type type)
{
	struct conf *c = mem_zalloc(sizeof(*c));

	if (c)
		c->type = type;
	return c;
}

struct conf *conf_new_scalar(const char *text, bool bare)
{
	struct conf *c = conf_new(CONF_SCALAR);

	if (!c)
		return NULL;
	c->bare = bare;
	c->text = mem_strdup(text);
	if (!c->text) {
		mem_free(c);
		return NULL;
	}
	return c;
}

void conf_free(struct conf *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < c->n; i++) {
		mem_free(c->members[i].key);
		conf_free(c->members[i].value);
	}
	mem_free(c->members);
	mem_free(c->text);
	mem_free(c);
}

int conf_append(struct conf *c, const char *key, size_t key_len, struct conf *value)
{
	char *k = NULL;

	if (c->n == c->room) {
		size_t room = c->room ? c->room * 2 : 4;
		void *p = mem_realloc(c->members, room * sizeof(*c->members));

		if (!p)
			return -ENOMEM;
		c->members = p;
		c->room = room;
	}
	if (key) {
		k = mem_strndup(key, key_len);
		if (!k)
			return -ENOMEM;
	}
	c->members[c->n++] = (struct conf_member){k, value};
	return 0;
}

static struct conf *dup_node(const struct conf *c)
{
	struct conf *d;

	if (c->type == CONF_SCALAR)
		d = conf_new_scalar(c->text ? c->text : "", c->bare);
	else
		d = conf_new(c->type);
	if (d)
		d->read = c->read;
	return d;
}

struct conf *conf_dup(const struct conf *c)
{
	_cleanup_(conf_freep) struct conf *d = dup_node(c);

	if (!d)
		return NULL;
	for (size_t i = 0; i < c->n; i++) {
		const char *key = c->members[i].key;
		struct conf *v = conf_dup(c->members[i].value);

		if (!v)
			return NULL;
		if (conf_append(d, key, key ? strlen(key) : 0, v)) {
			conf_free(v);
			return NULL;
		}
	}
	return take(d);
}

enum conf_type conf_type(const struct conf *c)
{
	return c->type;
}

size_t conf_count(const struct conf *c)
{
	return c->n;
}

const char *conf_text(const struct conf *scalar)
{
	assert(scalar->type == CONF_SCALAR);
	return scalar->text ? scalar->text : "";
}

const char *conf_key_at(const struct conf *obj, size_t i, struct conf **ret_value)
{
	if (i >= obj->n)
		return NULL;
	if (ret_value)
		*ret_value = obj->members[i].value;
	return obj->members[i].key;
}

struct conf *conf_at(struct conf *list, size_t i)
{
	if (i >= list->n)
		return NULL;
	list->members[i].value->read = true;
	return list->members[i].value;
}

/* The index a decimal name stands for; SIZE_MAX when it is none. */
size_t conf_index(const char *name, size_t len)
{
	size_t i = 0;

	if (!len || len > 9 || (len > 1 && name[0] == '0'))
		return SIZE_MAX;
	for (; len; name++, len--) {
		if (*name < '0' || *name > '9')
			return SIZE_MAX;
		i = i * 10 + (size_t)(*name - '0');
	}
	return i;
}

/* The place of a member among c's, c->n when there is none. */
size_t conf_find(const struct conf *c, const char *name, size_t len)
{
	size_t i;

	if (c->type == CONF_LIST)
		return MIN(conf_index(name, len), c->n);
	for (i = 0; i < c->n; i++) {
		const char *key = c->members[i].key;

		if (!strncmp(key, name, len) && !key[len])
			break;
	}
	return i;
}

/* Follows a dotted path; `mark`: what lies on the way counts as read. */
static struct conf *walk(const struct conf *c, const char *path, bool mark)
{
	const struct conf *at = c;

	for (;;) {
		size_t len = strcspn(path, ".");
		size_t i = conf_find(at, path, len);

		if (i == at->n)
			return NULL;
		at = at->members[i].value;
		if (!path[len])
			return (struct conf *)at;
		path += len + 1;
	}
}

static void mark_path(struct conf *c, const char *path)
{
	for (;;) {
		size_t len = strcspn(path, ".");

		c = c->members[conf_find(c, path, len)].value;
		c->read = true;
		if (!path[len])
			return;
		path += len + 1;
	}
}

struct conf *conf_get(struct conf *obj, const char *key)
{
	struct conf *c = walk(obj, key, false);

	if (c)
		mark_path(obj, key);
	return c;
}

bool conf_has(const struct conf *obj, const char *key)
{
	return walk(obj, key, false);
}

/* --- changes --- */

/* Puts `value` (taken on success) at one member, in place of what was there. */
static int put_member(struct conf *c, const char *name, size_t len, struct conf *value)
{
	size_t i = conf_find(c, name, len);

	if (i < c->n) {
		conf_free(c->members[i].value);
		c->members[i].value = value;
		return 0;
	}
	if (c->type == CONF_LIST)
		return conf_index(name, len) == c->n ? conf_append(c, NULL, 0, value) : -EINVAL;
	return conf_append(c, name, len, value);
}

/* The group under one member, made when absent or (with `replace`) when a value is there. */
static int enter_group(
	struct conf *c, const char *name, size_t len, bool replace, struct conf **ret)
{
	size_t i = conf_find(c, name, len);
	struct conf *group;
	int r;

	if (i < c->n && c->members[i].value->type != CONF_SCALAR) {
		*ret = c->members[i].value;
		return 0;
	}
	if (i < c->n && !replace)
		return -EEXIST;
	group = conf_new(CONF_OBJECT);
	if (!group)
		return -ENOMEM;
	r = put_member(c, name, len, group);
	if (r) {
		conf_free(group);
		return r;
	}
	*ret = group;
	return 0;
}

int conf_put(struct conf *c, const char *path, struct conf *value, enum conf_put how)
{
	unsigned depth = 0;

	for (;;) {
		size_t len = strcspn(path, "."), i;
		int r;

		if (!len || ++depth > CONF_DEPTH)
			return -EINVAL;
		if (path[len]) {
			r = enter_group(c, path, len, how == CONF_PUT_REPLACE, &c);
			if (r)
				return r;
			path += len + 1;
			continue;
		}
		i = conf_find(c, path, len);
		if (i < c->n && how != CONF_PUT_REPLACE) {
			bool scalars = c->members[i].value->type == CONF_SCALAR &&
				value->type == CONF_SCALAR;

			if (how == CONF_PUT_NEW || !scalars)
				return -EEXIST;
		}
		return put_member(c, path, len, value);
	}
}

int conf_set(struct conf *obj, const char *key, const char *value)
{
	struct conf *v = conf_new_scalar(value, false);
	int r;

	if (!v)
		return -ENOMEM;
	r = conf_put(obj, key, v, CONF_PUT_REPLACE);
	if (r)
		conf_free(v);
	return r;
}

int conf_set_conf(struct conf *obj, const char *key, struct conf *value)
{
	int r = conf_put(obj, key, value, CONF_PUT_REPLACE);

	if (r)
		conf_free(value);
	return r;
}

void conf_remove(struct conf *obj, const char *key)
{
	const char *dot;
	size_t i;

	while ((dot = strchr(key, '.'))) {
		i = conf_find(obj, key, (size_t)(dot - key));
		if (i == obj->n)
			return;
		obj = obj->members[i].value;
		key = dot + 1;
	}
	i = conf_find(obj, key, strlen(key));
	if (i == obj->n)
		return;
	mem_free(obj->members[i].key);
	conf_free(obj->members[i].value);
	obj->n--;
	memmove(obj->members + i, obj->members + i + 1, (obj->n - i) * sizeof(*obj->members));
}

/* --- output --- */

static void write_node(struct json_writer *w, const char *key, const struct conf *c)
{
	if (c->type == CONF_SCALAR) {
		if (c->bare)
			json_raw(w, key, *c->text ? c->text : "null");
		else
			json_string(w, key, c->text);
		return;
	}
	if (c->type == CONF_LIST)
		json_list(w, key);
	else
		json_object(w, key);
	for (size_t i = 0; i < c->n; i++)
		write_node(w, c->members[i].key, c->members[i].value);
	if (c->type == CONF_LIST)
		json_list_end(w);
	else
		json_object_end(w);
}

/* Deeper than a parser makes them: trees put together by conf_set_conf(). */
static bool too_deep(const struct conf *c, unsigned level)
{
	if (level > CONF_DEPTH + 8)
		return true;
	for (size_t i = 0; i < c->n; i++)
		if (too_deep(c->members[i].value, level + 1))
			return true;
	return false;
}

char *conf_to_json(const struct conf *c)
{
	struct json_writer w;
	char *text = NULL;
	size_t n;
	FILE *f;

	if (too_deep(c, 0) || mem_fault())
		return NULL;
	f = open_memstream(&text, &n);
	if (!f)
		return NULL;
	fputs("json:", f);
	json_begin(&w, f, true);
	write_node(&w, NULL, c);
	if (ferror(f) | fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}
