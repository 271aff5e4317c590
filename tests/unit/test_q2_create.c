/* SPDX-License-Identifier: MIT */
/* Creating qcow2 images: layouts, refusals, the order of writes, incomplete targets, measuring. */
#include "tests/unit/q2ops.h"

static const char *const shapes[] = {
	"size=0",
	"size=1",
	"size=10M",
	"size=10M,compat=0.10",
	"size=1G,compat=v3,lazy_refcounts=on",
	"size=3M,cluster_size=512",
	"size=3M,cluster_size=512,refcount_bits=64",
	"size=3M,cluster_size=512,refcount_bits=1",
	"size=100M,cluster_size=2M,refcount_bits=1",
	"size=10M,extended_l2=on,cluster_size=16k",
	"size=10M,compression_type=zstd,compression_level=19",
	"size=4T",
	"size=5M,nocow=on,backing_file=base.img,backing_fmt=raw",
};

/* Every image opens, is clean, and with preallocation has just the length that measure tells. */
CO_TEST(layouts)
{
	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct block_node *file = create_mem(shapes[i]);

		check_clean(file);
		close_image(file);
	}
}

CO_TEST(preallocated)
{
	static const char *const modes[] = {"metadata", "falloc", "full"};

	for (unsigned i = 0; i < ARRAY_SIZE(shapes) - 2; i++) {
		for (unsigned m = 0; m < ARRAY_SIZE(modes); m++) {
			_cleanup_(conf_freep) struct conf *conf = NULL;
			struct block_measure want;
			struct block_check c;
			struct block_node *file, *n;
			char opts[160];

			snprintf(opts, sizeof(opts), "%s,preallocation=%s", shapes[i], modes[m]);
			file = create_mem(opts);
			check_int(conf_parse_options(shapes[i], NULL, &conf, NULL), 0);
			check_int(co_q2_measure(conf, NULL, 0, &want, NULL), 0);
			check_int(block_size(file), want.fully_allocated);
			c = check_file(file, 0, 0, NULL);
			check_int(c.corruptions + c.leaks + c.check_errors, 0);
			check_int(c.allocated_clusters, c.total_clusters);
			check_int(c.fragmented_clusters, 0);
			check_int(c.image_end, block_size(file));
			n = open_image(file, NULL);
			if (n->size > 4096) {
				check(reads_zero(n, n->size - 4096, 4096));
				write_fill(n, 512, 3000, i);
				check(reads_fill(n, 512, 3000, i));
			}
			close_image(n);
			check_clean(file);
			close_image(file);
		}
	}
}

/* Numbers as the known tool prints them. */
CO_TEST(measured)
{
	static const struct {
		const char *opts;
		uint64_t size, required, full;
	} want[] = {
		{"", 0, 196608, 196608},
		{"", 1, 327680, 393216},
		{"", 100000, 327680, 458752},
		{"", 1 * GiB, 393216, 1074135040},
		{"", 4 * TiB, 671350784, 4398717861888},
		{"", 1024 * TiB, 171825102848, 1126071731945472},
		{"preallocation=full", 1 * GiB, 1074135040, 1074135040},
		{"preallocation=metadata", 1 * GiB, 393216, 1074135040},
		{"cluster_size=512", 1 * GiB, 21385216, 1095127040},
		{"cluster_size=2M", 1 * GiB, 10485760, 1084227584},
		{"cluster_size=512,refcount_bits=64", 1 * GiB, 34629120, 1108370944},
		{"extended_l2=on", 1 * GiB, 524288, 1074266112},
		{"compat=0.10", 1 * GiB, 393216, 1074135040},
		{"refcount_bits=1", 1 * GiB, 393216, 1074135040},
	};
	struct block_measure m;

	for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
		_cleanup_(conf_freep) struct conf *conf = NULL;

		check_int(conf_parse_options(want[i].opts, NULL, &conf, NULL), 0);
		check_int(co_q2_measure(conf, NULL, want[i].size, &m, NULL), 0);
		check_int(m.required, want[i].required);
		check_int(m.fully_allocated, want[i].full);
	}
	check_int(co_q2_measure(NULL, NULL, 3072 * TiB, &m, NULL), -EFBIG);
}

/* From a disk: its data counts, zeroes and holes do not. */
CO_TEST(measured_from_source)
{
	struct block_node *file = create_mem("size=10G"), *n = open_image(file, NULL);
	struct block_measure m;

	write_fill(n, 0, 1 * MiB, 1);
	write_fill(n, 5 * GiB, 65 * KiB, 1);
	check_int(co_block_zero(n, 1 * GiB, 1 * GiB, 0), 0);
	check_int(co_q2_measure(NULL, n, 0, &m, NULL), 0);
	check_int(m.required, 3080192);
	check_int(m.fully_allocated, 10739318784);
	check(m.has_bitmaps);
	close_image(n);
	close_image(file);
}

