/* SPDX-License-Identifier: MIT */
/*
 * fault: a filter that fails, tears or delays the k-th call of a kind, at once or after a named
 * event, and holds requests at breakpoints.
 *
 *   driver=fault,op=write,at=3,error=ENOSPC,file.filename=x
 *   driver=fault,rules.0.op=flush,rules.0.error=EIO,rules.1.event=l2_update,rules.1.op=write,...
 *
 * An injected flush error is what a failed fdatasync is: no later flush succeeds (keeps I9).
 */
#include "block/fault.h"
#include "block/internal.h"
#include "base/co.h"
#include "base/ring.h"
#include <stdlib.h>

#define RULES_MAX  64
#define BREAKS_MAX 16

struct armed_rule {
	struct fault_rule rule;
	bool counting;
	uint64_t calls;
};

struct breakpoint {
	char event[48], tag[48]; /* "" event: free */
	bool held;
	struct co_queue waiter;
};

struct fault_state {
	struct spin lock;
	unsigned nrules;
	struct armed_rule rules[RULES_MAX];
	struct breakpoint breaks[BREAKS_MAX];
	uint64_t calls[6]; /* by bit number of enum fault_op */
};

static const struct conf_enum op_names[] = {
	{"read", FAULT_READ},
	{"write", FAULT_WRITE},
	{"zero", FAULT_ZERO},
	{"discard", FAULT_DISCARD},
	{"flush", FAULT_FLUSH},
	{"resize", FAULT_RESIZE},
	{"any", FAULT_ANY},
	{NULL, 0},
};
static const struct conf_enum error_names[] = {
	{"EIO", EIO},
	{"ENOSPC", ENOSPC},
	{"EAGAIN", EAGAIN},
	{"EPERM", EPERM},
	{"ENOMEM", ENOMEM},
	{"none", 0},
	{NULL, 0},
};
static const struct conf_key fault_keys[] = {
	{"op", CONF_KEY_ENUM, op_names, 0, 0, "kind of call"},
	{"at", CONF_KEY_NUMBER, NULL, 1, 0, "which call, from 1"},
	{"forever", CONF_KEY_BOOL, NULL, 0, 0, "all later calls too"},
	{"error", CONF_KEY_ENUM, error_names, 0, 0, "error to return"},
	{"short", CONF_KEY_BOOL, NULL, 0, 0, "writes: half of the data arrives first"},
	{"delay", CONF_KEY_NUMBER, NULL, 0, 3600000, "milliseconds to wait first"},
	{"event", CONF_KEY_STRING, NULL, 0, 0, "count calls from this event on"},
	{"rules", CONF_KEY_TREE, NULL, 0, 0, "list of objects with these keys"},
	{NULL, 0, NULL, 0, 0, NULL},
};

/* --- rules --------------------------------------------------------------------------------- */

int fault_add(struct block_node *n, const struct fault_rule *rule)
{
	struct fault_state *s = n->priv;
	int r = -ENOSPC;

	spin_lock(&s->lock);
	if (s->nrules < RULES_MAX) {
		s->rules[s->nrules++] = (struct armed_rule){
			.rule = *rule, .counting = !rule->event[0]};
		r = 0;
	}
	spin_unlock(&s->lock);
	return r;
}

void fault_clear(struct block_node *n)
{
	struct fault_state *s = n->priv;

	spin_lock(&s->lock);
	s->nrules = 0;
	for (unsigned i = 0; i < BREAKS_MAX; i++) {
		struct breakpoint *b = &s->breaks[i];

		if (b->held)
			co_queue_wake_all(&b->waiter);
		b->held = false;
		b->event[0] = b->tag[0] = 0;
	}
	spin_unlock(&s->lock);
}

uint64_t fault_calls(struct block_node *n, uint32_t ops)
{
	struct fault_state *s = n->priv;
	uint64_t sum = 0;

	spin_lock(&s->lock);
	for (unsigned i = 0; i < ARRAY_SIZE(s->calls); i++)
		if (ops & (1u << i))
			sum += s->calls[i];
	spin_unlock(&s->lock);
	return sum;
}

