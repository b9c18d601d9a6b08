#!/usr/bin/env bash
# Makes the virtual environment given (default: .venv) with Baton and everything that it needs, at
# the versions of constraints.txt. PYTHON names the interpreter (default: python3), at least 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Baton needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1)." >&2
    echo "Name another one: make setup PYTHON=python3.12" >&2
    exit 1
  }
  "$python" -m venv "$venv" || {
    echo "'$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  -c constraints.txt -e ".[dev]"
