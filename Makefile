# Set-up, tests and the main job. A fresh machine needs Python >= 3.10 with venv, make and a C++ compiler.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check
CPP := $(shell find csrc benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Stamps: what was done once is done again only if what it depends on is newer.
TORCH_STAMP := $(VENV)/.$(subst =,-,$(subst >,,$(TORCH)))
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built

# A process per core and one more, since tests of several ranks wait for each other; no more than their memory allows: each
# imports torch. Who has no work left takes half of what
# another has before it. ARGS come later and win: ARGS="-n0 -s" runs in one process and shows what is printed.
PARALLEL := -n $(shell expr `getconf _NPROCESSORS_ONLN` + 1) --maxprocesses 8 --dist worksteal

.PHONY: help train test test-all torchtitan compat wheels ptx bench docs gpu-check lint format doctor wheel clean

help:
	@echo "make train    pretrain a small GPT on real text, beside the unfused baseline (about 3 minutes on 2 cores)"
	@echo "              Ctrl-C saves; go on with: make train ARGS='--resume runs/train'"
	@echo "              other options (--data FILE_OR_DIR, --steps N, ...): make train ARGS=--help"
	@echo "make test     run the tests, on all cores, each on every backend (8 minutes on 2 cores)"
	@echo "make test-all the same in all combinations, with more random numbers and longer runs"
	@echo "make torchtitan   the tests of its integration, in $(VENV)-torchtitan: it brings many packages (minutes)"
	@echo "make compat   conformance, checkpoints, ranks and Triton on torch 2.9.1 to 2.14.1: hours, and gigabytes for each"
	@echo "make wheels   a wheel for each Python at hand (PYTHONS='...'), installed from an index and tried: minutes"
	@echo "make ptx      the conformance suite on the CUDA kernels as nvcc emitted them, run on the CPU: minutes"
	@echo "make bench    measure speed beside other optimizers and the memory's own: minutes; results in runs/bench"
	@echo "make gpu-check   on a machine with a GPU: its tests, sanitizers and benchmarks, in 8 minutes; with the"
	@echo "              $(PYTHON) at hand, no network; results in \$$OUT or gpu-check-out"
	@echo "make docs     build the documentation as a site in build/site"
	@echo "make lint     check style, types and the rules of csrc/"
	@echo "make format   put Python and C++ in shape"
	@echo "make doctor   show what was detected, and why each backend is on or off"
	@echo "make wheel    sdist and wheel into dist/; with the CUDA module if nvcc is found (GREEDYLR_FUSED_CUDA=0: without)"
	@echo "make clean    remove what was built and .venv; runs/ stays"
	@echo "The first of them sets up $(VENV). Variables: PYTHON=$(PYTHON) TORCH='$(TORCH)' VENV=$(VENV) ARGS='...'"

# The first torch that is installed decides its build (CPU, CUDA): alone, before anything that depends on it.
$(TORCH_STAMP):
	@echo "setting up $(VENV): $(TORCH) (minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$(TORCH)"
	@touch $@

$(INSTALLED): $(TORCH_STAMP) pyproject.toml requirements-dev.txt
	@echo "installing greedylr_fused and what its tests, example and checks need; compiling csrc/ (minutes, once)"
	@$(PIP) "setuptools>=77" "pybind11>=3" ninja
	@$(PIP) --no-build-isolation --editable ".[test,examples,docs,dev]" --requirement requirements-dev.txt
	@touch $@

$(BUILT): $(INSTALLED) setup.py $(wildcard csrc/*.py) $(CPP)
	@echo "building csrc/"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# A run that was stopped is not replaced: it has a checkpoint, and no summary yet.
STOPPED := $(if $(wildcard runs/train/checkpoint.pt),$(if $(wildcard runs/train/summary.json),,stopped))
ANEW := $(if $(STOPPED),,--overwrite)
# What is ours to say, unless ARGS says otherwise; a folder of the user's own choice is not overwritten.
TRAIN := $(if $(findstring --optimizer,$(ARGS)),,--compare) $(if $(findstring --out,$(ARGS)),,--out runs/train $(ANEW))

train: $(BUILT)
	@$(BIN)/python examples/pretrain.py $(if $(findstring --resume,$(ARGS)),,$(TRAIN)) $(ARGS)

test: $(BUILT)
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: $(BUILT)
	@$(BIN)/python -m pytest $(PARALLEL) --exhaustive $(ARGS)

# Of versions in ARGS, or all: make compat ARGS=2.9.1
compat: $(BUILT)
	@$(BIN)/python -m benchmarks.compat $(ARGS)

# Those that are found of: PYTHONS="python3.12 /opt/python3.13/bin/python"
PYTHONS ?= python3.10 python3.11 python3.12 python3.13

wheels: $(BUILT)
	@$(BIN)/python -m pytest -n 0 -m wheels tests/project
	@$(BIN)/python -m benchmarks.wheels $(PYTHONS) $(ARGS)

# It pins other packages to versions that other tests do not want, so it is no part of requirements-dev.txt.
TITAN := $(VENV)-torchtitan

$(TITAN)/.installed: $(BUILT)
	@echo "setting up $(TITAN): torchtitan beside $(VENV) (minutes, once)"
	@$(PYTHON) -m venv $(TITAN)
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > `$(TITAN)/bin/python -c \
		"import sysconfig; print(sysconfig.get_path('purelib'))"`/main.pth
	@$(TITAN)/bin/pip install -qq --disable-pip-version-check "torchtitan==0.3.0"
	@touch $@

torchtitan: $(TITAN)/.installed
	@PYTHONPATH=. $(TITAN)/bin/python -m pytest -n 0 --timeout 300 tests/integrations tests/project/test_readme.py -k torchtitan $(ARGS)

# Of random control steps, which take 5 ms each there, fewer than by default.
PTX := -p ptx.plugin --exhaustive --backend cuda --control-steps 5000 --timeout 600

ptx: $(BUILT)
	@PYTHONPATH=tests $(BIN)/python -m pytest $(PARALLEL) $(PTX) tests/conformance $(ARGS)

bench: $(BUILT)
	@$(BIN)/python -m benchmarks $(if $(findstring --out,$(ARGS)),,--out runs/bench) $(ARGS)

docs: $(BUILT)
	@$(BIN)/mkdocs build --strict

gpu-check:
	@$(PYTHON) -m benchmarks.gpu_check $(ARGS)

lint: $(BUILT)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/clang-format --dry-run -Werror $(CPP)
	@! grep -nE '#include *[<"](torch|ATen|c10)/' $(CPP) || { echo "csrc/ must not include torch headers"; exit 1; }

format: $(BUILT)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

doctor: $(BUILT)
	@$(BIN)/python -m greedylr_fused doctor

wheel: $(INSTALLED)
	@$(BIN)/python -m build --no-isolation $(ARGS)

clean:
	rm -rf $(VENV) $(TITAN) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f greedylr_fused/*.so greedylr_fused/_build.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
