/* SPDX-License-Identifier: MIT */
/*
 * Opening by spec: options every node takes, file names and protocols, probing, permissions of
 * children, and backing chains under the trust rules.
 */
#include "block/internal.h"
#include <assert.h>
#include <sys/stat.h>

enum discard_mode { DISCARD_IGNORE, DISCARD_UNMAP };
enum detect_mode { DETECT_OFF, DETECT_ON, DETECT_UNMAP };

static const struct conf_enum discard_names[] = {
	{"ignore", DISCARD_IGNORE},
	{"off", DISCARD_IGNORE},
	{"unmap", DISCARD_UNMAP},
	{"on", DISCARD_UNMAP},
	{NULL, 0},
};
static const struct conf_enum detect_names[] = {
	{"off", DETECT_OFF},
	{"on", DETECT_ON},
	{"unmap", DETECT_UNMAP},
	{NULL, 0},
};
static const struct conf_enum werror_names[] = {
	{"report", BLOCK_WERROR_REPORT},
	{"stop", BLOCK_WERROR_STOP},
	{"enospc", BLOCK_WERROR_ENOSPC},
	{NULL, 0},
};
static const struct conf_key common_keys[] = {
	{"driver", CONF_KEY_STRING, NULL, 0, 0, "driver of the node"},
	{"node-name", CONF_KEY_STRING, NULL, 0, 0, "name of the node"},
	{"filename", CONF_KEY_STRING, NULL, 0, 0, "file name"},
	{"read-only", CONF_KEY_BOOL, NULL, 0, 0, "open read-only"},
	{"auto-read-only", CONF_KEY_BOOL, NULL, 0, 0, "read-only where writing is refused"},
	{"force-share", CONF_KEY_BOOL, NULL, 0, 0, "open though somebody writes"},
	{"discard", CONF_KEY_ENUM, discard_names, 0, 0, "what becomes of discards"},
	{"detect-zeroes", CONF_KEY_ENUM, detect_names, 0, 0, "turn writes of zeroes around"},
	{"werror", CONF_KEY_ENUM, werror_names, 0, 0, "what a failed write does"},
	{NULL, 0, NULL, 0, 0, NULL},
};
static const struct conf_key cache_keys[] = {
	{"direct", CONF_KEY_BOOL, NULL, 0, 0, "bypass the host's page cache"},
	{"no-flush", CONF_KEY_BOOL, NULL, 0, 0, "ignore flushes"},
	{"writeback", CONF_KEY_BOOL, NULL, 0, 0, "off: flush after every write"},
	{NULL, 0, NULL, 0, 0, NULL},
};

static void set_flag(uint32_t *flags, uint32_t bit, bool on)
{
	*flags = on ? *flags | bit : *flags & ~bit;
}

static int parse_cache(struct conf *opts, struct block_open_opts *o, struct error *err)
{
	struct conf *c = conf_get(opts, "cache");
	bool direct = o->cache == BLOCK_CACHE_NONE || o->cache == BLOCK_CACHE_DIRECTSYNC;
	bool no_flush = o->cache == BLOCK_CACHE_UNSAFE;
	bool back = o->cache != BLOCK_CACHE_WRITETHROUGH && o->cache != BLOCK_CACHE_DIRECTSYNC;
	int r;

	if (!c)
		return 0;
	if (conf_type(c) != CONF_OBJECT)
		return error_set(err, -EINVAL,
			"'cache' takes cache.direct, cache.no-flush and cache.writeback");
	if ((r = conf_get_bool(c, cache_keys, "direct", &direct, err)) ||
		(r = conf_get_bool(c, cache_keys, "no-flush", &no_flush, err)) ||
		(r = conf_get_bool(c, cache_keys, "writeback", &back, err)))
		return r;
	if (no_flush)
		o->cache = BLOCK_CACHE_UNSAFE;
	else if (direct)
		o->cache = back ? BLOCK_CACHE_NONE : BLOCK_CACHE_DIRECTSYNC;
	else
		o->cache = back ? BLOCK_CACHE_WRITEBACK : BLOCK_CACHE_WRITETHROUGH;
	return 0;
}

