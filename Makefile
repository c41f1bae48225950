# One entry point for every chore. `make help` lists them.
# Needs Python 3.11+, git and make; everything else goes into .venv.

PYTHON  ?= python3
BACKEND ?= native
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
VLLM    := $(or $(RECONCILE_TEST_VLLM),.vllm)
# Parallel tests: one worker per processor, at most four (engines are started for real).
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)

.PHONY: help install demo test vllm attacks fuzz simulate crashes lint format bench soak power docs lock schemas clean

help: ## list the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with .venv/bin/reconcile, from the hash-locked requirements

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (set PYTHON=...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## a node pulls, plans, downloads, verifies, starts, validates, serves, swaps and goes back (BACKEND=native|docker|podman)
	@$(BIN)/python examples/demo.py --backend $(BACKEND)

test: install ## every test that this machine can run, in parallel, with the coverage floor
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered $(ARGS)

vllm: install ## real vLLM, natively and in a container (RECONCILE_TEST_VLLM=folder for its environment, 3.5 GB; minutes)
	@$(BIN)/python -m tests.support.provide_vllm $(VLLM)
	@RECONCILE_TEST_VLLM=$(VLLM) REQUIRE_VLLM=1 $(BIN)/python -m pytest -n 0 --no-cov -v --durations=0 -m vllm $(ARGS) tests/engines tests/contracts

attacks: install ## hostile repositories, mirrors and servers against a real node, as a table
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --no-cov --attack-table tests/attacks $(ARGS)

fuzz: install ## every parser, with coverage as guide (SECONDS=10 for each)
	@$(BIN)/python -m tests.fuzz $(or $(SECONDS),10)

simulate: install ## a whole node against faults, from seeds (SEEDS=1000, SEEDS=5000-6000), or one to read (SEED=n)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

crashes: install ## kill the agent at every journal write, durable write and call to the outside (EVERY=10 for a sample, BACKEND=docker)
	@$(BIN)/python -m tests.crashes --every $(or $(EVERY),1) --backend $(BACKEND)

lint: install ## style, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install ## rewrite in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install ## measure (ONLY=name for one); writes benchmarks/results.json and RESULTS.md
	@$(BIN)/python -m benchmarks.run $(if $(ONLY),--only $(ONLY))

soak: install ## a real daemon over hundreds of swaps and thousands of passes: what grows (SWAPS=300 PASSES=3000; an hour)
	@SOAK_SWAPS=$(or $(SWAPS),300) SOAK_PASSES=$(or $(PASSES),3000) $(BIN)/python -m benchmarks.run --only soak

power: install ## how often validation tells which fault, as docs/power.md (MODELS=folder TORCH=python VLLM=python; hours)
	@test -n "$(TORCH)" || { echo "TORCH names the Python of an environment with torch, transformers, tokenizers, safetensors"; exit 64; }
	@$(TORCH) -m tests.power.train $(or $(MODELS),.power)
	@$(BIN)/python -m tests.power $(or $(MODELS),.power) --torch $(TORCH) $(if $(VLLM),--vllm $(VLLM))

docs: install ## write the generated references (JSON Schemas, reasons, attack and isolation tables), and build the site into site/
	@$(BIN)/python -m schemas.publish
	@$(BIN)/python -m schemas.reasons
	@$(BIN)/python -m tests.attacks.publish
	@$(BIN)/python -m tests.isolation.table
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs site

lock: ## resolve the locked requirements again (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-package inference-reconciler --extra dev pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra gpu --extra openssf --extra s3 -c requirements.lock pyproject.toml -o runtime/images/agent/requirements.lock

clean: ## remove what the chores made
	@rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz htmlcov .coverage*
