/* SPDX-License-Identifier: MIT */
/*
 * The one table of drivers.
 */
#include "lib/drivers.h"
#include "block/block.h"
#include "qcow2/qcow2.h"

static const struct block_driver *const table[] = {
	&block_file,
	&block_host_device,
	&block_raw,
	&block_qcow2,
	&block_mem,
	&block_null,
	&block_fault,
	&block_record,
	&block_throttle,
	&block_copy_on_read,
	&block_verify,
	NULL,
};

void drivers_init(void)
{
	block_register(table);
}
