/* SPDX-License-Identifier: MIT */
/*
 * The one copy engine: convert, mirror, backup, commit, stream and rebase are this with a
 * different source of work.
 *
 * Theory of Operation
 *
 * Workers (coroutines on rings of their own, crew.c) take units of work from the scanner
 * (copy-scan.c) until there are none. A unit is a contiguous range of the source made of segments:
 * data is read into the worker's buffer, segment behind segment; then runs of zeroes in it are
 * found, and data and zero runs are written. Zeroes that the source knows of are never read, and
 * zeroes that the target already has are never written. Memory is bounded by workers x buffer.
 *
 * With in_order a unit begins to write when the one before it has begun: the target is laid out
 * in ascending order although several writes are in flight. With compress (copy-compress.c) what
 * is ordered is the reservation of host space, so that the image's bytes do not depend on the
 * number of threads.
 *
 * The first error stops everybody at their next unit. Progress counts what the unit covers, holes
 * included; the rate limit counts only what is read.
 *
 * Invariants:
 * Y1  Every unit handed out passes the order exactly once, also when it failed: others wait.
 * Y2  Two units never share a granule of the target, and units cover the range without gaps.
 * Y3  With a dirty bitmap, a granule is cleared before its extents are looked up and read, and set
 *     again when its unit fails.
 */
#include "block/copy.h"
#include "base/mem.h"
#include "base/ring.h"
#include "base/worker.h"

#define PIECE	      (1 * MiB)
#define PIECE_MAX     (16 * MiB)
#define GRANULE_MIN   (64 * KiB)
#define DETECT_MAX    4096u
#define SALVAGE_MIN   512u
#define DEPTH_MAX     128u /* below COPY_ORDER_SLOTS */
#define DEPTH_RING    4u   /* pieces in flight on each ring unless told */
#define AMPLIFICATION 1024u

static const uint8_t zeroes[64 * KiB] __attribute__((aligned(4096)));

bool copy_failed(const struct copy_state *st)
{
	return __atomic_load_n(&st->error, __ATOMIC_ACQUIRE) != 0;
}

int copy_fail(struct copy_state *st, int code, struct block_node *node, uint64_t off)
{
	spin_lock(&st->lock);
	if (!st->error) {
		st->error_node = node;
		st->error_off = off;
		__atomic_store_n(&st->error, code, __ATOMIC_RELEASE);
	}
	spin_unlock(&st->lock);
	return code;
}

uint64_t copy_target_off(const struct copy_state *st, uint64_t src_off)
{
	return src_off - st->c->src_off + st->c->dst_off;
}

static void count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* --- reading ------------------------------------------------------------------------------- */

/* Halves the range until single blocks fail; those become zeroes. */
static int co_salvage(struct copy_state *st, uint64_t off, uint8_t *buf, uint64_t len, int failed)
{
	uint64_t least = MAX(st->c->src->caps.align, SALVAGE_MIN), half;
	int r;

	if (failed == -ENOMEM || failed == -ECANCELED || st->c->job->cancelled)
		return failed;
	if (len <= least) {
		memset(buf, 0, len);
		count(&st->c->salvaged, len);
		return 0;
	}
	half = align_up(len / 2, least);
	for (int i = 0; i < 2; i++) {
		r = co_block_pread(st->c->src, off, buf, half);
		if (r < 0)
			r = co_salvage(st, off, buf, half, r);
		if (r < 0)
			return r;
		off += half;
		buf += half;
		half = len - half;
	}
	return 0;
}

int co_copy_read(struct copy_state *st, uint64_t off, void *buf, uint64_t len)
{
	int r = co_block_pread(st->c->src, off, buf, len);

	if (r < 0 && st->c->salvage)
		r = co_salvage(st, off, buf, len, r);
	if (r < 0)
		return copy_fail(st, r, st->c->src, off);
	count(&st->c->bytes_read, len);
	return 0;
}

static int co_read_unit(struct copy_state *st, struct copy_worker *w)
{
	uint8_t *buf = w->buf;

	for (unsigned i = 0; i < w->unit.nsegs; i++) {
		struct copy_segment *seg = &w->unit.seg[i];
		int r;

		if (seg->kind != COPY_DATA)
			continue;
		r = co_copy_read(st, seg->off, buf, seg->len);
		if (r < 0)
			return r;
		buf += seg->len;
	}
	return 0;
}

