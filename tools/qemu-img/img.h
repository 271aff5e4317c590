/* SPDX-License-Identifier: MIT */
/* qemu-img's map: the subcommands, one file each, and the little they share. */
#ifndef DROVER_QEMU_IMG_H
#define DROVER_QEMU_IMG_H

#include "tools/tool.h"

extern const struct command img_bench, img_check, img_commit, img_compare, img_convert, img_create,
	img_dd, img_info, img_map, img_measure, img_rebase, img_resize, img_snapshot;

enum img_output { IMG_HUMAN, IMG_JSON };
extern const struct conf_enum img_output_names[];

#define OPT_OUTPUT(type, field_)                                                                   \
	IMAGE_OPT_ENUM(type, 0, "output", "human|json", "output format (default: human)", field_,  \
		img_output_names)

/* --- create-options.c: `-o` lists --- */
/* All -o texts as one tree (later keys win). 0, 1 when -o help was answered on stdout, or -EINVAL
 * with the sentence printed. `format` names the driver whose creation options are meant. */
int img_create_options(const struct opt_texts *texts, const char *format, struct conf **ret);
/* The driver that creates `format`; NULL with a sentence printed. */
const struct block_driver *img_format(const char *format);
/* Do images of this format have backing files? */
bool img_can_back(const char *format);
/* "Formatting 'NAME', fmt=qcow2 cluster_size=65536 ...", with the defaults filled in. */
void img_print_formatting(const char *filename, const char *format, struct conf *opts);

/* --- snapshot-list.c --- */
void img_print_snapshots(const struct block_snapshot *s, size_t n);
void img_json_snapshots(
	struct json_writer *w, const char *key, const struct block_snapshot *s, size_t n);
void img_free_snapshots(struct block_snapshot *s, size_t n);
/* Opens a snapshot of *n by id, name or `snapshot.id=ID,snapshot.name=NAME`, and puts the node of
 * it in *n's place. */
int co_img_open_snapshot(struct block_node **n, const char *which, struct error *err);

/* --- files.c: what names stand for --- */
/* Do both names lead to one and the same file? False when one cannot be looked at. */
bool img_same_file(const char *a, const char *b);
/* The node in top's chain below top that `name` means: as written in the overlay above it, as
 * resolved, or as the same file. NULL: none. */
struct block_node *co_img_find_backing(struct block_node *top, const char *name);

/* --- target.c: the file that convert and dd write --- */
struct img_target {
	const struct image_common *common;
	const char *name, *format;
	bool opts; /* name is an option string */
	bool no_create;
	int cache;
	struct conf *create; /* creation options, borrowed and changed */
	/* since co_target_open() */
	struct block_node *node;
	char *part;      /* raw: written under this name, renamed at the end; owned */
	bool is_new;     /* there was no file of that name before */
	bool incomplete; /* has no magic yet; co_finalize will write it */
};
/* Creates (unless no_create) and opens the target, so that a failure later leaves nothing that
 * looks whole. */
int co_target_open(struct img_target *t, struct error *err);
/* All data is written: makes the target a whole image under its name. On failure nothing that
 * looks whole is left, as after co_target_abandon(). */
int co_target_finish(struct img_target *t, struct error *err);
/* Closes and removes what was made; for existing targets only closes. Says in `left` what is to be
 * known about the file ("" when nothing is left). Also after co_target_finish(): a no-op then. */
void co_target_abandon(struct img_target *t, char *left, size_t n);

#endif
