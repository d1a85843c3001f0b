# Everything works on a fresh clone with nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format

# constraints.txt pins every version; PyTorch comes as pip finds it. README, "Install", tells how to get its CPU build.
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt dev-requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement dev-requirements.txt --editable .
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps open_clip_torch
	touch $@

demo: install
	$(BIN)/python tools/demo.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest --quiet tests/unit

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
