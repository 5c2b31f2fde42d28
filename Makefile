# Two commands on a bare machine with Python 3.11: `make quickstart` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
OUT ?= quickstart
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test campaign lint

quickstart: $(INSTALLED)
	$(BIN)/attndiff quickstart --out "$(OUT)"

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --durations=15

campaign: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/kill_campaign.py --fast

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@
