/* SPDX-License-Identifier: MIT */
/* The graph: specs, probing, names and trust, backing chains, reopening, failing allocations. */
#include "tests/unit/layer.h"

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

static int open_trust(const char *path, const struct block_trust *trust, uint32_t flags,
	struct block_node **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct block_open_opts o = {.flags = flags, .trust = trust};
	int r = block_spec_from_name(path, NULL, &spec, err);

	return r ? r : co_block_open(spec, &o, ret, err);
}

CO_TEST(test_specs)
{
	struct error err = ERROR_INIT;
	struct block_node *n;

	check_int(try_open("driver=nosuch", 0, &n, &err), -ENOENT);
	check(!strcmp(err.text, "Unknown driver 'nosuch'"));
	check_int(try_open("driver=raw", 0, &n, &err), -EINVAL);
	check(!strcmp(err.text, "A block device must be specified for \"file\""));
	check_int(try_open("driver=raw,file.driver=mem,file.sise=1M", 0, &n, &err), -EINVAL);
	check(strstr(err.text, "sise"));
	check_int(try_open("driver=raw,file.driver=mem,offset=1", 0, &n, &err), -EINVAL);
	check_int(try_open("driver=mem,read-only=maybe", 0, &n, &err), -EINVAL);
	check_int(try_open("driver=mem,force-share=on", RW, &n, &err), -EINVAL);
	n = must_open("driver=mem,size=1M,read-only=on,node-name=disk0", RW);
	check_int(co_block_pwrite(n, 0, "x", 1), -EROFS);
	co_block_node_unref(n);
	check_int(open_trust("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"mem\","
			     "\"size\":\"64k\"}}",
			  &block_trust_strict, RW, &n, &err),
		0);
	check_int(block_size(n), 65536);
	check_int(co_block_node_unref(n), 0);
}

CO_TEST(test_probe)
{
	const char *path = layer_make("probe", NULL, NULL, 8), *plain = test_path("plain");
	struct error err = ERROR_INIT;
	struct block_node *n = must_open(path, RW);
	FILE *f = fopen(plain, "w");

	check(n->drv == &layer_driver);
	check(n->opts.flags & BLOCK_OPEN_PROBED);
	check_int(block_size(n), 8 * 512);
	co_block_node_unref(n);

	check(f && !ftruncate(fileno(f), 4096) && !fclose(f));
	n = must_open(plain, RW);
	check(n->drv == &block_raw);
	co_block_node_unref(n);
	check_int(open_trust(plain, &block_trust_strict, 0, &n, &err), -EINVAL);
	check(strstr(err.text, "name the format"));
	check_int(open_trust(path, &block_trust_strict, 0, &n, &err), 0);
	co_block_node_unref(n);
}

/* Under strict trust a declared format is held against the content. */
CO_TEST(test_declared_format)
{
	_cleanup_(conf_freep) struct conf *spec = NULL, *right = NULL;
	const char *path = layer_make("declared", NULL, NULL, 8);
	struct block_open_opts o = {.trust = &block_trust_strict};
	struct error err = ERROR_INIT;
	struct block_node *n;

	check_int(block_spec_from_name(path, "raw", &spec, &err), 0);
	check_int(co_block_open(spec, &o, &n, &err), -EINVAL);
	check(strstr(err.text, "was to be opened as raw, but its content is layer"));
	o.trust = &block_trust_local;
	check_int(co_block_open(spec, &o, &n, &err), 0);
	co_block_node_unref(n);
	o.trust = &block_trust_strict;
	check_int(block_spec_from_name(path, "layer", &right, &err), 0);
	check_int(co_block_open(right, &o, &n, &err), 0);
	co_block_node_unref(n);
}

