/* SPDX-License-Identifier: MIT */
/* Image locks: every pair of {ours, qemu-io} x {format, mode}; what qemu-io does against itself is
 * what all the other pairs must do. */
#include "tests/unit/block.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

enum { RW, RO, SHARE, MODES };
enum { RAW, QCOW2, FORMATS };
#define CASES (MODES * FORMATS)

static char image[256];

static bool have_qemu(void)
{
	return !system("qemu-io --version >/dev/null 2>&1 && qemu-img --version >/dev/null 2>&1");
}

static const char *case_name(int c)
{
	static const char *const names[CASES] = {"raw rw", "raw ro", "raw ro force-share",
		"qcow2 rw", "qcow2 ro", "qcow2 ro force-share"};

	return names[c];
}

static void case_options(int c, char *ret, size_t size)
{
	static const char *const modes[] = {"", "-r", "-r -U"};

	snprintf(ret, size, "-f %s %s '%s'", c / MODES == RAW ? "raw" : "qcow2", modes[c % MODES],
		image);
}

/* --- qemu-io --- */

struct peer {
	FILE *out;
	int in;
	pid_t pid;
};

/* Starts qemu-io and waits until it has the image open, which is when it answers a read. */
static bool peer_start(struct peer *p, int c)
{
	char cmd[512], opts[400], line[256];
	int in[2], out[2];
	bool opened = false;

	case_options(c, opts, sizeof(opts));
	snprintf(cmd, sizeof(cmd), "exec qemu-io %s 2>&1", opts);
	check(!pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC));
	p->pid = fork();
	if (!p->pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	p->in = in[1];
	p->out = fdopen(out[0], "r");
	dprintf(p->in, "read 0 512\n");
	while (!opened && fgets(line, sizeof(line), p->out))
		opened = strstr(line, "read 512/512") != NULL;
	return opened;
}

static void peer_stop(struct peer *p)
{
	close(p->in);
	fclose(p->out);
	waitpid(p->pid, NULL, 0);
}

static bool peer_can_open(int c)
{
	struct peer p;
	bool ok;

	signal(SIGPIPE, SIG_IGN);
	ok = peer_start(&p, c);
	peer_stop(&p);
	return ok;
}

/* --- ours --- */

struct open_args {
	int c;
	struct block_node *node;
	struct error err;
};

/* The file node as the raw format and as any other format open theirs. */
static int co_open_ours(void *arg)
{
	struct open_args *a = arg;
	_cleanup_(conf_freep) struct conf *spec = conf_new(CONF_OBJECT);
	struct block_open_opts o = {
		.trust = &block_trust_local, .flags = a->c % MODES == RW ? BLOCK_OPEN_RDWR : 0};
	static const struct block_driver other = {.name = "other", .kind = BLOCK_KIND_FORMAT};
	struct block_open_opts file;

	if (a->c % MODES == SHARE)
		o.flags |= BLOCK_OPEN_FORCE_SHARE;
	check(spec && !conf_set(spec, "driver", "file") && !conf_set(spec, "filename", image));
	block_child_opts(a->c / MODES == RAW ? &block_raw : &other, &o, BLOCK_ROLE_FILE, &file);
	a->err = ERROR_INIT;
	return co_block_open(spec, &file, &a->node, &a->err);
}

static int co_close_ours(void *arg)
{
	return co_block_node_unref(arg);
}

static bool we_can_open(int c, struct error *err)
{
	struct open_args a = {.c = c};
	int r = co_run(co_open_ours, &a);

	if (!r)
		assert_int_equal(co_run(co_close_ours, a.node), 0);
	else
		assert_int_equal(r, -EAGAIN);
	*err = a.err;
	return !r;
}

/* --- tests --- */

static int make_image(void **state)
{
	char cmd[400];
	int r = test_setup(state);

	snprintf(image, sizeof(image), "%s", test_path("locked.qcow2"));
	snprintf(cmd, sizeof(cmd), "qemu-img create -q -f qcow2 '%s' 1M", image);
	return r ? r : have_qemu() ? system(cmd) : system("true");
}

