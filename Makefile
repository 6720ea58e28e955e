# Tunesmith. `make` lists what there is to do; each target installs what it needs into .venv first.
.DEFAULT_GOAL := help
.PHONY: help setup demo run test coverage unit integration security e2e chaos slow clients reference check format lock audit gguf comet engine-vllm engine-sglang clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share processes and models, so a file stays in one of the parallel processes. Folders are started in
# the order of the command, those of long files first: at the end the processes are idle for seconds. The tests of e2e
# take about equally long, so its files with the most tests are started first.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile
IN_ORDER := $(PARALLEL) --no-loadscope-reorder
FOLDERS := tests/integration tests/security tests/chaos tests/unit tests/contract
COVERAGE := --cov=app --cov=workers --cov=trainers --cov=serving --cov-report=term:skip-covered

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## Install everything into .venv (Python 3.11 or newer)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tunesmith needs Python 3.11 or newer; name one with make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## Train, evaluate, deploy and chat with a tiny model; CASE=translation or CASE=maths runs a worked case
	@$(BIN)/python -m $(if $(CASE),app.demos.worked_case $(CASE),app.demos.quickstart)

run: setup ## Keep the service up with the examples seeded; Swagger UI is at /docs
	@$(BIN)/python -m app --with-examples

test: setup ## Run the test suite; the tests of the whole product run also after another one has failed
	$(BIN)/python -m pytest $(FOLDERS) $(IN_ORDER); status=$$?; \
		$(BIN)/python -m pytest tests/e2e $(PARALLEL) && exit $$status

coverage: setup ## Run the tests of all folders but e2e and print their coverage (half as long again)
	$(BIN)/python -m pytest $(FOLDERS) $(IN_ORDER) $(COVERAGE)

unit: setup ## Run the tests that need no server, database or model
	$(BIN)/python -m pytest tests/unit tests/contract

integration: setup ## Run the tests of one package with real databases, processes and models
	$(BIN)/python -m pytest tests/integration $(IN_ORDER)

security: setup ## Run the attacks, and prove that each would be noticed
	$(BIN)/python -m pytest tests/security $(IN_ORDER)

e2e: setup ## Run the tests of the whole product
	$(BIN)/python -m pytest tests/e2e $(PARALLEL)

chaos: setup ## Break an installation of each kind for a minute, and check that it keeps its promises
	$(BIN)/python -m tests.chaos --platform embedded --minutes 1
	$(BIN)/python -m tests.chaos --platform team --minutes 1

slow: setup ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

clients: setup ## Connect the clients of others, each in an environment of its own (uv, npm, a JDK); writes docs/clients.md
	$(BIN)/python -m tests.clients $(ENGINES:%=--engine %) --write

reference: setup ## Write docs/reference from the code
	$(BIN)/python -m docs.generate_reference

check: setup ## Lint, check formatting, types and the import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv, because pip writes no hashes; its version does not change the result.
LOCK := uv pip compile pyproject.toml requirements/build.in -c constraints.txt --generate-hashes --no-annotate --no-header --quiet \
	--python-version 3.12 --python-platform x86_64-unknown-linux-gnu

lock: setup ## Write the hashed requirements of the images from constraints.txt
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/$(LOCK) --extra api --extra s3 --output-file requirements/api.txt
	$(BIN)/$(LOCK) --extra api --extra trainer --extra evaluation --extra cuda --extra tracking --extra s3 --output-file requirements/worker.txt

audit: setup ## Look the images' packages up in the database of known vulnerabilities (needs the internet)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements/api.txt
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements/worker.txt

# llama-cpp-python's source contains llama.cpp with its converters, which no wheel has.
GGUF := .venv-gguf
LLAMA := llama-cpp-python==0.3.36

gguf: $(GGUF)/installed ## Build the environment of llama.cpp with which workers write GGUF (ten minutes; CMake, C++)
	@echo "Set TUNESMITH_GGUF_ENVIRONMENT=$(CURDIR)/$(GGUF)"

$(GGUF)/installed:
	$(PYTHON) -m venv $(GGUF)
	$(GGUF)/bin/python -m pip download --quiet --no-deps --no-binary :all: $(LLAMA) --dest $(GGUF)/source
	tar xzf $(GGUF)/source/llama_cpp_python-*.tar.gz -C $(GGUF)/source
	rm -rf $(GGUF)/llama.cpp && mv $(GGUF)/source/llama_cpp_python-*/vendor/llama.cpp $(GGUF)/llama.cpp
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF" \
		$(GGUF)/bin/python -m pip install --quiet --disable-pip-version-check $(GGUF)/source/llama_cpp_python-*.tar.gz "numpy<2.5"
	@touch $@

# The package alone, without those of the trainers, whose versions an engine cannot share.
engine-vllm: .venv-vllm/installed ## Build the environment of the engine vllm (CUDA; minutes)
	@echo "Set TUNESMITH_ENGINE_COMMANDS='{\"vllm\": [\"$(CURDIR)/.venv-vllm/bin/vllm\", \"serve\"]}'"

engine-sglang: .venv-sglang/installed ## Build the environment of the engine sglang (CUDA; minutes)
	@echo "Set TUNESMITH_ENGINE_COMMANDS='{\"sglang\": [\"$(CURDIR)/.venv-sglang/bin/sglang\", \"serve\"]}'"

.venv-vllm/installed .venv-sglang/installed: .venv-%/installed: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $$($(PYTHON) -c \
		'import sys, tomllib; print(*(one.partition(";")[0] for one in tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]]))' $*)
	@touch $@

# COMET's own pins would replace transformers and NumPy, so its environment is layered over the trainers'.
COMET := .venv-comet
COMET_PACKAGES := unbabel-comet==2.2.7 pytorch-lightning==2.6.6 torchmetrics==1.9.0 entmax==1.3 jsonargparse==4.53.0 \
	lightning-utilities==0.15.3 typeshed-client==2.15.0 importlib-resources==7.1.0 docstring-parser==0.18.0 "setuptools<81"

comet: $(COMET)/installed ## Build the environment of COMET with which workers score translations (a minute)
	@echo "Set TUNESMITH_COMET_ENVIRONMENT=$(CURDIR)/$(COMET)"

$(COMET)/installed: $(VENV)/installed
	$(PYTHON) -m venv $(COMET)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(COMET)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/trainers.pth"
	$(COMET)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(COMET_PACKAGES)
	$(COMET)/bin/python -c 'import comet'
	@touch $@

clean: ## Remove .venv and caches; the data directory stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
