"""The embedded engine: a Hugging Face causal LM over a paged KV pool, on CPU or CUDA."""

from baton.engine.torch.assembly import TorchEngineOptions
from baton.engine.torch.engine import TorchEngine

__all__ = ["TorchEngine", "TorchEngineOptions"]
