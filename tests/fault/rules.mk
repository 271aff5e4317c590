# SPDX-License-Identifier: MIT
# Fault sweeps; included by scripts/check.mk.

$(BUILD)/tests/fault-sweep: $(BUILD)/obj/tests/fault/sweep.o $(CRASH_OBJ) $(INTERNAL)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(ALLFLAGS) -o $@ $^ $(PKG_LIBS)

check-programs: $(BUILD)/tests/fault-sweep
