/* SPDX-License-Identifier: MIT */
/* The file driver on a real file system: cache modes, ragged ends, holes, space, errors. */
#include "tests/unit/block.h"
#include <fcntl.h>
#include <sys/stat.h>

#define RW (BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP)

static void make_file(const char *path, uint64_t size)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0644);

	check(fd >= 0 && !ftruncate(fd, (off_t)size));
	close(fd);
}

static uint64_t disk_bytes(const char *path)
{
	struct stat st;

	check(!stat(path, &st));
	return (uint64_t)st.st_blocks * 512;
}

static const char *const caches[] = {"", ",cache.direct=on", ",cache.direct=on,cache.no-flush=off",
	",cache.writeback=off", ",cache.direct=on,cache.writeback=off", ",cache.no-flush=on"};

static struct block_node *open_cache(const char *path, const char *cache, uint32_t flags)
{
	char text[512];

	snprintf(text, sizeof(text), "driver=raw,file.driver=file,file.filename=%s%s", path, cache);
	return must_open(text, flags);
}

CO_TEST(test_cache_modes)
{
	const char *path = test_path("modes");

	for (size_t i = 0; i < ARRAY_SIZE(caches); i++) {
		struct block_node *n;

		make_file(path, MiB);
		n = open_cache(path, caches[i], RW);
		write_fill(n, 0, 65536, 1);
		write_fill(n, 65536 + 17, 300000, 2);
		write_fill(n, MiB - 100, 100, 3);
		check(reads_fill(n, 0, 65536, 1));
		check(reads_zero(n, 65536, 17));
		check(reads_fill(n, 65536 + 17, 300000, 2));
		check(reads_fill(n, MiB - 100, 100, 3));
		check(reads_zero(n, 800000, 1000));
		check_int(co_block_zero(n, 70000, 10000, BLOCK_IO_FUA), 0);
		check(reads_zero(n, 70000, 10000));
		check(reads_fill(n, 80000, 100, 2));
		check_int(co_block_flush(n), 0);
		check_int(co_block_node_unref(n), 0);
		/* What one mode wrote another one reads. */
		n = open_cache(path, "", 0);
		check(reads_fill(n, 80000, 200000, 2));
		check(reads_zero(n, 70000, 10000));
		check_int(co_block_node_unref(n), 0);
	}
}

/* A file whose length fits no block keeps its length, and its last bytes can be written. */
CO_TEST(test_ragged_end)
{
	const char *path = test_path("ragged");

	for (size_t i = 0; i < 2; i++) {
		struct block_node *n;
		struct stat st;

		make_file(path, 5 * 4096 + 3 * 512);
		n = open_cache(path, caches[i], RW);
		check_int(block_size(n), 5 * 4096 + 3 * 512);
		write_fill(n, 0, block_size(n), 1);
		check(reads_fill(n, 0, block_size(n), 1));
		write_fill(n, 5 * 4096 + 512, 700, 2);
		check(reads_fill(n, 5 * 4096, 512, 1));
		check(reads_fill(n, 5 * 4096 + 512, 700, 2));
		check(reads_fill(n, 5 * 4096 + 1212, 324, 1));
		co_block_node_unref(n);
		check(!stat(path, &st) && st.st_size == 5 * 4096 + 3 * 512);

		/* Odd length: shown as whole sectors, grown only by writing there. */
		make_file(path, 1000);
		n = open_cache(path, caches[i], RW);
		check_int(block_size(n), 1024);
		check(reads_zero(n, 990, 34));
		write_fill(n, 0, 1000, 4);
		check(!stat(path, &st) && st.st_size == 1000);
		write_fill(n, 512, 512, 5);
		check(reads_fill(n, 0, 512, 4));
		check(reads_fill(n, 512, 512, 5));
		co_block_node_unref(n);
		check(!stat(path, &st) && st.st_size == 1024);
	}
}

