/* SPDX-License-Identifier: MIT */
/*
 * The crash harness's disks: RAM files under the real engine that log every change on one clock,
 * remember which sectors were touched, fail on request and give way to other coroutines.
 *
 * The disks are numbered; a driver (`crash-disk`) opens one by its option `disk`. A disk keeps its
 * content over opens and closes, like a file.
 */
#ifndef DROVER_TESTS_DISK_H
#define DROVER_TESTS_DISK_H

#include "block/block.h"

#define DISKS        2u
#define SECTOR       512u
#define DISK_MAX_CAP (256 * MiB)

enum event_kind { EV_WRITE, EV_ZERO, EV_TRUNCATE, EV_FLUSH };

/* One call that changed (or flushed) a disk. */
struct event {
	enum event_kind kind;
	unsigned disk;
	uint64_t off, len;     /* bytes; truncate: off is the new size */
	uint8_t *data;         /* writes: a copy of len bytes, owned by the log */
	uint64_t issued, done; /* clock; done UINT64_MAX while in flight or when failed */
};

struct event_log {
	struct event *ev;
	size_t n, cap;
};

enum fail_what {
	FAIL_READ = 1,
	FAIL_WRITE = 2,
	FAIL_ZERO = 4, /* zeroes and punches */
	FAIL_RESIZE = 8,
	FAIL_FLUSH = 16,
	FAIL_ANY = 31,
};

struct disk {
	uint8_t *data;
	uint64_t size, cap; /* bytes; data beyond size is zero */
	/* Sectors changed since disk_track(): a bit each, and the list of set ones. */
	uint64_t *touched;
	uint32_t *touched_list;
	uint32_t ntouched, touched_cap;
	uint64_t changes; /* calls that changed the content */
	bool tracking;
	bool logging;
	bool yields; /* gives way before and after each request */
};

extern struct disk disks[DISKS];
extern struct event_log disk_log;
extern uint64_t disk_clock;

/* The k-th call (from 1) of the kinds in `what` fails with `error` (negative), all later ones too
 * with `forever`; k == 0: off. disk_fault_calls counts calls of those kinds. */
struct disk_fault {
	uint64_t k, calls;
	unsigned what;
	int error;
	bool forever, torn; /* torn: a failing write leaves its first half behind */
};
extern struct disk_fault disk_fault;

extern const struct block_driver crash_disk;

void disk_set(struct disk *d, const void *data, uint64_t size); /* replaces the content */
void disk_reserve(struct disk *d, uint64_t size);
void disk_track(struct disk *d);                        /* forgets what was touched */
void disk_apply(struct disk *d, const struct event *e); /* the event's whole effect */
/* Bytes [from, to) of the event's data only. */
void disk_apply_part(struct disk *d, const struct event *e, uint64_t from, uint64_t to);
void disk_touch(struct disk *d, uint64_t off, uint64_t len);

void disk_log_clear(void);
uint64_t disk_tick(void); /* the next clock value: for marks between events */
void disk_free_all(void);

#endif
