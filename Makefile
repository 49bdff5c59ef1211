# make setup | demo | test | notebooks | matrix | faults | check | clean.  Needs Python 3.11 or newer and a package registry, nothing else.
#
#   make PYTHON=python3.12 setup          another interpreter
#   make TORCH_INDEX_URL=... setup        PyTorch from an index of its own (the README names the CPU-only one);
#                                         without it pip's own configuration decides
#   make WORKERS=8 test                   tests side by side; each worker has cores of its own, or shares one

PYTHON ?= python3
TORCH_INDEX_URL ?=
# Files go to workers in their order: the slow ones come first that way, and quick unit tests fill the end.
# Three, because two keep two cores busy for 77 % of the time only: tests wait for what they have killed.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml when everything is installed, so that a second run installs nothing.
STAMP := $(VENV)/.installed

.PHONY: help setup demo test notebooks matrix faults faults-full check clean

help:
	@echo "make setup   virtual environment in $(VENV) with the project and its tools"
	@echo "make demo    fine-tune BERT on real reviews: the README's first command"
	@echo "make test    all tests"
	@echo "make notebooks   execute the notebooks and write their outputs anew: five minutes"
	@echo "make matrix  every recipe with every adapter: 2 processes equal 1, resumed runs equal whole ones, copies the built-in"
	@echo "make faults  kills, damage, full disks, malformed and hostile input: at most 20 minutes; faults-full: hours"
	@echo "make check   ruff and mypy"
	@echo "make clean   remove everything that make made; runs/ and the model cache stay"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older or missing. Try: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 2; }
	@# An environment without pip is the half that is left when Debian's python3-venv is missing: make it again.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { rm -rf $(VENV); echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(if $(TORCH_INDEX_URL),$(BIN)/python -m pip install torch torchvision --index-url $(TORCH_INDEX_URL))
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

# The environment's folder goes first on PATH, so that the line is the one that a user types.
demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" accelerate launch finetune/run.py --recipe bert_cls

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

notebooks: $(STAMP)
	$(BIN)/python -m tests.integration.notebooks

# Goes on where it was stopped; the record is tests/matrix/results.json.
matrix: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.matrix

# Both go on where they were stopped; the records are in tests/integration/faults/results.
faults: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.integration.faults --size small

faults-full: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.integration.faults --size full

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find finetune recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
