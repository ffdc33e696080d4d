# make setup   install everything into .venv (pinned versions, Detectron2, the C++ operators, this package)
# make demo    predict with the shipped model, train on synthetic cells, predict, write output/demo/report.html
#              (QUICK=1: a shortened run)
# make test    ruff and pytest
# make test-gpu   what needs a CUDA device
# make docs    the guides as a site: output/docs/index.html
# make clean   remove what was made

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') setup.py

DEMO := output/demo
DEMO_OPTIONS :=
ifdef QUICK
DEMO := output/demo_quick
DEMO_OPTIONS := train.max_iter=24 train.checkpointer.period=12 dataset.num_train=40 dataset.num_val=6
endif

.PHONY: setup demo test test-gpu generalist docs clean
.DELETE_ON_ERROR:

setup: $(VENV)/ready $(VENV)/extension

# Packages. `setting-up` stays where a set-up was interrupted: what it left cannot be trusted and is made anew. A folder
# .venv that was not made here has no such file and is never removed.
$(VENV)/ready: constraints.txt pyproject.toml tools/install_detectron2.py tools/detectron2_fixes.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version). Set PYTHON=python3.11."; exit 1; }
	@command -v g++ > /dev/null || [ -n "$$MASKRCNN_PLUS_NO_EXT" ] || \
		{ echo "g++ is missing: install it (Debian: apt install g++), or set MASKRCNN_PLUS_NO_EXT=1."; exit 1; }
	@if [ -e $(VENV)/setting-up ]; then echo "Repairing an interrupted set-up."; rm -rf $(VENV); fi
	@if [ -s $@ ]; then mv $@ $(VENV)/setting-up; fi
	@if [ ! -d $(VENV) ]; then mkdir $(VENV); echo "made by make" > $(VENV)/setting-up; fi
	@echo "Setting up $(VENV): PyTorch ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch torchvision setuptools wheel ninja
	@echo "Setting up $(VENV): this package and what it needs ..."
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	$(RUN) tools/install_detectron2.py --constraint constraints.txt
	@if [ -e $(VENV)/setting-up ]; then mv $(VENV)/setting-up $@; fi
	@touch $(VENV)/extension $@

$(VENV)/extension: $(VENV)/ready $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

demo: setup
	$(RUN) tools/demo.py --output $(DEMO) $(DEMO_OPTIONS)

test: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --maxprocesses 4 --dist worksteal

test-gpu: setup
	@$(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "No CUDA device is available here."; exit 1; }
	$(RUN) -m pytest -m gpu

# The shipped model of nuclei, from the folders that docs/models.md names: make generalist DATA=datasets
generalist: setup
	$(RUN) tools/train_net.py --config-file nuclei/generalist --resume dataset.root=$(DATA)
	$(RUN) tools/train_net.py --config-file nuclei/generalist_finish --resume dataset.root=$(DATA)
	$(RUN) tools/ship_weights.py --weights output/nuclei_generalist_finish/model_best.pth --name nuclei

docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:
	@if [ -s $(VENV)/ready ] || [ -e $(VENV)/setting-up ]; then rm -rf $(VENV); fi
	rm -rf build dist output/demo output/demo_quick output/docs *.egg-info .pytest_cache .ruff_cache maskrcnn_plus/_C*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
