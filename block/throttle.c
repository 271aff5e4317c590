/* SPDX-License-Identifier: MIT */
/*
 * throttle: a filter that lets requests through at a limited rate.
 *
 * Each limit is a leaky bucket kept as the time when it will be empty: a request that costs c moves
 * that time on by c/rate and waits until it is less than `burst` seconds ahead. Requests that come
 * together so queue up in order of arrival, and no timer runs when nothing is going on.
 *
 * Invariants
 * T1  Over any span of t seconds at most rate * (t + burst) passes, plus one request.
 * T2  A request books its share before it waits, so that waiting requests keep their order.
 */
#include "block/internal.h"
#include "base/ring.h"
#include <time.h>

#define NS 1000000000ULL

enum {
	LIMIT_BPS,
	LIMIT_BPS_READ,
	LIMIT_BPS_WRITE,
	LIMIT_IOPS,
	LIMIT_IOPS_READ,
	LIMIT_IOPS_WRITE,
	LIMITS
};

struct limit {
	uint64_t rate;    /* a second; 0: none */
	uint64_t next_ns; /* when the bucket will be empty */
};

struct throttle_state {
	struct spin lock;
	uint64_t burst_ns;
	struct limit limits[LIMITS];
};

static const struct conf_key throttle_keys[] = {
	{"bps-total", CONF_KEY_SIZE, NULL, 0, 0, "bytes a second"},
	{"bps-read", CONF_KEY_SIZE, NULL, 0, 0, "bytes read a second"},
	{"bps-write", CONF_KEY_SIZE, NULL, 0, 0, "bytes written a second"},
	{"iops-total", CONF_KEY_NUMBER, NULL, 0, 0, "requests a second"},
	{"iops-read", CONF_KEY_NUMBER, NULL, 0, 0, "reads a second"},
	{"iops-write", CONF_KEY_NUMBER, NULL, 0, 0, "writes a second"},
	{"burst-ms", CONF_KEY_NUMBER, NULL, 1, 60000, "milliseconds of rate that may come at once"},
	{NULL, 0, NULL, 0, 0, NULL},
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec;
}

static int co_throttle_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct throttle_state *s = n->priv;
	uint64_t burst = 100;
	int r = conf_get_u64(opts, throttle_keys, "burst-ms", &burst, err);

	for (int i = 0; !r && i < LIMITS; i++)
		r = conf_get_u64(
			opts, throttle_keys, throttle_keys[i].name, &s->limits[i].rate, err);
	s->burst_ns = burst * 1000000;
	return r;
}

/* Books `cost` and returns how long to wait. The lock is held. */
static uint64_t book(struct throttle_state *s, int limit, uint64_t cost, uint64_t now)
{
	struct limit *l = &s->limits[limit];
	uint64_t ahead;

	if (!l->rate)
		return 0;
	if (l->next_ns < now)
		l->next_ns = now;
	ahead = l->next_ns - now;
	l->next_ns += (uint64_t)((__uint128_t)cost * NS / l->rate);
	return ahead > s->burst_ns ? ahead - s->burst_ns : 0;
}

static void co_throttle_wait(struct block_node *n, uint64_t bytes, bool write)
{
	struct throttle_state *s = n->priv;
	uint64_t now = now_ns(), wait = 0;

	spin_lock(&s->lock);
	wait = MAX(wait, book(s, LIMIT_BPS, bytes, now));
	wait = MAX(wait, book(s, write ? LIMIT_BPS_WRITE : LIMIT_BPS_READ, bytes, now));
	wait = MAX(wait, book(s, LIMIT_IOPS, 1, now));
	wait = MAX(wait, book(s, write ? LIMIT_IOPS_WRITE : LIMIT_IOPS_READ, 1, now));
	spin_unlock(&s->lock);
	if (wait)
		co_sleep(wait);
}

static struct block_node *below(const struct block_node *n)
{
	return n->child[BLOCK_ROLE_FILE];
}

static int co_throttle_read(struct block_node *n, struct block_io *io)
{
	co_throttle_wait(n, io->len, false);
	return co_block_read(below(n), io->off, io->buf, io->flags);
}

static int co_throttle_write(struct block_node *n, struct block_io *io)
{
	co_throttle_wait(n, io->len, true);
	return co_block_write(below(n), io->off, io->buf, io->flags);
}

/* Zeroes and discards move no data: they count as requests. */
static int co_throttle_zero(struct block_node *n, struct block_io *io)
{
	co_throttle_wait(n, 0, true);
	return co_block_zero(below(n), io->off, io->len, io->flags | BLOCK_IO_NO_FALLBACK);
}

static int co_throttle_discard(struct block_node *n, struct block_io *io)
{
	co_throttle_wait(n, 0, true);
	return co_block_discard(below(n), io->off, io->len, io->flags);
}

const struct block_driver block_throttle = {
	.name = "throttle",
	.kind = BLOCK_KIND_FILTER,
	.node_size = sizeof(struct throttle_state),
	.open_keys = throttle_keys,
	.co_open = co_throttle_open,
	.co_read = co_throttle_read,
	.co_write = co_throttle_write,
	.co_zero = co_throttle_zero,
	.co_discard = co_throttle_discard,
};
