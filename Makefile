# Everything a newcomer types. `make demo` and `make test` prepare the environment themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUN    ?= runs/demo

# One test process for each core; a file's tests stay in one process, and files with slow tests come first (tests/conftest.py).
TESTS  := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder
PIP    := $(BIN)/python -m pip install --quiet
EXTRAS := train,eval,bench,dev

# $(call install,WHAT): the versions of constraints.txt; the newest with LATEST=1, or where those cannot be had.
install = $(if $(LATEST),$(PIP) --upgrade --upgrade-strategy eager $(1),$(PIP) --constraint constraints.txt $(1) \
	|| { echo 'Not all versions of constraints.txt can be had here, as pip says above: going on with the newest.' >&2; $(PIP) $(1); })

.PHONY: demo study check test test-slow install constraints lint oldest bench bench-step bench-gpu clean FORCE
.DEFAULT_GOAL := help

help:
	@echo 'make demo      install, run the whole method on rendered pictures, write $(RUN)/report.html'
	@echo 'make study     install, run the ablations over several seeds (hours), write docs/results/ablations'
	@echo 'make check     install and run, in two minutes, what to run while writing: ruff, types of what changed, fast tests'
	@echo 'make test      install and run the whole test suite, before every commit'
	@echo 'make test-slow the same, and list the twenty slowest tests'
	@echo 'make oldest    the kernels'"'"' tests and all compilations ahead of time, in an environment of the oldest versions (an hour, 8 GB)'
	@echo 'make install   only make $(VENV) and install, at the versions of constraints.txt; LATEST=1: at the newest'
	@echo 'make constraints write the versions of $(VENV) to constraints.txt, after a whole green run'
	@echo 'make bench     each op against eager and torch.compile, then the table of figures'
	@echo 'make bench-step the whole distillation step: ours, ours padded, eager padded, none'
	@echo 'make bench-gpu builds, tests and measures everything that needs a GPU, in eight minutes'
	@echo 'make lint      ruff and pyright'
	@echo 'make clean     remove build outputs and the environment'

# torch comes first and the build is not isolated: csrc compiles against this torch, and it is downloaded once.
$(STAMP): pyproject.toml setup.py constraints.txt $(shell find csrc -type f) $(if $(LATEST),FORCE)
	$(PYTHON) -c 'import sys; sys.exit("vlkd needs Python 3.10 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@echo 'Installing $(if $(LATEST),the newest versions,the versions of constraints.txt (make install LATEST=1 takes the newest)).'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip 'setuptools>=77' wheel
	@$(call install,'torch>=2.10' 'torchvision>=0.25' 'pybind11>=2.13' 'ninja>=1.11')
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; $(call install,--no-build-isolation -e '.[$(EXTRAS)]')
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/vlkd demo --out $(RUN)

study: $(STAMP)
	$(BIN)/vlkd study ablations --results docs/results/ablations

# Types of the files that are not committed yet, which pyright reads meanwhile; both are waited for.
CHANGED = $(filter vlkd/% vlkd_kernels/% benchmarks/% setup.py,$(shell \
	git diff --name-only --diff-filter=d HEAD -- '*.py'; git ls-files --others --exclude-standard -- '*.py'))
check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(if $(CHANGED),$(BIN)/pyright $(CHANGED),true) & types=$$!; $(TESTS) -m 'not slow'; tests=$$?; wait $$types && exit $$tests

test: $(STAMP)
	$(TESTS)

test-slow: $(STAMP)
	$(TESTS) --durations=20

oldest:
	PYTHON=$(PYTHON) .ci/oldest

# The environment has these versions, so nothing is to be installed after it.
constraints: $(STAMP)
	$(BIN)/python .ci/constraints.py > constraints.txt.new
	mv constraints.txt.new constraints.txt
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: $(STAMP)
	mkdir -p benchmarks/results
	$(BIN)/python -m pytest benchmarks --benchmark-json=benchmarks/results/latest.json
	$(BIN)/python -m benchmarks.table benchmarks/results/latest.json

bench-step: $(STAMP)
	$(BIN)/python -m benchmarks.distillation_step

# With the environment that is active where there is no $(VENV): a machine with a GPU may have no network to install from.
bench-gpu:
	$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu

clean:
	rm -rf $(VENV) build *.egg-info vlkd_kernels/_C*.so .pytest_cache .ruff_cache