/* Options that any node takes, laid over what the opener said. */
static int parse_common(
	struct conf *opts, struct block_open_opts *o, int *ret_werror, struct error *err)
{
	bool ro = !(o->flags & BLOCK_OPEN_RDWR), auto_ro = o->flags & BLOCK_OPEN_AUTO_RO;
	bool share = o->flags & BLOCK_OPEN_FORCE_SHARE;
	int discard = o->flags & BLOCK_OPEN_UNMAP ? DISCARD_UNMAP : DISCARD_IGNORE;
	int detect = o->detect_zeroes ? o->detect_zeroes_unmap ? DETECT_UNMAP : DETECT_ON
				      : DETECT_OFF;
	const char *name = NULL;
	int r;

	if ((r = conf_get_bool(opts, common_keys, "read-only", &ro, err)) ||
		(r = conf_get_bool(opts, common_keys, "auto-read-only", &auto_ro, err)) ||
		(r = conf_get_bool(opts, common_keys, "force-share", &share, err)) ||
		(r = conf_get_enum(opts, common_keys, "discard", &discard, err)) ||
		(r = conf_get_enum(opts, common_keys, "detect-zeroes", &detect, err)) ||
		(r = conf_get_enum(opts, common_keys, "werror", ret_werror, err)) ||
		(r = conf_get_string(opts, common_keys, "node-name", &name, err)) ||
		(r = parse_cache(opts, o, err)))
		return r;
	if (share && !ro && !auto_ro)
		return error_set(
			err, -EINVAL, "force-share=on can only be used with read-only images");
	if (ro || share)
		o->flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
	set_flag(&o->flags, BLOCK_OPEN_AUTO_RO, auto_ro);
	set_flag(&o->flags, BLOCK_OPEN_FORCE_SHARE, share);
	set_flag(&o->flags, BLOCK_OPEN_UNMAP, discard == DISCARD_UNMAP);
	o->detect_zeroes = detect != DETECT_OFF;
	o->detect_zeroes_unmap = detect == DETECT_UNMAP;
	return 0;
}

int block_own_opts(const struct block_node *n, struct block_open_opts *o, struct error *err)
{
	_cleanup_(conf_freep) struct conf *opts = conf_dup(n->spec);
	bool want_rw = o->flags & BLOCK_OPEN_RDWR;
	int r, werror;

	if (!opts)
		return error_set_errno(err, -ENOMEM, "Could not reopen '%s'", n->filename);
	r = parse_common(opts, o, &werror, err);
	if (!r && want_rw && !(o->flags & (BLOCK_OPEN_RDWR | BLOCK_OPEN_AUTO_RO)))
		return error_set(err, -EPERM,
			"'%s' is opened with read-only=on and cannot become writable", n->filename);
	return r;
}

/* --- what children are opened with ---------------------------------------------------------- */

/* Writethrough belongs to the node that guests write to: below it, ordering is the format's. */
static enum block_cache child_cache(enum block_cache c)
{
	if (c == BLOCK_CACHE_WRITETHROUGH)
		return BLOCK_CACHE_WRITEBACK;
	return c == BLOCK_CACHE_DIRECTSYNC ? BLOCK_CACHE_NONE : c;
}

static void format_perms(const struct block_driver *drv, const struct block_open_opts *o,
	struct block_open_opts *ret)
{
	bool rw = o->flags & BLOCK_OPEN_RDWR;

	if (!strcmp(drv->name, "raw")) {
		/* raw has no metadata to guard: what its opener needs and shares is what counts. */
		ret->perm = o->perm ? o->perm : BLOCK_PERM_READ | (rw ? BLOCK_PERM_WRITE : 0);
		ret->shared = o->perm ? o->shared : BLOCK_PERM_ALL;
		return;
	}
	ret->perm = BLOCK_PERM_READ | (rw ? BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE : 0);
	ret->shared = BLOCK_PERM_ALL & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE);
}

void block_child_opts(const struct block_driver *drv, const struct block_open_opts *o,
	enum block_role role, struct block_open_opts *ret)
{
	uint32_t inherited = BLOCK_OPEN_FORCE_SHARE | BLOCK_OPEN_NO_LOCK | BLOCK_OPEN_UNMAP |
		BLOCK_OPEN_AUTO_RO | BLOCK_OPEN_RDWR;

	*ret = (struct block_open_opts){
		.flags = o->flags & inherited, .cache = child_cache(o->cache), .trust = o->trust};
	if (role == BLOCK_ROLE_BACKING) {
		ret->flags &= ~(uint32_t)(BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP);
		return;
	}
	if (drv->kind == BLOCK_KIND_FORMAT) {
		ret->flags |= BLOCK_OPEN_STORE;
		format_perms(drv, o, ret);
	} else {
		ret->flags |= o->flags &
			(BLOCK_OPEN_STORE | BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_IO |
				BLOCK_OPEN_NO_BACKING);
		ret->perm = o->perm;
		ret->shared = o->shared;
	}
}

