# `make lab` and `make test` need nothing but a Debian or Ubuntu machine and root: each installs what it uses.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait more than they compute: two workers at least. What shares a lab stays together.
WORKERS ?= -n $(shell n=$$(nproc); echo $$((n < 2 ? 2 : n > 8 ? 8 : n)))
CLIENT := felix_py/cni/client/felix-py-cni

.PHONY: all lab lab-down test test-all unit lint types layers bench lock clean
.DEFAULT_GOAL := all

all: $(BIN)/felix-py $(CLIENT)  ## the command line, at .venv/bin/felix-py

lab: all packages  ## the main job on one machine: nodes, pods, policies, a real router
	@$(BIN)/felix-py lab up $(LAB)

lab-down:  ## remove the lab
	@$(BIN)/felix-py lab down

test: all packages  ## everything but heavy tests: unit, property, golden, integration, end to end, packaging
	@$(BIN)/pytest $(WORKERS) $(TESTS)

test-all: all packages  ## the same at length, as before a release: also heavy tests, more examples, longer fuzzing
	@FELIX_PY_TESTS=all $(BIN)/pytest $(WORKERS) $(TESTS)

unit: all  ## the tests that need neither root nor packages
	@$(BIN)/pytest -q $(WORKERS) tests/unit tests/property tests/golden

lint: $(BIN)/felix-py
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(BIN)/felix-py
	@$(BIN)/mypy

layers: $(BIN)/felix-py
	@$(BIN)/lint-imports

bench: all packages  ## every benchmark, each beside the bare tool or limit
	@$(BIN)/python -m bench $(BENCH)

# --- set-up ------------------------------------------------------------------------------------------

.PHONY: packages
packages:
	@scripts/debian-packages run test

$(BIN)/felix-py: requirements/dev.txt pyproject.toml scripts/virtualenv
	@scripts/debian-packages build
	@PYTHON=$(PYTHON) scripts/virtualenv $(VENV)
	@touch $@

$(CLIENT): felix_py/cni/client/felix-py-cni.c $(BIN)/felix-py
	@scripts/debian-packages build
	@$(BIN)/python -m felix_py.cni.build $@

lock:  ## lock the dependencies again
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q pip-tools
	@build/lock/bin/pip-compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--strip-extras --allow-unsafe -o requirements/run.txt pyproject.toml
	@build/lock/bin/pip-compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--strip-extras --allow-unsafe --extra dev -c requirements/run.txt -o requirements/dev.txt pyproject.toml

clean:  ## remove what make made
	@rm -rf $(VENV) build dist $(CLIENT)

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -ts $$'\t'
