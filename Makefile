# Everything a developer does. Each target does the set-up that it needs by itself, quickly when it is done already.
.DEFAULT_GOAL := help
VENV_PYTHON := .venv/bin/python
TESTHOST := netlib/testing/testhost

# What part of a soak's cycles to run: make soak SOAK=0.1
SOAK ?= 1
# More arguments for pytest: make test PYTEST="-k dns -x"
PYTEST ?=
# What `make bench-compare` compares with, and its other words: make bench-compare BASE=11f308c COMPARE="--pairs 20 ADD"
BASE ?= HEAD~1
COMPARE ?=
# Whether a benchmark's record is put into benchmarks/records, to be committed: make bench KEEP=1
KEEP ?=
KEPT = $(if $(KEEP),--keep)
# Tests wait more than they compute: one worker more than there are processors, each in a test host of its own.
HOSTS ?= $(shell expr $$(nproc) + 1)
WORKERS = --dist load --tx "$(HOSTS)*popen//python=$(TESTHOST) $(VENV_PYTHON)"

.PHONY: help install test test-vm test-peers soak demo docs bench bench-cni bench-compare bench-calls lint format clean

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install: ## Debian packages (as root, if missing), .venv, Python packages
	@scripts/install

test: install ## All tests that need nobody else's programs, in test hosts: network namespaces of their own
	@$(VENV_PYTHON) -m pytest -m "not peers and not runtimes" $(WORKERS) $(PYTEST)

test-vm: ## The tests that another kernel is needed for, in a virtual machine
	@scripts/install vm
	@$(TESTHOST) scripts/test-vm $(PYTEST)

test-peers: ## Our CNI plugins beside the reference's, mixed with them, and under podman and containerd
	@scripts/install peers
	@$(TESTHOST) $(VENV_PYTHON) -m pytest -m "peers or runtimes" $(PYTEST)

soak: install ## The long tests with all their cycles (SOAK=0.1: a tenth)
	@NETLIB_SOAK=$(SOAK) $(TESTHOST) $(VENV_PYTHON) -m pytest -m soak -o timeout=1800 $(PYTEST)

demo: install ## Networks, names, a published port: every check is printed
	@$(TESTHOST) $(VENV_PYTHON) labs/demo.py

docs: install ## The listings in docs/ruleset.md, as the kernel has them now
	@$(TESTHOST) $(VENV_PYTHON) -m tests.ruleset_page

bench: ## Measure netlib beside its peers, in one run
	@scripts/install peers
	@$(TESTHOST) $(VENV_PYTHON) -m benchmarks $(KEPT)

bench-cni: ## Measure the CNI plugins beside the reference's, in one run
	@scripts/install peers
	@$(TESTHOST) $(VENV_PYTHON) -m benchmarks cni $(KEPT)

bench-compare: install ## This checkout beside another commit, in pairs of one run: make bench-compare BASE=HEAD~1 KEEP=1
	@$(VENV_PYTHON) -m benchmarks.compare $(BASE) $(KEPT) $(COMPARE)

bench-calls: install ## Count the Python calls of a connect and of a warm ADD
	@$(TESTHOST) $(VENV_PYTHON) -m benchmarks.calls

lint: install ## ruff, ruff format, mypy
	@$(VENV_PYTHON) -m ruff check --quiet .
	@$(VENV_PYTHON) -m ruff format --quiet --check .
	@$(VENV_PYTHON) -m mypy

format: install ## Put the code into shape
	@$(VENV_PYTHON) -m ruff check --quiet --fix .
	@$(VENV_PYTHON) -m ruff format --quiet .

clean: ## Remove .venv and every cache
	rm -rf .venv .vm .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
