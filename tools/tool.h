/* SPDX-License-Identifier: MIT */
/*
 * What every tool shares: messages, option tables, opening images as users name them, progress.
 *
 * A tool is a table of commands; a command is a table of options and a function. The function runs
 * as one coroutine (co_run) and returns the exit code, having printed its sentence.
 */
#ifndef DROVER_TOOL_H
#define DROVER_TOOL_H

#include "base/json.h"
#include "block/block.h"
#include <stdio.h>

/* --- output.c: messages, sizes, the end of stdout ------------------------------------------- */

/* Name in front of messages, as `qemu-img`. Opens /dev/null on closed standard descriptors, so that
 * no image ever gets number 0, 1 or 2; ignores SIGPIPE (a closed pipe is an error of the write). */
void tool_start(const char *name);
const char *tool_name(void);
/* "NAME: sentence" on stderr. Flushes stdout first, so that both come out in order. */
void tool_error(const char *fmt, ...) attr_printf(1, 2);
void tool_warn(const char *fmt, ...) attr_printf(1, 2);
/* Prints the sentence of err (or the text of its code) and returns 1, the general exit code. */
int tool_fail(const struct error *err);
/* Flushes stdout; an output that could not be written turns `rc` 0 into 1, with a sentence. */
int tool_finish(int rc);
/* The lines of --version. */
void tool_version(void);

/* "1.5 MiB": at most three significant digits, as image sizes are shown. */
struct size_text {
	char s[32];
};
struct size_text size_short(uint64_t bytes);

/* --- options.c: tables of options, --help from the same table -------------------------------- */

enum opt_kind {
	OPT_END,
	OPT_FLAG,     /* bool: set to true */
	OPT_TEXT,     /* const char *: the last one wins */
	OPT_TEXTS,    /* struct opt_texts: every one, in order */
	OPT_SIZE,     /* uint64_t: bytes, with suffix */
	OPT_NUMBER,   /* uint64_t */
	OPT_ENUM,     /* int: from `values` */
	OPT_OPTIONAL, /* const char *: "" for the bare option, or the text of --name=TEXT */
};

struct opt_texts {
	const char **v; /* room for as many as there are arguments; freed by options_free() */
	unsigned n;
};

struct opt {
	enum opt_kind kind; /* a table ends with OPT_END */
	char letter;        /* 0: long only */
	const char *name;   /* NULL: letter only */
	const char *arg;    /* name of the argument in the help */
	const char *help;   /* NULL: another spelling, accepted but not shown */
	size_t at;          /* offset of the field in the command's option struct */
	const struct conf_enum *values;
	uint64_t min, max; /* sizes and numbers; max 0: no bound */
};

struct command {
	const char *name, *summary;
	const char *args;       /* positional arguments for the usage line */
	const char *wrong_args; /* sentence when their number is wrong */
	unsigned min_args, max_args;
	const struct opt *opts;
	const void *defaults; /* the option struct's initial value; NULL: zeroes */
	size_t opts_size;
	/* Before the event loop exists; an exit code other than 0 ends it. NULL: nothing to do. */
	int (*prepare)(void *opts);
	/* The work, in a coroutine: returns the exit code. */
	int (*co_run)(void *opts, char *const *args, unsigned nargs);
	bool inner; /* a command inside a tool: its help is `help NAME` */
};

/* Parses argv[1..] into the zeroed or preset struct *ret and the positional arguments into
 * ret_args (room for argc). Long names may be cut to a unique prefix and written with one value
 * as --name=V or --name V; letters may be joined; options and arguments may be mixed; `--` ends
 * the options; an argument of `-` and a digit is positional. 0, 1 when help was printed, or
 * -EINVAL with the sentence printed. */
int options_parse(const struct command *c, int argc, char **argv, void *ret, char **ret_args,
	unsigned *ret_nargs);
/* What options_parse() allocated inside the struct. */
void options_free(const struct command *c, void *opts);
void options_help(const struct command *c);
/* Parses and runs inside a coroutine of its own (or plainly, when called from one); returns the
 * exit code. */
int command_run(const struct command *c, int argc, char **argv);

/* --- image.c: opening images as users name them ---------------------------------------------- */

/* Options that all commands on images have, first member of their option structs. */
struct image_common {
	struct opt_texts objects;
	const char *format;
	bool image_opts, force_share, quiet, untrusted, trust_names;
	int cache; /* enum block_cache */
	const char *progress;
};

#define IMAGE_OPT(type, kind_, letter_, name_, arg_, help_, field)                                 \
	{                                                                                          \
		.kind = kind_, .letter = letter_, .name = name_, .arg = arg_, .help = help_,       \
		.at = offsetof(type, field)                                                        \
	}
#define IMAGE_OPT_ENUM(type, letter_, name_, arg_, help_, field, values_)                          \
	{                                                                                          \
		.kind = OPT_ENUM, .letter = letter_, .name = name_, .arg = arg_, .help = help_,    \
		.at = offsetof(type, field), .values = values_                                     \
	}
