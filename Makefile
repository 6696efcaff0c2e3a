# `make` alone lists what there is. Everything happens in .venv; nothing is installed into the system's Python.

VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.setup-done
APT    := platform/mycelia/broker/debian_packages.py
# What the checks read; a folder that does not exist yet is left out.
CODE   := $(wildcard platform services tests benchmarks scripts)
PYTEST := $(PY) -m pytest
# Most tests wait for a broker or a process, so six at once keep two cores busy (558 s; four: 610); each worker has a node of its own
# (with what belongs to it some 700 MB), so four where there is less memory.
WORKERS ?= $(shell awk '/^MemTotal/ { n = ($$2 > 8000000) ? 6 : 4 } END { print n ? n : 4 }' /proc/meminfo 2>/dev/null || echo 4)
# A file's tests run in one worker; what takes long comes first (tests/conftest.py).
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Another release of RabbitMQ than the installed one, for `make test` and `make test-rabbit`: 3.10, 4.0 or 4.3. It is installed
# into .mycelia/rabbitmq/ once (a minute, 200 MB), which takes root on Debian.
RABBITMQ ?=

# Hundreds of processes of the tests import Mycelia: what is compiled is kept for them, and for the next run.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup rabbit demo up test test-rabbit lint fmt check bench bench-flow docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv with all that development takes; again only when pyproject.toml changes

$(STAMP): pyproject.toml scripts/setup
	@scripts/setup $(VENV)
	@touch $@

rabbit:
	@test -x /usr/lib/rabbitmq/bin/rabbitmq-server || command -v rabbitmq-server >/dev/null \
		|| python3 -I $(APT) rabbitmq-server \
		|| echo "RabbitMQ is not installed: the tests that need it will be reported as NOT RUN"

demo: setup  ## the flights pipeline, run on a broker that is found, started or installed, and verified; or BROKER=memory, FAULTS=1, KILL=1
	@$(PY) -m services.demo --install $(if $(filter-out 0,$(FAULTS)),--faults) $(if $(filter-out 0,$(KILL)),--kill) $(ARGS)

up: setup  ## the same, and left running with its live page
	@$(PY) -m services.demo --install --stay $(ARGS)

test: setup rabbit  ## all tests but the long ones (ARGS="-m long"); some: ARGS="tests/unit -k frames"; other Pythons: PYTHONS=all
ifdef PYTHONS
	@WORKERS=$(WORKERS) scripts/with-rabbitmq "$(RABBITMQ)" scripts/test-pythons "$(PYTHONS)" $(ARGS)
else
	@scripts/with-rabbitmq "$(RABBITMQ)" $(PYTEST) $(PARALLEL) $(or $(ARGS),-m "not long")
endif

test-rabbit: setup rabbit  ## only the tests that need a broker; on another release of it: RABBITMQ=4.3
	@scripts/with-rabbitmq "$(RABBITMQ)" $(PYTEST) $(PARALLEL) -m rabbit $(ARGS)

lint: export PYTHONPATH := platform
lint: setup  ## ruff, mypy, the layers, spelling
	@failed=; run() { echo "lint: $$*" | cut -c1-60; "$$@" || failed=1; }; \
	run $(VENV)/bin/ruff check $(CODE); \
	run $(VENV)/bin/ruff format --check $(CODE); \
	run $(VENV)/bin/mypy -p mycelia -p services; \
	run $(VENV)/bin/mypy --explicit-package-bases tests/typing/api.py; \
	run $(VENV)/bin/lint-imports; \
	run $(VENV)/bin/codespell $$(git ls-files | grep -vE '\.(gz|svg|png|json|lock)$$'); \
	test -z "$$failed"

fmt: setup  ## format the code and sort its imports
	$(VENV)/bin/ruff check --fix $(CODE)
	$(VENV)/bin/ruff format $(CODE)

check: lint test  ## lint and test: what must be green before a push

bench: setup  ## the benchmarks, on a broker of their own
	@$(PY) -c 'import aio_pika, fastapi, faststream' 2>/dev/null \
		|| $(PY) -m pip install -qq --disable-pip-version-check -e '.[bench]'
	@$(PY) -m benchmarks

bench-flow: setup  ## the benchmarks of flows, in memory and over a broker of their own; results in benchmarks/results
	@$(PY) -c 'import aio_pika, bytewax, faststream, pathway' 2>/dev/null \
		|| $(PY) -m pip install -qq --disable-pip-version-check -e '.[bench]' bytewax pathway
	@at=benchmarks/results/$$(date -u +%Y-%m-%dT%H%M%S)-flow; \
		$(PY) -m benchmarks.flow --nexmark 500000 --json $$at-memory.json \
		&& $(PY) -m benchmarks.flow_broker --json $$at-broker.json

docs: export NO_MKDOCS_2_WARNING := 1
docs: setup  ## the documentation site, in build/site; a dead link fails it. Its code is run by `make test ARGS=tests/docs`
	@$(PY) -m mkdocs build --strict    # with --quiet it would count no warnings
	@echo "the documentation is in $(CURDIR)/build/site/index.html"

clean:  ## stop the private broker; remove caches and what was built (.venv stays)
	@if [ -x $(PY) ] && [ -d .mycelia/broker ]; then $(PY) -m mycelia.cli.broker stop; fi
	@rm -rf .mycelia build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find platform services tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
