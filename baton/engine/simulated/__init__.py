"""The simulated engine: no tensors, but the real pool, events, leases and protocol."""

from baton.engine.simulated.engine import SimulatedEngine
from baton.engine.simulated.spec import SimulatedOptions, SimulatedSpec, load_spec

__all__ = ["SimulatedEngine", "SimulatedOptions", "SimulatedSpec", "load_spec"]
