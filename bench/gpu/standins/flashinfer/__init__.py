"""Stands in for flashinfer, of which SGLang imports names that other backends never call.

SGLANG_IS_FLASHINFER_AVAILABLE=false keeps everything else of it away.
"""

from collections.abc import Callable
from typing import NoReturn


def missing(name: str) -> Callable[..., NoReturn]:
    """Returns a function that says what it stands for."""

    def call(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"flashinfer.{name} is not in this bundle")

    return call


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)
    return missing(name)
