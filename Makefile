# make demo   the whole pipeline on the demo city, from a bounding box to photographs
# make dev    Dagster's UI on http://127.0.0.1:3000
# make test   linters, type checker, tests
# make live   asks the real services whether what is known of them holds: 25 requests at most
# make bench  the project beside the way people do it today
# Each sets up what is missing first. PYTHON chooses the interpreter: make PYTHON=python3.13 demo

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TOOLS := .venv/installed-for-developers

.PHONY: help setup demo dev test live bench constraints

help:
	@sed -n 's/^# //p' Makefile

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@setup/system.sh $(PYTHON)
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv, which takes some minutes the first time"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/vsvi install-postgis
	@touch $@

# What linters and tests need besides.
$(TOOLS): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/vsvi demo

dev: setup
	$(BIN)/vsvi up
	$(BIN)/dagster dev

test: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal

# Needs a Mapillary token, and is the only command here that spends requests on nothing else.
live: $(TOOLS)
	VSVI_LIVE=1 $(BIN)/pytest -q -rs --no-header --tb=short -k live \
		vsvi_assets_tests/contract/test_real_services.py

bench: $(TOOLS)
	$(BIN)/python -m benchmarks

# The versions that are installed: the newest that the bounds in pyproject.toml allow.
constraints: $(TOOLS)
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --all-extras --no-annotate --no-header \
		--output-file constraints.txt pyproject.toml
