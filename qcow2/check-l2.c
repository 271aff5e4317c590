/* SPDX-License-Identifier: MIT */
/*
 * The check of L2 tables: every entry's form, the references it makes, its COPIED flag.
 *
 * Runs on the worker pool, many tables at once. A table that several L1 entries list is looked at
 * once and its references count that many times. Runs of entries with consecutive host clusters,
 * which is nearly all of an image, are taken in one step.
 */
#include "qcow2/qcow2.h"

struct l2_check {
	struct q2_check *ck;
	const struct q2_table *t;
	struct q2_changed *changed;
	uint8_t *data;
	struct q2_refs_cursor cur;
	uint64_t next; /* host offset that would not be a fragment; 0: any */
	uint64_t allocated, compressed, fragmented, copied_wrong, copied_fixed, fixable;
};

static uint64_t load_entry(const struct l2_check *lc, uint32_t i)
{
	return load_be64(lc->data + (size_t)i * lc->ck->img->l2_entry_size);
}

static void store_entry(struct l2_check *lc, uint32_t i, uint64_t entry)
{
	uint32_t off = i * lc->ck->img->l2_entry_size;

	store_be64(lc->data + off, entry);
	q2_changed_add(lc->changed, off, 8);
}

static bool external_data(const struct q2_check *ck)
{
	return ck->img->h.incompatible & Q2_INCOMPAT_DATA_FILE;
}

/* Is COPIED set just where the refcount is 1? */
static void check_copied(struct l2_check *lc, uint32_t i, uint64_t entry, uint64_t cluster)
{
	struct q2_check *ck = lc->ck;
	bool known, copied = entry & Q2_COPIED;
	bool one = q2_refs_flag(&lc->cur, cluster, &known);

	/* Beyond the file there is no refcount: 0. Seen with the first window. */
	if (cluster >= ck->clusters)
		known = ck->refs.lo == 0;
	if (!known || one == copied || ck->counting)
		return;
	if (ck->fix_copied) {
		if (copied || ck->may_set_copied) {
			int64_t refcount = q2_refs_get(&lc->cur, cluster);

			q2_refs_cursor_end(&lc->cur); /* no lock is held while somebody prints */
			q2_check_message(ck, false,
				"Repairing OFLAG_COPIED data cluster: "
				"l2_entry=%llx refcount=%lld",
				(unsigned long long)entry, (long long)refcount);
			store_entry(lc, i, entry ^ Q2_COPIED);
			lc->copied_fixed++;
		}
		return;
	}
	lc->copied_wrong++;
	pthread_mutex_lock(&ck->lock);
	if (ck->ncopied_errors < Q2_MAX_COPIED_ERRORS)
		ck->copied_errors[ck->ncopied_errors++] = (struct q2_copied_error){
			.entry = entry, .cluster = cluster};
	pthread_mutex_unlock(&ck->lock);
}

static void check_compressed(struct l2_check *lc, uint32_t i, uint64_t entry)
{
	struct q2_check *ck = lc->ck;
	unsigned bits = ck->img->cluster_bits;
	uint64_t off = q2_compressed_offset(entry, bits);

	if (ck->fix_copied) {
		if (entry & Q2_COPIED) /* counted as fixable before */
			store_entry(lc, i, entry & ~Q2_COPIED);
		return;
	}
	if (ck->first_pass) {
		if (entry & Q2_COPIED) {
			lc->fixable++;
			q2_check_error(ck,
				"ERROR: coffset=0x%llx: copied flag must never be set "
				"for compressed clusters",
				(unsigned long long)off);
		}
		lc->allocated++;
		lc->compressed++;
		lc->fragmented++; /* by nature */
	}
	q2_check_count(ck, &lc->cur, align_down(off, 512),
		off + q2_compressed_bytes(entry, bits) - align_down(off, 512), lc->t->refs);
}

/* Reports what is wrong with the form of an entry; true when it refers to a cluster. */
static bool check_form(struct l2_check *lc, uint32_t i, uint64_t entry)
{
	struct q2_check *ck = lc->ck;
	const struct q2_image *img = ck->img;
	uint64_t off = entry & Q2_OFFSET_MASK, bitmap = 0;
	bool zero = img->h.version >= 3 && !img->extl2 && entry & Q2_ZERO;
	bool report = ck->first_pass && !ck->fix_copied;

	if (report)
		q2_refs_cursor_end(&lc->cur); /* no lock is held while somebody prints */
	if (img->extl2)
		bitmap = load_be64(lc->data + (size_t)i * 16 + 8);
	if (report && entry & (Q2_L2_RESERVED | (img->extl2 ? Q2_ZERO : 0)))
		q2_check_error(ck, "ERROR found l2 entry with reserved bits set: %llx",
			(unsigned long long)entry);
	if (off == 0) {
		if (report && bitmap & UINT32_MAX)
			q2_check_error(ck,
				"ERROR: Unallocated cluster has non-zero subcluster "
				"allocation map");
		return false;
	}
	if (!report)
		return true;
	if (bitmap >> 32 & bitmap & UINT32_MAX)
		q2_check_error(ck,
			"ERROR offset=%llx: Allocated cluster has corrupted subcluster "
			"allocation bitmap",
			(unsigned long long)off);
	if (off & (img->cluster_size - 1))
		q2_check_error(ck,
			"ERROR offset=%llx: %s cluster is not properly aligned; L2 entry "
			"corrupted.",
			(unsigned long long)off, zero ? "Preallocated" : "Data");
	return true;
}

