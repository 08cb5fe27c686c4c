# `make figures` and `make test` set up what they need in .venv and ask for nothing but Python 3.11
# or later and make. `make help` lists what there is.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
BIN := .venv/bin
EXPERIMENTS := $(notdir $(basename $(filter-out experiments/_%,$(wildcard experiments/*.py))))

# Parallel workers are deaf to Ctrl-C, and lose their streams to submitit: these run by themselves,
# each in a pytest of its own and two at once, as they wait more than they compute.
ALONE := tests/sweeping/test_cluster.py tests/running/test_command_line.py tests/sweeping/test_sweep_launchers.py

# What an edit to the library breaks first. Left out for their length: the product's singular values,
# sweeps, browsers and whole experiments.
QUICK := $(addprefix tests/,arithmetic models measuring theory experiment test_imports.py test_laws.py) \
	$(foreach long,product_svd test_spectra.py test_certificate.py,--ignore tests/measuring/$(long))

TESTED_WITH := pytest hypothesis mpmath equinox hydra-joblib-launcher

# What the oldest versions that pyproject.toml allows may break: each library is used by one of these.
OLDEST := $(addprefix tests/,arithmetic models experiment theory/test_products.py measuring/test_jacobians.py \
	measuring/test_clipping_training.py running/test_hydra.py sweeping/test_from_python.py page/test_page.py)

PYTEST := $(BIN)/python -m pytest
# In the order of tests/conftest.py: what takes longest first.
PARALLEL := -n auto --dist loadscope --no-loadscope-reorder --max-worker-restart 0

# Minutes for each of the three parts of `make verify`, which so ends within the hour however many
# experiments there are: tests that have not begun by then are first the next time, and fresh seeds,
# and then mutations, share theirs among all (gradlab/calibration/workers). `make seeds MINUTES=inf`
# draws all 200 seeds of each, and `make seeds SCALE=full` has a record of its own.
MINUTES := 15
SCALE := smoke

.PHONY: help figures page site docs quick test oldest zoo rivals verify long seeds power lint format lock upgrade clean $(EXPERIMENTS)

help:  ## this list
	@sed -n 's/^\([a-z ]*\):[^#]*## /\1: /p' Makefile | awk -F': ' '{printf "make %-13s %s\n", $$1, $$2}'
	@echo "make <experiment>  one of: $(EXPERIMENTS)"

figures: .venv/ready  ## every experiment to its figure and its verdict, and the page of them all
	$(MAKE) --no-print-directory --jobs $$(nproc 2>/dev/null || echo 2) --keep-going --output-sync=target \
		$(EXPERIMENTS); status=$$?; $(MAKE) --no-print-directory page && exit $$status

page: .venv/ready  ## results/index.html and results/lesson.html, from what is on disk
	$(BIN)/python -m gradlab.page

docs: .venv/ready  ## the documentation: site/docs, strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

site: docs  ## a folder that any host serves: both pages, the results that they link to, and the documentation
	$(BIN)/python -m gradlab page --site site

$(EXPERIMENTS): .venv/ready
	$(BIN)/python experiments/$@.py

quick: lint  ## lint, types, and the tests that matter most while editing
	$(PYTEST) $(PARALLEL) -m "not slow and not verify" $(QUICK)

# Most programs of the tests run once: to optimise one takes longer. `make verify` has what is
# compiled as its user compiles it.
test: lint  ## lint, types, and all tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) $(PARALLEL) $(foreach file,$(ALONE),--ignore $(file))
	$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target $(ALONE:%=alone/%)

alone/%: .venv/ready
	$(PYTEST) -p no:cacheprovider $*

oldest: .venv/ready  ## the tests that matter, with the oldest versions that pyproject.toml allows
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(PYTHON) -m venv --clear .venv-oldest
	$(BIN)/uv pip compile pyproject.toml --all-extras --resolution lowest-direct --quiet \
		--python .venv-oldest/bin/python --no-emit-index-url --no-annotate --output-file .venv-oldest/oldest.txt
	$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --requirements .venv-oldest/oldest.txt \
		--constraints .venv-oldest/oldest.txt $(TESTED_WITH) "setuptools>=80"
	$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --no-deps --no-build-isolation --editable .
	.venv-oldest/bin/python -m pytest -p no:cacheprovider -W default -m "not slow and not verify" $(OLDEST)

zoo: .venv/ready  ## models that nobody here wrote, for the audit's tests: their own lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r tests/zoo.lock

rivals: .venv/ready  ## libraries whose clips the matrix has models of: their own lock, some gigabytes
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r tests/rivals.lock
	$(PYTEST) -m verify tests/measuring/test_rivals.py

verify: .venv/ready  ## what is long and need not run each time: `make long seeds power`, within the hour
	$(MAKE) --no-print-directory --keep-going long seeds power

long: zoo  ## the tests marked verify; their record is results/verify.md
	$(PYTEST) $(PARALLEL) -m verify --minutes $(MINUTES) \
		--record results/verify.md tests docs

seeds: .venv/ready  ## how often chance breaks each claim, on fresh seeds: results/seeds.md
	$(BIN)/python -m gradlab.calibration seeds --minutes $(MINUTES) --scale $(SCALE)

power: .venv/ready  ## which mutations of the library the claims notice: results/power.md
	$(BIN)/python -m gradlab.calibration power --minutes $(MINUTES) --scale $(SCALE)

lint: .venv/ready  ## style, format, types, dead code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# A key that only a figure reads, from the data's attributes, is no dead code.
	@sed -n 's/^\([a-z_]*\):.*/_.\1/p' configs/*.yaml > .keys.py
	$(BIN)/vulture gradlab hydra_plugins experiments benchmarks tests .keys.py

format: .venv/ready  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

upgrade: UPGRADE := --upgrade
lock upgrade: .venv/ready  ## the lock by hash, keeping what can stay, or all anew
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --group docs \
		$(UPGRADE) --generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock
	$(BIN)/uv pip compile tests/zoo.in --no-deps --python-version 3.11 $(UPGRADE) --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet --output-file tests/zoo.lock
	$(BIN)/uv pip compile tests/rivals.in --constraints requirements.lock --python-version 3.11 $(UPGRADE) \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
		--quiet --output-file tests/rivals.lock

.venv/ready: requirements.lock pyproject.toml
	$(if $(PYTHON),,$(error Python 3.11 or later was not found; install it, or say make PYTHON=...))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:  ## remove .venv and what tools left
	rm -rf .venv .venv-oldest site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
