/* SPDX-License-Identifier: MIT */
/* Internal snapshots: content, structure, order of writes, limits, VM state, damaged tables. */
#include "tests/unit/q2ops.h"

#define DISK (1 * MiB)

static const char *const shapes[] = {
	"cluster_size=512,compat=0.10",
	"cluster_size=4k,compat=0.10",
	"cluster_size=512,refcount_bits=2",
	"cluster_size=4k,refcount_bits=8",
	"cluster_size=64k",
	"cluster_size=512,refcount_bits=64,lazy_refcounts=on",
	"cluster_size=16k,extended_l2=on",
	"cluster_size=2M,compression_type=zstd",
};

static struct block_node *create_disk(const char *shape)
{
	char opts[120];

	snprintf(opts, sizeof(opts), "size=%llu,%s", DISK, shape);
	return create_mem(opts);
}

static int snap(struct block_node *n, const char *name, struct error *err)
{
	struct block_snapshot s = {.name = (char *)name, .icount = UINT64_MAX};

	return q2_snapshot_ops.co_create(n, &s, err);
}

static void must_snap(struct block_node *n, const char *name)
{
	struct error err = ERROR_INIT;

	if (snap(n, name, &err)) {
		fprintf(stderr, "snapshot %s: %s\n", name, err.text);
		abort();
	}
}

static void must(int r, const struct error *err)
{
	if (r == 0)
		return;
	fprintf(stderr, "%s\n", err->text);
	abort();
}

static bool view_reads(struct block_node *n, const char *name, const uint8_t *want, size_t len)
{
	struct error err = ERROR_INIT;
	uint8_t *buf = malloc(len);
	struct block_node *view;
	bool same;

	must(q2_snapshot_ops.co_open(n, name, &view, &err), &err);
	check_int(view->size, len);
	check_int(co_block_pread(view, 0, buf, len), 0);
	same = !memcmp(buf, want, len);
	free(buf);
	close_image(view);
	return same;
}

static bool disk_reads(struct block_node *n, const uint8_t *want, size_t len)
{
	uint8_t *buf = malloc(len);
	bool same;

	check_int(n->size, len);
	check_int(co_block_pread(n, 0, buf, len), 0);
	same = !memcmp(buf, want, len);
	free(buf);
	return same;
}

/* --- random sequences against a model --- */

#define MAX_SNAPS 3

struct world {
	struct block_node *file, *n;
	uint8_t disk[DISK], kept[MAX_SNAPS][DISK];
	bool used[MAX_SNAPS];
	uint64_t rnd;
};

static void change_disk(struct world *w)
{
	uint64_t off = q2_random(&w->rnd) % (DISK / 512) * 512;
	uint64_t len = MIN(DISK - off, (1 + q2_random(&w->rnd) % 200) * 512);

	if (q2_random(&w->rnd) % 4) {
		fill(w->disk + off, len, off, (unsigned)q2_random(&w->rnd) % 100);
		check_int(co_block_pwrite(w->n, off, w->disk + off, len), 0);
	} else {
		memset(w->disk + off, 0, len);
		check_int(
			co_block_zero(w->n, off, len, q2_random(&w->rnd) % 2 ? BLOCK_IO_UNMAP : 0),
			0);
	}
}

static void change_snapshots(struct world *w)
{
	unsigned i = (unsigned)(q2_random(&w->rnd) % MAX_SNAPS);
	char name[8];
	struct error err = ERROR_INIT;

	snprintf(name, sizeof(name), "s%u", i);
	if (!w->used[i]) {
		must_snap(w->n, name);
		memcpy(w->kept[i], w->disk, DISK);
		w->used[i] = true;
	} else if (q2_random(&w->rnd) % 2) {
		must(q2_snapshot_ops.co_delete(w->n, name, &err), &err);
		w->used[i] = false;
	} else {
		must(q2_snapshot_ops.co_apply(w->n, name, &err), &err);
		memcpy(w->disk, w->kept[i], DISK);
	}
}

static void compare_world(struct world *w)
{
	check(disk_reads(w->n, w->disk, DISK));
	for (unsigned i = 0; i < MAX_SNAPS; i++) {
		char name[8];

		snprintf(name, sizeof(name), "s%u", i);
		if (w->used[i])
			check(view_reads(w->n, name, w->kept[i], DISK));
	}
}

