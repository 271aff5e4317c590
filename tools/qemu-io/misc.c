/* SPDX-License-Identifier: MIT */
/* abort, sigraise, sleep, quit, help. */
#include "tools/qemu-io/io.h"
#include "base/ring.h"
#include <signal.h>
#include <stdlib.h>

static const struct opt no_opts[] = {{0}};

static int co_abort_cmd(void *opts, char *const *args, unsigned nargs)
{
	abort();
}

static int co_sigraise_cmd(void *opts, char *const *args, unsigned nargs)
{
	uint64_t sig;

	if (parse_u64(args[0], &sig) < 0 || sig > 64) {
		printf("non-numeric or invalid signal -- %s\n", args[0]);
		return 1;
	}
	/* Output so far must not be lost when the signal kills us. */
	fflush(stdout);
	raise((int)sig);
	return 0;
}

static int co_sleep_cmd(void *opts, char *const *args, unsigned nargs)
{
	uint64_t ms;

	if (parse_u64(args[0], &ms) < 0 || ms > 1000ULL * 3600 * 24) {
		printf("%s is not a number of milliseconds of at most a day\n", args[0]);
		return 1;
	}
	co_sleep(ms * 1000000);
	return 0;
}

static int co_quit_cmd(void *opts, char *const *args, unsigned nargs)
{
	io.quit = true;
	return 0;
}

static void help_line(const struct command *c)
{
	printf("%s%s%s%s -- %s\n", c->name, c->opts->kind == OPT_END ? "" : " [OPTION...]",
		*c->args ? " " : "", c->args, c->summary);
}

static int co_help_cmd(void *opts, char *const *args, unsigned nargs)
{
	for (const struct io_command *const *p = io_commands; *p; p++) {
		const struct command *c = &(*p)->c;

		if (nargs && strcmp(args[0], c->name) != 0)
			continue;
		if (nargs) {
			options_help(c);
			if ((*p)->more)
				printf("\n %s\n", (*p)->more);
			return 0;
		}
		help_line(c);
	}
	if (nargs) {
		printf("command %s not found\n", args[0]);
		return 1;
	}
	printf("\nUse 'help commandname' for extended help.\n");
	return 0;
}

const struct io_command io_abort = {
	.c = {.name = "abort",
		.summary = "simulate a program crash using abort(3)",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_abort_cmd,
		.inner = true},
	.needs_no_file = true,
};
const struct io_command io_sigraise = {
	.c = {.name = "sigraise",
		.summary = "raises a signal",
		.args = "signal",
		.min_args = 1,
		.max_args = 1,
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_sigraise_cmd,
		.inner = true},
	.needs_no_file = true,
};
const struct io_command io_sleep = {
	.c = {.name = "sleep",
		.summary = "waits for the given value in milliseconds",
		.args = "milliseconds",
		.min_args = 1,
		.max_args = 1,
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_sleep_cmd,
		.inner = true},
	.needs_no_file = true,
};
const struct io_command io_quit = {
	.c = {.name = "quit",
		.summary = "exit the program",
		.args = "",
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_quit_cmd,
		.inner = true},
	.alias = "q",
	.needs_no_file = true,
};
const struct io_command io_help = {
	.c = {.name = "help",
		.summary = "help for one or all commands",
		.args = "[command]",
		.max_args = 1,
		.opts = no_opts,
		.opts_size = 1,
		.co_run = co_help_cmd,
		.inner = true},
	.alias = "?",
	.needs_no_file = true,
};
