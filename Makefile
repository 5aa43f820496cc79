PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart test matrix check lint types imports docs readme bench pathologies

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/palate quickstart

# Two processes: tiny models keep one thread busy each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

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

# Times palate against TRL and transformers, each in its own environment; 20 minutes on 2 cores.
bench: setup .venv-bench/ready
	$(BIN)/python -m benchmarks.speed.run --peer .venv-bench/bin/python
	.venv-bench/bin/python -m benchmarks.speed.figure benchmarks/results/speed_cpu.json docs/speed.svg
	$(BIN)/python -m benchmarks.speed.table benchmarks/results/speed_cpu.json

.venv-bench/ready: benchmarks/speed/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -r benchmarks/speed/requirements.txt
	touch $@

runs/quickstart/metrics.json: | setup
	$(BIN)/palate quickstart --output runs/quickstart

# Plants every pathology over 200 seeds: hours on 2 cores; goes on where it stopped.
pathologies: setup
	$(BIN)/python -m benchmarks.pathologies.run
	$(BIN)/python -m benchmarks.pathologies.confirm
	$(BIN)/python -m benchmarks.pathologies.page benchmarks/results/pathologies.json docs/pathologies.md docs/pathologies.svg
