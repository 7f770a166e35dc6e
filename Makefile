# Each target does all of its own set-up: it makes .venv with the first Python >= 3.11 found, and
# installs what it needs there once. Another interpreter: make PYTHON=/path/to/python test
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A test that hangs prints the stack of every thread and ends the run.
PYTEST := $(BIN)/python -m pytest -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

.DELETE_ON_ERROR:
.PHONY: help demo test lab bench coverage check format venv clean

help:
	@echo 'make demo    the main job, start to end, on the shipped model (under 2 minutes)'
	@echo 'make test    all tests, notebooks included'
	@echo 'make lab     JupyterLab on the notebooks'
	@echo 'make bench   one table of measured numbers (ten minutes)'
	@echo 'make coverage  what the tests do not reach'
	@echo 'make check   ruff and mypy'
	@echo 'make format  ruff fixes and formatting'
	@echo 'make venv    only the environment, with everything in it'
	@echo 'make clean   remove the environment, caches and runs'

demo: $(VENV)/.installed
	$(BIN)/interp demo

# Two at a time; what looks at the clock, in a browser or a queue, one after the other behind them.
test: $(VENV)/.installed-test
	@$(PYTEST) -n 2 --dist loadfile --nbmake --nbmake-timeout=300 -m 'not browser and not slurm' \
		tests $(wildcard notebooks/*.ipynb); first=$$?; \
	$(PYTEST) -m 'browser or slurm' tests && exit $$first

lab: $(VENV)/.installed-lab
	$(BIN)/jupyter lab --notebook-dir=notebooks

# One table, runs/bench/bench.md. Only some of it: .venv/bin/python tests/bench probe_speed live
bench: $(VENV)/.installed-test
	$(BIN)/python tests/bench

# What no test runs, line by line, in runs/coverage. Subprocesses (cluster tasks, the command line) count.
coverage: $(VENV)/.installed-test
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-report=html:runs/coverage tests

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/.installed $(VENV)/.installed-lab $(VENV)/.installed-test $(VENV)/.installed-check

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'interp needs Python 3.11 or newer: install it, or say make PYTHON=...' >&2; exit 1; }
	@echo 'making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'venv failed: on Debian and Ubuntu, apt-get install python3-venv' >&2; exit 1; }

# The stamps: one per set of extras, renewed when the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing interp (a minute or two)'
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing interp[$*] (a minute or two)'
	@$(PIP) install -q -c constraints.txt -e '.[$*]'
	@touch $@
