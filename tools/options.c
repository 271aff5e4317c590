/* SPDX-License-Identifier: MIT */
/* Command lines by tables: parsing, defaults and --help come from the same rows. */
#include "tools/tool.h"
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include <ctype.h>

struct parse {
	const struct command *c;
	char **argv;
	int argc, i; /* the argument being read */
	void *ret;
};

static bool is_end(const struct opt *o)
{
	return o->kind == OPT_END;
}

static bool takes_value(const struct opt *o)
{
	return o->kind != OPT_FLAG && o->kind != OPT_OPTIONAL;
}

static const struct opt *find_letter(const struct command *c, char letter)
{
	for (const struct opt *o = c->opts; !is_end(o); o++)
		if (o->letter == letter)
			return o;
	return NULL;
}

/* Exact name, or a prefix that fits rows of one field only. */
static const struct opt *find_name(
	const struct command *c, const char *name, size_t len, bool *ambiguous)
{
	const struct opt *found = NULL;

	*ambiguous = false;
	for (const struct opt *o = c->opts; !is_end(o); o++) {
		if (!o->name || strncmp(o->name, name, len) != 0)
			continue;
		if (strlen(o->name) == len) {
			*ambiguous = false;
			return o;
		}
		if (found && found->at != o->at)
			*ambiguous = true;
		found = o;
	}
	return found;
}

static int try_help(const struct command *c)
{
	if (c->inner)
		fprintf(stderr, "Try 'help %s' for more info\n", c->name);
	else
		fprintf(stderr, "Try '%s %s%s--help' for more info\n", tool_name(), c->name,
			*c->name ? " " : "");
	return -EINVAL;
}

/* The option as users read it: "--count (-c)". */
static void option_text(const struct opt *o, char *ret, size_t n)
{
	if (o->name && o->letter)
		snprintf(ret, n, "--%s (-%c)", o->name, o->letter);
	else if (o->name)
		snprintf(ret, n, "--%s", o->name);
	else
		snprintf(ret, n, "-%c", o->letter);
}

static int bad_enum(const struct command *c, const struct opt *o, const char *value)
{
	char list[256] = "", name[64];
	size_t at = 0;

	for (const struct conf_enum *e = o->values; e->name && at < sizeof(list); e++)
		at += (size_t)snprintf(list + at, sizeof(list) - at, "%s'%s'",
			e == o->values      ? ""
				: e[1].name ? ", "
					    : " or ",
			e->name);
	option_text(o, name, sizeof(name));
	tool_error("%s expects %s not '%s'", name, list, value);
	return try_help(c);
}

static int bad_number(const struct command *c, const struct opt *o, const char *value)
{
	const char *what = o->kind == OPT_SIZE ? "a size" : "a number";
	char name[64];

	option_text(o, name, sizeof(name));
	if (o->max)
		tool_error("%s expects %s between %llu and %llu, not '%s'", name, what,
			(unsigned long long)o->min, (unsigned long long)o->max, value);
	else
		tool_error("%s expects %s, not '%s'", name, what, value);
	return try_help(c);
}

static int set_number(
	const struct command *c, const struct opt *o, const char *value, uint64_t *field)
{
	uint64_t v;
	int r = o->kind == OPT_SIZE ? parse_size(value, &v) : parse_u64(value, &v);

	if (r < 0 || v < o->min || (o->max && v > o->max))
		return bad_number(c, o, value);
	*field = v;
	return 0;
}

static int set_option(const struct parse *p, const struct opt *o, const char *value)
{
	void *field = (char *)p->ret + o->at;
	struct opt_texts *texts = field;

	switch (o->kind) {
	case OPT_FLAG:
		*(bool *)field = true;
		return 0;
	case OPT_TEXT:
		*(const char **)field = value;
		return 0;
	case OPT_OPTIONAL:
		*(const char **)field = value ? value : "";
		return 0;
	case OPT_TEXTS:
		if (!texts->v)
			texts->v = mem_calloc((size_t)p->argc, sizeof(*texts->v));
		if (!texts->v) {
			tool_error("out of memory");
			return -ENOMEM;
		}
		texts->v[texts->n++] = value;
		return 0;
	case OPT_SIZE:
	case OPT_NUMBER:
		return set_number(p->c, o, value, field);
	case OPT_ENUM:
		for (const struct conf_enum *e = o->values; e->name; e++)
			if (!strcmp(e->name, value)) {
				*(int *)field = e->value;
				return 0;
			}
		return bad_enum(p->c, o, value);
	case OPT_END:
		break;
	}
	return -EINVAL;
}

static int parse_long(struct parse *p, const char *text)
{
	const char *eq = strchr(text, '=');
	size_t len = eq ? (size_t)(eq - text) : strlen(text);
	bool ambiguous;
	const struct opt *o = find_name(p->c, text, len, &ambiguous);
	const char *value = eq ? eq + 1 : NULL;

	if (!strcmp(text, "help")) {
		options_help(p->c);
		return 1;
	}
	if (!o || ambiguous) {
		tool_error("%s option '--%.*s'", ambiguous ? "ambiguous" : "unrecognized", (int)len,
			text);
		return try_help(p->c);
	}
	if (o->kind == OPT_FLAG && value) {
		tool_error("option '--%s' takes no value", o->name);
		return try_help(p->c);
	}
	if (takes_value(o) && !value) {
		if (p->i + 1 >= p->argc) {
			tool_error("option '--%s' requires an argument", o->name);
			return try_help(p->c);
		}
		value = p->argv[++p->i];
	}
	return set_option(p, o, value);
}

