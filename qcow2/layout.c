/* SPDX-License-Identifier: MIT */
/*
 * How many clusters the metadata of an image takes: what create lays out and measure predicts.
 */
#include "qcow2/qcow2.h"

int q2_layout(const struct q2_create_params *p, bool full, struct q2_layout *ret)
{
	uint64_t cluster = 1ULL << p->cluster_bits;
	uint64_t per_table = cluster / (p->extl2 ? 16 : 8);
	uint64_t per_block = cluster * 8 >> p->refcount_order;
	uint64_t data = div_up(p->size, cluster), l1_size = div_up(data, per_table), fixed, total;
	struct q2_layout l = {.refblocks = 1, .reftable = 1};

	if (l1_size > Q2_MAX_L1_BYTES / 8)
		return -EFBIG;
	l.l1_clusters = div_up(l1_size * 8, cluster);
	if (full) {
		l.data = data;
		l.l2_tables = l1_size;
	}
	fixed = 1 + l.l1_clusters + l.l2_tables + l.data;
	/* Refcount blocks count themselves and the table that lists them: grow until stable. */
	for (;;) {
		total = fixed + l.refblocks + l.reftable;
		if (l.refblocks < div_up(total, per_block))
			l.refblocks = div_up(total, per_block);
		else if (l.reftable < div_up(l.refblocks * 8, cluster))
			l.reftable = div_up(l.refblocks * 8, cluster);
		else
			break;
	}
	l.metadata = total - l.data;
	l.total = total;
	*ret = l;
	return 0;
}
