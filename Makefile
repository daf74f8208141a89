# Everything happens in .venv, which is made on first use from the lock files.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
# Programs of the environment first; `python` there is the environment's.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
PIP = "$$($(FIND_PYTHON))" -m pip --python $(BIN)/python --disable-pip-version-check
LOCK = $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" pyproject.toml

# Two workers, and each test module in one of them: as each worker starts its own servers, more would
# cost more than they gain.
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

##@ Use

.PHONY: demo
demo: $(VENV)/.run ## Show the product at work, from raw data to a proven archive copy
	@$(IN_VENV) scripts/demo

##@ Develop

.PHONY: dev
dev: $(VENV)/.dev ## Make the development environment in .venv

.PHONY: format
format: $(VENV)/.dev ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

.PHONY: docs
docs: $(VENV)/.dev ## Rewrite the generated parts of the documentation
	@$(IN_VENV) scripts/docs --write

.PHONY: bench
bench: $(VENV)/.dev ## Run the benchmarks
	@$(BIN)/python -m benchmarks

.PHONY: lock
lock: $(BIN)/python ## Rewrite the lock files with the newest versions that pyproject.toml allows
	@echo "Locking the dependencies ..."
	@$(PIP) install --quiet uv
	@$(LOCK) --upgrade --all-extras --group dev --output-file requirements/dev.txt
	@$(LOCK) --upgrade --extra fits --group build --constraint requirements/dev.txt \
		--output-file requirements/run.txt

.PHONY: clean
clean: ## Remove the environment and everything else that can be made again
	@rm -rf $(VENV) build dist .*_cache .hypothesis
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Test

.PHONY: test
test: $(VENV)/.dev servers ## Run all tests and all static checks, as continuous integration does
	@status=0; $(MAKE) lint || status=$$?; $(PYTEST) $(PARALLEL) || status=$$?; exit $$status

.PHONY: test-unit
test-unit: $(VENV)/.dev ## Run the unit tests, which need no server and no network
	@$(PYTEST) tests/unit

.PHONY: test-integration
test-integration: $(VENV)/.dev servers ## Run the tests of single parts against real servers
	@$(PYTEST) $(PARALLEL) tests/integration

.PHONY: test-acceptance
test-acceptance: $(VENV)/.dev servers ## Run the tests of the whole product from outside
	@$(PYTEST) $(PARALLEL) tests/acceptance

.PHONY: lint
lint: $(VENV)/.dev ## Run all static checks
	@status=0; for check in "ruff check --quiet" "ruff format --check --quiet" mypy lint-imports; do \
		echo "$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

.PHONY: servers
servers: $(VENV)/.dev
	@scripts/install-test-servers

##@ Help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# Prints an interpreter that is new enough, and whose pip can install into another environment.
# The environment is made without pip because Debian's Python lacks what `venv` needs for it.
define FIND_PYTHON
for python in "$(PYTHON)" python3.11; do \
	if "$$python" -c 'import sys, pip; \
		old = sys.version_info < (3, 11) or tuple(map(int, pip.__version__.split(".")[:2])) < (22, 3); \
		sys.exit(old)' 2>/dev/null; then echo "$$python"; exit 0; fi; \
done; \
echo "No Python 3.11 or newer with pip 22.3 or newer found (python3 and python3-pip in Debian 12)." \
	"Name one with: make PYTHON=/path/to/python" >&2; \
exit 1
endef

$(BIN)/python:
	@python="$$($(FIND_PYTHON))" && echo "Making the environment $(VENV) with $$python ..." && \
		"$$python" -m venv --clear --without-pip $(VENV)

$(VENV)/.run: pyproject.toml requirements/run.txt | $(BIN)/python
	@echo "Installing the product and what it needs ..."
	@$(PIP) install --quiet --require-hashes --requirement requirements/run.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Everything that .run has, too, in the same versions.
$(VENV)/.dev: pyproject.toml requirements/run.txt requirements/dev.txt | $(BIN)/python
	@echo "Installing the product and what its development needs ..."
	@$(PIP) install --quiet --require-hashes --requirement requirements/dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.run $@
