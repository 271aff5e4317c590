/* SPDX-License-Identifier: MIT */
/* The RAM disks of the crash harness: storage, event log, touched sectors, faults. */
#include "tests/crash/disk.h"
#include "base/co.h"
#include <stdio.h>
#include <stdlib.h>

struct disk disks[DISKS];
struct event_log disk_log;
uint64_t disk_clock;
struct disk_fault disk_fault;

struct crash_disk {
	struct disk *disk;
};

static void *need(void *p)
{
	if (!p) {
		fprintf(stderr, "crash harness: out of memory\n");
		exit(2);
	}
	return p;
}

uint64_t disk_tick(void)
{
	return ++disk_clock;
}

void disk_reserve(struct disk *d, uint64_t size)
{
	uint64_t cap = d->cap ? d->cap : 256 * KiB, sectors;

	if (size <= d->cap)
		return;
	while (cap < size)
		cap *= 2;
	d->data = need(realloc(d->data, cap));
	memset(d->data + d->cap, 0, cap - d->cap);
	sectors = cap / SECTOR;
	d->touched = need(realloc(d->touched, sectors / 8));
	memset((uint8_t *)d->touched + d->cap / SECTOR / 8, 0, (cap - d->cap) / SECTOR / 8);
	d->cap = cap;
}

void disk_track(struct disk *d)
{
	for (uint32_t i = 0; i < d->ntouched; i++)
		d->touched[d->touched_list[i] / 64] = 0;
	d->ntouched = 0;
	d->tracking = true;
}

void disk_touch(struct disk *d, uint64_t off, uint64_t len)
{
	if (!d->tracking)
		return;
	for (uint64_t s = off / SECTOR; s < div_up(off + len, SECTOR); s++) {
		if (d->touched[s / 64] >> (s % 64) & 1)
			continue;
		d->touched[s / 64] |= 1ULL << (s % 64);
		if (d->ntouched == d->touched_cap) {
			d->touched_cap = d->touched_cap ? 2 * d->touched_cap : 1024;
			d->touched_list = need(
				realloc(d->touched_list, d->touched_cap * sizeof(uint32_t)));
		}
		d->touched_list[d->ntouched++] = (uint32_t)s;
	}
}

static void set_size(struct disk *d, uint64_t size)
{
	disk_reserve(d, align_up(size, SECTOR));
	if (size < d->size) {
		disk_touch(d, size, d->size - size);
		memset(d->data + size, 0, d->size - size);
	}
	d->size = size;
}

void disk_set(struct disk *d, const void *data, uint64_t size)
{
	bool tracking = d->tracking;

	d->tracking = false;
	set_size(d, 0);
	set_size(d, size);
	if (size)
		memcpy(d->data, data, size);
	d->tracking = tracking;
}

void disk_apply_part(struct disk *d, const struct event *e, uint64_t from, uint64_t to)
{
	if (e->kind == EV_TRUNCATE) {
		set_size(d, e->off);
		return;
	}
	if (e->kind == EV_FLUSH || from >= to)
		return;
	if (e->off + to > d->size)
		set_size(d, e->off + to);
	disk_touch(d, e->off + from, to - from);
	if (e->kind == EV_ZERO)
		memset(d->data + e->off + from, 0, to - from);
	else
		memcpy(d->data + e->off + from, e->data + from, to - from);
}

void disk_apply(struct disk *d, const struct event *e)
{
	disk_apply_part(d, e, 0, e->len);
}

void disk_log_clear(void)
{
	for (size_t i = 0; i < disk_log.n; i++)
		free(disk_log.ev[i].data);
	disk_log.n = 0;
	disk_clock = 0;
}

void disk_free_all(void)
{
	disk_log_clear();
	free(disk_log.ev);
	memset(&disk_log, 0, sizeof(disk_log));
	for (unsigned i = 0; i < DISKS; i++) {
		free(disks[i].data);
		free(disks[i].touched);
		free(disks[i].touched_list);
		memset(&disks[i], 0, sizeof(disks[i]));
	}
}

/* --- the driver ---------------------------------------------------------------------------- */

/* Index of the new event in the log, SIZE_MAX when this disk keeps none. */
static size_t log_begin(struct disk *d, enum event_kind kind, uint64_t off, uint64_t len)
{
	struct event *e;

	if (!d->logging)
		return SIZE_MAX;
	if (disk_log.n == disk_log.cap) {
		disk_log.cap = disk_log.cap ? 2 * disk_log.cap : 256;
		disk_log.ev = need(realloc(disk_log.ev, disk_log.cap * sizeof(*disk_log.ev)));
	}
	e = &disk_log.ev[disk_log.n];
	*e = (struct event){kind, (unsigned)(d - disks), off, len, NULL, disk_tick(), UINT64_MAX};
	return disk_log.n++;
}

static void log_done(size_t i)
{
	if (i != SIZE_MAX)
		disk_log.ev[i].done = disk_tick();
}

static int fault(unsigned what)
{
	struct disk_fault *f = &disk_fault;

	if (!(f->what & what))
		return 0;
	f->calls++;
	if (!f->k || (f->forever ? f->calls < f->k : f->calls != f->k))
		return 0;
	return f->error;
}