/* --- names ---------------------------------------------------------------------------------- */

size_t block_name_protocol(const char *name)
{
	size_t n = strcspn(name, ":/");

	return name[n] == ':' ? n : 0;
}

static const struct block_driver *protocol_find(const char *name, size_t n)
{
	for (const struct block_driver *const *d = block_drivers(); *d; d++)
		for (const char *const *p = (*d)->protocols; p && *p; p++)
			if (strlen(*p) == n && !strncmp(*p, name, n))
				return *d;
	return NULL;
}

/* The driver that stores what `name` names; *ret_name is the name it takes. */
static int protocol_of(
	const char *name, const char **ret_name, const char **ret_driver, struct error *err)
{
	size_t n = block_name_protocol(name);
	struct stat st;

	*ret_name = name;
	if (n) {
		const struct block_driver *d = protocol_find(name, n);

		if (n == 4 && !strncmp(name, "file", 4))
			*ret_name = name + 5;
		else if (d)
			return *ret_driver = d->name, 0;
		else
			return error_set(
				err, -ENOENT, "Unknown protocol '%.*s'", (int)MIN(n, 64u), name);
	}
	*ret_driver = "file";
	if (!stat(*ret_name, &st) && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)))
		*ret_driver = "host_device";
	return 0;
}

int block_spec_from_name(const char *name, const char *format, struct conf **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *c = NULL;
	int r;

	if (!strncmp(name, "json:", 5)) {
		r = conf_parse_json(name + 5, &c, err);
		if (r)
			return r;
		if (conf_type(c) != CONF_OBJECT)
			return error_set(err, -EINVAL, "A json: name holds an object, {...}");
	} else {
		c = conf_new(CONF_OBJECT);
		if (!c || conf_set(c, "filename", name))
			return error_set_errno(err, -ENOMEM, "Could not open '%s'", name);
	}
	if (format && !conf_has(c, "driver") && conf_set(c, "driver", format))
		return error_set_errno(err, -ENOMEM, "Could not open '%s'", name);
	*ret = take(c);
	return 0;
}

char *block_path_join(const char *base, const char *name)
{
	const char *slash;

	if (name[0] == '/' || block_name_protocol(name) || !strncmp(base, "json:", 5))
		return mem_strdup(name);
	slash = strrchr(base, '/');
	if (!slash)
		return mem_strdup(name);
	return mem_printf("%.*s%s", (int)(slash + 1 - base), base, name);
}

/* --- one node ------------------------------------------------------------------------------- */

static const char *text_of(struct conf *obj, const char *key)
{
	struct conf *c = conf_get(obj, key);

	return c && conf_type(c) == CONF_SCALAR ? conf_text(c) : NULL;
}

static int no_memory(struct error *err)
{
	return error_set_errno(err, -ENOMEM, "Could not open the image");
}

/* Takes the description of the node below out of `opts`: the object (or name) under `file` or
 * `image`, else `filename`. */
static int take_file_spec(struct conf *opts, struct conf **ret, struct error *err)
{
	static const char *const keys[] = {"file", "image", "test"};
	struct conf *c = NULL, *found;

	for (size_t i = 0; i < ARRAY_SIZE(keys) && !c; i++) {
		found = conf_get(opts, keys[i]);
		if (!found)
			continue;
		if (conf_type(found) == CONF_OBJECT) {
			c = conf_dup(found);
		} else if (conf_type(found) == CONF_SCALAR) {
			int r = block_spec_from_name(conf_text(found), NULL, &c, err);

			if (r)
				return r;
		}
		if (!c)
			return no_memory(err);
		conf_remove(opts, keys[i]);
	}
	if (!c && text_of(opts, "filename")) {
		c = conf_new(CONF_OBJECT);
		if (!c || conf_set(c, "filename", text_of(opts, "filename"))) {
			conf_free(c);
			return no_memory(err);
		}
		conf_remove(opts, "filename");
	}
	if (!c)
		return error_set(err, -EINVAL, "A block device must be specified for \"file\"");
	*ret = c;
	return 0;
}

