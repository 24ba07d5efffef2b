# Everything starts from a clean clone: the first target that needs .venv creates it.
#
#   make demo     install, then compare the policies exactly (writes demo/)
#   make test     every kind of test, a real engine end to end among them
#   make test-all what make test leaves out: the tests that are marked slow
#   make test-vllm   vLLM's own tests of its scheduler, with ours in its place (fetches vLLM's source)
#   make test-versions   our tests of the scheduler with each vLLM that is supported (fetches theirs)
#   make test-random  the property tests, with examples that nobody has tried yet
#   make test-live   some forty faults on live servers, one after the other
#   make figures  every published comparison that needs no wall clock, exactly, and into the docs
#   make check    ruff and mypy
#   make docs     the documentation, strict, into site/
#   make clean    remove what these targets made
#
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# Importing vLLM compiles three thousand files, once: or in every process, where images set this.
unexport PYTHONDONTWRITEBYTECODE

# Two processes, each with a file at a time, in the order of their names.
PYTEST := $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Tables of prompts, answer lengths and traffic. What is not there is left out and said.
FIGURES_DATA ?= ../shared/data

.PHONY: demo test test-all test-vllm test-versions test-random test-live figures check docs install constraints clean

# Real prompts, where they lie beside the project; else those of the built-in model.
DEMO_DATA := $(wildcard ../shared/data/prompts_alpaca_vicuna7b.parquet)

demo: $(INSTALLED)
	$(VENV)/bin/lengthwise demo --out demo $(if $(DEMO_DATA),--data $(DEMO_DATA))

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not live"

test-all: $(INSTALLED)
	$(PYTEST) -m slow

# Needs a package index, and a quarter of an hour: not for every change.
test-vllm: $(INSTALLED)
	$(VENV)/bin/python scripts/vllm_tests.py

# The same: three versions' source, and a quarter of an hour.
test-versions: $(INSTALLED)
	$(VENV)/bin/python scripts/vllm_versions.py

# New examples each time, so that what it finds is news: for a change of the heart, and now and then.
test-random: $(INSTALLED)
	HYPOTHESIS_PROFILE=random $(PYTEST) -m "hypothesis and not slow and not live"

# Half an hour on a small machine; `make test-all` has one fault of each kind.
test-live: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m live

figures: $(INSTALLED)
	$(VENV)/bin/python -m bench.figures --data $(FIGURES_DATA)
	$(VENV)/bin/python scripts/fill_tables.py

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt scripts/install
	PYTHON="$(PYTHON)" scripts/install $(VENV)
	touch $@

# After changing a dependency in pyproject.toml: resolve all of them afresh and pin the result.
# torch and the installers stay out: scripts/install names their versions itself.
constraints:
	rm -rf build/venv
	: > constraints.txt
	PYTHON="$(PYTHON)" scripts/install build/venv
	build/venv/bin/uv pip freeze --python build/venv/bin/python --exclude-editable \
		| grep -v -e '^torch==' -e '^uv==' -e '^pip==' \
		| sed '1i # The versions that are tested together. Written by: make constraints' > constraints.txt
	rm -rf build/venv

clean:
	rm -rf $(VENV) build demo site dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