static const struct conf_key keys[] = {
	{"disk", CONF_KEY_NUMBER, NULL, 0, DISKS - 1, "which disk of the harness"},
	{NULL, CONF_KEY_STRING, NULL, 0, 0, NULL},
};

static int co_disk_open(struct block_node *n, struct conf *opts, struct error *err)
{
	struct crash_disk *p = n->priv;
	uint64_t i = 0;
	int r = conf_get_u64(opts, keys, "disk", &i, err);

	if (r)
		return r;
	p->disk = &disks[i];
	n->size = p->disk->size;
	n->caps.align = 1;
	n->caps.zero_align = n->caps.discard_align = 1;
	n->caps.zero_flags = BLOCK_IO_UNMAP;
	n->caps.zero_init = true;
	n->caps.grows = true;
	return 0;
}

static int co_disk_close(struct block_node *n)
{
	return 0;
}

static struct disk *disk_of(struct block_node *n)
{
	return ((struct crash_disk *)n->priv)->disk;
}

static void co_give_way(const struct disk *d)
{
	if (d->yields)
		co_pause();
}

static int co_disk_read(struct block_node *n, struct block_io *io)
{
	struct disk *d = disk_of(n);
	int r;

	co_give_way(d);
	r = fault(FAIL_READ);
	if (r)
		return r;
	if (!range_inside(io->off, io->len, align_up(d->size, SECTOR)))
		return -EIO;
	iov_copy_to(io->buf, d->data + io->off);
	co_give_way(d);
	return 0;
}

static int co_disk_write(struct block_node *n, struct block_io *io)
{
	struct disk *d = disk_of(n);
	size_t i;
	int r;

	co_give_way(d);
	d->changes++;
	if (io->off + io->len > DISK_MAX_CAP)
		return -ENOSPC;
	i = log_begin(d, EV_WRITE, io->off, io->len);
	if (i != SIZE_MAX) {
		disk_log.ev[i].data = need(malloc(io->len));
		iov_copy_from(disk_log.ev[i].data, io->buf);
	}
	r = fault(FAIL_WRITE);
	if (r && !disk_fault.torn)
		return r;
	if (r && io->len > SECTOR)
		io->buf = iov_cut(io->buf, 0, align_down(io->len / 2, SECTOR));
	else if (r)
		return r;
	if (io->off + io->buf.len > d->size)
		set_size(d, io->off + io->buf.len);
	disk_touch(d, io->off, io->buf.len);
	iov_copy_from(d->data + io->off, io->buf);
	if (r)
		return r;
	co_give_way(d);
	log_done(i);
	return 0;
}

static int co_disk_punch(struct block_node *n, struct block_io *io)
{
	struct disk *d = disk_of(n);
	size_t i;
	int r;

	co_give_way(d);
	d->changes++;
	if (io->off + io->len > DISK_MAX_CAP)
		return -ENOSPC;
	i = log_begin(d, EV_ZERO, io->off, io->len);
	r = fault(FAIL_ZERO);
	if (r)
		return r;
	if (io->off + io->len > d->size)
		set_size(d, io->off + io->len);
	disk_touch(d, io->off, io->len);
	memset(d->data + io->off, 0, io->len);
	co_give_way(d);
	log_done(i);
	return 0;
}

static int co_disk_resize(struct block_node *n, const struct block_resize *r, struct error *err)
{
	struct disk *d = disk_of(n);
	size_t i = log_begin(d, EV_TRUNCATE, r->size, 0);
	int rc = fault(FAIL_RESIZE);

	d->changes++;
	if (rc)
		return error_set(err, rc, "The disk refused to be resized.");
	if (r->size > DISK_MAX_CAP)
		return error_set(err, -EFBIG, "The disk does not take that size.");
	set_size(d, r->size);
	log_done(i);
	return 0;
}

/* What a flush covers is decided by its issue: writes that were done by then. */
static int co_disk_flush(struct block_node *n)
{
	struct disk *d = disk_of(n);
	size_t i = log_begin(d, EV_FLUSH, 0, 0);
	int r = fault(FAIL_FLUSH);

	if (r)
		return r;
	co_give_way(d);
	log_done(i);
	return 0;
}

static int co_disk_extent(
	struct block_node *n, uint64_t off, uint64_t len, struct block_extent *ret)
{
	*ret = (struct block_extent){
		.len = len,
		.flags = BLOCK_EXTENT_DATA | BLOCK_EXTENT_ALLOCATED | BLOCK_EXTENT_MAPPED,
		.host_off = off,
		.host = n,
	};
	return 0;
}

static int co_disk_actual_size(struct block_node *n, uint64_t *ret)
{
	*ret = disk_of(n)->size;
	return 0;
}

const struct block_driver crash_disk = {
	.name = "crash-disk",
	.kind = BLOCK_KIND_PROTOCOL,
	.node_size = sizeof(struct crash_disk),
	.open_keys = keys,
	.co_open = co_disk_open,
	.co_resize = co_disk_resize,
	.co_close = co_disk_close,
	.co_read = co_disk_read,
	.co_write = co_disk_write,
	.co_zero = co_disk_punch,
	.co_discard = co_disk_punch,
	.co_flush = co_disk_flush,
	.co_extent = co_disk_extent,
	.co_actual_size = co_disk_actual_size,
};
