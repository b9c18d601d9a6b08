"""What decides in a simulated mesh, and what the mesh itself takes."""

from dataclasses import dataclass

from services.decode.policy import SplitPolicy
from services.router.policy import RoutingPolicy
from sim.admission import MakeDesk


@dataclass(frozen=True, slots=True)
class MeshTiming:
    """What the mesh itself takes: deciding in the router, and one message between processes."""

    route_s: float = 1e-3
    hop_s: float = 5e-4


@dataclass(frozen=True, slots=True)
class Policies:
    """The objects that decide. `desk` makes admission's, which needs the run's clock and state.

    `tpot_price` is what the fleet's targets make one second of TPOT worth, in seconds of TTFT.
    """

    routing: RoutingPolicy
    split: SplitPolicy
    prefill_queue_max: int
    offload_above_tokens: int
    desk: MakeDesk
    tpot_price: float
