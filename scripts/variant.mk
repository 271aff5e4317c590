# SPDX-License-Identifier: MIT
# Flags of each build variant; included by the Makefile.

PKG_CONFIG ?= pkg-config
OBJCOPY    ?= objcopy
LD_R        = ld -r
SO_FLAGS    = -Wl,-z,defs

ifeq ($(VARIANT),asan)
CC             := clang
VARIANT_FLAGS  := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1
SO_FLAGS       :=
else ifeq ($(VARIANT),tsan)
CC             := clang
VARIANT_FLAGS  := -fsanitize=thread -fno-omit-frame-pointer -O1
SO_FLAGS       :=
else ifeq ($(VARIANT),fuzz)
CC             := clang
VARIANT_FLAGS  := -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined -O1 -DDROVER_FUZZ=1
SO_FLAGS       :=
else ifeq ($(VARIANT),cov)
CC             := clang
VARIANT_FLAGS  := -fprofile-instr-generate -fcoverage-mapping -O1
SO_FLAGS       :=
else ifeq ($(VARIANT),arm64)
# The libraries stand in a sysroot that scripts/get-arm64 lays out.
CC             := aarch64-linux-gnu-gcc --sysroot=$(CURDIR)/build/arm64-root
PKG_CONFIG     := scripts/arm64-pkg-config
OBJCOPY        := aarch64-linux-gnu-objcopy
LD_R            = aarch64-linux-gnu-ld -r
else ifneq ($(VARIANT),)
$(error VARIANT=$(VARIANT) is not one of asan, tsan, fuzz, cov, arm64)
endif
