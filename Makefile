# Two commands do everything, set-up included: `make run` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	--no-emit-index-url
# A stamp is newer than the lock files that it stands for, or it is made again.
INSTALLER := .venv/.installed-installer
CORE := .venv/.installed-core
EVERYTHING := .venv/.installed-everything
# Modules of benchmarks/ that `make bench` runs.
BENCHMARKS := ingest answer footprint retrain passthrough day

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check setup core kafka bench bench-loop bench-blocks bench-referee bench-recipes chaos fuzz docs screenshots lock
.PHONY: test-shuffled deploy-tools system-packages clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: core ## Set up the core and watch the loop turn (ARGS="--approve --until-promoted")
	@$(BIN)/flywheel demo $(ARGS)

test: setup ## Set up everything and run all tests (ARGS="tests/core/test_gate.py" for some)
	$(BIN)/pytest -n 2 $(ARGS)

test-shuffled: setup ## Run all tests in a random order, which it says (SEED=123 for that one again)
	$(BIN)/pytest -n 2 --random-order $(if $(SEED),--random-order-seed=$(SEED)) $(ARGS)

check: setup ## Lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

setup: $(EVERYTHING) ## Install the core, the training stack (several GB on Linux) and what tests need

core: $(CORE) ## Install what gateway, learner and console need (about 600 MB)

kafka: core ## Run a Kafka broker for development on 127.0.0.1:9092 (needs Java and Maven)
	$(BIN)/python deploy/kafka/broker.py $(ARGS)

bench: core ## Measure speed and size against the floors, twenty minutes (BENCHMARKS=ingest for one)
	@for name in $(BENCHMARKS); do echo "== $$name"; \
		$(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

bench-loop: core ## Measure the loop on Banking77 over a real broker, if the data is there (ARGS=--help)
	$(BIN)/python -m benchmarks.loop $(ARGS)

bench-blocks: setup ## Let topics arrive one after the other, half an hour, with the Banking77 folder
	$(BIN)/python -m benchmarks.blocks $(ARGS)

bench-referee: core ## Judge our statistics in worlds whose truth is known, half an hour (ARGS=--help)
	$(BIN)/python -m benchmarks.referee $(ARGS)

bench-recipes: setup ## Measure every recipe on Banking77; hours, goes on where it stopped (ARGS=--help)
	$(BIN)/python -m benchmarks.recipes $(ARGS)

chaos: setup ## Kill every process 200 times over a real broker, half an hour (ARGS=--planted: planted bugs)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

fuzz: setup ## Send 20,000 requests that no client would send to a gateway (FUZZ_SEED=7 for others)
	FUZZ_REQUESTS=20000 $(BIN)/pytest -q --timeout=3600 tests/gateway/test_gateway_fuzz.py

docs: setup ## Write the generated parts of the documentation again
	$(BIN)/python docs/generate.py

screenshots: setup ## Take the console's pictures from a demo run, 10 to 30 minutes (ARGS="--rate 12" on a slow machine)
	$(BIN)/python docs/screenshots.py $(ARGS)

lock: $(INSTALLER) ## Resolve the dependencies again and write the lock files
	$(COMPILE) --upgrade pyproject.toml -o core.lock
	$(COMPILE) --upgrade pyproject.toml --extra train -c core.lock -o training.lock
	$(COMPILE) --upgrade --group pyproject.toml:dev -c training.lock -o dev.lock
	printf 'uv\nsetuptools\n' | $(COMPILE) --upgrade - -c training.lock -o installer.lock
	$(COMPILE) --upgrade --no-deps deploy/tools.txt -o deploy/tools.lock

deploy-tools: setup ## Fetch helm, kubeconform and hadolint, which check deploy/ (needs Go; done by `make test` where CI=true)
	@$(BIN)/python deploy/tools.py

clean: ## Remove the virtual environment, the caches and the demonstration's data
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info demo-data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything below comes from the lock files, with hashes; uv itself included.

$(INSTALLER): installer.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up .venv ..."
	@$(PYTHON) -m venv .venv || \
		{ echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r installer.lock
	@touch $@

$(CORE): $(INSTALLER) core.lock pyproject.toml
	@echo "Installing the core ..."
	@$(INSTALL) -r core.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(EVERYTHING): $(CORE) training.lock dev.lock
	@echo "Installing the training stack and the development tools ..."
	@$(INSTALL) -r training.lock -r dev.lock
	@touch $@

# What the tests need from the system. A laptop goes without: those tests are skipped and say so.

DEBIAN = command -v $(1) >/dev/null || echo $(2)
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
ifeq ($(CI),true)
test test-shuffled: system-packages deploy-tools
endif

system-packages: ## Install Prometheus, its Alertmanager, Chromium, Java, Maven and docker-compose by apt (done by `make test` where CI=true)
	@missing="$$($(call DEBIAN,promtool,prometheus); \
		$(call DEBIAN,amtool,prometheus-alertmanager); $(call DEBIAN,chromium,chromium); \
		$(call DEBIAN,java,default-jre-headless); $(call DEBIAN,mvn,maven); \
		$(call DEBIAN,docker-compose,docker-compose); $(call DEBIAN,systemd-analyze,systemd))"; \
	if [ -n "$$missing" ]; then \
		echo "Installing" $$missing "..."; \
		$(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -q -y --no-install-recommends $$missing; \
	fi