/* Counts a call; true when a rule hits it. */
static bool hit(struct fault_state *s, enum fault_op op, struct fault_rule *ret)
{
	bool found = false;

	spin_lock(&s->lock);
	s->calls[__builtin_ctz(op)]++;
	for (unsigned i = 0; i < s->nrules; i++) {
		struct armed_rule *a = &s->rules[i];

		if (!a->counting || !(a->rule.ops & op))
			continue;
		a->calls++;
		if (!found &&
			(a->calls == a->rule.at || (a->rule.forever && a->calls > a->rule.at))) {
			*ret = a->rule;
			found = true;
		}
	}
	spin_unlock(&s->lock);
	return found;
}

/* Waits as the rule says. The error to return, 0: go on. */
static int co_suffer(const struct fault_rule *rule)
{
	if (rule->delay_ns)
		co_sleep(rule->delay_ns);
	return rule->error;
}

/* --- events and breakpoints ---------------------------------------------------------------- */

void co_fault_fire(struct block_node *n, const char *event)
{
	struct fault_state *s = n->priv;

	spin_lock(&s->lock);
	for (unsigned i = 0; i < s->nrules; i++)
		if (!strcmp(s->rules[i].rule.event, event))
			s->rules[i].counting = true;
	for (unsigned i = 0; i < BREAKS_MAX; i++) {
		struct breakpoint *b = &s->breaks[i];

		if (b->held || !b->event[0] || strcmp(b->event, event))
			continue;
		b->held = true;
		co_queue_wait(&b->waiter, &s->lock);
		return;
	}
	spin_unlock(&s->lock);
}

int fault_break(struct block_node *n, const char *event, const char *tag)
{
	struct fault_state *s = n->priv;
	int r = -ENOSPC;

	if (!*event || strlen(event) >= 48 || strlen(tag) >= 48)
		return -EINVAL;
	spin_lock(&s->lock);
	for (unsigned i = 0; r && i < BREAKS_MAX; i++) {
		struct breakpoint *b = &s->breaks[i];

		if (b->event[0])
			continue;
		memset(b, 0, sizeof(*b));
		memcpy(b->event, event, strlen(event));
		memcpy(b->tag, tag, strlen(tag));
		r = 0;
	}
	spin_unlock(&s->lock);
	return r;
}

bool fault_is_held(struct block_node *n, const char *tag)
{
	struct fault_state *s = n->priv;
	bool held = false;

	spin_lock(&s->lock);
	for (unsigned i = 0; i < BREAKS_MAX; i++)
		held |= s->breaks[i].held && !strcmp(s->breaks[i].tag, tag);
	spin_unlock(&s->lock);
	return held;
}

int fault_resume(struct block_node *n, const char *tag)
{
	struct fault_state *s = n->priv;
	int r = -ENOENT;

	spin_lock(&s->lock);
	for (unsigned i = 0; i < BREAKS_MAX; i++) {
		struct breakpoint *b = &s->breaks[i];

		if (!b->held || strcmp(b->tag, tag))
			continue;
		b->held = false;
		b->event[0] = b->tag[0] = 0;
		co_queue_wake_all(&b->waiter);
		r = 0;
	}
	spin_unlock(&s->lock);
	return r;
}

int fault_unbreak(struct block_node *n, const char *tag)
{
	struct fault_state *s = n->priv;
	int r = -ENOENT;

	spin_lock(&s->lock);
	for (unsigned i = 0; i < BREAKS_MAX; i++) {
		struct breakpoint *b = &s->breaks[i];

		if (!b->event[0] || (tag && strcmp(b->tag, tag)))
			continue;
		if (b->held)
			co_queue_wake_all(&b->waiter);
		b->held = false;
		b->event[0] = b->tag[0] = 0;
		r = 0;
	}
	spin_unlock(&s->lock);
	return r;
}

/* --- the driver ---------------------------------------------------------------------------- */

static int parse_rule(struct conf *c, struct fault_rule *rule, struct error *err)
{
	int op = FAULT_ANY, error = EIO, r;
	uint64_t delay = 0;
	const char *event = "";

	*rule = (struct fault_rule){.at = 1};
	if ((r = conf_get_enum(c, fault_keys, "op", &op, err)) ||
		(r = conf_get_u64(c, fault_keys, "at", &rule->at, err)) ||
		(r = conf_get_bool(c, fault_keys, "forever", &rule->forever, err)) ||
		(r = conf_get_enum(c, fault_keys, "error", &error, err)) ||
		(r = conf_get_bool(c, fault_keys, "short", &rule->torn, err)) ||
		(r = conf_get_u64(c, fault_keys, "delay", &delay, err)) ||
		(r = conf_get_string(c, fault_keys, "event", &event, err)))
		return r;
	if (strlen(event) >= sizeof(rule->event))
		return error_set(err, -EINVAL, "The event name '%.64s' is too long", event);
	memcpy(rule->event, event, strlen(event) + 1);
	rule->ops = (uint32_t)op;
	rule->error = -error;
	rule->delay_ns = delay * 1000000;
	return 0;
}

