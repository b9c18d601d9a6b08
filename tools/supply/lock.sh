#!/usr/bin/env bash
# Writes requirements.lock, every package of a developer's environment, and requirements/*.lock,
# those of each image: at the version that constraints.txt names, with the SHA-256 of each of its
# files on PyPI, for all platforms. `tools/supply/lock.sh DIRECTORY` writes elsewhere; UV names the
# uv to use.
#
# torch and what only its CUDA builds bring are left out: which build is right depends on the
# machine, and builds for CPUs come from an index of their own. Their versions stay pinned.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.}
by_machine=(torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti
  nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand
  nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink
  nvidia-nvshmem-cu13 nvidia-nvtx)
build=$(mktemp)
trap 'rm -f "$build"' EXIT
"${PYTHON:-python3}" - > "$build" <<'PYTHON'
import tomllib
from pathlib import Path

print("\n".join(tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"]))
print("editables")  # what hatchling asks for when it installs a work tree in place
PYTHON

lock() { # FILE, then what uv is to compile
  "${UV:-uv}" pip compile --constraints constraints.txt --universal --python-version 3.11.5 \
    --generate-hashes --no-header --no-annotate --quiet "${by_machine[@]/#/--no-emit-package=}" \
    --output-file "$out/$1" "${@:2}"
}

mkdir -p "$out/requirements"
lock requirements.lock pyproject.toml "$build" --extra dev
lock requirements/build.lock "$build"
lock requirements/base.lock pyproject.toml
for extra in router gateway kubernetes worker; do
  lock "requirements/$extra.lock" pyproject.toml --extra "$extra"
done
