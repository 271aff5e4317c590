# SPDX-License-Identifier: MIT
# Concurrency of the engine; included by scripts/check.mk.

QUEUES_OBJ := $(BUILD)/obj/tests/concurrency/queues.o $(addprefix $(BUILD)/obj/tests/crash/,\
	disk.o model.o ops.o refcheck.o setup.o states.o world.o)

$(BUILD)/tests/queues: $(QUEUES_OBJ) $(INTERNAL)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS)

check-programs: $(BUILD)/tests/queues

.PHONY: check-queues-tsan
## check-queues-tsan  8 queues on real threads under ThreadSanitizer
check-queues-tsan: deps-check
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) VARIANT=tsan build-tsan/tests/queues
	$(Q)TSAN_OPTIONS=suppressions=tests/concurrency/tsan.supp \
		build-tsan/tests/queues --threads --rounds=$(or $(SEEDS),30)
check-tsan: check-queues-tsan
