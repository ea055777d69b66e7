# Everything a newcomer types. `make demo` and `make test` prepare the environment themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUN    ?= runs/demo

.PHONY: demo study test install lint bench bench-step bench-gpu clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo      install, run the whole method on rendered pictures, write $(RUN)/report.html'
	@echo 'make study     install, run the ablations over several seeds (hours), write docs/results/ablations'
	@echo 'make test      install and run the test suite'
	@echo 'make install   only make $(VENV) and install'
	@echo 'make bench     each op against eager and torch.compile, then the table of figures'
	@echo 'make bench-step the whole distillation step: our losses, eager ones, none'
	@echo 'make bench-gpu builds, tests and measures everything that needs a GPU, in eight minutes'
	@echo 'make lint      ruff and pyright'
	@echo 'make clean     remove build outputs and the environment'

# torch comes first and the build is not isolated: csrc compiles against this torch, and it is downloaded once.
$(STAMP): pyproject.toml setup.py $(shell find csrc -type f)
	$(PYTHON) -c 'import sys; sys.exit("vlkd needs Python 3.10 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet 'torch>=2.10' 'torchvision>=0.25' 'pybind11>=2.13' 'ninja>=1.11'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[train,eval,bench,dev]'
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/vlkd demo --out $(RUN)

study: $(STAMP)
	$(BIN)/vlkd study ablations --results docs/results/ablations

test: $(STAMP)
	$(BIN)/python -m pytest

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
