# Everything runs from .venv, made from requirements.lock with uv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# vLLM pins a transformers and much else of its own, so what serves has a venv and a lock of its own.
SERVING_VENV := .venv-serving
# pip's find-links setting, of its variable or its files, reaches uv, so that a local CPU wheel of torch is used where one
# is offered; pip separates several links by blanks, uv by commas.
# Elsewhere set UV_TORCH_BACKEND=cpu to take the CPU build from PyTorch's index instead of the CUDA one.
HAS_PIP := $(BIN)/python -m pip --version >/dev/null 2>&1
PIP_CONFIG := $(BIN)/python -m pip config get
PIP_FILES = $$($(PIP_CONFIG) install.find-links 2>/dev/null || $(PIP_CONFIG) global.find-links 2>/dev/null)
WITH_LINKS = UV_FIND_LINKS="$${UV_FIND_LINKS:-$$(echo $${PIP_FIND_LINKS:-$(PIP_FILES)} | tr ' ' ,)}"
UV = $(WITH_LINKS) $(BIN)/uv
export UV_LINK_MODE ?= copy

.PHONY: setup setup-serving lock demo test test-tools test-long test-all lint lint-images check-wheels crds reference docs dashboards clean
setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
# A venv without pip is what a failed try leaves.
	@$(HAS_PIP) || $(PYTHON) -c 'import importlib.util as u; exit(u.find_spec("ensurepip") is None)' || \
	    { echo "error: $(PYTHON) or its venv module is missing: install $(PYTHON) and $(PYTHON)-venv" >&2; exit 1; }
	$(HAS_PIP) || $(PYTHON) -m venv --clear $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

setup-serving: $(SERVING_VENV)/.installed

# The lock is whole, and must stay without what serving/overrides.txt leaves out: hence --no-deps.
$(SERVING_VENV)/.installed: requirements-serving.lock pyproject.toml | setup
	test -x $(SERVING_VENV)/bin/python || $(PYTHON) -m venv --without-pip --clear $(SERVING_VENV)
	$(UV) pip install --quiet --python $(SERVING_VENV)/bin/python --no-deps -r requirements-serving.lock
	$(UV) pip install --quiet --python $(SERVING_VENV)/bin/python --no-deps -e .
	touch $@

# The lock holds no index URLs; torch is pinned by version only, so that any build of it fits.
lock:
	$(UV) pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes --no-annotate \
	    --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock
	$(BIN)/python scripts/clean_lock.py requirements.lock
	$(UV) pip compile pyproject.toml serving/requirements.in --extra serving --override serving/overrides.txt \
	    --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
	    -o requirements-serving.lock
	$(BIN)/python scripts/clean_lock.py requirements-serving.lock
	$(BIN)/python scripts/lock_cuda.py $(BIN)/uv
	$(UV) pip compile images/build.in --constraint requirements.lock --python-version 3.11 --generate-hashes \
	    --no-annotate --no-emit-index-url --no-emit-find-links --quiet -o images/build.lock

crds: setup reference
	$(BIN)/python -m trireme.resources.crdgen --out crds
	$(BIN)/python -m trireme.resources.crdgen --out charts/trireme/files/crds

# The pages with all fields of each kind.
reference: setup
	$(BIN)/python -m trireme.resources.docgen --out docs/reference

docs: setup
	$(BIN)/python scripts/metrics_page.py docs/metrics.md

# The chart's Grafana dashboards and Prometheus alerts.
dashboards: setup
	$(BIN)/python -m trireme_monitoring charts/trireme/files

demo: setup
	$(BIN)/trireme demo

lint: setup lint-images
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy api operator storage trainer serving local cli monitoring
	$(BIN)/lint-imports

lint-images: setup
	$(BIN)/hadolint images/*/Dockerfile
	$(BIN)/actionlint .github/workflows/*.yml

# Whether every package of the images has a wheel for their platforms; asks the package index.
check-wheels: setup
	$(BIN)/python scripts/check_wheels.py $(BIN)/uv

# kubectl and helm, for the tests alone: into .venv where the computer has none.
test-tools: setup
	@$(WITH_LINKS) $(BIN)/python scripts/get_test_tools.py

# Under 25 minutes on two cores. Unit tests share nothing and run two at a time; the others start clusters and measure waits.
test: lint test-tools
	$(BIN)/pytest -n 2 -m "not long" tests/unit
	$(BIN)/pytest -m "not long" --ignore tests/unit

test-long: test-tools setup-serving
	$(BIN)/pytest -n 2 -m long tests/unit
	$(WITH_LINKS) $(BIN)/pytest -m long --ignore tests/unit

test-all: test test-long

clean:
	-$(BIN)/trireme demo --stop
	-$(BIN)/trireme local down
	rm -rf .trireme .pytest_cache .mypy_cache .ruff_cache .hypothesis
