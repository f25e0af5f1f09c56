# The commands create a virtual environment; they need Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo
CLAIM ?= 1
NEWEST ?= $(shell .ci/newest_python)
LOWEST ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo $(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all slow newest lowest lint tables \
  notebooks docs bench evidence clean

help:
	@echo 'make demo   train digits with several methods, write a report'
	@echo 'make test   lint, type check, fast tests, doctests'
	@echo 'make test-all  also notebooks, site, newest and lowest versions'
	@echo 'make tables write the tables of methods from the catalog'
	@echo 'make notebooks  run the notebooks, store their outputs'
	@echo 'make docs   build the documentation site in build/site'
	@echo 'make bench  measure the cost of steps here, also with PyTorch'
	@echo 'make evidence CLAIM=1  rerun one claim of the papers from scratch'
	@echo 'make clean  remove the virtual environment and caches'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed: make PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Bytecode is compiled at the first import, of what is used only.
$(VENV)/.train: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile \
	  -e '.[train]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.train

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.train

$(VENV)/.lowest: $(BIN)/python pyproject.toml .ci/lowest_versions
	$(BIN)/python .ci/lowest_versions > $(VENV)/lowest_versions.txt
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  -c $(VENV)/lowest_versions.txt -e '.[test]'
	@touch $@

$(VENV)/.bench: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@ $(VENV)/.train

# docs/trainer.md has the command that chose these settings.
DEMO := sam asam friendly_sam ae_sam momentum_sam
demo: $(VENV)/.train
	$(BIN)/optax-sam compare --output $(OUTPUT) --overwrite \
	  --label-noise 0.3 --seeds 5 --steps 200 \
	  --sharpness-examples 64 --timing-rounds 3 \
	  --methods $(DEMO) --learning-rate 0.00625 \
	  $(foreach name,$(DEMO),--set $(name).learning_rate=0.1) \
	  --set sam.rho=0.707 --set asam.rho=4 --set friendly_sam.rho=0.707 \
	  --set ae_sam.rho=16 --set momentum_sam.rho=5.66

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/python docs/tables.py --check

tables: $(VENV)/.dev
	$(BIN)/python docs/tables.py

# Tests of one method run in one process, so its step compiles once.
PYTEST := -m pytest -n 2 --dist loadgroup

test: lint
	$(BIN)/python $(PYTEST) -m 'not slow'

test-all: test slow newest lowest

slow: $(VENV)/.dev
	$(BIN)/python $(PYTEST) -m slow

# Tests with the newest Python and JAX and the default compiler settings:
# setting XLA_FLAGS disables the cheap settings of the tests.
newest:
	$(MAKE) VENV=.venv-newest PYTHON=$(NEWEST) .venv-newest/.test
	XLA_FLAGS= .venv-newest/bin/python $(PYTEST) -m 'not slow' \
	  tests/conformance tests/trees tests/test_training_step.py \
	  tests/test_flax.py

notebooks: $(VENV)/.dev
	$(BIN)/python docs/run_notebooks.py

# Tests with the lowest versions that pyproject.toml claims. These older
# libraries use what JAX has deprecated since.
lowest:
	$(MAKE) VENV=.venv-lowest PYTHON=$(LOWEST) .venv-lowest/.lowest
	.venv-lowest/bin/python $(PYTEST) -m 'not slow' \
	  -W ignore::DeprecationWarning tests/frameworks tests/trees \
	  tests/methods/test_sam.py tests/sharpness/test_top_eigenvalue.py \
	  tests/landscape/test_plots.py tests/test_flax.py tests/test_equinox.py \
	  tests/train/test_cli.py

docs: $(VENV)/.dev
	$(BIN)/mkdocs build

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.speed

# In a new directory, so that no finished runs are reused.
evidence: $(VENV)/.train
	$(BIN)/python -m benchmarks.evidence $(CLAIM) \
	  --output runs/evidence/$(CLAIM)

clean:
	rm -rf .venv* .pytest_cache .ruff_cache .hypothesis build