static int parse_letters(struct parse *p, const char *letters)
{
	for (const char *l = letters; *l; l++) {
		const struct opt *o = find_letter(p->c, *l);
		const char *value = NULL;
		int r;

		if (*l == 'h' && !o) {
			options_help(p->c);
			return 1;
		}
		if (!o) {
			tool_error("invalid option -- '%c'", *l);
			return try_help(p->c);
		}
		if (takes_value(o)) {
			if (l[1])
				value = l + 1;
			else if (p->i + 1 < p->argc)
				value = p->argv[++p->i];
			if (!value) {
				tool_error("option requires an argument -- '%c'", *l);
				return try_help(p->c);
			}
		}
		r = set_option(p, o, value);
		if (r || takes_value(o))
			return r;
	}
	return 0;
}

int options_parse(const struct command *c, int argc, char **argv, void *ret, char **ret_args,
	unsigned *ret_nargs)
{
	struct parse p = {.c = c, .argv = argv, .argc = argc, .i = 1, .ret = ret};
	unsigned n = 0;

	for (; p.i < argc; p.i++) {
		char *a = argv[p.i];
		int r = 0;

		if (a[0] != '-' || !a[1] || isdigit((unsigned char)a[1])) {
			ret_args[n++] = a;
		} else if (!strcmp(a, "--")) {
			while (++p.i < argc)
				ret_args[n++] = argv[p.i];
		} else if (a[1] == '-') {
			r = parse_long(&p, a + 2);
		} else {
			r = parse_letters(&p, a + 1);
		}
		if (r)
			return r;
	}
	if (n < c->min_args || n > c->max_args) {
		if (n > c->max_args && !c->wrong_args)
			tool_error("Unexpected argument: %s", ret_args[c->max_args]);
		else
			tool_error(
				"%s", c->wrong_args ? c->wrong_args : "wrong number of arguments");
		return try_help(c);
	}
	*ret_nargs = n;
	return 0;
}

void options_free(const struct command *c, void *opts)
{
	for (const struct opt *o = c->opts; !is_end(o); o++)
		if (o->kind == OPT_TEXTS) {
			struct opt_texts *texts = (void *)((char *)opts + o->at);

			mem_free(take(texts->v));
			texts->n = 0;
		}
}

/* The help of a row, wrapped at 72 columns and indented by five. */
static void print_help_text(const char *text)
{
	const unsigned width = 72;

	while (*text) {
		size_t len = strlen(text);

		if (len > width) {
			len = width;
			while (len && text[len] != ' ')
				len--;
			if (!len)
				len = width;
		}
		printf("     %.*s\n", (int)len, text);
		text += len;
		while (*text == ' ')
			text++;
	}
}

void options_help(const struct command *c)
{
	if (c->inner)
		printf("%s%s %s -- %s\n", c->name, is_end(c->opts) ? "" : " [OPTION...]", c->args,
			c->summary);
	else
		printf("Usage:\n  %s %s%s[OPTION...] %s\n\n%s.\n\nArguments:\n"
		       "  -h, --help\n     print this help and exit\n",
			tool_name(), c->name, *c->name ? " " : "", c->args, c->summary);
	for (const struct opt *o = c->opts; !is_end(o); o++) {
		const char *sep = !o->arg || !o->name ? "" : o->kind == OPT_OPTIONAL ? "[=" : " ";

		if (!o->help)
			continue;
		if (o->letter && o->name)
			printf("  -%c, --%s", o->letter, o->name);
		else if (o->name)
			printf("  --%s", o->name);
		else
			printf("  -%c ", o->letter);
		printf("%s%s%s\n", sep, o->arg ? o->arg : "", *sep == '[' ? "]" : "");
		print_help_text(o->help);
	}
}

struct running {
	const struct command *c;
	void *opts;
	char **args;
	unsigned nargs;
};

static int run_command(void *arg)
{
	struct running *r = arg;

	return r->c->co_run(r->opts, r->args, r->nargs);
}

int command_run(const struct command *c, int argc, char **argv)
{
	_cleanup_free_ char **args = mem_calloc((size_t)argc + 1, sizeof(*args));
	_cleanup_free_ void *opts = mem_zalloc(c->opts_size);
	struct running run = {.c = c, .opts = opts, .args = args};
	struct error err = ERROR_INIT;
	struct ring *ring;
	int r;

	if (!args || !opts) {
		tool_error("out of memory");
		return 1;
	}
	if (c->defaults)
		memcpy(opts, c->defaults, c->opts_size);
	r = options_parse(c, argc, argv, opts, args, &run.nargs);
	if (r) {
		options_free(c, opts);
		return r > 0 ? 0 : 1;
	}
	r = c->prepare ? c->prepare(opts) : 0;
	if (!r)
		r = ring_get(&ring, &err);
	if (r < 0)
		tool_fail(&err);
	else if (!r)
		r = co_run(run_command, &run);
	options_free(c, opts);
	return r < 0 ? 1 : r;
}
