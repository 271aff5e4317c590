/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 on-disk layout and nothing else: offsets, bits, limits, entry accessors.
 * Specification: QEMU's public docs/interop/qcow2 document. All fields are big-endian.
 */
#ifndef DROVER_QCOW2_FORMAT_H
#define DROVER_QCOW2_FORMAT_H

#include "base/base.h"

#define Q2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* Header field offsets in bytes. Fields from 72 on exist in version 3 only. */
enum q2_header_field {
	Q2_H_MAGIC = 0,		      /* u32 */
	Q2_H_VERSION = 4,	      /* u32 */
	Q2_H_BACKING_OFFSET = 8,      /* u64, 0: none */
	Q2_H_BACKING_SIZE = 16,	      /* u32, bytes, no NUL */
	Q2_H_CLUSTER_BITS = 20,	      /* u32 */
	Q2_H_SIZE = 24,		      /* u64, virtual size in bytes */
	Q2_H_CRYPT_METHOD = 32,	      /* u32 */
	Q2_H_L1_SIZE = 36,	      /* u32, entries */
	Q2_H_L1_OFFSET = 40,	      /* u64 */
	Q2_H_REFTABLE_OFFSET = 48,    /* u64 */
	Q2_H_REFTABLE_CLUSTERS = 56,  /* u32 */
	Q2_H_NB_SNAPSHOTS = 60,	      /* u32 */
	Q2_H_SNAPSHOTS_OFFSET = 64,   /* u64 */
	Q2_H_INCOMPATIBLE = 72,	      /* u64 */
	Q2_H_COMPATIBLE = 80,	      /* u64 */
	Q2_H_AUTOCLEAR = 88,	      /* u64 */
	Q2_H_REFCOUNT_ORDER = 96,     /* u32 */
	Q2_H_HEADER_LENGTH = 100,     /* u32 */
	Q2_H_COMPRESSION_TYPE = 104,  /* u8, when header_length > 104 */
	Q2_H_V2_LENGTH = 72,
	Q2_H_V3_MIN_LENGTH = 104,
	Q2_H_V3_LENGTH = 112, /* what we write */
};

enum q2_incompatible {
	Q2_INCOMPAT_DIRTY = 1u << 0,
	Q2_INCOMPAT_CORRUPT = 1u << 1,
	Q2_INCOMPAT_DATA_FILE = 1u << 2,
	Q2_INCOMPAT_COMPRESSION = 1u << 3,
	Q2_INCOMPAT_EXTL2 = 1u << 4,
	Q2_INCOMPAT_KNOWN = 0x1f,
};
enum q2_compatible { Q2_COMPAT_LAZY_REFCOUNTS = 1u << 0 };
enum q2_autoclear {
	Q2_AUTOCLEAR_BITMAPS = 1u << 0,
	Q2_AUTOCLEAR_DATA_FILE_RAW = 1u << 1,
	Q2_AUTOCLEAR_KNOWN = 0x3,
};

enum q2_crypt { Q2_CRYPT_NONE = 0, Q2_CRYPT_AES = 1, Q2_CRYPT_LUKS = 2 };
enum q2_compression { Q2_COMPRESSION_DEFLATE = 0, Q2_COMPRESSION_ZSTD = 1 };

/* Header extensions: u32 type, u32 length, data padded to 8 bytes. */
enum q2_extension {
	Q2_EXT_END = 0,
	Q2_EXT_BACKING_FORMAT = 0xe2792acau,
	Q2_EXT_FEATURE_NAMES = 0x6803f857u, /* 48-byte entries: u8 kind, u8 bit, 46 name */
	Q2_EXT_BITMAPS = 0x23852875u,
	Q2_EXT_CRYPTO = 0x0537be77u,
	Q2_EXT_DATA_FILE = 0x44415441u,
};