static void test_matrix(void **state)
{
	struct error err;

	if (!have_qemu())
		skip();
	for (int holder = 0; holder < CASES; holder++) {
		struct open_args a = {.c = holder};
		bool expect[CASES];
		struct peer p;

		assert_true(peer_start(&p, holder));
		for (int c = 0; c < CASES; c++) {
			expect[c] = peer_can_open(c);
			if (we_can_open(c, &err) != expect[c])
				fail_msg("held by qemu-io as %s, opened by us as %s: not %d",
					case_name(holder), case_name(c), expect[c]);
		}
		peer_stop(&p);
		assert_int_equal(co_run(co_open_ours, &a), 0);
		for (int c = 0; c < CASES; c++) {
			if (peer_can_open(c) != expect[c])
				fail_msg("held by us as %s, opened by qemu-io as %s: not %d",
					case_name(holder), case_name(c), expect[c]);
			if (we_can_open(c, &err) != expect[c])
				fail_msg("held by us as %s, opened by us as %s: not %d",
					case_name(holder), case_name(c), expect[c]);
		}
		assert_int_equal(co_run(co_close_ours, a.node), 0);
	}
}

static void test_message(void **state)
{
	char pid[32];
	struct error err;
	struct peer p;

	if (!have_qemu())
		skip();
	assert_true(peer_start(&p, QCOW2 * MODES + RW));
	assert_false(we_can_open(QCOW2 * MODES + RW, &err));
	assert_non_null(strstr(err.text,
		"Failed to get \"write\" lock\n"
		"Is another process using the image ["));
	snprintf(pid, sizeof(pid), "Process %d (qemu-io)", (int)p.pid);
	assert_non_null(strstr(err.text, pid));
	assert_false(we_can_open(QCOW2 * MODES + RO, &err));
	assert_non_null(strstr(err.text, "Failed to get shared \"write\" lock\n"));
	peer_stop(&p);
}

/* Creating over an image in use fails before its content is gone. */
static void test_create_in_use(void **state)
{
	struct open_args a = {.c = QCOW2 * MODES + RW};
	struct block_create c = {.filename = image, .trust = &block_trust_local};
	struct error err = ERROR_INIT;
	char before[512] = "";
	FILE *f;

	if (!have_qemu())
		skip();
	assert_int_equal(co_run(co_open_ours, &a), 0);
	assert_int_equal(block_file.co_create(&c, &err), -EAGAIN);
	assert_int_equal(co_run(co_close_ours, a.node), 0);
	f = fopen(image, "r");
	assert_non_null(f);
	assert_int_equal(fread(before, 1, 512, f), 512);
	fclose(f);
	assert_memory_equal(before, "QFI\xfb", 4);
}

/* raw holds no right to resize; resizing takes it, against those who do not share it. */
CO_TEST(test_resize_needs_the_right)
{
	struct block_open_opts o = {.perm = BLOCK_PERM_READ,
		.shared = BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE,
		.trust = &block_trust_local};
	struct block_resize r = {.size = 2 * MiB};
	_cleanup_(conf_freep) struct conf *spec = NULL;
	struct error err = ERROR_INIT;
	struct block_node *raw, *other;
	const char *path = test_path("resized");
	FILE *f = fopen(path, "w");

	check(f && !ftruncate(fileno(f), MiB) && !fclose(f));
	raw = must_open(test_printf("driver=raw,file.filename=%s", path), BLOCK_OPEN_RDWR);
	check_int(block_spec_from_name(path, "file", &spec, &err), 0);
	check_int(co_block_open(spec, &o, &other, &err), 0);
	check_int(co_block_resize(raw, &r, &err), -EAGAIN);
	check(strstr(err.text, "Failed to get \"resize\" lock"));
	check_int(block_size(raw), MiB);
	co_block_node_unref(other);
	check_int(co_block_resize(raw, &r, &err), 0);
	check_int(block_size(raw), 2 * MiB);
	/* The right was taken for that once only. */
	check_int(co_block_open(spec, &o, &other, &err), 0);
	co_block_node_unref(other);
	check_int(co_block_node_unref(raw), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_matrix),
		cmocka_unit_test(test_message),
		cmocka_unit_test(test_create_in_use),
		cmocka_unit_test(test_resize_needs_the_right),
	};

	return cmocka_run_group_tests(tests, make_image, test_teardown);
}
