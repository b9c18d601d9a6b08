#!/usr/bin/env bash
# Makes the virtual environment given (default: .venv) with Baton and everything that it needs, at
# the versions of constraints.txt and with the hashes of requirements.lock. PYTHON names the
# interpreter (default: python3), at least 3.11.5.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || {
    echo "Baton needs Python 3.11.5 or newer; '$python' is $("$python" --version 2>&1)." >&2
    echo "Name another one: make setup PYTHON=python3.12" >&2
    exit 1
  }
  "$python" -m venv "$venv" || {
    echo "'$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
fi
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
# Every file is checked against its hash, but for torch, whose right build depends on the machine.
pip --require-hashes --no-deps -r requirements.lock
pip -c constraints.txt torch
pip --no-deps --no-build-isolation -e .
