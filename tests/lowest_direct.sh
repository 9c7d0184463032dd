#!/usr/bin/env bash
# Installs the wheel with the lowest versions that pyproject.toml allows of what it names itself, and runs help, quick start and the runtime's tests.
#   PYTHON_VERSION=3.10 RESOLUTION=lowest-direct tests/lowest_direct.sh      RESOLUTION=highest takes the newest
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
uv=${UV:-uv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$uv" build --quiet --wheel --out-dir "$work/dist" "$root"
"$uv" venv --quiet --python "${PYTHON_VERSION:-3.10}" "$work/venv"
"$uv" pip install --quiet --python "$work/venv/bin/python" --resolution "${RESOLUTION:-lowest-direct}" -r "$root/pyproject.toml"
"$uv" pip install --quiet --python "$work/venv/bin/python" --no-deps "$work"/dist/*.whl  # whose dependencies would not be direct ones
"$uv" pip install --quiet --python "$work/venv/bin/python" pytest pytest-timeout hypothesis
"$uv" pip list --python "$work/venv/bin/python"
mkdir "$work/run"
cp -r "$root/tests" "$root/pyproject.toml" "$work/run/"
cd "$work/run"
"$work/venv/bin/f2edge" --help >help.txt
"$work/venv/bin/f2edge" generate "an old man with a full gray beard and a cap" --seed 7 -o face.png
"$work/venv/bin/f2edge" analyze face.png --quiet >attributes.txt
"$work/venv/bin/f2edge" verify-image face.png
mapfile -t files < <(grep -rl --include="test_*.py" "pytest.mark.runtime" tests)
"$work/venv/bin/python" -m pytest -m "runtime and not long and not gpu" ${TESTS:-"${files[@]}"}