static int add_parsed(struct block_node *n, struct conf *c, struct error *err)
{
	struct fault_rule rule;
	int r = parse_rule(c, &rule, err);

	if (!r && fault_add(n, &rule))
		r = error_set(err, -EINVAL, "More than %d fault rules", RULES_MAX);
	return r;
}

static int co_fault_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct conf *rules = conf_get(opts, "rules");
	int r = 0;

	if (rules && conf_type(rules) == CONF_SCALAR)
		return error_set(err, -EINVAL, "'rules' is a list of objects");
	if (conf_has(opts, "op") || conf_has(opts, "at") || conf_has(opts, "error") ||
		conf_has(opts, "delay"))
		r = add_parsed(n, opts, err);
	for (size_t i = 0; rules && !r && i < conf_count(rules); i++) {
		struct conf *c = NULL;

		if (conf_type(rules) == CONF_LIST)
			c = conf_at(rules, i);
		else
			c = conf_get(rules, conf_key_at(rules, i, &c));
		if (!c || conf_type(c) != CONF_OBJECT)
			return error_set(err, -EINVAL, "'rules' is a list of objects");
		r = add_parsed(n, c, err);
	}
	return r;
}

static struct block_node *below(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_FILE];
}

static int co_fault_read(struct block_node *n, struct block_io *io)
{
	struct fault_rule rule;
	int r = hit(n->priv, FAULT_READ, &rule) ? co_suffer(&rule) : 0;

	return r ? r : co_block_read(below(n), io->off, io->buf, io->flags);
}

static int co_fault_write(struct block_node *n, struct block_io *io)
{
	struct fault_rule rule;
	int r = 0;

	if (hit(n->priv, FAULT_WRITE, &rule)) {
		uint64_t half = align_down(io->len / 2, 512);

		r = co_suffer(&rule);
		if (r && rule.torn && half)
			co_block_write(below(n), io->off, iov_cut(io->buf, 0, half), io->flags);
	}
	return r ? r : co_block_write(below(n), io->off, io->buf, io->flags);
}

static int co_fault_zero(struct block_node *n, struct block_io *io)
{
	struct fault_rule rule;
	int r = hit(n->priv, FAULT_ZERO, &rule) ? co_suffer(&rule) : 0;

	return r ? r : co_block_zero(below(n), io->off, io->len, io->flags | BLOCK_IO_NO_FALLBACK);
}

static int co_fault_discard(struct block_node *n, struct block_io *io)
{
	struct fault_rule rule;
	int r = hit(n->priv, FAULT_DISCARD, &rule) ? co_suffer(&rule) : 0;

	return r ? r : co_block_discard(below(n), io->off, io->len, io->flags);
}

static int co_fault_flush(struct block_node *n)
{
	struct fault_rule rule;
	int r = hit(n->priv, FAULT_FLUSH, &rule) ? co_suffer(&rule) : 0;

	if (r)
		store_relaxed(&n->broken_flush, true);
	return r ? r : co_block_flush(below(n));
}

static int co_fault_resize(struct block_node *n, const struct block_resize *rs, struct error *err)
{
	struct fault_rule rule;
	int r = hit(n->priv, FAULT_RESIZE, &rule) ? co_suffer(&rule) : 0;

	if (r)
		return error_set_errno(err, r, "Could not resize '%s'", n->filename);
	return co_block_resize(below(n), rs, err);
}

const struct block_driver block_fault = {
	.name = "fault",
	.kind = BLOCK_KIND_FILTER,
	.node_size = sizeof(struct fault_state),
	.open_keys = fault_keys,
	.takes_filename = true,
	.co_open = co_fault_open,
	.co_read = co_fault_read,
	.co_write = co_fault_write,
	.co_zero = co_fault_zero,
	.co_discard = co_fault_discard,
	.co_flush = co_fault_flush,
	.co_resize = co_fault_resize,
};