/* A spec that has only a file name gets the driver that stores such files. */
int block_name_driver(struct conf *spec, struct error *err)
{
	const char *name = text_of(spec, "filename"), *rest, *driver = NULL;
	_cleanup_free_ char *copy = NULL;
	int r;

	if (conf_has(spec, "driver") || !name)
		return 0;
	r = protocol_of(name, &rest, &driver, err);
	if (r)
		return r;
	copy = mem_strdup(rest);
	if (!copy || conf_set(spec, "filename", copy) || conf_set(spec, "driver", driver))
		return no_memory(err);
	return 0;
}

static int co_open_node(const struct conf *spec, const struct block_open_opts *o,
	struct block_node **ret, struct error *err);

/* The child of a format or of a filter that sits below formats is what stores the bytes. */
static int co_open_file_child(const struct block_driver *drv, struct conf *opts,
	const struct block_open_opts *o, struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts c;
	struct block_node *n;
	int r = take_file_spec(opts, &spec, err);

	if (r)
		return r;
	block_child_opts(drv, o, BLOCK_ROLE_FILE, &c);
	if (drv->kind == BLOCK_KIND_FORMAT || drv->takes_filename)
		r = block_name_driver(spec, err);
	if (!r)
		r = co_open_node(spec, &c, &n, err);
	if (r)
		return r;
	r = co_open_chain(n, err);
	if (r) {
		co_block_node_unref(n);
		return r;
	}
	*ret = n;
	return 0;
}

/* *ret is NULL when no driver knows the first bytes; *foreign names a format that is known but not
 * read. */
static int co_probe_head(struct block_node *file, const struct block_driver **ret,
	const char **foreign, struct error *err)
{
	_cleanup_free_ char *head = block_buffer_alloc(file, BLOCK_PROBE_LEN);
	size_t n = MIN(block_size(file), (uint64_t)BLOCK_PROBE_LEN);
	int r;

	if (!head)
		return no_memory(err);
	r = co_block_pread(file, 0, head, n);
	if (r)
		return error_set_errno(err, r,
			"Could not read image '%s' for determining its format", file->filename);
	*ret = block_probe(head, n);
	*foreign = *ret ? NULL : block_foreign(head, n);
	return 0;
}

static int co_probe(struct block_node *file, const struct block_open_opts *o,
	const struct block_driver **ret, struct error *err)
{
	const char *foreign;
	int r = co_probe_head(file, ret, &foreign, err);

	if (r)
		return r;
	if (foreign)
		return error_set(err, -ENOTSUP,
			"'%s' is a %s image, a format that is not supported; give the format raw "
			"to use its bytes as they are",
			file->filename, foreign);
	if (!*ret && o->trust->probe_raw)
		*ret = block_driver_find("raw");
	if (!*ret)
		return error_set(err, -EINVAL,
			"The format of '%s' is not known and untrusted images are not taken for "
			"raw; name the format",
			file->filename);
	return 0;
}

/* Under strict trust a declared format must not hide another one. */
static int co_check_declared(const struct block_driver *drv, struct block_node *file,
	const struct block_open_opts *o, struct error *err)
{
	const struct block_driver *found;
	const char *foreign;
	int r;

	if (o->trust->probe_raw || drv->kind != BLOCK_KIND_FORMAT)
		return 0;
	r = co_probe_head(file, &found, &foreign, err);
	if (!r && ((found && found != drv) || foreign))
		r = error_set(err, -EINVAL,
			"'%s' was to be opened as %s, but its content is %s; untrusted images must "
			"be what they are said to be",
			file->filename, drv->name, foreign ? foreign : found->name);
	return r;
}

/* Without a driver: the format is what the first bytes say. The locks that the format needs are
 * taken once it is known. */
static int co_open_probed(struct conf *opts, const struct block_open_opts *o,
	const struct block_driver **ret_drv, struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts c;
	struct block_node *file;
	int r = take_file_spec(opts, &spec, err);

	if (!r)
		r = block_name_driver(spec, err);
	if (r)
		return r;
	block_child_opts(&block_raw, o, BLOCK_ROLE_FILE, &c);
	c.flags |= BLOCK_OPEN_NO_LOCK;
	r = co_open_node(spec, &c, &file, err);
	if (r)
		return r;
	r = co_probe(file, o, ret_drv, err);
	if (!r) {
		block_child_opts(*ret_drv, o, BLOCK_ROLE_FILE, &c);
		if (!(file->opts.flags & BLOCK_OPEN_RDWR))
			c.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
		r = co_block_reopen(file, &c, err);
	}
	if (r) {
		co_block_node_unref(file);
		return r;
	}
	*ret = file;
	return 0;
}

