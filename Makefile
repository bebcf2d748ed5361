# Everything a fresh machine with Python >= 3.11 and Rust needs; nothing is installed outside this folder.
# Files that stand for finished steps live inside the environments: deleting .venv starts over.

PYTHON ?= python3
CARGO ?= cargo
BENCH_FLAGS ?=
SMOLLM2_FLAGS ?=

VENV := .venv
VENV_TORCH := .venv-torch
BIN := $(VENV)/bin
RUST_SOURCES := $(shell find rust -name target -prune -o \( -name '*.rs' -o -name '*.toml' \) -print) Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find python -name '*.py' -o -name '*.pyi')

# One interpreter for every build, so that cargo does not build the bindings anew for each.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- building ---------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.built ## Make .venv with rlmerge (release build) and everything its tests need

.PHONY: python-and-rust
python-and-rust:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@command -v $(CARGO) >/dev/null || { echo "Rust is needed: install it with rustup" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | python-and-rust
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group test 'maturin>=1.16,<2'
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(RUST_SOURCES) pyproject.toml | python-and-rust
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked
	@touch $@

.PHONY: wheel
wheel: $(VENV)/.wheel ## Build a wheel into dist/

$(VENV)/.wheel: $(VENV)/.installed $(RUST_SOURCES) $(PYTHON_SOURCES) pyproject.toml README.md
	rm -rf dist
	$(BIN)/maturin build --release --locked --interpreter $(BIN)/python --out dist
	@touch $@

# --- trying it out ----------------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup ## Unpack a base and six small experts, and merge two with TIES
	@$(BIN)/python scripts/make_demo_trio.py demo >/dev/null
	$(BIN)/rlmerge merge demo/rl-math demo/rl-code --base demo/base --method ties -o demo/merged --force
	@printf '%s\n' '' \
		'The merged model is in demo/merged, a complete Hugging Face folder; demo/merged/rlmerge.json says how it was made.' \
		'' \
		'Try next:' \
		'  source $(BIN)/activate' \
		'  rlmerge inspect demo/merged' \
		'  rlmerge conflict-report demo/rl-math demo/rl-code demo/rl-instruct --base demo/base' \
		'  rlmerge methods' \
		'  rlmerge merge demo/rl-math demo/rl-code --base demo/base --method dare_ties --density 0.3 --dry-run' \
		'  make smollm2                            a real model of 135 M parameters, and two experts of it'

.PHONY: smollm2
smollm2: $(VENV)/.gguf ## Fetch SmolLM2-135M-Instruct without torch, and make two experts of it
	$(BIN)/python scripts/fetch_smollm2.py --experts 2 $(SMOLLM2_FLAGS)

$(VENV)/.gguf: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet 'gguf>=0.17'
	@touch $@

# --- the study --------------------------------------------------------------------------------------------------------

STUDY ?= tiny-cpu

.PHONY: study
study: $(VENV_TORCH)/.rlmerge ## Run the study named by STUDY (tiny-cpu: about an hour on two cores); stopped, it goes on
	OMP_NUM_THREADS=1 $(VENV_TORCH)/bin/python study/run.py --config study/configs/$(STUDY).yaml

.PHONY: study-smoke
study-smoke: ## Run every stage of the study once, in minutes
	$(MAKE) study STUDY=smoke

# --- checking ---------------------------------------------------------------------------------------------------------

# rlmerge-py has no Rust tests: a test program of it would have to link libpython, which many machines lack.
.PHONY: test
test: setup ## Run all tests that need neither torch nor mergekit
	$(CARGO) test --workspace --exclude rlmerge-py --locked
	$(BIN)/python -m pytest tests --ignore=tests/interop --ignore=tests/parity

FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: ## Fuzz the parsers for FUZZ_SECONDS a target, from the corpus in rust/rlmerge-core/tests/corpus
	RLMERGE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --release --package rlmerge-core --locked --test mutations \
		-- --nocapture --test-threads 1
	RLMERGE_DIFFERENTIAL_ROUNDS=100000 $(BIN)/python -m pytest tests/hostile/test_differential.py --timeout 600

.PHONY: faults
faults: setup ## Make every fault of the catalogue, and write docs/faults.md (ten minutes; strace, and better as root)
	$(BIN)/python -m tests.faults.table --page docs/faults.md

.PHONY: kill-cycles
kill-cycles: setup ## Kill 300 runs of one merge at random moments, go on with it, compare, write docs/kill-cycles.md
	$(BIN)/python -m tests.faults.kill_cycles --cycles 300 --methods ties --megabytes 60 --seed 5 --page docs/kill-cycles.md

.PHONY: soak
soak: setup ## Merge 500 times in one process: memory, descriptors and threads must stay as they are
	$(BIN)/python -m tests.faults.soak --merges 500

.PHONY: fuzz-journals
fuzz-journals: ## Fuzz journals of stages and reports of outputs for a minute each
	RLMERGE_FUZZ_SECONDS=60 $(CARGO) test --release --package rlmerge-core --locked --test journal_mutations \
		-- --nocapture --test-threads 1

.PHONY: slow
slow: setup fuzz fuzz-journals soak faults kill-cycles ## Everything that takes minutes and needs no torch

.PHONY: test-torch
test-torch: $(VENV_TORCH)/.rlmerge ## Run the tests against transformers and mergekit, and the study's (downloads several GB once)
	$(VENV_TORCH)/bin/python -m pytest tests/interop tests/parity tests/study

$(VENV_TORCH)/.installed: pyproject.toml | python-and-rust
	$(PYTHON) -m venv $(VENV_TORCH)
	$(VENV_TORCH)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV_TORCH)/bin/python -m pip install --quiet --group test torch transformers mergekit==0.1.5 \
		trl matplotlib datasets accelerate peft reasoning-gym
	@touch $@

