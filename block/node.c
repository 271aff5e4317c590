/* SPDX-License-Identifier: MIT */
/*
 * The graph of nodes: opening what a spec describes, and closing it; open.c finds out what that is.
 *
 * A node's children are opened before it, but for the backing file: co_open only asks for it, and
 * co_open_chain() opens layer after layer from the top down, so that the depth of a chain costs no
 * stack. Closing a chain goes the same way.
 */
#include "block/internal.h"
#include "base/trace.h"
#include <assert.h>

static const struct block_driver *const *drivers;

const struct conf_enum block_cache_names[] = {
	{"writeback", BLOCK_CACHE_WRITEBACK},
	{"none", BLOCK_CACHE_NONE},
	{"off", BLOCK_CACHE_NONE},
	{"writethrough", BLOCK_CACHE_WRITETHROUGH},
	{"directsync", BLOCK_CACHE_DIRECTSYNC},
	{"unsafe", BLOCK_CACHE_UNSAFE},
	{NULL, 0},
};

const struct conf_enum block_prealloc_names[] = {
	{"off", BLOCK_PREALLOC_OFF},
	{"metadata", BLOCK_PREALLOC_METADATA},
	{"falloc", BLOCK_PREALLOC_FALLOC},
	{"full", BLOCK_PREALLOC_FULL},
	{NULL, 0},
};

void block_register(const struct block_driver *const *table)
{
	drivers = table;
}

const struct block_driver *const *block_drivers(void)
{
	static const struct block_driver *const none[] = {NULL};

	return drivers ? drivers : none;
}

const struct block_driver *block_driver_find(const char *name)
{
	for (const struct block_driver *const *d = block_drivers(); *d; d++)
		if (!strcmp((*d)->name, name))
			return *d;
	return NULL;
}

const struct block_driver *block_probe(const void *head, size_t n)
{
	const struct block_driver *best = NULL;
	int best_score = 0;

	for (const struct block_driver *const *d = block_drivers(); *d; d++) {
		int score = (*d)->probe ? (*d)->probe(head, n) : 0;

		if (score > best_score) {
			best = *d;
			best_score = score;
		}
	}
	return best;
}

/* --- making and freeing ------------------------------------------------------------------- */

static void node_free(struct node *x)
{
	if (!x)
		return;
	inflight_free(x->pub.inflight);
	mem_free(x->pub.filename);
	conf_free(x->pub.spec);
	mem_free(x->pub.priv);
	block_chain_free(x->chain);
	mem_free(x->backing_name);
	mem_free(x->backing_format);
	mem_free(x);
}

static void node_freep(struct node **x)
{
	node_free(*x);
}

static int node_new(const struct block_driver *drv, const struct conf *spec,
	const struct block_open_opts *o, struct node **ret)
{
	_cleanup_(node_freep) struct node *x = mem_aligned(64, align_up(sizeof(*x), 64));

	if (!x)
		return -ENOMEM;
	memset(x, 0, sizeof(*x));
	x->pub.drv = drv;
	x->pub.opts = *o;
	x->pub.refs = 1;
	x->pub.caps.align = 1;
	x->pub.caps.buf_align = 1;
	x->pub.spec = spec ? conf_dup(spec) : conf_new(CONF_OBJECT);
	x->pub.priv = mem_zalloc(drv->node_size ? drv->node_size : 1);
	if (!x->pub.spec || !x->pub.priv || inflight_new(&x->pub.inflight))
		return -ENOMEM;
	*ret = take(x);
	return 0;
}

/* What a filter shows is what its child shows, unless its co_open says otherwise. */
static void inherit_from_file(struct block_node *n)
{
	const struct block_node *c = n->child[BLOCK_ROLE_FILE];

	n->size = block_size(c);
	n->caps = c->caps;
	/* The child aligns requests itself; cutting them twice would only cost. */
	n->caps.align = n->caps.buf_align = 1;
	n->caps.max_io = n->caps.max_iov = 0;
	n->caps.can_backing = false;
}

/* A format that lives in a node may read beyond its end and make it grow. */
static void adopt_store(struct block_node *file)
{
	for (; file; file = file->drv->kind == BLOCK_KIND_PROTOCOL ? NULL
								   : file->child[BLOCK_ROLE_FILE]) {
		file->opts.flags |= BLOCK_OPEN_STORE;
		if (file->opts.flags & BLOCK_OPEN_RDWR)
			file->opts.perm |= BLOCK_PERM_RESIZE | BLOCK_PERM_WRITE | BLOCK_PERM_READ;
	}
}

int co_node_open_on(const struct block_driver *drv, struct block_node *file,
	const struct conf *spec, struct conf *opts, const struct block_open_opts *o,
	struct block_node **ret, struct error *err)
{
	struct node *x;
	struct block_node *n;
	const char *name = file ? file->filename : NULL;
	int r = node_new(drv, spec, o, &x);

