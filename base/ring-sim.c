/* SPDX-License-Identifier: MIT */
/*
 * The sim engine: deterministic tests. The same seed gives the same order of everything.
 *
 * Theory of operation
 *
 * Operations wait in one list. A turn draws some of them, makes their system calls and completes
 * them; half of the calls are made when the operation starts instead, so that effects and
 * completions are ordered independently, as on real devices. Which ready coroutine runs next is
 * drawn too. Reads and writes are cut short now and then, at multiples of 512 bytes. Time is
 * virtual: when nothing else is left, the clock jumps to the next sleeper's deadline.
 *
 * Only descriptors polled with co_poll() and kicks from other threads are outside of the seed.
 */
#include "base/runtime.h"
#include "base/mem.h"

#include <assert.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SIM_CUT_ODDS 16u /* one read or write in so many is short */
#define SIM_TURN_NS  1000u

struct sim {
	struct ring ring;
	struct list ops;   /* drawn from */
	struct list polls; /* wait for the real world */
	unsigned nops;
	struct ring_op *timers;
	uint64_t clock;
	ring_sim_fault_fn *fault;
	void *fault_arg;
};

static struct sim *sim_of(struct ring *ring)
{
	return container_of(ring, struct sim, ring);
}

uint64_t ring_sim_clock(struct ring *ring)
{
	return sim_of(ring)->clock;
}

static unsigned sim_draw(struct sim *s, unsigned n)
{
	return (unsigned)(ring_random(&s->ring) % n);
}

struct co *ring_sim_pick(struct ring *ring)
{
	struct list *l;
	unsigned n = 0;

	for (l = ring->ready.next; l != &ring->ready; l = l->next)
		n++;
	n = sim_draw(sim_of(ring), n);
	for (l = ring->ready.next; n; l = l->next)
		n--;
	list_del(l);
	return list_entry(l, struct co, ready);
}

static void op_end(struct ring_op *op, int64_t res)
{
	op->res = res;
	co_wake(op->co);
}

static size_t op_len(const struct ring_op *op)
{
	size_t n = 0;

	if (op->code > RING_OP_WRITE)
		return op->len;
	for (unsigned i = 0; i < op->niov; i++)
		n += op->iov[i].iov_len;
	return n;
}

/* A short read or write: of the first segment only, at a sector boundary. */
static int64_t sim_call_cut(struct sim *s, const struct ring_op *op)
{
	size_t sectors = op->iov[0].iov_len / 512;
	struct iovec part = {op->iov[0].iov_base, 0};
	struct ring_op cut = *op;

	if (sectors < 2)
		return ring_op_call(op);
	part.iov_len = 512 * (1 + sim_draw(s, (unsigned)MIN(sectors - 1, (size_t)1 << 20)));
	cut.iov = &part;
	cut.niov = 1;
	return ring_op_call(&cut);
}

static int64_t sim_call(struct sim *s, const struct ring_op *op)
{
	int r;

	if (s->fault) {
		r = s->fault(s->fault_arg, ring_op_name(op), op->fd, op->off, op_len(op));
		if (r < 0)
			return r;
	}
	if (op->code <= RING_OP_WRITE && op->niov && !sim_draw(s, SIM_CUT_ODDS))
		return sim_call_cut(s, op);
	return ring_op_call(op);
}

static bool sim_start(struct ring *ring, struct ring_op *op)
{
	struct sim *s = sim_of(ring);

	op->engine_bits = 0;
	if (op->code == RING_OP_SLEEP) {
		timer_add(&s->timers, op);
	} else if (op->code == RING_OP_POLL) {
		if (fcntl(op->fd, F_GETFD) < 0) {
			op->res = -errno;
			return true;
		}
		list_add_tail(&s->polls, &op->link);
	} else {
		if (sim_draw(s, 2)) {
			op->res = sim_call(s, op);
			op->engine_bits = 1;
		}
		list_add_tail(&s->ops, &op->link);
		s->nops++;
	}
	return false;
}

static void sim_cancel(struct ring *ring, struct ring_op *op)
{
	struct sim *s = sim_of(ring);

	if (op->code == RING_OP_SLEEP) {
		timer_remove(&s->timers, op);
	} else {
		/* I/O that has happened completes; what has not is given up. */
		if (op->engine_bits)
			return;
		list_del(&op->link);
		s->nops -= op->code != RING_OP_POLL;
	}
	op_end(op, -ECANCELED);
}

