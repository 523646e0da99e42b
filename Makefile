# SPDX-License-Identifier: Apache-2.0
# make demo and make test do all set-up by themselves; make help lists the rest.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# meson finds ninja there, and all that runs here the command that was built.
export PATH := $(CURDIR)/$(BIN):$(PATH)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := gcc pkg-config python3-dev python3-venv libibverbs-dev librdmacm-dev perftest ibverbs-utils iproute2 \
            rdmacm-utils ucx-utils libucx-dev qperf python3-pyverbs libfabric-bin musl-tools
SOURCES := $(shell find csrc shim router benchmarks tests -name '*.[ch]' -o -name '*.py' -o -name '*.proto' -o -name meson.build) \
           meson.build meson.options pyproject.toml

# What some tests need beyond that, and skip without: MPI, whose compiler brings one for Fortran along, and those for Java and Go.
TEST_PACKAGES := openmpi-bin libopenmpi-dev default-jdk-headless golang-go

# A guest of tests/vm, and the compiler of tests/fuzz.
VM_PACKAGES := qemu-system-x86 busybox-static cpio kmod iproute2 rdma-core
FUZZ_PACKAGES := clang libclang-rt-dev
FUZZERS := control segment wire zmtp
FUZZ_SECONDS ?= 20

# A node of tests/kubernetes; what Debian has in no current version is built from Go modules (tests/kubernetes/build.sh).
KUBERNETES_PACKAGES := runc busybox-static openssl util-linux openmpi-bin libopenmpi-dev dropbear-bin
IMAGE_PACKAGES := buildah debootstrap debian-archive-keyring

.PHONY: help setup demo test test-c test-sanitize test-python test-kubernetes test-kubernetes-scale bench-kubernetes test-vm fuzz \
        lint bench bench-isolation bench-tcp bench-incast images shell docs clean

help:
	@echo "make demo   set up, then see it work"
	@echo "make test   set up, then all tests"
	@echo "make test-kubernetes  tests against a real Kubernetes, built from source the first time (10 minutes)"
	@echo "make test-kubernetes-scale  the same with 1,000 pods"
	@echo "make test-vm  a kernel RDMA device in a virtual machine: the conformance suite on it, through a router beside it, through routers that own it, and between two machines"
	@echo "make fuzz   each fuzzer for FUZZ_SECONDS ($(FUZZ_SECONDS))"
	@echo "make setup  set up: system packages, virtual environment, $(BIN)/sluice"
	@echo "make lint   ruff, mypy --strict"
	@echo "make bench  the benchmarks, beside their peers (about 2 minutes)"
	@echo "make bench-isolation  the victim under attack, rates, shares (about 9 minutes)"
	@echo "make bench-tcp  two nodes beside iperf3 and UCX over the same wire (about three minutes)"
	@echo "make bench-incast  three nodes: what an incast leaves of a guarantee (about two minutes)"
	@echo "make images  the container images, in build/images"
	@echo "make shell  a shell in which 'sluice' is found"
	@echo "make docs   docs/verbs.md anew, from the code"
	@echo "make clean  remove what was built"

setup: $(VENV)/.installed

# Only what is missing is installed, so that a machine that has all of it needs no network for this.
define install
	@missing=; for package in $(1); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing system packages:$$missing"; \
	  $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq $$missing; \
	fi
endef

