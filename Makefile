# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11 or newer with venv, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast bench lint format venv clean

demo: venv
	$(BIN)/nota-seg demo --output-dir demo-output --overwrite

# Two processes of one thread each: more threads than cores wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: venv
	$(BIN)/python -m pytest -m "not slow"

# One thread for both sides of each comparison; BENCH="logits --threads 2" runs some, or with other options.
bench: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(BENCH)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: .venv/ready

# The mark is written last: an install that was interrupted is done again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

clean:
	rm -rf .venv demo-output build dist *.egg-info
