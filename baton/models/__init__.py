"""Where models are: the project's own default model, or any local directory."""

import hashlib
from pathlib import Path

from baton.errors import StartupError

DEFAULT_MODEL = "baton-tiny"
"""Ships with Baton, made by tools/train_model.py."""

_REQUIRED = ("config.json", "tokenizer.json")


def model_dir(model: str) -> Path:
    """Returns the directory of a model given by the default's name or by a path.

    Raises StartupError when there is no such directory or a file that every model needs is
    missing from it.
    """
    path = Path(__file__).parent / model if model == DEFAULT_MODEL else Path(model).expanduser()
    if not path.is_dir():
        raise StartupError(
            f"model {model!r}: no such directory; set `model` to {DEFAULT_MODEL!r} or to the path "
            "of a directory with config.json, tokenizer.json and safetensors"
        )
    for name in _REQUIRED:
        if not (path / name).is_file():
            raise StartupError(f"model {model!r}: {name} is missing from {path}")
    return path


def model_name(model: str) -> str:
    """Returns the name by which requests address the model: the directory's own name."""
    return Path(model).expanduser().name


def tokenizer_digest(directory: Path) -> str:
    """Returns the SHA-256 of the tokenizer: workers and routers must agree on it."""
    return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
