# Verbs: run, test, check, bench, bench-gain, serve (and test-all: the marked tests too). Everything happens inside .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export NO_ALBUMENTATIONS_UPDATE := 1
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help run test test-all check bench bench-gain serve install

help:
	@echo "make run    plan and run the whole pipeline, print the verdict and where the report lies"
	@echo "make test   the tests; make test-all adds those marked slow and server (browser: needs chromium)"
	@echo "make check  format, lint, types, layers"
	@echo "make bench  speed and memory as ratios"
	@echo "make bench-gain SET=digits    the gain on a real data set (all of them: about a day of 2 cores), resumable"
	@echo "make serve  Prefect's server, its page, a worker and the schedules of prefect.yaml"

install: $(INSTALLED)

# Compiled at once: where PYTHONDONTWRITEBYTECODE is set, every stage would compile torch anew.
# uv where there is one, else pip fetches it (pip alone takes many minutes for torch), else pip alone; every version is
# pinned in constraints.txt
$(INSTALLED): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
	  VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet --compile-bytecode -c constraints.txt -e ".[pipelines,timm,ssh,webdav,s3,dev]"; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  if $(BIN)/python -m pip install --quiet -c constraints.txt uv; then \
	    VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -e ".[pipelines,timm,ssh,webdav,s3,dev]"; \
	  else \
	    $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[pipelines,timm,ssh,webdav,s3,dev]"; \
	  fi; \
	fi
	@touch $@

run: install
	@if ! dvc remote list | grep -q . ; then python -m pipelines.remotes init --local local .dvc-remote; fi
	synthgen plan
	synthgen sizes
	dvc repro
	synthgen verdict

test: install
	python -m pytest -n 2 --dist loadgroup

test-all: install
	python -m pytest -n 2 --dist loadgroup -m "not gpu"

check: install
	ruff format --check .
	ruff check .
	mypy
	mypy --config-file benchmarks/mypy.ini
	lint-imports

bench: install
	python benchmarks/run.py

bench-gain: install
	python benchmarks/gain.py $(SET)
	python benchmarks/gain_table.py

serve: install
	python -m pipelines.serve