/* --- writing ------------------------------------------------------------------------------- */

int co_copy_write(struct copy_state *st, uint64_t off, const void *buf, uint64_t len)
{
	uint64_t to = copy_target_off(st, off);
	bool fresh = st->c->dst_is_zero && !st->c->dst_has_backing;
	struct iovec iov;
	int r = co_block_write(st->c->dst, to, iov_buf(&iov, (void *)buf, len),
		fresh ? BLOCK_IO_FRESH : 0);

	if (r < 0)
		return copy_fail(st, r, st->c->dst, to);
	count(&st->c->bytes_written, len);
	return 0;
}

/* Real zero bytes, for targets that have to be allocated throughout. */
static int co_fill(struct copy_state *st, uint64_t off, uint64_t len)
{
	struct iovec iov[16];
	int r;

	for (unsigned i = 0; i < ARRAY_SIZE(iov); i++)
		iov[i] = (struct iovec){(void *)zeroes, sizeof(zeroes)};
	for (uint64_t n; len; off += n, len -= n) {
		uint64_t to = copy_target_off(st, off);
		struct iov_slice s = {iov, ARRAY_SIZE(iov), 0, 0};

		n = MIN(len, (uint64_t)sizeof(zeroes) * ARRAY_SIZE(iov));
		s.len = n;
		r = co_block_write(st->c->dst, to, s, 0);
		if (r < 0)
			return copy_fail(st, r, st->c->dst, to);
		count(&st->c->bytes_written, n);
	}
	return 0;
}

int co_copy_zero(struct copy_state *st, uint64_t off, uint64_t len)
{
	uint64_t to = copy_target_off(st, off);
	int r;

	if (st->c->full_alloc)
		return co_fill(st, off, len);
	if (st->c->dst_is_zero && !st->c->dst_has_backing)
		return 0;
	r = co_block_zero(st->c->dst, to, len, BLOCK_IO_UNMAP);
	if (r < 0)
		return copy_fail(st, r, st->c->dst, to);
	count(&st->c->bytes_zeroed, len);
	return 0;
}

/* Length of the run at buf that is all zero, or all not, by granules of the target. */
static uint64_t detect_run(
	const struct copy_state *st, uint64_t off, const uint8_t *buf, uint64_t len, bool *zero)
{
	uint64_t g = st->detect, n = 0, step;

	for (; n < len; n += step) {
		bool z;

		step = MIN(g - (copy_target_off(st, off + n) & (g - 1)), len - n);
		z = mem_is_zero(buf + n, step);
		if (!n)
			*zero = z;
		else if (z != *zero)
			break;
	}
	return n;
}

/* Writes one data segment: short runs of zeroes stay in the data around them. */
static int co_write_segment(
	struct copy_state *st, uint64_t off, const uint8_t *buf, uint64_t len)
{
	uint64_t begin = 0, pos = 0, n; /* [begin, pos) is data to write */
	int r = 0;

	while (st->detect && pos < len) {
		bool zero;

		n = detect_run(st, off + pos, buf + pos, len - pos, &zero);
		if (zero && (n >= st->c->min_sparse || n == len)) {
			if (pos > begin)
				r = co_copy_write(st, off + begin, buf + begin, pos - begin);
			if (!r)
				r = co_copy_zero(st, off + pos, n);
			if (r)
				return r;
			begin = pos + n;
		}
		pos += n;
	}
	if (begin < len)
		r = co_copy_write(st, off + begin, buf + begin, len - begin);
	return r;
}

static int co_write_unit(struct copy_state *st, struct copy_worker *w)
{
	const uint8_t *buf = w->buf;
	int r = 0;

	for (unsigned i = 0; i < w->unit.nsegs && !r; i++) {
		struct copy_segment *seg = &w->unit.seg[i];

		if (seg->kind == COPY_DATA) {
			r = co_write_segment(st, seg->off, buf, seg->len);
			buf += seg->len;
		} else if (seg->kind == COPY_ZERO) {
			r = co_copy_zero(st, seg->off, seg->len);
		}
	}
	return r;
}

