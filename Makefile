# Sets up and checks the project. `make` alone lists what there is.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin

# A stamp is written when an install has succeeded, so that it is repeated only when pyproject.toml has changed.
INSTALLED = $(VENV)/.installed
INSTALLED_DEV = $(VENV)/.installed-dev
INSTALLED_DOCS = $(VENV)/.installed-docs
INSTALLED_RELEASE = $(VENV)/.installed-release

.PHONY: help install quickstart test faults fuzz check docs bench audit release clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r target text; do \
		printf 'make %-12s %s\n' "$$target" "$$text"; done

install: $(INSTALLED) ## create .venv and install tltrain with the quickstart's weights

quickstart: $(INSTALLED) ## install, then run the sweep in jobs/quickstart.yaml
	$(BIN)/tltrain run jobs/quickstart.yaml

test: $(INSTALLED_DEV) ## install the tools for development, then run all tests but the slow ones in two processes
	$(BIN)/pytest -m 'not slow' -n 2 --dist worksteal

faults: $(INSTALLED_DEV) ## break training at 200 random places and sweeps at 75, and compare with what was left alone
	$(BIN)/python tests/faults/campaign.py --faults 200 --table docs/reliability.md
	$(BIN)/python tests/faults/sweeps.py --faults 75 --table docs/reliability.md

fuzz: $(INSTALLED_DEV) ## feed the readers of specs, --set values and images for 10 minutes each (atheris, Linux)
	$(BIN)/python -m pip install -e '.[fuzz]'
	for target in spec set image; do $(BIN)/python tests/hostile/fuzz.py $$target || exit 1; done

check: $(INSTALLED_DEV) ## check format, lint, types and import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: $(INSTALLED_DOCS) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED) ## compare training speed with a plain torchrun script
	$(BIN)/python benchmarks/ddp_parity.py

audit: $(INSTALLED_RELEASE) ## ask the Python advisory database about all that is installed in .venv; needs the internet
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/.audited
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r $(VENV)/.audited

release: $(INSTALLED_RELEASE) ## build wheel, source distribution, bill of materials and their sha256 sums into dist/
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file dist/tltrain.cdx.json $(BIN)/python
	cd dist && sha256sum * > SHA256SUMS

clean: ## remove .venv, build leftovers and caches; runs/ stays
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }

$(INSTALLED): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -e '.[demo]'
	@touch $(INSTALLED)

$(INSTALLED_DEV): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -e '.[demo,dev]'
	@touch $(INSTALLED) $(INSTALLED_DEV) $(INSTALLED_DOCS)

$(INSTALLED_DOCS): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $(INSTALLED_DOCS)

$(INSTALLED_RELEASE): $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -e '.[demo,release]'
	@touch $(INSTALLED_RELEASE)