/* Limits (handbook: the peer's limits are mirrored for compatibility). */
#define Q2_MIN_CLUSTER_BITS	  9u
#define Q2_MAX_CLUSTER_BITS	  21u
#define Q2_MIN_EXTL2_CLUSTER_BITS 14u
#define Q2_MAX_L1_BYTES		  (32 * MiB)
#define Q2_MAX_REFTABLE_BYTES	  (8 * MiB)
#define Q2_MAX_SNAPSHOTS	  65536u
#define Q2_MAX_SNAPSHOT_TABLE	  (64 * MiB)
#define Q2_MAX_SNAPSHOT_EXTRA	  1024u
#define Q2_MAX_BACKING_NAME	  1023u
#define Q2_MAX_REFCOUNT_ORDER	  6u
#define Q2_SUBCLUSTERS		  32u

/* L1 and L2 entries. */
#define Q2_COPIED	  (1ULL << 63)
#define Q2_COMPRESSED	  (1ULL << 62)
#define Q2_ZERO		  1ULL /* version 3, standard L2 entries without extended L2 */
#define Q2_OFFSET_MASK	  0x00fffffffffffe00ULL
#define Q2_L1_RESERVED	  0x7f000000000001ffULL
#define Q2_L2_RESERVED	  0x3f000000000001feULL
#define Q2_REFTABLE_MASK  0xfffffffffffffe00ULL
#define Q2_REFTABLE_RESERVED 0x1ffULL

/* Compressed descriptor: offset in the low `62 - (cluster_bits - 8)` bits, then the number of
 * additional 512-byte sectors. The data ends somewhere in the last sector. */
static inline uint64_t q2_compressed_offset(uint64_t entry, unsigned cluster_bits)
{
	return entry & ((1ULL << (62 - (cluster_bits - 8))) - 1);
}

/* Bytes from the offset to the end of the last sector: at least 1, at most 2 clusters. */
static inline uint64_t q2_compressed_bytes(uint64_t entry, unsigned cluster_bits)
{
	unsigned shift = 62 - (cluster_bits - 8);
	uint64_t sectors = ((entry & ~(Q2_COMPRESSED | Q2_COPIED)) >> shift) + 1;

	return sectors * 512 - (q2_compressed_offset(entry, cluster_bits) & 511);
}

static inline uint64_t q2_compressed_entry(uint64_t off, uint64_t bytes, unsigned cluster_bits)
{
	unsigned shift = 62 - (cluster_bits - 8);
	uint64_t extra = ((off + bytes - 1) >> 9) - (off >> 9);

	return Q2_COMPRESSED | extra << shift | off;
}

/* Extended L2: the second word; bit n: subcluster n allocated, bit 32+n: reads as zero. */
#define Q2_SUB_ALLOC(n) (1ULL << (n))
#define Q2_SUB_ZERO(n)	(1ULL << (32 + (n)))

/* Snapshot table entry, padded to 8 bytes. */
enum q2_snapshot_field {
	Q2_S_L1_OFFSET = 0,	 /* u64 */
	Q2_S_L1_SIZE = 8,	 /* u32, entries */
	Q2_S_ID_SIZE = 12,	 /* u16 */
	Q2_S_NAME_SIZE = 14,	 /* u16 */
	Q2_S_DATE_SEC = 16,	 /* u32 */
	Q2_S_DATE_NSEC = 20,	 /* u32 */
	Q2_S_VM_CLOCK = 24,	 /* u64, ns */
	Q2_S_VM_STATE_SIZE = 32, /* u32; the 64-bit one in the extra data wins */
	Q2_S_EXTRA_SIZE = 36,	 /* u32 */
	Q2_S_HEADER = 40,	 /* then extra data, id, name */
	/* extra data */
	Q2_SX_VM_STATE_SIZE = 0, /* u64 */
	Q2_SX_DISK_SIZE = 8,	 /* u64, version 3: mandatory */
	Q2_SX_ICOUNT = 16,	 /* u64, all ones: none */
};

#endif
