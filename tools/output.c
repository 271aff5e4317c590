/* SPDX-License-Identifier: MIT */
/* Messages of the tools, sizes as people read them, and the check that stdout took everything. */
#include "tools/tool.h"
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

static const char *name_of_tool = "drover";

/* A closed stdout is replaced by one that takes nothing: output to it is an error, as it should
 * be. A closed stderr is its owner's wish. */
void tool_start(const char *name)
{
	name_of_tool = name;
	signal(SIGPIPE, SIG_IGN);
	/* A closed one may not become an image's descriptor; a closed stdout stays an error. */
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY) < 0)
			_exit(1);
}

const char *tool_name(void)
{
	return name_of_tool;
}

static void message(const char *kind, const char *fmt, va_list ap)
{
	fflush(stdout);
	flockfile(stderr);
	fprintf(stderr, "%s: %s", name_of_tool, kind);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	funlockfile(stderr);
}

void tool_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message("", fmt, ap);
	va_end(ap);
}

void tool_warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message("warning: ", fmt, ap);
	va_end(ap);
}

int tool_fail(const struct error *err)
{
	if (err->text[0])
		tool_error("%s", err->text);
	else
		tool_error("%s", errno_text(err->code ? err->code : -EIO));
	return 1;
}

int tool_finish(int rc)
{
	bool failed = fflush(stdout) != 0 || ferror(stdout);
	int code = errno;

	if (failed && rc == 0) {
		fprintf(stderr, "%s: the output could not be written: %s\n", name_of_tool,
			code ? errno_text(code) : "it is closed");
		rc = 1;
	}
	return rc;
}

void tool_version(void)
{
	printf("%s version 10.0.0 (drover " DROVER_VERSION ")\n", name_of_tool);
	printf("Copyright (c) the drover authors; licence: MIT\n");
}

struct size_text size_short(uint64_t bytes)
{
	static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
	struct size_text t;
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 1000 && u + 1 < ARRAY_SIZE(units)) {
		v /= 1024;
		u++;
	}
	snprintf(t.s, sizeof(t.s), "%0.3g %sB", v, units[u]);
	return t;
}
