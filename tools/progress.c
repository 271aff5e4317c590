/* SPDX-License-Identifier: MIT */
/* Progress of long work, for people and for programs, and the signals that end it. */
#include "tools/tool.h"
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* The one job whose signals we take; a tool has no more than one at a time. */
static struct progress *volatile current;
static volatile sig_atomic_t ended_by;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Hundredths of a percent; total may still be unknown (0). */
static int hundredths(uint64_t done, uint64_t total)
{
	if (!total)
		return 0;
	if (done >= total)
		return 10000;
	return (int)((double)done * 10000.0 / (double)total);
}

/* "    (12.34/100%)" and `end`, by hand: a signal handler may call nothing that locks. */
static size_t percent_line(char *ret, int v, char end)
{
	char digits[8];
	size_t n = 0, at = 0;
	int whole = v / 100;

	memset(ret, ' ', 4);
	at = 4;
	ret[at++] = '(';
	do
		digits[n++] = (char)('0' + whole % 10);
	while ((whole /= 10));
	while (n)
		ret[at++] = digits[--n];
	ret[at++] = '.';
	ret[at++] = (char)('0' + v / 10 % 10);
	ret[at++] = (char)('0' + v % 10);
	memcpy(ret + at, "/100%)", 6);
	at += 6;
	ret[at++] = end;
	return at;
}

static void on_end(int sig)
{
	struct progress *p = current;

	if (ended_by || !p) {
		signal(sig, SIG_DFL);
		raise(sig);
		return;
	}
	ended_by = sig;
	block_job_cancel(&p->job);
}

static void on_report(int sig)
{
	struct progress *p = current;
	char line[32];
	int saved = errno;
	size_t n;

	if (p && !p->human) {
		n = percent_line(line,
			hundredths(__atomic_load_n(&p->job.done, __ATOMIC_RELAXED),
				__atomic_load_n(&p->job.total, __ATOMIC_RELAXED)),
			'\n');
		if (write(STDERR_FILENO, line, n) < 0)
			errno = saved;
	}
	errno = saved;
}

static void show_human(struct progress *p, uint64_t done, uint64_t total)
{
	int v = hundredths(done, total);
	char line[32];

	/* Steps of half a percent are enough for people, and cheap. */
	if (p->shown >= 0 && v < p->shown + 50 && (v < 10000 || p->shown == 10000))
		return;
	p->shown = v;
	fwrite(line, 1, percent_line(line, v, '\r'), stdout);
	fflush(stdout);
}

static void show_json(struct progress *p, const char *phase, uint64_t done, uint64_t total)
{
	uint64_t ns = now_ns() - p->start_ns;
	double rate = ns ? (double)done * 1e9 / (double)ns : 0;
	char line[256];
	int n;

	n = snprintf(line, sizeof(line),
		"{\"bytes\": %llu, \"total\": %llu, \"rate\": %.0f, \"eta\": ",
		(unsigned long long)done, (unsigned long long)total, rate);
	if (rate > 0 && done <= total)
		n += snprintf(
			line + n, sizeof(line) - (size_t)n, "%.1f", (double)(total - done) / rate);
	else
		n += snprintf(line + n, sizeof(line) - (size_t)n, "null");
	n += snprintf(line + n, sizeof(line) - (size_t)n, ", \"phase\": \"%s\"}\n", phase);
	if (write(p->fd, line, (size_t)n) != n)
		p->json = false; /* nobody listens any more; the work goes on */
}

static void on_progress(void *arg, const struct block_job *job)
{
	struct progress *p = arg;
	uint64_t done = __atomic_load_n(&job->done, __ATOMIC_RELAXED);
	uint64_t total = __atomic_load_n(&job->total, __ATOMIC_RELAXED);

	if (p->human)
		show_human(p, done, total);
	if (p->json)
		show_json(p, job->phase ? job->phase : "work", done, total);
}

static int parse_style(struct progress *p, const char *arg)
{
	if (!*arg || !strcmp(arg, "human")) {
		p->human = true;
		return 0;
	}
	if (!strncmp(arg, "json", 4)) {
		char *end;

		p->json = true;
		p->fd = STDERR_FILENO;
		if (!arg[4])
			return 0;
		if (!strncmp(arg + 4, ",fd=", 4) && arg[8]) {
			p->fd = (int)strtol(arg + 8, &end, 10);
			if (!*end && p->fd >= 0)
				return 0;
		}
	}
	tool_error("--progress expects human or json[,fd=N], not '%s'", arg);
	return -EINVAL;
}

int progress_watch(struct progress *p, const char *arg, uint64_t total, const char *phase)
{
	struct sigaction report = {.sa_handler = on_report, .sa_flags = SA_RESTART};

	memset(p, 0, sizeof(*p));
	block_job_init(&p->job);
	p->shown = -1;
	p->start_ns = now_ns();
	if (arg && parse_style(p, arg) < 0)
		return -EINVAL;
	p->job.total = total;
	p->job.phase = phase;
	if (p->human || p->json) {
		p->job.progress = on_progress;
		p->job.arg = p;
	}
	if (p->human)
		show_human(p, 0, total);
	current = p;
	sigaction(SIGUSR1, &report, NULL);
	return 0;
}

/* A signal that our caller had ignored (nohup, a shell's background job) stays ignored. */
static void take_signal(int sig)
{
	struct sigaction end = {.sa_handler = on_end}, old;

	if (sigaction(sig, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
		sigaction(sig, &end, NULL);
}

int progress_begin(struct progress *p, const char *arg, uint64_t total, const char *phase)
{
	int r = progress_watch(p, arg, total, phase);

	if (r < 0)
		return r;
	take_signal(SIGINT);
	take_signal(SIGTERM);
	take_signal(SIGHUP);
	return 0;
}

void progress_phase(struct progress *p, const char *phase)
{
	p->job.phase = phase;
	if (p->json)
		on_progress(p, &p->job);
}

void progress_update(struct progress *p, uint64_t done, uint64_t total)
{
	__atomic_store_n(&p->job.done, done, __ATOMIC_RELAXED);
	__atomic_store_n(&p->job.total, total, __ATOMIC_RELAXED);
	on_progress(p, &p->job);
}

void progress_end(struct progress *p, bool complete)
{
	if (p->ended)
		return;
	p->ended = true;
	if (p->human) {
		if (complete)
			show_human(p, 1, 1);
		putchar('\n');
		fflush(stdout);
	}
	if (p->json) {
		uint64_t total = p->job.total;

		show_json(
			p, complete ? "complete" : "failed", complete ? total : p->job.done, total);
	}
	current = NULL;
}

int progress_signal(void)
{
	return ended_by;
}
