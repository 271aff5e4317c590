/* SPDX-License-Identifier: MIT */
/*
 * Tracing: which events are on, and where their lines go.
 *
 * The configuration is a list that only grows and is published with release semantics, so that
 * events on other threads read it without a lock. It is set up by options and the environment,
 * which is to say a few times in a process's life.
 */
#include "base/trace.h"
#include "base/mem.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct pattern {
	struct pattern *next;
	char text[];
};

bool trace_any;

static _Atomic(struct pattern *) patterns;
static _Atomic(FILE *) trace_file;
static trace_sink_fn *sink;
static void *sink_arg;
static pthread_mutex_t config_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t init_once = PTHREAD_ONCE_INIT;

/* `*` any run, `?` any character. Backtracks to the last star only, so it is linear in practice. */
static bool matches(const char *pattern, const char *name)
{
	const char *star = NULL, *resume = NULL;

	while (*name) {
		if (*pattern == '*') {
			star = ++pattern;
			resume = name;
		} else if (*pattern == '?' || *pattern == *name) {
			pattern++;
			name++;
		} else if (star) {
			pattern = star;
			name = ++resume;
		} else {
			return false;
		}
	}
	while (*pattern == '*')
		pattern++;
	return !*pattern;
}

static bool enabled(const char *event)
{
	const struct pattern *p;

	for (p = atomic_load_explicit(&patterns, memory_order_acquire); p; p = p->next)
		if (matches(p->text, event))
			return true;
	return false;
}

void trace_emit(const char *event, const char *fmt, ...)
{
	FILE *f = atomic_load_explicit(&trace_file, memory_order_acquire);
	int saved = errno;
	struct timespec ts;
	char line[512];
	va_list ap;
	int n;

	if (!enabled(event))
		return;
	if (sink) {
		va_start(ap, fmt);
		vsnprintf(line, sizeof(line), fmt, ap);
		va_end(ap);
		sink(sink_arg, event, line);
		errno = saved;
		return;
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	n = snprintf(line, sizeof(line), "%d@%lld.%06ld:%s ", (int)getpid(), (long long)ts.tv_sec,
		ts.tv_nsec / 1000, event);
	va_start(ap, fmt);
	vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
	va_end(ap);
	/* One call, so that lines of several threads stay whole. */
	fprintf(f ? f : stderr, "%s\n", line);
	errno = saved;
}

void trace_sink(trace_sink_fn *fn, void *arg)
{
	sink_arg = arg;
	sink = fn;
}

static int pattern_add(const char *text, size_t n, struct error *err)
{
	struct pattern *p;

	if (!n)
		return 0;
	p = mem_alloc(sizeof(*p) + n + 1);
	if (!p)
		return error_set(err, -ENOMEM, "no memory for a trace pattern");
	memcpy(p->text, text, n);
	p->text[n] = '\0';
	p->next = atomic_load(&patterns);
	atomic_store_explicit(&patterns, p, memory_order_release);
	__atomic_store_n(&trace_any, true, __ATOMIC_RELEASE);
	return 0;
}

/* One pattern a line; empty lines and those that begin with # say nothing. */
static int events_read(const char *path, struct error *err)
{
	FILE *f = fopen(path, "re");
	char line[256];
	int r = 0;

	if (!f)
		return error_set_errno(err, -errno, "cannot read the trace events in '%s'", path);
	while (!r && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\r\n")] = '\0';
		if (line[0] != '#')
			r = pattern_add(line, strlen(line), err);
	}
	fclose(f);
	return r;
}

static int file_set(const char *path, struct error *err)
{
	FILE *f = fopen(path, "we");

	if (!f)
		return error_set_errno(err, -errno, "cannot write the trace file '%s'", path);
	setvbuf(f, NULL, _IOLBF, 0);
	/* An earlier file stays open: another thread may be writing to it. */
	atomic_store_explicit(&trace_file, f, memory_order_release);
	return 0;
}

static int item_apply(const char *item, size_t n, bool first, struct error *err)
{
	static const struct {
		const char *name;
		int (*apply)(const char *value, struct error *err);
	} keys[] = {{"events=", events_read}, {"file=", file_set}};

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		size_t k = strlen(keys[i].name);
		char value[4096];

		if (n < k || memcmp(item, keys[i].name, k))
			continue;
		if (n - k >= sizeof(value))
			return error_set(err, -EINVAL, "a trace option is too long");
		memcpy(value, item + k, n - k);
		value[n - k] = '\0';
		return keys[i].apply(value, err);
	}
	if (n >= 7 && !memcmp(item, "enable=", 7))
		return pattern_add(item + 7, n - 7, err);
	if (!first || memchr(item, '=', n))
		return error_set(err, -EINVAL,
			"'%.*s' is not a trace option; use [enable=]PATTERN, events=FILE or "
			"file=FILE",
			(int)MIN(n, (size_t)100), item);
	return pattern_add(item, n, err);
}

int trace_configure(const char *spec, struct error *err)
{
	bool first = true;
	int r = 0;

	pthread_mutex_lock(&config_lock);
	while (!r && *spec) {
		size_t n = strcspn(spec, ",");

		if (n)
			r = item_apply(spec, n, first, err);
		first = false;
		spec += n + (spec[n] == ',');
	}
	pthread_mutex_unlock(&config_lock);
	return r;
}

static void read_environment(void)
{
	const char *spec = getenv("DROVER_LOG");

	/* Nobody asked for an answer: a bad value means no tracing. */
	if (spec)
		trace_configure(spec, NULL);
}

void trace_init(void)
{
	pthread_once(&init_once, read_environment);
}