CO_TEST(refusals)
{
	static const struct {
		const char *opts;
		int error;
		const char *word;
	} bad[] = {
		{"", -EINVAL, "size"},
		{"size=1M,cluster_size=100", -EINVAL, "power of two between 512 and 2048k"},
		{"size=1M,cluster_size=256", -EINVAL, "power of two between 512 and 2048k"},
		{"size=1M,cluster_size=4M", -EINVAL, "power of two between 512 and 2048k"},
		{"size=1M,refcount_bits=0", -EINVAL, "may not exceed 64 bits"},
		{"size=1M,refcount_bits=3", -EINVAL, "may not exceed 64 bits"},
		{"size=1M,refcount_bits=128", -EINVAL, "may not exceed 64 bits"},
		{"size=1M,compat=0.11", -EINVAL, "0.11"},
		{"size=1M,compat=0.10,refcount_bits=8", -EINVAL, "compatibility level 1.1"},
		{"size=1M,compat=0.10,lazy_refcounts=on", -EINVAL, "compatibility level 1.1"},
		{"size=1M,compat=0.10,extended_l2=on", -EINVAL, "compatibility level 1.1"},
		{"size=1M,compat=0.10,compression_type=zstd", -EINVAL, "compatibility level 1.1"},
		{"size=1M,extended_l2=on,cluster_size=8k", -EINVAL, "at least 16384 bytes"},
		{"size=1M,compression_type=foo", -EINVAL, "foo"},
		{"size=1M,compression_level=10", -EINVAL, "0 to 9"},
		{"size=1M,preallocation=bar", -EINVAL, "bar"},
		{"size=1M,preallocation=full,backing_file=a,backing_fmt=raw", -EINVAL,
			"extended_l2 is on"},
		{"size=1M,backing_fmt=raw", -EINVAL, "backing_file"},
		{"size=129G,cluster_size=512", -EFBIG, "larger cluster size"},
		{"size=7E", -EFBIG, "larger cluster size"},
		{"size=1M,encryption=on", -ENOTSUP, "encrypted"},
		{"size=1M,encrypt.format=luks", -ENOTSUP, "encrypted"},
		{"size=1M,data_file=x", -ENOTSUP, "external data file"},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		struct error err = ERROR_INIT;
		struct mem_content *c;
		struct block_node *file;

		check_int(mem_content_new(0, &c), 0);
		file = q2_test_mem(c);
		check_int(try_create_on(file, bad[i].opts, &err), bad[i].error);
		if (!strstr(err.text, bad[i].word)) {
			fprintf(stderr, "%s: %s\n", bad[i].opts, err.text);
			abort();
		}
		check_int(block_size(file), 0);
		close_image(file);
	}
}

static struct block_node *recorded_mem(uint64_t size)
{
	char text[80];

	snprintf(text, sizeof(text), "driver=record,file.driver=mem,file.size=%llu",
		(unsigned long long)size);
	return must_open(text, BLOCK_OPEN_RDWR);
}

/* Sector 0 gets its magic in the last write, with a barrier before it; old content of a device
 * loses its magic first. */
CO_TEST(magic_last)
{
	static const uint64_t old_sizes[] = {0, 4 * MiB};

	for (unsigned i = 0; i < ARRAY_SIZE(old_sizes); i++) {
		struct block_node *file = recorded_mem(old_sizes[i]);
		const struct record_event *e;
		size_t n, last_write = 0, magics = 0;

		if (old_sizes[i])
			poke_be64(file, 0, (uint64_t)Q2_MAGIC << 32 | 3);
		record_clear(file);
		check_int(
			try_create_on(file, "size=1M,cluster_size=4k,preallocation=metadata", NULL),
			0);
		e = record_log(file, &n);
		for (size_t k = 0; k < n; k++) {
			if (e[k].op != RECORD_WRITE && e[k].op != RECORD_ZERO)
				continue;
			last_write = k;
			magics += e[k].op == RECORD_WRITE && e[k].off == 0 &&
				load_be32(e[k].data) == Q2_MAGIC;
			if (old_sizes[i] && k == 0)
				check(e[k].off == 0 && e[k].op == RECORD_ZERO);
		}
		check_int(magics, 1);
		check_int(e[last_write].off, 0);
		check_int(e[last_write].len, 512);
		check_int(e[last_write - 1].op, RECORD_FLUSH);
		check_int(e[n - 1].op, RECORD_FLUSH);
		close_image(file);
	}
}

