#!/usr/bin/env bash
# Writes the Python stubs of proto/ into a folder (default: the checkout itself, that is f2edge/v1/).  Needs grpcio-tools of the version in constraints.txt.
#   proto/generate.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(dirname "$here")}
python=${PYTHON:-python3}
mkdir -p "$out/f2edge/v1"
"$python" -m grpc_tools.protoc --proto_path="$here" --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" f2edge/v1/face.proto
for file in "$out"/f2edge/v1/face_pb2*.py*; do
    printf '# mypy: ignore-errors\n%s\n' "$(cat "$file")" >"$file"
done
