# Tunesmith. `make` lists what there is to do; each target installs what it needs into .venv first.
.DEFAULT_GOAL := help
.PHONY: help setup demo run test slow check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## Install everything into .venv (Python 3.11 or newer)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tunesmith needs Python 3.11 or newer; name one with make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## Train, evaluate, deploy and chat with a tiny model; FULL=1 runs SFT, DPO and GRPO, three seeds
	@$(BIN)/python -m $(if $(FULL),app.demos.maths_chain,app.demos.quickstart)

run: setup ## Keep the service up with the examples seeded; Swagger UI is at /docs
	@$(BIN)/python -m app --with-examples

test: setup ## Run the test suite
	$(BIN)/python -m pytest

slow: setup ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: setup ## Lint, check formatting, types and the import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv and caches; the data directory stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
