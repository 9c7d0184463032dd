# The two commands of the README, and the few others that development needs.  Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= auto
PROMPT ?= a young woman with long curly red hair, red lipstick and eyeglasses

.PHONY: face own test test-slow test-long lint docs lock audit sbom proto wheel-test lowest-direct clean

# A face on a fresh machine: runtime dependencies only, no torch.
face: $(VENV)/.runtime
	$(BIN)/f2edge generate "$(PROMPT)" --seed 15 -o face.png

# A model of your own faces: DATA is a folder of pictures with captions, or a table of them (docs/train-your-own.md).
OWN ?= own
own: $(VENV)/.dev
	test -n "$(DATA)" || { echo "give your pictures: make own DATA=folder"; exit 2; }
	$(BIN)/python -m export cache --data "$(DATA)" --out "$(OWN)/tokens" $(CACHE)
	$(BIN)/python -m export train unified --tokens "$(OWN)/tokens" --out "$(OWN)/unified" $(TRAIN)
	$(BIN)/python -m export onnx --unified "$(OWN)/unified" --tokens "$(OWN)/tokens" --out "$(OWN)/bundle" $(EXPORT)

# Everything a change must pass: linters, types, the documentation site and the fast tests.
test: $(VENV)/.dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow and not long and not gpu and not browser"

# The tests of seconds: servers under attack, trainings in several processes, every form of a graph.
test-slow: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "slow and not long and not gpu and not browser"

test-long: $(VENV)/.dev
	$(BIN)/pytest -m "not gpu and not browser"

# The built wheel, in an environment without torch, passes the runtime's tests.
wheel-test:
	PYTHON=$(PYTHON) tests/wheel_test.sh

# The lowest versions that pyproject.toml allows, with the oldest Python: install, quick start, the runtime's tests.  Needs a network.
lowest-direct: $(VENV)/.dev
	$(BIN)/pip install --quiet "uv>=0.8"
	UV=$(abspath $(BIN))/uv tests/lowest_direct.sh

# The documentation site, in site/; open site/index.html.  A broken link or an unknown name fails.
docs: $(VENV)/.dev
	if [ -x $(BIN)/zensical ]; then $(BIN)/zensical build --strict --clean; else echo "the documentation needs Python 3.11 or later"; fi

# Versions and hashes of everything that development installs, except PyTorch (CONTRIBUTING.md says why).
lock: $(VENV)/.dev
	$(BIN)/pip install --quiet "uv>=0.8"
	echo torch | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes \
	    --no-annotate --custom-compile-command "make lock" --extra dev --constraint constraints.txt --excludes - pyproject.toml \
	    --output-file requirements-dev.lock

	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes \
	    --no-annotate --custom-compile-command "make lock" --constraint constraints.txt pyproject.toml --output-file deploy/requirements.lock

# Known vulnerabilities of what the container and development install; needs a network.
audit: $(VENV)/.dev
	$(BIN)/pip install --quiet "pip-audit>=2.7"
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement deploy/requirements.lock
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement requirements-dev.lock

# A CycloneDX list of what the container installs, in sbom.json.
sbom: $(VENV)/.dev
	$(BIN)/pip install --quiet "cyclonedx-bom>=5"
	$(BIN)/cyclonedx-py requirements deploy/requirements.lock --pyproject pyproject.toml --mc-type application \
	    --output-reproducible --output-file sbom.json

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
	rm -rf $(VENV) build dist site *.egg-info face.png sbom.json
