/* SPDX-License-Identifier: MIT */
/* Option trees: both notations, the getters, what is unread, sizes as qemu-img takes them. */
#include "base/conf.h"
#include "base/mem.h"
#include "tests/unit/unit.h"

#include <stdio.h>

/* --- parsing --- */

static struct conf *options(const char *text)
{
	struct conf *c = NULL;
	struct error err = ERROR_INIT;

	if (conf_parse_options(text, NULL, &c, &err))
		fail_msg("%s: %s", text, err.text);
	return c;
}

static struct conf *json(const char *text)
{
	struct conf *c = NULL;
	struct error err = ERROR_INIT;

	if (conf_parse_json(text, &c, &err))
		fail_msg("%s: %s", text, err.text);
	return c;
}

static void expect_tree(struct conf *tree, const char *expected)
{
	_cleanup_(conf_freep) struct conf *c = tree;
	_cleanup_free_ char *text = conf_to_json(c);

	assert_string_equal(text, expected);
}

static void test_options(void **state)
{
	expect_tree(options(""), "json:{}");
	expect_tree(options("a=b"), "json:{\"a\": \"b\"}");
	expect_tree(options("a=b,c.d=e,c.f=g"),
		"json:{\"a\": \"b\", \"c\": {\"d\": \"e\", \"f\": \"g\"}}");
	expect_tree(
		options("file.filename=a,,b.img"), "json:{\"file\": {\"filename\": \"a,b.img\"}}");
	expect_tree(options("a=,,"), "json:{\"a\": \",\"}");
	expect_tree(options("a=b=c"), "json:{\"a\": \"b=c\"}");
	expect_tree(options("a=,b="), "json:{\"a\": \"\", \"b\": \"\"}");
	expect_tree(options("lazy,b=1"), "json:{\"lazy\": \"on\", \"b\": \"1\"}");
	expect_tree(options("a=1,"), "json:{\"a\": \"1\"}");
	expect_tree(options("a=1,b=2,a=3"), "json:{\"a\": \"3\", \"b\": \"2\"}");
}

static void test_lists(void **state)
{
	expect_tree(options("l.0=x,l.1=y"), "json:{\"l\": [\"x\", \"y\"]}");
	expect_tree(options("l.1=y,l.0=x"), "json:{\"l\": [\"x\", \"y\"]}");
	expect_tree(options("l.1.a=y,l.0.a=x,l.1.b=z"),
		"json:{\"l\": [{\"a\": \"x\"}, {\"a\": \"y\", \"b\": \"z\"}]}");
	expect_tree(options("l.0=x,l.2=y"), "json:{\"l\": {\"0\": \"x\", \"2\": \"y\"}}");
	expect_tree(options("l.0=x,l.a=y"), "json:{\"l\": {\"0\": \"x\", \"a\": \"y\"}}");
	expect_tree(options("l.00=x"), "json:{\"l\": {\"00\": \"x\"}}");
	/* Eleven, in an order that makes the places cycle. */
	expect_tree(options("l.10=k,l.0=a,l.9=j,l.1=b,l.8=i,l.2=c,l.7=h,l.3=d,l.6=g,l.4=e,l.5=f"),
		"json:{\"l\": [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\", "
		"\"j\", \"k\"]}");
}

static void test_implied_key(void **state)
{
	struct conf *c = NULL;

	assert_int_equal(conf_parse_options("a,,b.img,x=1,y", "filename", &c, NULL), 0);
	expect_tree(take(c), "json:{\"filename\": \"a,b.img\", \"x\": \"1\", \"y\": \"on\"}");
	assert_int_equal(conf_parse_options("x=1,y", "filename", &c, NULL), 0);
	expect_tree(c, "json:{\"x\": \"1\", \"y\": \"on\"}");
}

static void test_later_options_merge(void **state)
{
	struct conf *c = options("a=1,b.c=2,l.0=x");

	assert_int_equal(conf_parse_options("b.d=3,a=4,l.1=y", NULL, &c, NULL), 0);
	expect_tree(c,
		"json:{\"a\": \"4\", \"b\": {\"c\": \"2\", \"d\": \"3\"}, \"l\": [\"x\", \"y\"]}");
}

