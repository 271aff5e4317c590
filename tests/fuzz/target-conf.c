/* SPDX-License-Identifier: MIT */
/* Fuzz target: option strings, JSON, sizes and numbers as users type them. */
#include "base/mem.h"
#include "tests/fuzz/fuzz.h"
#include <stdlib.h>

/* What we print we read again, as the same tree. */
static void round_trip(const struct conf *c)
{
	char *text = conf_to_json(c), *again;
	struct conf *back = NULL;
	struct error err = ERROR_INIT;

	if (!text)
		return;
	/* Bytes that are no UTF-8 have no form in JSON: they become U+FFFD. */
	if (strstr(text, "\\uFFFD")) {
		mem_free(text);
		return;
	}
	if (strncmp(text, "json:", 5))
		fuzz_fail("no json: in front of %s", text);
	if (conf_parse_json(text + 5, &back, &err))
		fuzz_fail("%s does not parse: %s", text, err.text);
	again = conf_to_json(back);
	if (again && strcmp(text, again))
		fuzz_fail("%s became %s", text, again);
	mem_free(again);
	mem_free(text);
	conf_free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = ERROR_INIT;
	struct conf *c = NULL;
	uint64_t v;
	char *text;

	if (size < 1)
		return 0;
	text = malloc(size);
	if (!text)
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = 0;
	if (data[0] % 4 == 0) {
		parse_size(text, &v);
		parse_u64(text, &v);
	} else if (data[0] % 2 ? conf_parse_json(text, &c, &err)
			       : conf_parse_options(text, data[0] & 4 ? "file" : NULL, &c, &err)) {
		if (!err.text[0])
			fuzz_fail("parsing fails without a sentence");
	} else {
		round_trip(c);
	}
	conf_free(c);
	free(text);
	return 0;
}
