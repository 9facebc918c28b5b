# The verbs a person needs. `make` lists them; each prints what it does.
#
#   VENV=/path    the environment to make or use          (default: .venv)
#   PYTHON=...    the interpreter that makes it, 3.11+    (default: python3.11 or python3)
#   JOBS=n        compiler processes for mmcv             (default: all cores)

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
REQS   := $(filter-out requirements/extras.txt requirements/onedl.txt, $(wildcard requirements/*.txt))
STAMP  := $(VENV)/.mmext-env
EXTRAS := $(VENV)/.mmext-extras
CONFIG := configs/elsa_swin_t_maskrcnn_1x.py

.PHONY: help env demo test lint bench docs docs-serve clean app
.DEFAULT_GOAL := help

help:  ## list the verbs
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

env: $(STAMP)  ## make the environment: torch, OpenMMLab, this package (once: 6-10 min, most of it compiling mmcv)

$(STAMP): $(REQS) setup.py
	@echo "==> environment $(VENV)  (log: $(VENV)/install.log)"
	@mkdir -p $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@VENV=$(VENV) JOBS=$(JOBS) bash requirements/install.sh
	@touch $@
	@echo "==> environment ready: $(VENV)"

$(EXTRAS): $(STAMP) requirements/extras.txt
	@echo "==> optional parts (log: $(VENV)/install.log)"
	@$(PIP) --no-input install -q -r requirements/extras.txt $(foreach file,$(REQS),-c $(file)) >>$(VENV)/install.log 2>&1 \
	    || { tail -n 25 $(VENV)/install.log; exit 1; }
	@touch $@

demo: env  ## train, evaluate and draw ELSA-Swin-T Mask R-CNN on data made here (a few minutes on two cores)
	@echo "==> $(CONFIG) on the synthetic Shapes data"
	@$(BIN)/python tools/train.py $(CONFIG) --shapes --seed 0

test: env $(EXTRAS)  ## run every test
	@echo "==> tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: env  ## check style and format with ruff
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

app: env $(EXTRAS)  ## serve a web page on this machine: trained models on your pictures
	@$(BIN)/python tools/demo_app.py

bench: env  ## time our networks on this CPU against mmdet's, mmpretrain's, timm's and torchvision's, with a chart
	@mkdir -p work_dirs
	@$(BIN)/python tools/benchmark.py --json work_dirs/benchmark.json --chart work_dirs/benchmark.png

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
