# SPDX-License-Identifier: GPL-3.0-or-later
# On Debian 12 with git and make, as root or with sudo, every target brings what it needs.

PREFIX ?= /usr/local
DESTDIR ?=
USBIPSSHD_CACHE ?= /var/cache/usbipsshd-testbed
export USBIPSSHD_CACHE

FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0

DEBIAN := /usr/bin/python3
NEWEST := $(USBIPSSHD_CACHE)/newest
AUDIT := $(USBIPSSHD_CACHE)/audit
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E)
RUN := $(AS_ROOT) env PYTHONPATH=.:tests:tests/vm PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

.PHONY: help check test lint format unit test-debian test-newest test-vm test-faults test-pairs bench demo deb audit reproducible fuzz fuzz-short \
	install uninstall clean setup setup-build setup-lint setup-test setup-newest setup-vm

help:
	@echo 'make demo       two virtual machines: attach a stick and a keyboard, and look'
	@echo 'make check      linters, types and unit tests: the quick part'
	@echo 'make test       everything: also integration tests and virtual machines'
	@echo 'make test-vm    the virtual machines alone'
	@echo 'make test-faults  cables, networks and machines that fail: about an hour'
	@echo 'make fuzz       what is parsed from outside, for FUZZ_SECONDS (now $(FUZZ_SECONDS)) each'
	@echo 'make test-pairs  every shell, ssh server and connecting program on the remote'
	@echo 'make bench      speed and memory, next to ssh itself'
	@echo 'make deb        dist/usbipsshd_*.deb and dist/usbipssh-tray_*.deb'
	@echo 'make install    without a package: PREFIX (now $(PREFIX)), DESTDIR; make uninstall'
	@echo 'make format     sources in their standard form'
	@echo 'make clean      removes build/ and dist/'

check:
	@tools/phases setup lint unit

test:
	@tools/phases setup lint audit fuzz-short test-debian test-newest deb reproducible test-vm

# What is missing on this machine
setup: setup-lint setup-test setup-newest
setup-build:
	@tools/install-packages build
setup-lint:
	@tools/install-packages lint
setup-test:
	@tools/install-packages test
setup-newest: setup-lint
	@$(AS_ROOT) $(DEBIAN) tools/setup_venv.py $(NEWEST)
setup-vm: setup-test
	@tests/vm/install-host-packages

lint: setup-lint setup-newest
	@tools/lint $(NEWEST)

# Where advisories can be reached
audit: setup-newest
	@$(AS_ROOT) $(DEBIAN) tools/setup_venv.py $(AUDIT) audit || echo 'audit: pip-audit is not to be had'
	@$(DEBIAN) tools/audit.py $(AUDIT)/bin/pip-audit $(NEWEST)

format: setup-newest
	$(NEWEST)/bin/ruff check --fix --cache-dir build/ruff .
	$(NEWEST)/bin/ruff format --cache-dir build/ruff .

# Side by side: they wait for made-up kernels more than they compute
unit: setup-test
	@tools/run-pytest $@ $(DEBIAN) 300 -n 4 tests/unit

# Twice: with Debian's own packages, and with the newest releases
test-debian: setup-test
	@tools/run-pytest $@ $(DEBIAN) 2100 -n 2 --dist loadfile tests/unit tests/integration tests/fuzz tests/desktop

test-newest: setup-test setup-newest
	@tools/run-pytest $@ $(NEWEST)/bin/python 2100 -n 2 --dist loadfile \
		tests/unit tests/integration tests/fuzz tests/desktop

test-vm: setup-vm deb
	@tools/run-pytest $@ $(DEBIAN) 3900 tests/vm -m 'not long'

# What may go wrong between two machines, also what takes too long to be part of test
test-faults: setup-vm deb
	@tools/run-pytest $@ $(DEBIAN) 5400 tests/vm/test_fault_*.py

# What is parsed from outside, each for FUZZ_SECONDS; what fails is left in build/fuzz. The short
# run is the same each time: what is found elsewhere is for the long one to tell
fuzz fuzz-short: setup-test setup-newest
	@PYTHONPATH=.:tests PYTHONDONTWRITEBYTECODE=1 $(NEWEST)/bin/python tests/fuzz/run.py $(FUZZ_SECONDS) $(FUZZ_SEED)
fuzz-short: FUZZ_SECONDS := 3
fuzz-short: FUZZ_SEED := 1

demo: setup-vm deb
	@$(RUN) $(DEBIAN) tests/vm/demo.py

# Each connector with each shell and each ssh server on the remote: prints what README has of it
test-pairs: setup-vm deb
	@tools/run-pytest $@ $(DEBIAN) 2400 tests/vm/test_main_pairs.py

bench: setup-test
	@$(RUN) $(DEBIAN) tests/bench/run.py

deb: setup-build
	@tools/build-deb

reproducible: deb
	@tools/check-reproducible

install:
	@tools/install "$(DESTDIR)" "$(PREFIX)"

uninstall:
	@tools/uninstall "$(DESTDIR)" "$(PREFIX)"

clean:
	rm -rf build dist
