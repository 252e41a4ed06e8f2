# The two commands of a fresh machine are `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

# tests run side by side: more threads each would only wait for one another
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.PHONY: demo test lint slow bench docs claims clean

demo: $(VENV)/.runtime
	@echo "demo: samples CIFAR-10 images from the shipped model under four guides and compares them; two to four minutes on 2 cores"
	$(BIN)/fairlead compare --model cifar10 \
		--guide none --guide "cfg(2)" --guide "cfg(4)" --guide "cfg(4) | apg(r=2.5, beta=-0.5)" \
		-n 160 --steps 32 --sampler dpmpp_2m_sde --out demo

test: lint
	$(TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

slow: $(VENV)/.installed
	$(TESTS) -m slow

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed
	$(BIN)/sphinx-build -n -W docs docs/_build/html

claims: $(VENV)/.installed
	$(BIN)/fairlead claims --record

clean:
	rm -rf build dist demo docs/_build docs/methods .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# What the package needs, and beyond that what developing it needs. The stamps make an install
# happen once for each state of the two files.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev,docs]"
	@touch $(VENV)/.runtime $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
