# The verbs a person needs. `make` lists them; each prints what it does.
#
#   VENV=/path      the environment to make or use        (default: .venv)
#   PYTHON=...      the interpreter that makes it, 3.10+  (default: python3.11 or python3)
#   MMCV=compiled   mmcv with its own operators, compiled here, on torch 2.13; JOBS=n compiler processes

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
MMCV   ?= lite
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PINS   := $(if $(filter compiled,$(MMCV)),requirements/compiled,requirements)
REQS   := $(addprefix requirements/,torch.txt openmmlab.txt runtime.txt tests.txt) $(wildcard $(PINS)/*.txt)
STAMP  := $(VENV)/.mmext-env-$(MMCV)
EXTRAS := $(VENV)/.mmext-extras-$(MMCV)
CONFIG := configs/elsa_swin_t_maskrcnn_1x.py

ifeq ($(filter lite compiled,$(MMCV)),)
$(error MMCV=$(MMCV): expected lite or compiled)
endif

.PHONY: help env demo test test-all lint bench stacks docs docs-serve clean app
.DEFAULT_GOAL := help

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

env: $(STAMP)  ## make the environment: torch, OpenMMLab, this package (once: about 3 min; nothing is compiled)

$(STAMP): $(REQS) requirements/install.sh setup.py
	@echo "==> environment $(VENV)  (log: $(VENV)/install.log)"
	@mkdir -p $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.mmext-env-* $(VENV)/.mmext-extras-*
	@VENV=$(VENV) PINS=$(PINS) JOBS=$(JOBS) bash requirements/install.sh
	@touch $@
	@echo "==> environment ready: $(VENV)"

$(EXTRAS): $(STAMP) requirements/extras.txt
	@echo "==> optional parts (log: $(VENV)/install.log)"
	@$(PIP) --no-input install -q --no-compile -r requirements/extras.txt -c $(PINS)/torch.txt -c $(VENV)/libraries.txt >>$(VENV)/install.log 2>&1 \
	    || { tail -n 25 $(VENV)/install.log; exit 1; }
	@touch $@

demo: env  ## train, evaluate and draw ELSA-Swin-T Mask R-CNN on data made here (a few minutes on two cores)
	@echo "==> $(CONFIG) on the synthetic Shapes data"
	@$(BIN)/python tools/train.py $(CONFIG) --shapes --seed 0

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: env $(EXTRAS)  ## run the tests of every day (minutes): at least one of each claim
	@echo "==> tests"
	@$(PYTEST) -m 'not slow'

test-all: env $(EXTRAS)  ## run every test, those of the marker `slow` too
	@echo "==> every test"
	@$(PYTEST)

lint: env  ## check style and format with ruff
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

app: env $(EXTRAS)  ## serve a web page on this machine: trained models on your pictures
	@$(BIN)/python tools/demo_app.py

bench: env  ## time our networks on this CPU against mmdet's, mmpretrain's, timm's and torchvision's, with a chart
	@mkdir -p work_dirs
	@$(BIN)/python -m dev.benchmark --json work_dirs/benchmark.json --chart work_dirs/benchmark.png

stacks:  ## install and check every stack of docs/compatibility.md (an hour or more, 6 GB of disk at a time)
	@$(PYTHON) dev/stacks.py

docs: env $(EXTRAS)  ## build the documentation site into site/; docs-serve shows it at http://127.0.0.1:8000
	@echo "==> documentation"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site
	@echo "==> site/index.html"

docs-serve: env $(EXTRAS)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

clean:  ## remove caches and results (work_dirs, data/shapes); keeps the environment and your data
	@echo "==> removing caches, work_dirs and data/shapes"
	@rm -rf work_dirs data/shapes site build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
