"""Stands in for SGLang's compiled kernels, which on PyPI exist for CUDA only.

SGLang imports names that end in `_cpu` when it runs on the CPU. A dense Llama calls none of them;
whatever does is told so.
"""

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not built for this machine")

    return missing
