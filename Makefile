# Both commands set themselves up: they need Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo
CLAIM ?= 1
SMOKE := costs golden_values identities signatures vectors

.DEFAULT_GOAL := help
.PHONY: help demo test lint tables smoke docs bench evidence clean

help:
	@echo 'make demo   train digits with several methods, write a report'
	@echo 'make test   lint, type check, tests, doctests, README, notebooks'
	@echo 'make tables rewrite the tables that list methods, from the catalog'
	@echo 'make docs   the documentation as a site, in build/site'
	@echo 'make bench  tables of what steps cost on this machine, PyTorch beside'
	@echo 'make evidence CLAIM=1  a claim of the papers, tried from nothing'
	@echo 'make clean  remove the virtual environment and caches'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed: make PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.train

$(VENV)/.bench: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@ $(VENV)/.train

demo: $(VENV)/.train
	$(BIN)/optax-sam compare --output $(OUTPUT) --overwrite

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/python docs/tables.py --check

tables: $(VENV)/.dev
	$(BIN)/python docs/tables.py

test: lint
	$(BIN)/python -m pytest -n 2

# The part that shows whether another Python or JAX breaks the library, compiled
# as users do: the tests' own settings give way to any that are there.
smoke: $(VENV)/.dev
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 \
	  tests/distributed/test_devices.py::test_what_devices_tell_each_other \
	  $(SMOKE:%=tests/conformance/test_%.py) \
	  tests/test_flax.py tests/test_numerics.py tests/test_selections.py

docs: $(VENV)/.dev
	$(BIN)/mkdocs build

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.step_cost

# In a directory of its own, so that nothing that is on record is reused.
evidence: $(VENV)/.train
	$(BIN)/python -m benchmarks.evidence $(CLAIM) \
	  --output runs/evidence/$(CLAIM)

clean:
	rm -rf .venv* .pytest_cache .ruff_cache .hypothesis build
