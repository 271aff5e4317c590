/* SPDX-License-Identifier: MIT */
/*
 * qemu-io's map: the session with its one open image, and the tables of commands by file.
 */
#ifndef DROVER_QEMU_IO_H
#define DROVER_QEMU_IO_H

#include "tools/tool.h"

struct io_session {
	struct image_common common; /* trust and objects of the command line */
	struct block_node *node;    /* NULL: no file open */
	bool misalign;              /* buffers end on odd addresses (tests of O_DIRECT) */
	struct co_counter aio;      /* asynchronous requests in flight */
	bool quit;
	int code; /* exit code: 1 once a command has failed */
};

/* The program has one session; commands find it here. */
extern struct io_session io;

/* One command: the option table as everywhere, and what qemu-io adds. */
struct io_command {
	struct command c;
	const char *alias; /* NULL: none */
	const char *more;  /* extended help; NULL: none */
	bool needs_no_file;
};

/* --- command.c --- */
/* Runs one line; a failure is printed and sets io.code. Lines of blanks and # comments are fine. */
void co_io_line(const char *line);
extern const struct io_command *const io_commands[]; /* ends with NULL */

/* --- buffer.c: data of requests --- */
/* A buffer for the open image, filled with `pattern`; io_buffer_free() frees it. NULL: no memory
 * (printed). */
void *io_buffer_alloc(size_t len, int pattern);
void io_buffer_free(void *buf);
/* Fills buf with the content of a file, repeated. */
int io_buffer_fill_from(void *buf, size_t len, const char *filename);
void io_buffer_dump(const void *buf, size_t len, uint64_t off);
/* Offset, length or size as typed; prints what is wrong. */
int io_parse_offset(const char *text, uint64_t *ret);
int io_parse_length(const char *text, uint64_t max, uint64_t *ret);
int io_parse_pattern(const char *text, int *ret);
/* "64 KiB", "1.500 KiB", "40 bytes": as qemu-io shows sizes. */
struct size_text io_size(double bytes);
/* The two lines about a request that took ns nanoseconds. */
struct io_report {
	const char *verb; /* "wrote" */
	uint64_t off, asked, done, ns;
	unsigned ops;
	bool quiet, machine;
};
void io_report(const struct io_report *r);
uint64_t io_now_ns(void);

/* --- the commands, by file --- */
extern const struct io_command io_read, io_readv, io_write, io_writev;              /* rw.c */
extern const struct io_command io_aio_read, io_aio_write, io_aio_flush;             /* aio.c */
extern const struct io_command io_flush, io_discard, io_truncate, io_alloc, io_map; /* space.c */
extern const struct io_command io_open, io_close, io_reopen, io_length, io_info;    /* file.c */
extern const struct io_command io_abort, io_sigraise, io_sleep, io_quit, io_help;   /* misc.c */
extern const struct io_command io_break, io_remove_break, io_wait_break, io_resume; /* break.c */

/* --- break.c --- */
/* Nobody is held at a breakpoint any more (before the file is closed). */
void io_release_breaks(void);

/* --- file.c --- */
/* Opens into io.node; prints the error. */
struct io_open_opts {
	struct image_common c;
	bool read_only, snapshot, no_cache, copy_on_read, native;
	const char *aio, *discard, *detect_zeroes;
	struct opt_texts more;
};
int co_io_open(const struct io_open_opts *o, const char *name);
void co_io_close(void);

#endif