/* Lets the stores copy among themselves. 1 when they cannot. */
static int co_offload_unit(struct copy_state *st, struct copy_worker *w)
{
	for (unsigned i = 0; i < w->unit.nsegs; i++) {
		struct copy_segment *seg = &w->unit.seg[i];
		uint64_t to = copy_target_off(st, seg->off);
		int r;

		if (seg->kind == COPY_SKIP)
			continue;
		if (seg->kind == COPY_ZERO) {
			r = co_copy_zero(st, seg->off, seg->len);
			if (r < 0)
				return r;
			continue;
		}
		if (__atomic_load_n(&st->no_offload, __ATOMIC_RELAXED))
			return 1;
		r = co_block_copy_range(st->c->src, seg->off, st->c->dst, to, seg->len);
		if (r == -ENOTSUP) {
			__atomic_store_n(&st->no_offload, true, __ATOMIC_RELAXED);
			return 1;
		}
		/* By hand, the sentence can say which side it was. */
		if (r < 0)
			return 1;
		count(&st->c->bytes_written, seg->len);
	}
	return 0;
}

static int co_plain_unit(struct copy_state *st, unsigned member)
{
	struct copy_worker *w = &st->workers[member];
	bool offload = st->c->offload && !__atomic_load_n(&st->no_offload, __ATOMIC_RELAXED);
	int r = 0;

	if (!offload)
		r = co_read_unit(st, w);
	if (st->c->in_order)
		co_copy_order_wait(&st->order, w->unit.seq);
	/* Others may begin: this one does now. */
	if (st->c->in_order)
		copy_order_pass(&st->order, w->unit.seq);
	if (r < 0 || copy_failed(st))
		return r;
	if (offload) {
		r = co_offload_unit(st, w);
		if (r <= 0)
			return r;
		r = co_read_unit(st, w);
	}
	return r < 0 ? r : co_write_unit(st, w);
}

/* --- workers ------------------------------------------------------------------------------- */

/* Pays for the unit: data by the rate limit, holes for nothing. */
static int co_account(struct copy_state *st, const struct copy_unit *u)
{
	int r = 0;

	if (u->len > u->data)
		r = co_block_job_skip(st->c->job, u->len - u->data);
	if (!r)
		r = co_block_job_step(st->c->job, u->data);
	return r < 0 ? copy_fail(st, r, NULL, u->off) : 0;
}

static int co_worker(void *arg, unsigned member)
{
	struct copy_state *st = arg;
	struct copy_worker *w = &st->workers[member];
	struct copy_unit *u = &w->unit;
	int r;

	while (!copy_failed(st)) {
		r = co_copy_scan_next(&st->scan, u);
		if (r <= 0) {
			if (r < 0)
				copy_fail(st, r, st->c->src, st->scan.pos);
			break;
		}
		r = co_account(st, u);
		if (r < 0 && (st->c->in_order || st->c->compress)) {
			co_copy_order_wait(&st->order, u->seq); /* Y1 */
			copy_order_pass(&st->order, u->seq);
		}
		if (!r)
			r = st->c->compress ? co_copy_compress_unit(st, member)
					    : co_plain_unit(st, member);
		if ((r < 0 || copy_failed(st)) && st->c->dirty)
			block_dirty_set(st->c->dirty, u->off, u->len); /* Y3 */
	}
	return 0;
}

static void state_cleanup(struct copy_state *st)
{
	if (st->c->compress)
		copy_compress_cleanup(st);
	for (unsigned i = 0; st->workers && i < st->nworkers; i++)
		mem_free(st->workers[i].buf);
	mem_free(st->workers);
}

static uint64_t storage_size(const struct block_node *n)
{
	uint64_t sum = 0;

	if (!n->child[BLOCK_ROLE_FILE])
		return block_size(n);
	for (unsigned i = 0; i < BLOCK_ROLES; i++)
		if (n->child[i])
			sum += storage_size(n->child[i]);
	return sum;
}

