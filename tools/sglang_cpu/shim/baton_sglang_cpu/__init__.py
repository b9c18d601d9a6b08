"""SGLang's KV pool is host memory on the CPU, whatever its NIXL connector calls it."""

import importlib
import importlib.util
import os

_BINDINGS = ("nixl_cu13._api", "nixl_cu12._api")


def move_kv_as_host_memory() -> None:
    """Makes NIXL agents of this process register what SGLang calls VRAM as DRAM.

    Refuses to run where there is a GPU: there VRAM is what it says.
    """
    import torch

    if torch.cuda.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        raise RuntimeError("baton-sglang-cpu is installed on a machine with a GPU: uninstall it")
    for name in _BINDINGS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            _relabel(importlib.import_module(name).nixl_agent)


def _relabel(agent: type) -> None:
    start = agent.__init__

    def start_on_host(self, *args, **options):
        start(self, *args, **options)
        self.nixl_mems["VRAM"] = self.nixl_mems["DRAM"]

    agent.__init__ = start_on_host
