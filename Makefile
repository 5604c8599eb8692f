# `make demo` and `make test` need Python 3.10+, a C++ compiler and make. Each sets itself up in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
DATA ?= digits
AOT ?= --quick
JOBS ?= 2
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Test workers share the cores, so each keeps to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

READY := $(VENV)/.ready
TRITON := $(VENV)/.triton
SOURCES := $(wildcard csrc/*.cpp csrc/*.hpp csrc/CMakeLists.txt) pyproject.toml setup.py constraints.txt

.PHONY: help setup demo test test-fast test-kernels test-slow test-network kernels-compile lint \
	types wheel-test sanitize bench bench-report gpu-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

setup: $(READY) ## a virtual environment in .venv with the package, editable

$(READY): $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=24'
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A CPU build of torch brings no Triton. A CUDA build brings its own, which must not be replaced.
$(TRITON): $(READY)
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --quiet triton
	@touch $@

demo: $(READY) ## trains on real images, prints every score's table, draws histograms (DATA=fashion-mnist)
	$(BIN)/lipvae demo --data $(DATA)

test: $(READY) $(TRITON) ## the whole suite, with the Triton kernels interpreted, and its coverage
	@rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report=
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels --cov --cov-append --cov-report=
	$(BIN)/coverage report --fail-under=90

test-fast: $(READY) ## the suite without kernels and coverage
	$(PYTEST)

test-kernels: $(READY) $(TRITON) ## the Triton kernels, interpreted on a CPU
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels

test-slow: $(READY) ## long statistical and adversarial tests
	$(PYTEST) -m slow

test-network: $(READY) ## fetches every data set that can be reached
	$(BIN)/python -m pytest -q -m network

kernels-compile: $(READY) $(TRITON) ## compiles the Triton kernels for CUDA and ROCm without a GPU (AOT= for all variants)
	$(BIN)/python -m lipvae.kernels.aot $(AOT)

lint: $(READY) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy
	$(BIN)/mypy

wheel-test: $(READY) ## builds the wheel, installs it in a fresh environment, tests it outside the checkout
	BIN=$(BIN) tools/wheel-test

sanitize: ## the C++ kernels under address, undefined-behaviour and thread sanitizers
	cd csrc && for p in asan-ubsan tsan; do \
	  cmake --preset $$p && cmake --build --preset $$p && ctest --preset $$p || exit 1; done

BENCH := $(VENV)/.bench
$(BENCH): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

bench: $(BENCH) ## times every op against its peers and the physical limit
	$(BIN)/python -m bench --check

bench-report: $(BENCH) ## draws the plots of the last run into docs/
	$(BIN)/python -m bench report --out docs

gpu-check: $(BENCH) ## on a GPU machine: the gpu tests (under compute-sanitizer), then the benchmarks
	$(BIN)/python tools/gpu_check.py

clean: ## removes what builds and tests leave
	rm -rf build dist out ./*.egg-info lipvae/_C*.so .coverage* .pytest_cache .mypy_cache .ruff_cache
