"""What CUDA graphs do, on CPU: the same operations on the same memory, and none that waits."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
}
"""Operations whose result the host would have to wait for on a GPU."""


class TapeRecorder:
    """Records at once and remembers which recording was replayed when, the first being 0."""

    def __init__(self) -> None:
        self.replayed: list[int] = []
        self._recorded = 0

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        tape, number = _Tape(), self._recorded
        self._recorded += 1
        with tape:
            compute()

        def replay() -> None:
            self.replayed.append(number)
            tape.play()

        return replay


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITING:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        for func, args, kwargs, result in self._calls:
            given = {_memory(it) for it in _tensors((args, kwargs))}
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                # Views and in-place results are in place already.
                if _memory(old) not in given:
                    old.copy_(new)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
