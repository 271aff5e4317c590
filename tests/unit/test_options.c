/* SPDX-License-Identifier: MIT */
/* Command lines by tables (tools/options.c), and sizes as people read them (tools/output.c). */
#include "tools/tool.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

struct opts {
	const char *format, *progress;
	struct opt_texts texts;
	bool quiet, unmap;
	uint64_t size, count;
	int output;
};

static const struct conf_enum outputs[] = {{"human", 0}, {"json", 1}, {NULL, 0}};

#define T struct opts
static const struct opt table[] = {
	IMAGE_OPT(T, OPT_TEXT, 'f', "format", "FMT", "format", format),
	IMAGE_OPT(T, OPT_TEXT, 'F', "old-format", "FMT", NULL, format),
	IMAGE_OPT(T, OPT_OPTIONAL, 'p', "progress", "STYLE", "progress", progress),
	IMAGE_OPT(T, OPT_TEXTS, 'o', "option", "K=V", "options", texts),
	IMAGE_OPT(T, OPT_FLAG, 'q', "quiet", NULL, "quiet", quiet),
	IMAGE_OPT(T, OPT_FLAG, 'u', "unmap", NULL, "unmap", unmap),
	IMAGE_OPT_NUM(T, OPT_SIZE, 's', "size", "SIZE", "size", size, 512, 1 * MiB),
	IMAGE_OPT_NUM(T, OPT_NUMBER, 'c', "count", "N", "count", count, 0, 0),
	IMAGE_OPT_ENUM(T, 0, "output", "human|json", "output", output, outputs),
	{0},
};
#undef T

static const struct command command = {
	.name = "test",
	.summary = "Tests",
	.args = "FILE",
	.max_args = 3,
	.opts = table,
	.opts_size = sizeof(struct opts),
};

#define MAX_ARGS 16

struct parsed {
	struct opts o;
	char *args[MAX_ARGS];
	unsigned nargs;
	int r;
	char err[512]; /* what went to stderr */
};

/* Runs the parser on words; stderr ends up in p->err. */
static void parse(struct parsed *p, const char *line)
{
	static char copy[512];
	char *argv[MAX_ARGS] = {(char *)(uintptr_t) "test"}, *save = NULL;
	int argc = 1, saved = dup(2), fds[2];
	ssize_t n;

	memset(p, 0, sizeof(*p));
	snprintf(copy, sizeof(copy), "%s", line);
	for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	assert_int_equal(pipe(fds), 0);
	dup2(fds[1], 2);
	p->r = options_parse(&command, argc, argv, &p->o, p->args, &p->nargs);
	dup2(saved, 2);
	close(saved);
	close(fds[1]);
	n = read(fds[0], p->err, sizeof(p->err) - 1);
	p->err[n > 0 ? n : 0] = '\0';
	close(fds[0]);
}

static void done(struct parsed *p)
{
	options_free(&command, &p->o);
}

static void test_spellings(void **state)
{
	static const char *const lines[] = {"-f qcow2 x", "-fqcow2 x", "--format qcow2 x",
		"--format=qcow2 x", "--form qcow2 x", "x -f qcow2", "-F qcow2 x",
		"--old-format=qcow2 x"};

	for (unsigned i = 0; i < ARRAY_SIZE(lines); i++) {
		struct parsed p;

		parse(&p, lines[i]);
		assert_int_equal(p.r, 0);
		assert_string_equal(p.o.format, "qcow2");
		assert_int_equal(p.nargs, 1);
		assert_string_equal(p.args[0], "x");
		done(&p);
	}
}

static void test_joined_letters(void **state)
{
	struct parsed p;

	parse(&p, "-quf raw");
	assert_int_equal(p.r, 0);
	assert_true(p.o.quiet);
	assert_true(p.o.unmap);
	assert_string_equal(p.o.format, "raw");
	done(&p);
}

