# `make lab`, `make test` and `make test-cluster` need nothing but a Debian machine and root: each installs what it uses.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait more than they compute: four workers for a core. What shares a lab stays together.
WORKERS ?= -n $(shell n=$$(nproc); echo $$((n > 4 ? 16 : 4 * n)))
# As many clusters at once. A worker's tests of one shape share it.
CLUSTERS ?= -n 2
# Where this is set, each start of an agent or a command compiles all of felix-py anew: half of its time.
unexport PYTHONDONTWRITEBYTECODE
ASSETS := $(BIN)/python -m tests.cluster.assets --folder
REAL_PROGRAMS := kubectl kube-apiserver kube-controller-manager etcd
CLIENT := felix_py/cni/client/felix-py-cni

.PHONY: all dev lab lab-down image test test-all soak test-image test-cluster test-conformance cluster unit lint types layers bench lock clean
.DEFAULT_GOAL := all

all: $(BIN)/felix-py $(CLIENT)  ## the command line, at .venv/bin/felix-py

dev: $(VENV)/.dev $(CLIENT)  ## the same, and the tools that developers and tests need

lab: $(VENV)/.lab $(CLIENT)  ## the main job on one machine: nodes, pods, policies, a real router
	@scripts/debian-packages run
	@$(if $(REAL),$(BIN)/python -m tests.cluster.assets $(REAL_PROGRAMS))
	@$(if $(REAL),KUBEBUILDER_ASSETS="$$($(ASSETS))") $(BIN)/felix-py lab up $(LAB)

lab-down:  ## remove the lab
	@$(BIN)/felix-py lab down

test: dev packages  ## everything but heavy tests: unit, property, golden, integration, end to end, packaging
	@$(BIN)/pytest $(WORKERS) $(TESTS)

test-all: dev packages  ## the same at length, as before a release: also heavy tests, more examples, longer fuzzing
	@FELIX_PY_TESTS=all $(BIN)/pytest $(WORKERS) $(TESTS)

soak: dev  ## the simulations of addresses for an hour; SECONDS= for another time
	@FELIX_PY_TESTS=all FELIX_PY_FUZZ_SECONDS=$(or $(SECONDS),3600) $(BIN)/pytest -s $(WORKERS) \
	  tests/property/test_blocks_simulation.py tests/property/test_blocks_scale.py

test-cluster: cluster image  ## the tests on a real Kubernetes, which they start themselves
	@$(BIN)/python -m tests.cluster.previous
	@$(BIN)/pytest --durations 20 $(CLUSTERS) $(or $(TESTS),tests/cluster)
	@$(if $(TESTS),,$(MAKE) --no-print-directory test-conformance)

test-conformance: cluster  ## what kubectl and the official client may expect, of a real kube-apiserver
	@FELIX_PY_CONFORMANCE_ASSETS="$$($(ASSETS))" $(BIN)/pytest $(WORKERS) $(or $(TESTS),tests/conformance)

cluster: dev  ## what a real Kubernetes needs; its programs are built once, which takes ten minutes or more
	@scripts/debian-packages run test cluster
	@$(BIN)/python -m tests.cluster.assets

unit: dev  ## the tests that need neither root nor packages
	@$(BIN)/pytest -q $(WORKERS) tests/unit tests/property tests/golden

lint: $(VENV)/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

layers: $(VENV)/.dev
	@$(BIN)/lint-imports

image: $(BIN)/felix-py  ## the container image, at dist/felix-py.tar (PUSH=registry/name:tag, BASE=image)
	@scripts/debian-packages build image $(if $(PUSH)$(BASE),image-registry)
	@$(BIN)/python -m image $(if $(PUSH),--push $(PUSH)) $(if $(BASE),--base $(BASE)) $(IMAGE)

test-image: dev image  ## the image: built again, what is in it, and its commands in containers
	@scripts/debian-packages image-test
	@$(BIN)/python -m image $(IMAGE) --output build/image-again --work build/image-again/work
	@FELIX_PY_TESTS=image $(BIN)/pytest -m image $(or $(TESTS),tests/packaging)

bench: dev packages  ## every benchmark, each beside the bare tool or limit
	@$(BIN)/python -m bench $(BENCH)

# --- set-up ------------------------------------------------------------------------------------------

.PHONY: packages
packages:
	@scripts/debian-packages run test

$(BIN)/felix-py: requirements/run.txt requirements/build.txt pyproject.toml scripts/virtualenv
	@scripts/debian-packages build
	@PYTHON=$(PYTHON) scripts/virtualenv $(VENV) run
	@touch $@

$(VENV)/.lab: requirements/lab.txt $(BIN)/felix-py
	@PYTHON=$(PYTHON) scripts/virtualenv $(VENV) lab
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(BIN)/felix-py
	@PYTHON=$(PYTHON) scripts/virtualenv $(VENV) dev
	@touch $@

$(CLIENT): felix_py/cni/client/felix-py-cni.c $(BIN)/felix-py
	@scripts/debian-packages build
	@$(BIN)/python -m felix_py.cni.build $@

lock:  ## lock the dependencies again
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q pip-tools
	@build/lock/bin/pip-compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--strip-extras --allow-unsafe -o requirements/run.txt pyproject.toml
	@build/lock/bin/pip-compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--strip-extras --allow-unsafe --extra lab -c requirements/run.txt -o requirements/lab.txt pyproject.toml
	@build/lock/bin/pip-compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--strip-extras --allow-unsafe --extra lab --extra dev -c requirements/lab.txt -o requirements/dev.txt pyproject.toml
	@build/lock/bin/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--strip-extras --allow-unsafe --only-build-deps --build-deps-for editable -c requirements/dev.txt \
		-o requirements/build.txt pyproject.toml

clean:  ## remove what make made
	@rm -rf $(VENV) build dist $(CLIENT)

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -ts $$'\t'
