/* SPDX-License-Identifier: MIT */
/*
 * Image formats that are known by their first bytes and not read: probing names them, so that
 * nobody copies a container in the belief that it is a raw disk.
 */
#include "block/internal.h"

static const struct {
	const char *name;
	uint32_t off, len;
	const char *magic;
} foreign[] = {
	{"VMDK", 0, 4, "KDMV"},
	{"VMDK", 0, 4, "COWD"},
	{"VMDK", 0, 21, "# Disk DescriptorFile"},
	{"VHDX", 0, 8, "vhdxfile"},
	{"VHD (vpc)", 0, 8, "conectix"},
	{"VDI", 0x40, 4, "\x7f\x10\xda\xbe"},
	{"QED", 0, 4, "QED\0"},
	{"qcow version 1", 0, 8, "QFI\xfb\0\0\0\1"},
	{"Parallels", 0, 16, "WithoutFreeSpace"},
	{"Parallels", 0, 16, "WithouFreSpacExt"},
	{"LUKS", 0, 6, "LUKS\xba\xbe"},
};

const char *block_foreign(const void *head, size_t n)
{
	for (size_t i = 0; i < ARRAY_SIZE(foreign); i++)
		if (n >= foreign[i].off + foreign[i].len &&
			!memcmp((const char *)head + foreign[i].off, foreign[i].magic,
				foreign[i].len))
			return foreign[i].name;
	return NULL;
}
