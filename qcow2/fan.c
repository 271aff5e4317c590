/* SPDX-License-Identifier: MIT */
/*
 * Pieces of one request side by side: a request over fragmented or compressed clusters does not
 * wait for one piece after the other.
 *
 * Theory of operation: the request maps its range as always; when one mapping does not cover it,
 * every piece runs in a coroutine of its own on the same ring, at most PIECES of them at once. The
 * request waits for all before it leaves its epoch, so pieces need no token. The first error is
 * the request's. Where no coroutine can be had the piece runs in place.
 */
#include "base/co.h"
#include "base/mem.h"
#include "qcow2/qcow2.h"

#define PIECES 32u

struct piece {
	struct q2_fan *fan;
	struct q2_mapping m;
	uint64_t off;
	struct iov_slice buf;
};

static void fan_result(struct q2_fan *f, int r)
{
	if (r < 0 && f->result == 0)
		f->result = r;
}

static void piece_run(void *arg)
{
	struct piece *p = arg;
	struct q2_fan *f = p->fan;

	fan_result(f, f->co_piece(f->img, &p->m, p->off, p->buf));
	mem_free(p);
	co_counter_dec(&f->running);
}

void co_q2_fan_add(struct q2_fan *f, const struct q2_mapping *m, uint64_t off, struct iov_slice buf)
{
	struct piece *p = mem_alloc(sizeof(*p));

	if (++f->started % PIECES == 0)
		co_counter_wait_zero(&f->running);
	if (p) {
		*p = (struct piece){f, *m, off, buf};
		co_counter_inc(&f->running);
		if (co_start(piece_run, p) == 0)
			return;
		co_counter_dec(&f->running);
		mem_free(p);
	}
	fan_result(f, f->co_piece(f->img, m, off, buf));
}

int co_q2_fan_wait(struct q2_fan *f)
{
	co_counter_wait_zero(&f->running);
	return f->result;
}
