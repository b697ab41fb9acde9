# `make` lists what there is. It needs nothing but Python >= 3.11; what a target uses is installed into .venv first.
.DEFAULT_GOAL := help
.PHONY: help setup test lint demo bench docs fuzz clean
.SUFFIXES:

bin := .venv/bin
sources := src tests tools experiments benchmarks
ready := .venv/.ready

help:
	@echo "make setup  build .venv with this package and all it needs (again after a change of its requirements)"
	@echo "make test   style, types, doctests and tests"
	@echo "make lint   style and types only"
	@echo "make demo   train and evaluate on generated pictures, on the CPU, without downloads"
	@echo "make bench  measure speed and memory, on a GPU if there is one; writes benchmarks/results"
	@echo "make docs   build the documentation site, build/site; wrong links are errors"
	@echo "make fuzz   every reader against 10,000 damaged and hostile files; writes results/fuzz.json"
	@echo "make clean  remove caches and build products; .venv, data and runs stay"

setup: $(ready)

# Last, so that an interrupted installation is not taken for a finished one.
$(ready): setup.cfg pyproject.toml tools/setup.sh tools/constraints.txt tools/torchvision_cpu.py
	tools/setup.sh
	@touch $@

test: lint
	$(bin)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: $(ready)
	$(bin)/ruff check $(sources)
	$(bin)/ruff format --check $(sources)
	$(bin)/mypy

# DEMO=--record also keeps its summary and pictures under results
demo: $(ready)
	$(bin)/bestie-pl pipeline --config configs/shapes/pipeline.yaml --folder runs/demo --stages tags_refined full_refined
	$(bin)/python -m tools.demo $(DEMO)

# On a CPU wall-clock figures mean something only while nothing else runs.
bench: $(ready)
	$(bin)/python -m benchmarks

docs: $(ready)
	$(bin)/python -m tools.site
	$(bin)/zensical build --strict

# FUZZ="--inputs 100000 --seed 1" for more, or others
fuzz: $(ready)
	$(bin)/python -m tools.fuzz $(FUZZ)

clean:
	rm -rf build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests tools experiments benchmarks -name __pycache__ -prune -exec rm -rf {} +