$(VENV)/.packages: Makefile
	$(call install,$(PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

$(VENV)/.dependencies: $(VENV)/.packages pyproject.toml
	$(BIN)/python -m pip install -q 'meson-python>=0.15' 'meson>=1.1' 'ninja>=1.11' 'cffi>=1.16' 'pyzmq>=25' \
	  'numpy>=1.24' 'pyyaml>=6.0' 'pytest>=7.4' 'hypothesis>=6.80' 'mypy>=1.8' 'ruff>=0.4' 'types-PyYAML>=6.0' \
	  'prometheus-client>=0.19' 'kubernetes>=37.0' 'aiohttp>=3.9' 'grpcio>=1.60' 'protobuf>=4.22' 'grpcio-tools>=1.60'
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES) README.md
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps .
	touch $@

demo: setup
	$(BIN)/sluice demo

test: test-c test-sanitize test-python

build/build.ninja: | setup
	$(BIN)/meson setup build >/dev/null

test-c: setup build/build.ninja
	$(BIN)/meson test -C build --print-errorlogs

build-asan/build.ninja: | setup
	$(BIN)/meson setup build-asan --buildtype=debugoptimized -Db_sanitize=address,undefined >/dev/null

build-tsan/build.ninja: | setup
	$(BIN)/meson setup build-tsan --buildtype=debugoptimized -Db_sanitize=thread >/dev/null

test-sanitize: setup build-asan/build.ninja build-tsan/build.ninja
	$(BIN)/meson test -C build-asan --print-errorlogs
	$(BIN)/meson test -C build-tsan --suite threads --print-errorlogs

test-python: setup build/build.ninja
	$(call install,$(TEST_PACKAGES))
	$(BIN)/ninja -C build >/dev/null
	SLUICE_BUILD=$(CURDIR)/build $(BIN)/python -m pytest -q

images: build/images/router.tar

build/images/router.tar: $(filter-out tests/% benchmarks/%,$(SOURCES)) $(wildcard deploy/containers/*)
	$(call install,$(IMAGE_PACKAGES))
	$(SUDO) deploy/containers/build.sh build/images

test-kubernetes: setup images
	$(call install,$(KUBERNETES_PACKAGES))
	timeout 3000 $(BIN)/python -m pytest -q tests/kubernetes

test-kubernetes-scale: setup
	$(call install,$(KUBERNETES_PACKAGES))
	timeout 3000 $(BIN)/python -m pytest -q tests/kubernetes/test_scale.py

test-vm: setup build/build.ninja
	$(call install,$(VM_PACKAGES))
	$(BIN)/ninja -C build >/dev/null
	rm -rf build/vm && mkdir build/vm
	$(SUDO) tests/vm/boot -t 1800 -o build/vm -- $(CURDIR)/tests/vm/conformance $(CURDIR) /run/vm/out
	$(BIN)/python tests/vm/compare.py build/vm/bare-one-process.json build/vm/local-one-tenant.json \
	  build/vm/local-two-tenants.json
	$(SUDO) tests/vm/boot -t 1800 -o build/vm -- $(CURDIR)/tests/vm/nic $(CURDIR) /run/vm/out
	$(BIN)/python tests/vm/compare.py build/vm/bare-two-processes.json build/vm/nic-two-tenants.json
	$(SUDO) tests/vm/boot -n 2 -t 1800 -o build/vm -- $(CURDIR)/tests/vm/pair $(CURDIR) /run/vm/out
	$(BIN)/python tests/vm/compare.py build/vm/bare-two-hosts.json build/vm/nic-two-hosts.json

# Leaks are looked for by the unit tests, which close what they open: sessions that live on between two inputs are found
# through tables that LeakSanitizer doesn't search (mmap).
fuzz: setup
	$(call install,$(FUZZ_PACKAGES))
	[ -e build-fuzz/build.ninja ] || CC=clang $(BIN)/meson setup build-fuzz --buildtype=debugoptimized \
	  -Db_sanitize=address,undefined -Db_lundef=false -Dfuzz=true -Dc_args=-fsanitize=fuzzer-no-link >/dev/null
	$(BIN)/ninja -C build-fuzz $(FUZZERS:%=tests/fuzz/fuzz-%) >/dev/null
	@for name in $(FUZZERS); do \
	  mkdir -p build-fuzz/corpus-$$name && \
	  echo "fuzzing $$name for $(FUZZ_SECONDS) s" && \
	  { ASAN_OPTIONS=detect_leaks=0 build-fuzz/tests/fuzz/fuzz-$$name -max_total_time=$(FUZZ_SECONDS) -max_len=1024 -timeout=120 \
	      -artifact_prefix=build-fuzz/$$name- build-fuzz/corpus-$$name tests/fuzz/corpus/$$name \
	      > build-fuzz/$$name.log 2>&1 || { tail -n 60 build-fuzz/$$name.log; exit 1; }; } && \
	  tail -n 1 build-fuzz/$$name.log; \
	done
	$(BIN)/python -m pytest -q tests/fuzz

bench-kubernetes: setup
	$(call install,$(KUBERNETES_PACKAGES))
	PYTHONPATH=tests:tests/kubernetes $(BIN)/python benchmarks/scheduling.py

lint: setup
	$(BIN)/ruff check router tests benchmarks
	$(BIN)/ruff format --check router tests benchmarks
	$(BIN)/mypy

bench: setup build/build.ninja
	$(BIN)/ninja -C build >/dev/null
	SLUICE_BUILD=$(CURDIR)/build $(BIN)/python benchmarks/local.py

bench-isolation: setup build/build.ninja
	$(BIN)/ninja -C build >/dev/null
	SLUICE_BUILD=$(CURDIR)/build $(BIN)/python benchmarks/isolation/isolation.py

bench-tcp: setup build/build.ninja
	$(call install,iperf3)
	$(BIN)/ninja -C build >/dev/null
	$(SUDO) env SLUICE_BUILD=$(CURDIR)/build $(BIN)/python benchmarks/tcp.py

bench-incast: setup build/build.ninja
	$(BIN)/ninja -C build >/dev/null
	$(SUDO) env SLUICE_BUILD=$(CURDIR)/build PYTHONPATH=tests:tests/nodes $(BIN)/python benchmarks/incast.py

docs: setup
	$(BIN)/python docs/verbs.py > docs/verbs.md

shell: setup
	@$${SHELL:-bash}

clean:
	rm -rf build build-asan build-tsan $(VENV)
