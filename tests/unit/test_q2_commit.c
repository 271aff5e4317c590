/* SPDX-License-Identifier: MIT */
/*
 * The order of writes: random requests run over the record filter, then every kind of crash state
 * between two flushes of the file is built, opened, compared with what the guest may see, written
 * to again and counted (I1 to I6, I8). The whole sequence of oracles is tests/crash/; this is the
 * core of it, small enough to run with the unit tests.
 */
#include "tests/unit/q2.h"

#define SECTORS 256u
#define OPS     40u

struct guest_op {
	enum { OP_WRITE, OP_ZERO, OP_DISCARD, OP_FLUSH } kind;
	unsigned sector, n;
	uint64_t stamp;
	size_t log_start, log_end; /* events recorded when it began and when it had ended */
};

struct history {
	const struct q2_test *t;
	struct mem_content *start;
	struct block_node *record, *n;
	struct guest_op op[OPS];
	unsigned nops;
	uint64_t rnd;
};

static void stamp_fill(uint8_t *buf, uint64_t stamp, unsigned n)
{
	for (unsigned i = 0; i < n * 64; i++)
		memcpy(buf + i * 8, &stamp, 8);
}

static struct guest_op op_pick(struct history *h)
{
	unsigned per = (1u << h->t->cluster_bits) / 512, r = (unsigned)(q2_random(&h->rnd) % 20);
	struct guest_op op = {.stamp = 0x1000 + h->nops};

	op.kind = r < 10 ? OP_WRITE : r < 13 ? OP_ZERO : r < 16 ? OP_DISCARD : OP_FLUSH;
	op.sector = (unsigned)(q2_random(&h->rnd) % SECTORS);
	op.n = 1 + (unsigned)(q2_random(&h->rnd) % 12);
	if (op.kind == OP_DISCARD) {
		op.sector = op.sector / per * per;
		op.n = (op.n + per - 1) / per * per;
	}
	op.n = MIN(op.n, SECTORS - op.sector);
	if (op.kind != OP_WRITE)
		op.stamp = 0;
	return op;
}

static int op_run(struct block_node *n, const struct guest_op *op, unsigned unmap)
{
	uint64_t off = op->sector * 512ULL, len = op->n * 512ULL;
	uint8_t buf[16 * 512];

	switch (op->kind) {
	case OP_WRITE:
		stamp_fill(buf, op->stamp, op->n);
		return co_block_pwrite(n, off, buf, len);
	case OP_ZERO:
		return co_block_zero(n, off, len, unmap ? BLOCK_IO_UNMAP : 0);
	case OP_DISCARD:
		return co_block_discard(n, off, len, 0);
	case OP_FLUSH:
		return co_block_flush(n);
	}
	return -1;
}

static size_t log_length(struct history *h)
{
	size_t n;

	record_log(h->record, &n);
	return n;
}

static void history_run(struct history *h)
{
	struct block_open_opts o = {
		.flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_UNMAP, .trust = &block_trust_local};
	struct mem_content *c;

	h->start = q2_test_build(h->t);
	check_int(mem_content_dup(h->start, &c), 0);
	check_int(co_block_open_on(&block_record, q2_test_mem(c), NULL, &o, &h->record, NULL), 0);
	h->n = q2_test_open(block_node_ref(h->record), h->t->opts, NULL);
	for (h->nops = 0; h->nops < OPS; h->nops++) {
		struct guest_op *op = &h->op[h->nops];

		*op = op_pick(h);
		op->log_start = log_length(h);
		check_int(op_run(h->n, op, (unsigned)(q2_random(&h->rnd) % 2)), 0);
		op->log_end = log_length(h);
	}
}

/* --- what the guest may see --- */

struct allowed {
	uint64_t value[OPS + 1];
	unsigned n;
};

/* After a crash with all events before log index `durable` on disk and none issued at or after
 * `issued`. */
static void allowed_find(
	const struct history *h, unsigned sector, size_t durable, size_t issued, struct allowed *a)
{
	a->value[0] = 0;
	a->n = 1;
	for (unsigned i = 0; i < h->nops && h->op[i].log_start < issued; i++) {
		const struct guest_op *op = &h->op[i];

		if (op->kind == OP_FLUSH) {
			if (op->log_end > durable)
				continue;
			a->value[0] = a->value[a->n - 1];
			a->n = 1;
		} else if (sector >= op->sector && sector < op->sector + op->n) {
			a->value[a->n++] = op->stamp;
		}
	}
}

static void guest_check(
	const struct history *h, struct block_node *n, size_t durable, size_t issued)
{
	uint8_t buf[512], want[512];

	for (unsigned s = 0; s < SECTORS; s++) {
		struct allowed a;
		bool found = false;

		allowed_find(h, s, durable, issued, &a);
		check_int(co_block_pread(n, s * 512ULL, buf, 512), 0);
		for (unsigned i = 0; i < a.n && !found; i++) {
			stamp_fill(want, a.value[i], 1);
			found = !memcmp(buf, want, 512);
		}
		if (!found) {
			fprintf(stderr, "sector %u holds %#llx, first allowed %#llx of %u\n", s,
				(unsigned long long)*(uint64_t *)buf,
				(unsigned long long)a.value[0], a.n);
			abort();
		}
	}
}

/* --- crash states --- */