	if (r) {
		error_set_errno(err, r, "Could not open '%s'", name ? name : drv->name);
		co_block_node_unref(file);
		return r;
	}
	n = &x->pub;
	n->child[BLOCK_ROLE_FILE] = file;
	if (file && (o->flags & BLOCK_OPEN_AUTO_RO) && !(file->opts.flags & BLOCK_OPEN_RDWR))
		n->opts.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
	if (drv->kind == BLOCK_KIND_PROTOCOL && conf_has(opts, "filename"))
		name = conf_text(conf_get(opts, "filename"));
	n->filename = mem_strdup(name ? name : drv->name);
	if (file && drv->kind == BLOCK_KIND_FILTER)
		inherit_from_file(n);
	r = n->filename ? 0 : error_set_errno(err, -ENOMEM, "Could not open '%s'", drv->name);
	if (!r)
		r = drv->co_open ? drv->co_open(n, opts, err) : 0;
	if (r) {
		co_block_node_unref(file);
		node_free(x);
		return r;
	}
	trace("block_node_open", "%s: %s%s", drv->name, n->filename,
		n->opts.flags & BLOCK_OPEN_RDWR ? "" : " (read-only)");
	assert(is_pow2(n->caps.align) && is_pow2(MAX(n->caps.buf_align, 1u)));
	*ret = n;
	return 0;
}

int co_block_open_on(const struct block_driver *drv, struct block_node *file, struct conf *opts,
	const struct block_open_opts *o, struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *none = NULL;
	struct block_node *n;
	int r;

	if (!opts) {
		opts = none = conf_new(CONF_OBJECT);
		if (!opts) {
			co_block_node_unref(file);
			return error_set_errno(
				err, -ENOMEM, "Could not open driver '%s'", drv->name);
		}
	}
	if (file && drv->kind == BLOCK_KIND_FORMAT)
		adopt_store(file);
	r = co_node_open_on(drv, file, opts, opts, o, &n, err);
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

struct block_node *block_node_ref(struct block_node *n)
{
	__atomic_fetch_add(&n->refs, 1, __ATOMIC_RELAXED);
	return n;
}

/* Closes one node whose last reference is gone; *backing is the caller's to drop. */
static int co_node_close(struct block_node *n, struct block_node **backing)
{
	int r = 0, r2;

	trace("block_node_close", "%s: %s", n->drv->name, n->filename);
	co_block_drain_begin(n);
	co_block_drain_end(n);
	if ((n->opts.flags & BLOCK_OPEN_RDWR) && inflight_write_gen(n->inflight))
		r = co_block_flush(n);
	if (n->drv->co_close) {
		r2 = n->drv->co_close(n);
		r = r ? r : r2;
	}
	r2 = co_block_node_unref(n->child[BLOCK_ROLE_DATA]);
	r = r ? r : r2;
	r2 = co_block_node_unref(n->child[BLOCK_ROLE_FILE]);
	r = r ? r : r2;
	*backing = n->child[BLOCK_ROLE_BACKING];
	node_free(node_of(n));
	return r;
}

int co_block_node_unref(struct block_node *n)
{
	int ret = 0;

	while (n && __atomic_sub_fetch(&n->refs, 1, __ATOMIC_ACQ_REL) == 0) {
		struct block_node *backing;
		int r = co_node_close(n, &backing);

		ret = ret ? ret : r;
		n = backing;
	}
	return ret;
}

int co_block_set_child(struct block_node *n, enum block_role role, struct block_node *child)
{
	struct block_node *old = n->child[role];

	n->child[role] = child;
	block_graph_changed();
	return co_block_node_unref(old);
}

/* --- reopening ----------------------------------------------------------------------------- */

static int co_reopen_self(struct block_node *n, const struct block_open_opts *o, struct error *err)
{
	int r = n->drv->co_reopen ? n->drv->co_reopen(n, o, err) : 0;

	if (!r) {
		uint32_t kept = n->opts.flags & (BLOCK_OPEN_PROBED | BLOCK_OPEN_STORE);

		n->opts = *o;
		n->opts.flags |= kept;
	}
	return r;
}

static int co_reopen_file(struct block_node *n, const struct block_open_opts *o, struct error *err)
{
	struct block_open_opts c;

	if (!n->child[BLOCK_ROLE_FILE])
		return 0;
	block_child_opts(n->drv, o, BLOCK_ROLE_FILE, &c);
	return co_block_reopen(n->child[BLOCK_ROLE_FILE], &c, err);
}

int co_block_reopen(struct block_node *n, const struct block_open_opts *want, struct error *err)
{
	struct block_open_opts old = n->opts, own = *want, *o = &own;
	int r = block_own_opts(n, &own, err);
	bool gains;

	if (r)
		return r;
	gains = (o->flags & ~n->opts.flags) & BLOCK_OPEN_RDWR;
	co_block_drain_begin(n);
	/* The file becomes writable before the format wants to write, and read-only after it has
	 * written its last. */
	if (gains) {
		r = co_reopen_file(n, o, err);
		if (!r) {
			r = co_reopen_self(n, o, err);
			if (r)
				co_reopen_file(n, &old, NULL);
		}
	} else {
		r = co_reopen_self(n, o, err);
		if (!r)
			r = co_reopen_file(n, o, err);
	}
	block_graph_changed();
	co_block_drain_end(n);
	return r;
}