CO_TEST(random_sequences)
{
	struct world *w = calloc(1, sizeof(*w));

	for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
		memset(w, 0, sizeof(*w));
		w->rnd = 77 + i;
		w->file = create_disk(shapes[i]);
		w->n = open_image(w->file, NULL);
		for (unsigned step = 0; step < 24; step++) {
			/* Two bits count to three: the disk and two snapshots. */
			if (step % 3 == 2 && !(i == 2 && w->used[0] + w->used[1] + w->used[2] == 2))
				change_snapshots(w);
			else
				change_disk(w);
			if (step % 6 != 5)
				continue;
			compare_world(w);
			close_image(w->n);
			check_clean(w->file);
			w->n = open_image(w->file, NULL);
			compare_world(w);
		}
		close_image(w->n);
		check_clean(w->file);
		close_image(w->file);
	}
	free(w);
}

/* The check of an image that stays open. */
static void check_clean_open(struct block_node *n, struct block_node *file)
{
	check_int(co_block_flush(n), 0);
	check_clean(file);
}

/* --- what is not needed is not written --- */

static uint64_t bytes_written(struct block_node *record)
{
	size_t n;
	const struct record_event *e = record_log(record, &n);
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		if (e[i].op == RECORD_WRITE)
			sum += e[i].len;
	record_clear(record);
	return sum;
}

CO_TEST(little_is_written)
{
	struct block_node *file = must_open(
		"driver=record,file.driver=mem,file.size=0", BLOCK_OPEN_RDWR);
	struct block_node *n;
	struct error err = ERROR_INIT;
	uint64_t first, second;

	check_int(try_create_on(file, "size=64M,cluster_size=4k,preallocation=metadata", NULL), 0);
	n = open_image(file, NULL);
	record_clear(file);
	must_snap(n, "a"); /* 128 KiB of L2 tables, 32 KiB of refcounts */
	first = bytes_written(file);
	must_snap(n, "b"); /* refcounts only */
	second = bytes_written(file);
	check(first > 160 * KiB && second < 80 * KiB);
	/* Nothing has changed since: two headers, L1 tables, no refcount of a shared cluster. */
	must(q2_snapshot_ops.co_apply(n, "b", &err), &err);
	check(bytes_written(file) < 24 * KiB);
	must(q2_snapshot_ops.co_delete(n, "a", &err), &err);
	check(bytes_written(file) < 80 * KiB); /* the counts go from 3 to 2: no COPIED */
	must(q2_snapshot_ops.co_delete(n, "b", &err), &err);
	check(bytes_written(file) > 160 * KiB);
	close_image(n);
	check_clean(file);
	close_image(file);
}

/* With memory for a part of the clusters at a time, the result is the same. */
CO_TEST(many_windows)
{
	struct block_node *file = create_mem("size=64M,cluster_size=512,preallocation=metadata");
	struct block_node *n = open_image(file, NULL);
	struct error err = ERROR_INIT;

	q2_image(n)->tree_memory = 1;
	write_fill(n, 0, 64 * MiB, 1);
	must_snap(n, "a");
	check_clean_open(n, file);
	write_fill(n, 20 * MiB, 20 * MiB, 2);
	must_snap(n, "b");
	check_clean_open(n, file);
	must(q2_snapshot_ops.co_apply(n, "a", &err), &err);
	check(reads_fill(n, 0, 64 * MiB, 1));
	check_clean_open(n, file);
	must(q2_snapshot_ops.co_delete(n, "a", &err), &err);
	check_clean_open(n, file);
	must(q2_snapshot_ops.co_apply(n, "b", &err), &err);
	must(q2_snapshot_ops.co_delete(n, "b", &err), &err);
	check_clean_open(n, file);
	check(reads_fill(n, 0, 20 * MiB, 1) && reads_fill(n, 20 * MiB, 20 * MiB, 2) &&
		reads_fill(n, 40 * MiB, 24 * MiB, 1));
	close_image(n);
	check_clean(file);
	close_image(file);
}

/* --- list, names, ids --- */