CO_TEST(test_growth)
{
	const char *path = test_path("growth");

	for (size_t i = 0; i < 2; i++) {
		struct block_node *n;
		char text[512];

		make_file(path, 0);
		snprintf(text, sizeof(text), "driver=file,filename=%s%s", path, caches[i]);
		n = must_open(text, RW | BLOCK_OPEN_STORE);
		write_fill(n, 0, 100, 1);
		write_fill(n, 100, 5000, 1);
		write_fill(n, 10000, 4096, 1);
		check_int(block_size(n), 14096);
		check(reads_fill(n, 0, 5100, 1));
		check(reads_zero(n, 5100, 4900));
		check(reads_fill(n, 10000, 4096, 1));
		check(reads_zero(n, 14096, 8192));
		check_int(co_block_zero(n, 12000, 100000, 0), 0);
		check_int(block_size(n), 112000);
		check_int(co_block_zero(n, 112000, 5001, BLOCK_IO_UNMAP), 0);
		check_int(block_size(n), 117001);
		check(reads_zero(n, 12000, 105001));
		check(reads_fill(n, 10000, 2000, 1));
		co_block_node_unref(n);
		/* As a disk, a file keeps its size. */
		n = must_open(text, RW);
		check_int(co_block_pwrite(n, 117001, "x", 1), -EIO);
		check_int(co_block_pread(n, 117000, text, 2), -EIO);
		co_block_node_unref(n);
	}
}

CO_TEST(test_holes)
{
	const char *path = test_path("holes");
	struct block_node *n;
	struct block_extent e;
	uint64_t used;

	make_file(path, 8 * MiB);
	n = open_cache(path, "", RW);
	write_fill(n, MiB, MiB, 1);
	write_fill(n, 4 * MiB, 65536, 1);
	check_int(co_block_extent(n, 0, 8 * MiB, &e), 0);
	check_int(e.len, MiB);
	check(e.flags & BLOCK_EXTENT_ZERO);
	check(!(e.flags & BLOCK_EXTENT_DATA));
	for (uint64_t off = MiB; off < 2 * MiB; off += 65536) {
		check_int(co_block_extent(n, off, 7 * MiB, &e), 0);
		check_int(e.len, 2 * MiB - off);
		check(e.flags & BLOCK_EXTENT_DATA);
		check(e.flags & BLOCK_EXTENT_MAPPED);
		check_int(e.host_off, off);
		check(e.host == n->child[BLOCK_ROLE_FILE]);
	}
	check_int(co_block_extent(n, 5 * MiB, 8 * MiB, &e), 0);
	check_int(e.len, 3 * MiB);
	check(e.flags & BLOCK_EXTENT_EOF);
	/* What is punched is forgotten at once. */
	check_int(co_block_discard(n, MiB, 512 * KiB, 0), 0);
	check_int(co_block_extent(n, 0, 8 * MiB, &e), 0);
	check_int(e.len, MiB + 512 * KiB);
	check_int(co_block_actual_size(n, &used), 0);
	check_int(used, 512 * KiB + 65536);
	/* What is written into a hole is seen at once. */
	write_fill(n, 0, 4096, 2);
	check_int(co_block_extent(n, 0, 8 * MiB, &e), 0);
	check(e.flags & BLOCK_EXTENT_DATA);
	check_int(e.len, 4096);
	/* Zeroes without unmap keep the space, with unmap they free it. */
	check_int(co_block_zero(n, MiB + 512 * KiB, 512 * KiB, 0), 0);
	check(disk_bytes(path) >= 512 * KiB + 65536);
	check_int(co_block_zero(n, MiB + 512 * KiB, 512 * KiB, BLOCK_IO_UNMAP), 0);
	check(disk_bytes(path) < 512 * KiB);
	co_block_node_unref(n);
}

CO_TEST(test_resize)
{
	const char *path = test_path("resize");
	struct block_resize r = {.size = 2 * MiB, .prealloc = BLOCK_PREALLOC_FALLOC};
	struct error err = ERROR_INIT;
	struct block_node *n;

	make_file(path, MiB);
	n = open_cache(path, "", RW);
	write_fill(n, 0, MiB, 1);
	check_int(co_block_resize(n, &r, &err), 0);
	check_int(block_size(n), 2 * MiB);
	check(disk_bytes(path) >= 2 * MiB);
	check(reads_zero(n, MiB, MiB));
	r.size = 3 * MiB;
	r.prealloc = BLOCK_PREALLOC_FULL;
	check_int(co_block_resize(n, &r, &err), 0);
	check(disk_bytes(path) >= 3 * MiB);
	r.size = 4 * MiB;
	r.prealloc = BLOCK_PREALLOC_METADATA;
	check_int(co_block_resize(n, &r, &err), -ENOTSUP);
	check_int(block_size(n), 3 * MiB);
	r = (struct block_resize){.size = 4096, .shrink = true};
	check_int(co_block_resize(n, &r, &err), 0);
	check_int(block_size(n), 4096);
	check(reads_fill(n, 0, 4096, 1));
	co_block_node_unref(n);
}