/* For openers that do not say what they need. A file is a disk of fixed size then, unless the
 * opener says it is a store; what lives in memory is scratch space and grows. */
static void default_perms(const struct block_driver *drv, struct block_open_opts *o)
{
	bool rw = o->flags & BLOCK_OPEN_RDWR;

	o->perm = BLOCK_PERM_READ | (rw ? BLOCK_PERM_WRITE : 0);
	o->shared = BLOCK_PERM_ALL;
	if (!drv->takes_filename)
		o->flags |= BLOCK_OPEN_STORE;
	if (rw && (o->flags & BLOCK_OPEN_STORE))
		o->perm |= BLOCK_PERM_RESIZE;
}

/* Opens a node and what is below it, but not yet its backing file. */
static int co_open_node(const struct conf *spec, const struct block_open_opts *o,
	struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *opts = conf_dup(spec);
	const struct block_driver *drv = NULL;
	struct block_open_opts eff = *o;
	struct block_node *file = NULL, *n;
	const char *name;
	int r, werror = BLOCK_WERROR_REPORT;

	if (!opts)
		return no_memory(err);
	r = parse_common(opts, &eff, &werror, err);
	if (r)
		return r;
	name = text_of(opts, "driver");
	if (name) {
		drv = block_driver_find(name);
		if (!drv)
			return error_set(err, -ENOENT, "Unknown driver '%.64s'", name);
		if (drv->kind != BLOCK_KIND_PROTOCOL)
			r = co_open_file_child(drv, opts, &eff, &file, err);
		if (!r && file)
			r = co_check_declared(drv, file, &eff, err);
		if (r)
			co_block_node_unref(file);
	} else {
		r = co_open_probed(opts, &eff, &drv, &file, err);
		if (!r)
			eff.flags |= BLOCK_OPEN_PROBED;
	}
	if (r)
		return r;
	if (drv->kind == BLOCK_KIND_PROTOCOL && !eff.perm)
		default_perms(drv, &eff);
	conf_remove(opts, "backing"); /* n->spec keeps it for co_open_chain() */
	r = co_node_open_on(drv, file, spec, opts, &eff, &n, err);
	if (r)
		return r;
	node_of(n)->werror = (enum block_werror)werror;
	r = conf_check_unused(opts, err);
	if (r) {
		error_prefix(err, "Driver '%s' of '%s'", drv->name, n->filename);
		co_block_node_unref(n);
		return r;
	}
	*ret = n;
	return 0;
}

/* --- backing chains ------------------------------------------------------------------------- */

int co_block_open_backing(struct block_node *n, const char *name, const char *format,
	struct conf *override, struct error *err)
{
	struct node *x = node_of(n);

	if (override && conf_set_conf(n->spec, "backing", conf_dup(override)))
		return no_memory(err);
	x->backing_name = mem_strdup(name);
	x->backing_format = format ? mem_strdup(format) : NULL;
	if (!x->backing_name || (format && !x->backing_format))
		return no_memory(err);
	x->backing_wanted = true;
	return 0;
}

static bool file_id(const struct block_node *n, dev_t *dev, ino_t *ino)
{
	struct stat st;

	while (n->child[BLOCK_ROLE_FILE])
		n = n->child[BLOCK_ROLE_FILE];
	if ((n->drv != &block_file && n->drv != &block_host_device) || stat(n->filename, &st))
		return false;
	*dev = st.st_dev;
	*ino = st.st_ino;
	return true;
}

/* Is the file at `path` already one of the layers from top down to n? */
static bool in_chain(struct block_node *top, const char *path)
{
	struct stat st;
	dev_t dev;
	ino_t ino;

	if (stat(path, &st))
		return false;
	for (; top; top = block_backing(top))
		if (file_id(top, &dev, &ino) && dev == st.st_dev && ino == st.st_ino)
			return true;
	return false;
}

/* May a name read from inside image n be opened? */
static int check_name(const struct block_node *n, const char *name, struct error *err)
{
	switch (n->opts.trust->names) {
	case BLOCK_NAMES_NONE:
		return error_set(err, -EPERM,
			"'%s' names a backing file ('%.200s'), which is not opened for untrusted "
			"images",
			n->filename, name);
	case BLOCK_NAMES_LOCAL:
		if (block_name_protocol(name))
			return error_set(err, -EPERM,
				"'%s' names a backing file that is not a plain local path "
				"('%.200s'); use "
				"--trust-image-names (or DROVER_TRUST=all) if the image is your "
				"own, or "
				"name the backing file in --image-opts",
				n->filename, name);
		return 0;
	case BLOCK_NAMES_ALL:
		return 0;
	}
	return -EPERM;
}

