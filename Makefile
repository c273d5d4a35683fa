# Two commands do it all, on a fresh machine too: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TUTORIALS := $(wildcard nbs/tutorials/*.ipynb)
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= agg
PACKAGING := settings.ini setup.py pyproject.toml

.PHONY: help demo test check lessons pytest test-browser test-tutorials lab export readme clean
help:
	@echo "make demo            set up, then train a baseline and a FocusNet on handwritten digits"
	@echo "make test            set up, then run all checks, lessons and tests"
	@echo "make test-browser    the explorer in JupyterLab and Chromium, which is installed where apt can"
	@echo "make test-tutorials  run the tutorials whole (slow; on a CPU with FOCUSNET_EPOCHS=3 FOCUSNET_PER_BREED=100)"
	@echo "make lab             JupyterLab in the project's environment"
	@echo "make export          notebooks -> modules, and clean the notebooks"
	@echo "make readme          nbs/index.ipynb -> README.md"

.venv/.base: $(PACKAGING)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/.base
	$(BIN)/focusnet-demo

test: check lessons pytest test-browser

check: .venv/.dev
	$(BIN)/python tools/in_step.py

lessons: .venv/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-test --n-workers 2

pytest: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Without Chromium, and without the right to install it, the test is skipped and says how to run it
test-browser: .venv/.dev
	@command -v chromium chromium-browser google-chrome >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && { apt-get update -qq; apt-get install -y -qq --no-install-recommends chromium; }; } || echo "Chromium is not installed, and could not be"
	$(BIN)/python -m pytest tests/browser

test-tutorials: .venv/.dev
	for nb in $(TUTORIALS); do $(BIN)/jupyter execute --timeout=-1 $$nb || exit 1; done

lab: .venv/.dev
	$(BIN)/jupyter lab nbs

export: .venv/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-export
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-clean

readme: .venv/.dev
	$(BIN)/python tools/readme.py

clean:
	rm -rf .venv build dist *.egg-info
