/* SPDX-License-Identifier: MIT */
/* The "Format specific information" of an image, for people and as JSON. */
#include "tools/tool.h"

static void print_value(const struct block_info_item *it)
{
	if (it->kind == BLOCK_INFO_BOOL)
		printf("%s\n", it->num ? "true" : "false");
	else if (it->kind == BLOCK_INFO_U64)
		printf("%llu\n", (unsigned long long)it->num);
	else
		printf("%s\n", it->long_str ? it->long_str : it->str);
}

void image_print_specific(const struct block_image_info *info, const char *indent)
{
	bool any = false;

	for (uint32_t i = 0; i < info->nitems; i++) {
		const struct block_info_item *it = &info->items[i];

		if (it->hide_human)
			continue;
		if (!any)
			printf("Format specific information:\n");
		any = true;
		printf("%s", indent);
		for (const char *k = it->key; *k; k++)
			putchar(*k == '-' ? ' ' : *k);
		printf(": ");
		print_value(it);
	}
}

void image_json_specific(
	struct json_writer *w, const char *type, const struct block_image_info *info)
{
	json_object(w, "format-specific");
	json_string(w, "type", type);
	json_object(w, "data");
	for (uint32_t i = 0; info && i < info->nitems; i++) {
		const struct block_info_item *it = &info->items[i];

		if (it->kind == BLOCK_INFO_BOOL)
			json_bool(w, it->key, it->num);
		else if (it->kind == BLOCK_INFO_U64)
			json_u64(w, it->key, it->num);
		else
			json_string(w, it->key, it->long_str ? it->long_str : it->str);
	}
	json_object_end(w);
	json_object_end(w);
}
