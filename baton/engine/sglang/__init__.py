"""SGLang as an engine of the mesh: the adapter, in small parts.

`engine.py` is the Engine; `process.py` and `child.py` are the two ends of its process, which speak
`frames.py`. The rest is pure: what SGLang is started with (`options.py`), how parameters, outputs,
figures and cache events translate.
"""

from baton.engine.sglang.engine import SglangEngine
from baton.engine.sglang.options import AGGREGATED, DECODE, PREFILL, SglangOptions

__all__ = ["AGGREGATED", "DECODE", "PREFILL", "SglangEngine", "SglangOptions"]
