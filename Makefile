# The front door. `make` alone lists what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := .tools/bin/uv
READY  := $(VENV)/.ready

# Settings of a sweep; each can be given on the command line, none is needed. They reach the shell through the environment,
# as they were typed: neither make nor the shell reads a `$$` or a quote in them.
RESULTS ?= results
SETTINGS := INTERVENTION STUDY PRESET RESULTS SIZES SEEDS STEPS SET WANDB TENSORBOARD TUNE_RATE SEARCH HALVING PACK UNTIL WRITE_STUDY
$(foreach name,$(SETTINGS),$(if $(value $(name)),$(eval override $(name) := $$(value $(name)))$(eval export $(name))))

.DEFAULT_GOAL := help
.PHONY: help setup sweep report compare leaderboard dashboard test test-quick test-slow lint bench lock clean

help:  ## list the targets
	@echo 'zslx: can a training method relieve zero-sum learning without scale?'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  make sweep INTERVENTION=pcgrad [PRESET=smoke|laptop|verdict|gpu|paper] [SIZES="0.1M 0.2M"] [SEEDS=3]'
	@echo '             [STEPS=2000] [RESULTS=results] [SET="pcgrad.groups=domain optim.lr=1e-3"] [WANDB=offline]'
	@echo '             [TUNE_RATE=1 or SEARCH=16 [HALVING=1]] [PACK=auto|off|32] [TENSORBOARD=1] [UNTIL=decided|settled]'
	@echo '             [WRITE_STUDY=mine.toml]'
	@echo '  make sweep STUDY=sweeps/studies/verdict.toml [RESULTS=results]'

setup: $(READY)  ## create or update the environment in .venv

sweep: $(READY)  ## compare an intervention with the baseline: make sweep INTERVENTION=pcgrad
	@test -z "$$STUDY" || test -z "$$INTERVENTION" || { echo 'make sweep: give INTERVENTION or STUDY'; exit 2; }
	@$(BIN)/zslx sweep "$${STUDY:-$${INTERVENTION:-pcgrad}}" $${PRESET:+--preset "$$PRESET"} --results "$$RESULTS" \
	    $${SIZES:+--sizes "$$SIZES"} $${SEEDS:+--seeds "$$SEEDS"} $${STEPS:+--steps "$$STEPS"} $${SET:+--set "$$SET"} \
	    $${WANDB:+--wandb "$$WANDB"} $${TUNE_RATE:+--tune-rate} $${SEARCH:+--search "$$SEARCH"} $${HALVING:+--halving} \
	    $${TENSORBOARD:+--tensorboard} $${PACK:+--pack "$$PACK"} $${UNTIL:+--until "$$UNTIL"} $${WRITE_STUDY:+--write-study "$$WRITE_STUDY"}

report: $(READY)  ## rebuild the newest table and HTML report in RESULTS from the records alone; WANDB=online: in wandb, too
	@$(BIN)/zslx report "$$RESULTS" $${WANDB:+--wandb "$$WANDB"}

leaderboard: $(READY)  ## verify the archives in leaderboard/ and write docs/leaderboard.md and .html
	@$(BIN)/zslx leaderboard leaderboard --out docs

compare: $(READY)  ## print the comparison table of RESULTS
	@$(BIN)/zslx compare "$$RESULTS"

dashboard: $(READY)  ## show the searches of RESULTS in Optuna's dashboard, on this machine alone
	@$(BIN)/zslx dashboard "$$RESULTS"

# A file to a process, so that what its tests share is made once; files with long tests first (tests/conftest.py). Three
# processes on two cores: a test that starts Ray spends a third of its time waiting.
SPREAD := -n 3 --dist loadfile --no-loadscope-reorder

test: lint  ## what CI runs: every test but the slow ones (under 15 minutes)
	$(BIN)/pytest $(SPREAD) -m "not slow"

test-quick: $(READY)  ## the tests to run while working (under 3 minutes)
	$(BIN)/pytest $(SPREAD) -m "not slow and not medium"

test-slow: $(READY)  ## all kill rounds, calibration and simulations (under 60 minutes)
	$(BIN)/pytest -n 2 -m slow

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

bench: $(READY)  ## measure the cost of the gradient engine (benchmarks/README.md names the other measurements)
	$(BIN)/python -m benchmarks.gradients

lock: $(UV)  ## choose new exact versions for requirements.lock
	$(UV) pip compile pyproject.toml --all-extras --universal --no-annotate --no-header --no-emit-index-url --quiet \
	    | grep -vE '^(torch|setuptools|(nvidia|cuda|triton)[a-z0-9-]*)( |=|$$)' > requirements.lock

clean:  ## remove the environment and every cache inside the repository (results stay)
	rm -rf $(VENV) .tools build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(UV):
	@echo 'zslx: fetching the installer (uv) ...'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zslx needs Python 3.11 or newer; set PYTHON=python3.x")'
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools uv

# torch first, and alone: a wheel that pip is configured to find locally, else the build that suits this
# machine (CPU or CUDA), else the registry's. Everything else comes at the locked versions.
$(READY): pyproject.toml requirements.lock | $(UV)
	@echo 'zslx: setting up .venv (about a minute the first time) ...'
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@links=$$($(PYTHON) -m pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'/\1/p" | head -n 1); \
	 links=$${PIP_FIND_LINKS:-$$links}; export VIRTUAL_ENV=$(CURDIR)/$(VENV) UV_LINK_MODE=copy; \
	 if $(BIN)/python -c 'import torch' 2>/dev/null; then :; \
	 elif ls $$links/torch-2.13.0*.whl >/dev/null 2>&1; then \
	      $(UV) pip install --quiet --find-links $$links -c requirements.lock torch==2.13.0; \
	 else $(UV) pip install --quiet --torch-backend=auto -c requirements.lock torch==2.13.0 \
	      || $(UV) pip install --quiet -c requirements.lock torch==2.13.0; fi; \
	 $(UV) pip install --quiet -c requirements.lock -e '.[sweep,hf,torchjd,dev]' torch==2.13.0
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@
