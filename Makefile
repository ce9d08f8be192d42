# Every target makes or reuses the environment in .venv first (setup_env.sh).
#   make test PYTHON=python3.11 VENV=.venv-3.11     another interpreter
#   make quickstart EXTRA=cuda13                    an accelerator: tpu, cuda12, cuda13
#   make test ARGS='-k packing'                     further arguments of the command

VENV ?= .venv
ARGS ?=
export VENV PYTHON EXTRA EPA_PIP TORCH

PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

EVERYDAY := not parity and not alpaca_eval and not exhaustive and not endurance and not tpu_compile

.PHONY: help env quickstart notebooks test exhaustive parity alpaca_eval lint format smollm2
.PHONY: endurance tpu_compile lock clean

help:
	@echo 'make env         make or update .venv, which every other target does first'
	@echo 'make quickstart  train a small model with DPO and EPA in a world of known rewards'
	@echo 'make notebooks   run experiments/notebooks and keep what they print and draw'
	@echo 'make test        run the tests'
	@echo 'make exhaustive  every loss with every reference, and real processes (minutes)'
	@echo 'make endurance   kill, move and soak runs, also of several processes (half an hour)'
	@echo 'make parity      compare with PyTorch and transformers (installs torch)'
	@echo 'make alpaca_eval score our files with the alpaca_eval package (installs it)'
	@echo 'make tpu_compile plan runs for TPUs that are not here (installs libtpu)'
	@echo 'make lint        ruff and mypy'
	@echo 'make format      rewrite the code as ruff formats it'
	@echo 'make smollm2     fetch SmolLM2-135M-Instruct into models/'
	@echo 'make lock        resolve setup.cfg anew into constraints.txt'
	@echo 'make clean       remove environments and caches, never runs or models'

env:
	@./setup_env.sh

quickstart: env
	$(PY) -m epa_jax.quickstart $(ARGS)

notebooks: env
	$(PY) -m experiments.notebooks.execute $(ARGS)

test: env
	$(PYTEST) -m '$(EVERYDAY)' $(ARGS)

exhaustive: env
	$(PYTEST) -m exhaustive $(ARGS)

endurance: env
	$(PYTEST) -m endurance $(ARGS)

parity:
	@./setup_env.sh parity
	$(PYTEST) -m parity tests/parity $(ARGS)

alpaca_eval:
	@./setup_env.sh alpaca_eval
	$(PYTEST) -m alpaca_eval tests/alpaca_eval $(ARGS)

tpu_compile:
	@./setup_env.sh plan
	$(PYTEST) -m tpu_compile tests/tpu_compile $(ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: env
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

smollm2: env
	PATH="$$PATH:$(CURDIR)/.venv-uv/bin" $(PY) -m epa_jax.formats.fetch_smollm2 models $(ARGS)

lock:
	@./setup_env.sh lock

clean:
	rm -rf .venv .venv-* build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find epa_jax benchmarks experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
