"""When to come back: after the backlog drained, spread so that not all come back together."""

import random

_MIN_S = 0.1
_MAX_S = 30.0
_JITTER = 0.5


def retry_after_s(drain_s: float, rng: random.Random) -> float:
    """Returns the seconds to wait, from when the backlog should have drained enough."""
    return min(max(drain_s, _MIN_S) * (1 + _JITTER * rng.random()), _MAX_S)
