# Everything from a fresh clone: `make train` runs the main job, `make test` the checks of every day, `make long` the rest.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check fast slow long matrix matrix-table clean

train: .venv/installed
	$(BIN)/maskzoo train --masker clmae --schedule partner-neutral-adversary

test: check fast slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: .venv/installed
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m "not slow and not long"

slow: .venv/installed
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m "slow and not long"

# Whole tables of which `make test` tries every pair, and fresh environments: most of an hour on two cores.
long: .venv/installed
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m long

# Every strategy on every backbone under every objective, part of `make long`.
matrix: .venv/installed
	$(BIN)/python -m pytest --quiet --numprocesses 2 -m "slow or long" tests/test_matrix.py

matrix-table: .venv/installed
	$(BIN)/python -m maskzoo.matrix docs/backbones.md

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,data,images,submitit,tensorboard]'
	touch $@

clean:
	rm -rf .venv