/* The spec of the backing file named in the image. */
static int named_backing(const struct node *x, struct conf **ret, struct error *err)
{
	_cleanup_free_ char *path = NULL;
	int r = check_name(&x->pub, x->backing_name, err);

	if (r)
		return r;
	path = block_path_join(x->pub.filename, x->backing_name);
	if (!path)
		return no_memory(err);
	return block_spec_from_name(path, x->backing_format, ret, err);
}

/* Lays the user's `backing.*` options over the image's own name. */
static int merged_backing(
	const struct node *x, struct conf *user, struct conf **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *c = NULL;
	int r;

	if (conf_has(user, "file") || conf_has(user, "filename") ||
		(conf_has(user, "driver") && !x->backing_wanted)) {
		*ret = conf_dup(user);
		return *ret ? 0 : no_memory(err);
	}
	if (!x->backing_wanted)
		return error_set(err, -EINVAL, "'%s' has no backing file to set options of",
			x->pub.filename);
	r = named_backing(x, &c, err);
	if (r)
		return r;
	for (size_t i = 0; i < conf_count(user); i++) {
		struct conf *v, *copy;
		const char *key = conf_key_at(user, i, &v);

		copy = conf_dup(v);
		if (!copy || conf_set_conf(c, key, copy))
			return no_memory(err);
	}
	*ret = take(c);
	return 0;
}

/* The spec of the layer below x: *ret stays NULL when there is none. */
static int backing_spec(const struct node *x, struct conf **ret, struct error *err)
{
	struct conf *user = conf_get(x->pub.spec, "backing");

	if (x->pub.opts.flags & BLOCK_OPEN_NO_BACKING)
		return 0;
	if (user && conf_type(user) == CONF_SCALAR) {
		const char *text = conf_text(user);

		if (!text || !*text || !strcmp(text, "null"))
			return 0;
		return block_spec_from_name(text, NULL, ret, err);
	}
	if (user && conf_type(user) == CONF_OBJECT)
		return merged_backing(x, user, ret, err);
	return x->backing_wanted ? named_backing(x, ret, err) : 0;
}

static int co_open_layer(struct block_node *top, struct block_node *n, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts o;
	struct block_node *b;
	const char *name;
	int r = backing_spec(node_of(n), &spec, err);

	if (r || !spec)
		return r;
	if (node_of(n)->depth >= n->opts.trust->max_chain)
		return error_set(err, -ELOOP,
			"The backing chain of '%s' has more than %u layers, which is the limit",
			top->filename, n->opts.trust->max_chain);
	name = text_of(spec, "filename");
	if (name && !block_name_protocol(name) && in_chain(top, name))
		return error_set(err, -ELOOP, "Backing file '%s' creates an infinite loop.", name);
	block_child_opts(n->drv, &n->opts, BLOCK_ROLE_BACKING, &o);
	r = co_open_node(spec, &o, &b, err);
	if (r) {
		error_prefix(err, "Could not open backing file");
		return r;
	}
	n->child[BLOCK_ROLE_BACKING] = b;
	node_of(block_skip_filters(b))->depth = node_of(n)->depth + 1;
	return 0;
}

int co_open_chain(struct block_node *top, struct error *err)
{
	struct block_node *n = block_skip_filters(top);

	while (n && n->caps.can_backing && !n->child[BLOCK_ROLE_BACKING]) {
		int r = co_open_layer(top, n, err);

		if (r)
			return r;
		n = block_backing(n);
	}
	return 0;
}

int co_block_open(const struct conf *spec, const struct block_open_opts *o, struct block_node **ret,
	struct error *err)
{
	struct block_open_opts own = *o;
	struct block_node *n;
	int r;

	assert(o->trust);
	own.flags &= ~(uint32_t)BLOCK_OPEN_COPY_ON_READ;
	r = co_open_node(spec, &own, &n, err);
	if (r)
		return r;
	r = co_open_chain(n, err);
	if (r) {
		co_block_node_unref(n);
		return r;
	}
	if ((o->flags & BLOCK_OPEN_COPY_ON_READ) && (n->opts.flags & BLOCK_OPEN_RDWR) &&
		block_backing(n)) {
		own = n->opts;
		return co_block_open_on(&block_copy_on_read, n, NULL, &own, ret, err);
	}
	*ret = n;
	return 0;
}