# The wheel, as users get it, and not the working tree.
$(VENV_TORCH)/.rlmerge: $(VENV_TORCH)/.installed $(VENV)/.wheel
	$(VENV_TORCH)/bin/python -m pip install --quiet --upgrade dist/*.whl
	$(VENV_TORCH)/bin/python -m pip install --quiet --force-reinstall --no-deps dist/*.whl
	@touch $@

# From the bindings themselves; built unoptimised, since a stripped library has nothing to read.
STUBS = VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin generate-stubs --quiet --out

.PHONY: stubs
stubs: setup ## Generate python/rlmerge/_core.pyi anew
	$(STUBS) python

.PHONY: docs
docs: setup ## Write what the build knows (methods, conflicts, errors, diagnostics, hostile files) into README.md and docs/
	$(BIN)/python scripts/write_method_tables.py
	$(BIN)/python scripts/write_conflict_tables.py
	$(BIN)/python scripts/write_error_table.py
	$(BIN)/python scripts/write_diagnostic_table.py
	$(BIN)/python -m tests.hostile.table
	$(BIN)/python scripts/write_test_counts.py

.PHONY: agreement
agreement: $(VENV_TORCH)/.rlmerge ## Compare every method with mergekit's, and write docs/agreement.md
	$(VENV_TORCH)/bin/python -m tests.parity.agreement

.PHONY: follow-docs
follow-docs: setup ## Do what docs/add-a-method.md says in a copy, build it, test the new method
	$(BIN)/python scripts/follow_add_a_method.py

.PHONY: lint
lint: setup ## Check formats, lints, types and stubs
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(STUBS) target/stubs
	diff python/rlmerge/_core.pyi target/stubs/rlmerge/_core.pyi
	MYPYPATH=python $(BIN)/python -m mypy.stubtest rlmerge._core

.PHONY: bench
bench: setup ## Measure start-up and whole merges of 1.1 B parameters (twenty minutes, 9 GB of disk; see benches/README.md)
	$(BIN)/python benches/python/startup.py
	$(BIN)/python benches/python/spine.py $(BENCH_FLAGS)

.PHONY: bench-methods
bench-methods: setup ## Measure every method on the same models (half an hour; with mergekit an hour)
	$(BIN)/python benches/python/all_methods.py $(BENCH_FLAGS)

.PHONY: bench-kernels
bench-kernels: ## Measure the kernels alone, in GB/s
	$(CARGO) bench --package rlmerge-core --locked

.PHONY: clean
clean: ## Delete what was built, downloaded environments included
	rm -rf $(VENV) $(VENV_TORCH) target dist demo
