#!/usr/bin/env bash
# Generates the stubs of protos/ into the folder given (default: the tree itself).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-.}
python=${PYTHON:-python}
PATH="$(dirname "$(command -v "$python")"):$PATH"  # where protoc finds its mypy plugins
"$python" -m grpc_tools.protoc -Iprotos --python_out="$out" --mypy_out="quiet:$out" protos/baton/v1/*.proto
# Service stubs only for the files that define a service.
grep -l '^service ' protos/baton/v1/*.proto | xargs "$python" -m grpc_tools.protoc -Iprotos \
  --grpc_python_out="$out" --mypy_grpc_out="quiet:$out"