/* What a spec says of a node holds through probing and reopening. */
CO_TEST(test_own_options)
{
	const char *path = layer_make("own", NULL, NULL, 8);
	struct error err = ERROR_INIT;
	struct block_open_opts o;
	struct block_node *n;

	n = must_open(test_printf("file.filename=%s,file.cache.direct=on", path), 0);
	check(n->drv == &layer_driver);
	check_int(n->child[BLOCK_ROLE_FILE]->opts.cache, BLOCK_CACHE_NONE);
	o = n->opts;
	o.flags |= BLOCK_OPEN_RDWR;
	check_int(co_block_reopen(n, &o, &err), 0);
	check_int(n->child[BLOCK_ROLE_FILE]->opts.cache, BLOCK_CACHE_NONE);
	write_fill(n, 0, 512, 1);
	co_block_node_unref(n);

	n = must_open(test_printf("driver=layer,file.filename=%s,file.read-only=on", path), 0);
	o = n->opts;
	o.flags |= BLOCK_OPEN_RDWR;
	check_int(co_block_reopen(n, &o, &err), -EPERM);
	check(!(n->opts.flags & BLOCK_OPEN_RDWR));
	co_block_node_unref(n);
}

/* A guest must not turn a disk whose format was guessed into another format. */
CO_TEST(test_probed_raw_guard)
{
	const char *path = test_path("guard");
	FILE *f = fopen(path, "w");
	char head[4096] = LAYER_MAGIC;
	struct block_node *n;
	char *explicit;

	check(f && !ftruncate(fileno(f), 65536) && !fclose(f));
	n = must_open(path, RW);
	check_int(co_block_pwrite(n, 0, head, 512), -EPERM);
	check_int(co_block_pwrite(n, 0, head, 4096), -EPERM);
	/* Piece by piece, too. */
	check_int(co_block_pwrite(n, 0, head, 7), 0);
	check_int(co_block_pwrite(n, 7, head + 7, 1), -EPERM);
	check_int(co_block_pwrite(n, 7, head + 7, 505), -EPERM);
	head[0] = 'x';
	check_int(co_block_pwrite(n, 0, head, 512), 0);
	check_int(co_block_pwrite(n, 4096, LAYER_MAGIC, 8), 0);
	co_block_node_unref(n);

	explicit = test_printf("driver=raw,file.filename=%s", path);
	n = must_open(explicit, RW);
	check_int(co_block_pwrite(n, 0, LAYER_MAGIC, 8), 0);
	co_block_node_unref(n);
}

CO_TEST(test_chain)
{
	struct block_node *n;
	struct block_extent e;

	layer_make("base", NULL, NULL, 8);
	layer_make("mid", "base", "layer", 16);
	layer_make("top", "mid", NULL, 16);
	n = must_open(test_path("base"), RW);
	write_fill(n, 0, 1024, 1);
	co_block_node_unref(n);
	n = must_open(test_path("mid"), RW);
	write_fill(n, 512, 512, 2);
	co_block_node_unref(n);
	n = must_open(test_path("top"), RW);
	write_fill(n, 5 * 512, 512, 3);
	check(reads_fill(n, 0, 512, 1));
	check(reads_fill(n, 512, 512, 2));
	check(reads_zero(n, 1024, 512));
	check(reads_fill(n, 5 * 512, 512, 3));
	check(reads_zero(n, 8 * 512, 8 * 512));
	check(!(block_backing(n)->opts.flags & BLOCK_OPEN_RDWR));
	check_int(co_block_pwrite(block_backing(n), 0, "x", 1), -EROFS);

	check_int(co_block_extent_chain(n, NULL, 0, 8192, &e), 0);
	check_int(e.depth, 2);
	check_int(e.len, 512);
	check(e.flags & BLOCK_EXTENT_DATA);
	check_int(co_block_extent_chain(n, NULL, 512, 8192, &e), 0);
	check_int(e.depth, 1);
	check_int(e.len, 512);
	/* Nowhere allocated, and beyond the short base. */
	check_int(co_block_extent_chain(n, NULL, 1024, 8192, &e), 0);
	check_int(e.len, 3 * 512);
	check(e.flags & BLOCK_EXTENT_ZERO);
	check_int(co_block_extent_chain(n, NULL, 8 * 512, 8192, &e), 0);
	check_int(e.len, 8 * 512);
	check(e.flags & BLOCK_EXTENT_ZERO);
	check(e.flags & BLOCK_EXTENT_EOF);
	check(!(e.flags & BLOCK_EXTENT_ALLOCATED));
	check_int(e.depth, 1); /* the zeroes are the layer's that is longer than its backing */
	/* Only what differs from the base: its own sector is not. */
	check_int(co_block_extent_chain(n, block_backing(block_backing(n)), 0, 512, &e), 0);
	check(!(e.flags & (BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_ZERO)));
	check_int(co_block_node_unref(n), 0);
}

