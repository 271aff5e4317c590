# SPDX-License-Identifier: MIT
# Crash states, fault sweeps and concurrency of the engine; included by scripts/check.mk.

CRASH_SRC := $(filter-out tests/crash/crash.c tests/crash/named.c,$(wildcard tests/crash/*.c))
CRASH_OBJ := $(CRASH_SRC:%.c=$(BUILD)/obj/%.o)
CRASH_BINS := $(BUILD)/tests/crash $(BUILD)/tests/crash-named

$(BUILD)/tests/crash: $(BUILD)/obj/tests/crash/crash.o $(CRASH_OBJ) $(INTERNAL)
$(BUILD)/tests/crash-named: $(BUILD)/obj/tests/crash/named.o $(CRASH_OBJ) $(INTERNAL)
$(CRASH_BINS):
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS)

check-programs: $(CRASH_BINS)

.PHONY: check-crash
## check-crash     millions of crash states: SECONDS=600 SEEDS=2000 (random workloads)
check-crash: deps-check
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) all check-programs
	$(Q)$(BUILD)/tests/crash-named
	$(Q)$(BUILD)/tests/fault-sweep
	$(Q)$(BUILD)/tests/queues --sim --seeds=10000 --states
	$(Q)$(BUILD)/tests/crash --full --depth=3 --jobs=$(shell nproc) \
		--seconds=$(or $(SECONDS),600) --random=$(or $(SEEDS),2000)
