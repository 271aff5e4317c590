/* SPDX-License-Identifier: MIT */
/* The control half of the public API, over raw files: trust, versioned structs, calls, jobs. */
#include "drover.h"
#include "base/base.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#define MIB (1024 * 1024)

static char folder[] = "/tmp/drover-image-XXXXXX";

static const char *path(const char *name)
{
	static __thread char paths[4][256];
	static __thread unsigned i;
	char *p = paths[i++ % 4];

	snprintf(p, sizeof(paths[0]), "%s/%s", folder, name);
	return p;
}

static int setup(void **state attr_unused)
{
	return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state attr_unused)
{
	char command[300];

	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	return system(command);
}

static struct drover_image *open_image(const char *name, uint32_t flags)
{
	struct drover_open_opts opts = DROVER_INIT(struct drover_open_opts);
	struct drover_image *img = NULL;
	struct drover_error err;

	opts.flags = flags;
	opts.format = "raw";
	if (drover_open(path(name), &opts, drover_trust(DROVER_TRUST_LOCAL), &img, &err))
		fail_msg("%s", err.text);
	return img;
}

static void create(const char *name, uint64_t size)
{
	struct drover_error err;

	if (drover_create("raw", path(name), size, NULL, drover_trust(DROVER_TRUST_LOCAL), &err))
		fail_msg("%s", err.text);
}

static void put(const char *name, uint64_t off, uint64_t len, int byte)
{
	char *buf = malloc(len);
	int fd = open(path(name), O_WRONLY);

	memset(buf, byte, len);
	assert_int_equal(pwrite(fd, buf, len, (off_t)off), (ssize_t)len);
	close(fd);
	free(buf);
}

static void test_trust(void **state attr_unused)
{
	struct drover_trust t = *drover_trust(DROVER_TRUST_STRICT);
	struct drover_image *img = NULL;
	struct drover_error err;

	create("t.img", 65536);
	assert_int_equal(drover_open(path("t.img"), NULL, NULL, &img, &err), -EINVAL);
	assert_non_null(strstr(err.text, "trust"));
	assert_int_equal(err.code, -EINVAL);
	assert_int_equal(drover_create("raw", path("u"), 512, NULL, NULL, &err), -EINVAL);
	assert_null(drover_trust((enum drover_trust_level)77));
	/* A probe that finds nothing is no raw image for a stranger. */
	assert_true(drover_open(path("t.img"), NULL, &t, &img, &err) < 0);
	assert_null(img);
	t.names = 99;
	assert_int_equal(drover_open(path("t.img"), NULL, &t, &img, NULL), -EINVAL);
	assert_int_equal(
		drover_open(path("t.img"), NULL, drover_trust(DROVER_TRUST_LOCAL), &img, &err), 0);
	assert_int_equal(drover_close(img, NULL), 0);
	assert_int_equal(drover_close(NULL, NULL), 0);
}

/* Callers of other versions: too short is refused, longer is fine while what is new is zero. */
static void test_struct_sizes(void **state attr_unused)
{
	struct {
		struct drover_open_opts known;
		uint64_t later;
	} opts = {.known = {.struct_size = sizeof(opts), .format = "raw"}};
	const struct drover_trust *trust = drover_trust(DROVER_TRUST_LOCAL);
	struct drover_image *img;
	struct drover_info info = {.struct_size = 8};

	create("s.img", 65536);
	assert_int_equal(drover_open(path("s.img"), &opts.known, trust, &img, NULL), 0);
	assert_int_equal(drover_image_info(img, &info, NULL), -EINVAL);
	info.struct_size = sizeof(info);
	assert_int_equal(drover_image_info(img, &info, NULL), 0);
	assert_int_equal(info.struct_size, sizeof(info));
	drover_close(img, NULL);
	opts.later = 1;
	assert_int_equal(drover_open(path("s.img"), &opts.known, trust, &img, NULL), -E2BIG);
	opts.known.struct_size = 4;
	assert_int_equal(drover_open(path("s.img"), &opts.known, trust, &img, NULL), -EINVAL);
	opts.known = DROVER_INIT(struct drover_open_opts);
	opts.known.flags = 1u << 30;
	assert_int_equal(drover_open(path("s.img"), &opts.known, trust, &img, NULL), -EINVAL);
}

