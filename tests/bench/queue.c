/* SPDX-License-Identifier: MIT */
/*
 * Random requests of one size through drover_queue at a given depth, as a VMM would send them:
 * queue FORMAT IMAGE read|write DEPTH SECONDS [BYTES]. Prints requests a second.
 */
#include "drover.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEPTH_MAX 1024

struct load {
	struct drover_image *img;
	struct drover_queue *queue;
	void *buf[DEPTH_MAX];
	uint32_t depth;
	size_t bytes;
	uint64_t blocks, seed, done;
	int write;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random_block(struct load *l)
{
	l->seed ^= l->seed << 13;
	l->seed ^= l->seed >> 7;
	l->seed ^= l->seed << 17;
	return l->seed % l->blocks;
}

static int send_one(struct load *l, void *buf)
{
	struct drover_slot *slot = drover_queue_get(l->queue);
	uint64_t off = random_block(l) * l->bytes;

	if (!slot)
		return -EBUSY;
	if (l->write)
		drover_slot_write(slot, off, buf, l->bytes, 0, buf);
	else
		drover_slot_read(slot, off, buf, l->bytes, buf);
	return 0;
}

static int run(struct load *l, double seconds)
{
	struct drover_result results[DEPTH_MAX];
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
	uint32_t in_flight = 0;

	for (uint32_t i = 0; i < l->depth; i++, in_flight++) {
		if (send_one(l, l->buf[i]))
			return -EBUSY;
	}
	while (in_flight) {
		int n = drover_queue_reap(l->queue, results, 1, l->depth, -1);
		int more = now_ns() < end;

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			if (results[i].result)
				return results[i].result;
			l->done++;
			in_flight--;
			if (more && !send_one(l, results[i].user))
				in_flight++;
		}
	}
	return 0;
}

static int prepare(struct load *l, const char *format, const char *name, struct drover_error *err)
{
	struct drover_open_opts open_opts = DROVER_INIT(struct drover_open_opts);
	struct drover_queue_opts queue_opts = DROVER_INIT(struct drover_queue_opts);
	int r;

	open_opts.format = format;
	open_opts.flags = l->write ? DROVER_OPEN_RDWR : 0;
	r = drover_open(name, &open_opts, drover_trust(DROVER_TRUST_LOCAL), &l->img, err);
	if (r)
		return r;
	queue_opts.slots = l->depth;
	r = drover_queue_new(l->img, &queue_opts, &l->queue, err);
	if (r)
		return r;
	l->blocks = drover_image_size(l->img) / l->bytes;
	for (uint32_t i = 0; i < l->depth; i++) {
		if (posix_memalign(&l->buf[i], 4096, l->bytes))
			return -ENOMEM;
		memset(l->buf[i], 0x5a, l->bytes);
	}
	return l->blocks ? 0 : -EINVAL;
}

int main(int argc, char **argv)
{
	struct load l = {.seed = 88172645463325252u, .bytes = 4096};
	struct drover_error err = {0};
	uint64_t start;
	double seconds;
	int r;

	if (argc < 6) {
		fprintf(stderr, "usage: queue FORMAT IMAGE read|write DEPTH SECONDS [BYTES]\n");
		return 2;
	}
	l.write = !strcmp(argv[3], "write");
	l.depth = (uint32_t)atoi(argv[4]);
	seconds = atof(argv[5]);
	if (argc > 6)
		l.bytes = (size_t)atol(argv[6]);
	if (l.depth < 1 || l.depth > DEPTH_MAX || !l.bytes)
		return 2;
	r = prepare(&l, argv[1], argv[2], &err);
	start = now_ns();
	if (!r)
		r = run(&l, seconds);
	if (r) {
		fprintf(stderr, "queue: %s\n", err.text[0] ? err.text : strerror(-r));
		return 1;
	}
	printf("%.0f\n", (double)l.done * 1e9 / (double)(now_ns() - start));
	drover_queue_free(l.queue);
	for (uint32_t i = 0; i < l.depth; i++)
		free(l.buf[i]);
	return drover_close(l.img, &err) ? 1 : 0;
}