static void check_entry(struct l2_check *lc, uint32_t i, uint64_t entry)
{
	struct q2_check *ck = lc->ck;
	uint64_t cluster_size = ck->img->cluster_size, off = entry & Q2_OFFSET_MASK;

	if (entry & Q2_COMPRESSED) {
		check_compressed(lc, i, entry);
		return;
	}
	if (!check_form(lc, i, entry))
		return;
	if (!ck->fix_copied) {
		lc->allocated++;
		lc->fragmented += lc->next && lc->next != off;
		lc->next = off + cluster_size;
		if (!external_data(ck))
			q2_check_count(ck, &lc->cur, off, cluster_size, lc->t->refs);
	}
	if (lc->t->active && !external_data(ck))
		check_copied(lc, i, entry, off >> ck->img->cluster_bits);
}

/* Entries from i on that are plain data with consecutive clusters inside the file. */
static uint32_t find_run(const struct l2_check *lc, uint32_t i, uint32_t n, uint64_t first)
{
	const struct q2_image *img = lc->ck->img;
	uint64_t cluster = img->cluster_size, off = first & Q2_OFFSET_MASK;
	uint64_t room = lc->ck->file_size > off ? (lc->ck->file_size - off) >> img->cluster_bits
						: 0;
	uint64_t want = first;
	uint32_t k = i;

	if (first & (Q2_COMPRESSED | Q2_L2_RESERVED | Q2_ZERO) || off & (cluster - 1) || !off ||
		img->extl2)
		return 0;
	n = (uint32_t)MIN((uint64_t)n, i + room);
	while (k < n && load_entry(lc, k) == want) {
		k++;
		want += cluster;
	}
	return k - i;
}

/* The whole run in one step; false when a flag in it is wrong, so that each needs a look. */
static bool check_run(struct l2_check *lc, uint32_t i, uint32_t n, uint64_t first)
{
	struct q2_check *ck = lc->ck;
	uint64_t off = first & Q2_OFFSET_MASK, cluster = off >> ck->img->cluster_bits;
	bool copied = first & Q2_COPIED, flags_fit;

	if (external_data(ck))
		return false;
	flags_fit = q2_refs_add_run(
		&lc->cur, cluster, n, ck->fix_copied ? 0 : -lc->t->refs, copied);
	if (!ck->fix_copied) {
		lc->allocated += n;
		lc->fragmented += lc->next && lc->next != off;
		lc->next = off + n * ck->img->cluster_size;
	}
	if (!flags_fit && lc->t->active)
		for (uint32_t k = 0; k < n; k++)
			check_copied(lc, i + k, load_entry(lc, i + k), cluster + k);
	return true;
}

static int check_l2_table(
	void *arg, const struct q2_table *t, uint8_t *data, struct q2_changed *changed)
{
	struct q2_check *ck = arg;
	struct l2_check lc = {
		.ck = ck, .t = t, .changed = changed, .data = data, .cur = {.refs = &ck->refs}};
	uint32_t n = 1u << ck->img->l2_bits, run;

	for (uint32_t i = 0; i < n;) {
		uint64_t entry = load_entry(&lc, i);

		if (!entry && !ck->img->extl2) {
			i++;
			continue;
		}
		run = find_run(&lc, i, n, entry);
		if (run > 1 && check_run(&lc, i, run, entry)) {
			i += run;
		} else {
			check_entry(&lc, i, entry);
			i++;
		}
	}
	q2_refs_cursor_end(&lc.cur);

	pthread_mutex_lock(&ck->lock);
	if (ck->first_pass && !ck->fix_copied) {
		uint64_t times = (uint64_t)MAX(t->active, (int64_t)0);

		ck->c->allocated_clusters += lc.allocated * times;
		ck->c->compressed_clusters += lc.compressed * times;
		ck->c->fragmented_clusters += lc.fragmented * times;
	}
	ck->copied_wrong += lc.copied_wrong;
	ck->fixable += lc.fixable;
	ck->copied_fixed += lc.copied_fixed;
	pthread_mutex_unlock(&ck->lock);
	return 0;
}

static int check_l2_unreadable(void *arg, const struct q2_table *t, int error)
{
	struct q2_check *ck = arg;

	bool report;

	pthread_mutex_lock(&ck->lock);
	report = ck->first_pass || !ck->unreadable;
	ck->c->check_errors += report;
	ck->unreadable = true;
	pthread_mutex_unlock(&ck->lock);
	if (report)
		q2_check_message(ck, true, "ERROR: cannot read the L2 table at offset 0x%llx: %s",
			(unsigned long long)t->off, errno_text(error));
	return 0;
}

int co_q2_check_l2_tables(struct q2_check *ck)
{
	struct q2_walk w = {
		.tables = ck->l2.v,
		.n = ck->l2.n,
		.write = ck->fix_copied,
		.fn = check_l2_table,
		.read_error = check_l2_unreadable,
		.progress = q2_check_progress,
		.arg = ck,
	};

	return co_q2_walk(ck->img, &w);
}