CO_TEST(names)
{
	struct block_node *file = create_disk("cluster_size=4k"), *n = open_image(file, NULL);
	struct block_snapshot s = {.name = (char *)"7",
		.vm_clock_nsec = 5,
		.icount = 1234567890123,
		.date_sec = 1700000000,
		.date_nsec = 99};
	struct block_snapshot *list;
	struct error err = ERROR_INIT;
	size_t count;

	must_snap(n, "one");
	must(q2_snapshot_ops.co_create(n, &s, &err), &err);
	must_snap(n, "one"); /* names may repeat */
	s.id = (char *)"2";
	check_int(q2_snapshot_ops.co_create(n, &s, &err), -EEXIST);
	close_image(n);
	n = open_image(file, NULL);
	check_int(q2_snapshot_ops.co_list(n, &list, &count), 0);
	check_int(count, 3);
	check(!strcmp(list[0].id, "1") && !strcmp(list[1].id, "2") && !strcmp(list[2].id, "3"));
	check(!strcmp(list[1].name, "7") && !strcmp(list[2].name, "one"));
	check_int(list[1].icount, 1234567890123);
	check_int(list[0].icount, UINT64_MAX);
	check_int(list[1].date_sec, 1700000000);
	check_int(list[1].date_nsec, 99);
	check_int(list[1].vm_clock_nsec, 5);
	check_int(list[1].disk_size, DISK);
	check(list[0].date_sec > 1700000000);
	for (size_t i = 0; i < count; i++) {
		mem_free(list[i].id);
		mem_free(list[i].name);
	}
	mem_free(list);
	/* An id comes before a name; of equal names the first is meant. */
	must(q2_snapshot_ops.co_delete(n, "one", &err), &err);
	check_int(q2_snapshot_find(q2_image(n), "3"), 1);
	check_int(q2_snapshot_ops.co_delete(n, "nobody", &err), -ENOENT);
	check_int(q2_snapshot_ops.co_apply(n, "nobody", &err), -ENOENT);
	must(q2_snapshot_ops.co_delete(n, "7", &err), &err);
	must(q2_snapshot_ops.co_delete(n, "3", &err), &err);
	check_int(q2_image(n)->nb_snapshots, 0);
	close_image(n);
	check_clean(file);
	close_image(file);
}

/* What refcounts cannot count is refused, and the image is as it was. */
CO_TEST(width_exhausted)
{
	struct block_node *file = create_disk("cluster_size=512,refcount_bits=1");
	struct block_node *n = open_image(file, NULL);
	struct error err = ERROR_INIT;

	check_int(snap(n, "a", &err), -ENOTSUP);
	close_image(n);
	close_image(file);

	file = create_disk("cluster_size=512,refcount_bits=2");
	n = open_image(file, NULL);
	write_fill(n, 0, 100000, 1);
	must_snap(n, "a");
	must_snap(n, "b");
	err = ERROR_INIT;
	check_int(snap(n, "c", &err), -EFBIG);
	check(strstr(err.text, "2 bits") != NULL);
	check(reads_fill(n, 0, 100000, 1));
	check_int(q2_image(n)->nb_snapshots, 2);
	write_fill(n, 50000, 100, 2);
	err = ERROR_INIT;
	must(q2_snapshot_ops.co_delete(n, "a", &err), &err);
	close_image(n);
	check_clean(file);
	close_image(file);
}

/* --- sizes and VM state --- */

CO_TEST(other_size)
{
	struct block_node *file = create_disk("cluster_size=512"), *n = open_image(file, NULL);
	struct block_resize grow = {.size = 4 * DISK}, shrink = {.size = 4096, .shrink = true};
	struct error err = ERROR_INIT;

	write_fill(n, 0, DISK, 1);
	must_snap(n, "small");
	check_int(co_block_resize(n, &grow, NULL), 0);
	write_fill(n, 2 * DISK, DISK, 2);
	must_snap(n, "large");
	check_int(co_block_resize(n, &shrink, NULL), 0);
	close_image(n);
	check_clean(file);
	n = open_image(file, NULL);
	check_int(n->size, 4096);
	must(q2_snapshot_ops.co_apply(n, "large", &err), &err);
	check_int(n->size, 4 * DISK);
	check(reads_fill(n, 0, DISK, 1) && reads_zero(n, DISK, DISK) &&
		reads_fill(n, 2 * DISK, DISK, 2));
	must(q2_snapshot_ops.co_apply(n, "small", &err), &err);
	check_int(n->size, DISK);
	check(reads_fill(n, 0, DISK, 1));
	check_int(co_block_resize(n, &grow, NULL), 0);
	check(reads_zero(n, DISK, 3 * DISK));
	close_image(n);
	check_clean(file);
	close_image(file);
}

static void vm_state(struct block_node *n, bool write, uint64_t off, void *buf, size_t len)
{
	struct iovec iov;
	struct block_io io = {.off = off, .len = len, .buf = iov_buf(&iov, buf, len)};

	check_int(write ? q2_vmstate_ops.co_write(n, &io) : q2_vmstate_ops.co_read(n, &io), 0);
}

