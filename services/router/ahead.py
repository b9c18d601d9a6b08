"""What admission allows a router to start before it is asked: prompts like one just granted.

Asking takes a message there and one back, which a lightly loaded mesh can spare its requests: while
the answer could only be yes, admission says with each grant how many such prompts the router may
have computed at once without waiting. They are told to admission as ever and counted there.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from baton.requests import Priority

LASTS_S = 1.0
"""An allowance this old says nothing about the mesh any more. Seconds."""


class _Allowance(NamedTuple):
    prompts: int
    uncached_tokens: int
    until_s: float


class Allowances:
    """The latest allowance of each admission service and class, and this router's own prompts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[tuple[str, Priority], _Allowance] = {}
        self._computing: defaultdict[str, set[object]] = defaultdict(set)

    def allows(self, service: str, priority: Priority, uncached_tokens: int) -> bool:
        """Tells whether a prompt may start before the service has answered."""
        allowed = self._latest.get((service, priority))
        if allowed is None or uncached_tokens > allowed.uncached_tokens:
            return False
        computing = self._computing.get(service, ())
        return len(computing) < allowed.prompts and self._clock() < allowed.until_s

    def take(self, service: str, priority: Priority, uncached_tokens: int, prompts: int) -> None:
        """Takes what came with the grant of a prompt of `uncached_tokens`."""
        until_s = self._clock() + LASTS_S
        self._latest[service, priority] = _Allowance(prompts, uncached_tokens, until_s)

    def begin(self, service: str, prompt: object) -> None:
        """A prompt of this router is to be computed under a permit of the service."""
        self._computing[service].add(prompt)

    def end(self, service: str, prompt: object) -> None:
        """It is computed, or given up; again it does nothing."""
        computing = self._computing[service]
        computing.discard(prompt)
        if not computing:
            del self._computing[service]
