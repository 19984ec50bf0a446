PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := .venv/.installed
RUNS := runs
ADAPTERS := $(RUNS)/quickstart-adapters
FULL := $(RUNS)/quickstart-full
# What is run with two threads besides: an engine has chunks of clients side by side then.
LANES := tests/engines/test_lanes.py $(addprefix tests/experiment/test_,attacks.py class_means.py population.py run.py techniques.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check fix docs bench bench-peers bench-check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with fedadapt and every tool, or bring it up to date

# The stamp is touched last, so an install that was cut short is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedadapt needs Python 3.11 or newer, $(PYTHON) is older; name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing fedadapt and its tools into .venv; the first time takes minutes"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## train adapters and the full network on the same federation, and compare the two
	$(BIN)/fedadapt run recipes/quickstart-adapters.toml --overwrite
	$(BIN)/fedadapt run recipes/quickstart-full.toml --overwrite
	$(BIN)/fedadapt compare $(ADAPTERS) $(FULL) --page $(RUNS)/quickstart.html

test: setup ## run the tests, the doctests and the architecture's rules
	$(BIN)/python -m pytest --quiet
	FEDADAPT_TEST_THREADS=2 $(BIN)/python -m pytest --quiet -m "not slow and not flower and not ray" $(LANES)

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest --quiet -m slow

check: setup ## look at format, lint, types and import rules; change nothing
	$(BIN)/ruff format --check --quiet . || { echo "not formatted; run: make fix"; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: setup ## format, and repair what the linter can repair
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

docs: setup ## write again what is generated in docs/: the table of adapters and the pages of results
	$(BIN)/python docs/adapters_table.py > docs/reference/adapters.md.new
	mv docs/reference/adapters.md.new docs/reference/adapters.md
	for file in docs/results/*/results.sqlite; do $(BIN)/fedadapt results $$file $$(dirname $$file) || exit 1; done

bench: setup ## measure the cohort's speed on this machine
	$(BIN)/python benchmarks/cohort.py --out benchmarks/results

bench-peers: setup ## measure whole rounds against Flower's simulation, pfl-research and a plain loop
	$(BIN)/python benchmarks/simulation.py --setup
	$(BIN)/python benchmarks/simulation.py

bench-check: setup ## fail if this tree is much slower, against the same peers, than the committed results say
	$(BIN)/python benchmarks/simulation.py --check --pairs 3 --share 4 --works W1 W2 W3

clean: ## remove caches and build products; .venv and runs stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .coverage build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