CO_TEST(state)
{
	enum { LEN = 200000 };
	struct block_node *file = create_disk("cluster_size=4k"), *n = open_image(file, NULL);
	struct block_snapshot s = {
		.name = (char *)"vm", .vm_state_size = LEN + 77, .icount = UINT64_MAX};
	struct error err = ERROR_INIT;
	uint8_t *buf = malloc(LEN), *want = malloc(LEN);

	write_fill(n, 0, DISK, 1);
	fill(want, LEN, 0, 9);
	vm_state(n, true, 77, want, LEN);
	must(q2_snapshot_ops.co_create(n, &s, &err), &err);
	/* The active disk has no VM state any more: growing shows zeroes. */
	vm_state(n, false, 77, buf, LEN);
	check(mem_is_zero(buf, LEN));
	close_image(n);
	check_clean(file);
	n = open_image(file, NULL);
	write_fill(n, 0, DISK, 2);
	must(q2_snapshot_ops.co_apply(n, "vm", &err), &err);
	vm_state(n, false, 77, buf, LEN);
	check(!memcmp(buf, want, LEN));
	check(reads_fill(n, 0, DISK, 1));
	check_int(q2_image(n)->snapshots[0].info.vm_state_size, LEN + 77);
	check_int(co_block_resize(n, &(struct block_resize){.size = 8 * DISK}, NULL), 0);
	check(reads_zero(n, DISK, 7 * DISK));
	must(q2_snapshot_ops.co_delete(n, "vm", &err), &err);
	close_image(n);
	check_clean(file);
	close_image(file);

	/* More than 32 bits of it are told in full. */
	file = create_disk("cluster_size=64k");
	n = open_image(file, NULL);
	s.vm_state_size = 6 * GiB + 5;
	must(q2_snapshot_ops.co_create(n, &s, &err), &err);
	close_image(n);
	n = open_image(file, NULL);
	check_int(q2_image(n)->snapshots[0].info.vm_state_size, 6 * GiB + 5);
	close_image(n);
	close_image(file);
	free(buf);
	free(want);
}

/* --- damaged tables --- */

CO_TEST(damaged_table)
{
	static const struct {
		unsigned off, bytes;
		uint64_t value;
		int error;
	} pokes[] = {
		{Q2_S_EXTRA_SIZE, 4, 1025, -EUCLEAN},
		{Q2_S_EXTRA_SIZE, 4, 8, -EUCLEAN}, /* version 3 wants 16 */
		{Q2_S_NAME_SIZE, 2, 65535, 0},     /* a long name of zero bytes */
		{Q2_S_ID_SIZE, 2, 60000, 0},
	};
	struct block_node *file = create_disk("cluster_size=4k"), *n = open_image(file, NULL);
	uint8_t saved[64], b[8];
	uint64_t table;

	must_snap(n, "a");
	close_image(n);
	table = file_be64(file, Q2_H_SNAPSHOTS_OFFSET);
	for (unsigned i = 0; i < ARRAY_SIZE(pokes); i++) {
		struct error err = ERROR_INIT;

		check_int(co_block_pread(file, table, saved, sizeof(saved)), 0);
		store_be64(b, pokes[i].value << (64 - 8 * pokes[i].bytes));
		check_int(co_block_pwrite(file, table + pokes[i].off, b, pokes[i].bytes), 0);
		check_int(
			q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, &err), -EUCLEAN);
		check(strstr(err.text, "snapshot table") != NULL);
		check_int(co_block_pwrite(file, table, saved, sizeof(saved)), 0);
	}
	/* Tables that lie nowhere, or are said to be huge. */
	poke_be64(file, Q2_H_SNAPSHOTS_OFFSET, 1ULL << 50);
	check(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, NULL) < 0);
	poke_be64(file, Q2_H_SNAPSHOTS_OFFSET, table);
	store_be32(b, 65537);
	check_int(co_block_pwrite(file, Q2_H_NB_SNAPSHOTS, b, 4), 0);
	check(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, NULL) < 0);
	store_be32(b, 65536);
	check_int(co_block_pwrite(file, Q2_H_NB_SNAPSHOTS, b, 4), 0);
	check(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, NULL) < 0);
	store_be32(b, 1);
	check_int(co_block_pwrite(file, Q2_H_NB_SNAPSHOTS, b, 4), 0);
	/* An L1 table beyond the file: the image opens, the snapshot does not. */
	poke_be64(file, table + Q2_S_L1_OFFSET, 1ULL << 40);
	n = open_image(file, NULL);
	check_int(q2_snapshot_ops.co_open(n, "a", &(struct block_node *){NULL}, NULL), -EUCLEAN);
	check_int(q2_snapshot_ops.co_apply(n, "a", NULL), -EUCLEAN);
	check_int(q2_snapshot_ops.co_delete(n, "a", NULL), -EUCLEAN);
	close_image(n);
	close_image(file);
}