static void test_json(void **state)
{
	expect_tree(json("{}"), "json:{}");
	expect_tree(
		json("{\"file\":{\"filename\":\"x\"}}"), "json:{\"file\": {\"filename\": \"x\"}}");
	expect_tree(json("{\"file.filename\":\"x\"}"), "json:{\"file\": {\"filename\": \"x\"}}");
	expect_tree(json("{\"a\":{\"b\":{\"c\":1}},\"a.b.d\":2,\"a.e\":3}"),
		"json:{\"a\": {\"b\": {\"c\": 1, \"d\": 2}, \"e\": 3}}");
	expect_tree(json("{\"a.b\":{\"c\":1},\"a\":{\"b\":{\"d\":2}}}"),
		"json:{\"a\": {\"b\": {\"c\": 1, \"d\": 2}}}");
	expect_tree(json("{\"n\":9223372036854775807,\"m\":-9223372036854775808,\"x\":1.5}"),
		"json:{\"n\": 9223372036854775807, \"m\": -9223372036854775808, \"x\": 1.5}");
	expect_tree(json("{\"t\":true,\"f\":false,\"z\":null,\"l\":[1,[2],{}],\"tenth\":0.1}"),
		"json:{\"t\": true, \"f\": false, \"z\": null, \"l\": [1, [2], {}], \"tenth\": "
		"0.1}");
	expect_tree(json("{\"s\":\"\\u00e9\\n\\\"\"}"), "json:{\"s\": \"\\u00E9\\n\\\"\"}");
}

static void test_notations_agree(void **state)
{
	_cleanup_(conf_freep) struct conf *a = options("file.filename=x,l.0.k=v");
	_cleanup_(conf_freep) struct conf *b = json(
		"{\"file\":{\"filename\":\"x\"},\"l\":[{\"k\":\"v\"}]}");
	_cleanup_(conf_freep) struct conf *c = json("{\"file.filename\":\"x\",\"l.0.k\":\"v\"}");
	_cleanup_free_ char *ta = conf_to_json(a), *tb = conf_to_json(b), *tc = conf_to_json(c);

	assert_string_equal(ta, tb);
	assert_string_equal(ta, tc);
}

static void test_bad_text(void **state)
{
	static const char *const bad_options[] = {".=x", "a.=x", ".a=x", "a..b=x", "=x",
		"a=1,a.b=2", "a.b=2,a=1", ",,=1,=2", "l.0=x,l.=y"};
	static const char *const bad_json[] = {"", "{", "[]", "1", "{\"a\":1,\"a\":2}",
		"{\"a\":1,\"a.b\":2}", "{\"a.b\":1,\"a\":2}", "{\"a\":{\"b\":1},\"a.b\":2}",
		"{\"a.\":1}", "{\"\":1}", "{\"a\":1}x", "{'a':1}", "{\"a\":01}",
		"{\"a\":99999999999999999999}", "{\"a\":\"\\u0000\"}", "{\"a\":\"\xff\"}"};

	for (size_t i = 0; i < ARRAY_SIZE(bad_options); i++) {
		struct error err = ERROR_INIT;
		struct conf *c = NULL;

		if (conf_parse_options(bad_options[i], NULL, &c, &err) != -EINVAL)
			fail_msg("accepted: %s", bad_options[i]);
		assert_true(!c && err.code == -EINVAL && strlen(err.text) > 10);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad_json); i++) {
		struct error err = ERROR_INIT;
		struct conf *c = NULL;

		if (conf_parse_json(bad_json[i], &c, &err) != -EINVAL)
			fail_msg("accepted: %s", bad_json[i]);
		assert_true(!c && err.code == -EINVAL && strlen(err.text) > 10);
	}
}

/* A failed merge leaves the tree as it was. */
static void test_failed_merge(void **state)
{
	struct conf *c = options("a=1");

	assert_int_equal(conf_parse_options("b=2,a.x=3", NULL, &c, NULL), -EINVAL);
	expect_tree(c, "json:{\"a\": \"1\"}");
}

/* Text of `open` n times, `mid`, `close` n times. */
static char *nest(unsigned n, const char *open, const char *mid, const char *close)
{
	size_t a = strlen(open), b = strlen(close), m = strlen(mid);
	char *text = mem_alloc(n * (a + b) + m + 1), *p = text;

	for (unsigned i = 0; i < n; i++, p += a)
		memcpy(p, open, a);
	memcpy(p, mid, m);
	p += m;
	for (unsigned i = 0; i < n; i++, p += b)
		memcpy(p, close, b);
	*p = '\0';
	return text;
}

