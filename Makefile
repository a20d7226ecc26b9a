# Hemoscan: `make run` starts everything, `make help` lists the rest.

VENV := .venv
PY := $(VENV)/bin/python
UV ?= $(VENV)/bin/uv
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first suitable interpreter; choose another one with PYTHON=….
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do $$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)
ARGS ?=
# All tests run in two processes, in the order of the folders: tests/e2e has the longest tests, which would otherwise keep one process
# busy alone at the end. Tests selected with ARGS run faster in one process.
TESTS = $(if $(ARGS),$(ARGS),-n 2 --dist loadfile --no-loadscope-reorder)

.DEFAULT_GOAL := help
.PHONY: help install run test sure bench screenshots chaos fuzz lock audit web worker-predict worker-train beat dicom-listen

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+( [a-z-]+)*:.*## / {printf "make %-42s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Create .venv with everything that Hemoscan needs to run.

# Starts as soon as scans can be analyzed; the train worker installs the rest, four fifths of it, before it starts.
run: $(VENV)/.installed-to-analyze  ## Start everything on http://127.0.0.1:8000 (PORT and HEMOSCAN_HOME choose others); Ctrl-C stops it.
	@INSTALL_TO_TRAIN="$(MAKE) --silent install" exec $(PY) -m webapp.embedded

test: $(VENV)/.installed-tests  ## Run all tests; ARGS="-k login" selects some.
	@$(PY) -m pytest $(TESTS)

sure: $(VENV)/.installed-tests  ## Check format, lint and types, then run all tests: what CI does.
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m pytest $(TESTS)

bench: $(VENV)/.installed  ## Measure the speed of models and service; fails if a limit is exceeded.
	@$(PY) -m bench.models
	@$(PY) -m bench.series
	@$(PY) -m bench.peers
	@$(PY) -m bench.services
	@$(PY) -m bench.training_peers
	@$(PY) -m bench.service $(ARGS)
	@$(PY) -m bench.start
	@$(PY) -m bench.claims
	@$(PY) -m bench.growth
	@$(PY) -m bench.worklist
	@$(PY) -m bench.scale
	@$(PY) -m bench.overload

screenshots: $(VENV)/.installed-tests  ## Take the screenshots in docs/ and on the front page, with phantoms; needs Chromium.
	@$(PY) -m bench.screenshots

chaos: $(VENV)/.installed  ## Kill, pause and disconnect processes while 1,000 scans are submitted; fails if one is lost, duplicated or stuck.
	@$(PY) -m bench.chaos $(ARGS)

fuzz: $(VENV)/.installed-tests  ## Send 10,000 corrupted uploads, and requests that must be refused; fails if one does harm.
	@nice $(PY) -m bench.fuzz $(ARGS)

web worker-predict worker-train beat dicom-listen: $(VENV)/.installed  ## Start one process with the settings in the environment.
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; export PATH; exec $(shell sed -n 's/^$@: //p' Procfile)

# The largest set first; the others reuse its versions, so that every image and every test runs the same code.
COMPILE = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
AS_TESTED = -c tests/requirements.txt

lock: $(if $(filter $(VENV)/%,$(UV)),$(VENV)/.installed-tests)  ## Lock the requirements again; ARGS=--upgrade allows newer versions.
	@$(COMPILE) --group dev -o tests/requirements.txt $(ARGS)
	@$(COMPILE) --group web $(AS_TESTED) -o webapp/requirements.txt $(ARGS)
	@$(COMPILE) --group predict $(AS_TESTED) -o worker/requirements.txt $(ARGS)
	@$(COMPILE) --group train $(AS_TESTED) -o ml/requirements.txt $(ARGS)

# Strict: a package that could not be looked up counts as a finding. Needs pypi.org itself, because mirrors have no advisories.
audit: $(if $(filter $(VENV)/%,$(UV)),$(VENV)/.installed-tests)  ## Check the locked requirements for known vulnerabilities.
	@$(UV) tool run pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r tests/requirements.txt $(ARGS)

# Stamp files: they are written when an installation is complete, so an interrupted one is repeated.
$(VENV)/.made:
	@$(if $(PYTHON),,echo "Hemoscan needs Python 3.11, 3.12 or 3.13; if it has an unusual name: make PYTHON=/path/to/python3.12" >&2; exit 1)
	@$(PYTHON) -c '$(SUITABLE)' || { echo "Hemoscan needs Python 3.11, 3.12 or 3.13, which $(PYTHON) is not." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python could not make $(VENV); on Debian and Ubuntu it needs the package python3-venv." >&2; exit 1; }
	@touch $@

PIP = $(PY) -m pip install --disable-pip-version-check
# Reports pip's progress every 20 packages. If pip fails, this fails and shows pip's error messages; if it succeeds,
# its warnings are hidden.
# $(1): the requirements file; $(2): the files that list its packages.
INSTALL = { $(PIP) --progress-bar off --require-hashes -r $(1) 2>$(VENV)/.pip-errors && echo "pip is done"; } | { \
	count=0; is_done=; total=$$(sed -n 's/^\([A-Za-z0-9._-]*\).*==.*/\1/p' $(2) | sort -u | wc -l | tr -d ' '); \
	while IFS= read -r line; do case "$$line" in \
		"Collecting "*|"Processing "*|"Requirement already satisfied: "*) count=$$((count + 1)); \
			[ $$((count % 20)) -ne 0 ] || echo "  $$count of about $$total packages are downloaded" ;; \
		"Installing collected packages: "*) echo "  all are downloaded and are being unpacked; this takes about a minute" ;; \
		"pip is done") is_done=1 ;; \
	esac; done; [ "$$is_done" ] || { cat $(VENV)/.pip-errors >&2; exit 1; }; }

$(VENV)/.installed-to-analyze: $(VENV)/.made worker/requirements.txt
	@echo "Installing what Hemoscan needs to analyze scans into $(VENV); the first time this takes about a minute ..."
	@$(call INSTALL,worker/requirements.txt,worker/requirements.txt)
	@touch $@

$(VENV)/.installed: $(VENV)/.installed-to-analyze requirements.txt ml/requirements.txt
	@echo "Installing what training needs into $(VENV); the first time this takes a few minutes ..."
	@$(call INSTALL,requirements.txt,webapp/requirements.txt worker/requirements.txt ml/requirements.txt)
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.made tests/requirements.txt clients/python/pyproject.toml
	@echo "Installing what the tests need into $(VENV); the first time this takes a few minutes ..."
	@$(call INSTALL,tests/requirements.txt,tests/requirements.txt)
	@$(PIP) --quiet --quiet --no-deps --no-build-isolation --editable clients/python
	@touch $@
