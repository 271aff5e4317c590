/* SPDX-License-Identifier: MIT */
/* Data of requests: patterns, dumps, numbers as typed, and the report of what a request took. */
#include "tools/qemu-io/io.h"
#include "base/mem.h"
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MISALIGN 16u /* bytes that -m puts in front of a buffer */

void *io_buffer_alloc(size_t len, int pattern)
{
	char *buf = block_buffer_alloc(io.node, len + MISALIGN);

	if (!buf) {
		printf("out of memory for a buffer of %zu bytes\n", len);
		return NULL;
	}
	if (io.misalign)
		buf += MISALIGN;
	memset(buf, pattern, len);
	return buf;
}

void io_buffer_free(void *buf)
{
	if (buf && io.misalign)
		buf = (char *)buf - MISALIGN;
	mem_free(buf);
}

int io_buffer_fill_from(void *buf, size_t len, const char *filename)
{
	int fd = open(filename, O_RDONLY | O_CLOEXEC);
	size_t have = 0;
	ssize_t n = -1;

	if (fd < 0) {
		printf("%s: %s\n", filename, errno_text(errno));
		return -errno;
	}
	while (have < len) {
		n = pread(fd, (char *)buf + have, len - have, (off_t)have);
		if (n <= 0)
			break;
		have += (size_t)n;
	}
	close(fd);
	if (n < 0 && len) {
		printf("%s: could not be read: %s\n", filename, errno_text(errno));
		return -EIO;
	}
	if (!have && len) {
		printf("%s: the pattern file is empty\n", filename);
		return -EINVAL;
	}
	for (size_t at = have; at < len; at++)
		((char *)buf)[at] = ((char *)buf)[at - have];
	return 0;
}

void io_buffer_dump(const void *buf, size_t len, uint64_t off)
{
	const uint8_t *p = buf;

	for (size_t i = 0; i < len; i += 16) {
		size_t n = MIN(len - i, (size_t)16);

		printf("%08llx:  ", (unsigned long long)(off + i));
		for (size_t k = 0; k < n; k++)
			printf("%02x ", p[i + k]);
		putchar(' ');
		for (size_t k = 0; k < n; k++)
			putchar(p[i + k] > 32 && p[i + k] < 127 ? p[i + k] : '.');
		putchar('\n');
	}
}

int io_parse_offset(const char *text, uint64_t *ret)
{
	int r = parse_size(text, ret);

	if (r == -ERANGE)
		printf("Parsing error: argument too large -- %s\n", text);
	else if (r < 0)
		printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- "
		       "%s\n",
			text);
	return r;
}

int io_parse_length(const char *text, uint64_t max, uint64_t *ret)
{
	int r = io_parse_offset(text, ret);

	if (r == 0 && *ret > max) {
		printf("length cannot exceed %llu, given %s\n", (unsigned long long)max, text);
		r = -EINVAL;
	}
	return r;
}

int io_parse_pattern(const char *text, int *ret)
{
	uint64_t v;

	if (parse_u64(text, &v) < 0 || v > 255) {
		printf("%s is not a valid pattern byte\n", text);
		return -EINVAL;
	}
	*ret = (int)v;
	return 0;
}

struct size_text io_size(double bytes)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	struct size_text t;
	unsigned u = 0;
	char number[24];
	char *dot;

	while (bytes >= 1024 && u + 1 < ARRAY_SIZE(units)) {
		bytes /= 1024;
		u++;
	}
	snprintf(number, sizeof(number), u ? "%.3f" : "%f", bytes);
	dot = strchr(number, '.');
	if (dot && strspn(dot + 1, "0") == strlen(dot + 1))
		*dot = '\0';
	snprintf(t.s, sizeof(t.s), "%s %s", number, units[u]);
	return t;
}

static void time_text(uint64_t ns, bool machine, char *ret, size_t n)
{
	uint64_t cs = ns / 10000000, sec = cs / 100;

	if (machine || sec >= 60)
		snprintf(ret, n, "%llu:%02u:%02u.%02u", (unsigned long long)(sec / 3600),
			(unsigned)(sec / 60 % 60), (unsigned)(sec % 60), (unsigned)(cs % 100));
	else
		snprintf(ret, n, "%02u.%02u sec", (unsigned)sec, (unsigned)(cs % 100));
}

void io_report(const struct io_report *r)
{
	double sec = (double)MAX(r->ns, (uint64_t)1) / 1e9;
	char t[32];

	if (r->quiet)
		return;
	time_text(r->ns, r->machine, t, sizeof(t));
	if (r->machine) {
		printf("%llu,%u,%s,%.3f,%.3f\n", (unsigned long long)r->done, r->ops, t,
			(double)r->done / sec, r->ops / sec);
		return;
	}
	printf("%s %llu/%llu bytes at offset %llu\n", r->verb, (unsigned long long)r->done,
		(unsigned long long)r->asked, (unsigned long long)r->off);
	printf("%s, %u ops; %s (%s/sec and %.4f ops/sec)\n", io_size((double)r->done).s, r->ops, t,
		io_size((double)r->done / sec).s, r->ops / sec);
}

uint64_t io_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