CO_TEST(test_create)
{
	_cleanup_(conf_freep) struct conf *opts = NULL;
	struct error err = ERROR_INIT;
	const char *path = test_path("created");
	mode_t old = umask(027);
	struct stat st;

	check_int(conf_parse_options("size=1000,preallocation=full", NULL, &opts, &err), 0);
	check_int(co_block_create("raw", path, opts, &block_trust_local, &err), 0);
	umask(old);
	check(!stat(path, &st) && st.st_size == 1024 && (st.st_mode & 0777) == 0640);
	check_int(conf_set(opts, "preallocation", "off"), 0);
	check_int(co_block_create("raw", test_path("no/such/dir"), opts, &block_trust_local, &err),
		-ENOENT);
	check(strstr(err.text, "Could not create '") && strstr(err.text, "No such file"));
	check_int(conf_set(opts, "preallocation", "metadata"), 0);
	check_int(co_block_create("raw", test_path("half"), opts, &block_trust_local, &err),
		-ENOTSUP);
	check(stat(test_path("half"), &st) && errno == ENOENT);
	check_int(co_block_create("nonsense", path, opts, &block_trust_local, &err), -EINVAL);
	check(!strcmp(err.text, "Unknown file format 'nonsense'"));
}

/* Options that the format refuses cost no file, neither a new one nor one that is there. */
CO_TEST(test_create_refused)
{
	const char *path = test_path("refused.qcow2");
	struct error err = ERROR_INIT;
	struct stat st;

	for (int there = 0; there < 2; there++) {
		_cleanup_(conf_freep) struct conf *bad = NULL, *good = NULL;

		check_int(conf_parse_options("size=1M,cluster_size=3", NULL, &bad, &err), 0);
		check_int(conf_parse_options("size=1M,cluster_size=4k", NULL, &good, &err), 0);
		check_int(co_block_create("qcow2", path, bad, &block_trust_local, &err), -EINVAL);
		check((stat(path, &st) == 0) == there && (!there || st.st_size > 0));
		if (!there)
			check_int(
				co_block_create("qcow2", path, good, &block_trust_local, &err), 0);
	}
}

CO_TEST(test_open_errors)
{
	struct error err = ERROR_INIT;
	struct block_node *n;

	check_int(try_open(test_path("missing"), 0, &n, &err), -ENOENT);
	check(strstr(err.text, "Could not open '") &&
		strstr(err.text, "': No such file or directory"));
	check_int(try_open("/", 0, &n, &err), -EINVAL);
	check(!strcmp(err.text, "'file' driver requires '/' to be a regular file"));
	check_int(try_open("driver=host_device,filename=/etc/passwd", 0, &n, &err), -EINVAL);
	check_int(try_open("nosuch:thing", 0, &n, &err), -ENOENT);
	check(!strcmp(err.text, "Unknown protocol 'nosuch'"));
	check_int(try_open("driver=file", 0, &n, &err), -EINVAL);
	n = must_open("/dev/null", BLOCK_OPEN_RDWR);
	check(n->child[BLOCK_ROLE_FILE]->drv == &block_host_device);
	co_block_node_unref(n);
}

