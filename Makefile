# make demo    a real KTO sweep, start to end: no account, no GPU
# make test    the test suite
# make lint    style and types
# make reference, make pictures    docs/reference.md from the code, docs/pictures from a real sweep and benchmarks/rivals.json

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow lint format reference pictures clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kto-sweep needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/kto-sweep demo

test: setup
	$(BIN)/python -m pytest -m 'not slow' -n 4 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup
	$(BIN)/python docs/make_reference.py

pictures: setup
	$(BIN)/python docs/make_chart.py
	$(BIN)/python docs/make_pictures.py

clean:
	rm -rf .venv build dist
