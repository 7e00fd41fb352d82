# Two commands: `make demo` runs the whole method, `make test` the tests. Each makes its own
# virtual environment (VENV) on first use and again when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= salve-demo
# Tests are spread over two processes, each with one thread; files stay together.
SPREAD := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo demo-pretrained test test-slow test-peer lint docs docs-assets notebooks bench \
	atlas atlas-check clean

help: ## List what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

demo: $(VENV)/.demo ## Train two small networks on real digits and run SALVE on both
	$(BIN)/salve demo --out $(OUT)

demo-pretrained: $(VENV)/.demo ## The same on a pretrained ImageNet network and photographs
	$(BIN)/salve demo --pretrained --out $(OUT)-pretrained

test: $(VENV)/.dev ## Run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest $(SPREAD) $(PYTEST_ARGS)

test-slow: $(VENV)/.dev ## Run the tests that take long
	$(BIN)/python -m pytest $(SPREAD) -m slow $(PYTEST_ARGS)

test-peer: $(VENV)/.dev ## Compare with programs of others, in environments of their own
	$(BIN)/python -m pytest -m peer $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs-assets: ## Fetch again, from npm, the fonts and scripts that docs/assets/vendor carries
	npm --prefix tests/browser ci --ignore-scripts --no-fund --no-audit
	node tests/browser/vendor.mjs docs/assets/vendor

notebooks: $(VENV)/.dev ## Execute the notebooks of the documentation again
	PYTHONWARNINGS=ignore $(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

docs: $(VENV)/.docs ## Build the documentation into site/, warnings are errors
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev ## Run the short benchmarks; each prints ours against a peer or a limit
	set -e; for bench in alpha_crit edits hook_overhead grad_fam recording artifacts hub import_time; do \
		PYTHONPATH=tests/hub_server $(BIN)/python benchmarks/$$bench.py; done

# What the lock names is installed. Not by `npm ci`, which refuses a lock without the packages that are
# for other systems only and that a registry may lack.
atlas/node_modules: atlas/package-lock.json
	cd atlas && npm install --no-audit --no-fund --silent
	@touch $@

atlas: atlas/node_modules ## Build the pages of the atlas into the package (needs node and npm)
	cd atlas && npx vite build

# The pages that are shipped are those that the sources give, byte for byte.
atlas-check: atlas/node_modules ## Check types and tests of the pages, build them and compare
	cd atlas && npx tsc && npx vitest run
	set -e; built=$$(mktemp -d); trap 'rm -rf "$$built"' EXIT; \
		(cd atlas && ATLAS_OUT="$$built" npx vite build --logLevel error); \
		diff -r "$$built" salve_plugin/report/page

clean: ## Remove the virtual environment and everything built
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache
