# SPDX-License-Identifier: MIT
# Test targets; included by the Makefile.

.PHONY: check-unit
## check-unit      unit tests by module (cmocka)
check-unit: tests
	$(Q)for t in $(TESTS:%=$(BUILD)/tests/%); do $$t || exit 1; done
