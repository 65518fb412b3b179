# `make demo` and `make test` set themselves up in .venv; nothing else is needed but Python 3.11+.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check board bench docs study table1 table2 table3 figure1 figure2 clean

# The main job on real MNIST: train against PGD, prune 90 % of the weights, fine-tune, attack; beside
# it the control, dense and trained for as long.
demo: .venv/ready
	$(BIN)/prunerob sweep --config configs/mnist_quick.yaml --amount 0,0.9 --jobs 2 \
		--folder lightning_logs/demo
	$(BIN)/prunerob report lightning_logs/demo

# Lint, types and the quick tests, a process of one thread for each core, up to eight. A process that
# dies ends them.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile \
		--max-worker-restart 0

# All tests, with the slow ones, and new examples for the property tests.
test-all: check
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile default

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All runs in TensorBoard, at http://localhost:6006.
board: .venv/ready
	$(BIN)/tensorboard --logdir lightning_logs

# The paper's tables and figures beside ours: an hour (table1) to a day (figure1) on two cores; table3
# and figure2, of CIFAR-10, want a GPU.
table1 table2 table3 figure1 figure2: .venv/ready
	$(BIN)/prunerob reproduce $@

# The study of docs/study.md: about ten minutes a network on one core; what lies in study/ is not run again.
study: .venv/ready
	for sweep in study/*.yaml; do $(BIN)/prunerob sweep $$sweep --jobs 2 || exit 1; done
	$(BIN)/prunerob report study/*/

# Speed, side by side with torchattacks, foolbox, pyautoattack and ART; a quarter of an hour on a quiet machine.
bench: .venv-bench/ready
	.venv-bench/bin/python -m benchmarks.speed

# The guide and the reference, in build/docs; built without the package's own dependencies.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/.venv-docs/bin:$$PATH" mkdocs build

# uv installs the set in about two minutes, pip in about three. Compiled, every command starts sooner by
# seconds, also where Python may not write bytecode itself.
.venv/ready: pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt,--editable '.[test$(comma)ray$(comma)export$(comma)executorch]')

# The peers have a place of their own: torchattacks wants old versions of what others use.
.venv-bench/ready: pyproject.toml benchmarks/constraints.txt
	$(call install,.venv-bench,benchmarks/constraints.txt,--editable '.[torchattacks$(comma)foolbox$(comma)pyautoattack$(comma)art]')

.venv-docs/ready: docs/constraints.txt
	$(call install,.venv-docs,docs/constraints.txt,--requirement docs/constraints.txt)

comma := ,

# Folder, constraints, what to install.
define install
	rm -rf $(1)
	if command -v uv >/dev/null; then \
		uv venv --quiet --python $(PYTHON) $(1) && \
		uv pip install --quiet --compile-bytecode --python $(1) --constraint $(2) $(3); \
	else \
		$(PYTHON) -m venv $(1) && \
		$(1)/bin/python -m pip install --quiet --constraint $(2) $(3); \
	fi
	touch $(1)/ready
endef

clean:
	rm -rf .venv .venv-bench .venv-docs build/docs .mypy_cache .ruff_cache .pytest_cache .hypothesis
