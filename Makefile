# Everything here needs Python 3.11 or newer and nothing else; the first target makes its own environment in .venv.
# PYTHON=/path/to/python make test   uses a particular interpreter.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# Without that index the default one is asked for this version: mirrors that hold a CPU build hold this one.
TORCH_CPU_FALLBACK := torch==2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of commands, each of which would compile the package anew where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-full test-scale check pipeline bench gpu-report kernels lint lock
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1@\2/p' Makefile | awk -F@ '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(STAMP)  ## about 5 minutes on 2 CPU cores: prepare text, train, resume, validate, show what came out
	@$(BIN)/python -m cramming.demo

test: $(STAMP)  ## the test suite without the full grids
	@$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not full and not scale and not network"

test-full: $(STAMP)  ## every test that needs no internet, full grids included
	@$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not network"

test-scale: $(STAMP)  ## laws of several ranks with more than two of them, killed ranks, long streams; one test at a time
	@$(BIN)/python -m pytest -q -m "scale and not network"

check: $(STAMP)  ## a clone checks itself: structure, configs, and two tiny models pretrained, fine-tuned and scored
	@$(BIN)/python -m pytest -q -x -m "not full and not scale and not network" tests/test_structure.py tests/test_config.py
	@set -eu; for arch in bert_tiny mosaic_tiny; do \
	    $(BIN)/python pretrain_bert.py name=check_$$arch experiment=test arch=$$arch resume=false; \
	    $(BIN)/python eval.py name=check_$$arch eval=glue_test resume=false; \
	    $(BIN)/python eval.py name=check_$$arch eval=task_test resume=false; \
	done

EXPERIMENT := demo_pipeline
pipeline: $(STAMP)  ## install and run a pipeline: make pipeline EXPERIMENT=demo_pipeline
	@$(BIN)/python pipeline.py experiment=$(EXPERIMENT)

bench: $(STAMP)  ## training steps: share of the limit, and speed beside transformers; close what else runs
	@$(BIN)/python benchmarks/bench.py

gpu-report: $(STAMP)  ## on a GPU machine: its kernels, its tests, all benchmarks, one dated report (25 minutes)
	@$(BIN)/python benchmarks/gpu_report.py

kernels: $(STAMP)  ## compile the CUDA submodule for all targets; needs nvcc, or pip install '.[kernels]'
	@$(BIN)/python -m cramming.kernels.build

lint: $(STAMP)  ## ruff, its formatter and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock:  ## bring poetry.lock up to date with pyproject.toml (needs poetry 2)
	@poetry lock
	@poetry check --lock

# The stamp is written last: an interrupted installation starts over, and a newer pyproject.toml installs again.
$(STAMP): pyproject.toml
	@set -eu; \
	python=""; \
	for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3.14 python3 python; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        python=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	    exit 2; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$($$python --version)"; \
	    rm -rf $(VENV); \
	    $$python -m venv $(VENV) || { \
	        echo "error: $$python cannot make virtual environments; on Debian and Ubuntu install python3-venv" >&2; \
	        exit 2; \
	    }; \
	fi; \
	log=$(VENV)/install.log; : >$$log; \
	install() { \
	    $(BIN)/python -m pip install "$$@" >>$$log 2>&1; \
	}; \
	if [ "$$(uname -s)" = Linux ] && ! { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then \
	    echo "no NVIDIA GPU: installing the CPU build of torch"; \
	    if $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' \
	            $(TORCH_CPU_INDEX)/torch/ >>$$log 2>&1 \
	        && install --index-url $(TORCH_CPU_INDEX) 'torch>=2.11,<2.14'; then :; \
	    else \
	        echo "$(TORCH_CPU_INDEX) cannot be used: taking $(TORCH_CPU_FALLBACK) from the default index"; \
	        install '$(TORCH_CPU_FALLBACK)' || { tail -n 20 $$log >&2; exit 1; }; \
	    fi; \
	fi; \
	echo "installing the project and what it depends on, one to two minutes (details: $$log)"; \
	install --editable '.[dev,onnx,sweep,s3,cluster]' || { tail -n 20 $$log >&2; exit 1; }; \
	touch $(STAMP)
