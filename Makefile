# make demo: the whole pipeline on this machine; make test: the test suite; make check: what CI runs.
# make test-gpu: the checks that need a CUDA device.
# make lock: newest versions into requirements.lock; make test-lowest: the fast tests on the lowest allowed versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu test-lowest check format lock clean

help:
	@sed -n '1,3p' Makefile | cut -c3-

# A half-made environment has no .installed, so an interrupted install is simply done again. The project is built with
# the setuptools of the pinned versions: nothing is fetched but these.
define installed
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(@D) || { echo "error: no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(@D)/bin/python -m compileall -q bench methods
	@touch $@
endef

$(VENV)/.installed: requirements.lock pyproject.toml
	$(installed)

$(LOWEST)/.installed: requirements-lowest.txt pyproject.toml
	$(installed)

install: $(VENV)/.installed

demo: install
	$(BIN)/python -m bench.sweep sweeps/demo.yaml --executor local

test: install
	$(BIN)/python -m pytest -n auto --dist loadgroup

# In under ten minutes on one card; the table goes into docs/gpu.md. pytest exits with 5 where all is skipped.
test-gpu: install
	PETL_BENCH_GPU_TESTS=write $(BIN)/python -m pytest tests/gpu -rs || [ $$? -eq 5 ]

# All but the demo and the Slurm clusters. Old releases call what newer ones below them deprecate: no error here.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -W ignore::DeprecationWarning --ignore tests/test_demo.py \
		--ignore tests/test_slurm_cluster.py --ignore tests/test_slurm_faults.py --ignore tests/test_status_cluster.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadgroup

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Both lists of versions, by a uv of its own. Releases of the last two weeks are left out: mirrors lag behind.
COMPILE := .venv-lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
	--exclude-newer '2 weeks' --annotation-style line --custom-compile-command 'make lock'

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(COMPILE) --constraint constraints.txt --output-file requirements.lock
	$(COMPILE) --resolution lowest-direct --output-file requirements-lowest.txt

clean:
	rm -rf $(VENV) $(LOWEST) .venv-lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache
