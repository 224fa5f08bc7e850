# Two commands from nothing but Python 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-slow lint bench bench-gpu clean

demo: .venv/installed
	$(BIN)/moco demo

# Two processes, a thread each: two that use all cores would wait for one another. Bytecode is kept, of the tests too,
# where the environment forbids it as well: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# Each process begins with half of the files, so that what the tests of a file share is made once.
test: .venv/installed-dev
	$(PYTEST) --dist worksteal -m "not slow"

# A file at a time, so that what its tests share is made once, and the full-sized ones, whose memory two together would
# not find, follow one another.
test-slow: .venv/installed-dev
	$(PYTEST) --dist loadfile -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Images of one's own: make bench IMAGES="--images FOLDER --cifar npz:PATH"
bench: .venv/installed-bench
	$(BIN)/python -m bench $(IMAGES)

# On a machine with a GPU, in under 9 minutes: bench/results/gpu-DEVICE.json and .md
bench-gpu: .venv/installed-bench
	$(BIN)/python -m bench.gpu

# A stamp, so that a second `make` starts at once and a change of the requirements installs again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
