# `make demo` and `make test` set themselves up in .venv; nothing else is needed but Python 3.11+.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check board clean

# The main job on real MNIST: train against PGD, prune 90 % of the weights, fine-tune, attack.
demo: .venv/ready
	@echo "Training and two tests take about five minutes on two cores with bf16, longer without."
	$(BIN)/prunerob fit --config configs/mnist_quick.yaml
	$(BIN)/prunerob test --ckpt_path before_pruning
	$(BIN)/prunerob test

# Lint, types and the quick tests.
test: check
	$(BIN)/python -m pytest

# All tests, with the slow ones.
test-all: check
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All runs in TensorBoard, at http://localhost:6006.
board: .venv/ready
	$(BIN)/tensorboard --logdir lightning_logs

# uv installs the set in about a minute, pip in about three.
.venv/ready: pyproject.toml constraints.txt
	rm -rf .venv
	if command -v uv >/dev/null; then \
		uv venv --quiet --python $(PYTHON) .venv && \
		uv pip install --quiet --python .venv --constraint constraints.txt --editable '.[test]'; \
	else \
		$(PYTHON) -m venv .venv && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'; \
	fi
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
