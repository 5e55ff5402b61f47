# Needs python3 (3.11 or later), git and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-newest coverage soak cluster check format docs wheel bench bench-quick bench-constants bench-cluster clean

demo: $(VENV)/examples.stamp
	$(BIN)/python examples/sharpen_photo.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Needs root: tests Pythons that only Debian unstable has, in a root made by debootstrap. Status 77: not possible here.
test-newest:
	@ARGS="$(ARGS)" bash .ci/newest 3.14 3.15 || [ $$? -eq 77 ]

# Measures the lines that tests run, including in workers, and fails below the minimum in pyproject.toml. Needs
# Python 3.12 or later: only sys.monitoring uses no lock that may be held in a forked child.
coverage: $(VENV)/coverage.stamp
	COVERAGE_CORE=sysmon $(BIN)/python -m pytest -q -n auto --dist worksteal --cov=shmarray tests/core tests/command tests/pool \
		--ignore tests/pool/test_portable_pools.py --ignore tests/pool/test_stdlib_suites.py $(ARGS)

# SHMARRAY_SOAK_SECONDS (default: 120) sets the time for each kind of pool, SHMARRAY_SEED repeats a run.
soak: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m soak -n 2 -s tests/faults $(ARGS)

# The slow tests of shmarray.dask on simulated hosts; needs root and iproute2.
cluster: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m cluster -n 2 tests/dask $(ARGS)

check: $(VENV)/check.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/check.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rebuild everything, because Sphinx shows no warnings for pages that it takes from its cache.
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

# Without pip's --group, which requires pip 25.1: Python 3.11 comes with an older one.
$(VENV)/check.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@

$(VENV)/coverage.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[coverage]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

# The extra `bench`, one by one, so that the others are installed even if one cannot be:
# SharedArray has no wheels and needs a C compiler, and numpy must be installed before it is built.
PEERS := joblib mpire dask[distributed] ray pandas scipy matplotlib SharedArray
$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@for peer in $(PEERS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$peer" || echo "$$peer: left out"; \
	done
	@touch $@
