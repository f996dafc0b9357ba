# GNU make 3.81 or newer. `make run` and `make test` set up all they need.
PYTHON ?= python3
VENV := .venv
PROFILE ?= default
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Notebooks in JupyterLab may load torch before cmrm_utils/spinning.py can set this; see there.
ifndef OMP_WAIT_POLICY
GOMP_SPINCOUNT ?= 100000
export GOMP_SPINCOUNT
endif

.PHONY: help env run research test lab notebooks figures benchmarks docs lint lines clean

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## make the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

run: $(READY) ## run the core notebooks, or those of PROFILE=name, and write a report
	$(BIN)/cmrm run $(PROFILE)

research: $(READY) ## run notebooks 06 to 09, write runs/research/report.html
	$(BIN)/cmrm run research

test: $(READY) lint ## lint, type-check, unit tests, notebook regression tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## ruff, mypy and the floors of the module
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache

lines: $(READY) ## how large the module is, and whether it keeps to its bounds
	$(BIN)/python -m benchmarks.lines

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

notebooks: $(READY) ## re-execute the committed notebooks, without timestamps and paths
	$(BIN)/cmrm refresh

figures: $(READY) ## figures/ from runs/default
	$(BIN)/cmrm publish runs/default

benchmarks: $(READY) ## time the engine beside the usual ways, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

docs: $(READY) ## build the site: open build/docs/docs/index.html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/docs

clean: ## remove the environment, runs and caches
	rm -rf $(VENV) build runs .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
