# The two commands of the README, and the few others that development needs.  Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= a young woman with long curly red hair, red lipstick and eyeglasses

.PHONY: face test test-long lint proto wheel-test clean

# A face on a fresh machine: runtime dependencies only, no torch.
face: $(VENV)/.runtime
	$(BIN)/f2edge generate "$(PROMPT)" --seed 4 -o face.png

# Everything a change must pass: linters, types and the fast tests.
test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not long and not gpu"

test-long: $(VENV)/.dev
	$(BIN)/pytest -m "not gpu"

# The built wheel, in an environment without torch, passes the runtime's tests.
wheel-test:
	PYTHON=$(PYTHON) tests/wheel_test.sh

# The committed gRPC stubs, from proto/.
proto: $(VENV)/.dev
	PYTHON=$(abspath $(BIN))/python proto/generate.sh

lint: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build dist *.egg-info face.png
