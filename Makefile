# Every target does all of its own set-up: it needs Python 3.11+, make and a C compiler, and installs nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The benchmarks compare with other people's packages, which the library's own environment does not need.
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed
CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "drifting needs Python 3.11 or newer; set PYTHON=python3.12 or the like")'
# Small nets lose more to thread hand-over than they gain from a second core.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint bench clean

demo: $(INSTALLED)
	$(BIN)/python -m domains.imagenet.train

test: lint
	$(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or not slow" -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(PEERS_INSTALLED)
	$(PEERS)/bin/python -m benchmarks

# The stamp is written last: an interrupted installation is repeated, a finished one is not.
$(INSTALLED): pyproject.toml
	$(CHECK_PYTHON)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[imagenet,robotics,dev]'
	touch $@

$(PEERS_INSTALLED): pyproject.toml benchmarks/peers.txt
	$(CHECK_PYTHON)
	$(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(PEERS); $(PYTHON) -m venv $(PEERS); }
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[imagenet]' -r benchmarks/peers.txt
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) build dist
