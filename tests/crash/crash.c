/* SPDX-License-Identifier: MIT */
/*
 * Crash states of qcow2: exhaustive short workloads and random longer ones.
 *
 *   crash [--depth=N] [--seconds=S] [--random=N] [--seed=N] [--jobs=N] [--config=NAME] [--full]
 *   crash --config=NAME --ops=KIND:VARIANT,... [--state=KEY] [--verbose]	replays one workload
 * or state crash --config=NAME --random-seed=N [--state=KEY]		the same for a random
 * workload
 *
 * Prints what was tested, by operation, and ends with 1 when anything was violated.
 */
#include "base/co.h"
#include "tests/crash/workload.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct options {
	unsigned depth, jobs, job;
	uint64_t seed, random, random_seed;
	double seconds; /* 0: no limit */
	const char *config, *ops;
	uint64_t state;
	bool full, verbose;
};

static struct options opt = {.depth = 2, .jobs = 1, .seed = 1};
static struct run run;
static struct tally *results; /* shared, one a job */
static double started;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool time_is_up(void)
{
	return opt.seconds > 0 && now() - started > opt.seconds;
}

/* Big clusters make slow states: less of the expensive work for them, more states for the others.
 */
static void set_effort(struct run *r, const struct config *c)
{
	bool small = c->cluster_bits <= 12;

	r->j = (struct judge_opts){.check = small ? 8 : 16,
		.qemu = 3000,
		.cont = small ? 10 : 24,
		.repair = small ? 20 : 48,
		.compound = 8,
		.cont_ops = 20,
		.structural = true};
	r->s = (struct states_opts){.full = small ? 6 : 4,
		.pairs = small ? 12 : 6,
		.randoms = small ? 16 : 4,
		.torn = true,
		.max = small ? 120 : 40};
	if (opt.full) {
		r->s = (struct states_opts){.full = 10, .pairs = 40, .randoms = 64, .torn = true};
		r->j.check = 4;
		r->j.cont = small ? 8 : 16;
		r->j.repair = small ? 16 : 32;
		r->j.compound = 4;
	}
	r->s.seed = r->rng = opt.seed;
	r->verbose = opt.verbose;
	if (opt.state) {
		r->s.only = opt.state;
		r->j.check = r->j.qemu = r->j.cont = r->j.repair = r->j.compound = 1;
	}
}

/* --- exhaustive ---------------------------------------------------------------------------- */

/* All sequences of exactly `depth` operations. Which variant of an operation is taken rotates, so
 * that pairs meet in different variants in different configurations; --full takes them all. */
static void co_sequences(const struct fixture *f, unsigned depth, unsigned turn)
{
	unsigned total = 1;

	for (unsigned i = 0; i < depth; i++)
		total *= OP_KINDS;
	for (unsigned code = 0; code < total && !time_is_up(); code++) {
		struct workload w = {.f = f, .n = depth};
		unsigned rest = code;

		for (unsigned i = 0; i < depth; i++, rest /= OP_KINDS) {
			unsigned variant = turn + code / OP_KINDS + (turn >> 2) * i;

			w.ops[i] = op_canonical(&f->l, rest % OP_KINDS, variant, i);
		}
		co_workload_run(&run, &w);
	}
}

static void co_exhaustive(const struct fixture *f, unsigned number)
{
	unsigned turns = opt.full ? 4 : 1;

	for (unsigned d = 1; d <= opt.depth; d++)
		for (unsigned t = 0; t < turns; t++)
			co_sequences(f, d, (unsigned)opt.seed + number + t);
}

/* --- random -------------------------------------------------------------------------------- */

static void co_random(const struct fixture *f, uint64_t seed)
{
	struct workload w = {.f = f, .all_epochs = true};
	static struct model m;
	uint64_t rng = seed;

	m = f->m;
	w.n = 3 + rng_next(&rng) % (MAX_OPS - 3);
	for (unsigned i = 0; i < w.n; i++) {
		w.ops[i] = op_random(&f->l, &m, &rng, true);
		w.ops[i].variant = 0;
		if (!op_must_fail(&w.ops[i], f->c, &m))
			op_predict(&w.ops[i], &f->l, i + 1, &m);
	}
	run.rng = seed;
	w.seed = seed;
	co_workload_run(&run, &w);
}

/* --- one given workload -------------------------------------------------------------------- */

static int co_given(const struct fixture *f)
{
	struct workload w = {.f = f, .all_epochs = true};
	const char *p = opt.ops;

	while (*p && w.n < MAX_OPS) {
		size_t len = strcspn(p, ":,");
		unsigned kind = 0, variant = 0;

		while (kind < OP_KINDS &&
			(strlen(op_names[kind]) != len || strncmp(p, op_names[kind], len)))
			kind++;
		if (kind == OP_KINDS) {
			fprintf(stderr, "crash: no operation '%.*s'\n", (int)len, p);
			return -EINVAL;
		}
		p += len;
		if (*p == ':')
			variant = (unsigned)strtoul(p + 1, (char **)&p, 10);
		w.ops[w.n] = op_canonical(&f->l, kind, variant, w.n);
		w.n++;
		p += *p == ',';
	}
	co_workload_run(&run, &w);
	return 0;
}

/* --- the run ------------------------------------------------------------------------------- */

