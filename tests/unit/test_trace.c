/* SPDX-License-Identifier: MIT */
/* Tracing: patterns, files, specifications that are wrong, several threads, nothing when off. */
#include "base/mem.h"
#include "base/trace.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[] = "/tmp/test_trace.XXXXXX";
static char *out;

static int group_setup(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	out = mem_printf("%s/out", dir);
	return out ? 0 : -1;
}

static int group_teardown(void **state)
{
	unlink(out);
	mem_free(out);
	return rmdir(dir);
}

/* What has been traced so far; freed by the caller. */
static char *lines(void)
{
	char *text = mem_zalloc(200000);
	FILE *f = fopen(out, "r");

	assert_true(text && f);
	assert_true(fread(text, 1, 199999, f) < 199999);
	fclose(f);
	return text;
}

static unsigned evaluated;

static int value(void)
{
	return (int)++evaluated;
}

/* Tests run in this order: what is switched on stays on. */
static void test_off_evaluates_nothing(void **state)
{
	trace("room_object_verb", "%d", value());
	assert_int_equal(evaluated, 0);
	assert_false(trace_any);
}

static void test_bad_specifications(void **state)
{
	static const char *const bad[] = {
		"colour=red", "file=/no/such/dir/x", "events=/no/such/file", "file=,x"};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct error err = ERROR_INIT;

		assert_true(trace_configure(bad[i], &err) < 0);
		assert_true(err.code < 0 && strlen(err.text) > 20);
	}
	assert_false(trace_any);
}

static void test_patterns(void **state)
{
	static const struct {
		const char *event;
		bool on;
	} events[] = {{"ring_fd_lost", true}, {"ring_", true}, {"ring", false}, {"string_x", false},
		{"io_read_done", true}, {"io_read_don", false}, {"io_write_done", true},
		{"io_done", false}, {"exact", true}, {"exactly", false}, {"q1_x", true},
		{"q12_x", false}, {"other", true}};
	char *spec = mem_printf("enable=ring_*,file=%s", out), *text, *name, *list;
	FILE *f;

	assert_int_equal(trace_configure(spec, NULL), 0);
	assert_true(trace_any);
	assert_int_equal(trace_configure("io_*_*ne", NULL), 0);
	assert_int_equal(trace_configure("exact", NULL), 0);
	assert_int_equal(trace_configure("q?_x", NULL), 0);
	mem_free(spec);
	/* A pattern a line, from a file. */
	list = mem_printf("%s/events", dir);
	f = fopen(list, "w");
	fputs("# a comment\n\noth*r\n", f);
	fclose(f);
	spec = mem_printf("events=%s", list);
	assert_int_equal(trace_configure(spec, NULL), 0);
	unlink(list);
	mem_free(spec);
	mem_free(list);

	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		trace(events[i].event, "number %zu", i);
	text = lines();
	for (size_t i = 0; i < ARRAY_SIZE(events); i++) {
		name = mem_printf(":%s number %zu\n", events[i].event, i);
		if (!!strstr(text, name) != events[i].on)
			fail_msg("%s", events[i].event);
		mem_free(name);
	}
	mem_free(text);
}

static void test_long_lines_are_cut(void **state)
{
	char big[2000], *text, *line;

	memset(big, 'x', sizeof(big));
	big[sizeof(big) - 1] = '\0';
	trace("ring_big", "%s", big);
	text = lines();
	line = strstr(text, "ring_big");
	assert_non_null(line);
	assert_true(strcspn(line, "\n") < 600 && strstr(line, "xxxxxxxx"));
	mem_free(text);
}

static void test_errno_is_kept(void **state)
{
	errno = EXDEV;
	trace("ring_errno", "%d", 1);
	assert_int_equal(errno, EXDEV);
}

static void *tracer(void *arg)
{
	for (int i = 0; i < 500; i++)
		trace("ring_thread", "%s", (const char *)arg);
	return NULL;
}

/* Lines of several threads stay whole. */
static void test_threads(void **state)
{
	static char text_a[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.";
	static char text_b[] = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb.";
	unsigned n = 0;
	char *text, *p;
	pthread_t a, b;

	assert_int_equal(pthread_create(&a, NULL, tracer, text_a), 0);
	assert_int_equal(pthread_create(&b, NULL, tracer, text_b), 0);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	text = lines();
	for (p = text; (p = strstr(p, ":ring_thread ")); n++) {
		p += strlen(":ring_thread ");
		assert_true(!strncmp(p, text_a, 31) || !strncmp(p, text_b, 31));
		assert_int_equal(p[31], '\n');
	}
	assert_int_equal(n, 1000);
	mem_free(text);
}

struct seen {
	char event[32], text[64];
};

static void sink(void *arg, const char *event, const char *text)
{
	struct seen *s = arg;

	snprintf(s->event, sizeof(s->event), "%s", event);
	snprintf(s->text, sizeof(s->text), "%s", text);
}

static void test_sink(void **state)
{
	struct seen s = {0};

	trace_sink(sink, &s);
	trace("nothing_on", "%d", 1);
	assert_string_equal(s.event, "");
	trace("ring_sunk", "%d of %d", 1, 2);
	trace_sink(NULL, NULL);
	assert_string_equal(s.event, "ring_sunk");
	assert_string_equal(s.text, "1 of 2");
}

static void test_memory_failure(void **state)
{
	struct error err = ERROR_INIT;

	mem_fail_at(1, false);
	assert_int_equal(trace_configure("more_*", &err), -ENOMEM);
	mem_fail_at(0, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_off_evaluates_nothing),
		cmocka_unit_test(test_bad_specifications),
		cmocka_unit_test(test_patterns),
		cmocka_unit_test(test_long_lines_are_cut),
		cmocka_unit_test(test_errno_is_kept),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_sink),
		cmocka_unit_test(test_memory_failure),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
