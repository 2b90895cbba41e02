# `make` lists the targets. Everything they make is in .venv, .modelfleet and ~/.cache/modelfleet.
PYTHON ?= python3
# Options of `python -m tools.bench`, such as BENCH="--restarts 1 --concurrency 8".
BENCH ?=
# Options of `python -m tools.bench.soak`, such as SOAK="--minutes 5".
SOAK ?=
STACK ?= local
BIN := .venv/bin
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet

.DEFAULT_GOAL := help
.PHONY: help setup tools up down status test test-fast test-gateway test-engine test-serving test-cluster check fix schema bench soak lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.ready tools  ## Make the virtual environment and get the tools

.venv/.ready: requirements/local.txt requirements/bootstrap.txt pyproject.toml tools/setup.sh
	@sh tools/setup.sh "$(PYTHON)" requirements/local.txt
	@touch $@

tools: .venv/.ready  ## Find, install or build the Pulumi CLI and its plugins
	@$(BIN)/python -m tools.get

up: setup  ## Serve the stack (STACK=local) and print an endpoint that answers
	@$(BIN)/modelfleet up --stack $(STACK)

down: .venv/.ready  ## Take away what `make up` made, and only that
	@$(BIN)/modelfleet down --stack $(STACK)

status: .venv/.ready  ## Say what runs
	@$(BIN)/modelfleet status --stack $(STACK)

check: .venv/.ready  ## Format, lint, types, import contracts, Dockerfile, model and stack files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint serving/Dockerfile
	@$(BIN)/modelfleet check models --stack local

fix: .venv/.ready  ## Format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

test: setup  ## All tests
	@sh tools/test.sh all

test-fast: .venv/.ready  ## Unit tests, under a minute
	@sh tools/test.sh fast

test-engine test-serving test-cluster test-gateway: setup
	@sh tools/test.sh $(@:test-%=%)

schema: .venv/.ready  ## Make the data files, JSON Schemas and references from the installed packages
	@$(BIN)/python -m tools.schema

bench: setup  ## Print speeds side by side with their baselines
	@$(BIN)/python -m tools.bench.packing
	@$(BIN)/python -m tools.bench.aws
	@$(BIN)/python -m tools.bench --makeup local
	@$(BIN)/modelfleet down --stack local
	@$(BIN)/python -m tools.bench $(BENCH)

soak: setup  ## Load one model for 20 minutes and fail when memory grows
	@$(BIN)/python -m tools.bench.soak $(SOAK)

rendered: .venv/.ready  ## Write the kept golden files anew; read them in the diff
	@RENDERED=write $(BIN)/python -m pytest -q tests/unit/gateway
	@$(BIN)/python -m tests.unit.kubernetes.rewrite

lock: .venv/.ready  ## Write the pinned requirement files anew
	@echo "uv>=0.13" | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --quiet -o requirements/bootstrap.txt
	@$(BIN)/$(LOCK) --extra operator --extra local --extra dev -o requirements/local.txt
	@$(BIN)/$(LOCK) --extra operator -c requirements/local.txt -o requirements/operator.txt
	@$(BIN)/$(LOCK) --extra cluster -o requirements/cluster.txt

clean:  ## Remove the virtual environment (not the caches shared with other clones)
	@rm -rf .venv
