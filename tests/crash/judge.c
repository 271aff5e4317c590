/* SPDX-License-Identifier: MIT */
/* The oracles: each state is opened, read, checked, repaired and lived in. */
#include "tests/crash/judge.h"
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_PRINTED 12u

const char *const violation_names[VIOLATIONS] = {"structure", "refcount-low", "overlap", "copied",
	"open", "view", "read-only-writes", "check", "qemu-check", "continue", "repair",
	"repair-again", "live", "refused", "accepted", "close"};

void run_violation(struct run *r, enum violation v, const struct states *s, const char *fmt, ...)
{
	va_list ap;

	r->t.violations[v]++;
	if (r->quiet || r->printed++ >= MAX_PRINTED)
		return;
	fprintf(stderr, "VIOLATION %s: %s", violation_names[v], r->what);
	if (s)
		fprintf(stderr, " --state=%016llx", (unsigned long long)s->cur.key);
	fprintf(stderr, "\n  ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	if (s)
		states_explain(s);
}

static bool one_in(struct run *r, unsigned n)
{
	return n && rng_next(&r->rng) % n == 0;
}

/* O2 by the independent checker, on both files. */
static bool structure(struct run *r, struct states *s, bool repaired)
{
	bool ok = true;

	for (unsigned d = 0; d < DISKS; d++) {
		struct refcheck rc;

		refcheck(disks[d].data, disks[d].size, &rc);
		for (unsigned i = 0; i < RC_CLASSES; i++) {
			if (!rc.errors[i])
				continue;
			ok = false;
			run_violation(r, (enum violation)i, s, "disk %u%s: %s", d,
				repaired ? " after repair" : "", rc.text);
			break;
		}
		if (ok && repaired && d == 0 && (rc.leaks || rc.copied_soft || rc.dirty)) {
			ok = false;
			run_violation(r, V_REPAIR, s,
				"after repair: %llu leaks, %llu COPIED mismatches%s",
				(unsigned long long)rc.leaks, (unsigned long long)rc.copied_soft,
				rc.dirty ? ", DIRTY" : "");
		}
	}
	return ok;
}

/* O4-O6: which model fits what is seen? NULL: none, reported as `v`. */
static const struct model *match(struct run *r, const struct world *w, struct states *s,
	const struct model *models, unsigned n, const struct seen *seen, enum violation v,
	const char *when)
{
	char text[2][200];

	for (unsigned i = 0; i < n; i++)
		if (model_match(&models[i], &w->l, seen, false, text[i], sizeof(text[i])))
			return &models[i];
	run_violation(
		r, v, s, "%s: %s%s%s", when, text[0], n > 1 ? "; or: " : "", n > 1 ? text[1] : "");
	return NULL;
}

static void no_message(void *arg, bool is_error, const char *line)
{
}

static int co_check(struct block_node *n, uint32_t repair, struct block_check *c, struct error *err)
{
	*c = (struct block_check){.repair = repair, .message = no_message};
	return n->drv->check->co_check(n, c, err);
}

/* O3: qemu-img's verdict on disk 0. It calls every COPIED mismatch a corruption; those that the
 * independent checker found harmless are allowed. */
static void qemu(struct run *r, struct states *s)
{
	static const uint8_t none[12];
	char path[64];
	struct refcheck rc;
	int fd = memfd_create("state", 0), status;
	pid_t pid;

	refcheck(disks[0].data, disks[0].size, &rc);
	if (fd < 0 || rc.copied_soft || rc.dirty) {
		close(fd);
		return;
	}
	/* Without the name of the backing file, which is no file of qemu-img's. */
	if (write(fd, disks[0].data, disks[0].size) != (ssize_t)disks[0].size ||
		pwrite(fd, none, sizeof(none), 8) != (ssize_t)sizeof(none)) {
		close(fd);
		return;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	pid = fork();
	if (!pid) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 1);
		dup2(null, 2);
		execlp("qemu-img", "qemu-img", "check", "-f", "qcow2", "-U", path, (char *)NULL);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	close(fd);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		return; /* not installed: tests/skips says so */
	r->t.qemu_checks++;
	if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3))
		run_violation(r, V_QEMU, s, "qemu-img check exits with %d",
			WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

/* O2: the project's checker, without repair, says the same as the independent one. */
static void co_own_check(struct run *r, struct world *w, struct states *s)
{
	struct error err = ERROR_INIT;
	struct block_node *n = NULL;
	struct block_check c;
	struct refcheck rc;
	uint64_t changes = disks[0].changes;
	int e = co_world_open(w->c, BLOCK_OPEN_CHECK, &n, &err);

	if (!e)
		e = co_check(n, 0, &c, &err);
	if (e) {
		run_violation(r, V_CHECK, s, "check: %s", err.text);
		co_block_node_unref(n);
		return;
	}
	refcheck(disks[0].data, disks[0].size, &rc);
	if (c.check_errors || (c.corruptions && !rc.copied_soft))
		run_violation(r, V_CHECK, s, "check finds %llu corruptions, %llu errors",
			(unsigned long long)c.corruptions, (unsigned long long)c.check_errors);
	else if (c.leaks != rc.leaks)
		run_violation(r, V_CHECK, s, "check finds %llu leaks, there are %llu",
			(unsigned long long)c.leaks, (unsigned long long)rc.leaks);
	co_block_node_unref(n);
	if (disks[0].changes != changes)
		run_violation(r, V_RO_WRITES, s, "check without repair wrote to the image");
	r->t.checks++;
}

/* Opens for repair, repairs, closes. */
static int co_repair_image(struct world *w, struct block_check *c, struct error *err)
{
	struct block_node *n = NULL;
	int r = co_world_open(w->c, BLOCK_OPEN_RDWR | BLOCK_OPEN_CHECK, &n, err), r2;

	if (r)
		return r;
	r = co_check(n, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, c, err);
	r2 = co_block_node_unref(n);
	return r ? r : r2;
}

bool co_judge_repaired(struct run *r, struct world *w, struct states *s, const struct model *m)
{
	static struct seen seen;
	struct error err = ERROR_INIT;
	struct block_node *n = NULL;
	struct block_check c;
	uint64_t changes;
	int e;

	if (!structure(r, s, true))
		return false;
	e = co_world_open(w->c, 0, &n, &err);
	if (!e)
		e = co_world_see(w, n, &seen, &err);
	co_block_node_unref(n);
	if (e) {
		run_violation(r, V_REPAIR, s, "after repair: %s", err.text);
		return false;
	}
	if (!match(r, w, s, m, 1, &seen, V_REPAIR, "after repair"))
		return false;
	changes = disks[0].changes + disks[1].changes;
	e = co_repair_image(w, &c, &err);
	if (e || c.corruptions || c.leaks || c.check_errors) {
		run_violation(r, V_REPAIR_AGAIN, s, "second repair: %s",
			e ? err.text : "finds something");
		return false;
	}
	if (disks[0].changes + disks[1].changes != changes) {
		run_violation(r, V_REPAIR_AGAIN, s, "second repair wrote to the image");
		return false;
	}
	return true;
}

struct crashed_repair {
	struct run *r;
	struct world *w;
	struct states *outer;
	const struct model *m;
};

static uint64_t one_demand(void *arg, uint64_t clock)
{
	return 0;
}

/* O9: a state inside a repair must be repairable to the same content. */
static int co_crashed_repair(void *arg, struct states *s)
{
	struct crashed_repair *c = arg;
	struct error err = ERROR_INIT;
	struct block_check check;

	c->r->t.repair_crashes++;
	if (!structure(c->r, s, false))
		return 0;
	if (co_repair_image(c->w, &check, &err))
		run_violation(c->r, V_REPAIR, s, "repair after a crash in repair: %s", err.text);
	else
		co_judge_repaired(c->r, c->w, s, c->m);
	return 0;
}

static void co_crash_repair(struct run *r, struct world *w, struct states *s, const struct model *m,
	uint8_t *const image[DISKS], const uint64_t size[DISKS])
{
	struct states_opts o = {.full = 3, .randoms = 4, .torn = true, .max = 24, .seed = 1};
	struct crashed_repair c = {r, w, s, m};
	struct states inner;

	states_init(&inner, &o, image, size);
	co_states_each(&inner, 0, one_demand, co_crashed_repair, &c);
	states_free(&inner);
}

static void co_repair_oracle(
	struct run *r, struct world *w, struct states *s, const struct model *m, bool compound)
{
	uint8_t *image[DISKS];
	uint64_t size[DISKS];
	struct error err = ERROR_INIT;
	struct block_check c;
	int e;

	for (unsigned i = 0; i < DISKS; i++) {
		size[i] = disks[i].size;
		image[i] = malloc(size[i] + 1);
		memcpy(image[i], disks[i].data, size[i]);
		disks[i].logging = compound;
	}
	e = co_repair_image(w, &c, &err);
	for (unsigned i = 0; i < DISKS; i++)
		disks[i].logging = false;
	r->t.repairs++;
	if (e)
		run_violation(r, V_REPAIR, s, "repair: %s", err.text);
	else if (co_judge_repaired(r, w, s, m) && compound)
		co_crash_repair(r, w, s, m, image, size);
	disk_log_clear();
	for (unsigned i = 0; i < DISKS; i++) {
		free(image[i]);
		/* The inner enumeration has used the disks: bring the outer content back. */
		if (compound) {
			disks[i].tracking = false;
			disk_set(&disks[i], s->durable[i].data, s->durable[i].size);
			disk_track(&disks[i]);
		}
	}
}

/* O8: opens read-write, without repair but what the open itself does, and goes on working. */
static void co_continue(struct run *r, struct world *w, struct states *s, const struct model *m)
{
	static struct seen seen;
	static struct world life;
	struct error err = ERROR_INIT;
	uint64_t rng = s ? s->cur.key : 1;
	char text[200], op_name[96];
	int e;

	life.c = w->c;
	life.l = w->l;
	life.version = 1000000;
	life.m = *m;
	r->t.continued++;
	e = co_world_open(w->c, BLOCK_OPEN_RDWR, &life.top, &err);
	if (!e)
		e = co_world_see(&life, life.top, &seen, &err);
	if (e) {
		run_violation(r, V_OPEN, s, "read-write open: %s", err.text);
		return;
	}
	if (!match(r, w, s, m, 1, &seen, V_CONTINUE, "read-write open"))
		goto out;
	model_adopt(&life.m, &life.l, &seen);
	for (unsigned i = 0; i < r->j.cont_ops; i++) {
		struct op op = op_random(&life.l, &life.m, &rng, r->j.structural);
		bool refuse = op_must_fail(&op, life.c, &life.m);
		uint32_t version = ++life.version;

		op_text(&op, op_name, sizeof(op_name));
		e = co_op_run(&life, &op, version, &err);
		if (!e != !refuse) {
			run_violation(r, V_CONTINUE, s, "continue: operation %u, %s: %s", i,
				op_name,
				e ? err.text[0] ? err.text : errno_text(e) : "was not refused");
			goto out;
		}
		if (!e)
			op_predict(&op, &life.l, version, &life.m);
	}
	e = co_world_see(&life, life.top, &seen, &err);
	if (e)
		run_violation(r, V_CONTINUE, s, "continue: %s", err.text);
	else if (!model_match(&life.m, &life.l, &seen, true, text, sizeof(text)))
		run_violation(r, V_CONTINUE, s, "continue: %s", text);
out:
	e = co_block_node_unref(take(life.top));
	if (e)
		run_violation(r, V_CLOSE, s, "close after continue: %s", errno_text(e));
	else
		structure(r, s, false);
}

void co_judge(struct run *r, struct world *w, struct states *s, const struct model *models,
	unsigned nmodels)
{
	static struct seen seen;
	struct error err = ERROR_INIT;
	struct block_node *n = NULL;
	const struct model *m;
	uint64_t changes = disks[0].changes + disks[1].changes;
	bool compound;
	int e;

	if (!structure(r, s, false))
		return;
	e = co_world_open(w->c, 0, &n, &err);
	if (!e)
		e = co_world_see(w, n, &seen, &err);
	co_block_node_unref(n);
	if (e) {
		run_violation(r, V_OPEN, s, "read-only open: %s", err.text);
		return;
	}
	if (disks[0].changes + disks[1].changes != changes)
		run_violation(r, V_RO_WRITES, s, "a read-only open wrote to the image");
	m = match(r, w, s, models, nmodels, &seen, V_VIEW, "after the crash");
	if (!m)
		return;
	if (one_in(r, r->j.check))
		co_own_check(r, w, s);
	if (one_in(r, r->j.qemu))
		qemu(r, s);
	if (one_in(r, r->j.cont)) {
		co_continue(r, w, s, m);
		states_restore(s);
	}
	if (one_in(r, r->j.repair)) {
		compound = one_in(r, r->j.compound);
		co_repair_oracle(r, w, s, m, compound);
		states_restore(s);
	}
}
