# Two commands on a fresh machine: `make quickstart` and `make test`. Each makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: quickstart test lint help extras wheel clean

quickstart: $(VENV)/.train
	$(BIN)/hf-vq quickstart --output quickstart --overwrite

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hf_vq hf_vq_cli.py

# A thread for each of two processes; files go in their order, since those of few tests are the longest.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What `hf-vq VERB --help` prints is kept in files: after a change of options.
help: $(VENV)/.dev
	$(BIN)/python -c "import hf_vq_cli; hf_vq_cli.write_help()"

# Every extra can be installed beside the others, in the versions of constraints.txt.
EXTRAS := $(shell sed -n '/optional-dependencies/,/^$$/s/^\([a-z]*\) = .*/\1/p' pyproject.toml | paste -sd,)
extras: $(VENV)/.dev
	$(BIN)/pip install --quiet --dry-run -c constraints.txt ".[$(EXTRAS)]"

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

# On Linux without an NVIDIA driver a CPU build of torch saves gigabytes; where none is to be had, the ordinary wheel.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
		$(BIN)/pip install --retries 1 --timeout 15 --extra-index-url https://download.pytorch.org/whl/cpu "torch==$(TORCH)+cpu" \
		|| { echo "no CPU build of torch $(TORCH) here: taking the ordinary wheel"; $(BIN)/pip install "torch==$(TORCH)"; }; \
	else $(BIN)/pip install "torch==$(TORCH)"; fi
	@touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -c constraints.txt -e ".[train]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info quickstart
