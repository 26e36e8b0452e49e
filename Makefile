# make demo    convert, run and check a real network
# make test    the linters and all tests; FAST=1 leaves out the slow ones
# make lint    the linters alone
# make docs    this documentation as a site, docs/_build/html; Python 3.11 or 3.12
# make clean   remove what these made
#
# PYTHON=python3.12 picks another Python (3.10 to 3.12); VENV=path puts the environment elsewhere.

PYTHON ?= python3
VENV ?= .venv
FAST ?= 0

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt setup.py refimpl/vendoring.py
MARKED := $(if $(filter 1,$(FAST)),-m "not slow",)

.PHONY: demo test lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py

test: lint
	$(BIN)/python -m pytest $(MARKED)

# Warnings are errors, and a reference that leads nowhere is a warning. `make test` builds it, too.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment that failed half-way is made again: only the last step leaves its stamp.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo 'refimpl needs Python 3.10, 3.11 or 3.12; $(PYTHON) is' "$$($(PYTHON) --version 2>&1)." \
	       'Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv' >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created $(INPUTS)
	$(INSTALL) -e '.[cpu,rtx]'
	touch $@

# The stubs of NVIDIA TensorRT would bring the library along, and lie where it would be imported from: so, in a folder of their own.
$(VENV)/.installed-dev: $(VENV)/.created $(INPUTS)
	$(INSTALL) -e '.[cpu,rtx,dev,docs]'
	$(INSTALL) --no-deps --upgrade --target $(VENV)/stubs tensorrt-stubs
	touch $@

clean:
	rm -rf $(VENV) .models demo_out docs/_build refimpl/vendor build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find refimpl tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