CO_TEST(test_reopen)
{
	const char *path = test_path("reopen");
	struct block_open_opts o;
	struct error err = ERROR_INIT;
	struct block_node *n;

	make_file(path, 65536);
	n = open_cache(path, "", 0);
	check_int(co_block_pwrite(n, 0, "x", 1), -EROFS);
	o = n->opts;
	o.flags |= BLOCK_OPEN_RDWR;
	check_int(co_block_reopen(n, &o, &err), 0);
	write_fill(n, 0, 5000, 1);
	o.cache = BLOCK_CACHE_NONE;
	check_int(co_block_reopen(n, &o, &err), 0);
	check(n->child[BLOCK_ROLE_FILE]->caps.align > 1);
	write_fill(n, 5000, 5000, 1);
	o.flags &= ~(uint32_t)BLOCK_OPEN_RDWR;
	check_int(co_block_reopen(n, &o, &err), 0);
	check(reads_fill(n, 0, 10000, 1));
	check_int(co_block_pwrite(n, 0, "x", 1), -EROFS);
	co_block_node_unref(n);
}

CO_TEST(test_copy_range)
{
	const char *a = test_path("copy-a"), *b = test_path("copy-b");
	struct block_node *src, *dst;
	int r;

	make_file(a, MiB);
	make_file(b, MiB);
	src = open_cache(a, "", RW);
	dst = open_cache(b, "", RW);
	write_fill(src, 0, MiB, 1);
	write_fill(dst, 0, MiB, 2);
	r = co_block_copy_range(src, 4096, dst, 4096, 65536);
	check(!r || r == -ENOTSUP);
	check(reads_fill(dst, 0, 4096, 2));
	check(reads_fill(dst, 4096, 65536, r ? 2 : 1));
	check(reads_fill(dst, 4096 + 65536, 4096, 2));
	check_int(co_block_copy_range(src, MiB - 512, dst, 0, 1024), -EIO);
	check_int(co_block_copy_range(src, 0, dst, MiB - 512, 1024), -EIO);
	co_block_node_unref(src);
	co_block_node_unref(dst);
}

/* --- many threads grow one file ------------------------------------------------------------- */

#define RECORDS 400
#define RECORD  700

static struct block_node *grown;

static int co_grower(void *arg)
{
	for (uint64_t k = (uintptr_t)arg; k < RECORDS; k += 4) {
		write_fill(grown, k * RECORD, RECORD, (unsigned)k);
		if (k % 16 == 3)
			check_int(co_block_zero(grown, k * RECORD, RECORD, BLOCK_IO_UNMAP), 0);
	}
	return 0;
}

/* Records that share blocks, pages and the ragged end of the file. */
CO_TEST(test_parallel_growth)
{
	const char *path = test_path("parallel");

	for (size_t i = 0; i < 2; i++) {
		struct ring_thread *threads[4];
		char text[512];

		make_file(path, 0);
		snprintf(text, sizeof(text), "driver=file,filename=%s%s", path, caches[i]);
		grown = must_open(text, RW | BLOCK_OPEN_STORE);
		for (uintptr_t t = 0; t < 4; t++)
			check_int(ring_thread_start(NULL, co_grower, (void *)t, &threads[t]), 0);
		for (unsigned t = 0; t < 4; t++)
			check_int(ring_thread_join(threads[t]), 0);
		check_int(block_size(grown), RECORDS * RECORD);
		check_int(co_block_node_unref(grown), 0);
		/* From the disk, not from what this node remembers. */
		grown = open_cache(path, caches[1], 0);
		for (uint64_t k = 0; k < RECORDS; k++)
			check(k % 16 == 3 ? reads_zero(grown, k * RECORD, RECORD)
					  : reads_fill(grown, k * RECORD, RECORD, (unsigned)k));
		check_int(co_block_node_unref(grown), 0);
	}
}

/* --- block devices, where this machine lets us make one ------------------------------------- */

static bool loop_attach(const char *file, const char *options, char *ret, size_t size)
{
	char cmd[400];
	bool ok;
	FILE *f;

	snprintf(cmd, sizeof(cmd), "losetup -f --show %s '%s' 2>/dev/null", options, file);
	f = popen(cmd, "r");
	ok = f && fgets(ret, (int)size, f);
	if (ok)
		ret[strcspn(ret, "\n")] = 0;
	return f && !pclose(f) && ok;
}

