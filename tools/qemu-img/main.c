/* SPDX-License-Identifier: MIT */
/* qemu-img: the table of subcommands. */
#include "tools/qemu-img/img.h"
#include "base/trace.h"
#include "lib/drivers.h"
#include <signal.h>
#include <stdlib.h>

static const struct command *const commands[] = {
	&img_bench,
	&img_check,
	&img_commit,
	&img_compare,
	&img_convert,
	&img_create,
	&img_dd,
	&img_info,
	&img_map,
	&img_measure,
	&img_rebase,
	&img_resize,
	&img_snapshot,
};

const struct conf_enum img_output_names[] = {{"human", IMG_HUMAN}, {"json", IMG_JSON}, {NULL, 0}};

static void help(void)
{
	size_t column = 0;

	tool_version();
	printf("Disk image utility. Usage:\n\n"
	       "  qemu-img [standard options] COMMAND [--help | command options]\n\n"
	       "Standard options:\n"
	       "  -h, --help\n     display this help and exit\n"
	       "  -V, --version\n     display version info and exit\n"
	       "  -T, --trace TRACE\n     trace events: "
	       "[[enable=]PATTERN][,events=FILE][,file=FILE]\n\n"
	       "Commands (run qemu-img COMMAND --help for the help of one):\n\n");
	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
		printf("  %s - %s\n", commands[i]->name, commands[i]->summary);
	printf("\nSupported image formats:\n\n ");
	for (const struct block_driver *const *d = block_drivers(); *d; d++) {
		column += strlen((*d)->name) + 1;
		if (column > 74) {
			printf("\n ");
			column = strlen((*d)->name) + 1;
		}
		printf(" %s", (*d)->name);
	}
	printf("\n");
}

static int try_help(void)
{
	fprintf(stderr, "Try 'qemu-img --help' for more info\n");
	return 1;
}

/* The value of -T or --trace at argv[i]; moves *i on. NULL: it is not that option, or none. */
static const char *trace_value(int argc, char **argv, int *i)
{
	const char *a = argv[*i];

	if (!strncmp(a, "--trace=", 8))
		return a + 8;
	if (!strncmp(a, "-T", 2) && a[2])
		return a + 2;
	if ((!strcmp(a, "-T") || !strcmp(a, "--trace")) && *i + 1 < argc)
		return argv[++*i];
	return NULL;
}

/* Options in front of the subcommand. Returns its index in argv, or 0 when all is done with the
 * exit code in *rc. */
static int standard_options(int argc, char **argv, int *rc)
{
	struct error err = ERROR_INIT;
	int i = 1;

	*rc = 0;
	for (; i < argc && argv[i][0] == '-'; i++) {
		const char *a = argv[i], *trace_spec = trace_value(argc, argv, &i);

		if (!strcmp(a, "-h") || !strcmp(a, "--help")) {
			help();
			return 0;
		}
		if (!strcmp(a, "-V") || !strcmp(a, "--version")) {
			tool_version();
			return 0;
		}
		if (!strcmp(a, "--untrusted")) {
			setenv("DROVER_TRUST", "strict", 1);
		} else if (!strcmp(a, "--trust-image-names")) {
			setenv("DROVER_TRUST", "all", 1);
		} else if (!trace_spec) {
			tool_error("unrecognized option '%s'", a);
			*rc = try_help();
			return 0;
		} else if (trace_configure(trace_spec, &err) < 0) {
			*rc = tool_fail(&err);
			return 0;
		}
	}
	if (i >= argc) {
		tool_error("Not enough arguments");
		*rc = try_help();
		return 0;
	}
	return i;
}

static int run(int argc, char **argv)
{
	int rc, at = standard_options(argc, argv, &rc);

	if (!at)
		return rc;
	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i]->name, argv[at]))
			return command_run(commands[i], argc - at, argv + at);
	tool_error("Command not found: %s", argv[at]);
	return try_help();
}

int main(int argc, char **argv)
{
	int rc;

	tool_start("qemu-img");
	trace_init();
	drivers_init();
	rc = tool_finish(run(argc, argv));
	if (progress_signal() && rc) {
		/* Everything is tidied up: end by the signal, as the caller expects to see. */
		signal(progress_signal(), SIG_DFL);
		raise(progress_signal());
	}
	return rc;
}