static void test_depth_and_size(void **state)
{
	_cleanup_free_ char *ok = nest(64, "{\"a\":", "1", "}");
	_cleanup_free_ char *deep = nest(65, "{\"a\":", "1", "}");
	_cleanup_free_ char *deeper = nest(100000, "[", "", "");
	_cleanup_free_ char *quoted = nest(1000, "", "{\"a\":\"[[[[\\\"[[[\"}", "");
	_cleanup_free_ char *dots = nest(63, "a.", "a=1", "");
	_cleanup_free_ char *more_dots = nest(64, "a.", "a=1", "");
	_cleanup_free_ char *big = nest(1 << 20, "x", "=1", "");
	struct error err = ERROR_INIT;
	struct conf *c = NULL;

	conf_free(json(ok));
	conf_free(json(quoted));
	assert_int_equal(conf_parse_json(deep, &c, &err), -EINVAL);
	assert_non_null(strstr(err.text, "64"));
	assert_int_equal(conf_parse_json(deeper, &c, &err), -EINVAL);
	conf_free(options(dots));
	assert_int_equal(conf_parse_options(more_dots, NULL, &c, &err), -EINVAL);
	assert_int_equal(conf_parse_options(big, NULL, &c, &err), -EINVAL);
	assert_non_null(strstr(err.text, "1 MiB"));
	assert_int_equal(conf_parse_json(big, &c, &err), -EINVAL);
	assert_null(c);
}

/* --- trees --- */

static void test_set_and_remove(void **state)
{
	struct conf *c = conf_new(CONF_OBJECT);

	assert_int_equal(conf_set(c, "a", "1"), 0);
	assert_int_equal(conf_set(c, "b.c.d", "2"), 0);
	assert_int_equal(conf_set(c, "a.x", "3"), 0); /* replaces the value by a group */
	assert_int_equal(conf_set_conf(c, "e", json("{\"f\":1}")), 0);
	assert_int_equal(conf_set(c, "e..f", "1"), -EINVAL);
	conf_remove(c, "b.c.d");
	conf_remove(c, "b.c.d");
	conf_remove(c, "no.such.thing");
	assert_true(conf_has(c, "a.x") && conf_has(c, "b.c") && !conf_has(c, "b.c.d"));
	expect_tree(c, "json:{\"a\": {\"x\": \"3\"}, \"b\": {\"c\": {}}, \"e\": {\"f\": 1}}");
}

static void test_walking(void **state)
{
	struct conf *c = options("a=1,b.c=2,l.0=x,l.1=y"), *v;

	assert_int_equal(conf_count(c), 3);
	assert_string_equal(conf_key_at(c, 1, &v), "b");
	assert_int_equal(conf_type(v), CONF_OBJECT);
	assert_null(conf_key_at(c, 3, &v));
	v = conf_get(c, "l");
	assert_int_equal(conf_type(v), CONF_LIST);
	assert_int_equal(conf_count(v), 2);
	assert_string_equal(conf_text(conf_at(v, 1)), "y");
	assert_null(conf_at(v, 2));
	assert_string_equal(conf_text(conf_get(c, "b.c")), "2");
	assert_null(conf_get(c, "b.d"));
	assert_null(conf_get(c, "a.x"));
	assert_null(conf_get(c, "l.2"));
	assert_string_equal(conf_text(conf_get(c, "l.0")), "x");
	conf_free(c);
	conf_free(NULL);
}

static void test_dup(void **state)
{
	struct conf *c = json("{\"a\":{\"b\":[1,true,\"s\"]}}"), *d = conf_dup(c);

	conf_free(c);
	expect_tree(d, "json:{\"a\": {\"b\": [1, true, \"s\"]}}");
}

