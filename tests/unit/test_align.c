/* SPDX-License-Identifier: MIT */
/* Alignment: random requests against a driver that checks every rule it is promised. */
#include "tests/unit/block.h"

#define SIZE (256 * KiB)

static struct block_caps strict_caps;
static uint64_t strict_size;
static char store[4 * SIZE];
static bool yields;

static void check_rules(struct block_node *n, const struct block_io *io, bool write)
{
	uint64_t end = io->off + io->len, size = block_size(n);

	check(io->len > 0 && io->buf.len == io->len);
	check(is_aligned(io->off, strict_caps.align));
	check(is_aligned(io->len, strict_caps.align) || (write ? end >= size : end == size));
	check(end <= size || (write && strict_caps.grows));
	check(!strict_caps.max_io || io->len <= strict_caps.max_io);
	check(!strict_caps.max_iov || iov_segments(io->buf) <= strict_caps.max_iov);
	check(is_aligned(io->len, strict_caps.align) ||
		iov_aligned(iov_cut(io->buf, 0, align_down(io->len, strict_caps.align)),
			strict_caps.buf_align));
}

static int co_strict_read(struct block_node *n, struct block_io *io)
{
	check_rules(n, io, false);
	if (yields)
		co_pause();
	iov_copy_to(io->buf, store + io->off);
	if (yields)
		co_pause();
	return 0;
}

static int co_strict_write(struct block_node *n, struct block_io *io)
{
	check_rules(n, io, true);
	if (yields)
		co_pause();
	iov_copy_from(store + io->off, io->buf);
	if (yields)
		co_pause();
	return 0;
}

static int co_strict_open(struct block_node *n, struct conf *opts, struct error *err)
{
	n->caps = strict_caps;
	n->size = strict_size;
	return 0;
}

static const struct block_driver strict = {
	.name = "strict",
	.kind = BLOCK_KIND_PROTOCOL,
	.co_open = co_strict_open,
	.co_read = co_strict_read,
	.co_write = co_strict_write,
};

static struct block_node *open_strict(struct block_caps caps, uint64_t size)
{
	struct block_open_opts o = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_STORE | BLOCK_OPEN_UNMAP,
		.perm = BLOCK_PERM_READ | BLOCK_PERM_WRITE | (caps.grows ? BLOCK_PERM_RESIZE : 0),
		.shared = BLOCK_PERM_ALL,
		.trust = &block_trust_local,
	};
	struct error err = ERROR_INIT;
	struct block_node *n;

	strict_caps = caps;
	strict_size = size;
	memset(store, 0, sizeof(store));
	check_int(co_block_open_on(&strict, NULL, NULL, &o, &n, &err), 0);
	return n;
}

/* A slice of random segments inside `mem`, len bytes in all. */
static struct iov_slice scatter(char *mem, size_t len, struct iovec *iov, unsigned max)
{
	unsigned n = 0;
	size_t left = len, skip = (size_t)rand() % 32;

	mem += (size_t)(rand() % 2) * ((size_t)rand() % 4096);
	iov[0] = (struct iovec){mem, skip};
	while (left) {
		size_t part = 1 + (size_t)rand() % left;

		if (rand() % 2)
			part = align_up(part, 512) < left ? align_up(part, 512) : left;
		if (n == max - 1)
			part = left;
		if (!n)
			iov[0].iov_len += part;
		else
			iov[n] = (struct iovec){mem, part};
		mem += part + (n ? 0 : skip);
		if (rand() % 3 == 0)
			mem += 512;
		left -= part;
		n++;
	}
	return (struct iov_slice){iov, n, skip, len};
}