static void scan_setup(struct copy_state *st)
{
	struct block_copy *c = st->c;
	uint64_t cluster = block_skip_filters(c->dst)->caps.cluster, unit = PIECE;

	if (!is_pow2(cluster))
		cluster = 0;
	cluster = MIN(cluster, (uint64_t)PIECE_MAX);
	if (c->min_sparse > unit)
		unit = MIN(align_up(c->min_sparse, PIECE), (uint64_t)PIECE_MAX);
	st->scan = (struct copy_scan){
		.c = c,
		.pos = c->src_off,
		.run_end = c->src_off,
		.end = c->src_off + c->len,
		.unit = MAX(unit, cluster),
		.granule = MAX(cluster, (uint64_t)GRANULE_MIN),
	};
	if (c->compress)
		st->scan.granule = cluster;
	/* On a fresh target a cluster is written whole, at once. Elsewhere it would drag in what
	 * the target has from its backing file. */
	st->scan.round = cluster && (c->compress || (c->dst_is_zero && !c->full_alloc));
	if (st->scan.round)
		st->scan.granule = cluster;
	/* One granule for rounding up, one for padding the last cluster. */
	st->piece = st->scan.unit + 2 * st->scan.granule;
	if (c->min_sparse)
		st->detect = 1ULL << log2_u64(MIN(c->min_sparse, (uint64_t)DETECT_MAX));
	if (c->min_sparse && st->scan.round)
		st->detect = MAX(st->detect, cluster);
	if (c->refuse_amplified &&
		mul_overflow(storage_size(c->src) + MiB, AMPLIFICATION, &st->scan.data_limit))
		st->scan.data_limit = 0;
}

static int state_setup(struct copy_state *st, struct error *err)
{
	struct block_copy *c = st->c;
	size_t align = MAX(c->src->caps.buf_align, 4096u);
	uint64_t units;
	unsigned rings, depth;

	scan_setup(st);
	units = MAX(div_up(c->len, st->scan.unit), (uint64_t)1);
	rings = block_crew_threads(c->threads, 1024);
	depth = c->depth ? c->depth : rings * DEPTH_RING;
	depth = MIN(depth, DEPTH_MAX);
	st->nworkers = (unsigned)MIN(units, (uint64_t)depth);
	align = MAX(c->dst->caps.buf_align, align);
	/* A short copy is over before threads have started. */
	st->threads = units <= 4 ? 1 : block_crew_threads(rings, st->nworkers);
	st->workers = mem_calloc(st->nworkers, sizeof(*st->workers));
	if (!st->workers)
		return error_set(err, -ENOMEM, "Out of memory for copying");
	for (unsigned i = 0; i < st->nworkers; i++) {
		st->workers[i].buf = mem_aligned(align, st->piece);
		if (!st->workers[i].buf)
			return error_set(err, -ENOMEM, "Out of memory for copy buffers");
	}
	return c->compress ? copy_compress_setup(st, err) : 0;
}

static int report(const struct copy_state *st, struct error *err)
{
	const struct block_node *n = st->error_node;
	const char *name = n && n->filename ? n->filename : "image";

	if (st->error == -ECANCELED)
		return error_set(err, st->error, "The copy was cancelled");
	if (st->error == -EUCLEAN && st->scan.data_limit &&
		st->scan.data_total > st->scan.data_limit)
		return error_set(err, st->error,
			"'%s' expands to more than %u times its size; if it is to be trusted, copy "
			"it without --untrusted",
			name, AMPLIFICATION);
	if (!n)
		return error_set_errno(err, st->error, "Copying failed");
	return error_set_errno(err, st->error, "error while %s '%s' at byte %llu",
		st->c->src == st->c->dst ? "copying within" :
		n == st->c->src		 ? "reading" :
					   "writing",
		name, (unsigned long long)st->error_off);
}

int co_block_copy(struct block_copy *c, struct error *err)
{
	struct copy_state st = {.c = c};
	uint64_t unset = 0;
	int r;

	if (!range_inside(c->src_off, c->len, block_size(c->src)) ||
		!range_inside(c->dst_off, c->len, block_size(c->dst)))
		return error_set(err, -EINVAL,
			"The range to copy lies beyond the end of the source or the target");
	__atomic_compare_exchange_n(
		&c->job->total, &unset, c->len, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	if (!c->len)
		return 0;
	r = state_setup(&st, err);
	if (!r) {
		r = co_block_crew_run(st.threads, st.nworkers, co_worker, &st);
		if (r < 0 && !st.error)
			st.error = r;
		r = st.error;
		if (r < 0) {
			copy_scan_abandon(&st.scan);
			report(&st, err);
		}
	}
	state_cleanup(&st);
	return r;
}
