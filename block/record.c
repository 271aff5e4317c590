/* SPDX-License-Identifier: MIT */
/*
 * record: a filter that logs every write, zero, discard, truncate and flush that passes, with data,
 * in memory and with `log=FILE` also in a file.
 *
 * The file has one text line an event, `begin end op off len flags result`, in order of completion,
 * followed by the len bytes of data when op is write, and a newline.
 */
#include "block/record.h"
#include "block/internal.h"
#include <stdio.h>

const struct conf_enum record_op_names[] = {
	{"write", RECORD_WRITE},
	{"zero", RECORD_ZERO},
	{"discard", RECORD_DISCARD},
	{"truncate", RECORD_TRUNCATE},
	{"flush", RECORD_FLUSH},
	{"mark", RECORD_MARK},
	{NULL, 0},
};

static const struct conf_key record_keys[] = {
	{"log", CONF_KEY_STRING, NULL, 0, 0, "file that gets the log too"},
	{NULL, 0, NULL, 0, 0, NULL},
};

struct record_state {
	struct spin lock;
	struct record_event *events;
	size_t n, room, dropped; /* dropped: events cleared, so that indices stay meaningful */
	uint64_t clock;
	bool log_failed;
	FILE *log;
};

static int co_record_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct record_state *s = n->priv;
	const char *path = NULL;
	int r = conf_get_string(opts, record_keys, "log", &path, err);

	if (r || !path)
		return r;
	s->log = fopen(path, "we");
	if (!s->log)
		return error_set_errno(err, -errno, "Could not open the log '%s'", path);
	return 0;
}

static void free_events(struct record_state *s)
{
	for (size_t i = 0; i < s->n; i++)
		mem_free(s->events[i].data);
	s->n = 0;
}

static int co_record_close(struct block_node *n)
{
	struct record_state *s = n->priv;
	int r = 0;

	free_events(s);
	mem_free(s->events);
	if (s->log && (fclose(s->log) || s->log_failed))
		r = -EIO;
	return r;
}

/* Adds an event; *ret is its number, which stays valid whatever the array does. */
static int begin(struct record_state *s, enum record_op op, const struct block_io *io, size_t *ret)
{
	void *data = NULL;

	if (op == RECORD_WRITE) {
		data = mem_alloc(io->len);
		if (!data)
			return -ENOMEM;
		iov_copy_from(data, io->buf);
	}
	spin_lock(&s->lock);
	if (s->n == s->room) {
		size_t room = s->room ? s->room * 2 : 64;
		struct record_event *p = mem_realloc(s->events, room * sizeof(*p));

		if (!p) {
			spin_unlock(&s->lock);
			mem_free(data);
			return -ENOMEM;
		}
		s->events = p;
		s->room = room;
	}
	s->events[s->n] = (struct record_event){.op = op,
		.flags = io->flags,
		.off = io->off,
		.len = io->len,
		.begin = ++s->clock,
		.data = data};
	*ret = s->dropped + s->n++;
	spin_unlock(&s->lock);
	return 0;
}

static void write_log(struct record_state *s, const struct record_event *e)
{
	int r = fprintf(s->log, "%llu %llu %s %llu %llu %u %d\n", (unsigned long long)e->begin,
		(unsigned long long)e->end, conf_enum_name(record_op_names, (int)e->op),
		(unsigned long long)e->off, (unsigned long long)e->len, e->flags, e->result);

	if (r < 0 ||
		(e->data &&
			(fwrite(e->data, 1, e->len, s->log) != e->len ||
				fputc('\n', s->log) == EOF)))
		s->log_failed = true;
}

static int end(struct record_state *s, size_t id, int result)
{
	struct record_event *e;

	spin_lock(&s->lock);
	if (id >= s->dropped) {
		e = &s->events[id - s->dropped];
		e->end = ++s->clock;
		e->result = result;
		if (s->log)
			write_log(s, e);
	}
	spin_unlock(&s->lock);
	return result;
}

const struct record_event *record_log(struct block_node *n, size_t *ret_n)
{
	struct record_state *s = n->priv;

	*ret_n = s->n;
	return s->events;
}

int record_mark(struct block_node *n, uint64_t off, uint64_t len)
{
	struct block_io io = {.off = off, .len = len};
	size_t id;
	int r = begin(n->priv, RECORD_MARK, &io, &id);

	return r ? r : end(n->priv, id, 0);
}

void record_clear(struct block_node *n)
{
	struct record_state *s = n->priv;

	spin_lock(&s->lock);
	s->dropped += s->n;
	free_events(s);
	spin_unlock(&s->lock);
}

static struct block_node *below(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_FILE];
}

static int co_record_write(struct block_node *n, struct block_io *io)
{
	size_t id;
	int r = begin(n->priv, RECORD_WRITE, io, &id);

	return r ? r : end(n->priv, id, co_block_write(below(n), io->off, io->buf, io->flags));
}

static int co_record_zero(struct block_node *n, struct block_io *io)
{
	size_t id;
	int r = begin(n->priv, RECORD_ZERO, io, &id);

	if (r)
		return r;
	r = co_block_zero(below(n), io->off, io->len, io->flags | BLOCK_IO_NO_FALLBACK);
	return end(n->priv, id, r);
}

static int co_record_discard(struct block_node *n, struct block_io *io)
{
	size_t id;
	int r = begin(n->priv, RECORD_DISCARD, io, &id);

	return r ? r : end(n->priv, id, co_block_discard(below(n), io->off, io->len, io->flags));
}

static int co_record_flush(struct block_node *n)
{
	struct block_io io = {0};
	size_t id;
	int r = begin(n->priv, RECORD_FLUSH, &io, &id);

	return r ? r : end(n->priv, id, co_block_flush(below(n)));
}

static int co_record_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	struct block_io io = {.len = r->size};
	size_t id;
	int ret = begin(n->priv, RECORD_TRUNCATE, &io, &id);

	if (ret)
		return error_set_errno(
			err, ret, "Could not record the resize of '%s'", n->filename);
	return end(n->priv, id, co_block_resize(below(n), r, err));
}

const struct block_driver block_record = {
	.name = "record",
	.kind = BLOCK_KIND_FILTER,
	.node_size = sizeof(struct record_state),
	.open_keys = record_keys,
	.takes_filename = true,
	.co_open = co_record_open,
	.co_close = co_record_close,
	.co_write = co_record_write,
	.co_zero = co_record_zero,
	.co_discard = co_record_discard,
	.co_flush = co_record_flush,
	.co_resize = co_record_resize,
};
