/* SPDX-License-Identifier: MIT */
/*
 * A workload: the fixture is opened, the operations run one after the other, the image is closed;
 * then every crash state of the log is judged by the models of that moment.
 */
#include "tests/crash/workload.h"
#include <stdio.h>
#include <stdlib.h>

struct step {
	uint64_t start, end; /* clock */
	uint32_t version;
	int result;
};

struct history {
	struct run *r;
	const struct workload *wl;
	struct world *w;
	struct step step[MAX_OPS];
	struct model *before; /* n + 1: before each operation, and after the last */
	struct model *models; /* 2: for the moment under judgement */
	uint64_t close_start;
};

static struct op step_op(const struct history *h, unsigned i)
{
	return h->wl->ops[i];
}

/* Operations acknowledged by `clock`; *in_flight: the next one had begun. */
static unsigned moment(const struct history *h, uint64_t clock, bool *in_flight)
{
	unsigned i = 0;

	while (i < h->wl->n && h->step[i].end < clock)
		i++;
	*in_flight = i < h->wl->n && h->step[i].start < clock && !h->step[i].result;
	return i;
}

static uint64_t demand(void *arg, uint64_t clock)
{
	bool in_flight;
	unsigned i = moment(arg, clock, &in_flight);

	return i * 2 + in_flight + 1;
}

static int co_judge_state(void *arg, struct states *s)
{
	struct history *h = arg;
	bool in_flight;
	unsigned i = moment(h, s->cur.clock, &in_flight), n = 1;

	h->r->t.states++;
	h->r->t.by_op[h->wl->ops[h->wl->n - 1].kind]++;
	if (in_flight) {
		struct op op = step_op(h, i);

		n = op_in_flight(&op, &h->w->l, h->step[i].version, &h->before[i], h->models);
	} else {
		h->models[0] = h->before[i];
	}
	co_judge(h->r, h->w, s, h->models, n);
	return 0;
}

/* Does everything; false when the log is of no use because the engine failed. */
static bool co_record(struct history *h)
{
	static struct seen seen;
	struct run *r = h->r;
	struct world *w = h->w;
	struct error err = ERROR_INIT;
	char name[96], text[200];
	int e = co_world_open(w->c, BLOCK_OPEN_RDWR, &w->top, &err);

	if (e) {
		run_violation(r, V_OPEN, NULL, "open: %s", err.text);
		return false;
	}
	for (unsigned i = 0; i < h->wl->n; i++) {
		const struct op *op = &h->wl->ops[i];
		bool refuse = op_must_fail(op, w->c, &w->m);
		struct step *step = &h->step[i];

		h->before[i] = w->m;
		step->version = ++w->version;
		step->start = disk_tick();
		step->result = co_op_run(w, op, step->version, &err);
		step->end = disk_tick();
		r->t.refused += step->result != 0;
		if (!step->result != !refuse) {
			op_text(op, name, sizeof(name));
			run_violation(r, refuse ? V_ACCEPTED : V_REFUSED, NULL, "%s: %s", name,
				step->result ? err.text[0] ? err.text : errno_text(step->result)
					     : "was not refused");
			co_block_node_unref(take(w->top));
			return false;
		}
		if (!step->result)
			op_predict(op, &w->l, step->version, &w->m);
		err = ERROR_INIT;
	}
	h->before[h->wl->n] = w->m;
	e = co_world_see(w, w->top, &seen, &err);
	if (e)
		run_violation(r, V_LIVE, NULL, "%s", err.text);
	else if (!model_match(&w->m, &w->l, &seen, true, text, sizeof(text)))
		run_violation(r, V_LIVE, NULL, "%s", text);
	h->close_start = disk_tick();
	e = co_block_node_unref(take(w->top));
	if (e)
		run_violation(r, V_CLOSE, NULL, "close: %s", errno_text(e));
	return true;
}

static void apply_plant(struct history *h)
{
	uint64_t start[MAX_OPS + 1], end[MAX_OPS + 1];
	unsigned n = h->wl->n;

	for (unsigned i = 0; i < n; i++) {
		start[i] = h->step[i].start;
		end[i] = h->step[i].end;
	}
	start[n] = h->close_start;
	end[n] = UINT64_MAX;
	h->wl->plant->image = h->wl->f->image[0];
	h->wl->plant->image_size = h->wl->f->size[0];
	h->wl->plant->fn(h->wl->plant, &disk_log, start, end, n);
}

void co_workload_run(struct run *r, const struct workload *wl)
{
	struct history h = {.r = r, .wl = wl};
	size_t used = 0;
	struct states s;

	h.w = calloc(1, sizeof(*h.w));
	h.before = calloc(wl->n + 1, sizeof(*h.before));
	h.models = calloc(2, sizeof(*h.models));
	if (wl->seed)
		snprintf(r->what, sizeof(r->what), "--config=%s --random-seed=%llu", wl->f->c->name,
			(unsigned long long)wl->seed);
	else
		used = (size_t)snprintf(
			r->what, sizeof(r->what), "--config=%s --ops=", wl->f->c->name);
	for (unsigned i = 0; i < wl->n && !wl->seed; i++)
		used += (size_t)snprintf(r->what + used, sizeof(r->what) - used, "%s%s:%u",
			i ? "," : "", op_names[wl->ops[i].kind], wl->ops[i].variant);
	r->t.workloads++;
	fixture_load(wl->f, h.w);
	disk_log_clear();
	for (unsigned i = 0; i < DISKS; i++) {
		disks[i].tracking = false;
		disks[i].logging = true;
	}
	if (co_record(&h)) {
		if (wl->plant)
			apply_plant(&h);
		states_init(&s, &r->s, wl->f->image, wl->f->size);
		co_states_each(&s, wl->all_epochs ? 0 : h.step[wl->n - 1].start, demand,
			co_judge_state, &h);
		r->t.duplicates += s.duplicates;
		if (r->verbose)
			states_explain(&s);
		states_free(&s);
	}
	for (unsigned i = 0; i < DISKS; i++)
		disks[i].logging = false;
	disk_log_clear();
	free(h.w);
	free(h.before);
	free(h.models);
}
