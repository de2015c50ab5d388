# Everything from a fresh clone: `make train` runs the main job, `make test` every check.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check fast slow matrix matrix-table clean

train: .venv/installed
	$(BIN)/maskzoo train --masker clmae --schedule partner-neutral-adversary

test: check fast slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: .venv/installed
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m "not slow"

slow: .venv/installed
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m slow

# Every strategy on every backbone under every objective; the tests hold every pair of them.
matrix: .venv/installed
	MASKZOO_MATRIX=1 $(BIN)/python -m pytest --quiet --numprocesses 2 tests/test_matrix.py

matrix-table: .venv/installed
	$(BIN)/python -m maskzoo.matrix docs/backbones.md

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,data,submitit,tensorboard]'
	touch $@

clean:
	rm -rf .venv
