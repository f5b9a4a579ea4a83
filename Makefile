# What a person types. `make help` lists it; everything here works on a machine with Python 3.11 and make alone.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# An index to take torch from. https://download.pytorch.org/whl/cpu spares gigabytes of CUDA where there is no GPU.
TORCH_INDEX ?=
# `make setup EXTRAS=vision` adds torchvision and timm, `EXTRAS=gpu` TensorRT and pycuda (docs/gpu.md).
EXTRAS ?=
export TORCH_INDEX EXTRAS

BIN := .venv/bin
DATA ?= data
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1
# How many processes `make test` is shared out to; each starts services of its own.
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo example serve test test-all lint types bench bench-train bench-serving bench-grid bench-trials bench-compression drills lock audit gpu-check clean

help: ## lists the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## makes .venv with everything in it; instant when it is there already (TORCH_INDEX=, EXTRAS=vision)
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11" >&2; exit 2; }
	@$(PYTHON) scripts/bootstrap.py

demo: setup ## the whole road on a real network in under 4 minutes: train, prune, compile, serve, measured
	@$(BIN)/python -m demo.run

example: setup ## writes ./example: the files that the README's curl lines send
	@$(BIN)/python -m demo.example

serve: setup ## runs the service at http://127.0.0.1:8000, data kept in ./data (others: PORT=, HOST=, DATA=, WORKERS=)
	@$(BIN)/enginesmith serve --host $(HOST) --port $(PORT) --data $(DATA) --workers $(WORKERS)

test: setup lint types ## what every change must pass (TESTERS=4 on a machine with more than 2 cores)
	@$(BIN)/python -m pytest -m "not slow" -n $(TESTERS) --dist loadfile

test-all: setup lint types ## everything, the demo included
	@$(BIN)/python -m pytest

lint: setup ## style, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup ## strict types
	@$(BIN)/mypy
	@$(BIN)/mypy -p demo

bench: bench-train bench-serving bench-grid bench-trials bench-compression ## every benchmark

bench-train: setup ## our training loop against a bare PyTorch loop
	@$(BIN)/python benchmarks/train_overhead.py

bench-serving: setup ## our service against Triton, MLServer, LitServe, BentoML, FastAPI (BENCH="--rounds 3")
	@$(BIN)/python benchmarks/serving.py $(BENCH)

bench-grid: setup ## a grid over a random forest, beside scikit-learn's own (BENCH="--rounds 3")
	@$(BIN)/python benchmarks/grid.py $(BENCH)

bench-trials: setup ## what a trial that trains costs beyond its epochs
	@$(BIN)/python benchmarks/trial_overhead.py

bench-compression: setup ## the closed loop beside what one could do by hand (BENCH="--tasks digits,mnist --seeds 0,1,2")
	@$(BIN)/python benchmarks/compression.py $(BENCH)

drills: EXTRAS = drills
drills: setup ## kills, floods, full disks, fuzzers: an hour; writes docs/drills.md (DRILL=kills for one, DRILLS=all for every pair)
	@DRILLS=$(DRILLS) DRILLS_REPORT=docs/drills.md $(BIN)/python -m pytest tests/drills$(if $(DRILL),/test_$(DRILL).py) -s

lock: EXTRAS = supply
lock: setup ## pins and hashes what the images install, deploy/locks: the versions that .venv has
	@$(BIN)/python scripts/lock.py

audit: EXTRAS = supply
audit: setup ## known holes in what the images install, and a bill of materials, build/sbom
	@$(BIN)/python scripts/audit.py

gpu-check: setup ## engines, speed, serving and memory on this GPU, in one table (BENCH="--networks resnet50")
	@$(BIN)/python -m benchmarks.gpu.check $(BENCH)

clean: ## removes what was built (.venv, .bench and ./data stay)
	rm -rf build dist example .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . \( -name .venv -o -name .bench \) -prune -o -name __pycache__ -type d -print | xargs rm -rf
	find . -maxdepth 2 -name '*.egg-info' -type d -not -path './.venv/*' -not -path './.bench/*' -print | xargs rm -rf