static void test_optional_value(void **state)
{
	struct parsed p;

	parse(&p, "x");
	assert_null(p.o.progress);
	parse(&p, "-p x");
	assert_string_equal(p.o.progress, "");
	assert_int_equal(p.nargs, 1);
	parse(&p, "--progress=json x");
	assert_string_equal(p.o.progress, "json");
	parse(&p, "--progress json");
	assert_string_equal(p.o.progress, "");
	assert_int_equal(p.nargs, 1); /* a value has to be joined by `=` */
}

static void test_texts_keep_order(void **state)
{
	struct parsed p;

	parse(&p, "-o a=1 x -o b=2 --option=c=3");
	assert_int_equal(p.o.texts.n, 3);
	assert_string_equal(p.o.texts.v[0], "a=1");
	assert_string_equal(p.o.texts.v[1], "b=2");
	assert_string_equal(p.o.texts.v[2], "c=3");
	done(&p);
	assert_null(p.o.texts.v);
}

static void test_positional(void **state)
{
	struct parsed p;

	parse(&p, "x -10M"); /* a negative size is no option */
	assert_int_equal(p.r, 0);
	assert_int_equal(p.nargs, 2);
	assert_string_equal(p.args[1], "-10M");
	parse(&p, "-q -- -f --size");
	assert_int_equal(p.nargs, 2);
	assert_string_equal(p.args[0], "-f");
	assert_true(p.o.quiet);
	parse(&p, "-");
	assert_string_equal(p.args[0], "-");
	parse(&p, "a b c d");
	assert_int_equal(p.r, -EINVAL);
	assert_non_null(strstr(p.err, "Unexpected argument: d"));
}

static void refused(const char *line, const char *sentence)
{
	struct parsed p;

	parse(&p, line);
	assert_int_equal(p.r, -EINVAL);
	if (!strstr(p.err, sentence))
		fail_msg("'%s': '%s' is not in '%s'", line, sentence, p.err);
	if (!strstr(p.err, "--help"))
		fail_msg("'%s' does not say where help is: '%s'", line, p.err);
	done(&p);
}

static void test_refusals(void **state)
{
	refused("--nosuch", "unrecognized option '--nosuch'");
	refused("--nosuch=1", "unrecognized option '--nosuch'");
	refused("-x", "invalid option -- 'x'");
	refused("-f", "option requires an argument -- 'f'");
	refused("--format", "option '--format' requires an argument");
	refused("--quiet=yes", "takes no value");
	refused("--o raw", "ambiguous option '--o'"); /* old-format, option, output */
	refused("--output xml", "--output expects 'human' or 'json' not 'xml'");
	refused("-s 511", "--size (-s) expects a size between 512 and 1048576, not '511'");
	refused("-s 2M", "not '2M'");
	refused("-s 1z", "not '1z'");
	refused("-c -- 1", "--count (-c) expects a number, not '--'");
	refused("-c 1k", "not '1k'");
}

static void test_numbers(void **state)
{
	struct parsed p;

	parse(&p, "-s 64k -c 0x10 --output=json");
	assert_int_equal(p.r, 0);
	assert_int_equal(p.o.size, 65536);
	assert_int_equal(p.o.count, 16);
	assert_int_equal(p.o.output, 1);
	done(&p);
}

static void test_size_text(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {{0, "0 B"}, {512, "512 B"}, {999, "999 B"}, {1000, "0.977 KiB"},
		{1024, "1 KiB"}, {1536, "1.5 KiB"}, {10240, "10 KiB"}, {1024000, "0.977 MiB"},
		{1047552, "0.999 MiB"}, {1234944, "1.18 MiB"}, {10484736, "10 MiB"},
		{1047527424, "999 MiB"}, {123456789504, "115 GiB"}, {1 * TiB, "1 TiB"},
		{UINT64_MAX, "16 EiB"}};

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
		assert_string_equal(size_short(cases[i].bytes).s, cases[i].text);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_spellings),
		cmocka_unit_test(test_joined_letters),
		cmocka_unit_test(test_optional_value),
		cmocka_unit_test(test_texts_keep_order),
		cmocka_unit_test(test_positional),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_size_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
