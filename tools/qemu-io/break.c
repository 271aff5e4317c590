/* SPDX-License-Identifier: MIT */
/* break, remove_break, wait_break, resume: requests held at the named events of the fault filter.
 */
#include "tools/qemu-io/io.h"
#include "block/fault.h"
#include "base/ring.h"

static const struct opt no_opts[] = {{0}};

/* The topmost fault filter below the open image; NULL: none. */
static struct block_node *find_fault(void)
{
	struct block_node *n = io.node;

	while (n && n->drv != &block_fault)
		n = n->child[BLOCK_ROLE_FILE];
	return n;
}

void io_release_breaks(void)
{
	struct block_node *n = find_fault();

	if (n)
		fault_unbreak(n, NULL);
}

static int failed(const char *what, int code)
{
	printf("Could not %s: %s\n", what,
		code == -ENOTSUP ? "the file is not opened through the fault driver"
				 : errno_text(code));
	return 1;
}

static int co_break_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct block_node *n = find_fault();
	int r = n ? fault_break(n, args[0], args[1]) : -ENOTSUP;

	return r < 0 ? failed("set a breakpoint", r) : 0;
}

static int co_remove_break_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct block_node *n = find_fault();
	int r = n ? fault_unbreak(n, args[0]) : -ENOTSUP;

	return r < 0 ? failed("remove breakpoint", r) : 0;
}

static int co_wait_break_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct block_node *n = find_fault();

	if (!n)
		return failed("wait for a breakpoint", -ENOTSUP);
	while (!fault_is_held(n, args[0]))
		if (co_sleep(1000000) < 0)
			return 1;
	return 0;
}

static int co_resume_cmd(void *opts, char *const *args, unsigned nargs)
{
	struct block_node *n = find_fault();
	int r = n ? fault_resume(n, args[0]) : -ENOTSUP;

	return r < 0 ? failed("resume request", r) : 0;
}

#define BREAK_COMMAND(name_, summary_, args_, n_, run_)                                            \
	{                                                                                          \
		.c = {.name = name_,                                                               \
			.summary = summary_,                                                       \
			.args = args_,                                                             \
			.min_args = n_,                                                            \
			.max_args = n_,                                                            \
			.opts = no_opts,                                                           \
			.opts_size = 1,                                                            \
			.co_run = run_,                                                            \
			.inner = true},                                                            \
	}

const struct io_command io_break = BREAK_COMMAND("break",
	"sets a breakpoint on event and tags the stopped request as tag", "event tag", 2,
	co_break_cmd);
const struct io_command io_remove_break = BREAK_COMMAND(
	"remove_break", "remove a breakpoint by tag", "tag", 1, co_remove_break_cmd);
const struct io_command io_wait_break = BREAK_COMMAND(
	"wait_break", "waits for the suspension of a request", "tag", 1, co_wait_break_cmd);
const struct io_command io_resume = BREAK_COMMAND(
	"resume", "resumes the request tagged as tag", "tag", 1, co_resume_cmd);
