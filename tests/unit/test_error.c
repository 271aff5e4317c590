/* SPDX-License-Identifier: MIT */
/* Error sentences: set, prefixed, cut at a character, texts of errnos. */
#include "base/error.h"
#include "tests/unit/unit.h"

#include <stdio.h>

static void test_set(void **state)
{
	struct error e = ERROR_INIT;

	assert_int_equal(e.code, 0);
	assert_int_equal(error_set(&e, -EINVAL, "%s is %d", "x", 3), -EINVAL);
	assert_int_equal(e.code, -EINVAL);
	assert_string_equal(e.text, "x is 3");
	assert_int_equal(error_set(NULL, -EIO, "nobody listens"), -EIO);
}

static void test_set_errno(void **state)
{
	struct error e = ERROR_INIT;

	assert_int_equal(error_set_errno(&e, -ENOENT, "cannot open '%s'", "f"), -ENOENT);
	assert_string_equal(e.text, "cannot open 'f': No such file or directory");
	assert_int_equal(error_set_errno(NULL, -EIO, "x"), -EIO);
}

static void test_prefix(void **state)
{
	struct error e = ERROR_INIT;

	error_prefix(&e, "nothing is there"); /* no sentence to put it in front of */
	assert_string_equal(e.text, "");
	error_set(&e, -EIO, "inner");
	error_prefix(&e, "outer %d", 1);
	error_prefix(&e, "outermost");
	assert_string_equal(e.text, "outermost: outer 1: inner");
	assert_int_equal(e.code, -EIO);
	error_prefix(NULL, "x");
}

/* The longest sentence fits whole; one byte more and it ends in dots. */
static void test_cut(void **state)
{
	struct error e = ERROR_INIT;
	char text[1000];
	size_t max = sizeof(e.text) - 1;

	memset(text, 'a', sizeof(text));
	text[max] = '\0';
	error_set(&e, -EIO, "%s", text);
	assert_string_equal(e.text, text);
	text[max] = 'a';
	text[max + 1] = '\0';
	error_set(&e, -EIO, "%s", text);
	assert_int_equal(strlen(e.text), max);
	assert_string_equal(e.text + max - 4, "a...");
	/* An errno's text or a prefix does not fit behind or in front either. */
	error_set_errno(&e, -EIO, "%s", text);
	assert_string_equal(e.text + max - 3, "...");
	error_prefix(&e, "front");
	assert_int_equal(strncmp(e.text, "front: aaa", 10), 0);
	assert_string_equal(e.text + max - 4, "a...");
}

static void test_cut_at_a_character(void **state)
{
	struct error e = ERROR_INIT;
	char text[1000] = "";

	/* Two-byte characters, at both parities. */
	for (unsigned odd = 0; odd < 2; odd++) {
		size_t n = odd;

		memset(text, 'x', odd);
		for (; n + 2 < sizeof(text); n += 2)
			memcpy(text + n, "\xc3\xa9", 2);
		text[n] = '\0';
		error_set(&e, -EIO, "%s", text);
		n = strlen(e.text);
		assert_string_equal(e.text + n - 3, "...");
		assert_int_equal((unsigned char)e.text[n - 4], 0xa9);
	}
}

static void test_errno_text(void **state)
{
	assert_string_equal(errno_text(-EUCLEAN), "the image is corrupt");
	assert_string_equal(errno_text(EUCLEAN), "the image is corrupt");
	assert_string_equal(errno_text(-EIO), "Input/output error");
	assert_string_equal(errno_text(ENOSPC), "No space left on device");
	assert_string_equal(errno_text(-99999), "unknown error");
	assert_non_null(errno_text(INT32_MIN));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_set_errno),
		cmocka_unit_test(test_prefix),
		cmocka_unit_test(test_cut),
		cmocka_unit_test(test_cut_at_a_character),
		cmocka_unit_test(test_errno_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