CO_TEST(test_names)
{
	static const char *const foreign[] = {"json:{\"driver\":\"raw\"}", "nbd:localhost:10809",
		"file:/etc/passwd", "nbd+unix:///x"};
	struct error err = ERROR_INIT;
	struct block_node *n;

	for (size_t i = 0; i < ARRAY_SIZE(foreign); i++) {
		const char *path = layer_make("foreign", foreign[i], "raw", 8);

		check_int(open_trust(path, &block_trust_local, 0, &n, &err), -EPERM);
		check(strstr(err.text, "--trust-image-names"));
		check_int(open_trust(path, &block_trust_strict, 0, &n, &err), -EPERM);
		check_int(open_trust(path, &block_trust_local, BLOCK_OPEN_NO_BACKING, &n, &err), 0);
		co_block_node_unref(n);
	}
	layer_make("plainbase", NULL, NULL, 8);
	layer_make("plaintop", "plainbase", "layer", 8);
	check_int(open_trust(test_path("plaintop"), &block_trust_strict, 0, &n, &err), -EPERM);
	check(strstr(err.text, "untrusted"));
	layer_make("jsontop",
		test_printf("json:{\"driver\":\"layer\",\"file\":{\"driver\":"
			    "\"file\",\"filename\":\"%s/plainbase\"}}",
			test_dir),
		NULL, 8);
	check_int(open_trust(test_path("jsontop"), &block_trust_local, 0, &n, &err), -EPERM);
	check_int(open_trust(test_path("jsontop"), &block_trust_all, 0, &n, &err), 0);
	check(block_backing(n)->drv == &layer_driver);
	co_block_node_unref(n);

	layer_make("lost", "gone", "raw", 8);
	check_int(open_trust(test_path("lost"), &block_trust_local, 0, &n, &err), -ENOENT);
	check(strstr(err.text, "Could not open backing file: Could not open '"));
}

CO_TEST(test_override)
{
	struct error err = ERROR_INIT;
	struct block_node *n;
	char text[1024];

	layer_make("o-base", NULL, NULL, 8);
	layer_make("o-other", NULL, NULL, 4);
	layer_make("o-top", "o-base", NULL, 8);
	snprintf(text, sizeof(text),
		"driver=layer,file.filename=%s/o-top,"
		"backing.driver=layer,backing.file.filename=%s/o-other",
		test_dir, test_dir);
	n = must_open(text, 0);
	check_int(block_size(block_backing(n)), 4 * 512);
	co_block_node_unref(n);
	/* Options laid over the name in the image. */
	snprintf(text, sizeof(text), "driver=layer,file.filename=%s/o-top,backing.driver=raw",
		test_dir);
	n = must_open(text, 0);
	check(block_backing(n)->drv == &block_raw);
	co_block_node_unref(n);
	snprintf(text, sizeof(text),
		"json:{\"driver\":\"layer\",\"backing\":null,"
		"\"file\":{\"driver\":\"file\",\"filename\":\"%s/o-top\"}}",
		test_dir);
	check_int(open_trust(text, &block_trust_local, 0, &n, &err), 0);
	check(!block_backing(n));
	co_block_node_unref(n);
}

