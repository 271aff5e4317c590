# SPDX-License-Identifier: MIT
# Test targets; included by the Makefile. tests/*/rules.mk adds what a folder builds.

PARALLEL := $(if $(findstring j,$(filter-out --%,$(MAKEFLAGS))),,-j$(shell nproc))
SECONDS  ?=
SEEDS    ?=
COUNT    ?= 2000
export SECONDS SEEDS COUNT

.PHONY: deps deps-check deps-interop deps-arm64 quickstart check check-unit check-asan check-tsan \
	check-interop check-arm64 bench lint

## deps            install what building needs (sudo only when not root; nothing reinstalled)
deps:
	@scripts/deps build
## deps-check      ... and what the tests need
deps-check:
	@scripts/deps build check
## deps-interop    ... and other people's programs: the reference tools, libnbd, fio
deps-interop:
	@scripts/deps build check interop
	@scripts/get-reference
deps-arm64:
	@scripts/deps build arm64
	@scripts/get-arm64

## quickstart      install, build, and show the tools at work on a real file system
quickstart: deps
	@scripts/deps quickstart
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) all
	@scripts/quickstart

## check           everything that must pass before a change lands, in minutes
check: deps-check
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) all check-programs
	@scripts/check

# What check runs and all does not build; folders of tests add to it.
.PHONY: check-programs
check-programs: tests

## check-unit      unit tests by module (cmocka)
check-unit: tests
	@scripts/check unit
## check-cases     the numbered cases of tests/qemu-iotests
.PHONY: check-cases
check-cases: all
	@scripts/check cases
## check-asan      unit tests and numbered cases under AddressSanitizer and UBSan
check-asan: deps-check
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) VARIANT=asan all tests
	@BUILD=build-asan TEST_TIMEOUT=1200 scripts/check unit cases
## check-tsan      unit tests and the parallel cases under ThreadSanitizer
check-tsan: deps-check
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) VARIANT=tsan all tests
	@BUILD=build-tsan TEST_TIMEOUT=1200 scripts/check unit parallel-cases
## check-interop   COUNT=2000 random images, written by each program and read by the other
check-interop: deps-interop
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) all
	@tests/interop/differential --count $(COUNT) $(if $(SEEDS),--seed $(SEEDS))
## check-arm64     cross-build for arm64, unit tests under emulation on the threads engine
check-arm64: deps-arm64
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) VARIANT=arm64 lib tools tests
	@BUILD=build-arm64 TEST_RUNNER="qemu-aarch64-static -L $(CURDIR)/build/arm64-root" \
		DROVER_AIO=threads TEST_TIMEOUT=1200 scripts/check unit
## lint            house rules that a program can see
lint:
	@scripts/lint
## bench           speed against the installed peers; writes the README's table
bench: all $(BUILD)/bench/queue
	@tests/bench/bench

include $(wildcard tests/*/rules.mk)
