/* SPDX-License-Identifier: MIT */
/*
 * Option trees: what users write as `driver=qcow2,file.filename=a,,b.img`, as `json:{...}` or as
 * `-o key=value` becomes one tree, read through typed getters that a table drives.
 *
 * A node is a scalar (text as written; JSON numbers and booleans become their text), an object or
 * a list. Every object remembers which keys were read, so that conf_check_unused() names the first
 * key nobody asked for.
 */
#ifndef DROVER_CONF_H
#define DROVER_CONF_H

#include "base/error.h"

struct conf;

enum conf_type { CONF_SCALAR, CONF_OBJECT, CONF_LIST };

struct conf *conf_new(enum conf_type type); /* NULL: no memory */
void conf_free(struct conf *c);		    /* whole tree; NULL is fine */
static inline void conf_freep(struct conf **c)
{
	conf_free(*c);
}
struct conf *conf_dup(const struct conf *c);
enum conf_type conf_type(const struct conf *c);

/* `a=b,c.d=e`: commas doubled stand for themselves, dots nest, list indices are decimal names. A
 * first item without `=` gets implied_key when that is not NULL; a later one is `item=on`. The
 * result is an object; merged into *ret when *ret is not NULL (later keys win). */
int conf_parse_options(
	const char *text, const char *implied_key, struct conf **ret, struct error *err);
/* JSON text (without the `json:` in front); keys with dots nest as above. At most 64 levels and
 * 1 MiB. */
int conf_parse_json(const char *text, struct conf **ret, struct error *err);
/* A driver's options back as `json:{...}`; NULL: no memory, or nested too deep (72 levels).
 * Caller frees by mem_free(). */
char *conf_to_json(const struct conf *c);

/* Borrowed; NULL when absent. conf_get() marks the key as read. */
struct conf *conf_get(struct conf *obj, const char *key);
bool conf_has(const struct conf *obj, const char *key); /* does not mark */
const char *conf_key_at(const struct conf *obj, size_t i, struct conf **ret_value);
size_t conf_count(const struct conf *c); /* members of an object or a list */
struct conf *conf_at(struct conf *list, size_t i);
const char *conf_text(const struct conf *scalar);

/* Sets a dotted key (making objects on the way), replacing what was there. */
int conf_set(struct conf *obj, const char *key, const char *value);
int conf_set_conf(struct conf *obj, const char *key, struct conf *value); /* takes value */
void conf_remove(struct conf *obj, const char *key);

/* --- tables --- */
enum conf_kind {
	CONF_KEY_STRING,
	CONF_KEY_BOOL,   /* on/off, yes/no, true/false */
	CONF_KEY_SIZE,   /* bytes; suffixes b k K M G T P E, powers of 1024; fractions as 1.5G */
	CONF_KEY_NUMBER, /* uint64_t, decimal or 0x */
	CONF_KEY_ENUM,
	CONF_KEY_TREE, /* an object or the name of a node */
};

struct conf_enum {
	const char *name; /* a table ends with NULL */
	int value;
};

struct conf_key {
	const char *name; /* a table ends with NULL */
	enum conf_kind kind;
	const struct conf_enum *values; /* CONF_KEY_ENUM */
	uint64_t min, max;		/* numbers and sizes; max 0: no bound */
	const char *help;
};

/* Getters: 0 and *ret as given, or *ret untouched when the key is absent (so callers preset the
 * default), or -EINVAL with a sentence that names the key, the value and what is allowed. The key
 * must stand in `table` (assert). */
int conf_get_string(struct conf *c, const struct conf_key *table, const char *key,
	const char **ret, struct error *err); /* borrowed from the tree */
int conf_get_bool(struct conf *c, const struct conf_key *table, const char *key, bool *ret,
	struct error *err);
int conf_get_u64(struct conf *c, const struct conf_key *table, const char *key, uint64_t *ret,
	struct error *err); /* CONF_KEY_SIZE and CONF_KEY_NUMBER */
int conf_get_enum(struct conf *c, const struct conf_key *table, const char *key, int *ret,
	struct error *err);
/* -EINVAL with "Invalid parameter 'x'" for the first key nobody read, at any depth. */
int conf_check_unused(const struct conf *c, struct error *err);

const char *conf_enum_name(const struct conf_enum *values, int value); /* NULL: none */
/* "1.5G" and the like to bytes. -EINVAL not a size, -ERANGE beyond 2^63-1. */
int parse_size(const char *text, uint64_t *ret);
int parse_u64(const char *text, uint64_t *ret);

#endif