CO_TEST(test_loops_and_depth)
{
	struct block_trust shallow = block_trust_local;
	struct error err = ERROR_INIT;
	struct block_node *n;
	char name[32], below[32];

	layer_make("loop-a", "loop-b", "layer", 8);
	layer_make("loop-b", "loop-a", "layer", 8);
	check_int(open_trust(test_path("loop-a"), &block_trust_local, 0, &n, &err), -ELOOP);
	check(strstr(err.text, "creates an infinite loop"));
	layer_make("self", "./self", "layer", 8);
	check_int(open_trust(test_path("self"), &block_trust_local, 0, &n, &err), -ELOOP);

	layer_make("deep-0", NULL, NULL, 8);
	for (int i = 1; i <= 200; i++) {
		snprintf(name, sizeof(name), "deep-%d", i);
		snprintf(below, sizeof(below), "deep-%d", i - 1);
		layer_make(name, below, "layer", 8);
	}
	check_int(open_trust(test_path("deep-200"), &block_trust_local, 0, &n, &err), 0);
	check_int(co_block_node_unref(n), 0);
	shallow.max_chain = 100;
	check_int(open_trust(test_path("deep-100"), &shallow, 0, &n, &err), 0);
	check_int(co_block_node_unref(n), 0);
	check_int(open_trust(test_path("deep-101"), &shallow, 0, &n, &err), -ELOOP);
	check(strstr(err.text, "100 layers"));
}

CO_TEST(test_paths)
{
	static const char *const cases[][3] = {
		{"/a/b/img", "base", "/a/b/base"},
		{"img", "base", "base"},
		{"a/img", "../base", "a/../base"},
		{"/a/img", "/base", "/base"},
		{"a/img", "nbd://x/y", "nbd://x/y"},
		{"nbd://host/img", "base", "nbd://host/base"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char *p = block_path_join(cases[i][0], cases[i][1]);

		check(p && !strcmp(p, cases[i][2]));
		mem_free(p);
	}
}

CO_TEST(test_copy_on_read)
{
	struct block_extent e;
	struct block_node *n;

	layer_make("cor-base", NULL, NULL, 16);
	layer_make("cor-top", "cor-base", "layer", 16);
	n = must_open(test_path("cor-base"), RW);
	write_fill(n, 0, 8192, 1);
	co_block_node_unref(n);
	n = must_open(test_path("cor-top"), RW | BLOCK_OPEN_COPY_ON_READ);
	check(n->drv == &block_copy_on_read);
	check(reads_fill(n, 700, 100, 1));
	check_int(co_block_extent(n, 0, 8192, &e), 0);
	check_int(e.len, 512);
	check(!(e.flags & BLOCK_EXTENT_ALLOCATED));
	check_int(co_block_extent(n, 512, 8192, &e), 0);
	check_int(e.len, 512);
	check(e.flags & BLOCK_EXTENT_ALLOCATED);
	check(reads_fill(n, 0, 8192, 1));
	check_int(co_block_extent(n, 0, 8192, &e), 0);
	check_int(e.len, 8192);
	check(e.flags & BLOCK_EXTENT_ALLOCATED);
	co_block_node_unref(n);
}

/* Every allocation of an open fails once: no crash, no leak (the sanitizer looks), -ENOMEM. */
CO_TEST(test_no_memory)
{
	struct error err = ERROR_INIT;
	struct block_node *n;
	int r = -ENOMEM;

	layer_make("oom-base", NULL, NULL, 8);
	layer_make("oom-top", "oom-base", NULL, 8);
	for (uint64_t k = 1; r; k++) {
		mem_fail_at(k, false);
		r = open_trust(test_path("oom-top"), &block_trust_local, RW, &n, &err);
		mem_fail_at(0, false);
		check(!r || r == -ENOMEM);
		check(k < 10000);
	}
	check_int(co_block_node_unref(n), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_specs),
		cmocka_unit_test(test_probe),
		cmocka_unit_test(test_declared_format),
		cmocka_unit_test(test_own_options),
		cmocka_unit_test(test_probed_raw_guard),
		cmocka_unit_test(test_chain),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_override),
		cmocka_unit_test(test_loops_and_depth),
		cmocka_unit_test(test_paths),
		cmocka_unit_test(test_copy_on_read),
		cmocka_unit_test(test_no_memory),
	};

	return cmocka_run_group_tests(tests, layer_setup, test_teardown);
}
