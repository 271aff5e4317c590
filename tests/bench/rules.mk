# SPDX-License-Identifier: MIT
# The programs of tests/bench; included by scripts/check.mk.

$(BUILD)/bench/queue: $(BUILD)/obj/tests/bench/queue.o $(BUILD)/lib/libdrover.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS)

$(BUILD)/bench/co-switch: $(BUILD)/obj/tests/bench/co-switch.o $(INTERNAL)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS)
