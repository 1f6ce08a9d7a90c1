# Every target makes its own environment in .venv first. Words for a command go in ARGS (make tour ARGS="--minutes 1"),
# another interpreter in PYTHON (make PYTHON=python3.12 test).

PYTHON ?= python3
ARGS ?=
# What wrote the notebooks; an environment that holds another one keeps it where it fits.
TORCH = torch>=2.7,<2.14
BIN = .venv/bin
# Python compiles a module when it is first imported; to compile all of them is half of an installation.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# The same notebooks on a CPU without AVX: a digit that depends on the machine shows up here and not at the reader's.
ANOTHER_CPU = ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 \
	NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX2 FMA3"

# The tests in two parts, so that two cores end at about the same time. What begins otherwise than the second belongs to
# the first, which compiles the loops for both.
SECOND = tests/test_[f-z]*.py
PARTS = test-code test-code-f-z
NOTEBOOKS = test-notebooks test-notebooks-elsewhere
TWO_AT_A_TIME = --no-print-directory --keep-going --jobs=2 --output-sync=target

.PHONY: help tour test check lint $(PARTS) $(NOTEBOOKS) lab notebooks figures site clean
test check $(PARTS) $(NOTEBOOKS) notebooks figures site: export OMP_NUM_THREADS = 1
test check $(PARTS) $(NOTEBOOKS) notebooks figures site: export PYTHONHASHSEED = 0

help:
	@echo "make tour        train a small V4, let it write, weigh its cache (ARGS=\"--minutes 1\")"
	@echo "make test        ruff, mypy, every test, every notebook output twice"
	@echo "make check       ruff, mypy and the fast tests"
	@echo "make lab         JupyterLab on your own copy of the course, in work/"
	@echo "make notebooks   rebuild notebooks (ARGS=\"01_attention\"); make figures: rebuild figures"
	@echo "make site        the course as static pages in site/, looked at in a browser where one is installed"
	@echo "make clean       remove the environment and caches"

tour: .venv/ready
	$(BIN)/python -m minidsv4 tour $(ARGS)

# Two jobs at a time; each shows what it printed when it ends.
test: .venv/ready
	@echo "ruff, mypy, tests, notebooks: two at a time, each printed when it ends; fifteen to twenty-five minutes on two cores"
	@$(MAKE) $(TWO_AT_A_TIME) $(PARTS) test-notebooks-elsewhere test-notebooks lint

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-code: .venv/ready
	$(BIN)/python -m pytest tests $(FAST) --ignore-glob='$(SECOND)'

test-code-f-z: .venv/ready
	$(BIN)/python -m pytest $(SECOND) $(FAST)

test-notebooks: .venv/ready
	$(BIN)/python -m pytest notebooks

test-notebooks-elsewhere: .venv/ready
	$(ANOTHER_CPU) $(BIN)/python -m pytest notebooks -p no:cacheprovider

check: .venv/ready
	@$(MAKE) $(TWO_AT_A_TIME) $(PARTS) lint FAST='-m "not slow" --quiet'

lab: .venv/ready
	$(BIN)/python -m minidsv4.course.lab $(ARGS)

notebooks: .venv/ready
	$(BIN)/python -m minidsv4.course.notebooks $(ARGS)

figures: .venv/ready
	$(BIN)/python -m minidsv4.course.figures $(ARGS)

site: .venv/ready
	$(BIN)/python -m minidsv4.course.site $(ARGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

.venv/ready: pyproject.toml
	@rm -f .venv/ready
	@command -v $(PYTHON) >/dev/null \
		|| { echo "minidsv4 needs Python 3.11 or newer, and there is no $(PYTHON) here."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "minidsv4 needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 names another."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) comes without the venv module, which Debian and Ubuntu keep in the package python3-venv."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip show --quiet torch 2>/dev/null \
		|| $(INSTALL) '$(TORCH)'
	$(INSTALL) --editable '.[dev]'
	@touch .venv/ready
