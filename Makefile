# SPDX-License-Identifier: MIT
# drover: `make` builds, `make quickstart` shows, `make check` proves. `make help` lists the rest.
#
# VARIANT selects a build folder and its flags: (none) | asan | tsan | fuzz | arm64.

VARIANT  ?=
CC       ?= gcc
PREFIX   ?= /usr/local
DESTDIR  ?=
VERSION  := 0.1.0

BUILD    := build$(if $(VARIANT),-$(VARIANT))
ROOMS    := base block qcow2 nbd migration lib
TOOLS    := $(notdir $(patsubst %/,%,$(dir $(wildcard tools/*/main.c))))
PKGS     := liburing zlib libzstd libcrypto libssl jansson libseccomp libnbd
# ISA-L ships no arm64 pkg-config file in every release: libisal is looked for on its own.
ISAL     := libisal

include scripts/variant.mk

CFLAGS   ?= -O2 -g
WARN     := -Wall -Wextra -Wshadow -Wvla -Wwrite-strings -Wmissing-prototypes \
	    -Wimplicit-fallthrough -Wundef -Wformat=2 -Wno-unused-parameter $(if $(WERROR),-Werror)
CPPFLAGS += -I. -Iinclude -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DDROVER_VERSION='"$(VERSION)"'
ALLFLAGS  = -std=gnu17 $(WARN) $(CFLAGS) $(VARIANT_FLAGS) -pthread -fPIC -fvisibility=hidden \
	    -fno-strict-aliasing $(PKG_CFLAGS)

SRC      := $(foreach r,$(ROOMS),$(wildcard $(r)/*.c))
OBJ      := $(SRC:%.c=$(BUILD)/obj/%.o)
TOOL_SRC := $(wildcard tools/*.c)
TOOL_OBJ := $(TOOL_SRC:%.c=$(BUILD)/obj/%.o)
TESTS    := $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_*.c))

INTERNAL := $(BUILD)/lib/libdrover-internal.a
TOOL_LIB := $(BUILD)/lib/tools.a
BINS     := $(TOOLS:%=$(BUILD)/bin/%)

.PHONY: all lib tools tests clean help
## all             build everything into build/
all: lib tools
lib: $(INTERNAL) $(BUILD)/lib/libdrover.a $(BUILD)/lib/libdrover.so
tools: $(BINS)
tests: $(TESTS:%=$(BUILD)/tests/%)

Q := $(if $(V),,@)

$(BUILD)/obj/%.o: %.c $(BUILD)/pkg.mk
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC    $<")
	$(Q)$(CC) $(CPPFLAGS) $(ALLFLAGS) -MMD -MP -c $< -o $@

# Everything, for our own tools and tests, which use the rooms' internal headers.
$(INTERNAL): $(OBJ)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  AR    $@")
	$(Q)rm -f $@ && ar rcs $@ $^

# What a stranger links: one object with every symbol but the public ones made local.
$(BUILD)/lib/libdrover.a: $(OBJ) lib/libdrover.map
	$(if $(V),,@echo "  AR    $@")
	$(Q)$(LD_R) -o $(BUILD)/lib/drover.o $(OBJ)
	$(Q)$(OBJCOPY) --wildcard --keep-global-symbol='drover_*' $(BUILD)/lib/drover.o
	$(Q)rm -f $@ && ar rcs $@ $(BUILD)/lib/drover.o

$(BUILD)/lib/libdrover.so: $(OBJ) lib/libdrover.map
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -shared -Wl,-soname,libdrover.so.0 $(SO_FLAGS) \
		-Wl,--version-script=lib/libdrover.map -o $@ $(OBJ) $(PKG_LIBS)
	$(Q)ln -sf libdrover.so $(BUILD)/lib/libdrover.so.0

# What the tools share; each takes what it uses.
$(TOOL_LIB): $(TOOL_OBJ)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  AR    $@")
	$(Q)rm -f $@ && ar rcs $@ $^

define tool_rule
$(BUILD)/bin/$(1): $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tools/$(1)/*.c)) $(TOOL_LIB) $(INTERNAL)
	@mkdir -p $$(@D)
	$(if $(V),,@echo "  LD    $$@")
	$(Q)$$(CC) $$(ALLFLAGS) -o $$@ $$^ $$(PKG_LIBS)
endef
$(foreach t,$(TOOLS),$(eval $(call tool_rule,$(t))))

$(BUILD)/tests/test_%: $(BUILD)/obj/tests/unit/test_%.o $(TOOL_LIB) $(INTERNAL)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS) -lcmocka
.PRECIOUS: $(BUILD)/obj/%.o

# Flags of the libraries, looked up once; a missing one is named with its Debian package.
$(BUILD)/pkg.mk: scripts/pkg-flags scripts/variant.mk
	@mkdir -p $(@D)
	$(Q)PKG_CONFIG="$(PKG_CONFIG)" scripts/pkg-flags $(PKGS) $(ISAL) >$@.new && mv $@.new $@
# Goals that only install, or that call make again once they have, do without.
ifneq ($(filter-out help clean lint deps% quickstart check check-asan check-tsan check-interop \
	check-arm64,$(or $(MAKECMDGOALS),all)),)
-include $(BUILD)/pkg.mk
endif

include scripts/check.mk
include scripts/install.mk

clean:
	rm -rf build build-*

help:
	@sed -n 's/^## //p' Makefile scripts/*.mk

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
