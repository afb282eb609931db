# `make setup` (run by the others when .venv is missing), `make demo`, `make test`, `make lint`, `make bench`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What is developed with; what users may have is in pyproject.toml.
TENSORFLOW ?= 2.21
# Keep TensorFlow's start-up notes out of what these commands print.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help setup demo test test-quick test-thorough campaign test-kernels test-cuda \
  wheel test-wheel test-matrix lint bench bench-peers bench-training bench-scaling \
  bench-distribution docs clean

help:
	@echo "make setup   make .venv, install the package with its extras and compile its ops"
	@echo "make demo    train a click model with stock Keras and with tf_slipstream, in two minutes,"
	@echo "             and compare, with a report"
	@echo "             (DATA=PATH: a Criteo .tsv, .tsv.gz or .parquet; ARGS='--help' for options)"
	@echo "make test    run the tests under Keras 3 and tf_keras, in 10 to 15 minutes on two cores"
	@echo "make test-quick  a part of them from each part of the package, in 2 minutes"
	@echo "make test-thorough  what make test leaves out: whole runs, builds, processes that fail"
	@echo "make test-cuda  check the CUDA kernels; without a GPU on emulated threads alone"
	@echo "make campaign  faults, floods and hostile files for an hour, resumed where it was stopped"
	@echo "             (ARGS='--minutes 10 --only kills')"
	@echo "make wheel   build dist/*.whl, for every TensorFlow that is supported"
	@echo "make test-wheel   install it beside the oldest and the newest, without a compiler"
	@echo "make test-matrix  run the core of the tests under each (ARGS='--tests tests': all)"
	@echo "make lint    check style"
	@echo "make bench   time the embedding step against stock Keras, tf_keras and the memory's limit"
	@echo "make bench-peers     the same against PyTorch, FBGEMM and TFRA, in their own environments"
	@echo "make bench-training  time whole training steps, PyTorch's too where bench-peers has been"
	@echo "make bench-scaling   time against rows, lookups, dims, skew, bags, tables, threads; a plot"
	@echo "make bench-distribution  bytes and step times of replicas and parameter servers, against stock Keras"
	@echo "make docs    build the documentation in build/site/, its links checked, its tables made anew"
	@echo "make clean   remove .venv and what was built"

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "Python 3.10 to 3.13 is needed; this is " + sys.version.split()[0] + ". Choose one with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "cmake>=3.20" ninja "tensorflow==$(TENSORFLOW).*" "tf_keras==$(TENSORFLOW).*"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python examples/dlrm.py --report results/demo $(if $(DATA),--data "$(DATA)") $(ARGS)

# Two tests at a time: the machine that this is made for has two cores. tests/thorough.py says what is
# left to test-thorough.
PYTEST := $(BIN)/python -m pytest -n 2
test: $(READY) test-kernels
	$(PYTEST) --dist worksteal -m "not thorough" $(ARGS)
	TF_USE_LEGACY_KERAS=1 $(PYTEST) --dist worksteal -m "not thorough" $(ARGS)

# Keras 3 alone.
QUICK := ops/test_apply_rows.py ops/test_settle_rows.py ops/test_live_slices.py \
  update_rules/test_update_rules.py update_rules/test_conservation.py test_optimizer.py \
  test_embedding.py test_collection.py test_first_step.py test_architecture.py \
  policy/test_policy.py policy/test_sleep.py policy/test_equals_plain_training.py test_saving.py \
  test_export.py export/test_tracker.py delta/test_apply.py distribute/test_replicas.py \
  selection/test_selector.py callbacks/test_skip_guard.py
test-quick: $(READY)
	$(PYTEST) --dist worksteal -m "not thorough" $(addprefix tests/,$(QUICK)) $(ARGS)

test-thorough: $(READY) test-cuda
	$(PYTEST) --dist loadfile -m thorough $(ARGS)
	TF_USE_LEGACY_KERAS=1 $(PYTEST) --dist loadfile -m thorough $(ARGS)

# The memory of each of its processes is bounded; results/campaign has what was tried.
campaign: $(READY)
	$(BIN)/python -m tests.reliability.campaign $(ARGS)

test-kernels:
	sh custom_ops/tests/run.sh

# The CUDA kernels on emulated threads; and by nvcc, where it is: compiled, linked and, on a GPU, checked.
test-cuda:
	sh custom_ops/tests/run_emulated.sh
	if command -v nvcc >/dev/null; then \
	  ARCHS="$(or $(CUDAARCHS),75 80 86 90)" sh custom_ops/harness/run.sh check || [ $$? = 77 ]; \
	else echo "test-cuda: nvcc was not found; the CUDA kernels were not compiled"; fi

wheel: $(READY)
	$(BIN)/python tools/build_wheel.py $(ARGS)

test-wheel: $(READY)
	$(BIN)/python tools/matrix.py --tensorflow 2.18 2.21 --tests

test-matrix: $(READY)
	$(BIN)/python tools/matrix.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'custom_ops/*.cc' 'custom_ops/*.h' 'custom_ops/*.cu' 'custom_ops/*.cuh' 'tests/*.c')

bench: $(READY)
	$(BIN)/python benchmarks/embedding_step.py $(ARGS)

# The peers need other versions of NumPy and TensorFlow than ours.
build/peers/.ready: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet -r $<
	build/peers/bin/python -m pip install --quiet --no-deps torchrec==1.8.0
	touch $@

# TFRA has no release for a Python after 3.11; without one its results say that it was left out.
build/tfra/.ready: benchmarks/requirements-tfra.txt
	for python in $(PYTHON) python3.11 python3.10; do \
	  $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' \
	    2>/dev/null && $$python -m venv build/tfra && break; \
	done; \
	if [ -d build/tfra ]; then \
	  build/tfra/bin/python -m pip install --quiet -r $< || rm -rf build/tfra; \
	fi
	mkdir -p build/tfra && touch $@

bench-peers: $(READY) build/peers/.ready build/tfra/.ready
	$(BIN)/python benchmarks/embedding_step.py --subjects slipstream limit keras3 tf_keras \
	  tf_keras_legacy torch fbgemm torchrec tfra $(ARGS)

bench-training: $(READY)
	$(BIN)/python benchmarks/training_step.py $(ARGS)

bench-scaling: $(READY)
	$(BIN)/python benchmarks/embedding_step.py --grid rows lookups dims skew bags tables threads \
	  --output results/scaling.jsonl --subjects slipstream limit tf_keras_legacy fbgemm $(ARGS)
	$(BIN)/python benchmarks/plot.py results/scaling.jsonl --output results/scaling.svg

bench-distribution: $(READY)
	$(BIN)/python benchmarks/distribution.py $(ARGS)

docs: $(READY)
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/picture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist
