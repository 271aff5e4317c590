/* SPDX-License-Identifier: MIT */
/* The table of drivers, made known to the block layer. */
#ifndef DROVER_LIB_DRIVERS_H
#define DROVER_LIB_DRIVERS_H

/* Registers every driver; before the first open, any number of times. */
void drivers_init(void);

#endif
