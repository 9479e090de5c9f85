# Every target makes its own .venv; nothing else needs to be installed but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CORE := */plan.py,*/policy/*,*/checkpoint/*,*/transport/base.py
DEV := $(shell sed -n '/^dev = \[/,/^\]/s/^  "\([^"]*\)".*/"\1"/p' pyproject.toml)

.PHONY: demo test check sim coverage soak bench clean install

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . $(DEV)
	@touch $(STAMP)

demo: $(STAMP)  ## 100,000 devices on the embedded emulator: planned, killed, resumed, reported
	@$(BIN)/python -m bench.demo

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -q -n 4 --dist loadfile

sim: $(STAMP)  ## 1,000 seeded disasters, and what they reached (docs/simulation.md)
	$(BIN)/python -m tests.simulation --seeds 0:1000 --coverage

soak: $(STAMP)  ## the full figures: takes long
	SOAK=1 $(BIN)/python -m pytest -q -m soak --timeout 7200

coverage: $(STAMP)  ## every branch that the tests take, subprocesses included: the core first, then the package
	$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest -q -n 4 --dist loadfile --timeout 600  # a few tests let no file grow, coverage's neither: they fail here
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --include '$(CORE)' --fail-under 100
	$(BIN)/coverage report --fail-under 95

bench: $(STAMP)
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
