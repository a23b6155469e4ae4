# Every target sets up what it needs in .venv; nothing is installed outside this directory.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all coverage lint interop bench soak twins clean

demo: $(VENV)/.demo
	$(BIN)/x402-mask demo

# Every promise once: each case under one combination of HTTP library, colour and plug point.
test: $(VENV)/.test
	$(BIN)/python -m tests --matrix=once

# The same under every combination.
test-all: $(VENV)/.test
	$(BIN)/python -m tests --matrix=full

# Which branches are taken in the test process itself: a table, and a page in htmlcov/. Left out are tests
# that set a tracer of their own, which would end that of the coverage, and those that look at the clock.
coverage: $(VENV)/.test
	$(BIN)/python -m pytest --matrix=once --ignore=tests/interop --ignore=tests/soak \
	  --ignore=tests/faults/test_lines.py --ignore=tests/ledger/test_turns.py \
	  --ignore=tests/mcp/test_interruptions.py --ignore=tests/transport/test_stalls.py \
	  --cov --cov-report=term --cov-report=html

interop: $(VENV)/.test
	$(BIN)/python -m pytest tests/interop

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

soak: $(VENV)/.test
	$(BIN)/python -m pytest tests/soak --timeout=3600

bench: $(VENV)/.bench
	$(BIN)/python -m tests.bench

twins:
	$(PYTHON) tests/twins.py

clean:
	rm -rf $(VENV) .cache demo-out

$(VENV)/.demo: pyproject.toml | $(VENV)
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml | $(VENV)
	$(PIP) --editable '.[bench]'
	touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV)/.lint: pyproject.toml | $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "x402_mask needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
