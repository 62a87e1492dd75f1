# The one way in: people and CI run the same targets. `make` alone lists them.
#
# Everything is installed into .venv from requirements.lock (exact versions, with hashes). The stamp file says that it
# is up to date, so a second call of any target costs nothing.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS  ?= 2
ARGS  ?=

# What mypy reads: every package of the distribution, the scripts and the tests.
TYPED := lib/mailrail $(wildcard services/*/mailrail_*) $(wildcard operator/mailrail_*) scripts tests tilt
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
GENERATORS := $(sort $(wildcard scripts/generate_*.py))

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 run` names another one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  ARGS=... is handed on: make test ARGS='tests/unit -k route', make run ARGS='--port-offset 100'"

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Mailrail needs Python 3.11 or newer, and found none. Install it (Debian: apt-get install python3 python3-venv)" >&2; \
		echo "or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; fi
	@if [ ! -x $(BIN)/python ]; then \
		echo "making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv $(VENV) || { \
			rm -rf $(VENV); \
			echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; fi
	@echo "installing what requirements.lock names into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: install
install: $(STAMP) ## install everything into .venv (the other targets do it by themselves)

.PHONY: run
run: $(STAMP) ## start all of Mailrail here, on an embedded Postgres, with the resources in ./mail.d
	@exec $(BIN)/mailrail local $(ARGS)

.PHONY: test
test: $(STAMP) ## run every test that needs no cluster
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -rfE $(ARGS)

.PHONY: test-long
test-long: $(STAMP) ## run the long forms of the guards (kills, freezes, full disk, storms): hours, on a machine of their own
	@$(BIN)/python -m pytest -m long -rfE $(ARGS)

.PHONY: test-cluster
test-cluster: $(STAMP) ## run the tests that need Kubernetes: KUBECONFIG names a cluster for tests alone (kind will do), MAILRAIL_TEST_IMAGE the image
	@if [ -z "$$KUBECONFIG" ]; then \
		echo "KUBECONFIG does not name a cluster. A local one: kind create cluster --kubeconfig k.yaml; KUBECONFIG=k.yaml make test-cluster" >&2; exit 1; fi
	@MAILRAIL_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster -rfE $(ARGS)

.PHONY: check
check: $(STAMP) ## ruff, mypy --strict, what Windows lacks, import contracts, buf lint, generated files, rules, citations, released contract, changelog, subjects, names of tests
	@echo "ruff check";          $(BIN)/ruff check .
	@echo "ruff format --check"; $(BIN)/ruff format --check .
	@echo "mypy --strict";       $(BIN)/mypy $(TYPED)
	@echo "portable";            $(BIN)/python scripts/check_portable.py
	@echo "lint-imports";        $(BIN)/lint-imports
	@echo "buf lint";            $(BIN)/buf lint
	@echo "generated files";     $(BIN)/python scripts/check_generated.py
	@echo "rules";               $(BIN)/python scripts/check_rules.py
	@echo "citations";           $(BIN)/python scripts/check_citations.py
	@echo "contract";            $(BIN)/python scripts/check_contract.py
	@echo "changelog";           $(BIN)/python scripts/check_changelog.py
	@echo "commits";             $(BIN)/python scripts/check_commits.py
	@echo "collection";          $(BIN)/python scripts/check_collection.py

.PHONY: changelog
changelog: $(STAMP) ## show what the fragments of changelog.d/ will say in CHANGELOG.md
	@$(BIN)/towncrier build --draft $(ARGS) 2>/dev/null

.PHONY: format
format: $(STAMP) ## let ruff fix and format what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: proto
proto: $(STAMP) ## generate lib/mailrail/pb from proto/
	@$(BIN)/python scripts/generate_proto.py

.PHONY: generate
generate: $(STAMP) ## write every generated file anew (proto included)
	@set -e; for generator in $(GENERATORS); do echo "$$generator"; $(BIN)/python "$$generator"; done

.PHONY: lock
lock: $(STAMP) ## write requirements.lock and the image's two anew from the ranges in pyproject.toml
	@$(LOCK) pyproject.toml --group dev --upgrade -o requirements.lock
	@$(LOCK) pyproject.toml -c requirements.lock --no-annotate -o deploy/image/runtime.lock
	@echo hatchling | $(LOCK) - -c requirements.lock --no-annotate -o deploy/image/build.lock

.PHONY: bench
bench: $(STAMP) ## measure Mailrail beside Postfix, some minutes; ARGS='compare BASE [HEAD]': what a change costs
	@PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

.PHONY: bench-long
bench-long: $(STAMP) ## measure every size, steady flow, attacks and backlogs of millions: hours; write docs/benchmarks.md
	@PYTHONPATH=tests $(BIN)/python -m bench --long --page $(ARGS)
	@PYTHONPATH=tests $(BIN)/python -m bench hostile --page
	@PYTHONPATH=tests $(BIN)/python -m bench scale --page

# --- Kubernetes ---

IMAGE  ?= mailrail:dev
CHART  := deploy/helm/mailrail
BUILDER ?= $(shell for p in docker podman buildah; do command -v $$p >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: image
image: ## build the image: IMAGE=registry/mailrail:1.2.3, BUILDER=docker, podman or buildah, ARGS='--build-arg BASE_IMAGE=...'
	@if [ -z "$(BUILDER)" ]; then echo "no docker, podman or buildah here; name one: make image BUILDER=..." >&2; exit 1; fi
	@$(BUILDER) $(if $(filter buildah,$(notdir $(BUILDER))),bud,build) -t $(IMAGE) $(ARGS) .

.PHONY: release
release: $(STAMP) ## prepare, then build a release: VERSION=1.2.3, BUILDER and ARGS as for the image (docs/contributing/releasing.md)
	@$(BIN)/python scripts/release.py "$(VERSION)" $(if $(filter file,$(origin BUILDER)),,--builder $(BUILDER)) -- $(ARGS)

.PHONY: helm-lint
helm-lint: $(STAMP) ## helm lint --strict, helm template over ci values and others; with KUBECONFIG the API server's dry run, too
	@$(BIN)/python scripts/lint_chart.py $(ARGS)
	@$(BIN)/python -m pytest tests/unit/chart

.PHONY: clean
clean: ## remove .venv and every cache; queues and state folders are left alone
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
