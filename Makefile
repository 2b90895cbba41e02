# `make` lists the targets. They write to .venv, .modelfleet and ~/.cache/modelfleet.
PYTHON ?= python3
# Options of `python -m tools.bench`, such as BENCH="--restarts 1 --concurrency 8".
BENCH ?=
# Options of `python -m tools.bench.gpu`, such as GPU_BENCH="--model /models/llama-3.1-8b".
GPU_BENCH ?=
# Options of `python -m tools.bench.soak`, such as SOAK="--minutes 5".
SOAK ?=
# Options of `python -m tools.vllm_suite`, such as SUITE="--module completion --keep /tmp/suite".
SUITE ?=
STACK ?= local
# The stack for trying the Kubernetes half out: around it the tools put what a platform team has.
TRIAL := $(filter cluster,$(STACK))
STACK_FILE := stacks/Pulumi.$(STACK).yaml
LOCAL := $(shell grep -s '^ *modelfleet:target: *local' $(STACK_FILE))
# A pool whose accelerator is not CPU; no other begins with a C. A pretended card (docs/gpu.md) needs vLLM's CPU build.
ON_GPUS := $(if $(MODELFLEET_PRETENDED_CARD),,$(if $(LOCAL),$(shell grep -sE '^[^\#]*accelerator: *["'\'']?[^"'\''C ]' $(STACK_FILE))))
# Only a local stack and a trial need all that `make setup` installs.
SETUP := $(if $(ON_GPUS),setup-gpu,$(if $(TRIAL)$(LOCAL),setup,setup-operator))
BIN := .venv/bin
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet

.DEFAULT_GOAL := help
# Two of these at once would write to the same environment.
.NOTPARALLEL:
.PHONY: help setup setup-gpu setup-operator tools up down status check audit licences image fix test test-fast test-gateway \
    test-engine test-serving test-cluster test-nodes vllm-suite schema bench gpu-bench soak rendered release lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.ready tools  ## Make the virtual environment and get the tools

setup-gpu: .venv/.gpu tools  ## The same for this machine's NVIDIA GPUs, in place of vLLM's CPU build

setup-operator: operator tools  ## Set up only what planning and deploying need: 300 MB, not 6 GB

# An environment from `make setup` has all of this, so it is kept and updated as such.
.PHONY: operator
operator:
	@$(MAKE) --no-print-directory $(firstword $(wildcard .venv/.ready .venv/.gpu) .venv/.operator)

.venv/.operator: requirements/operator.txt requirements/bootstrap.txt pyproject.toml tools/setup.sh
	@sh tools/setup.sh "$(PYTHON)" requirements/operator.txt
	@touch $@

.venv/.ready: requirements/local.txt requirements/bootstrap.txt pyproject.toml tools/setup.sh
	@sh tools/setup.sh "$(PYTHON)" requirements/local.txt
	@rm -f .venv/.gpu && touch $@

.venv/.gpu: requirements/local-gpu.txt requirements/bootstrap.txt pyproject.toml tools/setup.sh tools/gpu_set.sh
	@sh tools/gpu_set.sh
	@rm -f .venv/.ready
	@sh tools/setup.sh "$(PYTHON)" requirements/local-gpu.txt
	@touch $@

tools: operator  ## Find, install or build the Pulumi CLI and its plugins
	@$(BIN)/python -m tools.get

up: $(SETUP)  ## Serve the stack (STACK=local) and print an endpoint that answers
	@$(if $(TRIAL),$(BIN)/python -m tools.kubernetes.trial,$(BIN)/modelfleet) up --stack $(STACK)

down: $(SETUP)  ## Remove what `make up` made, and only that
	@$(if $(TRIAL),$(BIN)/python -m tools.kubernetes.trial,$(BIN)/modelfleet) down --stack $(STACK)

status: $(SETUP)  ## Show what runs
	@$(BIN)/modelfleet status --stack $(STACK)

check: .venv/.ready  ## Format, lint, types, import contracts, dependencies, licences, Dockerfile, model and stack files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry .
	@$(BIN)/vulture
	@$(BIN)/codespell
	@$(BIN)/shellcheck tools/*.sh .ci/run
	@$(BIN)/hadolint serving/Dockerfile serving/mirror/Dockerfile
	@$(BIN)/pip-licenses --python $(BIN)/python >/dev/null
	@$(BIN)/modelfleet check models --stack local

audit: .venv/.ready  ## After raising versions: run heavy scanners over the manifests, IAM documents and types
	@$(BIN)/python -m tools.audit

licences: .venv/.ready  ## Print the licence of each installed package
	@$(BIN)/pip-licenses --python $(BIN)/python --order license

# The first of these on PATH.
ENGINE = $(notdir $(firstword $(foreach one,docker podman,$(shell command -v $(one)))))
# By its digest, where the table knows one.
base = $(shell awk -F, '$$1 == "$(1)" { print $$2 ":" $$3 ($$4 ? "@" $$4 : "") }' infra/catalog/images.csv)
IMAGE ?= modelfleet-serving:dev
MIRROR_IMAGE ?= $(subst serving,mirror,$(IMAGE))

image:  ## Build serving and mirror image with Docker or Podman (IMAGE=name:tag MIRROR_IMAGE=name:tag)
	@test -n "$(ENGINE)" || { echo "neither docker nor podman is on PATH; install one of them"; exit 2; }
	@test "$(IMAGE)" != "$(MIRROR_IMAGE)" || { echo "name the mirror's image too: MIRROR_IMAGE=name:tag"; exit 2; }
	@$(ENGINE) build --file serving/Dockerfile --build-arg BASE_IMAGE=$(call base,vllm) --tag $(IMAGE) .
	@$(ENGINE) build --file serving/mirror/Dockerfile --build-arg BASE_IMAGE=$(call base,python) --tag $(MIRROR_IMAGE) .

fix: .venv/.ready  ## Format, and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Before the tests, not in them: beside them it takes four times as long, and they wait 20 minutes at most.
.PHONY: control-plane
control-plane: setup
	@$(BIN)/python -m tools.kubernetes build >/dev/null

test: control-plane  ## All tests
	@sh tools/test.sh all

test-long: control-plane  ## All tests with what takes minutes each: before a release, after raising a version
	@LONG=1 sh tools/test.sh all

test-fast: .venv/.ready  ## Unit tests, under a minute
	@sh tools/test.sh fast

test-engine test-cluster test-nodes: control-plane

test-engine test-serving test-cluster test-nodes test-gateway: setup
	@sh tools/test.sh $(@:test-%=%)

vllm-suite: setup  ## Run vLLM's own API tests against `vllm serve` and against us; an hour (SUITE="--module completion")
	@$(BIN)/python -m tools.vllm_suite $(SUITE)

schema: .venv/.ready  ## Make the data files, JSON Schemas and references from the installed packages
	@$(BIN)/python -m tools.schema

bench: setup  ## Print speeds next to their baselines
	@$(BIN)/python -m tools.bench.packing
	@$(BIN)/python -m tools.bench.aws
	@$(BIN)/python -m tools.bench --makeup local
	@$(BIN)/modelfleet down --stack local
	@$(BIN)/python -m tools.bench $(BENCH)

gpu-bench:  ## On an NVIDIA GPU: print `vllm serve` beside our replica; 12 minutes (GPU_BENCH="--model FOLDER")
	@PYTHON="$(PYTHON)" sh tools/gpu_bench.sh $(GPU_BENCH)

soak: setup  ## Load one model for 20 minutes and fail when memory grows
	@$(BIN)/python -m tools.bench.soak $(SOAK)

rendered: .venv/.ready  ## Write the golden files again; read them in the diff
	@RENDERED=write $(BIN)/python -m pytest -q tests/unit/gateway
	@$(BIN)/python -m tests.unit.kubernetes.rewrite

release: .venv/.ready  ## Build the wheel and the sdist into dist/; the same commit gives the same bytes
	@rm -rf dist
	@$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist
	@cd dist && sha256sum *

lock: .venv/.ready  ## Pin the requirements again
	@$(BIN)/$(LOCK) --extra operator --extra local --extra dev -o requirements/local.txt
	@for one in fleet cluster-cpu; do cp requirements/local.txt requirements/$$one.txt; done  # uv keeps these versions
	@$(BIN)/$(LOCK) --extra operator --extra local -o requirements/fleet.txt
	@$(BIN)/$(LOCK) --extra operator -c requirements/local.txt -o requirements/operator.txt
	@$(BIN)/$(LOCK) --extra cluster -o requirements/cluster.txt
	@cp requirements/cluster.txt requirements/local-gpu.txt  # uv keeps these versions
	@$(BIN)/$(LOCK) --extra operator --extra local-gpu -o requirements/local-gpu.txt
	@$(BIN)/$(LOCK) --extra mirror -c requirements/cluster.txt -o requirements/mirror.txt
	@$(BIN)/$(LOCK) --extra cluster-cpu -o requirements/cluster-cpu.txt
	@cd / && printf torchvision | $(CURDIR)/$(BIN)/uv pip compile - -c $(CURDIR)/requirements/cluster.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --quiet | sed -n '/^torchvision==/,/# via/{/# via/!p}' > $(CURDIR)/requirements/probe.txt
	@cd / && printf "pytest-asyncio\ntblib\nsetuptools-rust\nsetuptools-scm\n" | $(CURDIR)/$(BIN)/uv pip compile - -c $(CURDIR)/requirements/local.txt --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet | awk '/^[a-z]/ { keep = /^(pytest-asyncio|tblib|setuptools-rust|setuptools-scm|vcs-versioning|semantic-version)==/ } keep' > $(CURDIR)/requirements/vllm-suite.txt
	@cd / && pins=$$(mktemp) && grep -vE "^click==|^ " $(CURDIR)/requirements/local.txt | sed 's/ \\$$//' > $$pins && printf "guidellm==0.8.1\n" | $(CURDIR)/$(BIN)/uv pip compile - -c $$pins --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet | awk '/^[a-z]/ { keep = /^(guidellm|culsans|aiologic|datasets|multiprocess|pandas|pyarrow|xxhash|eval-type-backport|faker|ftfy|h2|hpack|hyperframe|click|more-itertools|tabulate|tzdata)==/ } keep' > $(CURDIR)/requirements/guidellm.txt
	@printf "uv>=0.13\nhatchling>=1.33,<2\n" | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --quiet -c requirements/local.txt -o requirements/bootstrap.txt

clean:  ## Remove the virtual environment (not the caches shared with other clones)
	@rm -rf .venv
