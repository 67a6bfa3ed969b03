# The whole workflow: `make train`, `make test`, `make lint`. Everything lives in .venv.
PYTHON ?= python3
PRESET ?= egg-laptop
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find workers/ops/native -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name '*.inc') CMakeLists.txt

.PHONY: install train test lint sanitize amx aarch64 wheel local-cluster bench chaos noise-step-experiments clean

# Training needs little of what the tests need, which have PyTorch, a type checker and more.
install: $(VENV)/installed

$(VENV)/installed: EXTRAS := dev
$(VENV)/trains: EXTRAS := plot
$(VENV)/installed $(VENV)/trains: pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(VENV)/trains $@

train: $(VENV)/trains
	$(BIN)/es-service train $(PRESET)

# Two processes share the tests (tests/conftest.py says how): those that measure time expect a core of their own.
test: install
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The native kernels alone: sanitizers, the AMX code on emulated tiles, aarch64 under qemu
# (Debian: apt-get install g++-aarch64-linux-gnu qemu-user).
sanitize amx aarch64: install
	PYTHON=$(abspath $(BIN)/python) tests/native/$@.sh

# The wheel is for the Python of $(VENV) and for Linux machines with a C library like this one's or newer.
# dist then holds this wheel alone, the pins of what it needs, and what installs them on the nodes of a cluster.
wheel: $(VENV)/trains
ifneq ($(origin PYTHON),file)
	@test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || { echo "$(VENV) has $$($(BIN)/python -V), and the wheel" \
	  "would be for it: make wheel PYTHON=$(PYTHON) VENV=.venv-wheel"; exit 1; }
endif
	rm -rf dist && mkdir dist && cp constraints.txt cluster/setup.sh dist
	$(BIN)/pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir dist .

# Several Ray nodes on this machine, until Ctrl-C; NODES=4 for more.
local-cluster: $(VENV)/trains
	PATH=$(abspath $(BIN)):$$PATH cluster/local.sh $(NODES)

bench: install
	$(BIN)/python -m benchmarks.cpu --quick

# Faults at random against a run on a local Ray cluster, then any interleaving of the state machine's events: minutes. The
# seed is printed; `make chaos SEED=7 SECONDS=300` repeats its schedule.
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
SECONDS ?= 180
chaos: install
	SEED=$(SEED) CHAOS_SECONDS=$(SECONDS) $(BIN)/python -m pytest -s tests/chaos
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest tests/unit/test_generation.py --timeout 0

# The runs of docs/noise-step-experiments.md that its results lack, then its tables and plots.
noise-step-experiments: install
	$(BIN)/python -m benchmarks.noise_step tune
	$(BIN)/python -m benchmarks.noise_step run
	$(BIN)/python -m benchmarks.noise_step report

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
