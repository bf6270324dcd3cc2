# gewu: `make demo` and `make test` do everything by themselves, from an empty checkout on.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TOPIC  ?= dft
# SG15 pseudopotentials (UPF) for `make bench TOPIC=dft`; the benchmark says so and skips when the folder is absent.
PSEUDO ?= ../shared/data/dft/sg15_pbe
# `make bench TOPIC=md`: where bench.md.peers puts LAMMPS, OpenMM and a GROMACS built here; folder with LAMMPS' Cu_u3.eam.
PEERS      ?= bench/md/work/peers
POTENTIALS ?= ../shared/data/md/eam
# Real text for examples/ingest-docs.toml.
DOCUMENTS  ?= .cache/documents

# One thread a process unless the caller says otherwise: gewu sets its own threads from the job, and two pools never meet.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# mpirun refuses root and more ranks than cores without these (containers, CI).
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export OMPI_MCA_rmaps_base_oversubscribe := 1

.PHONY: help demo documents test test-slow check format bench targets drift scaling clean
help:
	@echo "make demo          bands of silicon from first principles, and a page that shows them"
	@echo "make test          all tests but the slow ones;  make test-slow: those too"
	@echo "make check         format, lint, types, generated docs"
	@echo "make bench TOPIC=dft   measure against the peer, write bench/dft/latest.json and docs/performance.md; TOPIC=md, ops, data or train likewise"
	@echo "make drift | scaling   molecular dynamics: energy drift over 100,000 steps; speed by atoms and ranks (half an hour each)"
	@echo "make targets       objects of every benchmarked kernel for five processors, run under qemu, and for GPUs (10 minutes)"
	@echo "make documents     Debian's manual pages and books and Python's documentation (60 MB), for examples/ingest-docs.toml"
	@echo "make format | clean"

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made. Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# $(call debian,PROGRAM,PACKAGES,WHAT FOR): install PACKAGES when PROGRAM is missing and this is root on Debian, else say what is skipped.
define debian
@command -v $(1) >/dev/null 2>&1 || { \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
    echo "installing $(2) for $(3)"; \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
  else false; fi; } || echo "$(1) is missing: $(3) will be skipped (Debian and Ubuntu: apt-get install $(2))"
endef

demo: $(STAMP)
	$(BIN)/gewu try silicon

test: $(STAMP)
	$(call debian,mpirun,openmpi-bin,the tests with several ranks)
	$(call debian,chromium,chromium,the picture tests of the report)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(call debian,mpirun,openmpi-bin,the tests with several ranks)
	$(call debian,chromium,chromium,the picture tests of the report)
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layers.py tests/unit/test_budget.py
	$(BIN)/python tools/make_performance.py --check
	$(BIN)/python tools/make_operators.py --check
	$(BIN)/python tools/make_data_scale.py --check
	$(BIN)/python tools/make_scaling.py --check

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(if $(filter dft,$(TOPIC)),$(call debian,pw.x,quantum-espresso libopenblas0-pthread,the comparison with pw.x))
	$(if $(filter md,$(TOPIC)),$(call debian,gmx,gromacs,the comparison with GROMACS))
	$(if $(filter md,$(TOPIC)),$(BIN)/python -m bench.md.peers $(PEERS) || echo "a peer could not be made")
	$(if $(filter ops data train,$(TOPIC)),$(BIN)/python -m bench.$(TOPIC).peers bench/$(TOPIC)/work/peers || echo "a peer could not be made")
	$(BIN)/python -m bench.run $(TOPIC) --pseudo $(PSEUDO) --peers $(if $(filter ops data train,$(TOPIC)),bench/$(TOPIC)/work/peers,$(PEERS)) --potentials $(POTENTIALS)
	$(BIN)/python tools/make_performance.py
	$(BIN)/python tools/make_operators.py
	$(BIN)/python tools/make_data_scale.py
	$(BIN)/python tools/make_scaling.py

targets: $(STAMP)
	$(call debian,qemu-aarch64,qemu-user,objects for other processors)
	$(BIN)/python -m bench.ops.peers --cross bench/ops/work/cross || echo "the cross compiler could not be installed"
	$(BIN)/python -m bench.ops.targets
	$(BIN)/python tools/make_operators.py

documents:
	$(PYTHON) tools/fetch_documents.py $(DOCUMENTS)

drift scaling: $(STAMP)
	$(call debian,mpirun,openmpi-bin,speed by ranks)
	$(BIN)/python -m bench.md.$@
	$(BIN)/python tools/make_performance.py

clean:
	rm -rf $(VENV) .cache build dist .pytest_cache .ruff_cache .mypy_cache bench/*/work *.result
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