#define IMAGE_OPT_NUM(type, kind_, letter_, name_, arg_, help_, field, min_, max_)                 \
	{                                                                                          \
		.kind = kind_, .letter = letter_, .name = name_, .arg = arg_, .help = help_,       \
		.at = offsetof(type, field), .min = min_, .max = max_                              \
	}

/* Rows for the tables; `c` is the struct image_common member. */
#define OPTS_COMMON(type)                                                                          \
	IMAGE_OPT(type, OPT_TEXTS, 0, "object", "OBJDEF",                                          \
		"define an object, such as a secret (type,id=ID,...)", c.objects),                 \
		IMAGE_OPT(type, OPT_FLAG, 0, "untrusted", NULL,                                    \
			"follow no name found inside an image and never guess raw", c.untrusted),  \
		IMAGE_OPT(type, OPT_FLAG, 0, "trust-image-names", NULL,                            \
			"follow every name found inside an image, json: and URLs too",             \
			c.trust_names)
#define OPTS_SOURCE(type)                                                                          \
	IMAGE_OPT(type, OPT_TEXT, 'f', "format", "FMT", "format of FILENAME (default: probed)",    \
		c.format),                                                                         \
		IMAGE_OPT(type, OPT_FLAG, 0, "image-opts", NULL,                                   \
			"FILENAME is an option string, such as driver=qcow2,file.filename=NAME",   \
			c.image_opts)
#define OPT_SHARE(type)                                                                            \
	IMAGE_OPT(type, OPT_FLAG, 'U', "force-share", NULL,                                        \
		"open the image although another program may be writing to it", c.force_share)
#define OPT_QUIET(type) IMAGE_OPT(type, OPT_FLAG, 'q', "quiet", NULL, "print errors only", c.quiet)
#define OPT_PROGRESS(type)                                                                         \
	IMAGE_OPT(type, OPT_OPTIONAL, 'p', "progress", "human|json[,fd=N]",                        \
		"show progress; json: one line an update on stderr or fd N", c.progress)

struct image_name {
	const char *name, *format; /* format NULL: probe */
	bool opts;                 /* name is an option string */
	uint32_t flags;            /* enum block_open_flags */
	int cache;
	const char *more_opts; /* further options for the node, `a=b,c=d`; NULL: none */
	bool keep_data;        /* discards do not reach the host file (discard=ignore) */
	bool detect_zeroes, detect_zeroes_unmap;
};

/* Chooses the engine of this process's rings, before the first: `threads`, `native` (another name
 * for it), `io_uring`; NULL: as it is, or threads with `native`. -EINVAL and a sentence. */
int image_set_engine(const char *aio, bool native);
/* The trust preset that the options and the environment choose; -EINVAL and a sentence when they
 * contradict each other or DROVER_TRUST is not understood. */
int image_trust(const struct image_common *c, const struct block_trust **ret);
/* --object: secrets are taken note of; other types are refused with a sentence. */
int image_objects(const struct image_common *c);
/* Opens and on failure sets err to "Could not open 'NAME': why". Warns on stderr when a raw image
 * was opened writable by guessing. */
int co_image_open(const struct image_common *c, const struct image_name *in,
	struct block_node **ret, struct error *err);
/* The same for a command's one image, by its common options and extra flags; prints the error. */
int co_image_open_common(
	const struct image_common *c, const char *name, uint32_t flags, struct block_node **ret);
/* Drops *n; when that loses data, prints a sentence and turns *rc into 1. */
void co_image_close(struct block_node **n, int *rc);

/* --- specific.c: format-specific information -------------------------------------------------- */

void image_print_specific(const struct block_image_info *info, const char *indent);
/* The member "format-specific" of an open object; info NULL: no data. */
void image_json_specific(
	struct json_writer *w, const char *type, const struct block_image_info *info);

/* --- progress.c: progress lines, and signals that end a job ---------------------------------- */

struct progress {
	struct block_job job;
	bool human, json, ended;
	int fd; /* of json lines */
	uint64_t start_ns, shown_done;
	int shown; /* in hundredths of a percent; -1: nothing yet */
};

/* `arg` is the text of --progress (NULL: not given). SIGINT, SIGTERM and SIGHUP cancel the job (a
 * second one kills), SIGUSR1 prints one line on stderr. 0, or -EINVAL with the sentence printed. */
int progress_begin(struct progress *p, const char *arg, uint64_t total, const char *phase);
/* The same for work that does not look at the job: signals kill, as they do without us. */
int progress_watch(struct progress *p, const char *arg, uint64_t total, const char *phase);
void progress_phase(struct progress *p, const char *phase);
/* Progress by a caller that counts by itself (check). */
void progress_update(struct progress *p, uint64_t done, uint64_t total);
/* Ends the lines: with `complete` by a last one of 100 %. */
void progress_end(struct progress *p, bool complete);
/* Did a signal ask to end? Its number, or 0. */
int progress_signal(void);

#endif
