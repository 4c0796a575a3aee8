# Every target sets itself up. Nothing is needed before but Python 3.11 or later, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The contract imports the example service as `app`, from the project's root.
SERVICE := backend/ml-service
# make demo DATABASE=postgres
DATABASE ?= sqlite
STAMP := $(VENV)/.installed

.PHONY: setup demo test torture lint format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Holdfast needs Python 3.11 or later: make PYTHON=python3.12 …"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group test --group lint
	$(BIN)/python -c 'import os, sysconfig; open(os.path.join(sysconfig.get_paths()["purelib"], "holdfast_service.pth"), "w").write(os.path.abspath("$(SERVICE)") + "\n")'
	touch $@

demo: setup
	$(BIN)/holdfast demo --service $(SERVICE) --database $(DATABASE)

test: setup
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(PYTEST_OPTIONS)

torture: setup
	HOLDFAST_TORTURE=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m torture

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: setup
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