static int co_job(void *arg)
{
	static struct fixture f;
	uint64_t random = opt.random;

	world_init();
	for (unsigned i = 0; i < nconfigs; i++) {
		struct error err = ERROR_INIT;
		int r;

		if (opt.config ? strcmp(opt.config, configs[i].name) != 0 : i % opt.jobs != opt.job)
			continue;
		r = co_fixture_make(&configs[i], &f, &err);
		if (r) {
			fprintf(stderr, "crash: %s: %s (%s)\n", configs[i].name, err.text,
				errno_text(r));
			return r;
		}
		set_effort(&run, &configs[i]);
		if (opt.ops)
			r = co_given(&f);
		else if (opt.random_seed)
			co_random(&f, opt.random_seed);
		else
			co_exhaustive(&f, i);
		for (uint64_t k = 0; k < random && !time_is_up(); k++)
			co_random(&f, opt.seed + k);
		fixture_free(&f);
		if (r)
			return r;
	}
	return 0;
}

static void add(struct tally *sum, const struct tally *t)
{
	uint64_t *a = (uint64_t *)sum;
	const uint64_t *b = (const uint64_t *)t;

	for (size_t i = 0; i < sizeof(*t) / sizeof(uint64_t); i++)
		a[i] += b[i];
}

static int report(const struct tally *t, int r)
{
	uint64_t bad = tally_violations(t);

	printf("crash: %llu workloads, %llu states (%llu duplicates), %llu refused operations\n",
		(unsigned long long)t->workloads, (unsigned long long)t->states,
		(unsigned long long)t->duplicates, (unsigned long long)t->refused);
	printf("crash: %llu checked, %llu by qemu-img, %llu continued, %llu repaired, "
	       "%llu crashes in repair\ncrash: states by last operation:",
		(unsigned long long)t->checks, (unsigned long long)t->qemu_checks,
		(unsigned long long)t->continued, (unsigned long long)t->repairs,
		(unsigned long long)t->repair_crashes);
	for (unsigned i = 0; i < OP_KINDS; i++)
		printf(" %s %llu", op_names[i], (unsigned long long)t->by_op[i]);
	printf("\ncrash: %.1f s, %llu violations", now() - started, (unsigned long long)bad);
	for (unsigned i = 0; i < VIOLATIONS; i++)
		if (t->violations[i])
			printf(", %s %llu", violation_names[i],
				(unsigned long long)t->violations[i]);
	printf("\n");
	if (time_is_up())
		printf("crash: the time limit was reached: not all sequences were run\n");
	return r || bad ? 1 : 0;
}

static int parse(int argc, char **argv)
{
	static const struct option longs[] = {{"depth", 1, NULL, 'd'}, {"seconds", 1, NULL, 's'},
		{"random", 1, NULL, 'r'}, {"seed", 1, NULL, 'S'}, {"jobs", 1, NULL, 'j'},
		{"config", 1, NULL, 'c'}, {"ops", 1, NULL, 'o'}, {"state", 1, NULL, 't'},
		{"full", 0, NULL, 'f'}, {"verbose", 0, NULL, 'v'}, {"random-seed", 1, NULL, 'R'},
		{NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'd':
			opt.depth = (unsigned)atoi(optarg);
			break;
		case 's':
			opt.seconds = atof(optarg);
			break;
		case 'r':
			opt.random = strtoull(optarg, NULL, 0);
			break;
		case 'S':
			opt.seed = strtoull(optarg, NULL, 0);
			break;
		case 'j':
			opt.jobs = (unsigned)atoi(optarg);
			break;
		case 'c':
			opt.config = optarg;
			break;
		case 'o':
			opt.ops = optarg;
			break;
		case 't':
			opt.state = strtoull(optarg, NULL, 16);
			break;
		case 'R':
			opt.random_seed = strtoull(optarg, NULL, 0);
			break;
		case 'v':
			opt.verbose = true;
			break;
		case 'f':
			opt.full = true;
			break;
		default:
			return -EINVAL;
		}
	}
	return optind == argc ? 0 : -EINVAL;
}

int main(int argc, char **argv)
{
	struct tally sum = {0};
	int r = 0;

	if (parse(argc, argv)) {
		fprintf(stderr, "crash: see the head of tests/crash/crash.c for the options\n");
		return 2;
	}
	started = now();
	if (opt.jobs < 1 || opt.config)
		opt.jobs = 1;
	results = mmap(NULL, opt.jobs * sizeof(*results), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (results == MAP_FAILED)
		return 2;
	/* Each job is a process of its own, made before there are rings and threads. */
	for (opt.job = 0; opt.job < opt.jobs; opt.job++) {
		pid_t pid = fork();

		if (pid < 0)
			return 2;
		if (!pid) {
			r = co_run(co_job, NULL);
			results[opt.job] = run.t;
			disk_free_all();
			_exit(r ? 1 : 0);
		}
	}
	for (unsigned i = 0; i < opt.jobs; i++) {
		int status;

		if (wait(&status) < 0 || !WIFEXITED(status)) {
			fprintf(stderr, "crash: a job was ended by signal %d\n", WTERMSIG(status));
			r = -1;
		} else if (WEXITSTATUS(status)) {
			r = -1;
		}
	}
	for (unsigned i = 0; i < opt.jobs; i++)
		add(&sum, &results[i]);
	return report(&sum, r);
}