CO_TEST(test_auto_read_only)
{
	const char *path = test_path("readonly");
	struct error err = ERROR_INIT;
	struct block_node *n;
	char dev[64] = "", cmd[128];

	make_file(path, 65536);
	check(!chmod(path, 0444));
	/* root may write any file, but not a read-only device */
	if (!geteuid() && !loop_attach(path, "-r", dev, sizeof(dev))) {
		print_message("no loop devices here: auto-read-only is not tested as root\n");
		return;
	}
	path = dev[0] ? dev : path;
	check(try_open(path, BLOCK_OPEN_RDWR, &n, &err) < 0);
	check(strstr(err.text, "Could not open '"));
	n = must_open(path, BLOCK_OPEN_RDWR | BLOCK_OPEN_AUTO_RO);
	check(!(n->opts.flags & BLOCK_OPEN_RDWR));
	check_int(co_block_pwrite(n, 0, "x", 1), -EROFS);
	check(reads_zero(n, 0, 65536));
	co_block_node_unref(n);
	if (dev[0]) {
		snprintf(cmd, sizeof(cmd), "losetup -d %s", dev);
		check(!system(cmd));
	}
}

static void device_work(const char *dev, const char *cache)
{
	struct block_resize rs = {.size = 16 * MiB};
	struct error err = ERROR_INIT;
	struct block_extent e;
	struct block_node *n;
	char text[512];

	snprintf(text, sizeof(text), "driver=raw,file.driver=host_device,file.filename=%s%s", dev,
		cache);
	n = must_open(text, RW);
	check_int(block_size(n), 8 * MiB);
	write_fill(n, 0, 2 * MiB, 1);
	write_fill(n, 3 * MiB + 100, 5000, 2);
	check(reads_fill(n, 0, 2 * MiB, 1));
	check(reads_fill(n, 3 * MiB + 100, 5000, 2));
	check_int(co_block_zero(n, 4000, 300000, 0), 0);
	check_int(co_block_zero(n, MiB, 300000, BLOCK_IO_UNMAP | BLOCK_IO_FUA), 0);
	check(reads_fill(n, 0, 4000, 1));
	check(reads_zero(n, 4000, 300000));
	check(reads_fill(n, 304000, 4096, 1));
	check(reads_zero(n, MiB, 300000));
	check(reads_fill(n, MiB + 300000, 4096, 1));
	check_int(co_block_discard(n, MiB + 512 * KiB, 256 * KiB, 0), 0);
	check(reads_fill(n, MiB + 768 * KiB, 256 * KiB, 1));
	check_int(co_block_extent(n, 0, 8 * MiB, &e), 0);
	check_int(e.len, 8 * MiB);
	check(e.flags & BLOCK_EXTENT_DATA);
	check_int(co_block_pwrite(n, 8 * MiB - 1, "ab", 2), -EIO);
	check_int(co_block_resize(n, &rs, &err), -ENOTSUP);
	/* A format in it has no room beyond the end. */
	check_int(co_block_pwrite(n->child[BLOCK_ROLE_FILE], 8 * MiB - 1, "ab", 2), -ENOSPC);
	check_int(co_block_flush(n), 0);
	check_int(co_block_node_unref(n), 0);
}

CO_TEST(test_block_device)
{
	static const char *const sectors[] = {"-b 512", "-b 4096"};
	const char *path = test_path("device");
	char dev[64], cmd[128];

	for (size_t s = 0; s < ARRAY_SIZE(sectors); s++) {
		make_file(path, 8 * MiB);
		if (!loop_attach(path, sectors[s], dev, sizeof(dev))) {
			print_message("no loop devices here: host_device is not tested\n");
			return;
		}
		for (size_t i = 0; i < ARRAY_SIZE(caches); i++)
			device_work(dev, caches[i]);
		snprintf(cmd, sizeof(cmd), "losetup -d %s", dev);
		check(!system(cmd));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cache_modes),
		cmocka_unit_test(test_ragged_end),
		cmocka_unit_test(test_growth),
		cmocka_unit_test(test_holes),
		cmocka_unit_test(test_resize),
		cmocka_unit_test(test_create),
		cmocka_unit_test(test_create_refused),
		cmocka_unit_test(test_open_errors),
		cmocka_unit_test(test_auto_read_only),
		cmocka_unit_test(test_reopen),
		cmocka_unit_test(test_copy_range),
		cmocka_unit_test(test_parallel_growth),
		cmocka_unit_test(test_block_device),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
