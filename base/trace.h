/* SPDX-License-Identifier: MIT */
/*
 * Tracing: one line an event on stderr or a file, chosen by name pattern with `-T` or DROVER_LOG.
 * Off, an event costs one load and an untaken branch.
 */
#ifndef DROVER_TRACE_H
#define DROVER_TRACE_H

#include "base/error.h"

extern bool trace_any; /* is any pattern set? */

/* Event names are "room_object_verb"; arguments are evaluated only when tracing is on. */
#define trace(event, ...)                                                                          \
	do {                                                                                       \
		if (unlikely(__atomic_load_n(&trace_any, __ATOMIC_RELAXED)))                       \
			trace_emit(event, __VA_ARGS__);                                            \
	} while (0)

void trace_emit(const char *event, const char *fmt, ...) attr_printf(2, 3);
/* `spec` as users type it: [enable=]PATTERN[,events=FILE][,file=FILE]; PATTERN has * and ?. */
int trace_configure(const char *spec, struct error *err);
/* Where lines go instead of the file: fn gets the event's name and its text without a newline, on
 * any thread. NULL: back to the file. Set while no other thread traces. */
typedef void trace_sink_fn(void *arg, const char *event, const char *text);
void trace_sink(trace_sink_fn *fn, void *arg);
/* Reads DROVER_LOG; called once by tools and by the library at its first open. */
void trace_init(void);

#endif
