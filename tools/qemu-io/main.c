/* SPDX-License-Identifier: MIT */
/* qemu-io: single requests on an image, from the command line or one line after the other. */
#include "tools/qemu-io/io.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/trace.h"
#include "lib/drivers.h"
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

struct io_session io;

struct main_opts {
	struct io_open_opts open;
	struct opt_texts commands, traces;
	bool misalign, version;
};

/* Commands from stdin. Requests in flight go on while we wait for a line. */
static void co_interactive(void)
{
	char *buf = mem_alloc(64 * KiB);
	size_t have = 0;

	if (!buf) {
		tool_error("out of memory");
		io.code = 1;
		return;
	}
	printf("qemu-io> ");
	fflush(stdout);
	for (bool eof = false; !io.quit && !(eof && !have);) {
		char *nl = memchr(buf, '\n', have);
		ssize_t n;

		if (nl || eof || have == 64 * KiB - 1) {
			size_t used = nl ? (size_t)(nl - buf) + 1 : have;

			buf[nl ? used - 1 : have] = '\0';
			co_io_line(buf);
			have -= used;
			memmove(buf, buf + used, have);
			if (!io.quit)
				printf("qemu-io> ");
			fflush(stdout);
			continue;
		}
		co_poll(STDIN_FILENO, POLLIN);
		n = read(STDIN_FILENO, buf + have, 64 * KiB - 1 - have);
		if (n > 0)
			have += (size_t)n;
		else if (n == 0 || (errno != EINTR && errno != EAGAIN))
			eof = true;
	}
	mem_free(buf);
}

static int co_main(void *opts, char *const *args, unsigned nargs)
{
	struct main_opts *o = opts;

	if (o->version) {
		tool_version();
		return 0;
	}
	io.common = o->open.c;
	io.misalign = o->misalign;
	if (nargs && co_io_open(&o->open, args[0]) < 0)
		return 1;
	for (unsigned i = 0; i < o->commands.n && !io.quit; i++)
		co_io_line(o->commands.v[i]);
	if (!o->commands.n)
		co_interactive();
	co_io_close();
	return io.code;
}

#define FLAG(letter_, name_, help_, field_)                                                        \
	IMAGE_OPT(struct main_opts, OPT_FLAG, letter_, name_, NULL, help_, field_)
#define TEXT(letter_, name_, arg_, help_, field_)                                                  \
	IMAGE_OPT(struct main_opts, OPT_TEXT, letter_, name_, arg_, help_, field_)
#define TEXTS(letter_, name_, arg_, help_, field_)                                                 \
	IMAGE_OPT(struct main_opts, OPT_TEXTS, letter_, name_, arg_, help_, field_)

static const struct opt main_opts[] = {
	FLAG(0, "image-opts", "treat file as option string", open.c.image_opts),
	TEXTS('c', "cmd", "STRING", "execute command with its arguments from the given string",
		commands),
	TEXT('f', "format", "FMT", "specifies the block driver to use", open.c.format),
	FLAG('r', "read-only", "open the file read-only", open.read_only),
	FLAG('s', "snapshot", "write to a temporary overlay, not to the file", open.snapshot),
	FLAG('n', "nocache", "disable host cache, short for -t none", open.no_cache),
	FLAG('C', "copy-on-read", "enable copy-on-read", open.copy_on_read),
	FLAG('m', "misalign", "misalign buffers, to test O_DIRECT", misalign),
	FLAG('k', "native-aio", "another name for -i threads", open.native),
	TEXT('i', "aio", "MODE", "I/O engine: io_uring, threads or native", open.aio),
	IMAGE_OPT_ENUM(struct main_opts, 't', "cache", "MODE",
		"cache mode: none, writeback, writethrough, directsync, unsafe", open.c.cache,
		block_cache_names),
	TEXT('d', "discard", "MODE", "discard mode: ignore or unmap", open.discard),
	TEXTS('T', "trace", "TRACE", "trace events: [[enable=]PATTERN][,events=FILE][,file=FILE]",
		traces),
	FLAG('U', "force-share", "force shared permissions", open.c.force_share),
	FLAG('V', "version", "output version information and exit", version),
	TEXTS(0, "object", "OBJDEF", "define an object, such as a secret", open.c.objects),
	FLAG(0, "untrusted", "follow no name found inside an image and never guess raw",
		open.c.untrusted),
	FLAG(0, "trust-image-names", "follow every name found inside an image", open.c.trust_names),
	{0},
};

static int prepare(void *opts);

static const struct command qemu_io = {
	.name = "",
	.summary = "Runs single requests on an image; 'qemu-io -c help' names the commands",
	.args = "[FILE]",
	.max_args = 1,
	.opts = main_opts,
	.opts_size = sizeof(struct main_opts),
	.prepare = prepare,
	.co_run = co_main,
};

/* What must be known before the ring exists: engine and traces. */
static int prepare(void *opts)
{
	const struct main_opts *o = opts;
	struct error err = ERROR_INIT;

	for (unsigned i = 0; i < o->traces.n; i++)
		if (trace_configure(o->traces.v[i], &err) < 0)
			return tool_fail(&err);
	return image_set_engine(o->open.aio, o->open.native) < 0;
}

int main(int argc, char **argv)
{
	tool_start("qemu-io");
	trace_init();
	drivers_init();
	return tool_finish(command_run(&qemu_io, argc, argv));
}
