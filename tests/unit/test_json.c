/* SPDX-License-Identifier: MIT */
/* The JSON writer: the shape people's scripts know, escapes, numbers. */
#include "base/json.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>

static char *text;
static size_t size;
static struct json_writer w;

static void begin(bool compact)
{
	json_begin(&w, open_memstream(&text, &size), compact);
}

static void expect(const char *expected)
{
	json_end(&w);
	fclose(w.out);
	assert_string_equal(text, expected);
	free(text);
}

/* As `qemu-img info --output=json` prints it. */
static void test_indented(void **state)
{
	begin(false);
	json_object(&w, NULL);
	json_u64(&w, "virtual-size", 1048576);
	json_string(&w, "filename", "t.q");
	json_object(&w, "format-specific");
	json_string(&w, "type", "qcow2");
	json_object(&w, "data");
	json_bool(&w, "corrupt", false);
	json_object_end(&w);
	json_object_end(&w);
	json_list(&w, "children");
	json_object(&w, NULL);
	json_u64(&w, "n", 1);
	json_object_end(&w);
	json_string(&w, NULL, "x");
	json_list_end(&w);
	json_object_end(&w);
	expect("{\n"
	       "    \"virtual-size\": 1048576,\n"
	       "    \"filename\": \"t.q\",\n"
	       "    \"format-specific\": {\n"
	       "        \"type\": \"qcow2\",\n"
	       "        \"data\": {\n"
	       "            \"corrupt\": false\n"
	       "        }\n"
	       "    },\n"
	       "    \"children\": [\n"
	       "        {\n"
	       "            \"n\": 1\n"
	       "        },\n"
	       "        \"x\"\n"
	       "    ]\n"
	       "}\n");
}

/* As `qemu-img map --output=json` prints it. */
static void test_compact_list_has_lines(void **state)
{
	begin(true);
	json_list(&w, NULL);
	for (unsigned i = 0; i < 3; i++) {
		json_object(&w, NULL);
		json_u64(&w, "start", i);
		json_bool(&w, "zero", i == 1);
		json_object_end(&w);
	}
	json_list_end(&w);
	expect("[{ \"start\": 0, \"zero\": false},\n"
	       "{ \"start\": 1, \"zero\": true},\n"
	       "{ \"start\": 2, \"zero\": false}]\n");
}

static void test_compact_object_is_a_line(void **state)
{
	begin(true);
	json_object(&w, NULL);
	json_u64(&w, "a", 1);
	json_list(&w, "b");
	json_u64(&w, NULL, 2);
	json_object(&w, NULL);
	json_null(&w, "c");
	json_object_end(&w);
	json_list_end(&w);
	json_object_end(&w);
	expect("{\"a\": 1, \"b\": [2, {\"c\": null}]}\n");
}

/* A list without members is two lines where everything has its line. */
static void test_empty(void **state)
{
	begin(true);
	json_list(&w, NULL);
	json_list_end(&w);
	expect("[]\n");
	begin(false);
	json_list(&w, NULL);
	json_list_end(&w);
	expect("[\n]\n");
}

static void test_numbers(void **state)
{
	begin(true);
	json_list(&w, NULL);
	json_u64(&w, NULL, UINT64_MAX);
	json_i64(&w, NULL, INT64_MIN);
	json_double(&w, NULL, 0.5);
	json_double(&w, NULL, NAN);
	json_double(&w, NULL, INFINITY);
	json_raw(&w, NULL, "1.25");
	json_list_end(&w);
	expect("[18446744073709551615,\n-9223372036854775808,\n0.5,\nnull,\nnull,\n1.25]\n");
}

static void expect_escaped(const char *in, const char *out)
{
	char expected[200];

	begin(true);
	json_string(&w, NULL, in);
	snprintf(expected, sizeof(expected), "\"%s\"\n", out);
	expect(expected);
}

static void test_strings(void **state)
{
	expect_escaped("plain ~<>&'", "plain ~<>&'");
	expect_escaped("\"\\/", "\\\"\\\\/");
	expect_escaped("\b\f\n\r\t", "\\b\\f\\n\\r\\t");
	expect_escaped("\x01\x1f\x7f", "\\u0001\\u001F\\u007F");
	expect_escaped("\xc3\xa9", "\\u00E9");
	expect_escaped("\xe2\x82\xac", "\\u20AC");
	expect_escaped("\xf0\x9f\x98\x80", "\\uD83D\\uDE00");
	expect_escaped("\xf4\x8f\xbf\xbf", "\\uDBFF\\uDFFF");
}

/* Bytes that are not UTF-8: none is lost silently, none passes. */
static void test_bad_utf8(void **state)
{
	expect_escaped("n\xff\x01m", "n\\uFFFD\\u0001m");
	expect_escaped("\x80", "\\uFFFD");
	expect_escaped("\xc3", "\\uFFFD");
	expect_escaped("\xc3x", "\\uFFFDx");
	expect_escaped("\xe2\x82", "\\uFFFD\\uFFFD");
	expect_escaped("\xc0\x80", "\\uFFFD\\uFFFD");            /* too long a form of NUL */
	expect_escaped("\xed\xa0\x80", "\\uFFFD\\uFFFD\\uFFFD"); /* a surrogate */
	expect_escaped("\xf4\x90\x80\x80", "\\uFFFD\\uFFFD\\uFFFD\\uFFFD");
	expect_escaped("\xf8\x88\x80\x80", "\\uFFFD\\uFFFD\\uFFFD\\uFFFD");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_indented),
		cmocka_unit_test(test_compact_list_has_lines),
		cmocka_unit_test(test_compact_object_is_a_line),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_strings),
		cmocka_unit_test(test_bad_utf8),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
