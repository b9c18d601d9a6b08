#!/usr/bin/env bash
# Makes an environment (default: .venv-sglang) in which unmodified SGLang runs without a GPU, with
# what Baton needs beside it. About 2.6 GB and five minutes. README.md here gives the reasons.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
venv=${1:-.venv-sglang}
python=${PYTHON:-python3}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

install() {
  "$venv/bin/python" -m pip install --quiet --no-warn-conflicts --disable-pip-version-check \
    -c "$here/constraints.txt" "$@"
}

install torch
# These name CUDA builds of each other as what they need.
install --no-deps sglang torchvision triton nixl nixl-cu13 xgrammar
install -r "$here/requirements.txt"
install --no-deps "$here/shim"
SGLANG_USE_CPU_ENGINE=1 "$venv/bin/python" -c 'import sglang; sglang.Engine' 2>/dev/null || {
  echo "SGLang cannot be imported in $venv" >&2
  exit 1
}
