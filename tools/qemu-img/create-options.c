/* SPDX-License-Identifier: MIT */
/* Creation options: `-o` texts, `-o help`, and the line that says what is being created. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"

const struct block_driver *img_format(const char *format)
{
	const struct block_driver *d = block_driver_find(format);

	if (d && d->co_create)
		return d;
	if (d)
		tool_error("Format driver '%s' does not support image creation", format);
	else
		tool_error("Unknown file format '%s'", format);
	return NULL;
}

static void print_key(const struct conf_key *k)
{
	static const char *const kinds[] = {[CONF_KEY_STRING] = "str",
		[CONF_KEY_BOOL] = "bool (on/off)",
		[CONF_KEY_SIZE] = "size",
		[CONF_KEY_NUMBER] = "num",
		[CONF_KEY_ENUM] = "str",
		[CONF_KEY_TREE] = "tree"};
	char text[96];

	snprintf(text, sizeof(text), "%s=<%s>", k->name, kinds[k->kind]);
	printf("  %-22s - %s\n", text, k->help);
}

/* A raw image is its file: it has the options of the file. */
static const struct conf_key *create_keys(const struct block_driver *d)
{
	return d->create_keys || d->kind != BLOCK_KIND_FORMAT ? d->create_keys
							      : block_file.create_keys;
}

static void print_options(const struct block_driver *d)
{
	printf("Supported %s options:\n", d->name);
	for (const struct conf_key *k = create_keys(d); k && k->name; k++)
		if (k->help) /* keys without are the tools' own business */
			print_key(k);
}

static bool asks_help(const char *text)
{
	/* As one of the items: "help", "a=b,help", "?". */
	for (const char *p = text; *p; p += strcspn(p, ","), p += *p == ',') {
		size_t n = strcspn(p, ",");

		if ((n == 4 && !strncmp(p, "help", 4)) || (n == 1 && *p == '?'))
			return true;
	}
	return false;
}

bool img_can_back(const char *format)
{
	const struct block_driver *d = block_driver_find(format);
	const struct conf_key *k = d ? d->create_keys : NULL;

	while (k && k->name && strcmp(k->name, "backing_file") != 0)
		k++;
	return k && k->name;
}

static int check_known(struct conf *opts, const struct conf_key *keys)
{
	const char *key;

	for (size_t i = 0; (key = conf_key_at(opts, i, NULL)); i++) {
		const struct conf_key *k = keys;

		while (k && k->name && strcmp(k->name, key) != 0)
			k++;
		if (!k || !k->name || !k->help) {
			tool_error("Invalid parameter '%s': '-o help' lists those that exist", key);
			return -EINVAL;
		}
	}
	return 0;
}

int img_create_options(const struct opt_texts *texts, const char *format, struct conf **ret)
{
	_cleanup_(conf_freep) struct conf *opts = conf_new(CONF_OBJECT);
	const struct block_driver *d = img_format(format);
	struct error err = ERROR_INIT;

	if (!d)
		return -EINVAL;
	if (!opts) {
		tool_error("out of memory");
		return -ENOMEM;
	}
	for (unsigned i = 0; i < texts->n; i++) {
		if (asks_help(texts->v[i])) {
			print_options(d);
			return 1;
		}
		if (conf_parse_options(texts->v[i], NULL, &opts, &err) < 0) {
			tool_fail(&err);
			return -EINVAL;
		}
	}
	if (check_known(opts, create_keys(d)) < 0)
		return -EINVAL;
	*ret = take(opts);
	return 0;
}

/* Order and defaults of the line are those people know; the driver's own order is for -o help. */
static const struct {
	const char *key, *qcow2_default;
	bool size;
} shown[] = {
	{"cluster_size", "65536", true},
	{"extended_l2", "off", false},
	{"preallocation", NULL, false},
	{"compression_type", "zlib", false},
	{"size", NULL, true},
	{"compat", NULL, false},
	{"backing_file", NULL, false},
	{"backing_fmt", NULL, false},
	{"data_file", NULL, false},
	{"data_file_raw", NULL, false},
	{"lazy_refcounts", "off", false},
	{"refcount_bits", "16", false},
	{"nocow", NULL, false},
};

void img_print_formatting(const char *filename, const char *format, struct conf *opts)
{
	/* raw shows its size first. */
	static const char *const raw_order[] = {"size", "preallocation", "nocow"};
	bool qcow2 = !strcmp(format, "qcow2"), raw = !strcmp(format, "raw");

	printf("Formatting '%s', fmt=%s", filename, format);
	for (unsigned i = 0; i < (raw ? ARRAY_SIZE(raw_order) : ARRAY_SIZE(shown)); i++) {
		const char *key = raw ? raw_order[i] : shown[i].key;
		const char *value = qcow2 ? shown[i].qcow2_default : NULL;
		uint64_t bytes;

		if (conf_has(opts, key))
			value = conf_text(conf_get(opts, key));
		if (!value)
			continue;
		if (!raw && shown[i].size && parse_size(value, &bytes) == 0)
			printf(" %s=%llu", key, (unsigned long long)bytes);
		else if (!strcmp(key, "size") && parse_size(value, &bytes) == 0)
			printf(" %s=%llu", key, (unsigned long long)bytes);
		else
			printf(" %s=%s", key, value);
	}
	putchar('\n');
}