static void sim_complete_one(struct sim *s)
{
	unsigned n = sim_draw(s, s->nops);
	struct list *l = s->ops.next;
	struct ring_op *op;

	while (n--)
		l = l->next;
	op = list_entry(l, struct ring_op, link);
	list_del(l);
	s->nops--;
	op_end(op, op->engine_bits ? op->res : sim_call(s, op));
}

static void sim_timers(struct sim *s)
{
	while (s->timers && s->timers->off <= s->clock) {
		struct ring_op *op = s->timers;

		timer_remove(&s->timers, op);
		op_end(op, 0);
	}
}

/* Looks after the bell and polled descriptors; waits for them when `timeout_ms` is not 0. True when
 * something came. */
static bool sim_polls(struct sim *s, int timeout_ms)
{
	struct pollfd bell = {.fd = s->ring.event_fd, .events = POLLIN};
	struct ring_op *op, *tmp;
	uint64_t v;

	for (;;) {
		bool any = poll(&bell, 1, 0) > 0;

		if (any && read(bell.fd, &v, sizeof(v)) < 0)
			any = errno == EAGAIN;
		list_for_each_safe(op, tmp, &s->polls, link)
		{
			struct pollfd p = {.fd = op->fd, .events = (short)op->flags};

			if (poll(&p, 1, 0) > 0) {
				list_del(&op->link);
				op_end(op, p.revents);
				any = true;
			}
		}
		if (any || !timeout_ms)
			return any;
		/* With nothing but polls left, look again every millisecond. */
		poll(&bell, 1, list_empty(&s->polls) ? timeout_ms : 1);
		if (timeout_ms > 0)
			timeout_ms--;
	}
}

static int sim_wait(struct ring *ring, int64_t timeout_ns)
{
	struct sim *s = sim_of(ring);
	bool rung, ready = !list_empty(&ring->ready);

	s->clock += SIM_TURN_NS;
	sim_timers(s);
	rung = sim_polls(s, 0);
	if (s->nops) {
		/* Beside ready coroutines, completions come or do not come. */
		unsigned n = ready ? sim_draw(s, 2) : 1 + sim_draw(s, s->nops);

		while (n--)
			sim_complete_one(s);
		return 0;
	}
	if (rung || !timeout_ns || !ring_may_sleep(ring, RING_WAITS))
		return 0;
	if (s->timers) {
		uint64_t jump = s->timers->off - s->clock;

		s->clock += timeout_ns < 0 ? jump : MIN(jump, (uint64_t)timeout_ns);
		sim_timers(s);
	} else {
		int64_t ms = timeout_ns < 0 ? -1 : (int64_t)div_up((uint64_t)timeout_ns, 1000000);

		sim_polls(s, (int)MIN(ms, (int64_t)INT32_MAX));
	}
	ring_awake(ring);
	return 0;
}

static void sim_submit(struct ring *ring)
{
	/* Pending work does not show on a descriptor by itself. */
	if (ring->fd_exposed && (sim_of(ring)->nops || sim_of(ring)->timers))
		ring_note_work(ring);
}

static int sim_poll_fd(struct ring *ring)
{
	return ring->event_fd;
}

static void sim_destroy(struct ring *ring)
{
	close(ring->event_fd);
	mem_free(sim_of(ring));
}

static const struct ring_engine sim_engine = {
	.start = sim_start,
	.cancel = sim_cancel,
	.wait = sim_wait,
	.submit = sim_submit,
	.poll_fd = sim_poll_fd,
	.destroy = sim_destroy,
};

void ring_sim_fault(struct ring *ring, ring_sim_fault_fn *fn, void *arg)
{
	struct sim *s = sim_of(ring);

	assert(ring->kind == RING_SIM);
	s->fault = fn;
	s->fault_arg = arg;
}

int ring_sim_new(const struct ring_opts *opts, struct ring **ret, struct error *err)
{
	struct sim *s = mem_aligned(64, align_up(sizeof(*s), 64));
	int r;

	if (!s)
		return error_set(err, -ENOMEM, "no memory for the event loop");
	*s = (struct sim){.ring = {.engine = &sim_engine, .kind = RING_SIM, .rng = opts->seed}};
	list_init(&s->ops);
	list_init(&s->polls);
	s->ring.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->ring.event_fd < 0) {
		r = -errno;
		mem_free(s);
		return error_set_errno(err, r, "the event loop cannot be made");
	}
	*ret = &s->ring;
	return 0;
}
