# SPDX-License-Identifier: MIT
# Fuzz targets (libFuzzer, VARIANT=fuzz) and their line coverage (VARIANT=cov); included by
# scripts/check.mk.

FUZZ_TARGETS := $(patsubst tests/fuzz/target-%.c,%,$(wildcard tests/fuzz/target-*.c))
FUZZ_COMMON  := $(addprefix $(BUILD)/obj/tests/,fuzz/image.o fuzz/mutate.o crash/disk.o \
		crash/refcheck.o)
FUZZ_BINS    := $(FUZZ_TARGETS:%=$(BUILD)/tests/fuzz-%)

ifeq ($(VARIANT),cov)
# Coverage builds replay the corpus through a plain main().
FUZZ_MAIN    := $(BUILD)/obj/tests/fuzz/replay.o
FUZZ_LINK    :=
else
FUZZ_MAIN    :=
FUZZ_LINK    := -fsanitize=fuzzer
endif

$(FUZZ_BINS): $(BUILD)/tests/fuzz-%: $(BUILD)/obj/tests/fuzz/target-%.o $(FUZZ_COMMON) \
		$(FUZZ_MAIN) $(INTERNAL)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) $(FUZZ_LINK) -o $@ $^ $(PKG_LIBS)

$(BUILD)/tests/fuzz-seeds: $(BUILD)/obj/tests/fuzz/seeds.o $(CRASH_OBJ) $(INTERNAL)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS)

.PHONY: fuzz-programs fuzz-variant check-fuzz
fuzz-programs: $(FUZZ_BINS) $(BUILD)/tests/fuzz-seeds
fuzz-variant:
	$(Q)$(MAKE) --no-print-directory VARIANT=fuzz fuzz-programs
check-programs: $(if $(VARIANT),,fuzz-variant)

## check-fuzz      10^7 runs a fuzz target, with line coverage: SECONDS=0 (no limit), RUNS=10000000
check-fuzz: deps-check
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) VARIANT=fuzz fuzz-programs
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) VARIANT=cov fuzz-programs
	$(Q)RUNS=$(or $(RUNS),10000000) FUZZ_SECONDS=$(or $(SECONDS),0) tests/fuzz/check
	$(Q)tests/fuzz/coverage