/* --- failures --- */

static int one_operation(struct block_node *n, unsigned op)
{
	switch (op) {
	case 0:
		return snap(n, "b", NULL);
	case 1:
		return q2_snapshot_ops.co_apply(n, "a", NULL);
	default:
		return q2_snapshot_ops.co_delete(n, "a", NULL);
	}
}

/* The same bytes in a new node; drops the old one. */
static struct block_node *reborn(struct block_node *file)
{
	struct mem_content *c;

	check_int(mem_node_snapshot(file->child[BLOCK_ROLE_FILE], &c), 0);
	co_block_node_unref(file);
	return q2_test_mem(c);
}

/* Every k-th request fails: the disk reads as before or as the snapshot, the snapshot as ever, and
 * at worst there are leaks and missing flags, which the next open repairs. */
CO_TEST(failing_requests)
{
	uint8_t *old = malloc(DISK), *new = malloc(DISK), *buf = malloc(DISK);

	fill(old, DISK, 0, 1);
	fill(new, DISK, 0, 2);
	for (unsigned op = 0; op < 3; op++) {
		for (uint64_t k = 1;; k++) {
			struct block_node *file, *n;
			struct fault_rule rule = {.ops = FAULT_WRITE | FAULT_FLUSH | FAULT_READ,
				.at = k,
				.error = -EIO};
			int r;

			file = must_open("driver=fault,file.driver=mem,file.size=0", RW);
			check_int(try_create_on(file, "size=1M,cluster_size=4k", NULL), 0);
			n = open_image(file, NULL);
			check_int(co_block_pwrite(n, 0, old, DISK), 0);
			must_snap(n, "a");
			check_int(co_block_pwrite(n, 0, new, DISK / 2), 0);
			check_int(co_block_flush(n), 0);
			check_int(fault_add(file, &rule), 0);
			r = one_operation(n, op);
			fault_clear(file);
			co_block_node_unref(n);
			/* After a failed flush the node takes no more: look at the bytes anew. */
			file = reborn(file);
			check_int(q2_test_try_open(block_node_ref(file), NULL, RW, NULL, &n, NULL),
				0);
			check_int(co_block_pread(n, 0, buf, DISK), 0);
			check(!memcmp(buf + DISK / 2, old + DISK / 2, DISK / 2));
			check(!memcmp(buf, new, DISK / 2) ||
				(op == 1 && !memcmp(buf, old, DISK / 2)));
			if (q2_snapshot_find(q2_image(n), "a") >= 0)
				check(view_reads(n, "a", old, DISK));
			else
				check(op == 2);
			co_block_node_unref(n);
			check_file(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, 0, NULL);
			check_clean(file);
			co_block_node_unref(file);
			if (r == 0)
				break;
		}
	}
	free(old);
	free(new);
	free(buf);
}

CO_TEST(failing_memory)
{
	for (unsigned op = 0; op < 3; op++) {
		int r = -ENOMEM;

		for (uint64_t k = 1; r < 0; k++) {
			struct block_node *file = create_disk("cluster_size=4k");
			struct block_node *n = open_image(file, NULL);

			write_fill(n, 0, DISK, 1);
			must_snap(n, "a");
			write_fill(n, 0, DISK / 2, 2);
			check_int(co_block_flush(n), 0);
			mem_fail_at(k, false);
			r = one_operation(n, op);
			mem_fail_at(0, false);
			check(r == 0 || r == -ENOMEM);
			co_block_node_unref(n);
			check_file(file, BLOCK_REPAIR_LEAKS | BLOCK_REPAIR_ERRORS, 0, NULL);
			check_clean(file);
			close_image(file);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_sequences),
		cmocka_unit_test(little_is_written),
		cmocka_unit_test(many_windows),
		cmocka_unit_test(names),
		cmocka_unit_test(width_exhausted),
		cmocka_unit_test(other_size),
		cmocka_unit_test(state),
		cmocka_unit_test(damaged_table),
		cmocka_unit_test(failing_requests),
		cmocka_unit_test(failing_memory),
	};

	return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