static void random_ops(struct block_caps caps, uint64_t size, unsigned seed)
{
	struct block_node *n = open_strict(caps, size);
	char *shadow = calloc(1, 4 * SIZE), *mem = aligned_alloc(4096, 8 * SIZE),
	     *flat = malloc(2 * SIZE);
	struct iovec iov[12];

	srand(seed);
	for (int i = 0; i < 400; i++) {
		uint64_t limit = caps.grows ? block_size(n) + 20000 : block_size(n);
		uint64_t off, len;

		limit = MIN(limit, 3 * SIZE);
		off = (uint64_t)rand() % limit;
		len = 1 + (uint64_t)rand() % (rand() % 4 ? 5000 : 150000);
		if (rand() % 3 == 0)
			off = align_down(off, 512), len = align_up(len, 512);
		len = MIN(len, limit - off);
		struct iov_slice s = scatter(mem, len, iov, 1 + (unsigned)rand() % 12);

		switch (rand() % 3) {
		case 0:
			fill(flat, len, off, (unsigned)i);
			iov_copy_to(s, flat);
			check_int(co_block_write(n, off, s, 0), 0);
			memcpy(shadow + off, flat, len);
			break;
		case 1:
			check_int(co_block_zero(n, off, len, 0), 0);
			memset(shadow + off, 0, len);
			break;
		default:
			iov_fill(s, 0xee);
			check_int(co_block_read(n, off, s, 0), 0);
			iov_copy_from(flat, s);
			check(!memcmp(flat, shadow + off, len));
		}
	}
	check(!memcmp(store, shadow, 4 * SIZE));
	free(shadow);
	free(mem);
	free(flat);
	co_block_node_unref(n);
}

CO_TEST(test_random)
{
	static const struct block_caps caps[] = {
		{.align = 1, .buf_align = 1},
		{.align = 1, .buf_align = 512, .max_iov = 3},
		{.align = 512, .buf_align = 512},
		{.align = 512, .buf_align = 4, .max_io = 4096, .max_iov = 1},
		{.align = 4096, .buf_align = 512, .max_io = 65536},
		{.align = 4096, .buf_align = 4096, .max_iov = 2},
		{.align = 65536, .buf_align = 1, .max_io = 65536},
	};

	yields = false;
	for (size_t i = 0; i < ARRAY_SIZE(caps); i++) {
		struct block_caps growing = caps[i];

		growing.grows = true;
		for (unsigned seed = 0; seed < 5; seed++) {
			random_ops(caps[i], SIZE, seed);
			random_ops(caps[i], SIZE - 777, seed);
			random_ops(growing, 1000, seed);
			random_ops(growing, 0, seed);
		}
	}
}

/* --- many writers inside the same blocks ---------------------------------------------------- */

#define WRITERS 16
#define PART    100

static struct block_node *shared_node;
static unsigned running;

static void co_writer(void *arg)
{
	unsigned k = (unsigned)(uintptr_t)arg;
	char buf[PART];

	for (unsigned round = 0; round < 20; round++) {
		/* Each writer owns bytes [k * PART, +PART) of every 4 KiB block. */
		uint64_t off = (round % 3) * 4096 + k * PART;

		fill(buf, PART, off, round);
		check_int(co_block_pwrite(shared_node, off, buf, PART), 0);
		check(reads_fill(shared_node, off, PART, round));
	}
	running--;
}

static void co_run_writers(void)
{
	struct block_caps caps = {.align = 4096, .buf_align = 1};

	shared_node = open_strict(caps, SIZE);
	yields = true;
	running = WRITERS;
	for (unsigned k = 0; k < WRITERS; k++)
		check_int(co_start(co_writer, (void *)(uintptr_t)k), 0);
	while (running)
		co_pause();
	for (unsigned k = 0; k < WRITERS; k++)
		for (unsigned b = 0; b < 3; b++)
			check(reads_fill(shared_node, b * 4096 + k * PART, PART,
				b == 0           ? 18
					: b == 1 ? 19
						 : 17));
	co_block_node_unref(shared_node);
}

/* With the wrong order of a read-modify-write a neighbour's bytes would be lost. */
static void test_neighbours(void **state)
{
	for (uint64_t seed = 1; seed <= 100; seed++) {
		struct ring_opts o = {.kind = RING_SIM, .seed = seed};
		struct error err = ERROR_INIT;
		struct ring *ring;
		void (*fn)(void) = co_run_writers;

		assert_int_equal(ring_new(&o, &ring, &err), 0);
		assert_int_equal(co_run(test_in_co, &fn), 0);
		ring_free(ring);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_neighbours),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
