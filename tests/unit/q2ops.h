/* SPDX-License-Identifier: MIT */
/* What the tests of qcow2 operations share: images made by create in memory, checks, pokes. */
#ifndef DROVER_TEST_Q2OPS_H
#define DROVER_TEST_Q2OPS_H

#include "tests/unit/q2.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

static inline int try_create_on(struct block_node *file, const char *opts, struct error *err)
{
	_cleanup_(conf_freep) struct conf *conf = NULL;
	struct block_create c = {.filename = "test", .file = file, .trust = &block_trust_local};

	check_int(conf_parse_options(opts, NULL, &conf, NULL), 0);
	c.opts = conf;
	return co_q2_create(&c, err);
}

/* A file node with a new image on it; the caller's reference. */
static inline struct block_node *create_mem(const char *opts)
{
	struct error err = ERROR_INIT;
	struct mem_content *c;
	struct block_node *file;

	check_int(mem_content_new(0, &c), 0);
	file = q2_test_mem(c);
	if (try_create_on(file, opts, &err)) {
		fprintf(stderr, "create %s: %s\n", opts, err.text);
		abort();
	}
	return file;
}

/* Opens the image, leaving the caller its reference on `file`. */
static inline struct block_node *open_image(struct block_node *file, struct block_node *backing)
{
	return q2_test_open(block_node_ref(file), NULL, backing);
}

static inline void close_image(struct block_node *n)
{
	check_int(co_block_node_unref(n), 0);
}

struct check_lines {
	char text[4096];
};

static inline void take_line(void *arg, bool is_error, const char *line)
{
	struct check_lines *l = arg;
	size_t n = strlen(l->text);

	snprintf(l->text + n, sizeof(l->text) - n, "%s\n", line);
}

/* Runs the check on a file, with a node of its own. */
static inline struct block_check check_file(
	struct block_node *file, uint32_t repair, uint64_t memory, struct check_lines *lines)
{
	struct block_check c = {.repair = repair, .memory = memory};
	uint32_t flags = repair ? RW | BLOCK_OPEN_CHECK : BLOCK_OPEN_CHECK;
	struct error err = ERROR_INIT;
	struct block_node *n;

	if (lines) {
		lines->text[0] = 0;
		c.message = take_line;
		c.arg = lines;
	}
	check_int(q2_test_try_open(block_node_ref(file), NULL, flags | BLOCK_OPEN_NO_BACKING, NULL,
			  &n, &err),
		0);
	if (q2_check_ops.co_check(n, &c, &err)) {
		fprintf(stderr, "check: %s\n", err.text);
		abort();
	}
	co_block_node_unref(n);
	return c;
}

static inline void check_clean(struct block_node *file)
{
	struct check_lines lines;
	struct block_check c = check_file(file, 0, 0, &lines);

	if (c.corruptions || c.leaks || c.check_errors) {
		fprintf(stderr, "check found:\n%s", lines.text);
		abort();
	}
}

static inline uint64_t file_be64(struct block_node *file, uint64_t off)
{
	uint8_t b[8];

	check_int(co_block_pread(file, off, b, 8), 0);
	return load_be64(b);
}

static inline void poke_be64(struct block_node *file, uint64_t off, uint64_t v)
{
	uint8_t b[8];

	store_be64(b, v);
	check_int(co_block_pwrite(file, off, b, 8), 0);
}

static inline void poke_be16(struct block_node *file, uint64_t off, uint16_t v)
{
	uint8_t b[2];

	store_be16(b, v);
	check_int(co_block_pwrite(file, off, b, 2), 0);
}

#endif
