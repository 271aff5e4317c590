/* SPDX-License-Identifier: MIT */
/* Inside of option trees: the node, shared by conf.c, conf-parse.c and conf-get.c. */
#ifndef DROVER_CONF_TREE_H
#define DROVER_CONF_TREE_H

#include "base/conf.h"

#define CONF_DEPTH 64u       /* levels of nesting */
#define CONF_SIZE  (1 * MiB) /* bytes of text */

struct conf_member {
	char *key; /* NULL in lists */
	struct conf *value;
};

struct conf {
	enum conf_type type;
	bool read; /* somebody asked for it */
	bool bare; /* a JSON number, boolean or (empty text) null: no quotes when written back */
	char *text;
	struct conf_member *members;
	size_t n, room;
};

enum conf_put {
	CONF_PUT_REPLACE, /* whatever was there */
	CONF_PUT_LATER,   /* a later value wins over an earlier one; -EEXIST for value and group */
	CONF_PUT_NEW,     /* -EEXIST when anything is there */
};

/* --- conf.c --- */
struct conf *conf_new_scalar(const char *text, bool bare);
int conf_append(struct conf *c, const char *key, size_t key_len, struct conf *value);
size_t conf_find(const struct conf *c, const char *name, size_t len);
size_t conf_index(const char *name, size_t len);
/* Puts `value` (taken on success only) at a dotted path. */
int conf_put(struct conf *c, const char *path, struct conf *value, enum conf_put how);

#endif
