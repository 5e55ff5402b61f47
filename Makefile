# Needs python3 (3.11 or later), git and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test soak check format bench clean

demo: $(VENV)/examples.stamp
	$(BIN)/python examples/sharpen_photo.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto $(ARGS)

# SHMARRAY_SOAK_SECONDS (120 by default) for each of the two front doors, SHMARRAY_SEED to repeat a run.
soak: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m soak -n 2 -s tests/faults $(ARGS)

check: $(VENV)/check.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/check.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/core.py
	$(BIN)/python benchmarks/pool.py

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/examples.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[examples]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,examples,integrations]'
	@touch $@

# Not pip's --group: pip has it since 25.1 only, and Python 3.11 brings an older one.
$(VENV)/check.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@

# One by one, so that one that cannot be had does not keep out the others: SharedArray has no
# wheels and needs a C compiler, and its build needs numpy there before it.
$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check SharedArray
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check joblib ray
	@touch $@
