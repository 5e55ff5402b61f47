# Needs python3 (3.11 or later), git and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-newest coverage soak cluster check format docs wheel bench bench-quick bench-constants bench-cluster clean

demo: $(VENV)/examples.stamp
	$(BIN)/python examples/sharpen_photo.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# As root: on the Pythons that only Debian unstable has, in a root made by debootstrap. 77: it says why it cannot.
test-newest:
	@ARGS="$(ARGS)" bash .ci/newest 3.14 3.15 || [ $$? -eq 77 ]

# Which lines the tests run, also in workers, and a failure below the floor in pyproject.toml. Python 3.12 or later:
# only sys.monitoring has no lock that a forked child may find held.
coverage: $(VENV)/coverage.stamp
	COVERAGE_CORE=sysmon $(BIN)/python -m pytest -q -n auto --dist worksteal --cov=shmarray tests/core tests/command tests/pool \
		--ignore tests/pool/test_portable_pools.py --ignore tests/pool/test_stdlib_suites.py $(ARGS)

# SHMARRAY_SOAK_SECONDS (120 by default) for each of the two front doors, SHMARRAY_SEED to repeat a run.
soak: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m soak -n 2 -s tests/faults $(ARGS)

# What takes long of the tests of shmarray.dask on simulated hosts; needs root and iproute2.
cluster: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m cluster -n 2 tests/dask $(ARGS)

check: $(VENV)/check.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/check.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Everything is read and written anew: what is kept from the last time keeps its warnings from being seen.
docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx --fresh-env --write-all --fail-on-warning --keep-going --quiet docs build/docs
	@echo "open build/docs/index.html"

wheel: | $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks --quick $(ARGS)

bench-constants: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.constants $(ARGS)

bench-cluster: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.cluster $(ARGS)

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

$(VENV)/coverage.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[coverage]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

# The extra `bench`, one by one, so that one that cannot be had does not keep out the others:
# SharedArray has no wheels and needs a C compiler, and its build needs numpy there before it.
PEERS := joblib mpire dask[distributed] ray pandas scipy matplotlib SharedArray
$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@for peer in $(PEERS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$peer" || echo "$$peer: left out"; \
	done
	@touch $@
