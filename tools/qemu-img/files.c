/* SPDX-License-Identifier: MIT */
/* What names stand for: the same file, a layer of a chain. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"
#include <sys/stat.h>

bool img_same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
		sa.st_ino == sb.st_ino;
}

/* The name of the backing file as it is written in n; copied, NULL: none. */
static char *co_written_backing(struct block_node *n)
{
	_cleanup_free_ struct block_image_info *info = mem_zalloc(sizeof(*info));

	n = block_skip_filters(n);
	if (!info || !n->drv->image || !n->drv->image->co_info ||
		n->drv->image->co_info(n, info, NULL) < 0 || !info->backing_name)
		return NULL;
	return mem_strdup(info->backing_name);
}

struct block_node *co_img_find_backing(struct block_node *top, const char *name)
{
	for (struct block_node *above = top, *n; (n = block_backing(above)); above = n) {
		_cleanup_free_ char *written = co_written_backing(above);
		_cleanup_free_ char *joined = block_path_join(top->filename, name);

		if ((written && !strcmp(written, name)) || !strcmp(n->filename, name) ||
			img_same_file(n->filename, name) ||
			(joined && img_same_file(n->filename, joined)))
			return n;
	}
	return NULL;
}
