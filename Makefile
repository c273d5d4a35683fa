# Two commands do it all, on a fresh machine too: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TUTORIALS := $(wildcard nbs/tutorials/*.ipynb)
PACKAGING := settings.ini setup.py pyproject.toml
# Tests draw without a screen, and use one thread each
TESTING := MPLBACKEND=agg OMP_NUM_THREADS=1

.PHONY: help demo test quick check lessons pytest chromium test-browser test-tutorials lab export readme hooks docs dist try-wheel clean
help:
	@echo "make demo            set up, then train a baseline and a FocusNet on handwritten digits"
	@echo "make quick           set up, then run the tests that are not marked slow: under two minutes"
	@echo "make test            set up, then run all checks, lessons and tests (about a quarter of an hour on two cores)"
	@echo "make chromium        install the browser that the tests use, where apt can"
	@echo "make test-browser    explorer, report and site in Chromium"
	@echo "make test-tutorials  run the tutorials whole (without a GPU some ten minutes each)"
	@echo "make lab             JupyterLab in the project's environment"
	@echo "make export          notebooks -> modules, and clean the notebooks"
	@echo "make readme          nbs/index.ipynb -> README.md"
	@echo "make hooks           git hooks that clean and export notebooks at each commit"
	@echo "make docs            the site, in docs/_build (about a minute)"
	@echo "make dist            source archive and wheel, in dist, with their metadata and contents checked"
	@echo "make try-wheel       the wheel in empty environments (PYTHONS=\"python3.10 python3.13\"; some GB each)"

# All cores compile what pip has installed; pip alone would use one. Without the files each process would compile anew what it imports
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -q -j 0 .venv focusnet_fastai >/dev/null || true

.venv/.base: $(PACKAGING)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	$(COMPILE)
	@touch $@

.venv/.dev: $(PACKAGING)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	$(COMPILE)
	@touch .venv/.base $@

.venv/.docs: .venv/.base
	$(PIP) -e '.[docs]'
	$(COMPILE)
	@touch $@

.venv/.release: .venv/.base
	$(PIP) -e '.[release]'
	$(COMPILE)
	@touch $@

demo: .venv/.base
	$(BIN)/focusnet-demo

test: check lessons chromium pytest

check: .venv/.dev
	$(BIN)/python tools/in_step.py
	$(BIN)/python tools/style.py

# Three workers keep two cores busy: some tests wait for a process, a browser or a kill
lessons: .venv/.dev
	$(TESTING) PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-test --n-workers 3

pytest: .venv/.dev
	$(TESTING) $(BIN)/python -m pytest -n 3 --dist worksteal

quick: .venv/.dev
	$(TESTING) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Without Chromium, and without the right to install it, tests in a browser are skipped and say how to run them
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && { apt-get update -qq; apt-get install -y -qq --no-install-recommends chromium; }; } || echo "Chromium is not installed, and could not be"

test-browser: .venv/.dev chromium
	$(TESTING) $(BIN)/python -m pytest tests/browser

test-tutorials: .venv/.dev
	for nb in $(TUTORIALS); do $(BIN)/jupyter execute --timeout=-1 $$nb || exit 1; done

# Jupyter asks the superuser, as one is in a container, to say that this is meant
lab: .venv/.dev
	$(BIN)/jupyter lab $$(test "$$(id -u)" = 0 && echo --allow-root) nbs

export: .venv/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-export
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-clean

readme: .venv/.dev
	$(BIN)/python tools/readme.py

hooks: .venv/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-install-hooks
	$(BIN)/pre-commit install

docs: .venv/.docs
	$(TESTING) $(BIN)/python docs/build.py

dist: .venv/.release
	$(BIN)/python tools/dist.py

PYTHONS ?= $(PYTHON)
try-wheel: .venv/.release
	$(BIN)/python tools/try_wheel.py $(PYTHONS)

clean:
	rm -rf .venv build dist *.egg-info docs/_source docs/_build* docs/jupyter_execute
