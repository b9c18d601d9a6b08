"""Where the public traces and measurements are on this machine, if they are."""

import os
from pathlib import Path

from baton.config import ENV_TRACES

VARIABLE = ENV_TRACES
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "traces"


def folder() -> Path | None:
    """Returns the folder that BATON_TRACES names, or shared/traces beside the repository."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else _BESIDE
    return path if path.is_dir() else None


def dataset(name: str) -> Path | None:
    """Returns a file of that folder by its relative name, or None when it is not there."""
    root = folder()
    path = None if root is None else root / name
    return path if path is not None and path.is_file() else None
