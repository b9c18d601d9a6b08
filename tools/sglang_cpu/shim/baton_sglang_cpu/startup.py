"""Run by every interpreter of the CPU environment (see the .pth file), before anything else.

torchvision registers fake versions of operators whose compiled originals need CUDA libraries.
Where those are missing the operators do not exist and the import fails, so they are declared just
before torchvision is imported. Nothing calls them.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; being asked for torchvision is what it waits for."""

    library: object = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == "torchvision" and self.library is None:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in _SCHEMAS:
                library.define(schema)
            self.library = library  # the operators live as long as it does


sys.meta_path.insert(0, _DeclareOperators())
