# Everything runs from .venv, made from requirements.lock with uv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# pip's find-links setting reaches uv, so that a local CPU wheel of torch is used where one is offered.
# Elsewhere set UV_TORCH_BACKEND=cpu to take the CPU build from PyTorch's index instead of the CUDA one.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_LINK_MODE ?= copy

.PHONY: setup lock demo test test-long test-all lint crds clean
setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

# The lock holds no index URLs; torch is pinned by version only, so that any build of it fits.
lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes --no-annotate \
	    --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock
	$(BIN)/python scripts/clean_lock.py requirements.lock

crds: setup
	$(BIN)/python -m trireme.resources.crdgen --out crds
	$(BIN)/python -m trireme.resources.docgen --out docs

demo: setup
	$(BIN)/trireme demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy api operator trainer local cli
	$(BIN)/lint-imports

# Under 25 minutes on two cores.
test: lint
	$(BIN)/pytest -m "not long"

test-long: setup
	$(BIN)/pytest -m long

test-all: test test-long

clean:
	-$(BIN)/trireme local down
	rm -rf .trireme .pytest_cache .mypy_cache .ruff_cache .hypothesis
