/* SPDX-License-Identifier: MIT */
/* The table of qemu-io's commands, and how a line becomes a call. */
#include "tools/qemu-io/io.h"
#include "base/mem.h"

const struct io_command *const io_commands[] = {
	&io_abort,
	&io_aio_flush,
	&io_aio_read,
	&io_aio_write,
	&io_alloc,
	&io_break,
	&io_close,
	&io_discard,
	&io_flush,
	&io_help,
	&io_info,
	&io_length,
	&io_map,
	&io_open,
	&io_quit,
	&io_read,
	&io_readv,
	&io_remove_break,
	&io_reopen,
	&io_resume,
	&io_sigraise,
	&io_sleep,
	&io_truncate,
	&io_wait_break,
	&io_write,
	&io_writev,
	NULL,
};

static const struct io_command *find(const char *name)
{
	for (const struct io_command *const *p = io_commands; *p; p++)
		if (!strcmp(name, (*p)->c.name) || ((*p)->alias && !strcmp(name, (*p)->alias)))
			return *p;
	return NULL;
}

static int run(const struct io_command *cmd, int argc, char **argv)
{
	if (!io.node && !cmd->needs_no_file) {
		fprintf(stderr, "no file open, try 'help open'\n");
		return 1;
	}
	return command_run(&cmd->c, argc, argv);
}

void co_io_line(const char *line)
{
	_cleanup_free_ char *copy = mem_strdup(line);
	_cleanup_free_ char **argv = mem_calloc(strlen(line) / 2 + 2, sizeof(*argv));
	const struct io_command *cmd;
	char *save = NULL;
	int argc = 0;

	if (!copy || !argv) {
		tool_error("out of memory");
		io.code = 1;
		return;
	}
	for (char *w = strtok_r(copy, " \t\n", &save); w; w = strtok_r(NULL, " \t\n", &save))
		argv[argc++] = w;
	if (!argc || argv[0][0] == '#')
		return;
	cmd = find(argv[0]);
	if (!cmd)
		tool_error("command \"%s\" not found, try 'help'", argv[0]);
	if (!cmd || run(cmd, argc, argv) != 0)
		io.code = 1;
	fflush(stdout);
}
