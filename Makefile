# Every target sets up what it needs: a bare Python 3.11+ and make are enough.
.DEFAULT_GOAL := help
PY := .venv/bin/python
# The tests wait for their servers a third of the time.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n + n / 2)))
PYTEST := $(PY) -m pytest

.venv/.demo: scripts/bootstrap requirements/demo.txt
	@[ -e .venv/.ready ] && touch .venv/.demo || scripts/bootstrap demo

STORE := packages/amplify-db-utils
.venv/.ready: scripts/bootstrap requirements/dev.txt pyproject.toml $(STORE)/pyproject.toml $(STORE)/src/amplify_db_utils/_cells.pyx
	@scripts/bootstrap

.PHONY: help setup demo test test-unit test-pythons test-integration test-all test-performance test-chaos soak check lint format types bench bench-quick site build pins clean
help:  ## what can be made
	@grep -hE '^[a-z][a-z%-]*:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: .venv/.ready  ## the environment in .venv

demo: .venv/.demo  ## a chain with a reorg, streamed into demo.duckdb
	@.venv/bin/amp demo

test: .venv/.ready  ## what CI runs: everything but the full matrices
	$(PYTEST) -n $(WORKERS) -m "not slow and not performance" --durations=15

test-unit: .venv/.ready  ## pure logic, seconds
	$(PYTEST) -n $(WORKERS) -m unit

test-pythons: .venv/.ready  ## the same on the other Pythons of this machine that amp supports
	@scripts/other_pythons

test-integration: .venv/.ready  ## real servers, started by the tests
	$(PYTEST) -n $(WORKERS) -m "integration and not slow"

test-all: .venv/.ready  ## the full matrices and examples never seen before too, with coverage
	$(PYTEST) -n $(WORKERS) --hypothesis-profile search -m "not performance" --cov --cov-report=term-missing:skip-covered

test-chaos: .venv/.ready  ## processes killed with -9, in full
	$(PYTEST) -n $(WORKERS) -m chaos

test-performance: bench

test-%: .venv/.ready  ## one destination: test-duckdb, test-postgresql, ...
	$(PYTEST) -n $(WORKERS) -m "$* and not slow"

soak: .venv/.ready  ## half an hour of streams over broken networks (AMP_SOAK_SECONDS)
	AMP_SOAK_SECONDS=$${AMP_SOAK_SECONDS:-1800} $(PYTEST) -n 0 -s tests/soak

check: lint types test  ## lint, types and tests

lint: .venv/.ready  ## ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.ready  ## ruff, changing files
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: .venv/.ready  ## mypy and pyrefly, strict
	.venv/bin/mypy
	.venv/bin/pyrefly check

bench: .venv/.ready  ## every benchmark against its bare path and the recorded run
	$(PY) -m benchmarks full $(ARGS)

bench-quick: .venv/.ready  ## the same in small sizes
	$(PY) -m benchmarks quick $(ARGS)

site: .venv/.ready  ## the documentation in site/, every warning an error
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

build: .venv/.ready  ## wheels and source archives of both distributions in dist/
	@if command -v uv >/dev/null 2>&1; then uv build --all-packages; else $(PY) -m uv build --all-packages; fi

pins: .venv/.ready  ## write requirements/dev.txt anew from pyproject.toml
	@uv pip compile -q --universal --upgrade --python-version 3.11 --no-emit-index-url --no-annotate --no-header \
	  --no-emit-package amp-python --no-emit-package amplify-db-utils --group dev pyproject.toml -o requirements/dev.txt
	@uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header \
	  --extra duckdb --extra serve -c requirements/dev.txt pyproject.toml -o requirements/demo.txt

clean:  ## everything that was made
	rm -f $(STORE)/src/amplify_db_utils/_cells.*.so
	rm -rf .venv .pythons dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
