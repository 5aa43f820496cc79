PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart test matrix check lint types imports docs readme

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/palate quickstart

test: setup
	$(BIN)/python -m pytest

matrix: setup
	$(BIN)/python -m tests.test_matrix

check: lint types imports docs readme

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

docs: setup
	$(BIN)/mkdocs build --strict --quiet

readme: setup runs/quickstart/metrics.json
	$(BIN)/python tools/readme_commands.py README.md docs/*.md

runs/quickstart/metrics.json: | setup
	$(BIN)/palate quickstart --output runs/quickstart
