# Two commands do everything: `make demo` runs the product on real film data, `make test` runs all tests.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
FAISS := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PYTEST_WORKERS ?= 3
# Every process of the product would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test check format bench bench-stream docs clean chaos stack-get stack-up stack-down

help:           ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/.installed  ## make .venv with everything in it

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"freshrank needs Python 3.11, this is {sys.version}"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(FAISS),text,test]'
	@touch $@

demo: install   ## the main job on real data: events in, a release trained, a fresh list out
	$(BIN)/freshrank demo $(ARGS)

test: install stack-get  ## every test, on real servers where they can be had
	@# A file stays together (its servers and fitted models are made once), in the order of the folders: the longest come first.
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: install stack-get  ## 200,000 events through processes that are killed and paused; CHAOS_SEED=7 for another plan
	$(BIN)/python -m pytest -p no:xdist -m nightly -s tests/chaos $(ARGS)

stack-get:      # Debian packages and jars of the servers; where they cannot be had, pytest says which suites did not run
	@infra/stack get || true

stack-up:       ## Kafka, Redis and PostgreSQL on loopback, without containers; `infra/stack env` says how to use them
	@infra/stack up $(ARGS)

stack-down:     ## end them; ARGS=--wipe forgets their data
	@infra/stack down $(ARGS)

check: install  ## style, types, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd infra/bench && MYPYPATH=../.. ../../$(BIN)/mypy --config-file ../../pyproject.toml *.py
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -p no:xdist tests/test_house.py

format: install ## let ruff tidy up
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: install  ## the measured figures: a table and build/bench.json
	$(BIN)/python infra/bench/run.py $(ARGS)

bench-stream: install  ## the same on Kafka, Redis and PostgreSQL: build/bench-stream.json; ARGS=--soak: the long run, too
	$(BIN)/python infra/bench/stream.py $(ARGS)

docs: install   ## write docs/settings.md anew
	$(BIN)/freshrank settings --markdown > docs/settings.md

clean:          ## remove what was built (not the data of an instance)
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