static void test_missing(void **state attr_unused)
{
	struct drover_image *img;
	struct drover_error err;

	assert_int_equal(drover_open(path("nowhere"), NULL, drover_trust(DROVER_TRUST_LOCAL), &img,
				 &err),
		-ENOENT);
	assert_non_null(strstr(err.text, "nowhere"));
}

static void test_info_extents_resize(void **state attr_unused)
{
	struct drover_info info = DROVER_INIT(struct drover_info);
	struct drover_extent x[8];
	struct drover_image *img;
	uint32_t n;

	create("i.img", 8 * MIB);
	put("i.img", 2 * MIB, 3 * MIB, 7);
	img = open_image("i.img", DROVER_OPEN_RDWR);
	assert_int_equal(drover_image_info(img, &info, NULL), 0);
	assert_int_equal(info.size, 8 * MIB);
	assert_string_equal(info.format, "raw");
	assert_string_equal(info.backing_name, "");
	assert_int_equal(info.flags, DROVER_INFO_RDWR);
	assert_true(info.actual_size >= 3 * MIB);
	assert_int_equal(drover_image_extents(img, 0, 8 * MIB, x, 8, &n, NULL), 0);
	assert_int_equal(n, 3);
	assert_int_equal(x[1].off, 2 * MIB);
	assert_int_equal(x[1].len, 3 * MIB);
	assert_int_equal(x[1].host_off, 2 * MIB);
	assert_true(x[1].flags & DROVER_EXTENT_DATA && x[1].flags & DROVER_EXTENT_MAPPED);
	assert_true(x[2].flags & DROVER_EXTENT_ZERO);
	assert_int_equal(drover_image_extents(img, MIB, 6 * MIB, x, 2, &n, NULL), 0);
	assert_int_equal(n, 2);
	assert_int_equal(drover_image_extents(img, 8 * MIB, 1, x, 2, &n, NULL), -EINVAL);
	assert_int_equal(drover_image_resize(img, 16 * MIB, DROVER_PREALLOC_OFF, 0, NULL), 0);
	assert_int_equal(drover_image_size(img), 16 * MIB);
	assert_int_equal(drover_image_resize(img, MIB, DROVER_PREALLOC_OFF, 0, NULL), -EINVAL);
	assert_int_equal(drover_image_resize(
				 img, MIB, DROVER_PREALLOC_OFF, DROVER_RESIZE_SHRINK, NULL),
		0);
	assert_int_equal(drover_image_size(img), MIB);
	assert_int_equal(drover_image_flush(img, NULL), 0);
	assert_int_equal(drover_close(img, NULL), 0);
}

static void test_no_family(void **state attr_unused)
{
	struct drover_check check = DROVER_INIT(struct drover_check);
	struct drover_image *img;
	struct drover_error err;
	uint32_t n;

	create("f.img", MIB);
	img = open_image("f.img", DROVER_OPEN_RDWR);
	assert_int_equal(drover_image_check(img, &check, &err), -ENOTSUP);
	assert_int_equal(drover_snapshot_list(img, NULL, 0, &n, &err), -ENOTSUP);
	assert_int_equal(drover_snapshot_create(img, "x", &err), -ENOTSUP);
	drover_close(img, NULL);
}

/* --- jobs ---------------------------------------------------------------------------------- */