static void test_unused(void **state)
{
	struct conf *c = options("a=1,b.c=2,b.d=3,l.0.k=x");
	struct error err = ERROR_INIT;

	assert_int_equal(conf_check_unused(c, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter 'a'");
	conf_get(c, "a");
	assert_true(conf_has(c, "b.c")); /* does not read it */
	assert_int_equal(conf_check_unused(c, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter 'b'");
	conf_get(conf_get(c, "b"), "c");
	assert_int_equal(conf_check_unused(c, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter 'b.d'");
	conf_get(c, "b.d");
	conf_get(c, "l");
	assert_int_equal(conf_check_unused(c, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter 'l.0'");
	conf_get(conf_at(conf_get(c, "l"), 0), "k");
	assert_int_equal(conf_check_unused(c, &err), 0);
	conf_free(c);
	c = json("{\"a\":{\"b\":1},\"a.c\":2}"); /* merging is not reading */
	conf_get(c, "a.b");
	assert_int_equal(conf_check_unused(c, &err), -EINVAL);
	assert_string_equal(err.text, "Invalid parameter 'a.c'");
	conf_free(c);
}

/* --- getters --- */

static const struct conf_enum colours[] = {{"red", 1}, {"green", 2}, {"blue", 3}, {NULL, 0}};
static const struct conf_key table[] = {
	{.name = "s", .kind = CONF_KEY_STRING},
	{.name = "b", .kind = CONF_KEY_BOOL},
	{.name = "size", .kind = CONF_KEY_SIZE, .min = 512, .max = 2 * MiB},
	{.name = "n", .kind = CONF_KEY_NUMBER},
	{.name = "e", .kind = CONF_KEY_ENUM, .values = colours},
	{.name = NULL},
};

static void test_getters(void **state)
{
	struct conf *c = options("s=text,b=on,size=64k,n=0x10,e=green");
	const char *s = NULL;
	uint64_t size = 0, n = 0;
	bool b = false;
	int e = 0;

	assert_int_equal(conf_get_string(c, table, "s", &s, NULL), 0);
	assert_int_equal(conf_get_bool(c, table, "b", &b, NULL), 0);
	assert_int_equal(conf_get_u64(c, table, "size", &size, NULL), 0);
	assert_int_equal(conf_get_u64(c, table, "n", &n, NULL), 0);
	assert_int_equal(conf_get_enum(c, table, "e", &e, NULL), 0);
	assert_string_equal(s, "text");
	assert_true(b && size == 65536 && n == 16 && e == 2);
	assert_int_equal(conf_check_unused(c, NULL), 0);
	conf_free(c);
	/* Absent: the preset stays. */
	c = conf_new(CONF_OBJECT);
	assert_int_equal(conf_get_u64(c, table, "size", &size, NULL), 0);
	assert_int_equal(conf_get_bool(c, table, "b", &b, NULL), 0);
	assert_int_equal(conf_get_enum(c, table, "e", &e, NULL), 0);
	assert_true(b && size == 65536 && e == 2);
	conf_free(c);
	c = json("{\"b\":false,\"n\":9223372036854775807,\"size\":4096}");
	assert_int_equal(conf_get_bool(c, table, "b", &b, NULL), 0);
	assert_int_equal(conf_get_u64(c, table, "n", &n, NULL), 0);
	assert_int_equal(conf_get_u64(c, table, "size", &size, NULL), 0);
	assert_true(!b && n == INT64_MAX && size == 4096);
	conf_free(c);
}

static void refuse(const char *text, const char *key, const char *says)
{
	struct conf *c = options(text);
	struct error err = ERROR_INIT;
	uint64_t n = 7;
	bool b = true;
	int e = 7, r;

	if (key[0] == 'b')
		r = conf_get_bool(c, table, key, &b, &err);
	else if (key[0] == 'e')
		r = conf_get_enum(c, table, key, &e, &err);
	else
		r = conf_get_u64(c, table, key, &n, &err);
	assert_int_equal(r, -EINVAL);
	assert_true(n == 7 && b && e == 7);
	if (!strstr(err.text, says) || !strstr(err.text, key))
		fail_msg("%s: %s", text, err.text);
	conf_free(c);
}

static void test_getters_refuse(void **state)
{
	refuse("b=maybe", "b", "'on' or 'off'");
	refuse("b.x=1", "b", "not a group");
	refuse("e=pink", "e", "'red', 'green' or 'blue'");
	refuse("e=pink", "e", "'pink'");
	refuse("size=abc", "size", "'abc'");
	refuse("size=511", "size", "between 512 and 2097152");
	refuse("size=4M", "size", "between 512 and 2097152");
	refuse("size=9E", "size", "too large");
	refuse("n=-1", "n", "'-1'");
	refuse("n=1k", "n", "'1k'");
	refuse("n=18446744073709551616", "n", "too large");
}

static void test_enum_name(void **state)
{
	assert_string_equal(conf_enum_name(colours, 3), "blue");
	assert_null(conf_enum_name(colours, 4));
}

/* --- numbers: what qemu-img 7.2 was seen to accept and make of it --- */

static void test_sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"0.0", 0},
		{"511", 511},
		{"1.", 1},
		{"1.0", 1},
		{"1b", 1},
		{"1B", 1},
		{"1.00B", 1},
		{"1k", KiB},
		{"1K", KiB},
		{"1.k", KiB},
		{" 1k", KiB},
		{"\t1k", KiB},
		{"+1k", KiB},
		{"007k", 7 * KiB},
		{"0777", 777},
		{"0x10", 16},
		{"0X10", 16},
		{"0x1b", 27},
		{"0x1e", 30},
		{"0x10k", 16 * KiB},
		{"1m", MiB},
		{"1G", GiB},
		{"1T", TiB},
		{"1p", 1024 * TiB},
		{"1E", 1024 * 1024 * TiB},
		{"0.5k", 512},
		{"1.5k", 1536},
		{"1.5G", GiB + GiB / 2},
		{"0.1k", 102},
		{"0.9999k", 1024},
		{"0.0000001k", 0},
		{"1.0000001k", 1024},
		{"1.99999999G", 2147483637},
		{"1.23456789012345678901234567890k", 1264},
		{"9223372036854775807", INT64_MAX},
		{"7E", 7 * 1024 * 1024 * TiB},
	};
	static const char *const bad[] = {"", "k", "-1", "-1k", ".5G", "1kb", "1k ", "1.5", "0.1",
		"0.3b", "1.5b", "1e3", "1e+3", "1.5e1k", "1.0k1", "1,5", "3G3", "1GiB", "0x", "0xg",
		"0x 1", "00x10", "0x1.8k", "0x1p3", "0x1kk", "inf", "nan", "1 k", "++1", "+-1"};
	static const char *const big[] = {"8E", "9223372036854775808", "18446744073709551616",
		"99999999999999999999999", "9007199254740993.0k", "0xffffffffffffffff", "8192P"};
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		v = 12345;
		if (parse_size(good[i].text, &v) || v != good[i].bytes)
			fail_msg("%s: %llu", good[i].text, (unsigned long long)v);
	}
	v = 12345;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (parse_size(bad[i], &v) != -EINVAL || v != 12345)
			fail_msg("%s: %d", bad[i], parse_size(bad[i], &v));
	for (size_t i = 0; i < ARRAY_SIZE(big); i++)
		if (parse_size(big[i], &v) != -ERANGE || v != 12345)
			fail_msg("%s: %d", big[i], parse_size(big[i], &v));
}

static void test_numbers(void **state)
{
	uint64_t v;

	assert_true(!parse_u64("18446744073709551615", &v) && v == UINT64_MAX);
	assert_true(!parse_u64("0xFFFFFFFFFFFFFFFF", &v) && v == UINT64_MAX);
	assert_true(!parse_u64("0", &v) && v == 0);
	assert_true(!parse_u64("010", &v) && v == 10);
	assert_int_equal(parse_u64("18446744073709551616", &v), -ERANGE);
	assert_int_equal(parse_u64("0x10000000000000000", &v), -ERANGE);
	assert_int_equal(parse_u64("", &v), -EINVAL);
	assert_int_equal(parse_u64("0x", &v), -EINVAL);
	assert_int_equal(parse_u64("-1", &v), -EINVAL);
	assert_int_equal(parse_u64("1 ", &v), -EINVAL);
	assert_int_equal(parse_u64("99999999999999999999x", &v), -EINVAL);
}

/* --- every allocation failing --- */

static int parse_all(void)
{
	struct conf *c = NULL, *j = NULL, *d;
	char *text;
	int r = conf_parse_options("a=1,b.c.d=2,l.1=y,l.0=x,e=5,f=6", NULL, &c, NULL);

	if (!r)
		r = conf_parse_options("z.y=1", NULL, &c, NULL);
	if (!r)
		r = conf_parse_json("{\"a\":{\"b\":[1,2.5,null]},\"a.c\":true}", &j, NULL);
	if (!r)
		r = conf_set(c, "x.y", "1");
	if (!r) {
		d = conf_dup(c);
		text = d ? conf_to_json(d) : NULL;
		r = text ? 0 : -ENOMEM;
		conf_free(d);
		mem_free(text);
	}
	conf_free(c);
	conf_free(j);
	return r;
}

static void test_no_memory(void **state)
{
	uint64_t k, n;

	mem_fail_at(0, false);
	assert_int_equal(parse_all(), 0);
	n = mem_fail_at(0, false);
	assert_true(n > 30);
	for (k = 1; k <= n; k++) {
		mem_fail_at(k, false);
		assert_int_equal(parse_all(), -ENOMEM);
	}
	mem_fail_at(0, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_lists),
		cmocka_unit_test(test_implied_key),
		cmocka_unit_test(test_later_options_merge),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_notations_agree),
		cmocka_unit_test(test_bad_text),
		cmocka_unit_test(test_failed_merge),
		cmocka_unit_test(test_depth_and_size),
		cmocka_unit_test(test_set_and_remove),
		cmocka_unit_test(test_walking),
		cmocka_unit_test(test_dup),
		cmocka_unit_test(test_unused),
		cmocka_unit_test(test_getters),
		cmocka_unit_test(test_getters_refuse),
		cmocka_unit_test(test_enum_name),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
