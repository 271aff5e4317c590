/* SPDX-License-Identifier: MIT */
/* Opening images as users name them: file names, option strings, trust, cache modes. */
#include "tools/tool.h"
#include <stdlib.h>

static const struct conf_enum trust_names[] = {{"strict", 0}, {"local", 1}, {"all", 2}, {NULL, 0}};

/* The level that `text` (len bytes, from `where`) names; -EINVAL and a sentence. */
static int trust_level(const char *text, size_t len, const char *where)
{
	for (const struct conf_enum *e = trust_names; e->name; e++)
		if (strlen(e->name) == len && !strncmp(e->name, text, len))
			return e->value;
	tool_error("%s is '%.*s'; it may be strict, local or all", where, (int)len, text);
	return -EINVAL;
}

/* `trust = LEVEL` in the configuration file, for callers that can set neither option nor
 * environment. Other keys are other programs' business. 1 (local) without file or key. */
static int trust_of_file(void)
{
	const char *path = getenv("DROVER_CONF");
	char line[256], where[320];
	int level = 1;
	FILE *f;

	if (!path)
		path = "/etc/drover.conf";
	f = fopen(path, "re");
	if (!f)
		return level;
	while (level >= 0 && fgets(line, sizeof(line), f)) {
		char *p = line + strspn(line, " \t");

		if (strncmp(p, "trust", 5) != 0)
			continue;
		p += 5;
		p += strspn(p, " \t");
		if (*p++ != '=')
			continue;
		p += strspn(p, " \t");
		snprintf(where, sizeof(where), "trust in %s", path);
		level = trust_level(p, strcspn(p, " \t\n#"), where);
	}
	fclose(f);
	return level;
}

int image_trust(const struct image_common *c, const struct block_trust **ret)
{
	static const struct block_trust *const presets[] = {
		&block_trust_strict, &block_trust_local, &block_trust_all};
	const char *env = getenv("DROVER_TRUST");
	int level;

	if (c->untrusted && c->trust_names) {
		tool_error("--untrusted and --trust-image-names exclude each other: give one");
		return -EINVAL;
	}
	if (c->untrusted || c->trust_names)
		level = c->untrusted ? 0 : 2;
	else if (env && *env)
		level = trust_level(env, strlen(env), "DROVER_TRUST");
	else
		level = trust_of_file();
	if (level < 0)
		return level;
	*ret = presets[level];
	return 0;
}

int image_set_engine(const char *aio, bool native)
{
	/* `native` is another name for the threads engine: kernel AIO has no use of its own here.
	 */
	static const struct conf_enum engines[] = {
		{"threads", 0}, {"native", 0}, {"io_uring", 1}, {NULL, 0}};

	if (!aio && !native)
		return 0;
	for (const struct conf_enum *e = engines; e->name; e++)
		if (!aio || !strcmp(aio, e->name)) {
			setenv("DROVER_AIO", aio && e->value ? "io_uring" : "threads", 1);
			return 0;
		}
	tool_error("Invalid aio option: %s (threads, native, io_uring)", aio);
	return -EINVAL;
}

int image_objects(const struct image_common *c)
{
	for (unsigned i = 0; i < c->objects.n; i++) {
		static const char *const kinds[] = {"secret", "secret_keyring", "tls-creds-x509",
			"tls-creds-psk", "tls-creds-anon"};
		const char *text = c->objects.v[i];
		const char *type = strncmp(text, "qom-type=", 9) ? text : text + 9;
		size_t len = strcspn(type, ",");
		bool known = false;

		for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++)
			known |= strlen(kinds[k]) == len && !strncmp(kinds[k], type, len);
		if (!known) {
			tool_error("--object: type '%.*s' is not known; it may be secret, "
				   "secret_keyring or tls-creds-*",
				(int)len, type);
			return -EINVAL;
		}
		if (!strstr(text, "id=")) {
			tool_error("--object %s: id=ID is missing", text);
			return -EINVAL;
		}
	}
	return 0;
}

static int image_spec(const struct image_name *in, struct conf **ret, struct error *err)
{
	int r;

	if (in->opts && in->format)
		return error_set(err, -EINVAL,
			"--image-opts and a format exclude each other: write driver=%s",
			in->format);
	*ret = NULL;
	if (in->opts)
		r = conf_parse_options(in->name, NULL, ret, err);
	else
		r = block_spec_from_name(in->name, in->format, ret, err);
	if (r >= 0 && in->more_opts)
		r = conf_parse_options(in->more_opts, NULL, ret, err);
	return r;
}

static void warn_probed_raw(const struct image_name *in, const struct block_node *n)
{
	if (!(in->flags & BLOCK_OPEN_RDWR) || !(n->opts.flags & BLOCK_OPEN_PROBED) ||
		strcmp(n->drv->name, "raw") != 0)
		return;
	fflush(stdout);
	fprintf(stderr,
		"WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
		"         A guest could make it look like another format: block 0 takes no image "
		"header now.\n"
		"         Name the 'raw' format to lift this and to be rid of the warning.\n",
		in->name);
}

int co_image_open(const struct image_common *c, const struct image_name *in,
	struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts o = {.flags = in->flags, .cache = (enum block_cache)in->cache};
	int r;

	r = image_trust(c, &o.trust);
	if (r < 0)
		return error_set(err, r, "'%s' was not opened", in->name);
	if (c->force_share) {
		if (o.flags & BLOCK_OPEN_RDWR)
			return error_set(err, -EINVAL,
				"Could not open '%s': --force-share is for reading only", in->name);
		o.flags |= BLOCK_OPEN_FORCE_SHARE;
	}
	if ((o.flags & BLOCK_OPEN_RDWR) && !in->keep_data)
		o.flags |= BLOCK_OPEN_UNMAP;
	o.detect_zeroes = in->detect_zeroes;
	o.detect_zeroes_unmap = in->detect_zeroes_unmap;
	r = image_spec(in, &spec, err);
	if (r >= 0)
		r = co_block_open(spec, &o, ret, err);
	if (r < 0) {
		if (err && strncmp(err->text, "Could not open", 14) != 0)
			error_prefix(err, "Could not open '%s'", in->name);
		return r;
	}
	warn_probed_raw(in, *ret);
	return 0;
}

int co_image_open_common(
	const struct image_common *c, const char *name, uint32_t flags, struct block_node **ret)
{
	struct image_name in = {.name = name,
		.format = c->format,
		.opts = c->image_opts,
		.flags = flags,
		.cache = c->cache};
	struct error err = ERROR_INIT;
	int r = image_objects(c);

	if (r < 0)
		return r;
	r = co_image_open(c, &in, ret, &err);
	if (r < 0)
		tool_fail(&err);
	return r;
}

void co_image_close(struct block_node **n, int *rc)
{
	struct block_node *node = take(*n);
	int r;

	if (!node)
		return;
	r = co_block_node_unref(node);
	if (r < 0 && *rc == 0) {
		tool_error("closing an image failed, data may be lost: %s", errno_text(r));
		*rc = 1;
	}
}
