#!/usr/bin/env bash
# Builds the wheel, installs it without torch into a new environment outside the checkout, and runs the runtime's tests there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet build pytest pytest-timeout hypothesis
"$work/venv/bin/python" -m build --wheel --outdir "$work/dist" "$root" >/dev/null
"$work/venv/bin/pip" install --quiet "$work"/dist/*.whl
if "$work/venv/bin/python" -c "import torch" 2>/dev/null; then
    echo "wheel test: torch is installed; the runtime must not bring it" >&2
    exit 1
fi
mkdir "$work/run"
cp -r "$root/tests" "$work/run/tests"
cp "$root/pyproject.toml" "$work/run/"
cd "$work/run"
# Files that need torch cannot even be collected here; those of the runtime say so with a marker.
mapfile -t files < <(grep -rl --include="test_*.py" "pytest.mark.runtime" tests)
"$work/venv/bin/pytest" -m "runtime and not long and not gpu" "${files[@]}"
