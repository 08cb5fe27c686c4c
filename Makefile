# `make figures` and `make test` set up what they need in .venv and ask for nothing but Python 3.11
# or later and make.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
BIN := .venv/bin
EXPERIMENTS := $(notdir $(basename $(filter-out experiments/_%,$(wildcard experiments/*.py))))

# Parallel workers are deaf to Ctrl-C, and lose their streams to submitit: these run by themselves.
ALONE := tests/test_command_line.py tests/test_sweep_launchers.py tests/test_cluster.py

.PHONY: figures page test lint format slow lock clean $(EXPERIMENTS)

figures: .venv/ready  ## every experiment to its figure and its verdict, and the page of them all
	$(MAKE) --no-print-directory --jobs $$(nproc 2>/dev/null || echo 2) --keep-going --output-sync=target \
		$(EXPERIMENTS); status=$$?; $(MAKE) --no-print-directory page && exit $$status

page: .venv/ready  ## results/index.html and results/lesson.html, from what is on disk
	$(BIN)/python -m gradlab.page

$(EXPERIMENTS): .venv/ready
	$(BIN)/python experiments/$@.py

test: lint  ## lint, format check, type check and all tests
	$(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0 $(foreach file,$(ALONE),--ignore $(file))
	$(BIN)/python -m pytest $(ALONE)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

format: .venv/ready  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

upgrade: UPGRADE := --upgrade
lock upgrade: .venv/ready  ## resolve the dependencies by hash: what can stay stays, or the newest of all
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev \
		$(UPGRADE) --generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock

.venv/ready: requirements.lock pyproject.toml
	$(if $(PYTHON),,$(error Python 3.11 or later was not found; install it, or say make PYTHON=...))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
