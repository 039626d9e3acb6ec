# What a person types. The work is done by make/*.py with the standard library alone; stamps of what is done lie in .make/.
SHELL := /bin/sh
PYTHON ?= python3
PORT ?=
ENCORE_HOME ?=
ARGS ?=
BIN := .venv/bin
INSTALL := $(PYTHON) make/install.py
UP := $(if $(PORT),--port $(PORT)) $(if $(ENCORE_HOME),--home "$(ENCORE_HOME)") $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help up examples demo test torture bench peers lint types lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

up: ## install what is missing and start Encore (PORT=8266, ENCORE_HOME=folder)
	@$(INSTALL) server pages
	@exec $(BIN)/encore up $(UP)

examples: ## what the scripts of examples/ need: scikit-learn, torch
	@$(INSTALL) server examples torch

demo: ## nine real runs in the project "demo", in about three minutes
	@$(INSTALL) server pages examples torch
	@exec $(BIN)/python make/demo.py $(UP)

test: ## everything, against the real PostgreSQL, Redis, S3 server, Celery, torch and Chromium
	@$(INSTALL) system server pages examples test frameworks torch
	@exec $(BIN)/python make/test.py $(ARGS)

torture: ## the slow proofs in full size
	@$(INSTALL) system server pages examples test frameworks torch
	@ENCORE_TORTURE=1 exec $(BIN)/python -m tests.services run -- $(BIN)/python -m pytest tests/sdk tests/torture $(ARGS)

bench: ## the budgets, measured; exits 1 on a missed one and lists it first
	@$(INSTALL) system server pages test
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

peers: ## the SDK beside its peers, which are installed into .make/peers (2 GB); 15 minutes
	@$(INSTALL) server test
	@exec $(BIN)/python benchmarks/peers.py $(ARGS)

lint: ## ruff and the import contracts
	@$(INSTALL) server test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: ## mypy on sdk/ and tracker/domain
	@$(INSTALL) server test
	@$(BIN)/mypy

lock: ## make the locks in requirements/ again from pyproject.toml
	@$(INSTALL) lock

clean: ## remove what was installed and built here; never your data
	@rm -rf .venv .make static/vendor node_modules dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
