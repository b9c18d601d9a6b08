"""Every name of flashinfer.sampling is a function that cannot be called."""

from collections.abc import Callable
from typing import NoReturn

from flashinfer import missing


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)
    return missing(name)