static void apply(struct mem_content *c, const struct record_event *e, bool torn)
{
	switch (e->op) {
	case RECORD_WRITE:
		check_int(mem_content_write(
				  c, e->off, e->data, torn ? align_up(e->len / 2, 512) : e->len),
			0);
		break;
	case RECORD_ZERO:
	case RECORD_DISCARD:
		check_int(mem_content_zero(c, e->off, e->len), 0);
		break;
	case RECORD_TRUNCATE:
		check_int(mem_content_resize(c, e->len), 0);
		break;
	case RECORD_FLUSH:
	case RECORD_MARK:
		break;
	}
}

static unsigned states;

/* Opens the state without repair, compares, goes on writing, counts. */
static void state_check(struct history *h, struct mem_content *c, size_t durable, size_t issued)
{
	struct block_node *file, *n;
	uint8_t buf[512];

	states++;
	q2_test_structure(c, false);
	file = q2_test_mem(c);
	n = q2_test_open(block_node_ref(file), h->t->opts, NULL);
	guest_check(h, n, durable, issued);
	for (unsigned i = 0; i < 6; i++) {
		unsigned s = (unsigned)(q2_random(&h->rnd) % SECTORS);

		stamp_fill(buf, 0xabcdef00 + i, 1);
		check_int(co_block_pwrite(n, s * 512ULL, buf, 512), 0);
		check_int(co_block_pread(n, s * 512ULL, buf, 512), 0);
		check_int(*(uint64_t *)buf, 0xabcdef00 + i);
	}
	check_int(co_block_node_unref(n), 0);
	q2_test_structure_of(file, false);
	co_block_node_unref(file);
}

/* Mode 0: prefixes; 1: all but one; 2: random subsets; 3: one torn at the end of a prefix. */
static void epoch_states(struct history *h, const struct mem_content *base,
	const struct record_event *log, size_t first, size_t end)
{
	for (unsigned mode = 0; mode < 4; mode++)
		for (size_t k = first; k < end; k++) {
			struct mem_content *c;

			check_int(mem_content_dup(base, &c), 0);
			for (size_t i = first; i < end; i++) {
				bool in = mode == 0 ? i <= k
					: mode == 1 ? i != k
					: mode == 2 ? q2_random(&h->rnd) % 2
						    : i <= k;

				if (in)
					apply(c, &log[i], mode == 3 && i == k);
			}
			state_check(h, c, first, end);
		}
}

static void history_check(struct history *h)
{
	struct mem_content *base;
	size_t n, first = 0;
	const struct record_event *log = record_log(h->record, &n);

	check_int(mem_content_dup(h->start, &base), 0);
	for (size_t i = 0; i <= n; i++) {
		if (i < n && log[i].op != RECORD_FLUSH)
			continue;
		epoch_states(h, base, log, first, i);
		for (; first < MIN(i + 1, n); first++)
			apply(base, &log[first], false);
	}
	mem_content_free(base);
}

static void run(const struct q2_test *t, uint64_t seed)
{
	struct history h = {.t = t, .rnd = seed * 0x9e3779b97f4a7c15ULL + 1};

	history_run(&h);
	history_check(&h);
	check_int(co_block_node_unref(h.n), 0);
	co_block_node_unref(h.record);
	mem_content_free(h.start);
}

#define SIZE (SECTORS * 512)
static const struct q2_test shapes[] = {
	{3, 9, 4, false, false, false, SIZE, NULL},
	{3, 9, 0, false, false, false, SIZE, "l2-cache-size=1024"},
	{3, 9, 6, false, false, false, SIZE, "refcount-cache-size=1024"},
	{2, 9, 4, false, false, false, SIZE, "l2-cache-size=1024,refcount-cache-size=1024"},
	{3, 12, 4, false, false, false, SIZE, NULL},
	{3, 12, 4, false, false, false, SIZE, "l2-cache-entry-size=512,l2-cache-size=1024"},
	{2, 12, 4, false, false, false, SIZE, NULL},
	{3, 14, 4, true, false, false, SIZE, NULL},
};

CO_TEST(crash_states)
{
	unsigned seeds = q2_test_seeds(4);

	for (unsigned seed = 1; seed <= seeds; seed++)
		for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
			run(&shapes[i], seed * 100 + i);
	printf("# %u crash states\n", states);
	check(states > 1000);
}

static uint64_t flushes(struct block_node *n)
{
	struct block_stats stats;

	block_node_stats(n, &stats);
	return stats.flushes;
}

/* Flushes of an image with nothing dirty cost one barrier, allocating ones two. */
CO_TEST(barriers_are_counted)
{
	static const struct q2_test t = {3, 16, 4, false, false, false, 1 * MiB, NULL};
	struct mem_content *c = q2_test_build(&t);
	struct block_node *file = q2_test_mem(c),
			  *n = q2_test_open(block_node_ref(file), NULL, NULL);
	uint64_t before;
	char buf[512] = "x";

	check_int(co_block_pwrite(n, 0, buf, 512), 0);
	check_int(co_block_flush(n), 0);
	check_int(co_block_pwrite(n, 512, buf, 512), 0);
	before = flushes(file);
	check_int(co_block_flush(n), 0);
	check(flushes(file) - before <= 2); /* ours, and io.c's that finds nothing to do */
	check_int(co_block_pwrite(n, 65536, buf, 512), 0);
	before = flushes(file);
	check_int(co_block_flush(n), 0);
	check(flushes(file) - before <= 3);
	check_int(co_block_node_unref(n), 0);
	co_block_node_unref(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crash_states),
		cmocka_unit_test(barriers_are_counted),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
