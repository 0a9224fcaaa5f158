# `make` alone lists what there is to do.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# tests run in this many processes
WORKERS ?= 2
QUESTION ?= Why is the sky blue?

.DEFAULT_GOAL := help
.PHONY: help install demo test unit coverage format format-check lint types pictures docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make the environment in .venv

# torch comes first, so that nothing asks for another version. On Linux its default build brings gigabytes of GPU
# libraries: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment takes the build for CPUs
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "tpo_graph needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev --group docs --editable '.[local,langchain,serve,verifiers,inspect]'
	@touch $(STAMP)

demo: $(STAMP)  ## align the embedded model's answer to a preference: make demo QUESTION="..."
	@$(BIN)/tpo-graph models get 1.5b > /dev/null  # with a bar: it is 1.1 GB, once
	$(BIN)/python examples/demo.py "$(QUESTION)"

test: $(STAMP) format-check lint types  ## everything that must pass: format, lint, types, all tests
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile

unit: $(STAMP)  ## the tests that need no process of their own, no torch and no engine: under a minute
	$(BIN)/pytest -q -n $(WORKERS) -m "not subprocess and not torch and not embedded"

coverage: $(STAMP)  ## all tests, and the lines that none of them runs
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered

pictures: $(STAMP)  ## make the pictures of runs anew, with the embedded models
	$(BIN)/python -m docs.images.make

docs: $(STAMP)  ## build the site from docs/ into build/site; a warning is an error, and nothing is fetched
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(STAMP)  ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)  ## look for mistakes
	$(BIN)/ruff check .

types: $(STAMP)  ## check the types
	$(BIN)/mypy

clean:  ## take the environment and all caches away
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
