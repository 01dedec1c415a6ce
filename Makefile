# Three commands, each complete from a fresh clone with Python 3.11 or newer:
#   make run    train the quickstart experiment, render its report, print the scores
#   make lab    open JupyterLab at the notebook that says what to open
#   make test   check the export, styles and types, run every notebook and every test
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/summarization/quickstart
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run lab test setup

run: setup
	@mkdir -p $(RUN)
	papermill nbs/train.ipynb $(RUN)/train.ipynb -p model kobart -p name quickstart
	@korlab report $(RUN)

lab: setup
	jupyter lab nbs/lab.ipynb

test: setup
	nbdev_export
	@git diff --exit-code --stat -- korlab || { echo "korlab/ is out of step with nbs/: run nbdev_export and commit both"; exit 1; }
	ruff check
	mypy
	export KORLAB_RUNS=$$(mktemp -d) && nbdev_test --n-workers 2 --file-re '^(?!train\.ipynb)' && rm -r "$$KORLAB_RUNS"
	pytest

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mkdir -p .venv/etc/ipython && echo 'c.IPKernelApp.log_level = 40' > .venv/etc/ipython/ipython_kernel_config.py
	@touch $@