static void test_copy(void **state attr_unused)
{
	struct drover_job_status s = DROVER_INIT(struct drover_job_status);
	struct drover_copy_opts opts = DROVER_INIT(struct drover_copy_opts);
	struct drover_image *src, *dst;
	struct drover_job *job;
	char command[700];

	create("src.img", 20 * MIB);
	create("dst.img", 20 * MIB);
	put("src.img", 3 * MIB + 5, 9 * MIB, 0x5a);
	src = open_image("src.img", 0);
	dst = open_image("dst.img", DROVER_OPEN_RDWR);
	opts.flags = DROVER_COPY_TARGET_IS_ZERO;
	assert_int_equal(drover_copy(src, dst, &opts, &job, NULL), 0);
	assert_int_equal(drover_close(src, NULL), -EBUSY);
	assert_int_equal(drover_job_wait(job, -1), 0);
	assert_int_equal(drover_job_status(job, &s), 0);
	assert_int_equal(s.result, 0);
	assert_int_equal(s.done, 20 * MIB);
	assert_int_equal(s.total, 20 * MIB);
	assert_int_equal(drover_job_free(job, NULL), 0);
	snprintf(command, sizeof(command), "cmp '%s' '%s'", path("src.img"), path("dst.img"));
	assert_int_equal(system(command), 0);
	assert_int_equal(drover_copy(dst, src, &opts, &job, NULL), -EPERM);
	assert_int_equal(drover_close(src, NULL), 0);
	assert_int_equal(drover_close(dst, NULL), 0);
}

static void test_copy_cancel(void **state attr_unused)
{
	struct drover_job_status s = DROVER_INIT(struct drover_job_status);
	struct drover_copy_opts opts = DROVER_INIT(struct drover_copy_opts);
	struct drover_image *src, *dst;
	struct drover_error err = {0};
	struct drover_job *job;

	create("c1.img", 20 * MIB);
	create("c2.img", 20 * MIB);
	put("c1.img", 0, 20 * MIB, 0x5a);
	src = open_image("c1.img", 0);
	dst = open_image("c2.img", DROVER_OPEN_RDWR);
	opts.rate = 1024;
	assert_int_equal(drover_copy(src, dst, &opts, &job, NULL), 0);
	assert_int_equal(drover_job_wait(job, 30000000), -ETIMEDOUT);
	drover_job_status(job, &s);
	assert_int_equal(s.result, -EINPROGRESS);
	drover_job_pause(job, 1);
	drover_job_rate(job, 0);
	drover_job_pause(job, 0);
	drover_job_rate(job, 1024);
	drover_job_cancel(job);
	assert_int_equal(drover_job_free(job, &err), -ECANCELED);
	assert_non_null(strstr(err.text, "cancelled"));
	assert_int_equal(drover_job_free(NULL, NULL), 0);
	drover_close(src, NULL);
	drover_close(dst, NULL);
}

/* --- the log -------------------------------------------------------------------------------- */

static unsigned lines;

static void log_line(void *arg, const char *event, const char *text)
{
	assert_ptr_equal(arg, &lines);
	assert_non_null(event);
	assert_non_null(text);
	__atomic_fetch_add(&lines, 1, __ATOMIC_RELAXED);
}

static void test_log(void **state attr_unused)
{
	assert_int_equal(drover_log("a=b", log_line, &lines), -EINVAL);
	assert_int_equal(drover_log(NULL, log_line, &lines), -EINVAL);
	assert_int_equal(drover_log("*", log_line, &lines), 0);
	create("l.img", MIB);
	drover_close(open_image("l.img", 0), NULL);
	assert_true(lines > 0);
	assert_int_equal(drover_log("none", NULL, NULL), 0);
	assert_true(strlen(drover_version()) > 0);
}

static void *open_close(void *arg attr_unused)
{
	for (unsigned i = 0; i < 25; i++)
		drover_close(open_image("p.img", 0), NULL);
	return NULL;
}

/* The control thread comes and goes with its users, from any thread. */
static void test_threads(void **state attr_unused)
{
	pthread_t t[4];

	create("p.img", MIB);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, open_close, NULL), 0);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_trust),
		cmocka_unit_test(test_struct_sizes),
		cmocka_unit_test(test_missing),
		cmocka_unit_test(test_info_extents_resize),
		cmocka_unit_test(test_no_family),
		cmocka_unit_test(test_copy),
		cmocka_unit_test(test_copy_cancel),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_log),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