/* A target that convert fills is no image before it is finished, whatever else is written. */
CO_TEST(incomplete)
{
	struct block_node *file = create_mem("size=8M,cluster_size=512,incomplete=on"), *n;
	struct error err = ERROR_INIT;
	uint32_t magic;

	check(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, &err) < 0);
	n = q2_test_open(block_node_ref(file), "incomplete=on", NULL);
	/* Enough for new refcount blocks and a larger refcount table, which writes the header. */
	write_fill(n, 0, 6 * MiB, 1);
	check_int(co_block_flush(n), 0);
	check_int(co_block_pread(file, 0, &magic, 4), 0);
	check_int(magic, 0);
	check_int(q2_image_ops.co_finalize(n, NULL), 0);
	close_image(n);
	check_clean(file);
	n = open_image(file, NULL);
	check(reads_fill(n, 0, 6 * MiB, 1));
	check_int(q2_image_ops.co_finalize(n, NULL), 0);
	close_image(n);
	close_image(file);

	file = create_mem("size=1M,incomplete=on");
	n = q2_test_open(block_node_ref(file), "incomplete=on", NULL);
	write_fill(n, 0, 65536, 1);
	close_image(n); /* given up */
	check(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, NULL) < 0);
	close_image(file);
}

/* Every k-th request and allocation fails: an error, and no magic in the file. */
CO_TEST(failures)
{
	for (uint64_t k = 1;; k++) {
		struct block_node *n = must_open("driver=fault,file.driver=mem,file.size=0", RW);
		struct fault_rule rule = {.ops = FAULT_ANY, .at = k, .error = -ENOSPC};
		uint32_t magic = 0;
		int r;

		check_int(fault_add(n, &rule), 0);
		r = try_create_on(n, "size=1M,cluster_size=4k,preallocation=falloc", NULL);
		fault_clear(n);
		if (block_size(n) >= 4)
			check_int(co_block_pread(n, 0, &magic, 4), 0);
		co_block_node_unref(n);
		if (r == 0)
			break;
		check_int(r, -ENOSPC);
		/* Only the last barrier may fail with the magic there. */
		if (magic)
			check(k > 5);
	}
	for (uint64_t k = 1;; k++) {
		_cleanup_(conf_freep) struct conf *conf = NULL;
		struct block_create c = {.filename = "t", .trust = &block_trust_local};
		struct mem_content *content;
		int r;

		check_int(conf_parse_options(
				  "size=1M,backing_file=b,backing_fmt=raw", NULL, &conf, NULL),
			0);
		check_int(mem_content_new(0, &content), 0);
		c.file = q2_test_mem(content);
		c.opts = conf;
		mem_fail_at(k, false);
		r = co_q2_create(&c, NULL);
		mem_fail_at(0, false);
		co_block_node_unref(c.file);
		if (r == 0)
			break;
		check_int(r, -ENOMEM);
	}
}

/* What info tells, and a new backing name. */
CO_TEST(info_and_backing)
{
	struct block_node *file = create_mem("size=1M,extended_l2=on,compression_type=zstd"), *n;
	struct block_image_info info;
	static const char *const keys[] = {"compat", "compression-type", "lazy-refcounts",
		"refcount-bits", "corrupt", "extended-l2"};

	n = open_image(file, NULL);
	check_int(q2_image_ops.co_info(n, &info, NULL), 0);
	check_int(info.nitems, ARRAY_SIZE(keys));
	for (unsigned i = 0; i < ARRAY_SIZE(keys); i++)
		check(!strcmp(info.items[i].key, keys[i]));
	check(!strcmp(info.items[1].long_str, "zstd"));
	check_int(info.items[3].num, 16);
	check_int(info.items[5].num, 1);
	check(!info.backing_name);
	check_int(q2_image_ops.co_set_backing(n, "other.img", "raw", NULL), 0);
	check_int(q2_image_ops.co_info(n, &info, NULL), 0);
	check(!strcmp(info.backing_name, "other.img") && !strcmp(info.backing_format, "raw"));
	close_image(n);
	check_int(q2_test_try_open(
			  block_node_ref(file), NULL, RW | BLOCK_OPEN_NO_BACKING, NULL, &n, NULL),
		0);
	check_int(q2_image_ops.co_info(n, &info, NULL), 0);
	check(!strcmp(info.backing_name, "other.img") && !strcmp(info.backing_format, "raw"));
	check_int(q2_image_ops.co_set_backing(n, NULL, NULL, NULL), 0);
	close_image(n);
	n = open_image(file, NULL);
	check_int(q2_image_ops.co_info(n, &info, NULL), 0);
	check(!info.backing_name && !info.backing_format);
	close_image(n);
	check_clean(file);
	close_image(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(layouts),
		cmocka_unit_test(preallocated),
		cmocka_unit_test(measured),
		cmocka_unit_test(measured_from_source),
		cmocka_unit_test(refusals),
		cmocka_unit_test(magic_last),
		cmocka_unit_test(incomplete),
		cmocka_unit_test(failures),
		cmocka_unit_test(info_and_backing),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
