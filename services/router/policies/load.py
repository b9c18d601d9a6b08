"""Policies that compare loads and nothing else: baselines, which ignore what workers cached."""

import random
from collections.abc import Sequence

from services.router.policy import (
    MAX_PREFILL_CANDIDATES,
    Decision,
    DecodeView,
    PrefillView,
    RouteRequest,
    View,
    usable,
)


class LeastLoadedPolicy:
    """The workers with the fewest requests; equal ones are decided by the injected generator."""

    name = "least_loaded"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        return Decision(
            decode=_by_load(usable(decode), self._rng)[0],
            prefill_candidates=tuple(_by_load(usable(prefill), self._rng)[:MAX_PREFILL_CANDIDATES]),
            policy=self.name,
        )


class PowerOfTwoPolicy:
    """The less loaded of two workers drawn at random, for prefill and for decode.

    Nearly as even as the least loaded one, and routers with old figures do not all pick the same.
    """

    name = "power_of_two"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        return Decision(
            decode=self._two(decode)[0],
            prefill_candidates=tuple(self._two(prefill)),
            policy=self.name,
        )

    def _two(self, views: Sequence[View]) -> list[View]:
        healthy = usable(views)
        drawn = self._rng.sample(range(len(healthy)), min(2, len(healthy)))
        return _by_load([healthy[index] for index in drawn], self._rng)


def _by_load(views: Sequence[View], rng: random.Random) -> list[View]:
    """Returns the views by load, those of equal load in random order."""
    return sorted(views, key=lambda view: (_load(view), rng.random()))


def _load(view: PrefillView | DecodeView) -> int:
    running = view.decode_load if isinstance(view, DecodeView) else 0
    return view.queue_length + running
