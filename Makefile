# make venv | demo | test | lint | docs    Each makes .venv with everything that PyPI holds, if it is missing.
#
#   make venv TORCH="torch==2.11.0 torchvision==0.26.0"   another torch than the pinned one, to fit your driver
#   make demo DATA=/path/to/coco-layout                   the demo on your own images
#   make test TESTS="tests/tools/test_train_det.py -k resume"    some tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_CHOICE := $(VENV)/.torch
TESTS ?= tests
DEMO_OUTPUT ?= runs/demo
# One worker a core, but not more than eight: the tests are small and each worker imports torch.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 8 ] && echo 8 || echo $$n)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A choice made once is kept when setup.cfg changes later; another choice installs again.
CHOSEN_BEFORE := $(shell cat $(TORCH_CHOICE) 2>/dev/null)
override TORCH := $(strip $(or $(TORCH),$(CHOSEN_BEFORE)))

.PHONY: venv demo test test-all lint docs format clean force

venv: $(STAMP)

ifneq ($(TORCH),$(strip $(CHOSEN_BEFORE)))
$(STAMP): force
endif

# With TORCH given, what belongs to torch (the CUDA libraries, triton) is left to pip and not pinned.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: PYTHON=$(PYTHON) is not Python 3.11 or newer: install one and name it, as in make venv PYTHON=python3.12" >&2; \
	  exit 2; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@if [ -n "$(TORCH)" ]; then \
	  grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+|sympy|networkx)==' constraints.txt > $(VENV)/constraints.txt; \
	else cp constraints.txt $(VENV)/constraints.txt; fi
	@echo 'installing into $(VENV) (a few minutes, several GB with CUDA builds of torch) ...'
	$(BIN)/python -m pip install --quiet --progress-bar off $(TORCH) -e '.[all]' -c $(VENV)/constraints.txt
	@if [ -n "$(TORCH)" ]; then echo "$(TORCH)" > $(TORCH_CHOICE); fi
	@touch $@

demo: $(STAMP)
	$(BIN)/python tools/demo.py --output '$(DEMO_OUTPUT)' $(if $(DATA),--data '$(DATA)')

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(TESTS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# --quiet would not count the warnings that --strict is for
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything that can be made again, except runs/: those are yours.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
